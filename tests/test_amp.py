"""bfloat16 training where there is no GPU."""

import pytest
import torch
from detectors import FASTER_RCNN, RETINANET, batch, stock_detector
from mmengine.optim import build_optim_wrapper
from torch import nn

import navit_backbone.tasks.common.amp  # noqa: F401  registers


def wrapper_of(model, kind='BFloat16OptimWrapper', **options):
    optimizer = dict(type='AdamW', lr=1e-3)
    return build_optim_wrapper(model, dict(type=kind, optimizer=optimizer, **options))


def test_products_are_bfloat16_and_what_is_kept_is_float32():
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 1))
    wrapper, before = wrapper_of(model), [p.detach().clone() for p in model.parameters()]
    with wrapper.optim_context(model):
        out = model(torch.randn(4, 8))
        loss = out.square().mean()
    assert out.dtype == torch.bfloat16
    assert model(torch.randn(4, 8)).dtype == torch.float32
    wrapper.backward(loss)
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    wrapper.step()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    state = [v for s in wrapper.optimizer.state.values() for v in s.values() if v.ndim]
    assert {value.dtype for value in state} == {torch.float32}
    assert all((p != q).any() for p, q in zip(model.parameters(), before, strict=True))


def test_gradients_accumulate_and_are_clipped():
    model = nn.Linear(4, 1)
    wrapper = wrapper_of(model, accumulative_counts=2, clip_grad=dict(max_norm=1e-9))
    wrapper.initialize_count_status(model, 0, 4)
    start, moved = model.weight.detach().clone(), []
    for _ in range(2):
        with wrapper.optim_context(model):
            loss = model(torch.ones(2, 4)).sum()
        wrapper.update_params(loss)
        moved.append(bool((model.weight != start).any()))
    assert moved == [False, True]


@pytest.mark.parametrize(
    ('config', 'strides'),
    [(RETINANET, (8, 16, 32, 64, 128)), (FASTER_RCNN, (4, 8, 16, 32, 64))],
    ids=['one stage', 'two stages, with compiled operations'],
)
def test_a_detectors_step_is_that_of_float32_but_for_rounding(config, strides):
    torch.manual_seed(0)
    model = stock_detector(config, strides=strides).train()
    model.init_weights()
    losses = {}
    for kind in ('OptimWrapper', 'BFloat16OptimWrapper'):
        wrapper = wrapper_of(model, kind)
        torch.manual_seed(1)  # the sampler of anchors draws
        with wrapper.optim_context(model):
            data = model.data_preprocessor(batch([(96, 70), (64, 128)]), True)
            loss, _ = model.parse_losses(model(**data, mode='loss'))
        gradients = torch.autograd.grad(loss, [*model.parameters()], allow_unused=True)
        assert all(g.isfinite().all() for g in gradients if g is not None)
        losses[kind] = loss.item()
    full, half = losses.values()
    assert half != full
    assert half == pytest.approx(full, rel=0.03)


class RoIExtractor(nn.Linear):
    """By its name one of those that take float32 alone."""

    def forward(self, x, fail=False):
        if fail:
            raise RuntimeError('no')
        assert x.dtype == torch.float32
        return super().forward(x)


def test_modules_that_stay_in_float32_leave_the_rest_in_bfloat16():
    model = nn.ModuleList([nn.Linear(4, 4), RoIExtractor(4, 4), nn.Linear(4, 4)])
    wrapper = wrapper_of(model)
    for _ in range(2):  # the second step must not enter twice
        with wrapper.optim_context(model):
            x = model[0](torch.randn(2, 4))
            y = model[1](x)
            z = model[2](y)
        assert (x.dtype, y.dtype, z.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    with wrapper.optim_context(model):
        with pytest.raises(RuntimeError, match='no'):
            model[1](x, fail=True)
        assert model[2](y).dtype == torch.bfloat16


def test_losses_are_computed_in_float32():
    """mmcv's focal loss on CUDA takes no bfloat16; on a CPU mmdet uses another one."""
    model = stock_detector(RETINANET, strides=(8, 16, 32, 64, 128)).train()
    wrapper, seen = wrapper_of(model), []

    def note(_, args):
        seen.append((args[0].dtype, torch.is_autocast_enabled('cpu')))

    with wrapper.optim_context(model):  # from here on the wrapper's own hooks are in place
        data = model.data_preprocessor(batch([(96, 70), (64, 128)]), True)
        for loss in (model.bbox_head.loss_cls, model.bbox_head.loss_bbox):
            loss.register_forward_pre_hook(note)
        model(**data, mode='loss')
    assert set(seen) == {(torch.float32, False)}
