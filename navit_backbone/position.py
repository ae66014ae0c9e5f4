"""Where a patch stands: every kind of position of the NaViT paper, and 2-D RoPE.

All kinds are computed from per-token coordinates, so crops, dropped tokens, shuffles and clips of
any length work. Additive kinds give a vector per token, added after the patch embedding (NaViT,
section 2.1 and table 3); RoPE turns the queries and keys of every block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .packing import PackedPatches

Interpolation = Literal['bilinear', 'bicubic']


def build_position(spec: str | Mapping[str, Any] | None, dim: int) -> nn.Module | None:
    """The additive position of a `spec`: a kind, or a dict with `kind` and its arguments."""
    if spec is None:
        return None
    options = {'kind': spec} if isinstance(spec, str) else dict(spec)
    kind = options.pop('kind', None)
    if kind not in POSITIONS:
        raise ValueError(f'position kind {kind!r} is not one of {sorted(POSITIONS)} or None')
    try:
        return POSITIONS[kind](dim, **options)
    except TypeError as error:
        raise ValueError(f'position {kind!r}: {error}; given {options}') from error


def build_temporal(spec: Mapping[str, Any] | None, dim: int) -> TemporalPosition | None:
    """The temporal position of a `spec`: its arguments in a dict, or None."""
    if spec is None:
        return None
    try:
        return TemporalPosition(dim, **spec)
    except TypeError as error:
        raise ValueError(
            f'temporal_position={dict(spec)}: {error}; it takes max_size and fractional'
        ) from error


def build_rotary(spec: Mapping[str, Any] | None, head_width: int) -> RotaryPosition | None:
    """The rotary position of `arch.rope`: its arguments in a dict, or None."""
    if spec is None:
        return None
    try:
        return RotaryPosition(head_width, **spec)
    except TypeError as error:
        raise ValueError(f'arch.rope={dict(spec)}: {error}; it takes theta') from error


def axis_coordinates(packed: PackedPatches, axis: int, *, fractional: bool) -> Tensor:
    """The coordinate of every token along an axis (0 time, 1 row, 2 column): [T].

    In patches, or as a fraction ``p / side`` of the picture's own side (NaViT, section 2.1).
    """
    coords = packed.coords[:, axis]
    if not fractional:
        return coords
    sides = packed.grids[:, axis].to(coords.device, non_blocking=True)[packed.segment_ids]
    return coords.double() / sides


def check_sides(packed: PackedPatches, max_size: int, what: str) -> None:
    """Raise ValueError where a grid has a longer side than a table of positions."""
    longest = packed.shared_grid or (0, *packed.grids[:, 1:].amax(0).tolist())
    if max(longest[1:]) > max_size:
        raise ValueError(
            f'a picture of {longest[1]} x {longest[2]} patches (largest height and width of the '
            f'pack) is beyond the {what} positions of max_size={max_size}: lower max_tokens of '
            f'the resize, raise max_size, or use a kind without a limit (sinusoidal, fourier)'
        )


class FactorisedPosition(nn.Module):
    """A learned vector per row and one per column, combined (NaViT, section 2.1).

    `combine`: 'sum' (the paper's default), 'stack' (half the width each) or 'product'. With
    `fractional` the tables are read at ``p / side * max_size`` by linear interpolation, so that a
    picture of `max_size` patches a side reads the same entries as the absolute kind.
    """

    def __init__(
        self,
        dim: int,
        *,
        combine: Literal['sum', 'stack', 'product'] = 'sum',
        fractional: bool = False,
        max_size: int = 128,
    ) -> None:
        super().__init__()
        if combine not in ('sum', 'stack', 'product'):
            raise ValueError(f"combine={combine!r} is not one of 'sum', 'stack', 'product'")
        if combine == 'stack' and dim % 2:
            raise ValueError(f"combine='stack' needs an even width, got {dim}")
        self.combine, self.fractional, self.max_size = combine, fractional, max_size
        width = dim // 2 if combine == 'stack' else dim
        self.y = nn.Parameter(torch.empty(max_size, width))
        self.x = nn.Parameter(torch.empty(max_size, width))
        std = 0.02**0.5 if combine == 'product' else 0.02  # so that what is added has std 0.02
        nn.init.trunc_normal_(self.y, std=std)
        nn.init.trunc_normal_(self.x, std=std)

    def forward(self, packed: PackedPatches) -> Tensor:
        if not self.fractional:
            check_sides(packed, self.max_size, 'factorised')
        y_TD = self._read(self.y, axis_coordinates(packed, 1, fractional=self.fractional))
        x_TD = self._read(self.x, axis_coordinates(packed, 2, fractional=self.fractional))
        if self.combine == 'stack':
            return torch.cat([y_TD, x_TD], 1)
        return y_TD + x_TD if self.combine == 'sum' else y_TD * x_TD

    def _read(self, table: Tensor, coords: Tensor) -> Tensor:
        return read_linearly(table, coords) if self.fractional else table[coords]


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Inside, autocast does not narrow products."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def read_linearly(table: Tensor, fractions: Tensor) -> Tensor:
    """Rows of `table` [L, D] at ``fraction * L``, interpolated linearly; the last is held."""
    last = len(table) - 1
    place = (fractions * len(table)).clamp(max=last)  # in float64: bfloat16 cannot count
    below = place.floor().long()
    share = (place - below)[:, None].to(table.dtype)
    return torch.lerp(table[below], table[(below + 1).clamp(max=last)], share)


class Learned2DPosition(nn.Module):
    """A learned vector per cell of a `max_size` x `max_size` table (Pix2Struct's, in table 3)."""

    def __init__(self, dim: int, *, max_size: int = 64) -> None:
        super().__init__()
        self.max_size = max_size
        self.table = nn.Parameter(torch.empty(max_size, max_size, dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, packed: PackedPatches) -> Tensor:
        check_sides(packed, self.max_size, 'learned 2-D')
        return self.table[packed.coords[:, 1], packed.coords[:, 2]]


class FourierPosition(nn.Module):
    """One learned linear layer of (y, x), then sine and cosine, stacked (NaViT, section 2.1).

    The paper leaves the start open: here the frequencies are normal with a standard deviation of
    one turn per picture side, of the picture itself or, for absolute coordinates, of `max_size`.
    """

    def __init__(self, dim: int, *, fractional: bool = False, max_size: int = 128) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f'fourier positions need an even width, got {dim}')
        self.fractional = fractional
        self.frequencies = nn.Linear(2, dim // 2, bias=False)
        side = 1 if fractional else max_size
        nn.init.normal_(self.frequencies.weight, std=2 * math.pi / side)

    def forward(self, packed: PackedPatches) -> Tensor:
        axes = [axis_coordinates(packed, axis, fractional=self.fractional) for axis in (1, 2)]
        weight = self.frequencies.weight
        with full_precision(weight.device):  # bf16 cannot count patches
            angles = self.frequencies(torch.stack(axes, 1).to(weight.dtype))
        return torch.cat([angles.sin(), angles.cos()], 1)


class SinusoidalPosition(nn.Module):
    """Fixed sines and cosines of the row and of the column, stacked (Vaswani et al. per axis).

    With `fractional`, a table of `max_size` entries is read as in `FactorisedPosition`.
    """

    def __init__(self, dim: int, *, fractional: bool = False, max_size: int = 128) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f'sinusoidal positions need a width divisible by 4, got {dim}')
        self.dim, self.fractional, self.max_size = dim, fractional, max_size

    def forward(self, packed: PackedPatches) -> Tensor:
        return torch.cat([self._axis(packed, axis) for axis in (1, 2)], 1)

    def _axis(self, packed: PackedPatches, axis: int) -> Tensor:
        coords = axis_coordinates(packed, axis, fractional=self.fractional)
        if self.fractional:
            places = torch.arange(self.max_size, device=coords.device)
            return read_linearly(self._waves(places), coords)
        return self._waves(coords)

    def _waves(self, places: Tensor) -> Tensor:
        angles = places[:, None] * frequencies(self.dim // 4, 10000.0, places.device)
        return torch.cat([angles.sin(), angles.cos()], 1)


def frequencies(num: int, theta: float, device: torch.device) -> Tensor:
    """The geometric series ``theta ** (-i / num)`` in float64: [num].

    Made anew where it is needed, because a buffer would be rounded by ``model.bfloat16()``.
    """
    return theta ** -(torch.arange(num, dtype=torch.float64, device=device) / num)


class Learned1DPosition(nn.Module):
    """ViT's learned sequence on its training `grid`, interpolated to the grid of every picture.

    The rule is that of the weights' origin: `interpolation` with or without `antialias`, aligned
    by the outer edges of the grids (timm: bicubic with antialias; the first DeiT and Hugging Face:
    bicubic without). Interpolation is separable, so one matrix per side length serves all pictures
    at once and nothing is approximated.
    """

    def __init__(
        self,
        dim: int,
        *,
        grid: tuple[int, int] = (14, 14),
        interpolation: Interpolation = 'bicubic',
        antialias: bool = True,
    ) -> None:
        super().__init__()
        if interpolation not in ('bilinear', 'bicubic'):
            raise ValueError(f"interpolation={interpolation!r} is not 'bilinear' or 'bicubic'")
        self.interpolation: Interpolation = interpolation
        self.antialias = antialias
        self.table = nn.Parameter(torch.empty(*grid, dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, packed: PackedPatches) -> Tensor:
        with full_precision(self.table.device):
            if packed.shared_grid is not None:
                return self._one_map(packed)
            y_TG, x_TG = self._rows_of_tokens(packed, 1), self._rows_of_tokens(packed, 2)
            weights = y_TG[:, :, None] * x_TG[:, None, :]
            return weights.flatten(1) @ self.table.flatten(0, 1)

    def _rows(self, axis: int, sides: list[int]) -> Tensor:
        """The interpolation rows of all `sides`, one below the other: [sum(sides), G]."""
        rule = (self.interpolation, self.antialias)
        rows = [interpolation_rows(self.table.shape[axis - 1], side, *rule) for side in sides]
        return torch.cat(rows).to(self.table, non_blocking=True)

    def _one_map(self, packed: PackedPatches) -> Tensor:
        assert packed.shared_grid is not None, 'the pack has grids of several sizes'
        t, h, w = packed.shared_grid
        y, x = self._rows(1, [h]), self._rows(2, [w])
        rows = torch.einsum('yg,gjd->yjd', y, self.table)
        map_ND = torch.einsum('xj,yjd->yxd', x, rows).flatten(0, 1)
        return map_ND.repeat(packed.num_examples * t, 1)

    def _rows_of_tokens(self, packed: PackedPatches, axis: int) -> Tensor:
        sides, which = torch.unique(packed.grids[:, axis], return_inverse=True)
        starts = (sides.cumsum(0) - sides)[which].to(packed.coords.device, non_blocking=True)
        return self._rows(axis, sides.tolist())[starts[packed.segment_ids] + packed.coords[:, axis]]


def interpolation_rows(
    size_in: int, size_out: int, interpolation: Interpolation, antialias: bool
) -> Tensor:
    """The matrix [size_out, size_in] of one-dimensional interpolation, in float64 on the host.

    What `F.interpolate` does along one side (half-pixel centres), as plain arithmetic.
    """
    if torch.compiler.is_compiling():  # the tensors of a trace must not outlive it in the cache
        return _rows(size_in, size_out, interpolation, antialias)
    return _cached_rows(size_in, size_out, interpolation, antialias)


def _rows(size_in: int, size_out: int, interpolation: Interpolation, antialias: bool) -> Tensor:
    compute = _antialiased_rows if antialias else _plain_rows
    return compute(size_in, size_out, interpolation)


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


def _plain_rows(size_in: int, size_out: int, interpolation: Interpolation) -> Tensor:
    """Two or four neighbours of the source position; beyond the border the last counts again."""
    scale = size_in / size_out
    source = (torch.arange(size_out, dtype=torch.float64) + 0.5) * scale - 0.5
    taps = torch.tensor([0, 1]) if interpolation == 'bilinear' else torch.tensor([-1, 0, 1, 2])
    if interpolation == 'bilinear':
        source = source.clamp(min=0)
    neighbours = source.floor().long()[:, None] + taps
    distance = source[:, None] - neighbours
    weights = 1 - distance.abs() if interpolation == 'bilinear' else _cubic(distance, -0.75)
    picked = neighbours.clamp(0, size_in - 1)[:, :, None] == torch.arange(size_in)
    return (weights[:, :, None] * picked).sum(1)


class TemporalPosition(nn.Module):
    """A learned vector per frame, added to the position in space (NaViT's factors, in time).

    A tubelet reads the entry of its first frame, so tubelets of several lengths share one table of
    `max_size` frames; with `fractional` it is read at ``t / length * max_size``, for clips of any
    length. All entries start at zero: a clip then begins with what the weights make of pictures.
    """

    def __init__(self, dim: int, *, max_size: int = 64, fractional: bool = False) -> None:
        super().__init__()
        self.max_size, self.fractional = max_size, fractional
        self.t = nn.Parameter(torch.zeros(max_size, dim))

    def forward(self, packed: PackedPatches) -> Tensor:
        if self.fractional:
            return read_linearly(self.t, axis_coordinates(packed, 0, fractional=True))
        step = packed.patch_shape[0]
        longest = packed.shared_grid[0] if packed.shared_grid else int(packed.grids[:, 0].max())
        if (longest - 1) * step >= self.max_size:
            raise ValueError(
                f'a clip of {longest} tubelets of {step} frames is beyond the temporal positions '
                f'of max_size={self.max_size} frames: sample fewer frames, raise '
                'temporal_position.max_size, or set fractional=True'
            )
        return self.t[packed.coords[:, 0] * step]


class RotaryPosition(nn.Module):
    """2-D rotary position of queries and keys (UniViTAR; Su et al. per axis).

    Half of each head turns with the row and half with the column, at integer patch coordinates.
    """

    def __init__(self, head_width: int, *, theta: float = 10000.0) -> None:
        super().__init__()
        if head_width % 4:
            raise ValueError(f'2-D RoPE needs a head width divisible by 4, got {head_width}')
        self.head_width, self.theta = head_width, theta

    def forward(self, packed: PackedPatches) -> Tensor:
        """The angles [T, K / 2] in float64, the row's before the column's."""
        inverse = frequencies(self.head_width // 4, self.theta, packed.coords.device)
        return (packed.coords[:, 1:, None] * inverse).flatten(1)


def rotate(x_THK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + K / 2) of each head by the angles of cos and sin [T, 1, K / 2]."""
    first, second = x_THK.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


POSITIONS: dict[str, type[nn.Module]] = {
    'factorised': FactorisedPosition,
    'fourier': FourierPosition,
    'learned_1d': Learned1DPosition,
    'learned_2d': Learned2DPosition,
    'sinusoidal': SinusoidalPosition,
}
