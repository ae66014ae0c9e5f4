"""What a comparison of arms found: read from the evaluations, and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from navit_backbone.tasks.common.paired import Compared, compare
from navit_backbone.tools.arms_runs import FoldedRun, Run

Arms = Mapping[str, Sequence[Run | FoldedRun]]  # by the name of the arm, seed by seed


@dataclass(frozen=True, kw_only=True)
class Results:
    """Measured at one evaluation batch, the first, and on the whole at the others too."""

    arms: Arms
    evidence: Any  # the task's
    contents: Mapping[str, Sequence[dict[str, Any]]]  # as evaluated, by arm, seed by seed
    compared: Sequence[Compared]
    batches: Mapping[int, np.ndarray]  # [arm, figure] means over the seeds, by evaluation batch
    alone: np.ndarray  # [arm, example] the first figure on one alone, means over the seeds
    num_resamples: int

    @classmethod
    def of(
        cls, arms: Arms, task: ModuleType, *, batch_sizes: Sequence[int], num_resamples: int
    ) -> Results:
        """Read what was evaluated, and compare it."""
        found = {
            size: [[r.evaluated(size) for r in runs] for runs in arms.values()]
            for size in batch_sizes
        }
        evidence = task.Evidence([run for rows in found.values() for row in rows for run in row])
        first, number = found[batch_sizes[0]], evidence.num_examples
        every_1N = np.ones((1, number), dtype=int)
        alone_NAF = _means(evidence, first, np.eye(number, dtype=int))
        return cls(
            arms=arms,
            evidence=evidence,
            contents=dict(zip(arms, first, strict=True)),
            compared=compare(
                evidence.slices(first), groups=evidence.groups, num_resamples=num_resamples
            ),
            batches={size: _means(evidence, rows, every_1N)[0] for size, rows in found.items()},
            alone=alone_NAF[..., 0].T,
            num_resamples=num_resamples,
        )

    @property
    def names(self) -> list[str]:
        return list(self.arms)

    @property
    def figures(self) -> Sequence[str]:
        figures: Sequence[str] = self.evidence.figures
        return figures

    @property
    def form(self) -> str:
        """How figures are written, as a format."""
        return f'.{self.evidence.digits}f'

    def most_different(self, count: int) -> list[int]:
        """The examples on which another arm is farthest from the first."""
        gap_N = np.abs(self.alone[1:] - self.alone[0]).max(0)
        gap_N[np.isnan(gap_N)] = 0  # nothing to find there
        return [int(n) for n in np.argsort(-gap_N, kind='stable')[:count] if gap_N[n] > 0]


def _means(evidence: Any, rows: Sequence[Sequence[Any]], counts_BN: np.ndarray) -> np.ndarray:
    """[B, arm, figure] of all examples, means over the seeds."""
    arms = [np.mean([evidence.statistic(run)(counts_BN) for run in row], 0) for row in rows]
    return np.stack(arms, 1)
