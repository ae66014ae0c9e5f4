"""What a batch costs in tokens, told from the sizes of its pictures on the host."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from navit_backbone.backbone import NaViTBackbone
from navit_backbone.packing import Size

_STOCK_PATCH = 16


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


def sizes_of(data_batch: Mapping[str, Any]) -> list[Size]:
    """The (height, width) of the pictures [..., h, w] in a batch as the loader gives it.

    Test-time augmentation loads a list of pictures for each view.
    """
    inputs: Sequence[Tensor | Sequence[Tensor]] = data_batch['inputs']
    views = (item if isinstance(item, (list, tuple)) else (item,) for item in inputs)
    return [(picture.shape[-2], picture.shape[-1]) for view in views for picture in view]
