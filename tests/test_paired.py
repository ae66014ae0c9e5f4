"""Paired intervals cover the truth as often as stated, for dependent examples too; exact tests."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, permutation_test

from navit_backbone.tasks.common.paired import (
    Interval,
    Slice,
    compare,
    permutation_p_value,
    resamples,
    smallest_difference,
    thirds,
)


def mean_of(*records_N):
    """The statistic of means over the examples, one figure for each record."""
    records_NF = np.stack(records_N, 1)
    return lambda counts_BN: counts_BN @ records_NF / counts_BN.sum(1, keepdims=True)


def one_slice(*arms, num_groups=99):
    return [Slice(name='all', content='', num_groups=num_groups, arms=arms)]


def test_resamples_draw_as_many_as_there_are():
    counts = np.concatenate(list(resamples(np.arange(13), num=1201, seed=0)))
    assert counts.shape == (1201, 13)
    assert (counts.sum(1) == 13).all()
    assert counts.mean() == 1
    assert abs(counts.var() - 12 / 13) < 0.05  # of a binomial: 13 draws, each with 1 / 13


def test_equal_arms_do_not_differ():
    random = np.random.default_rng(0)
    records = [random.normal(size=20) for _ in range(3)]
    arm = [mean_of(values, values**2) for values in records]
    (found,) = compare(one_slice(arm, arm), groups=np.arange(20), num_resamples=300)
    for interval in found.ahead[0]:
        assert (interval.estimate, interval.low, interval.high) == (0, 0, 0)
        assert not interval.is_significant


def test_what_makes_examples_hard_for_both_arms_does_not_blur_their_difference():
    random = np.random.default_rng(1)
    hard, noise = random.normal(0, 10, 50), random.normal(0, 0.1, 50)
    arms = [[mean_of(hard + 1 + noise)], [mean_of(hard)]]
    (found,) = compare(one_slice(*arms), groups=np.arange(50), num_resamples=500)
    (interval,) = found.ahead[0]
    assert abs(interval.estimate - 1 - noise.mean()) < 1e-12
    assert interval.low > 0.9 and interval.high < 1.1 and interval.is_significant


def test_interval_covers_examples_and_seeds():
    """The variance of a crossed design: gains = example effect + seed effect, both resampled."""
    random = np.random.default_rng(2)
    examples_N, seeds_S = random.normal(0, 1, 40), random.normal(0, 0.3, 3)
    ours = [mean_of(examples_N + effect) for effect in seeds_S]
    theirs = [mean_of(np.zeros(40))] * 3
    (found,) = compare(one_slice(ours, theirs), groups=np.arange(40), num_resamples=8000)
    (interval,) = found.ahead[0]
    assert abs(interval.estimate - examples_N.mean() - seeds_S.mean()) < 1e-12
    # the bootstrap of a mean: the population variance over the number, of each factor
    deviation = math.sqrt(examples_N.var() / 40 + seeds_S.var() / 3)
    assert (interval.high - interval.low) / (2 * 1.96 * deviation) == pytest.approx(1, abs=0.06)
    assert examples_N.var() / 40 < 0.8 * deviation**2  # the seeds' part is seen
    np.testing.assert_allclose(found.figures[0, :, 0], examples_N.mean() + seeds_S, atol=1e-12)


def test_intervals_cover_the_truth_as_often_as_they_say():
    random, covered = np.random.default_rng(3), 0
    for trial in range(400):
        base = random.exponential(size=60)
        ours, theirs = base + random.normal(0.3, 0.5, 60), base + random.normal(0, 0.5, 60)
        slices = one_slice([mean_of(ours)], [mean_of(theirs)])
        (found,) = compare(slices, groups=np.arange(60), num_resamples=400, seed=trial, level=0.9)
        covered += found.ahead[0][0].low <= 0.3 <= found.ahead[0][0].high
    assert 0.86 <= covered / 400 <= 0.94  # 0.9, give or take 2.7 standard deviations


def test_intervals_of_groups_cover_the_truth_and_those_of_single_examples_do_not():
    """60 examples in 20 groups whose gains correlate by 0.8 within a group."""
    random = np.random.default_rng(4)
    grouped, single = np.arange(60) // 3, np.arange(60)
    covered = {'grouped': 0, 'single': 0}
    for trial in range(300):
        gain = random.normal(0, 0.8**0.5, 20)[grouped] + random.normal(0, 0.2**0.5, 60)
        slices = one_slice([mean_of(gain + 0.3)], [mean_of(np.zeros(60))])
        for name, groups in (('grouped', grouped), ('single', single)):
            (found,) = compare(slices, groups=groups, num_resamples=400, seed=trial)
            covered[name] += found.ahead[0][0].low <= 0.3 <= found.ahead[0][0].high
    # the variance is 1 + 2 * 0.8 = 2.6 times that of independent examples: 1.96 / sqrt(2.6) = 1.22
    # standard deviations cover 0.78; give or take 2.9 standard deviations of 300 trials
    assert 0.90 <= covered['grouped'] / 300 <= 0.98
    assert 0.70 <= covered['single'] / 300 <= 0.85


def test_a_resample_counts_the_examples_of_a_group_alike():
    groups = np.array([0, 1, 0, 2, 1, 0])
    counts = np.concatenate(list(resamples(groups, num=700, seed=0)))
    assert (counts[:, [0]] == counts[:, [2, 5]]).all() and (counts[:, 1] == counts[:, 4]).all()
    assert (counts[:, [0, 1, 3]].sum(1) == 3).all()  # as many groups as there are
    assert len(np.unique(counts.sum(1))) > 1  # of unequal sizes


outcomes = st.lists(st.tuples(st.integers(-1, 1), st.integers(0, 6)), min_size=1, max_size=40)


@settings(deadline=None)
@given(outcomes)
def test_p_value_is_that_of_all_swaps_of_groups(pairs):
    gains, names = (np.array(column) for column in zip(*pairs, strict=True))
    groups = np.unique(names, return_inverse=True)[1]
    signs = np.array(list(itertools.product([1, -1], repeat=groups.max() + 1)))
    totals = np.abs(signs[:, groups] @ gains)
    expected = (totals >= abs(gains.sum())).mean()
    assert permutation_p_value(gains, groups) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 30))
def test_p_value_of_single_examples_is_the_sign_test(won, lost, equal):
    gains = np.repeat([1, -1, 0], [won, lost, equal + 1])
    expected = binomtest(won, won + lost).pvalue if won + lost else 1.0
    found = permutation_p_value(gains, np.arange(len(gains)))
    assert found == pytest.approx(expected, abs=1e-12)


def test_p_value_of_many_groups_is_that_of_scipy():
    random = np.random.default_rng(0)
    groups = random.integers(0, 12, 90)
    gains = (random.random((90, 2)) < [0.7, 0.5]).astype(int) @ [1, -1]
    sums = np.array([gains[groups == group].sum() for group in range(12)])
    found = permutation_test(
        (sums, np.zeros(12)), lambda x, y: (x - y).sum(), permutation_type='samples'
    )
    assert permutation_p_value(gains, groups) == pytest.approx(found.pvalue, abs=1e-12)


def test_p_values_of_dependent_examples_hold_their_level():
    """Groups are right or wrong as one, models are equal: p <= 0.05 in 5 % of trials at most."""
    random = np.random.default_rng(1)
    groups = np.repeat(np.arange(15), 4)
    small = {'grouped': 0, 'single': 0}
    for _ in range(400):
        gains = random.integers(-1, 2, 15)[groups]
        small['grouped'] += permutation_p_value(gains, groups) <= 0.05
        small['single'] += permutation_p_value(gains, np.arange(60)) <= 0.05
    assert small['grouped'] / 400 <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5
    assert small['single'] / 400 > 0.2


@pytest.mark.parametrize('size', [1, 2, 5])
def test_smallest_difference_is_found_in_eight_of_ten_samples(size):
    """Drawn samples of 200 groups, all examples of a group with one outcome."""
    num_groups, apart = 200, 60
    outcome_G = np.repeat([1, -1, 0], [apart // 2, apart // 2, num_groups - apart])
    groups = np.arange(num_groups).repeat(size)
    gap = smallest_difference(outcome_G[groups], groups)
    share = apart / num_groups
    draws = np.random.default_rng(0).multinomial(
        num_groups, [(share + gap) / 2, (share - gap) / 2, 1 - share], size=20_000
    )
    won, lost = draws[:, 0], draws[:, 1]
    statistic = (won - lost) ** 2 / np.maximum(won + lost, 1)  # of the sums of groups, standardised
    assert (statistic > 1.96**2).mean() == pytest.approx(0.8, abs=0.03)


def test_smallest_difference_of_groups_that_cancel_is_that_of_single_examples():
    gains, groups = np.array([1, -1] * 30 + [0] * 60), np.arange(120) // 2
    assert smallest_difference(gains, groups) == smallest_difference(gains, np.arange(120))


def test_few_examples_give_no_interval():
    arms = [[mean_of(np.arange(9.0) + 1)], [mean_of(np.arange(9.0))]]
    slices = one_slice(*arms, num_groups=9) + one_slice(*arms, num_groups=10)
    few, enough = compare(slices, groups=np.arange(9), num_resamples=50)
    assert str(few.ahead[0][0]) == '+1.000 (too few)' and not few.ahead[0][0].is_significant
    assert (
        str(enough.ahead[0][0]) == '+1.000 [+1.000, +1.000]' and enough.ahead[0][0].is_significant
    )


def test_a_bound_of_rounding_errors_is_zero():
    for low, high in ((3e-16, 1.0), (-1.0, -2e-15)):
        interval = Interval.of(0.5, np.array([low, high]), level=1.0)
        assert 0 in (interval.low, interval.high) and not interval.is_significant


def test_resamples_without_anything_to_measure_are_left_out():
    samples = np.array([math.nan, *np.linspace(0, 1, 101)])
    interval = Interval.of(0.5, samples, level=0.9)
    np.testing.assert_allclose([interval.low, interval.high], [0.05, 0.95])
    nothing = Interval.of(math.nan, samples[:1])
    assert str(nothing) == '-' and not nothing.is_significant
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
    'wrong', [dict(groups=np.arange(0)), dict(num_resamples=0), dict(level=1.0), dict(level=0.0)]
)
def test_what_is_no_bootstrap_is_refused(wrong):
    arguments = dict(groups=np.arange(3), num_resamples=10) | wrong
    with pytest.raises(ValueError, match='level between 0 and 1'):
        compare([], **arguments)
