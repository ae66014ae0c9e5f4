"""A trained detector on pictures that no data set lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from mmdet.structures.mask import encode_mask_results
from mmengine.config import Config, ConfigDict
from mmengine.structures import InstanceData
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from ..common.fonts import TextLine, draw_label
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
        return objects_of(self.sample(results).pred_instances, self.classes)


def objects_of(instances: InstanceData, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return instances as COCO's format has objects, the highest score first.

    Those of the truth have no `scores`, and keep their order.
    """
    found = instances.cpu()
    if 'scores' in found:
        found = found[found.scores.argsort(descending=True, stable=True)]
    boxes = getattr(found.bboxes, 'tensor', found.bboxes)
    objects: list[dict[str, Any]] = []
    for (x1, y1, x2, y2), label in zip(boxes.tolist(), found.labels.tolist(), strict=True):
        box = [x1, y1, x2 - x1, y2 - y1]
        objects.append(dict(category_id=label, category_name=classes[label], bbox=box))
    for item, score in zip(objects, found.get('scores', ()), strict=False):
        item['score'] = float(score)
    if 'masks' in found:
        masks = found.masks
        masks = masks.to_ndarray() if hasattr(masks, 'to_ndarray') else np.asarray(masks)
        codes = encode_mask_results(masks)
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
    image: np.ndarray,
    objects: Sequence[Mapping[str, Any]],
    colours: Sequence[Colour],
    names: Sequence[str] = (),
) -> Image.Image:
    """Draw a box, a label and any mask of each object on the image [h, w, 3] (RGB), at its size.

    `colours` and `names` are of the categories by number; without `names` the objects' own
    `category_name` is drawn.
    """
    picture = Image.fromarray(_tinted(image, objects, colours))
    draw = ImageDraw.Draw(picture)
    side = max(picture.size)
    line, size = max(2, round(side / 350)), round(min(40, max(12, side / 45)))
    for item in reversed(objects):  # the surest on top
        x, y, w, h = item['bbox']
        colour = colours[item['category_id']]
        # Pillow draws lines beyond the image pixel by pixel too
        x1, x2 = np.clip((x, x + max(w, 0)), -line, picture.width + line).tolist()
        y1, y2 = np.clip((y, y + max(h, 0)), -line, picture.height + line).tolist()
        draw.rectangle((x1, y1, x2, y2), outline=colour, width=line)
        score = f' {item["score"]:.2f}' if 'score' in item else ''  # the truth has none
        name = names[item['category_id']] if names else item['category_name']
        label = TextLine((name, score), size, max_width=draw.im.size[0] - 6)
        draw_label(draw, (x, y), label, colour)
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
