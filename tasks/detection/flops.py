"""FLOPs of what follows the backbone in an mmdet detector: a function of the canvas alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import nn

from navit_backbone.packing import Size

from ..common.flops import Parts, count
from ..common.shallow import shallow
from .preprocessor import NaViTDetDataPreprocessor

_TOLERANCE = 1e-3


class HeadFlops:
    """FLOPs of neck and heads for one picture, at prediction; counted by running them.

    Convolutions cost in proportion to the canvas, attention over maps to its square: three canvases
    tell all others, and a fourth is the proof. Regions cost in proportion to their number, and each
    stage hands on as many as its test_cfg allows, since what random weights would leave is chance.
    RoIAlign, the sampling of deformable attention and NMS count as nothing.
    """

    def __init__(self, model: Mapping[str, Any]) -> None:
        self.model: Any = MODELS.build(shallow(model)).eval()
        # else all of a canvas is picture to the backbone
        self.sizes_are_told = isinstance(self.model.data_preprocessor, NaViTDetDataPreprocessor)
        self._stages = _stages_of(self.model)
        divisor = getattr(self.model.data_preprocessor, 'pad_size_divisor', None) or 1
        # a side that all strides divide, and cells enough for as many queries as heads have
        unit = math.lcm(divisor, 16 * getattr(self.model.backbone, 'patch_size', 16))
        *points, proof = [(unit * h, unit * w) for h, w in ((1, 1), (1, 2), (1, 3), (2, 2))]
        counted = {size: self._count(size) for size in (*points, proof)}
        areas = [h * w for h, w in points]
        self._curves = {
            part: np.polyfit(areas, [counted[size][part] for size in points], deg=2)
            for part in ('neck', 'head')
        }
        told, true = (sum(parts.values()) for parts in (self._by_area(proof), counted[proof]))
        if abs(told - true) > _TOLERANCE * true:
            raise ValueError(
                f'{type(self.model).__name__} has {true:,} FLOPs after its backbone on {proof}, '
                f'where {points} tell {told:,}: they are no function of the area, and not countable'
            )
        self._regions = 0  # FLOPs of all regions but the first
        for stage, limit in self._stages.items():
            step = self._count(points[0], stage)['head'] - counted[points[0]]['head']
            self._regions += step * (limit - 1)

    def of(self, canvas: Size) -> Parts:
        """For one picture on a canvas of this (height, width)."""
        parts = self._by_area(canvas)
        return {**parts, 'head': parts['head'] + self._regions}

    def parameters(self) -> Parts:
        """The parameters after the backbone."""
        parts = {'neck': 0, 'head': 0}
        for name, parameter in self.model.named_parameters():
            if not name.startswith('backbone.'):
                parts['neck' if name.startswith('neck.') else 'head'] += parameter.numel()
        return parts

    def _by_area(self, canvas: Size) -> Parts:
        area = canvas[0] * canvas[1]
        return {part: round(np.polyval(curve, area)) for part, curve in self._curves.items()}

    def _count(self, canvas: Size, doubled: str = '') -> Parts:
        """With one region in each stage, and two in one that is named."""
        for stage, head in _region_sources(self.model).items():
            head.predict_by_feat = _regions(2 if stage == doubled else 1)
        inputs = torch.zeros(1, 3, *canvas)
        inputs.image_sizes = [canvas]  # type: ignore[attr-defined]
        names = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
        meta = dict.fromkeys(names, canvas) | {'scale_factor': (1.0, 1.0)}
        samples = [DetDataSample(metainfo=meta)]
        counts = count(lambda: self.model(inputs, samples, mode='predict'))
        name = type(self.model).__name__
        neck = counts.get(f'{name}.neck', 0)
        return {'neck': neck, 'head': counts['Global'] - counts[f'{name}.backbone'] - neck}


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
