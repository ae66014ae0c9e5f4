"""Frames and size of a clip from its token budget: properties over clips of all kinds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, kstest
from test_resize import assert_smart

from navit_backbone.tasks.common.clip_budget import ClipToTokenBudget, LoadFrames
from navit_backbone.tasks.common.clip_packing import pack_clips
from navit_backbone.tasks.common.clip_sample import ClipDataSample
from navit_backbone.tasks.common.sample import SampleSeed
from navit_backbone.tasks.common.token_dropping import TokenDropping
from navit_backbone.vit import patch_shapes

SHAPES = [16, (2, 16, 16), [(2, 16, 16), (4, 32, 8), (8, 8, 8)]]
clips = st.tuples(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 300), st.floats(1, 60))
SEED = SampleSeed(0, 1, 2)


def planner(**options):
    options = {'max_tokens': 1568, 'sampling': dict(num_frames=16), **options}
    return ClipToTokenBudget(options.pop('max_tokens'), **options)


def tokens_of(count, size, shapes):
    """Patch by patch, over all shapes."""
    return sum(-(-count // t) * (size[0] // h) * (size[1] // w) for t, h, w in shapes)


@given(clips, st.sampled_from(SHAPES), st.integers(64, 4000), st.integers(1, 20))
def test_no_clip_exceeds_its_budget(clip, patch_size, budget, min_cells):
    shape = ClipToTokenBudget(10**6, patch_size=patch_size)
    if min_cells * shape._cost(1) > budget:
        return
    plan = planner(max_tokens=budget, patch_size=patch_size, min_cells=min_cells)
    count, size = plan.plan(*clip)
    assert 1 <= count <= min(16, clip[2])
    assert not size[0] % plan.cell
    assert not size[1] % plan.cell
    tokens = tokens_of(count, size, plan.patch_shapes)
    assert plan.num_tokens(*clip) == tokens <= budget


@given(clips, st.integers(16, 400))
def test_a_frame_keeps_its_least_size_and_frames_give_way(clip, min_cells):
    plan = planner(max_tokens=1000, patch_size=(2, 16, 16), min_cells=min_cells)
    count, _ = plan.plan(*clip)
    wanted = min(16, clip[2])
    steps = -(-count // 2)
    assert 1000 // steps >= min_cells
    if count < wanted:
        assert 1000 // (-(-(count + 1) // 2)) < min_cells


@given(clips)
def test_the_aspect_is_kept_to_half_a_patch(clip):
    h, w, *_ = clip
    plan = planner()
    _, (rows, cols) = plan.plan(*clip)
    rows, cols = rows / 16, cols / 16
    scale = max(rows, cols) / max(h, w)
    assert min(rows, cols) <= max(1, min(h, w) * scale * (1 + 1 / max(rows, cols)) + 1)
    assert min(rows, cols) >= max(1, np.floor(min(h, w) * scale * (1 - 1 / max(rows, cols)))) - 1


@given(clips)
def test_native_clips_are_never_scaled_up_but_to_fill_a_cell(clip):
    h, w, *_ = clip
    _, (height, width) = planner(native=True).plan(*clip)
    fill = max(1, 16 / min(h, w))  # a frame thinner than a cell is scaled until it fills one
    assert height * width <= (h * fill + 16) * (w * fill + 16)


@settings(max_examples=300)
@given(clips, st.integers(1, 600), st.integers(600, 20000))
def test_the_time_steps_of_a_clip_share_univitars_limits(clip, min_tokens, max_tokens):
    """Its code divides both limits by the number of tubelets, in pixels."""
    plan = planner(max_tokens=max_tokens, min_tokens=min_tokens, patch_size=(2, 14, 14))
    count, size = plan.plan(*clip)
    assert count == min(16, clip[2])
    assert_smart(*clip[:2], 14, min_tokens, max_tokens, steps=-(-count // 2), found=size)


def test_univitars_limits_by_hand():
    plan = planner(max_tokens=16384, min_tokens=576, patch_size=(2, 14, 14))
    assert plan.plan(256, 340, 16, 25.0) == (16, (18 * 14, 24 * 14))  # 3456 tokens: as it is
    assert plan.plan(100, 100, 16, 25.0) == (16, (9 * 14, 9 * 14))  # 7 x 7 x 8 would be 392
    assert plan.plan(1080, 1920, 16, 25.0) == (16, (33 * 14, 60 * 14))  # 2048 a step
    assert plan.plan(100, 100, 1, 25.0) == (1, (24 * 14, 24 * 14))  # a picture


def test_squares_and_a_cap_for_replacements():
    assert planner(square=True).plan(100, 900, 16, 25.0).size == (144, 144)
    assert planner(square=True).plan(100, 900, 1, 25.0).size == (39 * 16, 39 * 16)
    capped = planner().plan(100, 100, 16, 25.0, token_cap=160)
    assert tokens_of(*capped, [(1, 16, 16)]) <= 160


@settings(deadline=None)  # packing takes as long as the machine lets it
@given(st.integers(0, 50), st.sampled_from(SHAPES))
def test_dropped_tokens_are_counted_as_they_are_dropped(index, patch_size):
    """What the sampler plans is what the packed batch then has."""
    seed = SampleSeed(3, 1, index)
    plan = planner(
        patch_size=patch_size, max_tokens=900, random=dict(low_tokens=200),
        drop=dict(mean=0.4, max_rate=0.8),
    )  # fmt: skip
    clip = (70 + index, 110, 5 + index, 25.0)
    packs = packed_with(plan, clip, seed, patch_size)
    assert sum(len(p.patches) for p in packs) == plan.num_tokens(*clip, sample_seed=seed)


def packed_with(plan, clip, seed, patch_size, **more):
    """The packs of a clip of (height, width, frames, fps), through the planner's transform."""
    results = dict(measured=clip, sample_seed=seed, reader=Frames(clip[:2], clip[2]), **more)
    results = plan.transform(results)
    count = results['frame_inds'].shape[1]
    sample = ClipDataSample(
        metainfo=dict(num_views=1, sample_seed=seed, kept_tokens=results['kept_tokens'])
    )
    shape = (1, 3, count, *results['img_shape'])
    item = dict(inputs=torch.zeros(shape, dtype=torch.uint8), data_samples=sample)
    return pack_clips([item], patch_size=patch_size)['inputs']


