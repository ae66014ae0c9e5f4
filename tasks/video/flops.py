"""FLOPs of a classifier of clips, as tools/get_flops.py counts them: a size is (frames, h, w)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.registry import MODELS

from navit_backbone.backbone import NaViTClipBackbone
from navit_backbone.packing import PatchShape, pack, patchify

from ..common import flops
from ..common.flops import Parts, count

ClipSize = tuple[int, int, int]


class BackboneFlops(flops.BackboneFlops):
    """FLOPs of our backbone of clips, by part, the pooling among them."""

    kind = NaViTClipBackbone

    def _run(self, sizes: Sequence[ClipSize]) -> dict[str, int]:
        packs = [
            pack([patchify(torch.empty(3, *size, device='meta'), shape) for size in sizes])
            for shape in self.backbone.vit.patch_shapes
        ]
        counts = count(lambda: self.backbone.pooled(self.backbone(packs)))
        inside = counts[type(self.backbone).__name__]
        return {**counts, 'pool': counts['Global'] - inside}


class ClipTokens:
    """Counts tokens of clips given as (frames, height, width)."""

    def __init__(self, shapes: Sequence[PatchShape]) -> None:
        self.shapes = shapes

    def real(self, sizes: Sequence[ClipSize]) -> int:
        """The tubelets of the clips, of all shapes."""
        return sum(
            math.prod(math.ceil(side / step) for side, step in zip(size, shape, strict=True))
            for size in sizes
            for shape in self.shapes
        )

    def canvas(self, sizes: Sequence[ClipSize]) -> ClipSize:
        """As long as the longest, as high as the highest and as wide as the widest."""
        frames, height, width = (max(sides) for sides in zip(*sizes, strict=True))
        return frames, height, width

    def padded(self, sizes: Sequence[ClipSize]) -> int:
        """The tubelets of as many canvases."""
        return len(sizes) * self.real([self.canvas(sizes)])


class HeadFlops:
    """FLOPs of the layer behind the pooled vector."""

    sizes_are_told = True

    def __init__(self, model: Mapping[str, Any]) -> None:
        with torch.device('meta'):
            self.model: Any = MODELS.build({**model, 'backbone': _unloaded(model)}).eval()
        self.tokens = ClipTokens(self.model.backbone.vit.patch_shapes)

    def of(self, sizes: Sequence[ClipSize], canvas: ClipSize) -> Parts:
        """For a batch of clips; a canvas makes no difference."""
        width = self.model.backbone.vit.arch.embed_dims
        vectors = torch.empty(len(sizes), width, device='meta')
        return {'neck': 0, 'head': count(lambda: self.model.head(vectors))['Global']}


def _unloaded(model: Mapping[str, Any]) -> dict[str, Any]:
    return {**model['backbone'], 'init_cfg': None}
