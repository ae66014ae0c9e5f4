"""Augmentations of clips: drawn from the seed, the same in all frames, and labels that follow."""

import numpy as np
import pytest

from navit_backbone.tasks.common.clip_transforms import (
    _OPERATIONS,
    ClipColorJitter,
    ClipErasing,
    ClipFlip,
    ClipRandAugment,
)
from navit_backbone.tasks.common.sample import SampleSeed

ALL = [ClipFlip(0.5), ClipColorJitter(), ClipRandAugment(2, 9.0, prob=1.0), ClipErasing(1.0)]
every_transform = pytest.mark.parametrize('transform', ALL, ids=lambda t: type(t).__name__)


def sample(index=0, *, still=True, label=0):
    rng = np.random.default_rng(5)
    frames = rng.integers(0, 256, (1, 1 if still else 4, 32, 48, 3), dtype=np.uint8)
    if still:
        frames = np.repeat(frames, 4, 1)
    return dict(
        imgs=frames, sample_seed=SampleSeed(0, 0, index), gt_label=[label],
        classes=('left', 'right', 'up'),
    )  # fmt: skip


@every_transform
def test_draws_depend_on_the_seed_alone(transform):
    runs = []
    for _ in range(2):
        np.random.rand(3)
        runs.append([transform.transform(sample(i))['imgs'] for i in range(8)])
    assert all(np.array_equal(a, b) for a, b in zip(*runs, strict=True))
    assert not all(np.array_equal(runs[0][0], other) for other in runs[0][1:])


@every_transform
@pytest.mark.parametrize('index', range(8))
def test_the_input_stays_and_shapes_too(transform, index):
    before = sample(index, still=False)
    frames = before['imgs'].copy()
    after = transform.transform({**before})
    assert np.array_equal(before['imgs'], frames)
    assert (after['imgs'].shape, after['imgs'].dtype) == (frames.shape, np.uint8)


@pytest.mark.parametrize('transform', ALL[:3], ids=lambda t: type(t).__name__)
@pytest.mark.parametrize('index', range(8))
def test_a_still_clip_stays_still(transform, index):
    frames = transform.transform(sample(index))['imgs'][0]
    assert (frames == frames[:1]).all()


@pytest.mark.parametrize('name', _OPERATIONS)
def test_every_operation_changes_a_picture_and_at_no_strength_hardly(name):
    from PIL import Image

    operation, signed = _OPERATIONS[name]
    picture = Image.fromarray(sample()['imgs'][0, 0] // 2 + 20)
    strong = np.asarray(operation(picture, 1.0)).astype(int)
    assert np.abs(strong - np.asarray(picture)).mean() > 1
    if signed or name in ('posterize', 'solarize'):
        assert np.abs(np.asarray(operation(picture, 0.0)).astype(int) - picture).max() <= 1


def test_flips_mirror_and_swap_classes():
    flip = ClipFlip(1.0, swap={'left': 'right'})
    for label, expected in ((0, 1), (1, 0), (2, 2)):
        before = sample(label=label, still=False)
        after = flip.transform({**before})
        assert np.array_equal(after['imgs'], before['imgs'][:, :, :, ::-1])
        assert (after['gt_label'], after['flip']) == ([expected], True)


def test_classes_that_say_a_direction_are_not_flipped():
    flip = ClipFlip(1.0, fixed=['left', 1])
    for label, flipped in ((0, False), (1, False), (2, True)):
        assert flip.transform(sample(label=label))['flip'] is flipped


def test_a_class_that_is_none_is_named():
    with pytest.raises(ValueError, match="'down' is none of the classes"):
        ClipFlip(1.0, fixed=['down']).transform(sample())


def test_erasing_is_one_box_in_all_frames():
    before = sample()
    after = ClipErasing(1.0, area=(0.2, 0.2), aspect=1.0).transform({**before})
    changed = (after['imgs'] != before['imgs']).any((0, 1, 4))
    rows, cols = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    box = changed[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    assert box.all()
    assert box.size / changed.size == pytest.approx(0.2, abs=0.04)
    assert not np.array_equal(after['imgs'][0, 0], after['imgs'][0, 1])


@pytest.mark.parametrize(
    'wrong',
    [
        lambda: ClipFlip(2.0),
        lambda: ClipColorJitter(1.5),
        lambda: ClipRandAugment(0),
        lambda: ClipErasing(0.5, area=(0.5, 0.2)),
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match='Clip'):
        wrong()
