"""Large-scale jitter: sizes known beforehand, and what belongs to the picture moves with it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import TRANSFORMS

from navit_backbone.tasks.common.jitter import LargeScaleJitter
from navit_backbone.tasks.common.resize import ResizeToTokenBudget
from navit_backbone.tasks.common.sample import BadSampleError, SampleSeed


def results_of(h: int, w: int, seed: int = 0, boxes: object = None) -> dict:
    """A picture that shows its own coordinates: y in the first channel, x in the second."""
    y, x = np.mgrid[:h, :w].astype(np.float32)
    results = dict(
        img=np.stack([y, x, 0 * x], axis=-1),
        ori_shape=(h, w),
        img_path='a.jpg',
        sample_seed=SampleSeed(seed, 0, 0),
    )
    if boxes is not None:
        count = len(boxes)
        results |= dict(
            gt_bboxes=boxes,
            gt_bboxes_labels=np.arange(count),
            gt_ignore_flags=np.arange(count) % 2 == 1,
        )
    return results


def grid_boxes(h: int, w: int, rows: int = 5, columns: int = 4) -> np.ndarray:
    """[rows * columns, 4]: cells that cover the whole picture."""
    ys, xs = np.linspace(0, h, rows + 1), np.linspace(0, w, columns + 1)
    cells = [(xs[j], ys[i], xs[j + 1], ys[i + 1]) for i in range(rows) for j in range(columns)]
    return np.array(cells, dtype=np.float32)


sides, seeds = st.integers(1, 400), st.integers(0, 10**6)


@settings(max_examples=150, deadline=None)
@given(sides, sides, seeds, st.integers(1, 200), st.sampled_from([4, 7]))
def test_the_size_is_known_beforehand_in_whole_patches_and_within_budget(h, w, seed, most, patch):
    jitter = LargeScaleJitter(most, patch_size=patch)
    sample_seed = SampleSeed(seed, 1, 2)
    size = jitter.target_size(h, w, sample_seed=sample_seed)
    tokens = jitter.num_tokens(h, w, sample_seed=sample_seed)
    assert size[0] % patch == size[1] % patch == 0
    assert 1 <= tokens == size[0] * size[1] // patch**2 <= most
    # never larger than at scale 1, on either side
    whole = ResizeToTokenBudget(most, patch_size=patch).target_size(h, w)
    assert size[0] <= whole[0] and size[1] <= whole[1]


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 150), st.integers(8, 150), seeds, st.integers(4, 60))
def test_the_picture_gets_that_size_and_what_it_shows_stays_true(h, w, seed, most):
    results = results_of(h, w, seed)
    results['gt_seg_map'] = np.add.outer(np.arange(h), np.arange(w)).astype(np.uint8)
    jitter = TRANSFORMS.build(dict(type='LargeScaleJitter', max_tokens=most, patch_size=4))
    out = jitter(results)
    size = jitter.target_size(h, w, sample_seed=SampleSeed(seed, 0, 0))
    assert out['img'].shape == (*size, 3) and out['gt_seg_map'].shape == size
    assert out['img_shape'] == size and type(out['img_shape']) is tuple
    # a pixel in the middle of the crop shows the place that the homography says it comes from
    y, x = size[0] // 2, size[1] // 2
    back = np.linalg.inv(out['homography_matrix'].astype(np.float64)) @ [x + 0.5, y + 0.5, 1]
    expected = np.clip([back[1] - 0.5, back[0] - 0.5], 0, [h - 1, w - 1])
    np.testing.assert_allclose(out['img'][y, x, :2], expected, atol=0.02 * max(h, w))


def test_scales_are_uniform_and_small_pictures_are_not_padded():
    jitter = LargeScaleJitter(400, patch_size=4)
    tokens = [
        jitter.num_tokens(100, 100, sample_seed=SampleSeed(0, 0, i)) / 400 for i in range(2000)
    ]
    sides = np.sqrt(tokens)
    assert np.mean(sides > 0.99) == pytest.approx(1 / 1.9, abs=0.05), 'scales of 1 to 2'
    assert np.mean(sides < 0.55) == pytest.approx(0.45 / 1.9, abs=0.05)
    assert min(sides) == pytest.approx(0.1, abs=0.05)
    assert np.mean(tokens) == pytest.approx(0.7, abs=0.03)


def boxes_kinds() -> list:
    def of_mmdet(boxes: np.ndarray):
        kinds = pytest.importorskip('mmdet.structures.bbox')
        return kinds.HorizontalBoxes(torch.from_numpy(boxes))

    return [np.copy, of_mmdet]


@pytest.mark.parametrize('kind', boxes_kinds(), ids=['array', 'mmdet'])
@pytest.mark.parametrize('seed', range(6))
def test_boxes_follow_what_they_hold_and_go_when_it_does(kind, seed):
    h, w = 120, 90
    corners = grid_boxes(h, w)
    out = LargeScaleJitter(100, patch_size=4, scale_range=(2.2, 2.5))(
        results_of(h, w, seed, kind(corners))
    )
    kept = out['gt_bboxes_labels']
    boxes = out['gt_bboxes']
    boxes = boxes if isinstance(boxes, np.ndarray) else boxes.tensor.numpy()
    assert 0 < len(kept) < len(corners)
    assert type(out['gt_bboxes']) is type(kind(corners))
    assert (out['gt_ignore_flags'] == (kept % 2 == 1)).all()
    new_h, new_w = out['img_shape']
    matrix = out['homography_matrix']
    for label, corner in enumerate(corners):
        x1, y1 = corner[:2] * matrix.diagonal()[:2] + matrix[:2, 2]
        x2, y2 = corner[2:] * matrix.diagonal()[:2] + matrix[:2, 2]
        visible = np.clip([x1, y1, x2, y2], 0, [new_w, new_h, new_w, new_h])
        area = (visible[2] - visible[0]) * (visible[3] - visible[1])
        assert (label in kept) == (area > 0)
        if area > 0:
            found = boxes[kept.tolist().index(label)]
            np.testing.assert_allclose(found, visible, atol=1e-3)


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('recompute', [False, True])
def test_masks_stay_with_their_boxes(seed, recompute):
    masks_of = pytest.importorskip('mmdet.structures.mask').BitmapMasks
    boxes_of = pytest.importorskip('mmdet.structures.bbox').HorizontalBoxes
    h, w = 120, 96
    corners = grid_boxes(h, w)
    bitmaps = np.zeros((len(corners), h, w), dtype=np.uint8)
    for bitmap, (x1, y1, x2, y2) in zip(bitmaps, corners.astype(int), strict=True):
        bitmap[y1 + 6 : y2 - 6, x1 + 6 : x2 - 6] = 1
    results = results_of(h, w, seed, boxes_of(torch.from_numpy(corners)))
    results['gt_masks'] = masks_of(bitmaps, h, w)
    jitter = LargeScaleJitter(120, patch_size=4, scale_range=(1.2, 2.0), recompute_bbox=recompute)
    out = jitter(results)
    assert len(out['gt_masks']) == len(out['gt_bboxes']) == len(out['gt_bboxes_labels'])
    assert out['gt_masks'].masks.shape[1:] == out['img_shape']
    for mask, box in zip(out['gt_masks'].masks, out['gt_bboxes'].tensor.numpy(), strict=True):
        rows, columns = mask.nonzero()
        if len(rows) == 0:
            continue
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        if recompute:
            np.testing.assert_allclose(box, found, atol=1)
        else:
            assert box[0] <= found[0] and box[1] <= found[1]
            assert found[2] <= box[2] and found[3] <= box[3]


@settings(max_examples=60, deadline=None)
@given(seeds, st.floats(0, 0.9), st.floats(0, 0.9))
def test_a_crop_can_be_moved_to_hold_a_box(seed, left, top):
    box = np.array([[left * 100, top * 80, left * 100 + 6, top * 80 + 5]], dtype=np.float32)
    settings_ = dict(patch_size=4, scale_range=(2.0, 2.0))
    moved = LargeScaleJitter(30, allow_negative_crop=False, **settings_)
    free = LargeScaleJitter(30, **settings_)
    out, plain = (t(results_of(80, 100, seed, box.copy())) for t in (moved, free))
    assert len(out['gt_bboxes']) == 1
    assert out['img_shape'] == plain['img_shape'], 'the tokens do not depend on it'
    if len(plain['gt_bboxes']):
        assert (out['img'] == plain['img']).all()
    empty = moved(results_of(80, 100, seed, box[:0]))
    assert len(empty['gt_bboxes']) == 0 and empty['img_shape'] == plain['img_shape']


def test_some_crops_hold_no_box_unless_they_must():
    box = np.array([[20, 15, 35, 30]], dtype=np.float32)
    jitter = LargeScaleJitter(30, patch_size=4, scale_range=(2.0, 2.0))
    found = {len(jitter(results_of(80, 100, seed, box.copy()))['gt_bboxes']) for seed in range(20)}
    assert found == {0, 1}


def test_equal_seeds_give_equal_crops_and_others_others():
    jitter = LargeScaleJitter(60, patch_size=4)
    states = np.random.get_state()[1].copy()
    first, again, other = (jitter(results_of(90, 70, seed))['img'] for seed in (4, 4, 5))
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)
    assert (np.random.get_state()[1] == states).all(), 'nothing is drawn from global state'


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 80))
def test_a_cap_of_tokens_holds(seed, cap):
    jitter = LargeScaleJitter(60, patch_size=4)
    free = jitter(results_of(50, 75, seed))['img_shape']
    capped = jitter(results_of(50, 75, seed) | dict(token_cap=cap))['img_shape']
    assert capped[0] * capped[1] <= 16 * cap
    if free[0] * free[1] <= 16 * cap:
        assert capped == free


def test_nothing_that_belongs_to_the_picture_is_left_behind():
    results = results_of(80, 100, 1) | dict(depth=np.zeros((80, 100)), seg_fields=['depth'])
    out = LargeScaleJitter(30, patch_size=4, scale_range=(2.0, 2.0))(copy.deepcopy(results))
    assert out['depth'].shape == out['img_shape'] != (80, 100)


def test_mistakes_are_told():
    with pytest.raises(ValueError, match=r'scale_range=\(2.0, 0.1\)'):
        LargeScaleJitter(64, scale_range=(2.0, 0.1))
    with pytest.raises(ValueError, match='max_tokens'):
        LargeScaleJitter(0)
    results = results_of(50, 50)
    del results['sample_seed']
    with pytest.raises(ValueError, match='SeededSampler'):
        LargeScaleJitter(64)(results)
    with pytest.raises(BadSampleError, match='50 x 50'):
        LargeScaleJitter(64)(results_of(50, 50) | dict(height=50, width=70))
