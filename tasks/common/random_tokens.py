"""The random resolution of a sample (NaViT, figure 7), as a number of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

from .sample import SampleSeed


@dataclass(frozen=True, kw_only=True)
class RandomTokens:
    """A random budget per sample: NaViT's sampling of resolutions, counted in tokens.

    u is drawn from [-1, 1] and rescaled linearly to [low, high], either to the side (the square
    root of the tokens; better in the paper) or to the area (the tokens). The paper's sides of 64 to
    256 pixels at patch 16 are low_tokens=16, high_tokens=256. u is uniform, or normal with `mean`
    and `std`, cut off outside [-1, 1]; the default -0.5 and 1 did best in the paper.
    """

    low_tokens: int
    high_tokens: int
    by: Literal['side', 'area'] = 'side'
    distribution: Literal['uniform', 'truncated_normal'] = 'uniform'
    mean: float | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.low_tokens <= self.high_tokens:
            raise ValueError(
                f'random: low_tokens={self.low_tokens} must lie between 1 and '
                f'high_tokens={self.high_tokens}, which is max_tokens where not given: lower '
                'random.low_tokens with it'
            )
        for field, allowed in dict(
            by=('side', 'area'), distribution=('uniform', 'truncated_normal')
        ).items():
            if getattr(self, field) not in allowed:
                raise ValueError(f'random: {field}={getattr(self, field)!r}, choose from {allowed}')
        if self.distribution == 'uniform' and (self.mean, self.std) != (None, None):
            raise ValueError(
                'random: mean and std have no effect on a uniform draw: leave them out, or set '
                "distribution='truncated_normal'"
            )
        if abs(self.mean or 0) > 1 or (self.std is not None and self.std <= 0):
            raise ValueError(
                f'random: mean={self.mean} must lie in [-1, 1] and std={self.std} above 0; '
                '-1 is low_tokens, 1 is high_tokens'
            )

    @classmethod
    def of(cls, fields: Mapping[str, Any], max_tokens: int) -> RandomTokens:
        """From the fields in a config; `high_tokens` is `max_tokens` where not given."""
        unknown = set(fields) - set(cls.__dataclass_fields__)
        if unknown or 'low_tokens' not in fields:
            raise ValueError(
                f'random takes {list(cls.__dataclass_fields__)}, of which low_tokens must be '
                f'given: got {dict(fields)}'
            )
        tokens = cls(**{'high_tokens': max_tokens, **fields})
        if tokens.high_tokens > max_tokens:
            raise ValueError(
                f'random: high_tokens={tokens.high_tokens} is above max_tokens={max_tokens}'
            )
        return tokens

    def draw(self, sample_seed: SampleSeed) -> int:
        """The budget of the sample: a function of (seed, epoch, index) and nothing else."""
        u = self._rescaled(sample_seed.generator('token budget').random())
        low, high = float(self.low_tokens), float(self.high_tokens)
        if self.by == 'side':
            tokens = (low**0.5 + u * (high**0.5 - low**0.5)) ** 2
        else:
            tokens = low + u * (high - low)
        return min(max(int(tokens), self.low_tokens), self.high_tokens)

    def _rescaled(self, v: float) -> float:
        """`v`, uniform in [0, 1), as a draw of the distribution, rescaled to [0, 1]."""
        if self.distribution == 'uniform':
            return v
        normal = NormalDist(
            -0.5 if self.mean is None else self.mean, 1.0 if self.std is None else self.std
        )
        low, high = normal.cdf(-1), normal.cdf(1)
        share = max(low + v * (high - low), 5e-324)  # inv_cdf takes no 0
        return (min(max(normal.inv_cdf(share), -1), 1) + 1) / 2
