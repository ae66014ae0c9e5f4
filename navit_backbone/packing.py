"""One run of patches per picture, the runs of many pictures end to end (NaViT, section 2).

Shape legend of the whole package. Tensors inside the backbone carry these letters in their names.

====  =====================================================================================
N     examples (pictures or clips)
T     patches, later tokens, of all examples together; ``T = sum(lengths)``
P     values per patch, in the order (channel, time, row, column) of a convolution's kernel
D     width of the model
H, K  heads and the width of one head
R     prefix tokens per example (class token, registers)
B     pictures on a padded canvas ``[B, C, height, width]``
====  =====================================================================================

What describes a pack by numbers (``grids``, ``lengths``) lives on the host, so that no shape ever
waits for the device; what is indexed with (``coords``, ``segment_ids``) lives beside the patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Size = tuple[int, int]
PatchShape = tuple[int, int, int]


class Segments(NamedTuple):
    """Runs of tokens that attend among themselves and to nothing else."""

    cu_seqlens: Tensor  # [S + 1] int32, on the device: where each run starts; the last is the end
    lengths: Tensor  # [S] int64, on the host
    max_len: int
    equal: bool  # all runs have one length

    @classmethod
    def of(cls, lengths: Tensor, device: torch.device) -> Segments:
        """The runs of the given `lengths` ([S], on the host)."""
        cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        shortest, longest = torch.aminmax(lengths)
        return cls(
            cu_seqlens.to(device, non_blocking=True),
            lengths,
            int(longest),
            bool(shortest == longest),
        )

    @classmethod
    def alike(cls, count: int, length: int, device: torch.device) -> Segments:
        """`count` runs of one `length`, from plain numbers alone: no value of a tensor is read."""
        cu_seqlens = torch.arange(count + 1, dtype=torch.int32, device=device) * length
        return cls(cu_seqlens, torch.full((count,), length), length, True)


@dataclass(frozen=True, kw_only=True)
class PackedPatches:
    """Patches of N examples end to end: the one object that flows through the backbone.

    An image is a clip of one frame. A crop or a drop keeps fewer tokens than the grid has cells;
    `coords` says which, so positions stay right. One object holds one patch shape.
    """

    patches: Tensor  # [T, P]
    coords: Tensor  # [T, 3] int64: (t, y, x) of each patch, in patches
    segment_ids: Tensor  # [T] int64: the example of each patch, never decreasing
    grids: Tensor  # [N, 3] int64, on the host: the full (t, h, w) that the coordinates refer to
    lengths: Tensor  # [N] int64, on the host: patches present
    patch_shape: PatchShape
    # the one full grid that all examples share, where that is known: shapes then are plain numbers
    shared_grid: PatchShape | None = None

    def __post_init__(self) -> None:
        num_tokens, num_examples = len(self.patches), len(self.grids)
        assert self.coords.shape == (num_tokens, 3), f'coords {tuple(self.coords.shape)}'
        assert self.segment_ids.shape == (num_tokens,), f'ids {tuple(self.segment_ids.shape)}'
        assert self.lengths.shape == (num_examples,), f'lengths {tuple(self.lengths.shape)}'

    @property
    def num_examples(self) -> int:
        return len(self.grids)

    @property
    def is_full(self) -> bool:
        """Whether every cell of every grid is present."""
        return self.shared_grid is not None or bool((self.grids.prod(1) == self.lengths).all())

    def segments(self) -> Segments:
        """One segment per example."""
        if self.shared_grid is not None:
            t, h, w = self.shared_grid
            return Segments.alike(self.num_examples, t * h * w, self.patches.device)
        return Segments.of(self.lengths, self.patches.device)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> PackedPatches:
        """The same pack with its patches, coordinates and example numbers on `device`."""
        return replace(
            self,
            patches=self.patches.to(device, dtype, non_blocking=True),
            coords=self.coords.to(device, non_blocking=True),
            segment_ids=self.segment_ids.to(device, non_blocking=True),
        )

    def take(self, index: Tensor, lengths: Tensor) -> PackedPatches:
        """The patches at `index`, of which each example keeps `lengths` ([N], on the host).

        The order of the examples must be kept; the order within an example is free.
        """
        return replace(
            self,
            patches=self.patches[index],
            coords=self.coords[index],
            segment_ids=self.segment_ids[index],
            lengths=lengths,
            shared_grid=None,
        )


def grid_coordinates(grids: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Coordinates [T, 3] and example numbers [T] of all cells of `grids` ([N, 3], on the host)."""
    lengths = grids.prod(1)
    num_tokens = int(lengths.sum())
    starts = lengths.cumsum(0) - lengths
    table = torch.cat([grids, lengths[:, None], starts[:, None]], 1).to(device, non_blocking=True)
    ids = torch.repeat_interleave(table[:, 3], output_size=num_tokens)  # [T]
    _, h, w, _, start = table[ids].unbind(1)  # each [T]
    cell = torch.arange(num_tokens, device=device) - start
    return torch.stack([cell // (h * w), cell // w % h, cell % w], 1), ids


def _shared_coordinates(num: int, grid: PatchShape, device: torch.device) -> tuple[Tensor, Tensor]:
    """As `grid_coordinates`, for `num` examples of one grid, from plain numbers alone."""
    axes = [torch.arange(side, device=device) for side in grid]
    cells = torch.stack(torch.meshgrid(axes, indexing='ij'), -1).flatten(0, 2)  # [t*h*w, 3]
    ids = torch.arange(num, device=device)[:, None].expand(num, len(cells))
    return cells.repeat(num, 1), ids.flatten()


def patchify(clip: Tensor, patch_shape: PatchShape) -> PackedPatches:
    """Cut one picture [C, height, width] or clip [C, frames, height, width] into patches.

    A partial patch at the border is real: what it lacks counts as zero in space, and as the last
    frame again in time.
    """
    clip = clip[:, None] if clip.ndim == 3 else clip
    if clip.ndim != 4 or 0 in clip.shape:
        raise ValueError(
            f'a picture is [C, height, width] and a clip [C, frames, height, width], none of them '
            f'empty: got {tuple(clip.shape)}'
        )
    p, q, r = patch_shape
    _, frames, height, width = clip.shape
    if frames % p:
        clip = torch.cat([clip, clip[:, -1:].expand(-1, -frames % p, -1, -1)], 1)
    clip = F.pad(clip, (0, -width % r, 0, -height % q))
    grid = (clip.shape[1] // p, clip.shape[2] // q, clip.shape[3] // r)
    patches = rearrange(clip, 'c (t p) (h q) (w r) -> (t h w) (c p q r)', p=p, q=q, r=r)
    coords, ids = _shared_coordinates(1, grid, clip.device)
    return PackedPatches(
        patches=patches,
        coords=coords,
        segment_ids=ids,
        grids=torch.tensor([grid]),
        lengths=torch.tensor([len(patches)]),
        patch_shape=patch_shape,
        shared_grid=grid,
    )


def pack(packs: Sequence[PackedPatches]) -> PackedPatches:
    """Lay several packs of one patch shape end to end."""
    if not packs:
        raise ValueError('nothing to pack: give at least one PackedPatches')
    shapes = {item.patch_shape for item in packs}
    if len(shapes) > 1:
        raise ValueError(
            f'one pack holds one patch shape, got {sorted(shapes)}: make a pack of each'
        )
    firsts = torch.tensor([0, *(item.num_examples for item in packs[:-1])]).cumsum(0).tolist()
    grids = {item.shared_grid for item in packs}
    return PackedPatches(
        patches=torch.cat([item.patches for item in packs]),
        coords=torch.cat([item.coords for item in packs]),
        segment_ids=torch.cat([i.segment_ids + n for i, n in zip(packs, firsts, strict=True)]),
        grids=torch.cat([item.grids for item in packs]),
        lengths=torch.cat([item.lengths for item in packs]),
        patch_shape=packs[0].patch_shape,
        shared_grid=grids.pop() if len(grids) == 1 else None,
    )


def unpack(tokens: Tensor, packed: PackedPatches) -> list[Tensor]:
    """The tokens [T, D] of each example as a map [t, h, w, D]; cells that are absent are zero."""
    cells = packed.grids.prod(1)
    starts = (cells.cumsum(0) - cells).to(tokens.device, non_blocking=True)
    _, h, w = packed.grids.to(tokens.device, non_blocking=True)[packed.segment_ids].unbind(1)
    t, y, x = packed.coords.unbind(1)
    rows = starts[packed.segment_ids] + (t * h + y) * w + x
    canvas = tokens.new_zeros(int(cells.sum()), tokens.shape[1]).index_copy(0, rows, tokens)
    maps = canvas.split(cells.tolist())
    return [
        m.unflatten(0, tuple(grid)) for m, grid in zip(maps, packed.grids.tolist(), strict=True)
    ]


def unpatchify(packed: PackedPatches, num_channels: int = 3) -> list[Tensor]:
    """The clips [C, frames, height, width] that the patches were cut from, whole patches wide."""
    p, q, r = packed.patch_shape
    pattern = 't h w (c p q r) -> c (t p) (h q) (w r)'
    maps = unpack(packed.patches, packed)
    return [rearrange(m, pattern, c=num_channels, p=p, q=q, r=r) for m in maps]


def pack_canvas(canvas_BCHW: Tensor, sizes: Sequence[Size], patch_size: int) -> PackedPatches:
    """The real patches of the pictures on a padded canvas, in one gather.

    `sizes` are the (height, width) in pixels of the pictures, each in the upper left corner of its
    canvas. Beyond a picture nothing is read as it is: whatever the padding holds counts as zero.
    """
    p = patch_size
    batch, _, height, width = canvas_BCHW.shape
    if any(h % p or w % p for h, w in sizes):
        canvas_BCHW = _blank_outside(canvas_BCHW, sizes)
    shared = (1, -(-sizes[0][0] // p), -(-sizes[0][1] // p)) if len(set(sizes)) == 1 else None
    canvas_BCHW = F.pad(canvas_BCHW, (0, -width % p, 0, -height % p))
    windows = rearrange(canvas_BCHW, 'b c (h q) (w r) -> b h w c q r', q=p, r=p)  # a view
    if shared is not None:
        grids = torch.tensor(shared).expand(batch, 3)
        coords, ids = _shared_coordinates(batch, shared, canvas_BCHW.device)
        patches = windows[:, : shared[1], : shared[2]].flatten(0, 2)
    else:
        grids = F.pad(-(-torch.tensor(sizes) // p), (1, 0), value=1)
        coords, ids = grid_coordinates(grids, canvas_BCHW.device)
        patches = windows[ids, coords[:, 1], coords[:, 2]]
    return PackedPatches(
        patches=patches.flatten(1),
        coords=coords,
        segment_ids=ids,
        grids=grids,
        lengths=grids.prod(1),
        patch_shape=(1, p, p),
        shared_grid=shared,
    )


def unpack_canvas(tokens: Tensor, packed: PackedPatches, grid: Size) -> Tensor:
    """Tokens [T, D] as maps [B, D, *grid] of pictures on one canvas; outside a picture zero."""
    height, width = grid
    if packed.shared_grid == (1, height, width):
        return rearrange(tokens, '(b h w) d -> b d h w', h=height, w=width)
    rows = (packed.segment_ids * height + packed.coords[:, 1]) * width + packed.coords[:, 2]
    canvas = tokens.new_zeros(packed.num_examples * height * width, tokens.shape[1])
    canvas = canvas.index_copy(0, rows, tokens)
    return rearrange(canvas, '(b h w) d -> b d h w', h=height, w=width)


def inside(sizes: Sequence[Size], grid: Size, device: torch.device) -> Tensor:
    """The cells of a canvas that lie in its pictures, `sizes` in cells: [B, 1, *grid]."""
    limits = torch.tensor(sizes).to(device, non_blocking=True)  # [B, 2]
    rows = torch.arange(grid[0], device=device) < limits[:, :1]  # [B, height]
    cols = torch.arange(grid[1], device=device) < limits[:, 1:]  # [B, width]
    return (rows[:, :, None] & cols[:, None, :])[:, None]


def _blank_outside(canvas_BCHW: Tensor, sizes: Sequence[Size]) -> Tensor:
    if set(sizes) == {tuple(canvas_BCHW.shape[2:])}:
        return canvas_BCHW
    mask = inside(sizes, (canvas_BCHW.shape[2], canvas_BCHW.shape[3]), canvas_BCHW.device)
    return torch.where(mask, canvas_BCHW, 0)  # not a product: the padding may hold NaN


def drop_tokens(
    packed: PackedPatches,
    kept: Tensor,
    *,
    scores: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> PackedPatches:
    """Keep `kept` random tokens of each example ([N] int, on the host; NaViT, section 2.2).

    Those with the lowest `scores` ([T], in [0, 1), on the patches' device) stay, in their order and
    with their coordinates. Without scores they are drawn uniformly, by `generator`, which lives on
    that device. Counts are decided once, before packing, by the planner of the pack: the packer has
    to know the lengths.

    Raises:
        ValueError: `kept` has another shape, is not integer, or exceeds an example's tokens.
    """
    if (
        kept.shape != packed.lengths.shape
        or kept.is_floating_point()
        or not bool(((kept >= 1) & (kept <= packed.lengths)).all())
    ):
        raise ValueError(
            f'kept must hold {packed.num_examples} whole numbers between 1 and the tokens of the '
            f'example, {packed.lengths.tolist()}: got {kept.tolist()}'
        )
    device = packed.patches.device
    if scores is None:
        size = len(packed.patches)
        scores = torch.rand(size, device=device, dtype=torch.float64, generator=generator)
    order = torch.argsort(packed.segment_ids + scores)  # examples stay apart: scores are below one
    starts = (packed.lengths.cumsum(0) - packed.lengths).to(device, non_blocking=True)
    rank = torch.arange(len(order), device=device) - starts[packed.segment_ids]
    chosen = rank < kept.to(device, non_blocking=True)[packed.segment_ids]
    num_kept = int(kept.sum())
    # the chosen come first in a stable sort, so their number need not be read from the device
    first = torch.argsort(chosen.logical_not().byte(), stable=True)[:num_kept]
    return packed.take(order[first].sort().values, kept)


def window_partition(packed: PackedPatches, size: int, num_prefix: int) -> tuple[Tensor, Segments]:
    """Window attention as a finer set of segments, without padding.

    Returns where each token stands when the tokens are sorted by window within their example
    ([T]), and the segments of that order; an example's prefix tokens form a segment of their own
    before its windows. Windows at the border hold what is there. For packs with every cell present
    nothing is read from the device; for others the sizes of the windows are.
    """
    tiles = -(-packed.grids // torch.tensor([1, size, size]))  # [N, 3] windows per axis
    firsts = tiles.prod(1).cumsum(0) - tiles.prod(1)
    device = packed.coords.device
    table = torch.cat([tiles[:, 1:], firsts[:, None]], 1).to(device, non_blocking=True)
    rows, cols, first = table[packed.segment_ids].unbind(1)
    t, y, x = packed.coords.unbind(1)
    window_T = first + (t * rows + y // size) * cols + x // size
    ranks_T = torch.argsort(torch.argsort(window_T, stable=True))

    host = torch.device('cpu')
    places, ids = grid_coordinates(tiles, host)  # of the windows
    if packed.is_full:
        areas = (packed.grids[ids, 1:] - places[:, 1:] * size).clamp(max=size).prod(1)
    else:
        areas = torch.bincount(window_T, minlength=len(ids)).to(host)
    if num_prefix:
        ids = torch.cat([torch.arange(packed.num_examples), ids])
        areas = torch.cat([torch.full((packed.num_examples,), num_prefix), areas])
        areas = areas[torch.argsort(ids, stable=True)]
    return ranks_T, Segments.of(areas[areas > 0], device)


def frames_of(packed: PackedPatches) -> tuple[Tensor, Tensor, Segments, Tensor]:
    """Per-frame attention as a finer set of segments: the frames of all examples, one by one.

    Returns the frame of each token ([T], counted through the examples; of tubelets, their time
    step), where each token stands when sorted by frame ([T]), the segments of that order, and the
    example of each frame ([F], on the host). A frame of which nothing is present is none. For packs
    with every cell present nothing is read from the device; for others the lengths are.
    """
    device, steps = packed.coords.device, packed.grids[:, 0]
    firsts = (steps.cumsum(0) - steps).to(device, non_blocking=True)
    frame_T = firsts[packed.segment_ids] + packed.coords[:, 0]
    example_F = torch.repeat_interleave(torch.arange(packed.num_examples), steps)
    if packed.is_full:
        lengths = packed.grids[:, 1:].prod(1)[example_F]
    else:
        lengths = torch.bincount(frame_T, minlength=len(example_F)).cpu()
        present = lengths > 0
        frame_T = (present.cumsum(0) - 1).to(device, non_blocking=True)[frame_T]
        lengths, example_F = lengths[present], example_F[present]
    ranks_T = torch.argsort(torch.argsort(frame_T, stable=True))
    return frame_T, ranks_T, Segments.of(lengths, device), example_F


def arrange(segments: Segments, num_prefix: int, *, by_length: bool) -> tuple[Tensor, Segments]:
    """The row at which each example begins in the stream ([N]), and the segments of the stream.

    With `by_length` the longest come first: segments of one length then stand together, which
    attention takes as one batch where it has no varlen kernel.
    """
    device, lengths = segments.cu_seqlens.device, segments.lengths + num_prefix
    if not by_length:
        numbers = torch.arange(len(lengths) + 1, dtype=torch.int32, device=device)
        cu_seqlens = segments.cu_seqlens + num_prefix * numbers
        longest = segments.max_len + num_prefix
        return cu_seqlens[:-1].long(), Segments(cu_seqlens, lengths, longest, segments.equal)
    lengths, order = lengths.sort(descending=True, stable=True)
    firsts = torch.empty_like(lengths)
    firsts[order] = lengths.cumsum(0) - lengths
    return firsts.to(device, non_blocking=True), Segments.of(lengths, device)


def make_room(
    ids_T: Tensor, ranks_T: Tensor | None, segments: Segments, num_prefix: int
) -> tuple[Tensor | None, Tensor, Segments]:
    """Where tokens ([T]) and prefix tokens ([N, R]) stand in the stream, and its segments.

    Prefix tokens come first in their example. Where tokens stay as they are, the first is None.
    """
    device = ids_T.device
    by_length = ranks_T is None and not segments.equal
    first_N, joined = arrange(segments, num_prefix, by_length=by_length)
    rows_NR = first_N[:, None] + torch.arange(num_prefix, device=device)
    if not (num_prefix or by_length) and ranks_T is None:
        return None, rows_NR, joined
    ranks_T = torch.arange(len(ids_T), device=device) if ranks_T is None else ranks_T
    within_T = ranks_T - segments.cu_seqlens[ids_T]
    return first_N[ids_T] + num_prefix + within_T, rows_NR, joined


def lay(tokens: Tensor, prefix: Tensor, rows_T: Tensor | None, rows_NR: Tensor) -> Tensor:
    """Tokens [T, ...] and prefix tokens [N, R, ...] in the order of the stream."""
    if rows_T is None:
        return tokens
    stream = tokens.new_empty(len(rows_T) + rows_NR.numel(), *tokens.shape[1:])
    stream = stream.index_copy(0, rows_T, tokens)
    return stream.index_copy(0, rows_NR.flatten(), prefix.flatten(0, 1))
