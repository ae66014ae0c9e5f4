"""Samples depend on (seed, epoch, index) alone; bad ones are named and replaced."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import random
import warnings
from collections import Counter
from contextlib import suppress
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset
from mmengine.registry import DATA_SAMPLERS, HOOKS
from PIL import Image
from torch.utils.data import DataLoader

from navit_backbone.tasks.common import dataset as dataset_module
from navit_backbone.tasks.common import sampling
from navit_backbone.tasks.common.dataset import SeededSamples
from navit_backbone.tasks.common.resize import ResizeToTokenBudget
from navit_backbone.tasks.common.sample import BadSampleError, SampleIndex, SampleSeed, seeded


class Photos(SeededSamples, BaseDataset):
    """The pictures of a folder, by name."""

    def __init__(self, folder: Path, pipeline: list, *, test_mode: bool = False) -> None:
        self.folder = folder
        super().__init__(pipeline=pipeline, test_mode=test_mode)

    def load_data_list(self) -> list[dict]:
        return [dict(img_path=str(path)) for path in sorted(self.folder.iterdir())]


def jitter(results: dict) -> dict:
    """Draws from every global generator, as stock transforms do."""
    results['draws'] = (np.random.rand(), random.random(), torch.rand(()).item())
    results['img'] = results['img'] + np.random.randint(0, 9, results['img'].shape, dtype=np.uint8)
    return results


def pipeline(*more: object, max_tokens: int = 40) -> list:
    resize = ResizeToTokenBudget(max_tokens, random=dict(low_tokens=4))
    return [LoadImageFromFile(), resize, jitter, *more]


def as_is(batch: list) -> list:
    return batch


def global_states() -> bytes:
    return pickle.dumps((np.random.get_state(), random.getstate(), torch.get_rng_state().numpy()))


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('photos')
    draw = np.random.default_rng(0)
    for i in range(7):
        h, w = draw.integers(20, 150, size=2)
        cv2.imwrite(str(folder / f'{i}.png'), draw.integers(0, 256, (h, w, 3), dtype=np.uint8))
    return folder


def epochs(dataset: object, num_workers: int, *, num_epochs: int = 3, seed: int = 5) -> list[list]:
    """All samples of some epochs, as mmengine's loop would fetch them."""
    sampler = sampling.SeededSampler(dataset, seed=seed)
    loader = DataLoader(
        dataset,
        batch_size=2,
        sampler=sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=as_is,
    )
    seen = []
    for epoch in range(num_epochs):
        sampler.set_epoch(epoch)
        seen.append([sample for batch in loader for sample in batch])
    return seen


def same(a: dict, b: dict) -> bool:
    keys = ('sample_idx', 'sample_seed', 'draws', 'img_shape')
    return all(a[key] == b[key] for key in keys) and np.array_equal(a['img'], b['img'])


def test_samples_depend_neither_on_workers_nor_on_what_was_drawn_before(folder):
    expected = epochs(Photos(folder, pipeline()), 0)
    np.random.seed(123)
    torch.manual_seed(9)
    for num_workers in (0, 2):
        found = epochs(Photos(folder, pipeline()), num_workers)
        for a, b in zip(chain(*expected), chain(*found), strict=True):
            assert same(a, b)


def test_epochs_and_seeds_differ_and_each_epoch_holds_all(folder):
    first, second, third = epochs(Photos(folder, pipeline()), 2)
    for epoch in (first, second, third):
        assert sorted(sample['sample_idx'] for sample in epoch) == list(range(7))
    draws = {s['draws'] for s in first + second + third}
    assert len(draws) == 21
    (other,) = epochs(Photos(folder, pipeline()), 0, num_epochs=1, seed=6)
    assert draws.isdisjoint(s['draws'] for s in other)
    assert [s['sample_idx'] for s in first] != [s['sample_idx'] for s in second]


def test_global_generators_are_left_as_they_were(folder):
    dataset = Photos(folder, pipeline())
    before = global_states()
    dataset[SampleIndex(3, (0, 1, 3))]
    assert global_states() == before
    with suppress(RuntimeError), seeded(SampleSeed(0, 0, 0)):
        np.random.rand()
        raise RuntimeError('within')
    assert global_states() == before


