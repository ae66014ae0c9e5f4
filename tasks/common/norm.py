"""The norm of our necks and heads: it sees one cell at a time, and so never the padding."""

from __future__ import annotations

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of a map [B, C, H, W].

    BatchNorm and GroupNorm take their statistics over the canvas, padding and neighbours included;
    this one does not. As a `norm_cfg` give it its eps, since mmcv fills in 1e-5 where none stands:
    ``norm_cfg=dict(type='LayerNorm2d', eps=1e-6)``.

    What it gives lies in memory as what it took, since mmcv's compiled operations (RoIAlign, for
    one) read memory in the order of [B, C, H, W], whatever the strides say.
    """

    def __init__(self, num_channels: int, *, eps: float = 1e-6) -> None:
        super().__init__(num_channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out if x.is_contiguous(memory_format=torch.channels_last) else out.contiguous()
