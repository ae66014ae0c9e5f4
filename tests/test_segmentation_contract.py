"""Segmentors: what a batch of several sizes gives, against its pictures alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.structures import SegDataSample
from oracles import ODD_SIZES, on_canvas, perturb, pictures
from segmentors import (
    FCN,
    LINEAR,
    MASK2FORMER,
    NUM_CLASSES,
    OCR,
    PYRAMID,
    SEGMENTER,
    SETR,
    TWO_LEVELS,
    UPERNET,
    batch,
    segmentor,
)

from navit_backbone.tasks.segmentation.inference import with_flips
from navit_backbone.tasks.segmentation.mixed_sizes import prepare_windows

OURS = {'linear': LINEAR, 'linear, two levels': TWO_LEVELS, 'segmenter': SEGMENTER}
ON_PYRAMID = dict(in_channels=16, in_index=2)
STOCK = {
    'fcn': dict(head=FCN),
    'fcn, pyramid': dict(head={**FCN, **ON_PYRAMID}, neck=PYRAMID),
    'setr': dict(head=SETR),
    'setr, pyramid': dict(head={**SETR, **ON_PYRAMID}, neck=PYRAMID),
    'upernet': dict(head=UPERNET, neck=PYRAMID),
    'mask2former': dict(head=MASK2FORMER, neck=PYRAMID),
}
SIZES = [*ODD_SIZES, (128, 128)]
every_head_of_ours = pytest.mark.parametrize('name', OURS)
every_stock_head = pytest.mark.parametrize('name', STOCK)


def model_of(**options):
    """In float64, with no bias at zero."""
    return perturb(segmentor(**options), scale=0.05).eval().double()


def rounded_up(size, step=16):
    return tuple(-(-side // step) * step for side in size)


def resized_logits(model, images, canvas):
    """The logits at the pictures' own pixels, as mmseg's heads resize them on the canvas."""
    held = on_canvas(images, height=canvas[0], width=canvas[1])
    logits = model.decode_head(model.extract_feat(held))
    logits = F.interpolate(logits, canvas, mode='bilinear', align_corners=False)
    return [
        own[:, : image.shape[1], : image.shape[2]]
        for own, image in zip(logits, images, strict=True)
    ]


def same(a, b):
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=1e-10)


@every_head_of_ours
def test_a_batch_gives_what_its_pictures_give_alone(name):
    model, images = model_of(head=OURS[name]), pictures(SIZES)
    together = resized_logits(model, images, (144, 160))
    for image, found in zip(images, together, strict=True):
        (alone,) = resized_logits(model, [image], rounded_up(image.shape[1:]))
        assert found.std() > 0.01
        assert same(found, alone)


@every_head_of_ours
def test_gradients_too(name):
    model, images = model_of(head=OURS[name]), pictures(SIZES)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradients(logits):
        total = sum((item * item.sin()).sum() for item in logits)
        return torch.autograd.grad(total, parameters, materialize_grads=True)

    alone = [
        sum(parts)
        for parts in zip(
            *(
                gradients(resized_logits(model, [image], rounded_up(image.shape[1:])))
                for image in images
            ),
            strict=True,
        )
    ]
    together = gradients(resized_logits(model, images, (144, 160)))
    assert any(item.abs().max() > 0.1 for item in together)
    for ours, theirs in zip(together, alone, strict=True):
        scale = theirs.abs().max().clamp(min=1)
        assert same(ours / scale, theirs / scale)


@every_head_of_ours
@pytest.mark.parametrize('fill', [1e6, float('nan')])
def test_garbage_in_the_padding(name, fill):
    model, images = model_of(head=OURS[name]), pictures(SIZES)
    clean = model.decode_head(model.extract_feat(on_canvas(images, height=144, width=160)))
    held = on_canvas(images, height=144, width=160, fill=fill)
    assert torch.equal(model.decode_head(model.extract_feat(held)), clean)


@every_stock_head
def test_a_stock_head_sees_its_picture_and_the_canvas_alone(name):
    model, images = model_of(**STOCK[name]), pictures(SIZES)

    def logits(images, fill=0.0):
        held = on_canvas(images, height=128, width=128, fill=fill)
        maps = model.extract_feat(held)
        if name != 'mask2former':
            return model.decode_head(maps)
        samples = [SegDataSample(metainfo=dict(img_shape=size)) for size in held.image_sizes]
        classes, masks = model.decode_head(maps, samples)
        return torch.cat([part.flatten(1) for part in [*classes, *masks]], 1)

    together = logits(images)
    assert together.std() > 0.01
    assert same(together, torch.cat([logits([image]) for image in images]))
    assert torch.equal(logits(images, fill=float('nan')), together)


def test_fcn_differs_from_batch_1_in_a_band_of_its_reach():
    """Two convolutions of 3 x 3 reach two cells: farther from the padding a picture's logits are
    those that it has on its own canvas."""
    model, size = model_of(head=FCN), (112, 96)
    (image,) = pictures([size])

    def logits(canvas):
        held = on_canvas([image], height=canvas[0], width=canvas[1])
        return model.decode_head(model.extract_feat(held))[..., :7, :6]

    alone, beside_a_larger = logits(size), logits((160, 160))
    differs = (alone - beside_a_larger).abs().amax((0, 1)) > 1e-10
    assert differs[-1].all()
    assert differs[:, -1].all()
    assert not differs[:-2, :-2].any()


# --------------------------------------------------------------------------------------------------
# Whole steps of the unmodified segmentor

NATIVES = [(40, 90), (16, 16), (9, 3), (301, 47), (16, 113), (61, 53), (64, 64)]


@every_head_of_ours
def test_predictions_are_at_the_own_size_and_those_of_batch_1(name):
    model = perturb(segmentor(OURS[name]), scale=0.05).eval()
    together = model.test_step(batch(SIZES, natives=NATIVES))
    for index, native in enumerate(NATIVES):
        data = batch(SIZES, natives=NATIVES)
        (alone,) = model.test_step({key: [value[index]] for key, value in data.items()})
        assert together[index].pred_sem_seg.shape == native
        assert torch.allclose(
            together[index].seg_logits.data, alone.seg_logits.data, rtol=0, atol=1e-4
        )
        assert together[index].gt_sem_seg.shape == SIZES[index], 'the truth keeps its size'


def test_a_cascade_trains_and_predicts_mixed_sizes():
    """OCRNet, whose second head attends to the regions of the first, on one canvas."""
    heads = [{**head, 'dropout_ratio': 0.0} for head in (FCN, OCR)]
    model = perturb(segmentor(heads, type='CascadeEncoderDecoder'), scale=0.05).double()
    data = model.data_preprocessor(batch(SIZES), True)
    losses = model.train().loss(data['inputs'].double(), data['data_samples'])
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    assert {key.split('.')[0] for key in losses} == {'decode_0', 'decode_1'}
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)

    model.eval().data_preprocessor.test_cfg = dict(size=(144, 160))
    together = model.test_step(batch(SIZES, natives=NATIVES))
    for index, native in enumerate(NATIVES):
        one = {key: [value[index]] for key, value in batch(SIZES, natives=NATIVES).items()}
        (alone,) = model.test_step(one)
        assert together[index].pred_sem_seg.shape == native
        assert same(together[index].seg_logits.data, alone.seg_logits.data)


@every_head_of_ours
def test_the_loss_of_a_batch_is_that_of_its_labelled_pixels(name):
    model = perturb(segmentor(OURS[name]), scale=0.05).train()
    loss, pixels = [], []
    for index in range(len(SIZES)):
        data = {key: [value[index]] for key, value in batch(SIZES).items()}
        pixels.append((data['data_samples'][0].gt_sem_seg.data != 255).sum().item())
        loss.append(loss_of(model, data))
    together = loss_of(model, batch(SIZES))
    expected = sum(a * n for a, n in zip(loss, pixels, strict=True)) / sum(pixels)
    assert together == pytest.approx(expected, rel=1e-5)


def loss_of(model, data):
    data = model.data_preprocessor(data, training=True)
    return model(**data, mode='loss')['decode.loss_ce'].item()


@pytest.mark.parametrize('options', [dict(head=LINEAR), STOCK['fcn'], STOCK['upernet']])
def test_padding_does_not_change_the_loss(options):
    """The same picture on a larger canvas, where the head does not look at the canvas."""
    model = perturb(segmentor(**options), scale=0.05).train()
    data = model.data_preprocessor(batch([(64, 64)]), training=True)
    before = model(**data, mode='loss')['decode.loss_ce']
    model.data_preprocessor.size, model.data_preprocessor.size_divisor = (128, 160), None
    data = model.data_preprocessor(batch([(64, 64)]), training=True)
    assert data['inputs'].shape[2:] == (128, 160)
    assert (data['data_samples'][0].gt_sem_seg.data[..., 64:] == 255).all()
    after = model(**data, mode='loss')['decode.loss_ce']
    tolerance = 1e-5 if options['head'] is LINEAR else 0.3  # its convolutions reach beyond
    assert after.item() == pytest.approx(before.item(), rel=tolerance)
    if options['head'] is not LINEAR:
        logits = torch.zeros(1, NUM_CLASSES, 32, 40)
        losses = model.decode_head.loss_by_feat(logits, data['data_samples'])
        assert losses['loss_ce'].item() == pytest.approx(torch.tensor(7.0).log().item(), rel=1e-5)


def test_a_picture_of_ignored_pixels_alone_has_no_loss():
    model = segmentor(LINEAR).train()
    data = batch([(33, 70)])
    data['data_samples'][0].gt_sem_seg.data.fill_(255)
    assert loss_of(model, data) == 0


# --------------------------------------------------------------------------------------------------
# The native segmentor


@pytest.mark.parametrize('max_piece', [1, 2 * 301 * 47, 2**26])
def test_native_labels_are_those_of_the_stock_segmentor(max_piece):
    stock = perturb(segmentor(SEGMENTER), scale=0.05).eval()
    native = segmentor(SEGMENTER, type='NativeEncoderDecoder').eval()
    native.load_state_dict(stock.state_dict())
    native.max_piece = max_piece
    expected = stock.test_step(batch(SIZES, natives=NATIVES))
    found = native.test_step(batch(SIZES, natives=NATIVES))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.pred_sem_seg.data, theirs.pred_sem_seg.data)
        assert 'seg_logits' not in ours
    assert len(torch.cat([item.pred_sem_seg.data.flatten() for item in expected]).unique()) > 3


def test_native_slides_and_flips_as_the_stock_segmentor():
    options = dict(mode='slide', crop_size=(48, 48), stride=(32, 32))
    stock = perturb(segmentor(LINEAR, **options), scale=0.05).eval()
    native = segmentor(LINEAR, type='NativeEncoderDecoder', **options).eval()
    native.load_state_dict(stock.state_dict())

    def step(model):
        data = batch([(100, 70)], natives=[(50, 35)])
        data['data_samples'][0].set_metainfo(dict(flip=True, flip_direction='horizontal'))
        return model.test_step(data)[0].pred_sem_seg.data

    assert torch.equal(step(native), step(stock))


def test_a_picture_too_large_for_all_logits_is_refused_by_the_stock_segmentor():
    model = segmentor(LINEAR).eval()
    with pytest.raises(ValueError, match=r'0\.jpg is 6000 x 4000 .*NativeEncoderDecoder'):
        model.test_step(batch([(48, 32)], natives=[(6000, 4000)]))
    model = segmentor(LINEAR, type='NativeEncoderDecoder').eval()
    assert model.test_step(batch([(48, 32)], natives=[(6000, 4000)]))[0].pred_sem_seg.shape == (
        6000,
        4000,
    )


def test_native_refuses_heads_that_do_more_than_resize():
    class Other(MODELS.get('NaViTLinearHead')):
        def predict_by_feat(self, *args):
            return super().predict_by_feat(*args).softmax(1)

    MODELS.register_module(name='OtherHead', module=Other, force=True)
    own_predict = dict(type='DAHead', in_channels=24, channels=16, pam_channels=8)
    for head in ({**LINEAR, 'type': 'OtherHead'}, own_predict):
        with pytest.raises(ValueError, match='cannot take (Other|DAHead)'):
            segmentor(head, type='NativeEncoderDecoder')


def windows(model, crop, stride):
    """Set a model to windows as `MixedSizesHook` does."""
    model.test_cfg = ConfigDict(mode='slide', crop_size=crop, stride=stride)
    prepare_windows(model)
    return model


def test_windows_see_no_padding_and_keep_the_limit_of_pixels():
    """Windows add up on the whole canvas, and do not know where an image ends on it."""
    options = dict(mode='slide', crop_size=(48, 48), stride=(32, 32))
    model = segmentor(LINEAR, neck=None, type='NativeEncoderDecoder', **options)
    assert model.data_preprocessor.max_pixels == 2**24
    model.data_preprocessor.size_divisor = 32
    prepare_windows(model)
    canvas = model.data_preprocessor(batch([(48, 80), (48, 80)]), False)['inputs']
    assert canvas.shape == (2, 3, 48, 80)


def test_windows_are_padded_to_whole_cells_with_zeros():
    options = dict(mode='slide', crop_size=(64, 64), stride=(32, 32))
    flat, pyramid = segmentor(LINEAR, **options), segmentor(UPERNET, neck=PYRAMID, **options)
    for model, size in ((flat, (112, 64)), (pyramid, (128, 64))):
        model.data_preprocessor.pad_val = 7.0
        prepare_windows(model)
        canvas = model.data_preprocessor(batch([(100, 57)]), False)['inputs']
        assert canvas.shape == (1, 3, *size)
        assert canvas[..., 100:, :].count_nonzero() == canvas[..., 57:].count_nonzero() == 0


class CellMeans(torch.nn.Module):
    """A map of the mean of every cell of 16 x 16 pixels: what lies beyond the canvas is zero."""

    patch_size = 16

    def forward(self, x):
        x = F.pad(x, (0, -x.shape[3] % 16, 0, -x.shape[2] % 16))
        return [F.avg_pool2d(x, 16)]


class Channels(BaseDecodeHead):
    """The three channels as the logits of the first three classes."""

    def forward(self, inputs):
        return F.pad(inputs[0], (0, 0, 0, 0, 0, NUM_CLASSES - 3))


def ramp_logits(size, crop, stride):
    """The logits of an image of (row, column, 1) in sliding windows, and where they are exact."""
    MODELS.register_module(name='Channels', module=Channels, force=True)
    head = dict(type='Channels', in_channels=3, channels=3)
    model = segmentor(head).eval().double()
    model.backbone = CellMeans()
    model.data_preprocessor._enable_normalize = False
    model.data_preprocessor._channel_conversion = False
    windows(model, crop, stride)
    h, w = size
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing='ij')
    data = batch([size])
    data['inputs'] = [torch.stack([y, x, torch.ones_like(x)]).to(torch.uint8)]
    data = model.data_preprocessor(data, False)
    data['inputs'] = data['inputs'].double()
    (found,) = model.predict(data['inputs'], data['data_samples'])
    return found.seg_logits.data


@pytest.mark.parametrize('size', [(200, 90), (43, 200), (33, 47), (208, 96), (250, 49)])
def test_logits_of_one_window_sit_on_their_pixels(size):
    """A ramp of numbered rows and columns comes back as it was, half a cell from the edges."""
    found = ramp_logits(size, (512, 512), (341, 341))
    inside = [slice(8, side // 16 * 16 - 8) for side in size]
    for axis, side in enumerate(size):
        numbers = torch.arange(side, dtype=torch.float64)[inside[axis]]
        got = found[axis][tuple(inside)]
        expected = numbers[:, None] if axis == 0 else numbers[None]
        assert got.numel() > 0 and (got - expected).abs().max() < 1e-9


@pytest.mark.parametrize(
    ('side', 'crop', 'stride'), [(200, 64, 48), (131, 64, 40), (97, 32, 21), (240, 96, 96)]
)
def test_logits_of_several_windows_sit_on_their_pixels(side, crop, stride):
    """Against numpy: in each window a line through the centres of its cells, then the mean."""
    found = ramp_logits((40, side), (crop, crop), (stride, stride))
    whole = -(-side // 16) * 16
    pixels = np.pad(np.arange(side, dtype=float), (0, whole - side))
    total, count = np.zeros(whole), np.zeros(whole)
    first = 0
    while True:
        start = max(min(first, whole - crop), 0)
        values = pixels[start : start + crop].reshape(-1, 16).mean(1)
        centres = start + 16 * np.arange(len(values)) + 7.5
        places = np.arange(start, start + crop)
        total[places] += np.interp(places, centres, values)
        count[places] += 1
        if start + crop >= whole:
            break
        first += stride
    # the middle of the first row of cells: below, partial cells are filled up with zeros
    assert np.abs(found[1, 10].numpy() - (total / count)[:side]).max() < 1e-9


@every_head_of_ours
@pytest.mark.parametrize('size', [(100, 57), (7, 130), (16, 33)])
def test_one_window_gives_what_the_whole_image_gives(name, size):
    """Partial patches at the border are the same to the backbone in both."""
    model = perturb(segmentor(OURS[name]), scale=0.05).eval().double()

    def logits(model):
        data = model.data_preprocessor(batch([size]), False)
        data['inputs'].data = data['inputs'].double()
        return model.predict(data['inputs'].double(), data['data_samples'])[0].seg_logits.data

    whole = logits(model)
    assert (logits(windows(model, (512, 512), (512, 512))) - whole).abs().max() < 1e-10


@pytest.mark.parametrize(
    ('neck', 'crop', 'fix'),
    [
        (None, (500, 512), r'\(500, 512\) is no multiple of 16 .*set crop_size=\(496, 512\)'),
        (None, (7, 16), r'set crop_size=\(16, 16\)'),
        (PYRAMID, (512, 528), r'no multiple of 32 .*set crop_size=\(512, 512\)'),
    ],
)
def test_windows_of_partial_patches_are_refused(neck, crop, fix):
    model = segmentor(UPERNET if neck else LINEAR, neck=neck)
    with pytest.raises(ValueError, match=f'model.test_cfg.crop_size=.*{fix}'):
        windows(model, crop, (300, 300))


def test_windows_of_a_batch_ask_for_no_sizes(monkeypatch):
    """They are of one size; in training and in whole mode a batch without sizes is a mistake."""
    model = segmentor(LINEAR).eval()
    model.backbone.strict = True
    windows(model, (48, 48), (32, 32))
    assert len(model.test_step(batch([(64, 96)] * 2))) == 2
    with pytest.raises(ValueError, match='without their sizes'):
        model.train().backbone(torch.zeros(2, 3, 48, 48))
    model.test_cfg = ConfigDict(mode='whole')
    prepare_windows(model)
    assert not model.data_preprocessor.one_size
    with pytest.raises(ValueError, match='without their sizes'):
        model.eval().backbone(torch.zeros(2, 3, 48, 48))


@every_head_of_ours
def test_windows_of_a_batch_of_one_size_are_those_of_its_pictures(name):
    options = dict(mode='slide', crop_size=(48, 48), stride=(32, 32))
    model = perturb(segmentor(OURS[name], **options), scale=0.05).eval()
    prepare_windows(model)
    sizes, natives = [(64, 96)] * 3, [(64, 96), (30, 47), (128, 100)]
    together = model.test_step(batch(sizes, natives=natives))
    for index, native in enumerate(natives):
        one = {key: [value[index]] for key, value in batch(sizes, natives=natives).items()}
        (alone,) = model.test_step(one)
        logits = together[index].seg_logits.data
        assert logits.shape[1:] == native
        assert torch.allclose(logits, alone.seg_logits.data, rtol=0, atol=1e-4)


def test_mirror_images_need_the_scores_that_native_does_not_keep():
    cfg = Config(dict(model=dict(type='NativeEncoderDecoder')))
    with pytest.raises(ValueError, match="set model.type='EncoderDecoder'"):
        with_flips(cfg)


@every_head_of_ours
def test_corners_that_stretch_with_the_canvas_are_refused(name):
    with pytest.raises(ValueError, match='align_corners=True stretches'):
        segmentor({**OURS[name], 'align_corners': True})


def test_maps_of_another_patch_size_are_refused():
    model, (image,) = model_of(head=LINEAR), pictures([(64, 48)])
    model.decode_head.in_stride = 8
    with pytest.raises(ValueError, match=r'NaViTLinearHead has in_stride=8, .* stride 16'):
        model(image[None], mode='tensor')


def test_the_weights_that_init_cfg_asks_for():
    head = {**SEGMENTER, 'init_cfg': dict(type='Constant', layer='Linear', val=0.5)}
    weight = segmentor(head).decode_head.patch_proj.weight
    assert (weight == 0.5).all()
    assert segmentor(SEGMENTER).decode_head.patch_proj.weight.std() < 0.03


# --------------------------------------------------------------------------------------------------
# Segmenter against mmseg's own head, which takes one size


def test_segmenter_gives_mmsegs_numbers():
    ours = perturb(segmentor(SEGMENTER)).decode_head.eval().double()
    theirs = MODELS.build(
        dict(
            type='mmseg.SegmenterMaskTransformerHead',
            in_channels=24,
            channels=16,
            embed_dims=16,
            num_layers=2,
            num_heads=2,
            num_classes=NUM_CLASSES,
            loss_decode=ConfigDict(type='CrossEntropyLoss'),
        )
    )
    names = {
        'norm1.': 'ln1.',
        'norm2.': 'ln2.',
        'attn.qkv.weight': 'attn.attn.in_proj_weight',
        'attn.qkv.bias': 'attn.attn.in_proj_bias',
        'attn.proj.': 'attn.attn.out_proj.',
        'mlp.fc1.': 'ffn.layers.0.0.',
        'mlp.fc2.': 'ffn.layers.1.',
        'blocks.': 'layers.',
    }
    state = {}
    for key, value in ours.state_dict().items():
        for own, other in names.items():
            key = key.replace(own, other)
        state[key] = value[None] if key == 'cls_emb' else value
    theirs.load_state_dict(state)
    maps = torch.randn(2, 24, 5, 3, generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(ours([maps]), theirs.eval().double()([maps]), rtol=0, atol=1e-10)