def test_a_plain_index_counts_as_epoch_0_and_says_so(folder):
    dataset = Photos(folder, pipeline())
    with pytest.warns(UserWarning, match='SeededSampler'):
        plain = dataset[2]
    assert same(plain, dataset[SampleIndex(2, (0, 0, 2))])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        Photos(folder, pipeline(), test_mode=True)[2]


@given(st.integers(-50, 50), st.integers(0, 2**40), st.integers(0, 9), st.integers(0, 99))
def test_an_index_keeps_its_seed_through_pickle_copy_and_arithmetic(value, seed, epoch, index):
    carried = SampleIndex(value, (seed, epoch, index))
    for twin in (pickle.loads(pickle.dumps(carried)), copy.deepcopy(carried), carried + 0):
        assert twin == value and twin.sample_seed == (seed, epoch, index)
    assert carried - 3 == value - 3 and (carried - 3).sample_seed == carried.sample_seed
    assert carried % 7 == value % 7 and (carried % 7).sample_seed == carried.sample_seed


def test_seeds_reach_inner_data_sets_and_repeats_draw_anew(folder):
    repeated = RepeatDataset(Photos(folder, pipeline()), times=2)
    both = ConcatDataset([Photos(folder, pipeline()), Photos(folder, pipeline())])
    for dataset in (repeated, both):
        (epoch,) = epochs(dataset, 0, num_epochs=1)
        assert Counter(s['sample_idx'] for s in epoch) == Counter([*range(7)] * 2)
        assert len({s['draws'] for s in epoch}) == 14


@given(st.integers(1, 40), st.integers(1, 5), st.booleans(), st.booleans(), st.integers(0, 3))
def test_ranks_share_each_epoch_out(length, world_size, shuffle, round_up, epoch):
    shares = []
    for rank in range(world_size):
        sampler = sampling.SeededSampler(range(length), shuffle=shuffle, seed=1, round_up=round_up)
        sampler.rank, sampler.world_size = rank, world_size
        sampler.set_epoch(epoch)
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler)
        assert all(i.sample_seed == (1, epoch, i) for i in shares[-1])
    seen = Counter(i for share in shares for i in share)
    assert set(seen) == set(range(length))
    if round_up:
        assert len({len(share) for share in shares}) == 1
        assert sum(seen.values()) < length + world_size
    else:
        assert set(seen.values()) == {1}


@pytest.mark.parametrize('shuffle', [False, True])
def test_repeats_of_an_example_stand_together_and_draw_apart(folder, shuffle):
    """Repeated augmentation: each example `repeats` times in a row, every time another seed."""
    sampler = sampling.SeededSampler(Photos(folder, pipeline()), shuffle=shuffle, seed=3, repeats=3)
    indices = list(sampler)
    assert len(sampler) == len(indices) == 3 * len(sampler.dataset)
    runs = [indices[i : i + 3] for i in range(0, len(indices), 3)]
    assert all(len(set(map(int, run))) == 1 for run in runs)
    assert sorted(int(run[0]) for run in runs) == list(range(len(sampler.dataset)))
    assert len({index.sample_seed for index in indices}) == len(indices)


def test_the_order_is_a_function_of_seed_and_epoch():
    build = DATA_SAMPLERS.build
    one, two = (build(dict(type='SeededSampler', dataset=range(50), seed=4)) for _ in range(2))
    list(one)
    assert one.order(3) == two.order(3) != one.order(2)
    assert build(dict(type='SeededSampler', dataset=range(50), seed=5)).order(3) != one.order(3)
    with pytest.raises(ValueError, match='ann_file'):
        build(dict(type='SeededSampler', dataset=[], seed=4))


# ---------------------------------------------------------------------------- bad samples


def scene(h: int = 60, w: int = 84) -> np.ndarray:
    """A smooth picture [h, w, 3] in RGB, which lossy formats keep well."""
    y, x = np.mgrid[:h, :w].astype(np.float32)
    return np.stack([255 * y / h, 255 * x / w, 255 - 255 * y / h], -1).astype(np.uint8)


