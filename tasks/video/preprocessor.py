"""Packed clips onto the device, as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS

from navit_backbone.packing import PackedPatches

from ..common.clip_packing import normalised


@MODELS.register_module()
class NaViTClipDataPreprocessor(BaseDataPreprocessor):
    """What `pack_clips` made, normalised on the device in one operation a pack.

    `mean` and `std` are of RGB in [0, 255], as clips are loaded.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], *, non_blocking: bool = True
    ) -> None:
        super().__init__(non_blocking)
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f'mean={list(mean)} and std={list(std)}: as many, and std above 0')
        self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer('std', torch.tensor(std, dtype=torch.float32), persistent=False)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        packs = data['inputs']
        if not packs or not all(isinstance(item, PackedPatches) for item in packs):
            raise ValueError(
                'the batch is not packed: set collate_fn=dict(type="pack_clips", patch_size=...) '
                'in the dataloader'
            )
        inputs = [normalised(item.to(self.device), self.mean, self.std) for item in packs]
        return dict(inputs=inputs, data_samples=self.cast_data(data['data_samples']))
