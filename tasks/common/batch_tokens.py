"""What a batch costs in tokens, told from the sizes of its pictures on the host."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from navit_backbone.backbone import NaViTBackbone
from navit_backbone.packing import PackedPatches, Size

_STOCK_PATCH = 16
_MOST_NAMED = 8


class BatchCost(NamedTuple):
    """What a batch is, as the loader gives it."""

    tokens: int  # of the pictures or clips themselves
    padded: int  # that as many of the largest would have
    examples: int
    text: str  # its sizes, in words


class BatchTokens:
    """Counts tokens of pictures given as (height, width): patches of the model's backbone.

    Of a stock backbone, which has none of ours, patches of 16 x 16 pixels count instead.
    """

    def __init__(self, model: nn.Module) -> None:
        model = model.module if is_model_wrapper(model) else model
        ours = (part for part in model.modules() if isinstance(part, NaViTBackbone))
        backbone = next(ours, None)
        self.patch_size = _STOCK_PATCH if backbone is None else backbone.patch_size
        pads = getattr(model, 'data_preprocessor', None)
        divisors = (getattr(pads, name, None) for name in ('pad_size_divisor', 'size_divisor'))
        self.divisor: int = next((divisor for divisor in divisors if divisor), 1)

    def of(self, data_batch: Mapping[str, Any]) -> BatchCost:
        """The cost of a batch of pictures, or of packed clips."""
        inputs = data_batch['inputs']
        if inputs and isinstance(inputs[0], PackedPatches):
            return _cost_of_packs(inputs)
        sizes = sizes_of(data_batch)
        height, width = self.canvas(sizes)
        tokens, padded = self.real(sizes), self.padded(sizes)
        text = (
            f'{len(sizes)} pictures of {_named(sizes)} pixels (height x width): {tokens:,} tokens, '
            f'and {padded:,} on the canvases of {height} x {width}, which the head computes whole'
        )
        return BatchCost(tokens, padded, len(sizes), text)

    def real(self, sizes: Sequence[Size]) -> int:
        """The patches of the pictures, a part of one at the border counted as one."""
        patch = self.patch_size
        return sum(math.ceil(h / patch) * math.ceil(w / patch) for h, w in sizes)

    def canvas(self, sizes: Sequence[Size]) -> Size:
        """The size of all once padded: that of the largest, up to the preprocessor's divisor."""
        height, width = (max(sides) for sides in zip(*sizes, strict=True))
        step = self.divisor
        return math.ceil(height / step) * step, math.ceil(width / step) * step

    def padded(self, sizes: Sequence[Size]) -> int:
        """The patches of as many canvases."""
        return len(sizes) * self.real([self.canvas(sizes)])


def _cost_of_packs(packs: Sequence[PackedPatches]) -> BatchCost:
    tokens = sum(int(item.lengths.sum()) for item in packs)
    padded = sum(item.num_examples * int(item.lengths.max()) for item in packs)
    grids = [tuple(grid) for grid in packs[0].grids.tolist()]
    text = (
        f'{len(grids)} clips of {_named(grids)} patches (time x height x width): {tokens:,} tokens'
    )
    return BatchCost(tokens, padded, len(grids), text)


def _named(sizes: Sequence[tuple[int, ...]]) -> str:
    more = len(sizes) - _MOST_NAMED
    named = ', '.join(' x '.join(map(str, size)) for size in sizes[:_MOST_NAMED])
    return f'{named} and {more} more' if more > 0 else named


def sizes_of(data_batch: Mapping[str, Any]) -> list[Size]:
    """The (height, width) of the pictures [..., h, w] in a batch as the loader gives it.

    Test-time augmentation loads a list of pictures for each view.
    """
    inputs: Sequence[Tensor | Sequence[Tensor]] = data_batch['inputs']
    views = (item if isinstance(item, (list, tuple)) else (item,) for item in inputs)
    return [(picture.shape[-2], picture.shape[-1]) for view in views for picture in view]
