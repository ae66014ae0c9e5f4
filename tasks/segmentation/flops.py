"""FLOPs of what follows the backbone in an mmseg segmentor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from mmengine.registry import MODELS
from mmseg.structures import SegDataSample

from navit_backbone.packing import Size

from ..common.batch_tokens import BatchTokens
from ..common.flops import (
    BackboneFlops,
    CanvasFlops,
    Parts,
    after_backbone,
    count,
    side_of_all_strides,
)
from ..common.shallow import shallow
from .head import TokenHead
from .preprocessor import NaViTSegDataPreprocessor

__all__ = ['BackboneFlops', 'HeadFlops']


class HeadFlops:
    """FLOPs of neck and heads at prediction; counted by running them.

    Our own heads cost what the tokens of the pictures cost; stock heads are a function of the
    canvas. Resizing counts as nothing.
    """

    def __init__(self, model: Mapping[str, Any]) -> None:
        config = shallow(model)
        config.pop('auxiliary_head', None)  # of training alone
        self.model: Any = MODELS.build(config).eval()
        self.tokens = BatchTokens(self.model)
        # else all of a canvas is picture to the backbone
        self.sizes_are_told = isinstance(self.model.data_preprocessor, NaViTSegDataPreprocessor)
        self._on_tokens = cache(self._count_tokens)
        self._curve = None
        if not isinstance(self.model.decode_head, TokenHead):
            unit = side_of_all_strides(self.model)
            self._curve = CanvasFlops(self._count, unit=unit, name=type(self.model).__name__)

    def of(self, sizes: Sequence[Size], canvas: Size) -> Parts:
        """For a batch of pictures of these sizes, all on canvases of one (height, width)."""
        if self._curve is None:
            return self._on_tokens(tuple(sorted(sizes)), canvas)
        return {part: len(sizes) * flops for part, flops in self._curve.of(canvas).items()}

    def _count_tokens(self, sizes: Sequence[Size], canvas: Size) -> Parts:
        """The head's alone, on maps that have a shape and no values: nothing is computed."""
        head = self.model.decode_head.to('meta')
        grid = (-(-canvas[0] // head.in_stride), -(-canvas[1] // head.in_stride))
        widths = self.model.backbone.vit.arch.embed_dims
        maps = []
        for _ in self.model.backbone.out_indices:
            item = torch.empty(len(sizes), widths, *grid, device='meta')
            item.image_sizes = list(sizes)  # type: ignore[attr-defined]
            maps.append(item)
        return {'neck': 0, 'head': count(lambda: head(maps))['Global']}

    def _count(self, canvas: Size) -> Parts:
        inputs = torch.zeros(1, 3, *canvas)
        inputs.image_sizes = [canvas]  # type: ignore[attr-defined]
        samples = [SegDataSample(metainfo=dict.fromkeys(('img_shape', 'ori_shape'), canvas))]
        return after_backbone(self.model, lambda: self.model(inputs, samples, mode='predict'))
