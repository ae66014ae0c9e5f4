"""ResizeToTokenBudget: the arithmetic by its properties, the transform by what it carries along."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mmengine.registry import TRANSFORMS

from navit_backbone.tasks.common.random_tokens import RandomTokens
from navit_backbone.tasks.common.resize import ResizeToTokenBudget, find_planner, token_budget_size
from navit_backbone.tasks.common.sample import BadSampleError, SampleSeed

sides = st.integers(1, 6000)
patches = st.sampled_from([1, 8, 14, 16, 32])
budgets = st.integers(1, 5000)


def grid_of(h: int, w: int, patch_size: int, **limits: int | None) -> tuple[int, int]:
    new_h, new_w = token_budget_size(h, w, patch_size=patch_size, **limits)
    assert new_h % patch_size == 0 and new_w % patch_size == 0
    return new_h // patch_size, new_w // patch_size


@st.composite
def limits(draw: st.DrawFn) -> tuple[int, int | None]:
    max_tokens = draw(budgets)
    return max_tokens, draw(st.none() | st.integers(1, max_tokens))


@given(sides, sides, patches, limits())
def test_keeps_the_budget_and_at_least_one_patch_a_side(h, w, patch_size, limit):
    rows, columns = grid_of(h, w, patch_size, max_tokens=limit[0], min_tokens=limit[1])
    assert rows >= 1 and columns >= 1
    assert rows * columns <= limit[0]


@given(sides, sides, patches, limits())
def test_a_transposed_picture_gets_the_transposed_size(h, w, patch_size, limit):
    """But for `smart_resize` with both sides below a patch: it rounds upright pictures twice."""
    assume(limit[1] is None or max(h, w) >= patch_size)
    size = token_budget_size(h, w, patch_size=patch_size, max_tokens=limit[0], min_tokens=limit[1])
    turned = token_budget_size(
        w, h, patch_size=patch_size, max_tokens=limit[0], min_tokens=limit[1]
    )
    assert turned == size[::-1]


@given(sides, sides, budgets)
def test_the_aspect_is_off_by_half_a_patch_at_most(h, w, max_tokens):
    """One scale rounds both sides to the grid; a side of one patch may be less."""
    grid = grid_of(h, w, 16, max_tokens=max_tokens)
    lows = [(g - 0.5) / side if g > 1 else 0.0 for g, side in zip(grid, (h, w), strict=True)]
    highs = [(g + 0.5) / side for g, side in zip(grid, (h, w), strict=True)]
    assert max(lows) <= min(highs) * (1 + 1e-12)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 400))
def test_it_is_the_largest_such_grid(h, w, max_tokens):
    """Against a walk through every scale at which a side gains a patch."""
    steps = sorted({(2 * g - 1) / (2 * side) for side in (h, w) for g in range(2, max_tokens + 2)})
    best = (1, 1)
    for scale in steps:
        nudged = scale * (1 + 1e-9)  # just past the step
        grid = tuple(max(1, math.floor(side * nudged + 0.5)) for side in (h, w))
        if math.prod(grid) <= max_tokens:
            best = max(best, grid, key=math.prod)
    assert math.prod(grid_of(h, w, 16, max_tokens=max_tokens)) == math.prod(best)


@given(sides, sides, budgets, st.integers(1, 300))
def test_both_sides_grow_with_the_budget(h, w, max_tokens, more):
    small = grid_of(h, w, 16, max_tokens=max_tokens)
    large = grid_of(h, w, 16, max_tokens=max_tokens + more)
    assert small[0] <= large[0] and small[1] <= large[1]


@given(sides, sides, limits(), st.integers(1, 300))
def test_tokens_grow_with_the_budget_in_native_mode_too(h, w, limit, more):
    max_tokens, min_tokens = limit[0], limit[1] or 1
    small = grid_of(h, w, 16, max_tokens=max_tokens, min_tokens=min_tokens)
    large = grid_of(h, w, 16, max_tokens=max_tokens + more, min_tokens=min_tokens)
    assert math.prod(small) <= math.prod(large)


@given(st.integers(32, 4000), st.integers(32, 4000), st.sampled_from([14, 16]))
def test_native_mode_keeps_a_size_within_the_limits(h, w, patch_size):
    native = max(1, round(h / patch_size)), max(1, round(w / patch_size))
    tokens = math.prod(native)
    assert grid_of(h, w, patch_size, max_tokens=tokens, min_tokens=tokens) == native


def smart_resize(h: int, w: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """UniViTAR's (and Qwen2-VL's), written out from its rules."""
    if h < factor:
        h, w = factor, math.floor(factor / h * w) + 1
    if w < factor:
        w, h = factor, math.floor(factor / w * h) + 1
    new_h, new_w = (round(side / factor) * factor for side in (h, w))
    if new_h * new_w > max_pixels:
        beta = math.sqrt(h * w / max_pixels)
        new_h, new_w = (math.floor(side / beta / factor) * factor for side in (h, w))
    elif new_h * new_w < min_pixels:
        beta = math.sqrt(min_pixels / (h * w))
        new_h, new_w = (math.ceil(side * beta / factor) * factor for side in (h, w))
    return new_h, new_w


def assert_smart(h, w, patch_size, min_tokens, max_tokens, steps, found=None):
    """The same size to the patch, where that has a patch a side and keeps max_tokens."""
    pixels = [tokens * patch_size**2 // steps for tokens in (min_tokens, max_tokens)]
    expected = smart_resize(h, w, patch_size, *pixels)
    limits = dict(patch_size=patch_size, max_tokens=max_tokens, steps=steps)
    if found is None:
        found = token_budget_size(h, w, min_tokens=min_tokens, **limits)
    if math.prod(expected) == 0 or math.prod(expected) > pixels[1]:
        expected = token_budget_size(h, w, **limits)
    assert found == expected


@settings(max_examples=1000)
@given(st.integers(1, 8000), st.integers(1, 8000), st.integers(1, 32))
def test_univitars_limits_give_univitars_sizes(h, w, steps):
    assert_smart(h, w, 14, 576, 16384, steps)


@settings(max_examples=1000)
@given(sides, sides, patches, limits(), st.integers(1, 40))
def test_native_mode_is_smart_resize_where_that_keeps_its_limits(h, w, patch_size, limit, steps):
    max_tokens = max(limit[0], steps)
    assert_smart(h, w, patch_size, min(limit[1] or 1, max_tokens), max_tokens, steps)


@pytest.mark.parametrize(
    ('size', 'steps', 'tokens'),
    [
        ((100, 100), 1, 24 * 24),  # up to 576
        ((480, 640), 1, 34 * 46),  # as it is
        ((480, 640), 16, 27 * 36),  # down to 16384 over 16 steps
        ((100, 100), 16, 7 * 7),  # of a long clip 36 a step will do
        ((3000, 4000), 1, 110 * 147),  # down to 16384
        ((3, 5), 1, 19 * 32),  # by 14 x 24, as is a side below a patch
        ((5, 3), 1, 31 * 20),  # by 22 x 14, which is not the same turned
    ],
)
def test_sizes_of_univitar_by_hand(size, steps, tokens):
    limits = dict(min_tokens=576, max_tokens=16384, steps=steps)
    assert math.prod(token_budget_size(*size, patch_size=14, **limits)) == tokens * 14**2


@pytest.mark.parametrize('size', [(1, 4000), (4000, 1), (1, 1), (3, 100_000)])
@pytest.mark.parametrize('min_tokens', [None, 64])
def test_the_slimmest_pictures_still_fit(size, min_tokens):
    rows, columns = grid_of(*size, 16, max_tokens=256, min_tokens=min_tokens)
    assert 1 <= rows * columns <= 256


@pytest.mark.parametrize(
    'arguments, words',
    [
        (dict(max_tokens=0), 'max_tokens=0'),
        (dict(max_tokens=16, patch_size=0), 'patch_size=0'),
        (dict(max_tokens=16, min_tokens=17), 'min_tokens=17.*max_tokens=16'),
        (dict(max_tokens=16, min_tokens=4, random=dict(low_tokens=4)), 'exclude each other'),
        (dict(max_tokens=16, random=dict(low_tokens=17)), 'low_tokens=17'),
        (dict(max_tokens=16, random=dict(low_tokens=4, high_tokens=32)), 'high_tokens=32'),
        (dict(max_tokens=16, random=dict(low_tokens=4, lower=2)), 'lower'),
        (dict(max_tokens=16, random=dict()), 'low_tokens must be given'),
        (dict(max_tokens=16, random=dict(low_tokens=4, by='width')), "by='width'"),
        (dict(max_tokens=16, random=dict(low_tokens=4, mean=0.0)), 'no effect'),
        (
            dict(
                max_tokens=16,
                random=dict(low_tokens=4, distribution='truncated_normal', mean=2.0),
            ),
            'mean=2.0',
        ),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        ResizeToTokenBudget(**arguments)


distributions = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        dict(
            distribution=st.just('truncated_normal'),
            mean=st.floats(-1, 1),
            std=st.floats(0.01, 10),
        )
    ),
)


@given(st.integers(1, 200), st.integers(0, 800), st.sampled_from(['side', 'area']), distributions)
def test_drawn_budgets_lie_in_their_range_and_depend_on_the_seed_alone(low, extra, by, fields):
    tokens = RandomTokens(low_tokens=low, high_tokens=low + extra, by=by, **fields)
    seed = SampleSeed(3, 1, low)
    np.random.seed(0)
    first = tokens.draw(seed)
    np.random.seed(1)
    assert tokens.draw(seed) == first
    assert low <= first <= low + extra


def test_draws_differ_between_epochs_and_follow_the_distribution():
    def draws(epoch: int, **fields: object) -> np.ndarray:
        tokens = RandomTokens(low_tokens=16, high_tokens=256, **fields)
        return np.array([tokens.draw(SampleSeed(0, epoch, i)) for i in range(3000)])

    uniform = draws(0)
    assert (uniform != draws(1)).mean() > 0.9
    # sides are uniform in [4, 16]: mean 10; areas in [16, 256]: mean 136
    assert abs(np.sqrt(uniform).mean() - 10) < 0.3
    assert abs(draws(0, by='area').mean() - 136) < 5
    # N(-0.5, 1) cut to [-1, 1] has mean -0.1455 (by numeric integration), so sides 9.13
    u = np.linspace(-1, 1, 20001)
    density = np.exp(-((u + 0.5) ** 2) / 2)
    side = 10 + 6 * (u * density).sum() / density.sum()
    normal = draws(0, distribution='truncated_normal')
    assert abs(np.sqrt(normal + 0.5).mean() - side) < 0.3


def results_of(h: int, w: int) -> dict:
    """A picture whose annotations are known at every pixel."""
    img = np.random.default_rng(h * w).integers(0, 256, (h, w, 3), dtype=np.uint8)
    boxes = np.array([[0, 0, w, h], [w / 4, h / 4, w / 2, h / 2]], dtype=np.float32)
    return dict(img=img, img_path='a.jpg', ori_shape=(h, w), gt_bboxes=boxes)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300))
def test_transform_writes_what_it_does(h, w, max_tokens):
    resize = TRANSFORMS.build(dict(type='ResizeToTokenBudget', max_tokens=max_tokens))
    results = resize(results_of(h, w) | dict(gt_seg_map=np.ones((h, w), dtype=np.uint8)))
    new_h, new_w = results['img_shape']
    assert type(results['img_shape']) is tuple
    assert results['img'].shape == (new_h, new_w, 3)
    assert results['gt_seg_map'].shape == (new_h, new_w)
    assert resize.num_tokens(h, w) * 16**2 == new_h * new_w
    scale = results['scale_factor']
    assert scale == (new_w / w, new_h / h) and results['scale'] == (new_w, new_h)
    np.testing.assert_allclose(results['gt_bboxes'][0], [0, 0, new_w, new_h], rtol=1e-6)
    np.testing.assert_allclose(results['gt_bboxes'][1, 2:], [new_w / 2, new_h / 2], rtol=1e-6)
    point = results['homography_matrix'] @ [w, h, 1]
    np.testing.assert_allclose(point, [new_w, new_h, 1], rtol=1e-5)


def test_boxes_and_masks_of_mmdet_resize_themselves():
    boxes = pytest.importorskip('mmdet.structures.bbox').HorizontalBoxes
    masks = pytest.importorskip('mmdet.structures.mask').BitmapMasks
    results = results_of(50, 70)
    results['gt_bboxes'] = boxes(torch.tensor([[-5.0, 10, 35, 90]]))
    results['gt_masks'] = masks(np.ones((1, 50, 70), dtype=np.uint8), 50, 70)
    results = ResizeToTokenBudget(12, patch_size=16)(results)
    assert results['img_shape'] == (48, 64)
    expected = torch.tensor([[0, 10 * 48 / 50, 32, 48]])  # clipped to the picture
    torch.testing.assert_close(results['gt_bboxes'].tensor, expected)
    assert results['gt_masks'].masks.shape == (1, 48, 64)
    results = results_of(50, 70)
    results['gt_bboxes'] = boxes(torch.tensor([[-5.0, 10, 35, 90]]))
    results = ResizeToTokenBudget(12, clip_object_border=False)(results)
    assert results['gt_bboxes'].tensor[0, 3] > 48


def test_labels_are_never_mixed():
    seg = np.random.default_rng(0).choice(np.array([0, 7, 255], dtype=np.uint8), (37, 91))
    for tokens in (3, 400):
        results = ResizeToTokenBudget(tokens)(results_of(37, 91) | dict(gt_seg_map=seg))
        assert set(np.unique(results['gt_seg_map'])) <= {0, 7, 255}


def test_a_cap_lowers_the_budget_of_one_sample():
    for resize in (ResizeToTokenBudget(100), ResizeToTokenBudget(100, min_tokens=50)):
        h, w = resize(results_of(200, 200) | dict(token_cap=30))['img_shape']
        assert h * w // 256 <= 30
        assert resize(results_of(200, 200) | dict(token_cap=1000))['img_shape'] == (160, 160)


def test_random_size_follows_the_sample_seed():
    resize = ResizeToTokenBudget(256, random=dict(low_tokens=16))
    seeds = [SampleSeed(0, 2, i) for i in range(20)]
    shapes = [resize(results_of(90, 120) | dict(sample_seed=s))['img_shape'] for s in seeds]
    assert shapes == [resize.target_size(90, 120, sample_seed=s) for s in seeds]
    assert len(set(shapes)) > 5
    with pytest.raises(ValueError, match='SeededSampler'):
        resize(results_of(90, 120))


@pytest.mark.parametrize('height, width, words', [(70, 50, 'EXIF'), (50, 71, '50 x 71')])
def test_a_size_that_contradicts_the_annotation_is_refused_by_name(height, width, words):
    with pytest.raises(BadSampleError, match=rf'a\.jpg.*50 x 70.*{words}'):
        ResizeToTokenBudget(64)(results_of(50, 70) | dict(height=height, width=width))


def test_the_planner_of_a_pipeline_is_found_and_two_are_refused():
    resize = ResizeToTokenBudget(64)
    assert find_planner([str.lower, resize]) is resize
    assert find_planner([str.lower]) is None
    with pytest.raises(ValueError, match='ResizeToTokenBudget and ResizeToTokenBudget'):
        find_planner([resize, str.lower, ResizeToTokenBudget(9)])
