"""ViTDet's simple feature pyramid, for batches of pictures of several sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from navit_backbone.backbone import check_stride
from navit_backbone.packing import Size, inside

from .norm import LayerNorm2d


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """The last map of a plain backbone, at a list of strides (Li et al. 2022, arXiv 2203.16527).

    Takes a tuple of maps [B, in_channels, H, W] of stride `in_stride`, the backbone's patch size,
    and gives one map [B, out_channels, ceil(H * in_stride / s), ceil(W * in_stride / s)] for each s
    of `strides`. Every stride is built by one rule: 2 x 2 deconvolutions that halve the channels,
    LayerNorm and GELU between them, until the map is fine enough; or 2 x 2 max-pooling, until it is
    coarse enough; then a 1 x 1 and a 3 x 3 convolution, each with LayerNorm. (ViTDet has strides 4
    to 32 so, and 64 by subsampling the result for 32.) Of patches of 14 pixels the strides are 3.5,
    7, 14, 28 and 56, for the pyramid and for the heads behind it.

    The maps carry the (height, width) in pixels of their pictures as `image_sizes`. A picture of
    h x w pixels owns ceil(h / s) x ceil(w / s) cells at stride s. What lies outside is zero after
    every operation, so a picture's maps are what they would be without its neighbours. Without the
    attribute the whole map is picture.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        out_channels: int = 256,
        strides: Sequence[float] = (4, 8, 16, 32, 64),
        in_stride: int = 16,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.in_stride, self.strides = in_stride, tuple(strides)
        self.levels = nn.ModuleList(
            Level(in_channels, out_channels=out_channels, in_stride=in_stride, stride=stride)
            for stride in self.strides
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        x = inputs[-1]
        if x.shape[1] != self.in_channels:
            raise ValueError(
                f'SimpleFeaturePyramid has in_channels={self.in_channels}, but is given maps of '
                f'{x.shape[1]} channels: set model.neck.in_channels={x.shape[1]}'
            )
        check_stride(x, self.in_stride, 'SimpleFeaturePyramid')
        sizes = getattr(x, 'image_sizes', None)
        outside = self._outside(x, sizes)
        x = x.contiguous(memory_format=torch.channels_last)  # in which norms are a view
        x = _fill(x, outside[self.in_stride], 0.0)
        # mmcv's RoIAlign reads memory in the order of [B, C, H, W], whatever the strides say
        maps = tuple(level(x, outside).contiguous() for level in self.levels)
        if sizes is not None:
            for item in maps:
                item.image_sizes = sizes  # type: ignore[attr-defined]
        return maps

    def _outside(self, x: Tensor, sizes: Sequence[Size] | None) -> dict[float, Tensor | None]:
        """The cells outside the pictures at each stride in use; None where there are none."""
        strides: set[float] = {self.in_stride}.union(*(level.op_strides for level in self.levels))
        if sizes is None:
            return dict.fromkeys(strides)
        _check(sizes, x, self.in_stride)
        masks: dict[float, Tensor | None] = {}
        for stride in strides:
            grid = _cells((x.shape[2] * self.in_stride, x.shape[3] * self.in_stride), stride)
            cells = [_cells(size, stride) for size in sizes]
            full = all(cell == grid for cell in cells)
            masks[stride] = None if full else ~inside(cells, grid, x.device)
        return masks


class Level(nn.Module):
    """One stride of the pyramid: a row of operations, each with the stride of what it gives."""

    def __init__(
        self, in_channels: int, *, out_channels: int, in_stride: int, stride: float
    ) -> None:
        super().__init__()
        ops, dim = _resampling(in_channels, in_stride, stride)
        ops += [
            (nn.Conv2d(dim, out_channels, kernel_size=1, bias=False), stride),
            (LayerNorm2d(out_channels), stride),
            (nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False), stride),
            (LayerNorm2d(out_channels), stride),
        ]
        self.ops = nn.ModuleList(op for op, _ in ops)
        self.op_strides = [after for _, after in ops]

    def forward(self, x: Tensor, outside: Mapping[float, Tensor | None]) -> Tensor:
        for op, stride in zip(self.ops, self.op_strides, strict=True):
            if isinstance(op, nn.MaxPool2d):  # a cell outside must not win
                x = _fill(x, outside[stride / 2], -torch.inf)
            x = _fill(op(x), outside[stride], 0.0)
        return x


def _resampling(
    dim: int, in_stride: int, stride: float
) -> tuple[list[tuple[nn.Module, float]], int]:
    """What brings a map from one stride to another, and the channels it then has."""
    ops: list[tuple[nn.Module, float]] = []
    now: float = in_stride  # halves of a whole number are exact
    while now > stride and dim % 2 == 0:
        if ops:
            ops += [(LayerNorm2d(dim), now), (nn.GELU(), now)]
        now, dim = now / 2, dim // 2
        ops.append((nn.ConvTranspose2d(2 * dim, dim, kernel_size=2, stride=2), now))
    while now < stride:
        now *= 2
        ops.append((nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True), now))
    if now != stride:
        raise ValueError(
            f'strides: {stride} cannot be reached from in_stride={in_stride}, the patch size of '
            'the backbone: it must be that times or divided by a power of two, and where it is '
            'finer, in_channels must divide by the same power'
        )
    return ops, dim


def _fill(x: Tensor, mask: Tensor | None, value: float) -> Tensor:
    return x if mask is None else torch.where(mask, value, x)  # masked_fill: not channels-last


def _cells(size: Size, stride: float) -> Size:
    return math.ceil(size[0] / stride), math.ceil(size[1] / stride)


def _check(sizes: Sequence[Size], x: Tensor, in_stride: int) -> None:
    if len(sizes) != len(x):
        raise ValueError(f'image_sizes names {len(sizes)} pictures, the map holds {len(x)}')
    largest = _cells((max(h for h, _ in sizes), max(w for _, w in sizes)), in_stride)
    if largest[0] > x.shape[2] or largest[1] > x.shape[3]:
        raise ValueError(
            f'a picture of {largest[0]} x {largest[1]} cells at in_stride={in_stride} does not fit '
            f'the map of {x.shape[2]} x {x.shape[3]}: in_stride must be the patch size of the '
            'backbone'
        )
