"""The pyramid: a picture's maps are its own, whatever shares the canvas with it."""

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_norm_layer
from oracles import ODD_SIZES, on_canvas, perturb, pictures

from navit_backbone.backbone import NaViTBackbone
from navit_backbone.tasks.common.norm import LayerNorm2d
from navit_backbone.tasks.common.pyramid import SimpleFeaturePyramid

STRIDES = (4, 8, 16, 32, 64, 128)
AT_14 = (3.5, 7, 14, 28, 56)
SIZES = [*ODD_SIZES, (160, 96)]


def cells(size, stride):
    return int(-(-size[0] // stride)), int(-(-size[1] // stride))


def make_pyramid(strides=STRIDES, in_stride=16):
    pyramid = SimpleFeaturePyramid(24, out_channels=12, strides=strides, in_stride=in_stride)
    return perturb(pyramid).double()


def make_map(sizes, canvas, *, channels=24, in_stride=16, fill=0.0, seed=0):
    """A random map of pictures of `sizes` on a canvas, with `fill` outside them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.full((len(sizes), channels, *cells(canvas, in_stride)), fill, dtype=torch.float64)
    for slot, size in zip(x, sizes, strict=True):
        h, w = cells(size, in_stride)
        slot[:, :h, :w] = torch.randn(channels, h, w, generator=generator, dtype=torch.float64)
    x.image_sizes = list(sizes)
    return x


def alone(x, index, in_stride=16):
    """The map of one picture on a canvas of its own."""
    size = x.image_sizes[index]
    h, w = cells(size, in_stride)
    one = x[index : index + 1, :, :h, :w].clone()
    one.image_sizes = [size]
    return one


def picture_loss(maps, index, size, strides=STRIDES):
    """A scalar of one picture's own cells, each weighted differently."""
    total = 0
    for item, stride in zip(maps, strides, strict=True):
        h, w = cells(size, stride)
        own = item[index, :, :h, :w]
        total = total + (own * torch.linspace(0.5, 2, own.numel()).view(own.shape)).sum()
    return total


@pytest.mark.parametrize(
    ('in_stride', 'strides'), [(8, STRIDES), (16, STRIDES), (32, STRIDES), (14, AT_14)]
)
def test_a_batch_of_n_equals_n_singles_forward_and_gradient(in_stride, strides):
    pyramid = make_pyramid(strides, in_stride)
    x = make_map(SIZES, (192, 128), in_stride=in_stride)
    maps = pyramid((x,))
    loss = sum(picture_loss(maps, i, size, strides) for i, size in enumerate(SIZES))
    batched = torch.autograd.grad(loss, list(pyramid.parameters()))
    summed = [torch.zeros_like(g) for g in batched]
    for index, size in enumerate(SIZES):
        single = pyramid((alone(x, index, in_stride),))
        for ours, theirs, stride in zip(maps, single, strides, strict=True):
            h, w = cells(size, stride)
            torch.testing.assert_close(
                ours[index, :, :h, :w], theirs[0, :, :h, :w], rtol=0, atol=1e-10
            )
        own = picture_loss(single, 0, size, strides)
        gradients = torch.autograd.grad(own, list(pyramid.parameters()))
        for total, gradient in zip(summed, gradients, strict=True):
            total += gradient
    for ours, theirs in zip(batched, summed, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('fill', [1e6, float('nan')])
def test_garbage_outside_the_pictures_changes_nothing(fill):
    pyramid, canvas = make_pyramid(), (192, 128)
    maps, gradients = [], []
    for outside in (0.0, fill):
        maps.append(pyramid((make_map(SIZES, canvas, fill=outside),)))
        loss = sum((item**2).sum() for item in maps[-1])
        gradients.append(torch.autograd.grad(loss, list(pyramid.parameters())))
    for clean, other in [*zip(*maps, strict=True), *zip(*gradients, strict=True)]:
        assert torch.equal(clean, other)


def test_outside_is_zero_inside_is_not_and_sizes_go_on():
    x = make_map(SIZES, (192, 128))
    for item, stride in zip(make_pyramid()((x,)), STRIDES, strict=True):
        assert item.shape == (len(SIZES), 12, *cells((192, 128), stride))
        assert item.image_sizes == SIZES
        for one, size in zip(item, SIZES, strict=True):
            h, w = cells(size, stride)
            assert (one[:, :h, :w] != 0).any(dim=0).all()
            assert not one[:, h:].any()
            assert not one[:, :, w:].any()


def test_pooling_takes_the_largest_of_the_pictures_own_cells():
    pyramid = make_pyramid(strides=(32,))
    x = -make_map([(48, 48)], (64, 64)).abs() - 1  # all below the zeros outside
    x.image_sizes = [(48, 48)]
    pool, conv = pyramid.levels[0].ops[:2]
    own = x[:, :, :3, :3]
    expected = F.max_pool2d(F.pad(own, (0, 1, 0, 1), value=-torch.inf), 2)
    seen = []
    conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pyramid((x,))
    assert isinstance(pool, torch.nn.MaxPool2d)
    assert (expected < 0).all()
    assert torch.equal(seen[0], expected)


@pytest.mark.parametrize('canvas', [(160, 96), (192, 128)], ids=['filled', 'padded'])
def test_maps_lie_in_memory_as_compiled_operations_read_them(canvas):
    maps = make_pyramid()((make_map([(160, 96)] * 2, canvas),))
    assert all(item.is_contiguous() for item in maps)


def test_without_sizes_the_whole_map_is_picture():
    pyramid = make_pyramid()
    x = make_map([(160, 96)] * 2, (160, 96))
    marked = pyramid((x,))
    bare = pyramid((x.clone(),))
    assert not hasattr(bare[0], 'image_sizes')
    assert all(torch.equal(a, b) for a, b in zip(bare, marked, strict=True))


def test_takes_the_last_of_several_maps():
    pyramid = make_pyramid()
    x = make_map(SIZES, (192, 128))
    assert torch.equal(pyramid((x.flip(1), x))[0], pyramid((x,))[0])


@pytest.mark.parametrize('position', ['learned_1d', 'factorised'])
def test_backbone_and_pyramid_together(position):
    """From pixels on, pictures smaller than a patch among them; NaN in the padding."""
    arch = dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=32, prefix_tokens=1)
    backbone = perturb(NaViTBackbone(arch, position=position)).double().eval()
    pyramid, images = make_pyramid(), pictures(SIZES)
    maps = pyramid(backbone(on_canvas(images, height=256, width=128, fill=float('nan'))))
    for index, (image, size) in enumerate(zip(images, SIZES, strict=True)):
        for ours, theirs, stride in zip(maps, pyramid(backbone(image[None])), STRIDES, strict=True):
            h, w = cells(size, stride)
            torch.testing.assert_close(
                ours[index, :, :h, :w], theirs[0, :, :h, :w], rtol=0, atol=1e-10
            )


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (dict(strides=(8, 24)), ['24', 'in_stride=16']),
        (dict(strides=(7,), in_stride=14), None),
        (dict(strides=(8,), in_stride=14), ['8', 'in_stride=14']),
        (dict(strides=(2,), in_channels=6), ['2', 'in_channels']),
    ],
)
def test_a_stride_out_of_reach_is_refused(options, words):
    options = {'in_channels': 24, **options}
    if words is None:
        assert SimpleFeaturePyramid(**options).strides == options['strides']
        return
    with pytest.raises(ValueError, match='cannot be reached') as error:
        SimpleFeaturePyramid(**options)
    assert all(word in str(error.value) for word in words)


