"""Find copies of files: the same file, equal bytes, images that look alike; no false ones."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from coco_files import write_coco
from hypothesis import given
from hypothesis import strategies as st
from mmengine.registry import DATASETS, HOOKS, init_default_scope
from PIL import Image, ImageFilter

import navit_backbone.tasks.detection  # noqa: F401  registers
from navit_backbone.tasks.common import duplicates
from navit_backbone.tasks.common.duplicates import (
    Group,
    duplicate_groups,
    duplicate_remarks,
    first_copies,
)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def scene(seed, size=(240, 180)):
    """A smooth random scene in colour, as photographs are."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def scenes(tmp_path):
    paths = [tmp_path / f'{number}.png' for number in range(6)]
    for number, path in enumerate(paths):
        scene(number).save(path)
    return [str(path) for path in paths]


def saved(image, path, **options):
    image.save(path, **options)
    return str(path)


def test_different_images_are_no_copies(scenes):
    assert duplicate_groups(scenes) == []
    assert first_copies(scenes) == list(range(6))


def test_one_file_under_several_paths_is_one(scenes, tmp_path):
    link = tmp_path / 'link.png'
    link.symlink_to(scenes[2])
    folder = Path(scenes[0]).parent
    paths = [*scenes, str(link), f'{folder}/../{folder.name}/4.png']
    assert duplicate_groups(paths, looks=False) == [
        Group((2, 6), exact=True),
        Group((4, 7), exact=True),
    ]


def test_equal_bytes_are_one_whatever_the_name(scenes, tmp_path):
    copy = tmp_path / 'copy.dat'
    copy.write_bytes(Path(scenes[1]).read_bytes())
    assert duplicate_groups([*scenes, str(copy)]) == [Group((1, 6), exact=True)]


def test_bytes_of_one_size_that_differ_at_either_end_are_two(tmp_path):
    content = bytes(range(256)) * 9000  # more than two MiB
    paths = []
    for name, change in (('a', None), ('b', 0), ('c', -1), ('d', None)):
        data = bytearray(content)
        if change is not None:
            data[change] ^= 1
        (tmp_path / name).write_bytes(data)
        paths.append(str(tmp_path / name))
    assert duplicate_groups(paths) == [Group((0, 3), exact=True)]


