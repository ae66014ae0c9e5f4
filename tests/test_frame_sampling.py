"""Which frames are seen: properties over clips of any length and rate."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from navit_backbone.tasks.common.frame_sampling import FrameSampling

frames = st.integers(1, 400)
rates = st.floats(1, 120)
samplings = st.one_of(
    st.builds(lambda n: dict(num_frames=n), st.integers(1, 64)),
    st.builds(
        lambda n, i: dict(kind='strided', num_frames=n, interval=i),
        st.integers(1, 64), st.integers(1, 8),
    ),
    st.builds(
        lambda n, extra: dict(kind='dense', num_frames=n, window=n + extra),
        st.integers(1, 64), st.integers(0, 90),
    ),
    st.builds(
        lambda n, f: dict(kind='fps', num_frames=n, fps=f), st.integers(1, 64), st.floats(0.5, 60)
    ),
)  # fmt: skip
generators = st.one_of(st.none(), st.integers(0, 2**32 - 1).map(np.random.default_rng))


@given(samplings, frames, rates, st.integers(1, 5), generators)
def test_indices_are_frames_of_the_clip_in_order(fields, length, fps, num_clips, generator):
    sampling, times = FrameSampling.of(fields), np.arange(length) / fps
    count = sampling.count(length, fps)
    assert 1 <= count <= min(sampling.num_frames, length)
    chosen = sampling.indices(count, times, fps, num_clips=num_clips, generator=generator)
    assert chosen.shape == (num_clips, count)
    assert chosen.min() >= 0
    assert chosen.max() < length
    assert (np.diff(chosen, axis=1) >= 0).all()


@given(st.integers(1, 64), frames, generators)
def test_uniform_takes_one_frame_of_each_part(num, length, generator):
    sampling = FrameSampling(num_frames=num)
    count = sampling.count(length, 25.0)
    (chosen,) = sampling.indices(count, np.arange(length) / 25, 25.0, generator=generator)
    borders = np.arange(count + 1) * length / count
    assert (chosen >= np.floor(borders[:-1])).all()
    assert (chosen <= borders[1:]).all()
    assert len(set(chosen.tolist())) == count or generator is not None


@given(st.integers(1, 32), st.integers(1, 8), frames, generators)
def test_strided_frames_are_an_interval_apart(num, interval, length, generator):
    sampling = FrameSampling(kind='strided', num_frames=num, interval=interval)
    count = sampling.count(length, 25.0)
    (chosen,) = sampling.indices(count, np.arange(length) / 25, 25.0, generator=generator)
    assert (np.diff(chosen) == interval).all()
    assert count == min(num, -(-length // interval))


@given(st.integers(2, 32), st.integers(1, 12), st.integers(2, 300), st.integers(10, 60))
def test_fps_takes_what_is_shown_at_even_moments(num, fps, length, rate):
    """Checked against a search through all frames."""
    sampling, times = FrameSampling(kind='fps', num_frames=num, fps=fps), np.arange(length) / rate
    count = sampling.count(length, rate)
    (chosen,) = sampling.indices(count, times, rate)
    shown = min(fps, rate)  # a second; no frame twice
    start = 0.5 * max(times[-1] - (count - 1) / shown, 0)
    for i, index in enumerate(chosen.tolist()):
        moment = start + i / shown + 1e-6
        assert index == max(k for k, time in enumerate(times.tolist()) if time <= moment)


@given(st.integers(1, 64), st.floats(0.5, 200), frames, rates, st.integers(1, 4), generators)
def test_fps_takes_no_frame_twice(num, fps, length, rate, num_clips, generator):
    sampling, times = FrameSampling(kind='fps', num_frames=num, fps=fps), np.arange(length) / rate
    count = sampling.count(length, rate)
    chosen = sampling.indices(count, times, rate, num_clips=num_clips, generator=generator)
    assert (np.diff(chosen, axis=1) >= 1).all()
    assert chosen.min() >= 0
    assert chosen.max() < length


def test_fps_above_the_rate_of_the_clip_takes_every_frame_in_turn():
    sampling = FrameSampling(kind='fps', num_frames=16, fps=30)
    assert sampling.count(10, 10.0) == 10
    assert sampling.indices(10, np.arange(10) / 10, 10.0).tolist() == [list(range(10))]
    assert sampling.count(100, 15.0) == 16
    (middle,) = sampling.indices(16, np.arange(100) / 15, 15.0)
    assert middle.tolist() == list(range(42, 58))


@given(st.lists(st.sampled_from([0.02, 0.033, 0.2, 1.0, 30.0]), min_size=1, max_size=9),
       st.floats(0.1, 60), st.integers(1, 10))  # fmt: skip
def test_fps_by_uneven_times_is_nearest_to_what_is_shown_without_repetition(gaps, fps, num):
    """Compared with all choices of as many frames: none has a smaller largest distance."""
    times = np.array([0.0, *np.cumsum(gaps)])
    rate = min(fps, len(gaps) / times[-1])
    sampling = FrameSampling(kind='fps', num_frames=num, fps=fps)
    count = sampling.count(len(times), len(gaps) / times[-1])
    assert count == min(num, 1 + int(times[-1] * rate + 1e-6))
    (chosen,) = sampling.indices(count, times, len(gaps) / times[-1])
    moments = max(times[-1] - (count - 1) / rate, 0) / 2 + np.arange(count) / rate + 1e-6
    shown = [max(k for k, time in enumerate(times) if time <= moment) for moment in moments]
    choices = np.array(list(combinations(range(len(times)), count)))
    assert chosen.tolist() in choices.tolist()
    assert np.abs(chosen - shown).max() == np.abs(choices - shown).max(axis=1).min()


def test_uneven_times_count_as_they_are():
    """Half the frames in the first tenth of the clip: even moments see the rest as often."""
    times = np.concatenate([np.linspace(0, 1, 50, endpoint=False), np.linspace(1, 10, 50)])
    sampling = FrameSampling(kind='fps', num_frames=10, fps=1)
    (chosen,) = sampling.indices(10, times, 10.0)
    assert (chosen < 50).sum() == 1


def test_views_are_spread_over_the_clip():
    sampling = FrameSampling(kind='strided', num_frames=4, interval=2)
    chosen = sampling.indices(4, np.arange(100) / 25, 25.0, num_clips=3)
    assert chosen[:, 0].tolist() == [15, 47, 78]
    uniform = FrameSampling(num_frames=2).indices(2, np.arange(12) / 25, 25.0, num_clips=3)
    assert uniform.tolist() == [[1, 7], [3, 9], [5, 11]]


def test_training_draws_reach_all_of_the_clip():
    sampling = FrameSampling(kind='strided', num_frames=2, interval=3)
    generator = np.random.default_rng(0)
    starts = [
        sampling.indices(2, np.arange(10) / 25, 25.0, generator=generator)[0, 0] for _ in range(300)
    ]
    assert set(starts) == set(range(7))


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(num_frames=0), 'needs num_frames above 0, got 0'),
        (dict(kind='random', num_frames=3), "kind='random', choose from"),
        (dict(kind='strided', num_frames=3), "'strided' needs interval above 0, got None"),
        (dict(num_frames=3, fps=2.0), "fps=2.0 has no effect on 'uniform'"),
        (dict(kind='dense', num_frames=9, window=5), 'window=5 holds no num_frames=9'),
        (dict(frames=3), 'num_frames must be given'),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        FrameSampling.of(fields)
