"""Classification of clips of any length, height and width, and of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor

from navit_backbone.packing import PackedPatches

from ..common.clip_sample import ClipDataSample


@MODELS.register_module()
class VideoClassifier(BaseModel):
    """Clips in a pack through the backbone, pooled to a vector each, and their classes.

    `backbone` is a `NaViTClipBackbone`, whose ``arch.pooling`` makes the vectors; `head` a
    `NaViTClipHead`. A picture is a clip of one frame: the same class classifies pictures.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        head: dict[str, Any],
        data_preprocessor: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build(backbone)
        width = self.backbone.vit.arch.embed_dims
        self.head = MODELS.build({'in_channels': width, **head})

    def forward(
        self,
        inputs: PackedPatches | Sequence[PackedPatches],
        data_samples: list[ClipDataSample] | None = None,
        mode: Literal['loss', 'predict', 'tensor'] = 'tensor',
    ) -> Any:
        """'tensor': the vectors [N, D]; 'loss' and 'predict' as OpenMMLab has them."""
        vectors = self.extract_feat(inputs)
        if mode == 'tensor':
            return vectors
        if data_samples is None:
            raise ValueError(f'mode={mode!r} needs data_samples')
        if mode == 'loss':
            return self.head.loss(vectors, data_samples)
        if mode == 'predict':
            views = [sample.get('num_views', 1) for sample in data_samples]
            return self.head.predict(vectors, data_samples, views)
        raise ValueError(f"mode={mode!r} is not one of 'tensor', 'loss', 'predict'")

    def extract_feat(self, inputs: PackedPatches | Sequence[PackedPatches]) -> Tensor:
        """One vector per example of the pack: [N, D]."""
        output = self.backbone(inputs)
        vectors: Tensor = self.backbone.pooled(output)
        return vectors