@pytest.mark.parametrize('size', [3 << 20, 1 << 21, (1 << 21) + 1])
def test_large_files_that_differ_in_the_middle_are_two(tmp_path, size):
    """Files that agree in size and at both ends, as raw video often does, are read whole."""
    paths = [str(tmp_path / name) for name in 'abc']
    for path, middle in zip(paths, (0, 1, 0), strict=True):
        data = bytearray(size)
        data[size // 2] = middle
        Path(path).write_bytes(data)
    assert duplicate_groups(paths) == [Group((0, 2), exact=True)]


def test_a_look_alike_is_one_of_all_exact_copies(scenes, tmp_path):
    """Even where the first of the copies has no suffix of an image."""
    blob = tmp_path / 'blob'
    blob.write_bytes(Path(scenes[0]).read_bytes())
    near = saved(scene(0), tmp_path / 'near.jpg', quality=60)
    assert duplicate_groups([str(blob), near, *scenes]) == [
        Group((0, 2), exact=True),
        Group((0, 1, 2), exact=False),
    ]
    splits = dict(train=named([str(blob)]), val=named(scenes[:2]), test=named([near]))
    exact, *alike = (remark.text.split('. Fix')[0] for remark in duplicate_remarks(splits))
    assert exact.endswith('equal bytes: 0.png = blob')
    assert [text.split(': ')[-1] for text in alike] == ['near.jpg = blob', 'near.jpg = 0.png']


def test_files_that_are_missing_empty_or_folders_are_alone(tmp_path):
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        (tmp_path / f'{name}.png').touch()
    names = ('a', 'b', 'a.png', 'b.png', 'c.png', 'd.png')
    assert duplicate_groups([str(tmp_path / name) for name in names]) == []


@pytest.mark.parametrize(
    'copy',
    [
        lambda image, path: saved(image, f'{path}.jpg', quality=60),
        lambda image, path: saved(image.resize((97, 73), Image.Resampling.LANCZOS), f'{path}.png'),
        lambda image, path: saved(image.resize((480, 360)), f'{path}.webp', quality=80),
        lambda image, path: saved(image.filter(ImageFilter.GaussianBlur(1)), f'{path}.bmp'),
    ],
)
def test_copies_that_were_saved_again_or_resized_look_alike(scenes, tmp_path, copy):
    paths = [*scenes, copy(scene(3), tmp_path / 'copy')]
    assert duplicate_groups(paths) == [Group((3, 6), exact=False)]
    assert duplicate_groups(paths, looks=False) == []
    assert first_copies(paths) == [0, 1, 2, 3, 4, 5, 3]


@pytest.mark.parametrize(
    'other',
    [
        lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        lambda image: image.rotate(90, expand=True),
        lambda image: Image.merge('RGB', image.split()[::-1]),  # of the same brightness in part
        lambda image: image.crop((60, 0, 240, 135)),
    ],
)
def test_images_that_differ_to_the_eye_are_two(scenes, tmp_path, other):
    assert duplicate_groups([*scenes, saved(other(scene(3)), tmp_path / 'other.png')]) == []


def test_a_copy_stored_on_its_side_looks_alike(scenes, tmp_path):
    image = Image.open(scenes[1])
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees when shown
    turned = image.transpose(Image.Transpose.ROTATE_90)
    copy = saved(turned, tmp_path / 'phone.jpg', exif=exif, quality=95)
    assert duplicate_groups([*scenes, copy]) == [Group((1, 6), exact=False)]


@given(st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=4), max_size=12))
def test_joined_numbers_are_those_connected(joins):
    labels = duplicates._Labels(12)
    for members in joins:
        labels.join(members)
    expected = list(range(12))
    for _ in range(12):  # smallest labels spread until nothing changes
        for members in joins:
            least = min(expected[i] for i in members)
            expected = [least if i in members else label for i, label in enumerate(expected)]
    assert labels.of.tolist() == expected


def test_images_without_contrast_are_compared_by_their_bytes_alone(tmp_path):
    paths = [
        saved(Image.new('RGB', size, (value,) * 3), tmp_path / f'{number}.png')
        for number, (size, value) in enumerate([((40, 40), 9), ((40, 50), 9), ((40, 40), 10)])
    ]
    copy = saved(Image.open(paths[0]), tmp_path / 'copy.png')
    assert duplicate_groups([*paths, copy]) == [Group((0, 3), exact=True)]


def test_many_frames_of_one_scene_are_one_group(tmp_path):
    image = np.asarray(scene(5)).astype(int)
    random = np.random.default_rng(0)
    paths = []
    for number in range(40):
        noisy = np.clip(image + random.integers(-3, 4, image.shape), 0, 255).astype(np.uint8)
        paths.append(saved(Image.fromarray(noisy), tmp_path / f'{number}.jpg'))
    assert duplicate_groups(paths) == [Group(tuple(range(40)), exact=False)]


def test_files_are_read_once(scenes, tmp_path, monkeypatch):
    copy = saved(scene(3), tmp_path / 'copy.jpg', quality=70)
    found = duplicate_groups([*scenes, copy])
    read = []
    monkeypatch.setattr(duplicates, 'look_hash', lambda file: read.append(file))
    duplicates.look_hash.__name__ = 'look_hash'
    assert duplicate_groups([*scenes, copy]) == found
    assert read == []


# --------------------------------------------------------------------------------------------------
# What is said


def named(paths):
    return [(os.path.basename(path), path) for path in paths]


def test_a_sound_set_has_no_remark(scenes):
    splits = dict(train=named(scenes[:3]), val=named(scenes[3:]), test=named(scenes[3:]))
    assert list(duplicate_remarks(splits)) == []