def test_sizes_that_do_not_fit_are_refused():
    x = make_map([(64, 64)] * 2, (64, 64))
    x.image_sizes = [(64, 64)]
    with pytest.raises(ValueError, match='1 pictures, the map holds 2'):
        make_pyramid()((x,))
    x.image_sizes = [(64, 64), (65, 64)]
    with pytest.raises(ValueError, match='5 x 4 cells at in_stride=16'):
        make_pyramid()((x,))


@pytest.mark.parametrize('in_stride', [8, 32])
def test_maps_of_another_patch_size_are_refused(in_stride):
    arch = dict(embed_dims=24, num_layers=1, num_heads=2, feedforward_channels=32)
    maps = NaViTBackbone(arch)(on_canvas(pictures([(64, 48)], torch.float32), height=64, width=64))
    other = SimpleFeaturePyramid(24, strides=(in_stride,), in_stride=in_stride)
    with pytest.raises(ValueError, match=rf'in_stride={in_stride}, but .* stride 16.*in_stride=16'):
        other(maps)


def test_no_value_is_read_from_the_device():
    """On the meta device nothing can be read back, so this fails on any such attempt."""
    pyramid = SimpleFeaturePyramid(24, out_channels=12, strides=STRIDES).to('meta')
    x = torch.empty(2, 24, 12, 8, device='meta')
    x.image_sizes = [(33, 70), (160, 96)]
    assert [tuple(item.shape[2:]) for item in pyramid((x,))][-1] == (2, 1)


def test_layer_norm_2d_is_layer_norm_of_each_cell():
    norm = perturb(LayerNorm2d(5)).double()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    expected = (x - mean) / (var + 1e-6).sqrt() * norm.weight.view(-1, 1, 1) + norm.bias.view(
        -1, 1, 1
    )
    torch.testing.assert_close(norm(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_layer_norm_2d_keeps_the_order_in_memory(layout):
    x = torch.randn(2, 5, 3, 4).contiguous(memory_format=layout)
    assert LayerNorm2d(5)(x).stride() == x.stride()


def test_layer_norm_2d_serves_as_a_norm_cfg():
    name, norm = build_norm_layer(dict(type='LayerNorm2d', eps=1e-6), 8, postfix=1)
    assert (name, type(norm), norm.eps) == ('ln1', LayerNorm2d, 1e-6)
    module = ConvModule(4, 8, 3, padding=1, norm_cfg=dict(type='LayerNorm2d', eps=1e-6))
    assert module(torch.randn(1, 4, 5, 6)).shape == (1, 8, 5, 6)
    assert module.conv.bias is None
