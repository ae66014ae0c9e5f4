"""Share of its tokens that an example loses in training (NaViT, section 2.2 and appendix B.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .sample import SampleSeed

_CONCENTRATION = 1 / 0.3 - 1  # a + b of a Beta distribution with variance 0.3 u (1 - u)


@dataclass(frozen=True, kw_only=True)
class TokenDropping:
    """Drop rate of an example, drawn once: constant, or from the paper's Beta distribution.

    ``dict(rate=0.5)`` drops the same share of every example. ``dict(mean=0.5, max_rate=0.9)`` draws
    the rate as max_rate * u, where u follows a Beta distribution of mean m = mean / max_rate and
    variance 0.3 m (1 - m).
    """

    rate: float | None = None
    mean: float | None = None
    max_rate: float | None = None

    def __post_init__(self) -> None:
        for name in ('rate', 'mean', 'max_rate'):
            value = getattr(self, name)
            if value is not None and not isinstance(value, (int, float)):
                raise ValueError(f'drop: {name}={value!r} must be a number, as 0.5')
        if self.rate is not None:
            if not 0 < self.rate < 1:
                raise ValueError(f'drop: rate={self.rate} must lie above 0 and below 1')
        elif self.mean is None or self.max_rate is None or not 0 < self.mean < self.max_rate <= 1:
            raise ValueError(
                f'drop: mean={self.mean} and max_rate={self.max_rate} need 0 < mean < max_rate <= 1'
            )

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> TokenDropping:
        """Build from the fields in a config."""
        named = set(fields) if isinstance(fields, Mapping) else set()
        if named not in ({'rate'}, {'mean', 'max_rate'}):
            raise ValueError(
                'drop takes dict(rate=0.5), or dict(mean=0.5, max_rate=0.9) for rates from a Beta '
                f'distribution (it has no alpha and beta): got {fields!r}'
            )
        return cls(**fields)

    @property
    def beta(self) -> tuple[float, float]:
        """Return the parameters (a, b) of the distribution of rate / max_rate."""
        assert self.mean is not None and self.max_rate is not None, 'the rate is constant'
        share = self.mean / self.max_rate
        return _CONCENTRATION * share, _CONCENTRATION * (1 - share)

    def draw(self, sample_seed: SampleSeed) -> float:
        """Draw the rate of a sample: a function of (seed, epoch, index) and nothing else."""
        if self.max_rate is None:
            assert self.rate is not None, 'one of the two forms is given'
            return self.rate
        return self.max_rate * float(sample_seed.generator('drop rate').beta(*self.beta))


def kept_tokens(tokens: int, rate: float) -> int:
    """Return how many of `tokens` stay at a drop `rate`: the nearest whole number, at least 1."""
    return max(round(tokens * (1 - rate)), 1)
