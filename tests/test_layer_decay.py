"""Layer decay: each parameter once, at the learning rate of its depth."""

import re

import pytest
import torch
from mmengine.optim import ConstantLR
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from navit_backbone.backbone import NaViTBackbone
from navit_backbone.tasks.common import layer_decay

ARCH = dict(
    embed_dims=16,
    num_layers=3,
    num_heads=2,
    feedforward_channels=32,
    prefix_tokens=2,
    layer_scale=1.0,
)


class Detector(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.backbone = NaViTBackbone(ARCH, **options)
        self.neck = nn.Conv2d(16, 8, 1)


class Wrapper(nn.Module):
    """As a distributed wrapper holds a model."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def build(model, *, lr=1.0, weight_decay=0.05, **paramwise):
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(
        dict(
            type='LayerDecayOptimWrapperConstructor',
            optim_wrapper_cfg=dict(
                type='OptimWrapper',
                optimizer=dict(type='AdamW', lr=lr, weight_decay=weight_decay),
                clip_grad=dict(max_norm=1.0),
            ),
            paramwise_cfg=paramwise or dict(decay_rate=0.5),
        )
    )
    return constructor(model)


def settings(wrapper, model):
    """{name: (lr, weight decay)}, and that every parameter stands in one group."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = [
        (names[id(p)], (group['lr'], group['weight_decay']))
        for group in wrapper.optimizer.param_groups
        for p in group['params']
    ]
    assert len(dict(found)) == len(found)
    return dict(found)


def test_learning_rate_falls_with_depth_and_only_weights_decay():
    model = Detector(position='factorised')
    found = settings(build(model), model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    embedding = 'backbone.vit.patch_embed.1x16x16'
    expected = {
        'neck.weight': (1.0, 0.05),
        'neck.bias': (1.0, 0.0),
        'backbone.vit.norm.weight': (1.0, 0.0),
        'backbone.vit.blocks.2.attn.qkv.weight': (0.5, 0.05),
        'backbone.vit.blocks.1.mlp.fc1.bias': (0.25, 0.0),
        'backbone.vit.blocks.0.ls1.gamma': (0.125, 0.0),
        f'{embedding}.weight': (0.0625, 0.05),
        f'{embedding}.bias': (0.0625, 0.0),
        'backbone.vit.prefix': (0.0625, 0.0),
        'backbone.vit.position.y': (0.0625, 0.0),
        'backbone.vit.position.x': (0.0625, 0.0),
    }
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize('position', ['learned_1d', 'learned_2d'])
def test_position_tables_do_not_decay(position):
    model = Detector(position=position)
    found = settings(build(model), model)
    assert found['backbone.vit.position.table'] == pytest.approx((0.0625, 0.0))


def test_wrapped_and_frozen_models():
    model = Detector(frozen_stages=1)
    found = settings(build(Wrapper(model)), model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(found) == trained
    assert not any('blocks.0' in name for name in trained)


def test_a_backbone_anywhere_in_the_model_is_found():
    model = nn.ModuleDict({'teacher': Detector(), 'student': Detector()})
    found = settings(build(model), model)
    for part in model:
        assert found[f'{part}.backbone.vit.blocks.0.attn.qkv.weight'] == pytest.approx(
            (0.125, 0.05)
        )


def test_without_weight_decay_none_is_set():
    model = Detector()
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(
        dict(
            type='LayerDecayOptimWrapperConstructor',
            optim_wrapper_cfg=dict(optimizer=dict(type='SGD', lr=0.1)),
            paramwise_cfg=dict(decay_rate=0.5),
        )
    )
    groups = constructor(model).optimizer.param_groups
    assert {group['weight_decay'] for group in groups} == {0}
    assert len({group['lr'] for group in groups}) == 5


def test_the_groups_are_printed(monkeypatch):
    lines = []
    monkeypatch.setattr(layer_decay, 'print_log', lambda message, **_: lines.append(message))
    model = Detector()
    build(model)
    printed = sum(int(re.search(r'([\d,]+) parameters', x)[1].replace(',', '')) for x in lines)
    assert printed == sum(p.numel() for p in model.parameters())


def test_schedules_keep_the_ratios():
    model = Detector()
    wrapper = build(model, lr=0.1)
    before = [group['lr'] for group in wrapper.optimizer.param_groups]
    ConstantLR(wrapper, factor=0.1, begin=0, end=5, by_epoch=False)
    after = [group['lr'] for group in wrapper.optimizer.param_groups]
    assert after == pytest.approx([0.1 * lr for lr in before])


@pytest.mark.parametrize(
    'paramwise', [dict(decay_rate=0), dict(decay_rate=1.5), dict(decay_rate=0.5, norm_decay_mult=0)]
)
def test_wrong_settings_are_refused(paramwise):
    with pytest.raises(ValueError, match=r'paramwise_cfg must be dict\(decay_rate=r\)'):
        build(Detector(), **paramwise)


def test_a_model_without_depths_is_refused():
    with pytest.raises(ValueError, match='Conv2d holds no module with get_layer_depth'):
        build(nn.Conv2d(3, 3, 1))


def test_a_step_moves_each_layer_by_its_rate():
    model = Detector()
    wrapper = build(model, lr=0.01, weight_decay=0.0)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) * 1e-3
    wrapper.step()  # the first step of Adam is the learning rate itself
    for name, factor in {'blocks.2.norm1.weight': 0.5, 'blocks.0.norm1.weight': 0.125}.items():
        name = f'backbone.vit.{name}'
        moved = (start[name] - model.get_parameter(name)).mean()
        assert moved.item() == pytest.approx(0.01 * factor, rel=1e-2)