@given(st.integers(1, 99), st.integers(1, 1199))
def test_a_constant_rate_is_packed_as_planned(percent, tokens):
    """Every rate of 1 to 99 % and length of 1 to 1199 tokens, ties of rounding too."""
    plan = planner(max_tokens=1200, sampling=dict(num_frames=1), drop=dict(rate=percent / 100))
    clip, seed = (16, 16 * tokens, 1, 25.0), SampleSeed(0, 0, 0)
    kept = plan.num_tokens(*clip, sample_seed=seed)
    size = plan.plan(*clip, sample_seed=seed).size
    assert abs(kept - size[1] / 16 * (size[0] / 16) * (1 - percent / 100)) <= 0.5 or kept == 1
    (packed,) = packed_with(plan, clip, seed, 16)
    assert len(packed.patches) == kept


def test_the_tie_of_the_audit():
    """15 tokens at the rate 0.9: 1.5 is 1.4999... in float64, for both planner and pack."""
    plan = planner(max_tokens=15, sampling=dict(num_frames=1), drop=dict(rate=0.9))
    clip, seed = (16, 16 * 15, 1, 25.0), SampleSeed(0, 0, 0)
    assert plan.num_tokens(*clip, sample_seed=seed) == 1
    assert len(packed_with(plan, clip, seed, 16)[0].patches) == 1


def dropped(seeds, order, patch_size=16):
    """{index: [coords of each pack]} of clips of several sizes in one batch."""
    items = []
    for number in order:
        sample = ClipDataSample(
            metainfo=dict(num_views=1, sample_seed=seeds[number], kept_tokens=(7 + number, 2))
        )
        clip = torch.zeros(1, 3, 2 + number, 64, 96, dtype=torch.uint8)
        items.append(dict(inputs=clip, data_samples=sample))
    packs = pack_clips(items, patch_size=patch_size)['inputs']
    return {
        number: [p.coords[p.segment_ids == place].tolist() for p in packs]
        for place, number in enumerate(order)
    }


