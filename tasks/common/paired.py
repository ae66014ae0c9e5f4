"""Paired comparison of models: bootstrap intervals and a permutation test over groups of examples.

A statistic maps how often each example is counted, counts [B, N] of N examples in B resamples, to
the figures of one trained model, [B, F]; NaN where a resample has nothing to measure. All models
are measured on the same resamples, so that examples that are hard for all do not widen the interval
of their difference.

Examples of one group (a scene, a source image, a patient) depend on each other: a resample draws
whole groups, and the permutation test swaps whole groups. Seeds are drawn as well, the same ones
for all variants, so an interval covers both: other examples, and other trainings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.progress import track

Statistic = Callable[[np.ndarray], np.ndarray]
MIN_GROUPS = 10  # resamples of fewer are too similar for an interval
_CHUNK = 500  # resamples at once


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Difference on all examples, and the range that holds `level` of the resamples.

    NaN where nothing is measured, or too little for an interval.
    """

    estimate: float
    low: float
    high: float

    @classmethod
    def of(cls, estimate: float, samples_R: np.ndarray, *, level: float = 0.95) -> Interval:
        """Return the percentile interval; resamples with nothing to measure are left out."""
        samples_R = samples_R[~np.isnan(samples_R)]
        if not len(samples_R):
            return cls(estimate=estimate, low=math.nan, high=math.nan)
        # equal means can differ by rounding: a bound of 1e-15 is 0
        low, high = np.quantile(samples_R, [(1 - level) / 2, (1 + level) / 2]).round(9)
        return cls(estimate=estimate, low=float(low), high=float(high))

    @property
    def is_significant(self) -> bool:
        """Return whether the interval excludes 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f'{self:+.3f}'

    def __format__(self, spec: str) -> str:
        """Format the numbers, each by `spec`."""
        if math.isnan(self.estimate):
            return '-'
        estimate, low, high = (format(x, spec) for x in (self.estimate, self.low, self.high))
        return f'{estimate} (too few)' if math.isnan(self.low) else f'{estimate} [{low}, {high}]'


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Part of a test set, with the statistics of each arm and seed on it."""

    name: str
    content: str  # how much it is, as 'photos: 14, boxes: 16'
    num_groups: int  # that have an example to measure
    arms: Sequence[Sequence[Statistic]]  # [arm][seed]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Figures of all arms on a slice, and the differences of the first to each other one."""

    name: str
    content: str
    figures: np.ndarray  # [arm, seed, figure]
    ahead: Sequence[Sequence[Interval]]  # [other arm][figure], means over the seeds


def compare(
    slices: Sequence[Slice],
    *,
    groups: np.ndarray,
    num_resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Compared]:
    """Compare the first arm with each other one on every slice, all on the same resamples.

    `groups` [N] numbers the group of each example, as `group_numbers` does.
    """
    if not len(groups) or num_resamples < 1 or not 0 < level < 1:
        raise ValueError(
            'a bootstrap needs examples, resamples and a level between 0 and 1: got '
            f'{len(groups)} examples, {num_resamples} resamples, level {level}'
        )
    means: list[list[np.ndarray]] = [[] for _ in slices]
    num_seeds = len(slices[0].arms[0]) if slices else 1
    shares, random = np.full(num_seeds, 1 / num_seeds), np.random.default_rng([seed, 1])
    chunks = resamples(groups, num=num_resamples, seed=seed)
    for counts_BN in track(chunks, 'resampling', total=math.ceil(num_resamples / _CHUNK)):
        seeds_BS = random.multinomial(num_seeds, shares, size=len(counts_BN)) / num_seeds
        for part, found in zip(slices, means, strict=True):
            found.append(np.einsum('bs,basf->baf', seeds_BS, _measured(part, counts_BN)))
    return [
        _compared(part, np.concatenate(found), len(groups), level)
        for part, found in zip(slices, means, strict=True)
    ]


