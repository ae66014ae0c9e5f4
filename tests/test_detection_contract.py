"""Whole stock detectors: a picture's outputs depend on its own pixels and on the canvas only."""

import pytest
import torch
from detectors import DINO, FCOS, MASK_RCNN, RETINANET, STRIDES, batch, sample, stock_detector
from mmdet.structures import DetDataSample
from mmengine.logging import MessageHub
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from oracles import ODD_SIZES, on_canvas, perturb, pictures

from navit_backbone.packing import inside

CANVAS = dict(height=128, width=128)
SIZES = [*ODD_SIZES, (128, 128)]  # the last, alone, leaves no padding at all
DETECTORS = {
    'retinanet': dict(config=RETINANET),
    'retinanet, windowed': dict(config=RETINANET, window_size=3, global_attn_indexes=[1]),
    'retinanet, factorised': dict(config=RETINANET, position='factorised'),
    'fcos, group norm': dict(config=FCOS, channels=64),
    'fcos, patch 14': dict(config=FCOS, channels=64, patch_size=14),
    'mask r-cnn': dict(config=MASK_RCNN),
    'mask r-cnn, patch 14': dict(config=MASK_RCNN, patch_size=14),
    'dino': dict(config=DINO),
}
every_detector = pytest.mark.parametrize('name', DETECTORS)


def detector(name='retinanet'):
    """In float64, which every operation before NMS takes, and with no bias at zero."""
    torch.manual_seed(0)
    return perturb(stock_detector(**DETECTORS[name]), scale=0.05).eval().double()


def samples_of(canvas):
    """What the heads of two-stage detectors and of DETRs are told of each picture."""
    shape = dict(batch_input_shape=tuple(canvas.shape[2:]))
    return [DetDataSample(metainfo=dict(img_shape=size, **shape)) for size in canvas.image_sizes]


def regions_of(size):
    """The same regions of every picture: all of it, its corners, a strip across."""
    h, w = size
    parts = torch.tensor([[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0.6, 0.6, 1, 1], [0.1, 0.3, 0.9, 0.35]])
    return InstanceData(bboxes=parts.double() * torch.tensor([w, h, w, h]))


def raw(model, canvas):
    """What the heads give for each picture before boxes are chosen: one vector each.

    Of two stages: what the first gives everywhere, and the second for the `regions_of` a picture.
    Of DINO: classes and boxes of all queries after each layer, of its own choice of queries.
    """
    samples = samples_of(canvas)
    if hasattr(model, 'roi_head'):
        maps = model.extract_feat(canvas)
        regions = [regions_of(size) for size in canvas.image_sizes]
        second = model.roi_head(maps, regions, samples)
        parts = [level for kind in model.rpn_head(maps) for level in kind]
        parts += [part.unflatten(0, (len(canvas), -1)) for part in second]
    elif hasattr(model, 'encoder'):
        parts = [part.transpose(0, 1) for part in model(canvas, samples)]
    else:
        parts = [level for kind in model(canvas) for level in kind]
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def same(a, b):
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=1e-10)


@every_detector
def test_alone_on_the_canvas_as_in_the_batch(name):
    model, images = detector(name), pictures(SIZES)
    together = raw(model, on_canvas(images, **CANVAS))
    alone = torch.cat([raw(model, on_canvas([image], **CANVAS)) for image in images])
    assert together.dtype == torch.float64
    assert together.std() > 0.01
    assert same(together, alone)


@every_detector
def test_gradients_too(name):
    model, images = detector(name), pictures(SIZES)
    parameters = [p for p in model.parameters() if p.requires_grad]
    weights = torch.linspace(0.5, 2, raw(model, on_canvas(images[:1], **CANVAS)).shape[1])

    def gradients(images):
        total = (raw(model, on_canvas(images, **CANVAS)) * weights).sum()
        return torch.autograd.grad(total, parameters, materialize_grads=True)

    alone = [sum(parts) for parts in zip(*(gradients([image]) for image in images), strict=True)]
    for ours, theirs in zip(gradients(images), alone, strict=True):
        scale = theirs.abs().max().clamp(min=1)
        assert same(ours / scale, theirs / scale)


