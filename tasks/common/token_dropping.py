"""The share of its tokens that an example loses in training (NaViT, section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .sample import SampleSeed


@dataclass(frozen=True, kw_only=True)
class TokenDropping:
    """The drop rate of an example, drawn once: constant, or from a Beta distribution.

    `rate` alone is the constant. With `alpha` and `beta`, the share of `rate` that is dropped comes
    from Beta(alpha, beta), so that `rate` is the most (the paper draws so with rate 1).
    """

    rate: float
    alpha: float | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f'drop: rate={self.rate} must lie above 0 and below 1')
        shape = (self.alpha, self.beta)
        if shape != (None, None) and not all(value is not None and value > 0 for value in shape):
            raise ValueError(
                f'drop: alpha={self.alpha} and beta={self.beta} come together, above 0'
            )

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> TokenDropping:
        """From the fields in a config."""
        if set(fields) - set(cls.__dataclass_fields__) or 'rate' not in fields:
            raise ValueError(
                f'drop takes {list(cls.__dataclass_fields__)}, of which rate must be given: got '
                f'{dict(fields)}'
            )
        return cls(**fields)

    def draw(self, sample_seed: SampleSeed) -> float:
        """The rate of a sample: a function of (seed, epoch, index) and nothing else."""
        if self.alpha is None or self.beta is None:
            return self.rate
        return self.rate * float(sample_seed.generator('drop rate').beta(self.alpha, self.beta))


def kept_tokens(tokens: int, rate: float) -> int:
    """How many of `tokens` stay at a drop `rate`, as `drop_tokens` counts them."""
    return max(round(tokens * (1 - rate)), 1)
