"""Paired intervals: they cover what they say, and equal arms do not differ."""

import math

import numpy as np
import pytest

from navit_backbone.tasks.common.paired import Interval, Slice, compare, resamples, thirds


def mean_of(*records_N):
    """The statistic of means over the examples, one figure for each record."""
    records_NF = np.stack(records_N, 1)
    return lambda counts_BN: counts_BN @ records_NF / counts_BN.sum(1, keepdims=True)


def one_slice(*arms, num_examples=99):
    return [Slice(name='all', content='', num_examples=num_examples, arms=arms)]


def test_resamples_draw_as_many_as_there_are():
    counts = np.concatenate(list(resamples(13, num=1201, seed=0)))
    assert counts.shape == (1201, 13)
    assert (counts.sum(1) == 13).all()
    assert counts.mean() == 1
    assert abs(counts.var() - 12 / 13) < 0.05  # of a binomial: 13 draws, each with 1 / 13


def test_equal_arms_do_not_differ():
    random = np.random.default_rng(0)
    records = [random.normal(size=20) for _ in range(3)]
    arm = [mean_of(values, values**2) for values in records]
    (found,) = compare(one_slice(arm, arm), num_examples=20, num_resamples=300)
    for interval in found.ahead[0]:
        assert (interval.estimate, interval.low, interval.high) == (0, 0, 0)
        assert not interval.is_told


def test_what_makes_examples_hard_for_both_arms_does_not_blur_their_difference():
    random = np.random.default_rng(1)
    hard, noise = random.normal(0, 10, 50), random.normal(0, 0.1, 50)
    arms = [[mean_of(hard + 1 + noise)], [mean_of(hard)]]
    (found,) = compare(one_slice(*arms), num_examples=50, num_resamples=500)
    (interval,) = found.ahead[0]
    assert abs(interval.estimate - 1 - noise.mean()) < 1e-12
    assert interval.low > 0.9 and interval.high < 1.1 and interval.is_told


def test_interval_is_that_of_the_mean_over_seeds():
    random = np.random.default_rng(2)
    arms = random.normal(size=(2, 3, 40))  # arm, seed, example
    statistics = [[mean_of(records) for records in arm] for arm in arms]
    (found,) = compare(one_slice(*statistics), num_examples=40, num_resamples=5000)
    (interval,) = found.ahead[0]
    difference_N = arms.mean(1)[0] - arms.mean(1)[1]
    assert abs(interval.estimate - difference_N.mean()) < 1e-12
    width = 2 * 1.96 * difference_N.std() / math.sqrt(40)  # the bootstrap of a mean is near normal
    assert abs((interval.high - interval.low) / width - 1) < 0.06
    np.testing.assert_allclose(found.figures[..., 0], arms.mean(2), atol=1e-12)


def test_intervals_cover_the_truth_as_often_as_they_say():
    random, covered = np.random.default_rng(3), 0
    for trial in range(400):
        base = random.exponential(size=60)
        ours, theirs = base + random.normal(0.3, 0.5, 60), base + random.normal(0, 0.5, 60)
        slices = one_slice([mean_of(ours)], [mean_of(theirs)])
        (found,) = compare(slices, num_examples=60, num_resamples=400, seed=trial, level=0.9)
        covered += found.ahead[0][0].low <= 0.3 <= found.ahead[0][0].high
    assert 0.86 <= covered / 400 <= 0.94  # 0.9, give or take 2.7 standard deviations


def test_few_examples_give_no_interval():
    arms = [[mean_of(np.arange(9.0) + 1)], [mean_of(np.arange(9.0))]]
    slices = one_slice(*arms, num_examples=9) + one_slice(*arms, num_examples=10)
    few, enough = compare(slices, num_examples=9, num_resamples=50)
    assert str(few.ahead[0][0]) == '+1.000 (too few)' and not few.ahead[0][0].is_told
    assert str(enough.ahead[0][0]) == '+1.000 [+1.000, +1.000]' and enough.ahead[0][0].is_told


def test_resamples_without_anything_to_measure_are_left_out():
    samples = np.array([math.nan, *np.linspace(0, 1, 101)])
    interval = Interval.of(0.5, samples, level=0.9)
    np.testing.assert_allclose([interval.low, interval.high], [0.05, 0.95])
    nothing = Interval.of(math.nan, samples[:1])
    assert str(nothing) == '-' and not nothing.is_told
    assert str(interval) == '+0.500 [+0.050, +0.950]'


@pytest.mark.parametrize(
    'values', [[5.0, 1, 3, 2, 4, 6], [1.0, 1, 1, 2], [1.0] * 5, [2.0, 1.0], []]
)
def test_thirds_hold_every_value_once(values):
    values = np.array(values)
    ranges = thirds(values)
    members = np.array([(low <= values) & (values < high) for low, high in ranges])
    assert (members.sum(0) == 1).all()
    if len(set(values)) == 6:
        assert (members.sum(1) == 2).all()


@pytest.mark.parametrize(
    'wrong', [dict(num_examples=0), dict(num_resamples=0), dict(level=1.0), dict(level=0.0)]
)
def test_what_is_no_bootstrap_is_refused(wrong):
    arguments = dict(num_examples=3, num_resamples=10) | wrong
    with pytest.raises(ValueError, match='level between 0 and 1'):
        compare([], **arguments)
