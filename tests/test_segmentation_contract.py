"""Segmentors: what a batch of several sizes gives, against its pictures alone."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
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


def test_windows_see_no_padding_and_keep_the_limit_of_pixels():
    """Windows add up on the whole canvas, and do not know where a picture ends on it."""
    options = dict(mode='slide', crop_size=(48, 48), stride=(32, 32))
    model = segmentor(LINEAR, neck=None, type='NativeEncoderDecoder', **options)
    assert model.data_preprocessor.max_pixels == 2**24
    model.data_preprocessor.size_divisor = 32
    model.data_preprocessor.one_size = True  # as MixedSizesHook sets it
    canvas = model.data_preprocessor(batch([(48, 80), (48, 80)]), False)['inputs']
    assert canvas.shape == (2, 3, 48, 80)


@every_head_of_ours
def test_windows_of_a_batch_of_one_size_are_those_of_its_pictures(name):
    options = dict(mode='slide', crop_size=(48, 48), stride=(32, 32))
    model = perturb(segmentor(OURS[name], **options), scale=0.05).eval()
    model.data_preprocessor.one_size = True
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