def test_copies_across_splits_and_within_one_are_counted(scenes, tmp_path):
    near = saved(scene(1), tmp_path / 'near.jpg', quality=60)
    splits = dict(
        train=named([*scenes[:4], scenes[0]]),
        val=named([scenes[2], scenes[4], near]),
        test=named([scenes[4], scenes[5]]),
    )
    remarks = list(duplicate_remarks(splits))
    assert [(remark.split, remark.is_leak) for remark in remarks] == [
        ('train', False),
        ('val', True),
        ('val', False),
        ('test', False),
    ]
    twice, both, alike, val_and_test = (remark.text for remark in remarks)
    assert twice == '1 sample stands twice in train: 0.png = 0.png'
    assert both.startswith('1 of 3 samples of val is in training too, the same files or equal b')
    assert ': 2.png = 2.png. Fix: ' in both
    assert alike.startswith('1 of 3 samples of val looks like one of training, as copies')
    assert ': near.jpg = 1.png. Fix: ' in alike
    assert val_and_test.startswith('1 of 2 samples of test is in val too')


def test_the_training_set_as_validation_is_a_leak(scenes):
    (remark,) = duplicate_remarks(dict(train=named(scenes), val=named(scenes)))
    assert remark.is_leak
    assert remark.text.startswith('6 of 6 samples of val are in training too')


def test_more_files_than_are_compared_go_by_their_paths(scenes, tmp_path):
    copy = saved(scene(1), tmp_path / 'copy.png')
    splits = dict(train=named(scenes), val=named([scenes[0], copy]))
    limit, both = duplicate_remarks(splits, max_compared=7)
    assert limit.text.startswith('8 files are more than 7')
    assert both.text.startswith('1 of 2 samples of val is in training too')
    (both,) = duplicate_remarks(splits, max_compared=8)
    assert both.text.startswith('2 of 2 samples of val are in training too')


# --------------------------------------------------------------------------------------------------
# The hook


def runner_of(train, val=None):
    """Stand-in for a runner, with the lines that the hook logs."""
    lines = []
    logger = SimpleNamespace(
        warning=lambda text: lines.append(('warning', text)),
        info=lambda text: lines.append(('info', text)),
    )
    loaders = [data and SimpleNamespace(dataset=data) for data in (train, val)]
    runner = SimpleNamespace(
        train_dataloader=loaders[0], val_dataloader=loaders[1], val_loop=val, logger=logger
    )
    return runner, lines


@pytest.fixture
def data(tmp_path):
    """Two data sets in COCO's format, of different images, and wrapped."""
    init_default_scope('mmdet')
    built = []
    for seed, split in enumerate(('train', 'val')):
        write_coco(tmp_path, f'{split}.json', split, seed=seed)
        part = dict(type='NaViTCocoDataset', data_root=str(tmp_path), ann_file=f'{split}.json')
        part |= dict(data_prefix=dict(img=split), pipeline=[])
        built.append(DATASETS.build(dict(type='RepeatDataset', times=2, dataset=part)))
    return built


def test_different_splits_are_silent(data):
    runner, lines = runner_of(*data)
    HOOKS.build(dict(type='DuplicateCheckHook')).before_train(runner)
    assert lines == []


def test_a_leak_is_logged_before_training(data):
    train, _ = data
    runner, lines = runner_of(train, train)
    HOOKS.build(dict(type='DuplicateCheckHook')).before_train(runner)
    ((level, text),) = lines
    assert level == 'warning'
    assert text.startswith('4 of 4 samples of val are in training too')
    runner, lines = runner_of(train)
    HOOKS.build(dict(type='DuplicateCheckHook')).before_train(runner)
    assert lines == []


def test_large_sets_are_left_to_the_doctor(data):
    train, _ = data
    runner, lines = runner_of(train, train)
    HOOKS.build(dict(type='DuplicateCheckHook', max_compared=7)).before_train(runner)
    ((level, text),) = lines
    assert level == 'info'
    assert text.startswith('8 files: duplicates of training and validation are not looked for')
