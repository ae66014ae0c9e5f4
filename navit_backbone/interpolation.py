"""What `F.interpolate` does along one side of a map, as matrices and neighbours, in float64.

Interpolation is separable, so these serve maps of any size, and tables of positions above all.
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor

Interpolation = Literal['bilinear', 'bicubic']


def interpolation_rows(
    size_in: int,
    size_out: int,
    interpolation: Interpolation,
    antialias: bool,
    offset: float = 0.0,
) -> Tensor:
    """The matrix [size_out, size_in] of one-dimensional interpolation, in float64 on the host.

    What `F.interpolate` does along one side (half-pixel centres), as plain arithmetic; with an
    `offset` what it does with ``scale_factor=(size_out + offset) / size_in``.
    """
    if torch.compiler.is_compiling():  # the tensors of a trace must not outlive it in the cache
        return _rows(size_in, size_out, interpolation, antialias, offset)
    return _cached_rows(size_in, size_out, interpolation, antialias, offset)


def _rows(
    size_in: int, size_out: int, interpolation: Interpolation, antialias: bool, offset: float
) -> Tensor:
    if antialias:
        return _antialiased_rows(size_in, size_out, interpolation)
    return _plain_rows(size_in, size_out, interpolation, offset)


_cached_rows = functools.lru_cache(maxsize=4096)(_rows)


def _cubic(distance: Tensor, a: float) -> Tensor:
    x = distance.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _antialiased_rows(size_in: int, size_out: int, interpolation: Interpolation) -> Tensor:
    """A filter as wide as the step between outputs, cut at the border and normalised."""
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    centres = (torch.arange(size_out, dtype=torch.float64)[:, None] + 0.5) * scale
    places = torch.arange(size_in, dtype=torch.float64) + 0.5
    distance = (places - centres) / stretch
    if interpolation == 'bilinear':
        rows = (1 - distance.abs()).clamp(min=0)
    else:
        rows = _cubic(distance, -0.5)
    return rows / rows.sum(1, keepdim=True)


def _plain_rows(size_in: int, size_out: int, interpolation: Interpolation, offset: float) -> Tensor:
    places, weights = interpolation_taps(size_in, size_out, interpolation, offset)
    picked = places[:, :, None] == torch.arange(size_in)
    return (weights[:, :, None] * picked).sum(1)


def interpolation_taps(
    size_in: int, size_out: int, interpolation: Interpolation, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The two or four neighbours of each source position, and their weights: [size_out, 2 or 4].

    Without antialias; beyond the border the last counts again.
    """
    if torch.compiler.is_compiling():
        return _taps(size_in, size_out, interpolation, offset)
    return _cached_taps(size_in, size_out, interpolation, offset)


def _taps(
    size_in: int, size_out: int, interpolation: Interpolation, offset: float
) -> tuple[Tensor, Tensor]:
    scale = size_in / (size_out + offset)
    source = (torch.arange(size_out, dtype=torch.float64) + 0.5) * scale - 0.5
    taps = torch.tensor([0, 1]) if interpolation == 'bilinear' else torch.tensor([-1, 0, 1, 2])
    if interpolation == 'bilinear':
        source = source.clamp(min=0)
    neighbours = source.floor().long()[:, None] + taps
    distance = source[:, None] - neighbours
    weights = 1 - distance.abs() if interpolation == 'bilinear' else _cubic(distance, -0.75)
    return neighbours.clamp(0, size_in - 1), weights


_cached_taps = functools.lru_cache(maxsize=4096)(_taps)