@every_detector
@pytest.mark.parametrize('fill', [1e6, float('nan')])
def test_garbage_in_the_padding(name, fill):
    model, images = detector(name), pictures(SIZES)
    clean = raw(model, on_canvas(images, **CANVAS))
    assert torch.equal(raw(model, on_canvas(images, **CANVAS, fill=fill)), clean)


@every_detector
def test_a_neighbour_replaced_and_the_order_permuted(name):
    model, images = detector(name), pictures(SIZES)
    before = raw(model, on_canvas(images, **CANVAS))
    (other,) = pictures([(97, 128)], seed=1)
    assert same(raw(model, on_canvas([other, *images[1:]], **CANVAS))[1:], before[1:])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    assert same(raw(model, on_canvas([images[i] for i in order], **CANVAS)), before[order])


# --------------------------------------------------------------------------------------------------
# What the heads do see: the size of the canvas. (The contract would be void for constant outputs.)


def on_two_canvases(size=(64, 64)):
    """A picture on a canvas of its own size, and on a larger one."""
    images = pictures([size])
    return [on_canvas(images, height=side, width=side) for side in (64, 128)]


def test_convolutions_see_the_canvas_near_the_edge():
    model = detector()
    small, large = (model(canvas)[0][0][:, :, :8, :8] for canvas in on_two_canvases())
    assert same(small[..., :3, :3], large[..., :3, :3])  # five of 3 x 3 reach five cells
    assert (small - large).abs().max() > 1e-6


def test_regions_see_the_canvas_where_they_touch_the_edge():
    model, inner = detector('mask r-cnn'), torch.tensor([[8.0, 8, 40, 40]]).double()
    edge = torch.tensor([[32.0, 32, 64, 64]]).double()

    def second(canvas, boxes):
        regions = [InstanceData(bboxes=boxes)]
        parts = model.roi_head(model.extract_feat(canvas), regions, samples_of(canvas))
        return torch.cat([part.flatten() for part in parts])

    small, large = on_two_canvases()
    assert same(second(small, inner), second(large, inner))
    assert (second(small, edge) - second(large, edge)).abs().max() > 1e-6


def encoded(model, canvas):
    """DINO's memory of the cells that it takes for picture, and the mask of the others."""
    into_encoder, into_decoder = model.pre_transformer(
        model.extract_feat(canvas), samples_of(canvas)
    )
    padding = into_decoder['memory_mask']
    memory = model.forward_encoder(**into_encoder)['memory']
    return memory if padding is None else memory[~padding], padding


def test_the_encoder_of_dino_does_not_see_the_canvas_but_its_decoder_does():
    model = detector('dino')
    small, large = on_two_canvases()
    own, other = (encoded(model, canvas)[0].flatten(0, -2) for canvas in (small, large))
    torch.testing.assert_close(own, other, rtol=0, atol=1e-5)  # its positions are float32
    assert (raw(model, small) - raw(model, large)).abs().max() > 1e-4


