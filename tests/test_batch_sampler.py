"""Batches by tokens: limits kept, each example once a pass, alike on any number of ranks."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import BaseDataset, ClassBalancedDataset, DefaultSampler
from mmengine.hooks import DistSamplerSeedHook
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Subset

from navit_backbone.tasks.common import batch_sampler
from navit_backbone.tasks.common.batch_sampler import TokenBudgetBatchSampler
from navit_backbone.tasks.common.dataset import SeededSamples
from navit_backbone.tasks.common.jitter import LargeScaleJitter
from navit_backbone.tasks.common.resize import ResizeToTokenBudget
from navit_backbone.tasks.common.sampling import SeededSampler
from navit_backbone.tasks.common.wrappers import locate


class Lengths:
    """Examples whose tokens are drawn anew in each pass, from 1 to `max_tokens`."""

    def __init__(self, count: int, max_tokens: int) -> None:
        self.count, self.max_tokens = count, max_tokens
        self.loaded: list = []

    def __len__(self) -> int:
        return self.count

    def complete_sizes(self) -> None: ...

    def num_tokens(self, index) -> int:
        return int(index.sample_seed.generator('tokens').integers(self.max_tokens)) + 1

    def __getitem__(self, index):
        self.loaded.append(index.sample_seed)
        return index


class Grids(Lengths):
    """Examples with a size too: grids of patches of 16 pixels, drawn anew in each pass."""

    def target_size(self, index) -> tuple[int, int]:
        draws = index.sample_seed.generator('grid')
        rows = int(draws.integers(math.isqrt(self.max_tokens))) + 1
        return rows * 16, (int(draws.integers(self.max_tokens // rows)) + 1) * 16

    def num_tokens(self, index) -> int:
        return math.prod(self.target_size(index)) // 256


@pytest.fixture(scope='module', autouse=True)
def few_surveyed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_sampler, '_SURVEYED', 64)
        yield


def sampler_of(dataset, *, rank=0, ranks=1, seed=3, batch_size=6, **options):
    inner = SeededSampler(dataset, seed=seed)
    inner.rank, inner.world_size = rank, ranks
    return TokenBudgetBatchSampler(inner, batch_size, **options)


def epochs(sampler, count):
    """The batches of some epochs, each example as (pass, index)."""
    for epoch in range(count):
        sampler.set_epoch(epoch)
        yield [[i.sample_seed[1:] for i in batch] for batch in sampler]


@st.composite
def setups(draw: st.DrawFn) -> tuple[Lengths, dict]:
    budget = draw(st.integers(4, 900))
    options = dict(
        max_tokens=budget,
        batch_size=draw(st.integers(1, 9)),
        steps_per_epoch=draw(st.none() | st.integers(1, 12)),
        seed=draw(st.integers(0, 9)),
    )
    if divisor := draw(st.sampled_from([None, 16, 32])):
        options['pad_size_divisor'] = divisor
    examples = Grids if divisor else Lengths
    return examples(draw(st.integers(1, 50)), draw(st.integers(1, budget))), options


# ---------------------------------------------------------------------------- what is seen


@settings(max_examples=60, deadline=None)
@given(setups(), st.sampled_from([1, 2, 3, 4]))
def test_ranks_are_equal_in_steps_and_every_batch_keeps_both_limits(setup, ranks):
    data, options = setup
    shares = [sampler_of(data, rank=rank, ranks=ranks, **options) for rank in range(ranks)]
    assert len({len(sampler) for sampler in shares}) == 1
    assert len(shares[0]) == (options['steps_per_epoch'] or len(shares[0])) >= 1
    for sampler in shares:
        for batches in (list(sampler), list(sampler)):
            assert len(batches) == len(sampler)
            for batch in batches:
                assert 1 <= len(batch) <= options['batch_size']
                assert sum(map(data.num_tokens, batch)) <= options['max_tokens']


@settings(max_examples=60, deadline=None)
@given(setups(), st.sampled_from([1, 2, 4]), st.integers(1, 4))
def test_each_example_comes_once_a_pass_whatever_the_epochs(setup, ranks, num_epochs):
    data, options = setup
    shares = [sampler_of(data, rank=rank, ranks=ranks, **options) for rank in range(ranks)]
    seen = [key for share in shares for epoch in epochs(share, num_epochs) for key in chain(*epoch)]
    assert len(set(seen)) == len(seen)
    passes = 1 + max(number for number, _ in seen)
    order = [(n, i) for n in range(passes) for i in shares[0].sampler.order(n)]
    places = sorted(map(order.index, seen))
    waiting = places[-1] + 1 - len(seen)
    assert 0 <= waiting < shares[0].pool_size <= max(len(data), 1), 'all others have been seen'


@settings(max_examples=40, deadline=None)
@given(setups(), st.integers(1, 5))
def test_what_is_seen_in_order_is_the_same_on_1_2_and_4_ranks(setup, steps):
    data, options = setup
    seen = {}
    for ranks in (1, 2, 4):
        own = options | dict(steps_per_epoch=steps * 4 // ranks)
        shares = [sampler_of(data, rank=rank, ranks=ranks, **own) for rank in range(ranks)]
        per_rank = [list(chain(*epochs(share, 3))) for share in shares]
        in_steps = [sorted(chain(*rows)) for rows in zip(*per_rank, strict=True)]
        group = 4 // ranks
        seen[ranks] = [
            sorted(chain(*in_steps[i : i + group])) for i in range(0, len(in_steps), group)
        ]
    assert len(seen[1]) == 3 * steps
    assert seen[1] == seen[2] == seen[4]


def test_what_an_epoch_does_not_reach_opens_the_next():
    data = Lengths(40, 30)
    whole = list(chain(*epochs(sampler_of(data, max_tokens=90, steps_per_epoch=12), 1)))
    parts = list(chain(*epochs(sampler_of(data, max_tokens=90, steps_per_epoch=3), 4)))
    assert parts == whole


@settings(max_examples=30, deadline=None)
@given(st.integers(60, 400), st.integers(5, 40))
def test_an_epoch_is_about_a_pass_by_default(count, most):
    sampler = sampler_of(Lengths(count, most), batch_size=64, max_tokens=8 * most)
    examples = sum(len(batch) for batch in sampler)
    assert examples == pytest.approx(count, abs=sampler.pool_size + 0.1 * count)
    steps = [len(sampler_of(Lengths(count, most), seed=s, max_tokens=8 * most)) for s in range(3)]
    assert len(set(steps)) == 1, 'a function of the data, not of the seed'


def test_steps_of_an_epoch_are_stated(caplog):
    logger = logging.getLogger('stated')
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.INFO, logger='stated'):
        patch.setattr(batch_sampler, 'print_log', lambda text, **_: logger.info(text))
        sampler_of(Lengths(50, 10), ranks=4, max_tokens=70, steps_per_epoch=17)
    assert '17 steps an epoch, each with 4 batch(es) of at most 70 tokens and 6' in caplog.text


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99))
def test_mean_batch_size_is_that_of_the_batches(seed):
    sampler = sampler_of(Lengths(300, 30), seed=seed, batch_size=64, max_tokens=150)
    mean = np.mean([len(batch) for epoch in epochs(sampler, 5) for batch in epoch])
    assert sampler.mean_batch_size == pytest.approx(mean, rel=0.15)


def test_random_sizes_fill_the_budget_but_for_the_slack():
    data = Lengths(500, 256)
    sampler = sampler_of(data, batch_size=64, max_tokens=2048)
    filled = [sum(map(data.num_tokens, batch)) / 2048 for batch in sampler]
    assert min(filled) >= 1 - 1 / 256


@pytest.mark.parametrize('planner', ['resize', 'jitter'])
def test_batches_of_real_photos_are_at_most_two_percent_below_budget(data_root, planner):
    mmdet = pytest.importorskip('mmdet.datasets')
    assert mmdet
    from navit_backbone.tasks.detection.data import NaViTCocoDataset

    transforms = {
        'resize': ResizeToTokenBudget(784, random=dict(low_tokens=400)),
        'jitter': LargeScaleJitter(784),
    }
    photos = NaViTCocoDataset(
        data_root=str(data_root / 'coco128'),
        ann_file='annotations/instances_train2017.json',
        pipeline=[transforms[planner]],
    )
    sampler = sampler_of(photos, batch_size=64, max_tokens=8 * 784)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        filled = [sum(map(photos.num_tokens, batch)) / sampler.max_tokens for batch in sampler]
        assert min(filled) >= 0.98


# ---------------------------------------------------------------------------- canvases


def covered(data, batches, divisor=32):
    """The share of all canvases that is image."""
    image = canvas = 0
    for batch in batches:
        sizes = np.array([data.target_size(index) for index in batch])
        sides = -(-sizes.max(axis=0) // divisor) * divisor
        image, canvas = image + sizes.prod(axis=1).sum(), canvas + len(sizes) * sides.prod()
    return image / canvas


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.integers(1, 9), st.sampled_from([1, 2, 4]), st.integers(0, 9))
def test_without_max_tokens_every_batch_is_of_batch_size(count, batch_size, ranks, seed):
    data = Grids(count, 60)
    options = dict(ranks=ranks, seed=seed, batch_size=batch_size, pad_size_divisor=32)
    shares = [sampler_of(data, rank=rank, **options) for rank in range(ranks)]
    seen = []
    for sampler in shares:
        assert len(sampler) == max(1, round(count / (min(batch_size, count) * ranks)))
        found = list(chain(*epochs(sampler, 3)))
        assert {len(batch) for batch in found} == {min(batch_size, count)}
        seen += chain(*found)
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(
    ('random', 'least'), [(None, 0.85), (dict(low_tokens=100), 0.78)], ids=['one', 'random']
)
def test_images_cover_their_canvas_at_batch_16(data_root, random, least):
    pytest.importorskip('mmdet.datasets')
    from navit_backbone.tasks.detection.data import NaViTCocoDataset

    photos = NaViTCocoDataset(
        data_root=str(data_root / 'coco128'),
        ann_file='annotations/instances_train2017.json',
        pipeline=[ResizeToTokenBudget(400, random=random)],
    )
    options = dict(batch_size=16, pool_size=256, steps_per_epoch=100)  # 256 of more photos
    chosen = sampler_of(photos, pad_size_divisor=32, **options)
    assert covered(photos, chosen) >= least
    drawn = sampler_of(photos, max_tokens=16 * 400, **options)
    assert covered(photos, drawn) < least - 0.15, 'it would be no test'


def test_a_batch_sampler_without_any_limit_is_refused():
    with pytest.raises(ValueError, match=r'max_tokens.*pad_size_divisor \(32\)'):
        sampler_of(Grids(50, 20))


# ---------------------------------------------------------------------------- resuming


@settings(max_examples=60, deadline=None)
@given(setups(), st.integers(0, 3), st.data())
def test_a_resumed_run_sees_the_rest_whatever_had_been_prefetched(setup, epoch, data):
    lengths, options = setup
    expected = list(epochs(sampler_of(lengths, **options), 5))
    sampler = sampler_of(lengths, **options)
    list(epochs(sampler, epoch))
    sampler.set_epoch(epoch)
    consumed = data.draw(st.integers(0, len(sampler)))
    issued = data.draw(st.integers(consumed, len(sampler)))
    list(islice(sampler, issued))
    saved = json.loads(json.dumps(sampler.state_dict()))
    resumed = sampler_of(lengths, **options | dict(seed=77))
    resumed.load_state_dict(saved)
    resumed.skip_batches(consumed)
    assert len(resumed) == len(sampler)
    found = [[[i.sample_seed[1:] for i in batch] for batch in resumed]]
    for number in range(epoch + 1, 5):
        resumed.set_epoch(number)
        found += [[[i.sample_seed[1:] for i in batch] for batch in resumed]]
    assert found[0] == expected[epoch][consumed:]
    assert found[1:] == expected[epoch + 1 :]


@settings(max_examples=40, deadline=None)
@given(setups(), st.lists(st.integers(0, 5), min_size=1, max_size=5))
def test_an_epoch_is_a_function_of_its_number(setup, visited):
    lengths, options = setup
    expected = list(epochs(sampler_of(lengths, **options), 6))
    sampler = sampler_of(lengths, **options)
    for epoch in visited:
        sampler.set_epoch(epoch)
        assert [[i.sample_seed[1:] for i in batch] for batch in sampler] == expected[epoch]


def test_a_checkpoint_between_two_epochs_costs_no_second_planning():
    lengths = Lengths(50, 20)
    sampler = sampler_of(lengths, max_tokens=100, steps_per_epoch=9)
    planned = []
    lengths.num_tokens = lambda index: planned.append(index) or Lengths.num_tokens(lengths, index)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        list(sampler)
        sampler.state_dict()
    seeds = [index.sample_seed for index in planned]
    assert len(set(seeds)) == len(seeds)


def test_a_state_goes_on_with_more_ranks_where_the_others_stopped():
    lengths, options = Lengths(50, 20), dict(max_tokens=100, steps_per_epoch=4)
    one = sampler_of(lengths, **options)
    expected = list(chain(*epochs(one, 3)))[8:]
    two = sampler_of(lengths, ranks=2, **options | dict(steps_per_epoch=2))
    two.load_state_dict(one.state_dict())
    other = sampler_of(lengths, rank=1, ranks=2, **options | dict(steps_per_epoch=2))
    other.load_state_dict(one.state_dict())
    found = [sorted(a + b) for a, b in zip(two, other, strict=True)]
    assert found == [
        sorted(i for _, i in chain(*expected[k : k + 2])) for k in range(0, len(expected), 2)
    ]


@pytest.mark.parametrize('num_workers', [0, 2])
def test_skipped_batches_are_not_loaded_and_only_once(num_workers):
    lengths = Lengths(50, 20)
    sampler = sampler_of(lengths, max_tokens=100, steps_per_epoch=9)
    loader = DataLoader(
        lengths, batch_sampler=sampler, num_workers=num_workers, collate_fn=lambda batch: batch
    )
    whole = list(loader)
    lengths.loaded.clear()
    sampler.skip_batches(6)
    assert list(loader) == whole[6:]
    if num_workers == 0:
        assert len(lengths.loaded) == sum(map(len, whole[6:]))
    assert list(loader) == whole
    sampler.skip_batches(9)
    assert list(loader) == []
    for wrong in (-1, 10):
        with pytest.raises(ValueError, match=f'cannot skip {wrong} of the 9 batches'):
            sampler.skip_batches(wrong)


def test_a_state_of_other_data_or_limits_is_refused():
    saved = sampler_of(Lengths(50, 20), max_tokens=100).state_dict()
    for count, options, words in (
        (51, dict(max_tokens=100), 'num_samples=50, this one 51'),
        (50, dict(max_tokens=101), 'budget=100, this one 101'),
        (50, dict(max_tokens=100, batch_size=7), 'max_examples=6, this one 7'),
    ):
        with pytest.raises(ValueError, match=words):
            sampler_of(Lengths(count, 20), **options).load_state_dict(saved)
    with pytest.raises(ValueError, match='damaged'):
        sampler_of(Lengths(50, 20), max_tokens=100).load_state_dict({'seed': 1})


# ---------------------------------------------------------------------------- real data sets


@DATASETS.register_module()
class Sheets(SeededSamples, BaseDataset):
    """Blank pictures of many sizes, as files; the annotations state `stated` of their sizes."""

    def __init__(self, folder, pipeline, *, stated=True, **options):
        self.folder, self.stated = Path(folder), stated
        super().__init__(pipeline=pipeline, **options)

    def load_data_list(self):
        records = []
        for path in sorted(self.folder.glob('*.png')):
            h, w = map(int, path.stem.split('x'))
            size = dict(height=h, width=w) if self.stated else {}
            records.append(dict(img_path=str(path), **size))
        return records

    def get_cat_ids(self, index):
        return [index == 0]  # the first picture has a class of its own


SIZES = [(31, 97), (200, 45), (64, 64), (17, 16), (120, 133), (90, 300), (77, 76)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sheets')
    for h, w in SIZES:
        cv2.imwrite(str(folder / f'{h}x{w}.png'), np.zeros((h, w, 3), dtype=np.uint8))
    return folder


def pipeline(max_tokens=30):
    return [LoadImageFromFile(), ResizeToTokenBudget(max_tokens, random=dict(low_tokens=4))]


def sheets(folder, max_tokens=30, **options):
    return dict(type='Sheets', folder=folder, pipeline=pipeline(max_tokens), **options)


def balanced(dataset):
    return dict(type='SeededClassBalancedDataset', dataset=dataset, oversample_thr=0.9)


def joined(*datasets):
    return dict(type='ConcatDataset', datasets=list(datasets))


def repeated(dataset):
    return dict(type='RepeatDataset', dataset=dataset, times=3)


WRAPPERS = {
    'alone': lambda one, other: one,
    'repeated': lambda one, other: repeated(one),
    'joined': joined,
    'balanced': lambda one, other: balanced(one),
    'nested': lambda one, other: repeated(joined(one, balanced(other))),
}


@pytest.mark.parametrize('stated', [True, False])
@pytest.mark.parametrize('wrap', WRAPPERS.values(), ids=WRAPPERS)
def test_batches_hold_the_tokens_that_were_planned(folder, wrap, stated, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    config = wrap(*(sheets(folder, tokens, stated=stated) for tokens in (30, 12)))
    dataset = DATASETS.build(config)
    sampler = sampler_of(dataset, max_tokens=70)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for batch in sampler:
            shown = [math.prod(dataset[index]['img_shape']) // 256 for index in batch]
            assert sum(shown) <= 70
            planned = [locate(dataset, index) for index in batch]
            assert [part.num_tokens(i) for part, i in planned] == shown


def test_a_wrapper_that_loses_seeds_is_refused_by_name(folder):
    dataset = ClassBalancedDataset(Sheets(folder, pipeline()), oversample_thr=0.9)
    with pytest.raises(ValueError, match='ClassBalancedDataset loses .* SeededClassBalanced'):
        sampler_of(dataset, max_tokens=70)


def test_a_part_that_is_not_numbered_as_the_whole_is_refused(folder):
    with pytest.raises(ValueError, match='Subset does not say which sample .* indices='):
        sampler_of(Subset(Sheets(folder, pipeline()), [3, 5]), max_tokens=70)


def test_a_config_of_mmengine_builds_it_and_its_hook_tells_the_epoch(folder):
    loader = Runner.build_dataloader(
        dict(
            batch_size=4,
            num_workers=0,
            sampler=dict(type='SeededSampler', shuffle=True),
            batch_sampler=dict(type='TokenBudgetBatchSampler', max_tokens=70),
            dataset=Sheets(folder, pipeline()),
        ),
        seed=11,
    )
    assert loader.batch_sampler.batch_size == 4
    passes = []
    for epoch in (0, 3):
        runner = SimpleNamespace(train_loop=SimpleNamespace(dataloader=loader), epoch=epoch)
        DistSamplerSeedHook().before_train_epoch(runner)
        assert len(list(loader)) == len(loader)
        seeds = [index.sample_seed for batch in loader.batch_sampler for index in batch]
        assert {seed for seed, *_ in seeds} == {11}
        passes.append(Counter(number for _, number, _ in seeds))
    assert max(passes[0]) < min(passes[1])


def test_an_unreadable_picture_counts_as_the_largest(folder, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    (tmp_path / '9x9.png').write_text('no picture')
    (tmp_path / '8x8.png').write_bytes((folder / '64x64.png').read_bytes())
    dataset = Sheets(
        tmp_path, [LoadImageFromFile(), ResizeToTokenBudget(30, min_tokens=1)], stated=False
    )
    sampler = sampler_of(dataset, max_tokens=40)
    tokens = {int(i): dataset.num_tokens(i) for i in chain(*sampler)}
    assert tokens == {0: 16, 1: 30}


@pytest.mark.parametrize(
    'planned, options, words',
    [
        (ResizeToTokenBudget(71), {}, 'may have 71 tokens, but a batch at most 70.*at least 71'),
        (None, {}, "no transform that plans tokens.*'ResizeToTokenBudget'"),
        (ResizeToTokenBudget(20), dict(steps_per_epoch=0), 'steps_per_epoch=0'),
        (ResizeToTokenBudget(20), dict(batch_size=0), 'batch_size=0 must be at least 1'),
        (ResizeToTokenBudget(20), dict(pool_size=0), 'pool_size=0 must be at least 1'),
        (ResizeToTokenBudget(20), dict(batch_size=2.5), 'batch_size=2.5 must be a whole number'),
        (ResizeToTokenBudget(20), dict(pool_size='5'), "pool_size='5' must be a whole number"),
        (ResizeToTokenBudget(20), dict(pad_size_divisor=[32]), r'divisor=\[32\] must be a whole'),
        (ResizeToTokenBudget(20), dict(max_tokens=128.0), 'max_tokens=128.0 must be a whole'),
        (ResizeToTokenBudget(20), dict(max_tokens=10**12), 'max_tokens=1000000000000 is above'),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(folder, planned, options, words):
    dataset = Sheets(folder, [LoadImageFromFile(), *([planned] if planned else [])])
    with pytest.raises(ValueError, match=words):
        sampler_of(dataset, **{'max_tokens': 70, **options})


def test_other_samplers_and_data_sets_are_refused_by_name(folder):
    stock = DefaultSampler(Sheets(folder, pipeline()), shuffle=True)
    with pytest.raises(ValueError, match="type='SeededSampler'.*not DefaultSampler"):
        TokenBudgetBatchSampler(stock, 4, max_tokens=70)
    with pytest.raises(ValueError, match='list cannot say how many tokens'):
        sampler_of([1, 2, 3], max_tokens=70)
