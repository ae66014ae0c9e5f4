"""Test-time augmentation for boxes and masks."""

from __future__ import annotations

from collections.abc import Sequence

from mmcv.ops import batched_nms
from mmdet.models import DetTTAModel
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_flip
from mmengine.registry import MODELS
from mmengine.structures import InstanceData

_MIRRORED = {'horizontal': [-1], 'vertical': [-2], 'diagonal': [-2, -1]}  # dims of [n, h, w]


@MODELS.register_module()
class MaskTTAModel(DetTTAModel):
    """mmdet's merging of views by NMS, where each box that stays brings its mask along.

    Masks are not averaged. Arguments are those of mmdet's `DetTTAModel`, which takes boxes alone.
    """

    def _merge_single_sample(self, data_samples: Sequence[DetDataSample]) -> DetDataSample:
        found = InstanceData.cat([_upright(sample) for sample in data_samples])
        if len(found):
            boxes, kept = batched_nms(found.bboxes, found.scores, found.labels, self.tta_cfg.nms)
            found = found[kept]
            found.scores = boxes[:, -1]  # soft NMS lowers them
            found = found[: self.tta_cfg.max_per_img]
        merged = data_samples[0]
        merged.pred_instances = found
        return merged


def _upright(sample: DetDataSample) -> InstanceData:
    """What was found in one view, in the picture's own coordinates."""
    found = sample.pred_instances
    if sample.flip:
        direction = sample.flip_direction
        found.bboxes = bbox_flip(found.bboxes, sample.ori_shape, direction)
        if 'masks' in found:
            found.masks = found.masks.flip(_MIRRORED[direction])
    return found
