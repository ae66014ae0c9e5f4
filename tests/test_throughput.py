"""The log's figures of throughput are those of the batches that went by."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.hooks import IterTimerHook, LoggerHook
from mmengine.logging import MessageHub
from mmengine.registry import MODELS
from torch import nn

import navit_backbone.tasks.detection  # noqa: F401  registers
from navit_backbone.packing import pack_canvas
from navit_backbone.tasks.common import throughput
from navit_backbone.tasks.common.batch_tokens import BatchTokens, sizes_of
from navit_backbone.tasks.common.throughput import ThroughputHook

SIZES = st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=5)
FIGURES = ('tokens', 'padded_tokens', 'images', 'tokens_per_s', 'data_wait')


class Detector(nn.Module):
    """What the counting looks at: a backbone with patches, and a preprocessor that pads."""

    def __init__(self, patch_size=8, divisor=1):
        super().__init__()
        arch = dict(embed_dims=8, num_layers=1, num_heads=1, feedforward_channels=8)
        self.backbone = MODELS.build(dict(type='NaViTBackbone', arch=arch, patch_size=patch_size))
        pads = dict(type='NaViTDetDataPreprocessor', pad_size_divisor=divisor)
        self.data_preprocessor = MODELS.build(pads)


def loaded(sizes):
    """A batch as the loader gives it."""
    return dict(inputs=[torch.zeros(3, h, w, dtype=torch.uint8) for h, w in sizes])


@settings(max_examples=60, deadline=None)
@given(SIZES, st.sampled_from([7, 16]), st.sampled_from([1, 32, 50]))
def test_tokens_are_those_that_the_backbone_packs(sizes, patch_size, divisor):
    model = Detector(patch_size, divisor)
    count, data = BatchTokens(model), loaded(sizes)
    assert sizes_of(data) == sizes
    canvas = model.data_preprocessor(dict(data, data_samples=None))['inputs']
    assert count.canvas(sizes) == canvas.shape[-2:]
    assert count.real(sizes) == int(pack_canvas(canvas, sizes, patch_size).lengths.sum())
    whole = [tuple(canvas.shape[-2:])] * len(sizes)
    assert count.padded(sizes) == int(pack_canvas(canvas, whole, patch_size).lengths.sum())
    assert count.padded(sizes) >= count.real(sizes)


def test_a_stock_backbone_counts_in_patches_of_16_pixels():
    count = BatchTokens(nn.Linear(2, 2))
    assert (count.patch_size, count.divisor) == (16, 1)


def test_views_of_test_time_augmentation_count_each():
    data = dict(inputs=[loaded([(5, 7), (9, 4)])['inputs'], loaded([(5, 7), (9, 4)])['inputs']])
    assert sizes_of(data) == [(5, 7), (9, 4)] * 2


def runner_of(interval, num_batches, hooks=None):
    hub = MessageHub(f'throughput {interval} {num_batches}')
    return SimpleNamespace(
        hooks=[IterTimerHook(), LoggerHook(interval=interval)] if hooks is None else hooks,
        model=Detector(),
        message_hub=hub,
        train_dataloader=range(num_batches),
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=9), st.integers(1, 4), st.integers(0, 100))
def test_lines_hold_the_means_since_the_line_before(batches, interval, seed):
    runner, hook = runner_of(interval, len(batches)), ThroughputHook()
    hub, generator = runner.message_hub, torch.Generator().manual_seed(seed)
    hook.before_train(runner)
    count, times, start = BatchTokens(runner.model), [], 0
    for index, sizes in enumerate(batches):
        waited, computed = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        times.append((waited, waited + computed + 0.01))
        hub.update_scalar('train/data_time', times[-1][0])
        hub.update_scalar('train/time', times[-1][1])
        hook.after_train_iter(runner, index, data_batch=loaded(sizes))
        if (index + 1) % interval and index + 1 < len(batches):
            continue
        window, seen = slice(start, index + 1), batches[start : index + 1]
        tokens, seconds = sum(map(count.real, seen)), sum(t for _, t in times[window])
        expected = [
            tokens / len(seen),
            sum(map(count.padded, seen)) / len(seen),
            sum(map(len, seen)) / len(seen),
            tokens / seconds,
            sum(w for w, _ in times[window]) / seconds,
        ]
        found = [hub.get_scalar(f'train/{name}').current() for name in FIGURES]
        assert all(map(math.isclose, found, expected))
        start = index + 1


def test_ranks_talk_at_the_lines_alone_and_add_up(monkeypatch):
    """Four ranks that do all the same; real processes are in test_distributed.py."""
    calls = []
    monkeypatch.setattr(throughput, 'all_reduce', lambda sums: calls.append(sums.mul_(4)))
    monkeypatch.setattr(throughput, 'get_world_size', lambda: 4)
    runner, hook = runner_of(3, 100), ThroughputHook()
    hook.before_train(runner)
    for index in range(7):
        for name, seconds in (('data_time', 0.5), ('time', 2.0)):
            runner.message_hub.update_scalar(f'train/{name}', seconds)
        hook.after_train_iter(runner, index, data_batch=loaded([(8, 16), (9, 16)]))
    assert len(calls) == 2
    hub = runner.message_hub
    found = [hub.get_scalar(f'train/{name}').current() for name in FIGURES]
    assert found == [4 * 6, 4 * 8, 4 * 2, 4 * 6 / 2.0, 0.25]


@pytest.mark.parametrize('missing', [IterTimerHook, LoggerHook])
def test_what_it_rests_on_is_named(missing):
    kept = [hook for hook in (IterTimerHook(), LoggerHook()) if not isinstance(hook, missing)]
    with pytest.raises(ValueError, match=f'rests on {missing.__name__}, which is missing'):
        ThroughputHook().before_train(runner_of(1, 1, kept))
