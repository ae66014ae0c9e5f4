"""What the difference of two models is worth: the paired bootstrap over the examples of a test.

A statistic tells the figures of one trained model from how often each example is counted: counts
[B, N] of N examples in B resamples -> figures [B, F], NaN where a resample has nothing to measure.
All arms meet the same resamples, so that what makes an example easy or hard for all of them does
not blur their difference. The arms are compared as they were trained: the interval says how far
the result depends on the examples, the figures of single seeds how far on the training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.progress import track

Statistic = Callable[[np.ndarray], np.ndarray]
MIN_EXAMPLES = 10  # resamples of fewer are too much alike for an interval
_CHUNK = 500  # resamples at once


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A difference on the examples as they are, and where `level` of the resamples have it.

    NaN where nothing is measured, or too little to say how far it is to be trusted.
    """

    estimate: float
    low: float
    high: float

    @classmethod
    def of(cls, estimate: float, samples_R: np.ndarray, *, level: float = 0.95) -> Interval:
        """The percentile interval; resamples without anything to measure are left out."""
        samples_R = samples_R[~np.isnan(samples_R)]
        if not len(samples_R):
            return cls(estimate=estimate, low=math.nan, high=math.nan)
        low, high = np.quantile(samples_R, [(1 - level) / 2, (1 + level) / 2])
        return cls(estimate=estimate, low=float(low), high=float(high))

    @property
    def is_told(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f'{self:+.3f}'

    def __format__(self, spec: str) -> str:
        """Its numbers, each by `spec`."""
        if math.isnan(self.estimate):
            return '-'
        estimate, low, high = (format(x, spec) for x in (self.estimate, self.low, self.high))
        return f'{estimate} (too few)' if math.isnan(self.low) else f'{estimate} [{low}, {high}]'


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A part of the test, and what measures each arm on it, seed by seed."""

    name: str
    content: str  # how much it is, as 'photos: 14, boxes: 16'
    num_examples: int  # that have something to find
    arms: Sequence[Sequence[Statistic]]  # [arm][seed]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The figures of all arms on a slice, and what the first is ahead of each other one."""

    name: str
    content: str
    figures: np.ndarray  # [arm, seed, figure]
    ahead: Sequence[Sequence[Interval]]  # [other arm][figure], means over the seeds


def compare(
    slices: Sequence[Slice],
    *,
    num_examples: int,
    num_resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Compared]:
    """Every slice with its intervals; all slices and arms meet the same resamples."""
    if min(num_examples, num_resamples) < 1 or not 0 < level < 1:
        raise ValueError(
            'a bootstrap needs examples, resamples and a level between 0 and 1: got '
            f'{num_examples} examples, {num_resamples} resamples, level {level}'
        )
    means: list[list[np.ndarray]] = [[] for _ in slices]
    chunks = resamples(num_examples, num=num_resamples, seed=seed)
    total = math.ceil(num_resamples / _CHUNK)
    for counts_BN in track(chunks, 'resampling', total=total):
        for part, found in zip(slices, means, strict=True):
            found.append(_measured(part, counts_BN).mean(2))
    return [
        _compared(part, np.concatenate(found), num_examples, level)
        for part, found in zip(slices, means, strict=True)
    ]


def resamples(num_examples: int, *, num: int, seed: int) -> Iterator[np.ndarray]:
    """How often each example is drawn when as many as there are are drawn with replacement."""
    random = np.random.default_rng(seed)
    shares = np.full(num_examples, 1 / num_examples)
    for start in range(0, num, _CHUNK):
        yield random.multinomial(num_examples, shares, size=min(_CHUNK, num - start))


def thirds(values_N: np.ndarray) -> list[tuple[float, float]]:
    """Three ranges (from, below), of about equally many values each; equal values stay together."""
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
    if part.num_examples < MIN_EXAMPLES:
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