def test_dino_takes_those_cells_for_padding_that_the_pyramid_leaves_empty():
    """It finds them from the pixels of the canvas, so that must be a multiple of all strides."""
    model, strides = detector('dino'), STRIDES[DINO]
    canvas = on_canvas(pictures(SIZES), **CANVAS)
    padding = encoded(model, canvas)[1]
    grids = [(128 // stride, 128 // stride) for stride in strides]
    cells = [
        inside([(-(-h // s), -(-w // s)) for h, w in SIZES], grid, padding.device).flatten(1)
        for s, grid in zip(strides, grids, strict=True)
    ]
    assert torch.equal(padding, ~torch.cat(cells, 1))


# --------------------------------------------------------------------------------------------------
# Training, and boxes to the end


@pytest.mark.parametrize('name', ['retinanet', 'mask r-cnn', 'dino'])
def test_no_gradient_reaches_the_padding_and_all_parameters_get_one(name):
    model = detector(name).float().train()
    data = model.data_preprocessor(batch([(96, 70), (61, 113)]), True)
    inputs = data['inputs'].requires_grad_()
    assert inputs.image_sizes == [(96, 70), (61, 113)]
    loss, _ = model.parse_losses(model.loss(inputs, data['data_samples']))
    loss.backward()
    for gradient, (h, w) in zip(inputs.grad, inputs.image_sizes, strict=True):
        assert gradient[:, :h, :w].any()
        assert not gradient[:, h:].any()
        assert not gradient[:, :, w:].any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_boxes_of_a_picture_do_not_change_with_its_batch():
    """To the end, in float32, which is all that NMS takes."""
    model, sizes = detector().float(), [(96, 70), (61, 113), (128, 128)]
    model.bbox_head.retina_cls.bias.data.fill_(-1)  # some scores above the threshold
    pairs = [sample(size, seed=seed) for seed, size in enumerate(sizes)]

    def boxes(indices):
        images, samples = zip(*(pairs[i] for i in indices), strict=True)
        data = dict(inputs=list(images), data_samples=[item.clone() for item in samples])
        return [result.pred_instances for result in model.test_step(data)]

    together = boxes([0, 1, 2])
    for index in (0, 1):
        alone = boxes([index, 2])[0]  # the last, as large as the canvas, keeps that the same
        assert len(alone.bboxes) > 10
        torch.testing.assert_close(together[index].bboxes, alone.bboxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(together[index].scores, alone.scores, rtol=0, atol=1e-4)


# --------------------------------------------------------------------------------------------------
# The preprocessor


def preprocessor(**options):
    return MODELS.build(dict(type='NaViTDetDataPreprocessor', pad_size_divisor=64, **options))


@pytest.mark.parametrize('training', [True, False])
def test_the_batch_names_its_pictures(training):
    data = preprocessor(mean=[1, 2, 3], std=[4, 5, 6])(batch([(96, 70), (61, 113)]), training)
    assert data['inputs'].shape == (2, 3, 128, 128)
    assert data['inputs'].image_sizes == [(96, 70), (61, 113)]
    assert all(type(side) is int for size in data['inputs'].image_sizes for side in size)
    assert [s.img_shape for s in data['data_samples']] == data['inputs'].image_sizes


def test_a_picture_may_be_smaller_than_its_tensor():
    """As after mmcv's transforms that pad in the pipeline and leave img_shape alone."""
    data = batch([(96, 70)])
    data['data_samples'][0].set_metainfo(dict(img_shape=(90, 60)))
    assert preprocessor()(data)['inputs'].image_sizes == [(90, 60)]


def test_sizes_are_set_after_the_batch_augmentations():
    pad = dict(type='BatchFixedSizePad', size=(192, 192), pad_mask=False)
    inputs = preprocessor(batch_augments=[pad])(batch([(96, 70), (61, 113)]), True)['inputs']
    assert inputs.shape[2:] == (192, 192)
    assert inputs.image_sizes == [(96, 70), (61, 113)]
    shrink = dict(type='BatchSyncRandomResize', random_size_range=(64, 64), size_divisor=64)
    resizing = preprocessor(batch_augments=[shrink])
    resizing.batch_augments[0]._input_size = (64, 64)
    MessageHub.get_current_instance().update_info('iter', 0)  # by which it draws the next size
    inputs = resizing(batch([(96, 70), (61, 113)]), True)['inputs']
    assert inputs.shape[2:] == (64, 64)
    assert inputs.image_sizes == [(48, 35), (30, 56)]


def test_without_samples_the_tensors_themselves_tell():
    data = dict(inputs=batch([(96, 70), (61, 113)])['inputs'])
    assert preprocessor()(data)['inputs'].image_sizes == [(96, 70), (61, 113)]


def test_a_size_beyond_the_canvas_is_refused_by_name():
    data = batch([(96, 70)])
    data['data_samples'][0].set_metainfo(dict(img_shape=(200, 70), img_path='a/b.jpg'))
    with pytest.raises(
        ValueError, match='a/b.jpg: img_shape is 200 x 70 pixels, its canvas 128 x 128'
    ):
        preprocessor()(data)