def resamples(groups: np.ndarray, *, num: int, seed: int) -> Iterator[np.ndarray]:
    """Yield chunks [B, N] of how often each example is counted, `num` resamples in all.

    Each draws as many groups as there are, with replacement; an example counts as often as its
    group. `groups` [N] numbers the group of each example from 0.
    """
    random = np.random.default_rng(seed)
    num_groups = int(groups.max()) + 1
    shares = np.full(num_groups, 1 / num_groups)
    for start in range(0, num, _CHUNK):
        counts_BG = random.multinomial(num_groups, shares, size=min(_CHUNK, num - start))
        yield counts_BG[:, groups]


def permutation_p_value(gains: np.ndarray, groups: np.ndarray) -> float:
    """Return the exact two-sided p-value of the hypothesis that two models are interchangeable.

    `gains` [N] are whole numbers, what the first model is ahead on each example (right or wrong:
    1, 0 or -1). Under the hypothesis the outcomes of both models can be swapped in any of the
    groups, which changes the sign of that group's sum. The distribution of the total over all
    2 ** groups swaps is computed by convolution, so nothing is sampled. With a group for each
    example this is McNemar's exact test.
    """
    sums_G = group_sums(gains, groups)
    chance = np.ones(1)  # of the totals -span to span
    for size in np.abs(sums_G[sums_G != 0]):
        chance = (np.pad(chance, (0, 2 * size)) + np.pad(chance, (2 * size, 0))) / 2
    span = len(chance) // 2
    extreme = np.abs(np.arange(-span, span + 1)) >= abs(int(sums_G.sum()))
    return min(1.0, float(chance[extreme].sum()))


def smallest_difference(gains: np.ndarray, groups: np.ndarray) -> float:
    """Return the mean gain that the paired test finds with power 0.8 at the level 0.05.

    `gains` [N] as for `permutation_p_value`. Connor (1987) for independent examples, on a share s
    of which the models differ: the root of ``d sqrt(n) = 1.96 sqrt(s) + 0.84 sqrt(s - d^2)``.
    Dependent examples are worth n / deff independent ones: the design effect `deff` is the variance
    of the total under swaps of groups over that under swaps of examples, and never below 1.
    """
    gains = np.asarray(gains, dtype=np.int64)
    apart = max(int(np.abs(gains).sum()), 1)
    deff = max(1.0, float((group_sums(gains, groups) ** 2).sum()) / apart)
    share, effective = apart / len(gains), len(gains) / deff
    low, high = 0.0, share
    for _ in range(60):
        d = (low + high) / 2
        needed = 1.96 * share**0.5 + 0.8416 * max(share - d * d, 0.0) ** 0.5
        low, high = (d, high) if d * effective**0.5 < needed else (low, d)
    return high


def group_sums(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Add up whole numbers [N] by group: [number of groups] int64."""
    sums = np.zeros(int(groups.max()) + 1, dtype=np.int64)
    np.add.at(sums, groups, np.asarray(values, dtype=np.int64))
    return sums


def thirds(values_N: np.ndarray) -> list[tuple[float, float]]:
    """Return three ranges (from, below) of about equally many values; equal ones stay together."""
    ordered = np.sort(values_N)
    cuts = [len(ordered) // 3, 2 * len(ordered) // 3]
    edges = [float((ordered[cut - 1] + ordered[cut]) / 2) if cut else -math.inf for cut in cuts]
    return list(zip([-math.inf, *edges], [*edges, math.inf], strict=True))


def _measured(part: Slice, counts_BN: np.ndarray) -> np.ndarray:
    """[B, A, S, F]."""
    arms = [np.stack([statistic(counts_BN) for statistic in arm], 1) for arm in part.arms]
    return np.stack(arms, 1)


def _compared(part: Slice, means_RAF: np.ndarray, num_examples: int, level: float) -> Compared:
    figures_ASF = _measured(part, np.ones((1, num_examples), dtype=int))[0]
    estimates_AF = figures_ASF.mean(1)
    if part.num_groups < MIN_GROUPS:
        means_RAF = means_RAF[:0]
    ahead = [
        [
            Interval.of(
                float(estimates_AF[0, f] - estimates_AF[other, f]),
                means_RAF[:, 0, f] - means_RAF[:, other, f],
                level=level,
            )
            for f in range(estimates_AF.shape[1])
        ]
        for other in range(1, len(estimates_AF))
    ]
    return Compared(name=part.name, content=part.content, figures=figures_ASF, ahead=ahead)
