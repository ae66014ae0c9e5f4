"""The OpenMMLab backbone: sizes in, maps out, and what it says when the sizes are wrong."""

import copy

import pytest
import torch
from mmengine.registry import MODELS
from oracles import ODD_SIZES, on_canvas, perturb, pictures
from test_position import KINDS

from navit_backbone import backbone
from navit_backbone.backbone import NaViTBackbone

ARCH = dict(embed_dims=24, num_layers=4, num_heads=3, feedforward_channels=40)


def build(seed=0, **options):
    torch.manual_seed(seed)
    options = {'arch': ARCH, 'out_indices': (1, -1), **options}
    return perturb(NaViTBackbone(**options).double())


def alone(images):
    """Each picture on its own canvas, whole patches wide."""
    for image in images:
        h, w = image.shape[1:]
        yield on_canvas([image], height=-(-h // 16) * 16, width=-(-w // 16) * 16)


@pytest.mark.parametrize('fill', [0.0, float('nan')])
@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(window_size=2, global_attn_indexes=(3,)),
        dict(arch=dict(ARCH, prefix_tokens=2, rope={}), position='factorised'),
        *(dict(position=kind) for kind in KINDS[1:]),
    ],
    ids=str,
)
def test_a_batch_equals_its_pictures_each_on_its_own_canvas(options, fill):
    model, images = build(**options), pictures(ODD_SIZES)
    maps = model(on_canvas(images, height=128, width=144, fill=fill))
    loss, total = sum(m.square().sum() for m in maps), 0
    for index, canvas in enumerate(alone(images)):
        singles = model(canvas)
        total = total + sum(m.square().sum() for m in singles)
        for level, single in zip(maps, singles, strict=True):
            h, w = single.shape[2:]
            assert torch.allclose(level[index, :, :h, :w], single[0], rtol=0, atol=1e-10)
            assert level[index, :, h:].abs().sum() == 0 and level[index, :, :, w:].abs().sum() == 0
    names, parameters = zip(*model.named_parameters(), strict=True)
    got = torch.autograd.grad(loss, parameters)
    expected = torch.autograd.grad(total, parameters)
    for name, a, b in zip(names, got, expected, strict=True):
        assert (a - b).abs().max() < 1e-10 * b.abs().max().clamp(min=1), name


@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(window_size=2, global_attn_indexes=(3,)),
        dict(arch=dict(ARCH, prefix_tokens=2, rope={}), position='sinusoidal'),
        dict(position='fourier'),
        dict(position='factorised'),
        dict(position='learned_2d'),
    ],
    ids=str,
)
def test_forward_and_backward_read_nothing_from_the_device(options):
    model = build(**options).to('meta')  # a device whose values cannot be read
    canvas = torch.empty(len(ODD_SIZES), 3, 128, 144, dtype=torch.float64, device='meta')
    maps = model(canvas, image_sizes=ODD_SIZES)
    assert [tuple(m.shape) for m in maps] == [(len(ODD_SIZES), 24, 8, 9)] * 2
    sum(m.sum() for m in maps).backward()
    with pytest.raises((RuntimeError, NotImplementedError)):
        maps[0].sum().item()


def test_maps_have_ceil_sides_and_carry_the_sizes():
    model, images = build(), pictures([(33, 70), (64, 21)])
    canvas = on_canvas(images, height=70, width=90)
    maps = model(canvas)
    assert [tuple(m.shape) for m in maps] == [(2, 24, 5, 6)] * 2
    assert all(m.image_sizes == [(33, 70), (64, 21)] for m in maps)
    assert all(m.patch_size == 16 for m in maps)


def test_maps_lie_in_memory_as_compiled_operations_read_them():
    for size in ((80, 96), (33, 70)):  # filling the canvas, and not
        maps = build()(on_canvas(pictures([size]), height=80, width=96))
        assert all(item.is_contiguous() for item in maps)


def test_neighbours_and_order_do_not_matter():
    model, images = build().eval(), pictures(ODD_SIZES)
    before = model(on_canvas(images, height=128, width=144))[0]
    order = [3, 0, 5, 1, 4, 2]
    moved = model(on_canvas([images[i] for i in order], height=128, width=144))[0]
    assert torch.allclose(moved, before[order], rtol=0, atol=1e-10)
    images[2] = torch.full((3, 90, 30), 1e3, dtype=torch.float64)
    beside = model(on_canvas(images, height=128, width=144))[0]
    others = [0, 1, 3, 4, 5]
    assert torch.allclose(beside[others], before[others], rtol=0, atol=1e-10)