@pytest.mark.parametrize('patch_size', [16, [(1, 16, 16), (2, 32, 32)]])
def test_which_tokens_fall_does_not_depend_on_the_batch(patch_size):
    """A clip alone, behind another, in another order, and on another rank: the same tokens."""
    seeds = [SampleSeed(0, 3, index) for index in (5, 17, 2, 40)]
    whole = dropped(seeds, [0, 1, 2, 3], patch_size)
    other = dropped(seeds, [3, 1, 0, 2], patch_size)
    ranks = dropped(seeds, [2, 0], patch_size) | dropped(seeds, [3, 1], patch_size)
    for number in range(4):
        alone = dropped(seeds, [number], patch_size)[number]
        assert alone == whole[number] == other[number] == ranks[number]
        assert len(alone[0]) == 7 + number
    next_epoch = [seed._replace(epoch=4) for seed in seeds]
    assert dropped(next_epoch, [0], patch_size)[0] != whole[0]


@pytest.mark.parametrize(
    ('mean', 'max_rate', 'below'),
    [(0.10, 0.4, 0.60), (0.25, 0.4, 0.114), (0.35, 0.4, 0.013), (0.5, 0.9, 0.060)],
)
def test_rates_from_beta_are_those_of_the_paper(mean, max_rate, below):
    """Figure 15a of NaViT prints the share of rates below 0.1; its appendix gives the variance."""
    dropping = TokenDropping(mean=mean, max_rate=max_rate)
    share = mean / max_rate
    law = beta(7 / 3 * share, 7 / 3 * (1 - share))
    assert law.cdf(0.1 / max_rate) == pytest.approx(below, abs=0.006)
    assert law.var() == pytest.approx(0.3 * share * (1 - share))
    rates = np.array([dropping.draw(SampleSeed(0, 0, index)) for index in range(4000)])
    assert rates.min() >= 0 and rates.max() <= max_rate
    assert kstest(rates / max_rate, law.cdf).pvalue > 0.001


@given(st.integers(0, 400), st.sampled_from(SHAPES), st.booleans())
@settings(deadline=None)
def test_a_replacement_is_dropped_once(index, patch_size, constant):
    """It keeps no more tokens than were planned, and more than if the cap were dropped again."""
    drop = dict(rate=0.75) if constant else dict(mean=0.6, max_rate=0.9)
    plan = planner(patch_size=patch_size, max_tokens=900, drop=drop)
    seed = SampleSeed(3, 1, index)
    cap = plan.num_tokens(100 + index, 110, 9, 25.0, sample_seed=seed)
    packs = packed_with(plan, (300, 500, 30, 25.0), seed, patch_size, token_cap=cap)
    kept = sum(len(p.patches) for p in packs)
    rate = plan.drop.draw(seed)
    assert kept <= cap
    # sizes are whole cells for each of the time steps, so some room may be left, not half of it
    if cap >= 100:
        assert kept >= 0.6 * cap
    again = planner(patch_size=patch_size, max_tokens=900).plan(300, 500, 30, 25.0, token_cap=cap)
    if rate > 0.5 and cap >= 100:
        assert tokens_of(*again, patch_shapes(patch_size)) * (1 - rate) < kept


class Frames:
    """A reader whose frames are noise."""

    def __init__(self, size, count):
        self.size, self.num_frames, self.fps = size, count, 25.0
        self.times = np.arange(count) / 25
        rng = np.random.default_rng(0)
        self.frames = rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)

    def read(self, indices):
        return self.frames[np.asarray(indices)]


def results_of(size=(90, 160), count=30):
    reader = Frames(size, count)
    return dict(reader=reader, measured=(*size, count, 25.0), sample_seed=SEED)


