"""Objects of the truth and of the prediction, for `tools/test.py --show-dir`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from mmdet.structures import DetDataSample
from mmengine.registry import HOOKS
from PIL import Image, ImageDraw

from ..common.drawing_hook import DrawingHook
from ..common.fonts import TextLine, drawn_names
from ..common.palette import palette
from ..common.published import palette_in
from .inference import annotated, objects_of

_LINE, _GAP = 28, 8  # pixels
_INK, _PAPER = (30, 30, 34), (250, 250, 248)


@HOOKS.register_module()
class BoxHook(DrawingHook):
    """Draws the true objects of each test image next to the predicted ones.

    `score_thr` is the lowest score that is drawn.
    """

    def __init__(self, *, score_thr: float = 0.3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.score_thr = score_thr

    def drawing(
        self, image: np.ndarray, sample: DetDataSample, meta: Mapping[str, Any]
    ) -> Image.Image:
        names = drawn_names(tuple(meta['classes']))
        colours = palette_in(dict(meta))
        if len(colours) != len(names):
            colours = palette(len(names))
        found = sample.pred_instances
        parts = {'prediction': objects_of(found[found.scores >= self.score_thr], names)}
        if 'gt_instances' in sample and not sample.get('flip', False):  # of --tta's mirror image
            parts = {'truth': objects_of(sample.gt_instances, names), **parts}
        width = image.shape[1]
        sheet = Image.new(
            'RGB', (len(parts) * (width + _GAP) - _GAP, image.shape[0] + _LINE), _PAPER
        )
        draw = ImageDraw.Draw(sheet)
        for number, (title, objects) in enumerate(parts.items()):
            x = number * (width + _GAP)
            TextLine(title, 18).draw(draw, (x + 4, 4), _INK)
            sheet.paste(annotated(image, objects, colours), (x, _LINE))
        return sheet