def test_autocast_keeps_what_blocks_add_to_in_float32():
    model = build().float().eval()
    widths = []
    model.vit.blocks[1].register_forward_hook(lambda m, args, out: widths.append(out.dtype))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        maps = model(torch.randn(2, 3, 64, 48))
    assert widths == [torch.float32]
    assert maps[0].isfinite().all()


def test_the_argument_goes_before_the_attribute():
    model, images = build(), pictures([(64, 64), (64, 64)])
    canvas = on_canvas(images, height=64, width=64)
    given = model(canvas, image_sizes=[(32, 64), (64, 64)])[0]
    assert given[0, :, 2:].abs().sum() == 0 and given[1, :, 2:].abs().sum() > 0
    assert canvas.image_sizes == [(64, 64), (64, 64)]


def test_one_registration_is_seen_from_every_scope():
    for scope in ('mmengine', 'mmdet', 'mmseg'):
        with MODELS.switch_scope_and_registry(scope) as registry:
            model = registry.build(dict(type='NaViTBackbone', arch=dict(ARCH)))
        assert type(model) is NaViTBackbone


@pytest.mark.parametrize(
    'sizes, message',
    [
        ([(64, 64)], 'names 1 pictures, the batch holds 2'),
        ([(64, 64), (65, 64)], r'image_sizes\[1\] = \(65, 64\) does not fit the canvas of 64 x 64'),
        ([(0, 64), (64, 64)], r'image_sizes\[0\] = \(0, 64\)'),
    ],
)
def test_wrong_sizes_are_refused_by_number(sizes, message):
    with pytest.raises(ValueError, match=message):
        build()(torch.zeros(2, 3, 64, 64).double(), image_sizes=sizes)


@pytest.mark.parametrize('training', [True, False])
def test_missing_sizes_warn_once_and_raise_when_strict(training, monkeypatch):
    said = []
    monkeypatch.setattr(backbone, 'print_log', lambda message, **_: said.append(message))
    batch = torch.zeros(2, 3, 32, 48).double()
    model = build().train(training)
    model(batch), model(batch), model.train(not training)(batch)
    assert len(said) == 1
    assert 'a batch of 2 images on a canvas of 32 x 48 pixels without their sizes' in said[0]
    strict = build(strict=True).train(training)
    with pytest.raises(ValueError, match='without their sizes'):
        strict(batch)
    strict(batch[:1])
    strict(batch, image_sizes=[(32, 48), (32, 48)])


def test_frozen_stages_stay_frozen_and_in_evaluation_mode():
    model = build(frozen_stages=2, arch=dict(ARCH, prefix_tokens=1)).train()
    model.train()
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    expected = ('vit.patch_embed.', 'vit.position.', 'vit.prefix', 'vit.blocks.0.', 'vit.blocks.1.')
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith(expected)}
    assert not model.vit.blocks[1].training and model.vit.blocks[2].training


def test_every_weight_takes_part():
    model = build(arch=dict(ARCH, prefix_tokens=1, pooling='map', num_classes=3)).train()
    sum(m.sum() for m in model(torch.randn(1, 3, 32, 48).double())).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_layer_depth_counts_from_the_embedding():
    model = build(arch=dict(ARCH, prefix_tokens=1))
    depth = {
        n: model.get_layer_depth('backbone.' + n, 'backbone.') for n, _ in model.named_parameters()
    }
    assert {total for _, total in depth.values()} == {6}
    for name, (layer, _) in depth.items():
        part = name.split('.')[1]
        expected = int(name.split('.')[2]) + 1 if part == 'blocks' else 5 if part == 'norm' else 0
        assert layer == expected, name
    assert model.get_layer_depth('neck.conv.weight', 'backbone.') == (5, 6)
    # begins at zero beside pretrained weights: not at an embedding's learning rate
    assert model.get_layer_depth('backbone.vit.temporal_position.t', 'backbone.') == (5, 6)


def test_a_copy_and_its_state_give_the_same_maps():
    model = build().eval()
    canvas = on_canvas(pictures([(33, 70), (64, 21)]), height=64, width=80)
    other = build(seed=1).eval()
    other.load_state_dict(copy.deepcopy(model).state_dict())
    for a, b in zip(model(canvas), other(canvas), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(patch_size=(16, 16)), r'patch_size=\(16, 16\) must be a side in pixels'),
        (dict(arch=dict(ARCH, rope=dict(base=3))), r"arch.rope has no field \['base'\]"),
        (dict(out_indices=(4,)), r'out_indices \[4\] are beyond the 4 blocks'),
        (dict(frozen_stages=5), 'frozen_stages=5 must lie in'),
        (dict(init_cfg=dict(type='Xavier')), "type must be 'Pretrained'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options).init_weights()
