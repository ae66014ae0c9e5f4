"""FLOPs of what follows the backbone in an mmdet detector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import nn

from navit_backbone.packing import Size

from ..common.batch_tokens import BatchTokens
from ..common.flops import BackboneFlops, CanvasFlops, Parts, after_backbone, side_of_all_strides
from ..common.shallow import shallow
from .preprocessor import NaViTDetDataPreprocessor

__all__ = ['BackboneFlops', 'HeadFlops']


class HeadFlops:
    """FLOPs of neck and heads at prediction; counted by running them.

    A function of the canvas, and of the number of regions: each stage hands on as many as its
    test_cfg allows, since what random weights would leave is chance. RoIAlign, the sampling of
    deformable attention and NMS count as nothing.
    """

    def __init__(self, model: Mapping[str, Any]) -> None:
        self.model: Any = MODELS.build(shallow(model)).eval()
        self.tokens = BatchTokens(self.model)
        # else all of a canvas is picture to the backbone
        self.sizes_are_told = isinstance(self.model.data_preprocessor, NaViTDetDataPreprocessor)
        unit = side_of_all_strides(self.model)
        name = type(self.model).__name__
        self._curve = CanvasFlops(self._count, unit=unit, name=name)
        self._regions = 0  # FLOPs of all regions but the first
        for stage, limit in _stages_of(self.model).items():
            step = self._count(self._curve.smallest, stage)['head']
            self._regions += (step - self._curve.at_smallest['head']) * (limit - 1)

    def of(self, sizes: Sequence[Size], canvas: Size) -> Parts:
        """For a batch of pictures of these sizes, all on canvases of one (height, width)."""
        parts = self._curve.of(canvas)
        parts['head'] += self._regions
        return {part: len(sizes) * flops for part, flops in parts.items()}

    def _count(self, canvas: Size, doubled: str = '') -> Parts:
        """With one region in each stage, and two in one that is named."""
        for stage, head in _region_sources(self.model).items():
            head.predict_by_feat = _regions(2 if stage == doubled else 1)
        inputs = torch.zeros(1, 3, *canvas)
        inputs.image_sizes = [canvas]  # type: ignore[attr-defined]
        names = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
        meta = dict.fromkeys(names, canvas) | {'scale_factor': (1.0, 1.0)}
        samples = [DetDataSample(metainfo=meta)]
        return after_backbone(self.model, lambda: self.model(inputs, samples, mode='predict'))


def _region_sources(model: Any) -> dict[str, Any]:
    """The heads of a two-stage detector that hand regions on, by their names in its test_cfg."""
    boxes = getattr(getattr(model, 'roi_head', None), 'bbox_head', None)
    heads = {
        'rpn': getattr(model, 'rpn_head', None),
        'rcnn': boxes[-1] if isinstance(boxes, nn.ModuleList) else boxes,
    }
    return {stage: head for stage, head in heads.items() if head is not None}


def _stages_of(model: Any) -> dict[str, int]:
    """The most regions that each stage hands on."""
    return {stage: model.test_cfg[stage].max_per_img for stage in _region_sources(model)}


def _regions(count: int) -> Callable[..., list[InstanceData]]:
    """In place of a head's own choice."""

    def predict_by_feat(*_: Any, **__: Any) -> list[InstanceData]:
        return [
            InstanceData(
                bboxes=torch.tensor([[0.0, 0.0, 64.0, 64.0]]).repeat(count, 1),
                scores=torch.ones(count),
                labels=torch.zeros(count, dtype=torch.long),
            )
        ]

    return predict_by_feat
