"""Where a patch stands: every kind of position of the NaViT paper, and 2-D RoPE.

All kinds are computed from per-token coordinates, so crops, dropped tokens, shuffles and clips of
any length work. Additive kinds give a vector per token, added after the patch embedding (NaViT,
section 2.1 and table 3); RoPE turns the queries and keys of every block.

Patches of several shapes in one model count in one unit, their `Scale`. A patch lies where its
first pixel lies, as a tubelet lies at its first frame: the paper's p and p / side count whole
patches from the edge, and so every patch of every shape reads one whole entry of a table. The
interpolated kinds (`learned_1d`, `learned_axes`) and normalised RoPE take the centre of a patch as
a share of the image's side, as the weights that they come from do: they need no unit. The
interpolated kinds count whole patches of the side, so for them images should be whole patches of
every shape, as `ClipToTokenBudget` makes them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .interpolation import Interpolation, interpolation_rows, interpolation_taps
from .packing import PackedPatches, PatchShape

RotaryLayout = Literal['half', 'interleaved']


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


def describe_position(position: nn.Module | None) -> dict[str, Any] | None:
    """Return the spec to build this position again, with all its arguments."""
    if position is None:
        return None
    kind = next(name for name, cls in POSITIONS.items() if type(position) is cls)
    options = [name for name in inspect.signature(type(position)).parameters if name != 'dim']
    return {'kind': kind} | {n: getattr(position, n) for n in options if hasattr(position, n)}


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


def complete_rotary(spec: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """`arch.rope` with all its arguments; its `kind` is 'integer' if it names none."""
    if spec is None:
        return None
    kind = spec.get('kind', 'integer')
    if kind not in ROTARY:
        raise ValueError(f'arch.rope kind {kind!r} is not one of {list(ROTARY)}')
    parameters = inspect.signature(ROTARY[kind]).parameters.values()
    known = {item.name: item.default for item in parameters if item.name != 'head_width'}
    if unknown := sorted(set(spec) - {'kind', *known}):
        raise ValueError(f'arch.rope has no field {unknown}: {kind!r} takes {list(known)}')
    return {'kind': kind, **known, **spec}


def build_rotary(spec: Mapping[str, Any] | None, head_width: int) -> Rotary | None:
    """Build the rotary position of `arch.rope`; None without one."""
    if (full := complete_rotary(spec)) is None:
        return None
    return ROTARY[full.pop('kind')](head_width, **full)


class Scale(NamedTuple):
    """Unit of the positions of one model, so that equal pixels get equal positions.

    `unit` is (1, h, w): a frame, and the largest height and width in pixels that divide those of
    all patch shapes. For a single shape that is the patch itself. `extents` [N, 3], on the host, is
    the (frames, height, width) of each example that fractions refer to: a partial patch at the
    border is filled up to another length for each shape, so the least is taken of all. None stands
    for the grid of a single pack.
    """

    unit: PatchShape
    extents: Tensor | None = None

    @classmethod
    def of(cls, shapes: Sequence[PatchShape], packs: Sequence[PackedPatches] = ()) -> Scale:
        """Return the scale of a model with patches of `shapes`, for `packs` of the same images."""
        unit = (1, math.gcd(*(h for _, h, _ in shapes)), math.gcd(*(w for _, _, w in shapes)))
        if len(packs) < 2:
            return cls(unit)
        extents = [item.grids * torch.tensor(item.patch_shape) for item in packs]
        return cls(unit, torch.stack(extents).amin(0))

    def steps(self, shape: PatchShape) -> PatchShape:
        """Return the units (t, h, w) from one patch of a `shape` to the next."""
        t, h, w = (side // unit for side, unit in zip(shape, self.unit, strict=True))
        return t, h, w


def axis_coordinates(
    packed: PackedPatches, axis: int, scale: Scale | None = None, *, fractional: bool
) -> Tensor:
    """Return the coordinate of every token along an axis (0 time, 1 row, 2 column): [T].

    In units of `scale`, by default frames and the patches of the pack itself; or as a fraction
    ``p / side`` of the image's own side (NaViT, section 2.1).
    """
    coords = packed.coords[:, axis]
    if not fractional:
        step = (scale or Scale.of([packed.patch_shape])).steps(packed.patch_shape)[axis]
        return coords if step == 1 else coords * step
    return side_shares(packed, axis, scale)


def side_shares(
    packed: PackedPatches, axis: int, scale: Scale | None, *, offset: float = 0.0
) -> Tensor:
    """Return where every token lies along an axis as a share of the image's side: [T] float64.

    `offset` is the place in the patch: 0 its first pixel, 0.5 its centre.
    """
    if scale is None or scale.extents is None:
        sides, step = packed.grids[:, axis], 1
    else:
        sides, step = scale.extents[:, axis], packed.patch_shape[axis]
    coords = (packed.coords[:, axis].double() + offset) * step
    return coords / sides.to(coords.device, non_blocking=True)[packed.segment_ids]


def check_sides(packed: PackedPatches, max_size: int, what: str, scale: Scale | None) -> None:
    """Raise ValueError where a grid reaches beyond a table of positions."""
    scale = scale or Scale.of([packed.patch_shape])
    _, h, w = packed.shared_grid or (0, *packed.grids[:, 1:].amax(0).tolist())
    _, row, column = scale.steps(packed.patch_shape)
    needed = max((h - 1) * row, (w - 1) * column) + 1
    if needed > max_size:
        _, height, width = packed.patch_shape
        raise ValueError(
            f'an image of {h} x {w} patches of {height} x {width} pixels (largest height and width '
            f'of the pack) needs {needed} {what} positions a side, one for every {scale.unit[1]} x '
            f'{scale.unit[2]} pixels, and the table has max_size={max_size}: lower max_tokens of '
            f'the resize, set max_size={needed}, or use a kind without a limit (sinusoidal, '
            'fourier)'
        )


class FactorisedPosition(nn.Module):
    """A learned vector per row and one per column, combined (NaViT, section 2.1).

    `combine`: 'sum' (the paper's default), 'stack' (half the width each) or 'product'. With
    `fractional` the tables are read at ``p / side * max_size`` by linear interpolation, so that an
    image of `max_size` patches a side reads the same entries as the absolute kind. Absolute tables
    have an entry for each unit of the `Scale`, and `max_size` counts these.
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

    def forward(self, packed: PackedPatches, scale: Scale | None = None) -> Tensor:
        if not self.fractional:
            check_sides(packed, self.max_size, 'factorised', scale)
        y, x = (
            axis_coordinates(packed, axis, scale, fractional=self.fractional) for axis in (1, 2)
        )
        y_TD, x_TD = self._read(self.y, y), self._read(self.x, x)
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
    """A learned vector per cell of a `max_size` x `max_size` table (Pix2Struct's, in table 3).

    A cell is a unit of the `Scale` high and wide.
    """

    def __init__(self, dim: int, *, max_size: int = 64) -> None:
        super().__init__()
        self.max_size = max_size
        self.table = nn.Parameter(torch.empty(max_size, max_size, dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, packed: PackedPatches, scale: Scale | None = None) -> Tensor:
        check_sides(packed, self.max_size, 'learned 2-D', scale)
        y, x = (axis_coordinates(packed, axis, scale, fractional=False) for axis in (1, 2))
        return self.table[y, x]


class FourierPosition(nn.Module):
    """One learned linear layer of (y, x), then sine and cosine, stacked (NaViT, section 2.1).

    The paper leaves the start open: here the frequencies are normal with a standard deviation of
    one turn over the image's side; for absolute coordinates over `trained_size`, the side in
    patches of the largest images in training. Its default is the paper's: images of up to 256
    pixels in patches of 16. A start over a much longer side leaves all angles near zero, where
    positions hardly differ. Larger images turn further; `trained_size` is no limit.
    """

    def __init__(self, dim: int, *, fractional: bool = False, trained_size: int = 16) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f'fourier positions need an even width, got {dim}')
        if trained_size < 1:
            raise ValueError(f'fourier positions: trained_size={trained_size} must be at least 1')
        self.fractional = fractional
        self.frequencies = nn.Linear(2, dim // 2, bias=False)
        side = 1 if fractional else trained_size
        nn.init.normal_(self.frequencies.weight, std=2 * math.pi / side)

    def forward(self, packed: PackedPatches, scale: Scale | None = None) -> Tensor:
        axes = [
            axis_coordinates(packed, axis, scale, fractional=self.fractional) for axis in (1, 2)
        ]
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

    def forward(self, packed: PackedPatches, scale: Scale | None = None) -> Tensor:
        return torch.cat([self._axis(packed, axis, scale) for axis in (1, 2)], 1)

    def _axis(self, packed: PackedPatches, axis: int, scale: Scale | None) -> Tensor:
        coords = axis_coordinates(packed, axis, scale, fractional=self.fractional)
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


class GridPosition(nn.Module):
    """What a table learned on one `grid` has in common: the rule by which it is interpolated.

    The rule is that of the weights' origin: `interpolation` with or without `antialias`, aligned by
    the outer edges of the grids. With an `offset` the step between samples is that of a side longer
    by so much (DINOv2's 0.1), unless a picture has the very `grid`. With `keep_aspect` a picture
    reads the top left of the square that holds it (NaFlexViT's "par"). Interpolation is separable,
    so one matrix per side length serves all pictures at once and nothing is approximated.
    """

    grid: tuple[int, int]

    def __init__(
        self,
        *,
        interpolation: Interpolation,
        antialias: bool,
        offset: float,
        keep_aspect: bool,
    ) -> None:
        super().__init__()
        if interpolation not in ('bilinear', 'bicubic'):
            raise ValueError(f"interpolation={interpolation!r} is not 'bilinear' or 'bicubic'")
        if antialias and offset:
            raise ValueError(f'offset={offset} with antialias=True is no rule of any weights')
        self.interpolation: Interpolation = interpolation
        self.antialias, self.offset, self.keep_aspect = antialias, offset, keep_aspect

    def rows(self, axis: int, sides: list[int], like: Tensor) -> Tensor:
        """The interpolation rows of all `sides`, one below the other: [sum(sides), G].

        A side of 0 stands for that of `grid`, read as it is.
        """
        size, rule = self.grid[axis - 1], (self.interpolation, self.antialias)
        rows = [
            interpolation_rows(size, side, *rule, self.offset)
            if side
            else interpolation_rows(size, size, *rule)
            for side in sides
        ]
        return torch.cat(rows).to(like, non_blocking=True)

    def rows_of_map(self, packed: PackedPatches, axis: int, like: Tensor) -> Tensor:
        """Those of the one grid that all pictures share: [side, G]."""
        assert packed.shared_grid is not None, 'the pack has grids of several sizes'
        grid = packed.shared_grid[1:]
        read = max(grid) if self.keep_aspect else grid[axis - 1]
        if grid == self.grid:
            read = 0
        return self.rows(axis, [read], like)[: grid[axis - 1]]

    def rows_of_tokens(self, packed: PackedPatches, axis: int, like: Tensor) -> Tensor:
        """Those of every token of a pack with grids of several sizes: [T, G]."""
        sides, places = self._sides_of_tokens(packed, axis)
        return self.rows(axis, sides, like)[places]

    def taps_of_tokens(
        self, packed: PackedPatches, axis: int, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The few entries that each token reads without antialias, and their weights: [T, 4]."""
        sides, places = self._sides_of_tokens(packed, axis)
        size = self.grid[axis - 1]
        taps = [
            interpolation_taps(size, side or size, self.interpolation, self.offset if side else 0.0)
            for side in sides
        ]
        entries, weights = (torch.cat(part) for part in zip(*taps, strict=True))
        entries = entries.to(like.device, non_blocking=True)
        return entries[places], weights.to(like, non_blocking=True)[places]

    def _sides_of_tokens(self, packed: PackedPatches, axis: int) -> tuple[list[int], Tensor]:
        """The different sides of the grids, 0 for `grid` itself; each token's row among theirs."""
        grids = packed.grids[:, 1:]
        read = grids.amax(1) if self.keep_aspect else grids[:, axis - 1]
        read = torch.where((grids == torch.tensor(self.grid)).all(1), 0, read)
        sides, which = torch.unique(read, return_inverse=True)
        lengths = torch.where(sides == 0, self.grid[axis - 1], sides)
        starts = (lengths.cumsum(0) - lengths)[which].to(packed.coords.device, non_blocking=True)
        return sides.tolist(), starts[packed.segment_ids] + packed.coords[:, axis]


class Learned1DPosition(GridPosition):
    """ViT's learned sequence on its training `grid`, interpolated to the grid of every picture.

    timm interpolates bicubic with antialias, the first DeiT and Hugging Face's ViT bicubic without.
    """

    def __init__(
        self,
        dim: int,
        *,
        grid: tuple[int, int] = (14, 14),
        interpolation: Interpolation = 'bicubic',
        antialias: bool = True,
        offset: float = 0.0,
        keep_aspect: bool = False,
    ) -> None:
        super().__init__(
            interpolation=interpolation,
            antialias=antialias,
            offset=offset,
            keep_aspect=keep_aspect,
        )
        self.grid = (grid[0], grid[1])
        self.table = nn.Parameter(torch.empty(*grid, dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, packed: PackedPatches, scale: Scale | None = None) -> Tensor:
        table = self.table
        with full_precision(table.device):
            if packed.shared_grid is not None:
                y, x = (self.rows_of_map(packed, axis, table) for axis in (1, 2))
                rows = torch.einsum('yg,gjd->yjd', y, table)
                map_ND = torch.einsum('xj,yjd->yxd', x, rows).flatten(0, 1)
                return map_ND.repeat(packed.num_examples * packed.shared_grid[0], 1)
            if self.antialias:
                y_TG, x_TG = (self.rows_of_tokens(packed, axis, table) for axis in (1, 2))
                return (y_TG[:, :, None] * x_TG[:, None]).flatten(1) @ table.flatten(0, 1)
            (y, y_weights), (x, x_weights) = (
                self.taps_of_tokens(packed, axis, table) for axis in (1, 2)
            )
            # 16 entries of the table a token: of one with 64 rows a tenth of the time of a product
            return nn.functional.embedding_bag(
                (y[:, :, None] * self.grid[1] + x[:, None]).flatten(1),
                table.flatten(0, 1),
                per_sample_weights=(y_weights[:, :, None] * x_weights[:, None]).flatten(1),
                mode='sum',
            )


class LearnedAxesPosition(GridPosition):
    """A learned vector per row and one per column of a training `grid`, interpolated, and added.

    NaFlexViT's factorised positions: linear, without antialias.
    """

    def __init__(
        self,
        dim: int,
        *,
        grid: tuple[int, int] = (14, 14),
        interpolation: Interpolation = 'bilinear',
        antialias: bool = False,
        offset: float = 0.0,
        keep_aspect: bool = False,
    ) -> None:
        super().__init__(
            interpolation=interpolation,
            antialias=antialias,
            offset=offset,
            keep_aspect=keep_aspect,
        )
        self.grid = (grid[0], grid[1])
        self.y = nn.Parameter(torch.empty(grid[0], dim))
        self.x = nn.Parameter(torch.empty(grid[1], dim))
        nn.init.trunc_normal_(self.y, std=0.02)
        nn.init.trunc_normal_(self.x, std=0.02)

    def forward(self, packed: PackedPatches, scale: Scale | None = None) -> Tensor:
        with full_precision(self.y.device):
            if packed.shared_grid is not None:
                y = self.rows_of_map(packed, 1, self.y) @ self.y
                x = self.rows_of_map(packed, 2, self.x) @ self.x
                map_ND = (y[:, None] + x[None]).flatten(0, 1)
                return map_ND.repeat(packed.num_examples * packed.shared_grid[0], 1)
            y_TD = self.rows_of_tokens(packed, 1, self.y) @ self.y
            return y_TD + self.rows_of_tokens(packed, 2, self.x) @ self.x


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

    def forward(self, packed: PackedPatches, scale: Scale | None = None) -> Tensor:
        if self.fractional:
            return read_linearly(self.t, axis_coordinates(packed, 0, scale, fractional=True))
        step = packed.patch_shape[0]
        longest = packed.shared_grid[0] if packed.shared_grid else int(packed.grids[:, 0].max())
        if (longest - 1) * step >= self.max_size:
            raise ValueError(
                f'a clip of {longest} tubelets of {step} frames is beyond the temporal positions '
                f'of max_size={self.max_size} frames: sample fewer frames, raise '
                'temporal_position.max_size, or set fractional=True'
            )
        return self.t[axis_coordinates(packed, 0, scale, fractional=False)]


class RotaryPosition(nn.Module):
    """2-D rotary position of queries and keys at whole units of the `Scale` (Su et al. per axis).

    Half of each head's pairs of channels turn with the row and half with the column, by
    ``coordinate / theta ** (i / n)``. `layout` 'half' pairs channel i with i + K / 2, all pairs of
    the rows before those of the columns (UniViTAR, Qwen-VL); 'interleaved' pairs neighbours, and a
    column's pair comes before a row's, in turns (MoonViT). With `time` a third of the pairs each
    turns with the first frame of the tubelet, the row and the column; what does not divide by three
    stands still.
    """

    def __init__(
        self,
        head_width: int,
        *,
        theta: float = 10000.0,
        layout: RotaryLayout = 'half',
        time: bool = False,
    ) -> None:
        super().__init__()
        _check_rotary(head_width, layout)
        self.head_width, self.theta, self.layout, self.time = head_width, theta, layout, time

    def forward(self, packed: PackedPatches, scale: Scale | None = None) -> Tensor:
        """Return the angles [T, K / 2] in float64, one of each pair of channels."""
        axes = (0, 1, 2) if self.time else (1, 2)
        inverse = frequencies(self.head_width // 2 // len(axes), self.theta, packed.coords.device)
        coords = [axis_coordinates(packed, axis, scale, fractional=False) for axis in axes]
        angles = _laid_out(torch.stack(coords, 1).double()[:, :, None] * inverse, self.layout)
        return nn.functional.pad(angles, (0, self.head_width // 2 - angles.shape[1]))


class NormalisedRotaryPosition(nn.Module):
    """2-D rotary position at coordinates from -1 to 1 over the picture's own sides (DINOv3).

    The centre of a patch turns its pairs by ``2 pi * coordinate / theta ** (i / n)``, rows before
    columns.
    """

    def __init__(
        self, head_width: int, *, theta: float = 100.0, layout: RotaryLayout = 'half'
    ) -> None:
        super().__init__()
        _check_rotary(head_width, layout)
        self.head_width, self.theta, self.layout = head_width, theta, layout

    def forward(self, packed: PackedPatches, scale: Scale | None = None) -> Tensor:
        """Return the angles [T, K / 2] in float64, one of each pair of channels."""
        inverse = frequencies(self.head_width // 4, self.theta, packed.coords.device)
        shares = [side_shares(packed, axis, scale, offset=0.5) for axis in (1, 2)]
        coords = torch.stack(shares, 1) * 2 - 1
        return _laid_out(2 * math.pi * coords[:, :, None] * inverse, self.layout)


def _check_rotary(head_width: int, layout: str) -> None:
    if head_width % 4:
        raise ValueError(f'2-D RoPE needs a head width divisible by 4, got {head_width}')
    if layout not in ROTATIONS:
        raise ValueError(f'layout={layout!r} is not one of {list(ROTATIONS)}')


def _laid_out(angles: Tensor, layout: RotaryLayout) -> Tensor:
    """[T, axes, n] to [T, axes * n] in the order of the pairs of channels."""
    return angles.flatten(1) if layout == 'half' else angles.flip(1).transpose(1, 2).flatten(1)


def rotate_halves(x_THK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + K / 2) of each head by the angles of cos and sin [T, 1, K / 2]."""
    first, second = x_THK.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def rotate_neighbours(x_THK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (2 i, 2 i + 1) of each head by the angles of cos and sin [T, 1, K / 2]."""
    first, second = x_THK[..., 0::2], x_THK[..., 1::2]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return torch.stack(turned, -1).flatten(-2)


ROTATIONS = {'half': rotate_halves, 'interleaved': rotate_neighbours}
Rotary = RotaryPosition | NormalisedRotaryPosition
ROTARY: dict[str, type[Rotary]] = {
    'integer': RotaryPosition,
    'normalised': NormalisedRotaryPosition,
}
POSITIONS: dict[str, type[nn.Module]] = {
    'factorised': FactorisedPosition,
    'fourier': FourierPosition,
    'learned_1d': Learned1DPosition,
    'learned_2d': Learned2DPosition,
    'learned_axes': LearnedAxesPosition,
    'sinusoidal': SinusoidalPosition,
}