def test_frames_are_loaded_at_the_planned_size():
    results = LoadFrames().transform(planner(patch_size=(2, 16, 16)).transform(results_of()))
    plan = planner(patch_size=(2, 16, 16)).plan(90, 160, 30, 25.0)
    assert results['imgs'].shape == (1, plan.num_frames, *plan.size, 3)
    assert results['num_views'] == 1
    assert 'reader' not in results


def test_frames_of_their_own_size_are_untouched():
    results = results_of((96, 160), 3)
    frames = results['reader'].frames
    plan = planner(native=True, test_mode=True, sampling=dict(num_frames=3))
    assert np.array_equal(LoadFrames().transform(plan.transform(results))['imgs'][0], frames)


def test_views_in_time_and_three_crops():
    plan = planner(
        max_tokens=64, native=True, test_mode=True, num_clips=2, crops=3,
        sampling=dict(kind='strided', num_frames=4, interval=2),
    )  # fmt: skip
    results = results_of((64, 160))
    frames = results['reader'].frames
    results = LoadFrames().transform(plan.transform(results))
    assert results['num_views'] == 6
    assert results['img_shape'] == (64, 64)
    assert results['imgs'].shape == (6, 4, 64, 64, 3)
    chosen = frames[results['frame_inds'][1]]
    for view, left in zip(results['imgs'][3:], (0, 48, 96), strict=True):
        assert np.array_equal(view, chosen[:, :, left : left + 64])


def test_draws_are_a_function_of_the_seed():
    plan = planner(random=dict(low_tokens=100))
    runs = [plan.transform(results_of())['frame_inds'] for _ in range(2)]
    assert np.array_equal(*runs)
    other = {**results_of(), 'sample_seed': SampleSeed(0, 1, 3)}
    assert not np.array_equal(plan.transform(other)['frame_inds'], runs[0])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(max_tokens=0), 'max_tokens=0 must be at least 1'),
        (dict(max_tokens=63.5), 'max_tokens=63.5 must be a whole number'),
        (dict(max_tokens=None), 'max_tokens=None must be a whole number'),
        (dict(drop=0.5), r'drop takes dict\(rate=0.5\).*got 0.5'),
        (dict(drop=dict(rate='0.5')), "rate='0.5' must be a number"),
        (dict(drop=dict(mean=[0.1], max_rate=1)), r'mean=\[0.1\] must be a number'),
        (dict(min_cells=9, max_cells=3), 'max_cells=3 is below min_cells=9'),
        (dict(max_tokens=8, min_cells=9), 'one frame of min_cells=9 has 9 tokens'),
        (dict(crops=2), 'crops=2; 1 is the whole frame, or 3'),
        (dict(num_clips=3), 'views of an evaluation: set test_mode=True'),
        (dict(native=True, square=True), 'exclude each other'),
        (dict(native=True, min_tokens=4), 'leave out native, which is min_tokens=1'),
        (dict(square=True, min_tokens=4), 'leave out square'),
        (dict(min_tokens=1569), 'min_tokens=1569 must lie between 1 and max_tokens=1568'),
        (dict(drop=dict(rate=0.5), test_mode=True), 'an evaluation drops nothing'),
        (dict(drop=dict(rate=1.0)), 'rate=1.0 must lie above 0 and below 1'),
        (dict(drop=dict(rate=0.5, alpha=1.0)), 'has no alpha and beta.*rate.*alpha'),
        (dict(drop=dict(mean=0.5)), r"dict\(mean=0.5, max_rate=0.9\).*got {'mean': 0.5}"),
        (dict(drop=dict(mean=0.5, max_rate=0.5)), 'mean=0.5 and max_rate=0.5 need 0 < mean < max'),
        (dict(drop=dict(mean=0.5, max_rate=1.1)), 'max_rate=1.1 need 0 < mean < max_rate <= 1'),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        planner(**options)


def test_without_a_seed_nothing_is_drawn():
    with pytest.raises(ValueError, match='sample_seed'):
        planner().transform({**results_of(), 'sample_seed': None})
