"""A whole stock RetinaNet: a picture's outputs depend on its own pixels and on the canvas only."""

import pytest
import torch
from detectors import RETINANET, batch, sample, stock_detector
from mmengine.logging import MessageHub
from mmengine.registry import MODELS
from oracles import ODD_SIZES, on_canvas, perturb, pictures

STRIDES = (8, 16, 32, 64, 128)
CANVAS = dict(height=128, width=128)
VARIANTS = {
    'global': {},
    'windowed': dict(window_size=3, global_attn_indexes=[1]),
    'factorised': dict(position='factorised'),
}


def detector(**backbone):
    torch.manual_seed(0)
    return perturb(stock_detector(RETINANET, strides=STRIDES, **backbone), scale=0.05).eval()


def raw(model, canvas):
    """What the head gives for each picture before boxes are decoded: one vector each."""
    scores, deltas = model(canvas)
    return torch.cat([level.flatten(1) for level in [*scores, *deltas]], dim=1)


def same(a, b):
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize('variant', VARIANTS)
def test_alone_on_the_canvas_as_in_the_batch(variant):
    model, images = detector(**VARIANTS[variant]).double(), pictures(ODD_SIZES)
    together = raw(model, on_canvas(images, **CANVAS))
    alone = torch.cat([raw(model, on_canvas([image], **CANVAS)) for image in images])
    assert together.std() > 0.01
    assert same(together, alone)


def test_gradients_too():
    model, images = detector().double(), pictures(ODD_SIZES)
    parameters = [p for p in model.parameters() if p.requires_grad]
    weights = torch.linspace(0.5, 2, raw(model, on_canvas(images[:1], **CANVAS)).shape[1])
    together = torch.autograd.grad(
        (raw(model, on_canvas(images, **CANVAS)) * weights).sum(), parameters
    )
    alone = [torch.zeros_like(p) for p in parameters]
    for image in images:
        loss = (raw(model, on_canvas([image], **CANVAS)) * weights).sum()
        for total, gradient in zip(alone, torch.autograd.grad(loss, parameters), strict=True):
            total += gradient
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('fill', [1e6, float('nan')])
def test_garbage_in_the_padding(fill):
    model, images = detector().double(), pictures(ODD_SIZES)
    clean = raw(model, on_canvas(images, **CANVAS))
    assert torch.equal(raw(model, on_canvas(images, **CANVAS, fill=fill)), clean)


def test_a_neighbour_replaced_and_the_order_permuted():
    model, images = detector().double(), pictures(ODD_SIZES)
    before = raw(model, on_canvas(images, **CANVAS))
    (other,) = pictures([(97, 128)], seed=1)
    assert same(raw(model, on_canvas([other, *images[1:]], **CANVAS))[1:], before[1:])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    assert same(raw(model, on_canvas([images[i] for i in order], **CANVAS)), before[order])


def test_the_canvas_is_seen():
    """Stock heads do see its size; the contract would be void if the outputs were constant."""
    model, images = detector().double(), pictures([(64, 64)])
    small, large = (on_canvas(images, height=side, width=side) for side in (64, 128))
    scores = [model(canvas)[0][0][:, :, :8, :8] for canvas in (small, large)]
    assert same(scores[0][..., :4, :4], scores[1][..., :4, :4])
    assert (scores[0] - scores[1]).abs().max() > 1e-6


def test_no_gradient_reaches_the_padding_and_all_parameters_get_one():
    model = detector().train()
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
    model, sizes = detector(), [(96, 70), (61, 113), (128, 128)]
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
