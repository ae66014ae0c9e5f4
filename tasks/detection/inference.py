"""A trained detector on pictures that no data set lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import encode_mask_results
from mmengine.config import Config, ConfigDict
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from ..common.inference import Predictor
from ..common.palette import Colour


class Detector(Predictor):
    """Objects in the pictures' own pixels."""

    @torch.no_grad()
    def find(self, results: dict[str, Any]) -> list[dict[str, Any]]:
        """The objects in a picture that was read, the surest first, as COCO's format has them.

        Boxes are [x, y, width, height]; where the model finds masks, `segmentation` is COCO's
        run-length code.
        """
        return self._objects(self.sample(results))

    def _objects(self, sample: DetDataSample) -> list[dict[str, Any]]:
        found = sample.pred_instances.cpu()
        found = found[found.scores.argsort(descending=True, stable=True)]
        objects = []
        for (x1, y1, x2, y2), score, label in zip(
            found.bboxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
        ):
            name, box = self.classes[label], [x1, y1, x2 - x1, y2 - y1]
            objects.append(dict(category_id=label, category_name=name, score=score, bbox=box))
        if 'masks' in found:
            codes = encode_mask_results(found.masks.numpy())
            for item, code in zip(objects, codes, strict=True):
                item['segmentation'] = {**code, 'counts': code['counts'].decode()}
        return objects


def with_flips(cfg: Config) -> None:
    """Turn a config's test into one on every picture and its mirror image, objects merged."""
    if 'tta_model' not in cfg:
        limits = cfg.model.get('test_cfg') or {}
        most = limits.get('rcnn', limits).get('max_per_img', 100)
        nms = dict(type='nms', iou_threshold=0.5)
        cfg.tta_model = dict(type='MaskTTAModel', tta_cfg=dict(nms=nms, max_per_img=most))
    if 'tta_pipeline' not in cfg:
        *rest, pack = deepcopy(cfg.test_dataloader.dataset.pipeline)
        keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
        pack['meta_keys'] = (*pack.get('meta_keys', keys), 'flip', 'flip_direction')
        flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
        cfg.tta_pipeline = [*rest, dict(type='TestTimeAug', transforms=[flips, [pack]])]
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


# --------------------------------------------------------------------------------------------------
# Drawing


def annotated(
    image: np.ndarray, objects: Sequence[Mapping[str, Any]], colours: Sequence[Colour]
) -> Image.Image:
    """The picture [h, w, 3] (RGB) at its own size: a box, a label and any mask per object."""
    picture = Image.fromarray(_tinted(image, objects, colours))
    draw = ImageDraw.Draw(picture)
    side = max(picture.size)
    line, font = max(2, round(side / 350)), ImageFont.load_default(min(40, max(12, side / 45)))
    for item in reversed(objects):  # the surest on top
        x, y, w, h = item['bbox']
        colour = colours[item['category_id']]
        draw.rectangle((x, y, x + w, y + h), outline=colour, width=line)
        score = f' {item["score"]:.2f}' if 'score' in item else ''  # the truth has none
        _label(draw, picture.size, (x, y), f'{item["category_name"]}{score}', colour, font)
    return picture


def _tinted(
    image: np.ndarray, objects: Sequence[Mapping[str, Any]], colours: Sequence[Colour]
) -> np.ndarray:
    """The picture with the masks of its objects in their colours, half through."""
    image = image.copy()
    for item in reversed(objects):
        if 'segmentation' in item:
            inside = coco_mask.decode(item['segmentation']).astype(bool)
            image[inside] = image[inside] // 2 + np.array(colours[item['category_id']]) // 2
    return image


def _label(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corner: tuple[float, float],
    text: str,
    colour: Colour,
    font: Any,
) -> None:
    """A filled label above a box's upper left corner, moved to lie within the picture."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 6
    x = max(0, min(corner[0], size[0] - width))
    y = max(0, min(corner[1] - height, size[1] - height))
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + 3 - left, y + 3 - top), text, fill='black' if bright else 'white', font=font)
