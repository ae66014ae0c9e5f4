"""Truth and prediction over the image, for `tools/test.py --show-dir`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from mmengine.registry import HOOKS
from mmseg.structures import SegDataSample
from PIL import Image

from ..common.drawing_hook import DrawingHook
from ..common.overlay import labelled


@HOOKS.register_module()
class OverlayHook(DrawingHook):
    """Draws each test image under its truth and its prediction, with a legend of the classes."""

    def drawing(
        self, image: np.ndarray, sample: SegDataSample, meta: Mapping[str, Any]
    ) -> Image.Image:
        maps = {'prediction': _numbers(sample.pred_sem_seg)}
        if 'gt_sem_seg' in sample:
            maps = {'truth': _numbers(sample.gt_sem_seg), **maps}
        return labelled(image, [*maps.values()], meta['classes'], meta['palette'], titles=[*maps])


def _numbers(data: Any) -> np.ndarray:
    numbers: np.ndarray = data.data.squeeze(0).cpu().numpy().astype(np.uint8)
    return numbers