def write_good(folder: Path) -> dict[str, np.ndarray]:
    """Unusual pictures that must load, and what each shows in RGB."""
    img = scene()
    gray = np.repeat(img[..., 1:2], 3, 2)
    picture = Image.fromarray(img)
    picture.convert('CMYK').save(folder / 'cmyk.jpg', quality=95)
    picture.convert('RGBA').save(folder / 'rgba.png')
    Image.fromarray(gray[..., 0]).save(folder / 'gray.png')
    Image.fromarray(gray[..., 0]).save(folder / 'gray.jpg', quality=95)
    cv2.imwrite(str(folder / '16bit.png'), img[..., ::-1].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees, clockwise
    picture.save(folder / 'exif.jpg', quality=95, exif=exif)
    picture.crop((0, 0, 5, 3)).save(folder / 'tiny.png')
    Image.fromarray(scene(700, 900)).save(folder / 'huge.png')
    turned = np.rot90(img, -1)
    return {
        'cmyk.jpg': img,
        'rgba.png': img,
        'gray.png': gray,
        'gray.jpg': gray,
        '16bit.png': img,
        'exif.jpg': turned,
        'tiny.png': img[:3, :5],
        'huge.png': scene(700, 900),
    }


def write_bad(folder: Path) -> set[str]:
    whole = cv2.imencode('.jpg', scene())[1].tobytes()
    (folder / 'empty.jpg').write_bytes(b'')
    (folder / 'text.jpg').write_text('this is no picture')
    (folder / 'truncated.jpg').write_bytes(whole[: len(whole) // 2])
    (folder / 'dangling.png').symlink_to(folder / 'nowhere.png')
    return {'empty.jpg', 'text.jpg', 'truncated.jpg', 'dangling.png'}


def index_of(dataset: Photos, name: str) -> int:
    return next(
        i for i in range(len(dataset)) if dataset.get_data_info(i)['img_path'].endswith(name)
    )


def test_unusual_pictures_load_as_what_they_show(tmp_path):
    for name, shown in write_good(tmp_path).items():
        raw = Photos(tmp_path, [LoadImageFromFile()], test_mode=True)
        loaded = raw[index_of(raw, name)]['img']
        assert loaded.shape == shown.shape and loaded.dtype == np.uint8, name
        error = np.abs(loaded[..., ::-1].astype(int) - shown)
        assert error.mean() < 4, f'{name} is off by {error.mean():.1f} levels'
        sized = Photos(tmp_path, [LoadImageFromFile(), ResizeToTokenBudget(64)], test_mode=True)
        h, w = sized[index_of(sized, name)]['img_shape']
        assert h % 16 == w % 16 == 0 and 1 <= h * w // 256 <= 64


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[Path, set[str]]:
    write_good(tmp_path)
    return tmp_path, write_bad(tmp_path)


@pytest.mark.parametrize('num_workers', [0, 2])
def test_bad_samples_are_named_and_replaced_alike_everywhere(mixed, num_workers):
    folder, bad = mixed
    expected = epochs(Photos(folder, pipeline()), 0)
    dataset = Photos(folder, pipeline())
    found = epochs(dataset, num_workers)
    for a, b in zip(chain(*expected), chain(*found), strict=True):
        assert same(a, b)
    assert {Path(name).name for _, name in dataset.bad_samples} == bad
    replaced = [s for s in chain(*found) if s['sample_seed'].index != s['sample_idx']]
    assert len(replaced) == 3 * len(bad)
    assert {Path(s['img_path']).name for s in replaced}.isdisjoint(bad)


def test_each_bad_sample_is_logged_once_with_its_file(mixed, monkeypatch):
    folder, bad = mixed
    lines: list[str] = []
    monkeypatch.setattr(dataset_module, 'print_log', lambda line, **_: lines.append(line))
    epochs(Photos(folder, pipeline()), 0)
    assert len(lines) == len(bad)
    for name in bad:
        assert sum(name in line for line in lines) == 1


class Planned(Photos):
    """With the sizes an annotation would state: the bad ones are said to be slim."""

    def load_data_list(self) -> list[dict]:
        sizes = {'tiny.png': (3, 5), 'huge.png': (700, 900), 'exif.jpg': (84, 60)}
        bad = {'empty.jpg', 'text.jpg', 'truncated.jpg', 'dangling.png'}
        infos = []
        for info in super().load_data_list():
            name = Path(info['img_path']).name
            h, w = (10, 200) if name in bad else sizes.get(name, (60, 84))
            infos.append(info | dict(height=h, width=w))
        return infos


@pytest.mark.parametrize('resize', [dict(), dict(min_tokens=4), dict(random=dict(low_tokens=2))])
def test_a_replacement_needs_no_more_tokens_than_were_planned(mixed, resize):
    folder, bad = mixed
    transform = ResizeToTokenBudget(90, **resize)
    dataset = Planned(folder, [LoadImageFromFile(), transform])
    for epoch in range(8):
        for name in bad:
            index = index_of(dataset, name)
            seed = SampleSeed(0, epoch, index)
            h, w = dataset[SampleIndex(index, seed)]['img_shape']
            assert h * w // 256 <= transform.num_tokens(10, 200, sample_seed=seed)


def test_an_evaluation_stops_at_a_bad_picture_and_names_it(mixed):
    folder, bad = mixed
    dataset = Photos(folder, [LoadImageFromFile(), ResizeToTokenBudget(64)], test_mode=True)
    for name in bad:
        with pytest.raises(BadSampleError, match=name):
            dataset[index_of(dataset, name)]
    loader = DataLoader(dataset, num_workers=1, collate_fn=as_is)
    with pytest.raises(BadSampleError, match=r'\.(jpg|png): cannot be read'):
        list(loader)


def test_a_turned_annotation_is_a_bad_sample(mixed):
    folder, _ = mixed

    class Turned(Photos):
        def load_data_list(self) -> list[dict]:
            return [dict(img_path=str(folder / 'exif.jpg'), height=60, width=84)]

    with pytest.raises(BadSampleError, match=r'exif\.jpg.*EXIF'):
        Turned(folder, [LoadImageFromFile(), ResizeToTokenBudget(64)], test_mode=True)[0]


def test_a_fault_of_the_program_is_not_taken_for_a_bad_sample(folder):
    def broken(results: dict) -> dict:
        raise AssertionError('a fault of the program')

    dataset = Photos(folder, pipeline(broken))
    with pytest.raises(AssertionError, match='a fault of the program'):
        dataset[SampleIndex(0, (0, 0, 0))]
    assert dataset.bad_samples == []


class LoadBroken:
    """A loader that raises `error` on sample 2, and on `others`."""

    def __init__(self, error, others=()):
        self.error, self.bad = error, {2, *others}

    def __call__(self, results: dict) -> dict:
        if results['sample_idx'] in self.bad:
            raise self.error
        return results


@pytest.mark.parametrize(
    ('error', 'traceback_shown'),
    [
        (KeyError('segmentation'), True),
        (RuntimeError('a fault of the code'), True),
        (IndexError(7), True),
        (MemoryError(), False),
        (Image.DecompressionBombError('190440000 pixels exceed the limit'), False),
        (OSError('truncated'), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else '',
)
def test_any_error_of_a_loader_costs_one_sample(folder, error, traceback_shown, monkeypatch):
    """What may be a fault of the code is logged in full, once."""
    lines: list[str] = []
    monkeypatch.setattr(dataset_module, 'print_log', lambda line, **_: lines.append(line))
    dataset = Photos(folder, pipeline(LoadBroken(error, others=[4])))
    found = epochs(dataset, 0, num_epochs=1)
    assert len(list(chain(*found))) == len(dataset)
    assert {index for index, _ in dataset.bad_samples} == {2, 4}
    named = [line for line in lines if 'bad sample, replaced' in line]
    assert len(named) == 2
    assert all(f'LoadBroken: {type(error).__name__}' in line for line in named)
    assert sum('Traceback' in line for line in lines) == traceback_shown
    with pytest.raises(BadSampleError, match=f'LoadBroken: {type(error).__name__}'):
        Photos(folder, pipeline(LoadBroken(error)), test_mode=True)[2]


def test_a_loader_that_fails_on_every_sample_ends_the_training(folder):
    everything = LoadBroken(TypeError('a fault of the code'), others=range(100))
    with pytest.raises(ValueError, match='TypeError: a fault of the code.*so are sample 0'):
        Photos(folder, pipeline(everything))[SampleIndex(0, (0, 0, 0))]


def test_a_transform_that_returns_none_has_its_sample_replaced(folder):
    def picky(results: dict) -> dict | None:
        return None if results['sample_idx'] == 2 else results

    dataset = Photos(folder, pipeline(picky))
    assert dataset[SampleIndex(2, (0, 0, 2))]['sample_idx'] != 2
    assert dataset.bad_samples == []  # the file is as it should be
    assert [index for index, _ in dataset.emptied_samples] == [2]
    with pytest.raises(BadSampleError, match='left nothing of it'):
        Photos(folder, pipeline(picky), test_mode=True)[2]


@pytest.mark.parametrize('in_place', [False, True])
def test_a_subset_knows_its_samples_by_their_new_numbers(mixed, in_place):
    folder, bad = mixed
    dataset = Photos(folder, pipeline())
    dataset.complete_sizes()
    whole = [dataset.target_size(SampleIndex(i, (0, 0, 0))) for i in range(len(dataset))]
    order = list(range(len(dataset)))[::-1]
    if in_place:
        dataset.get_subset_(order)
    else:
        dataset = dataset.get_subset(order)
    dataset.complete_sizes()
    assert [dataset.target_size(SampleIndex(i, (0, 0, 0))) for i in order] == whole
    epochs(dataset, 2, num_epochs=1)
    assert {Path(name).name for _, name in dataset.bad_samples} == bad


def test_when_nothing_can_be_read_the_error_says_where_to_look(tmp_path):
    write_bad(tmp_path)
    with pytest.raises(ValueError, match='truncated.jpg: .*; so are sample 0 .* data_root'):
        Photos(tmp_path, pipeline())[SampleIndex(0, (0, 0, 0))]


WRAPPERS = {
    'alone': lambda dataset: dataset,
    'joined': lambda dataset: ConcatDataset([dataset]),
    'repeated': lambda dataset: RepeatDataset(dataset, times=1),
}


@pytest.mark.parametrize('wrap', WRAPPERS.values(), ids=WRAPPERS)
def test_the_hook_lists_all_bad_samples_at_the_end(mixed, caplog, wrap):
    folder, bad = mixed
    dataset = wrap(Photos(folder, pipeline()))
    epochs(dataset, 2, num_epochs=1)
    logger = logging.getLogger('run')
    runner = SimpleNamespace(train_dataloader=SimpleNamespace(dataset=dataset), logger=logger)
    with caplog.at_level(logging.WARNING, logger='run'):
        HOOKS.build(dict(type='BadSampleHook')).after_train(runner)
    assert f'{len(bad)} of {len(dataset)}' in caplog.text
    assert all(name in caplog.text for name in bad)


def test_the_hook_counts_samples_that_were_left_with_nothing(folder, caplog):
    dataset = Photos(folder, pipeline(lambda results: results if results['sample_idx'] else None))
    epochs(dataset, 2, num_epochs=1)
    logger = logging.getLogger('run')
    runner = SimpleNamespace(train_dataloader=SimpleNamespace(dataset=dataset), logger=logger)
    with caplog.at_level(logging.INFO, logger='run'):
        HOOKS.build(dict(type='BadSampleHook')).after_train(runner)
    assert 'of 1 of 7 samples the pipeline left nothing' in caplog.text
    assert 'remove' not in caplog.text


# ---------------------------------------------------------------------------- resuming


@given(st.integers(1, 30), st.integers(1, 3), st.integers(0, 3), st.data())
def test_a_resumed_sampler_issues_the_rest_once_and_then_all(length, world_size, epoch, data):
    def sampler_of(seed: int) -> sampling.SeededSampler:
        sampler = sampling.SeededSampler(range(length), seed=seed)
        sampler.rank, sampler.world_size = world_size - 1, world_size
        return sampler

    sampler = sampler_of(5)
    sampler.set_epoch(epoch)
    whole = [i.sample_seed for i in sampler]
    resumed = sampler_of(6)
    resumed.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    consumed = data.draw(st.integers(0, len(sampler)))
    resumed.skip_samples(consumed)
    assert len(resumed) == len(sampler) == len(whole)
    assert [i.sample_seed for i in resumed] == whole[consumed:]
    assert [i.sample_seed for i in resumed] == whole
    for wrong in (-1, len(sampler) + 1):
        with pytest.raises(ValueError, match=f'cannot skip {wrong} of the {len(sampler)}'):
            resumed.skip_samples(wrong)


def test_a_state_of_other_data_is_refused_with_both_values():
    state = sampling.SeededSampler(range(9), seed=0).state_dict()
    with pytest.raises(ValueError, match='num_samples=9, this one 10'):
        sampling.SeededSampler(range(10), seed=0).load_state_dict(state)
    with pytest.raises(ValueError, match='shuffle=True, this one False'):
        sampling.SeededSampler(range(9), seed=0, shuffle=False).load_state_dict(state)
    with pytest.raises(ValueError, match='damaged'):
        sampling.SeededSampler(range(9), seed=0).load_state_dict({'seed': 1})
