"""COCO's average precision as a statistic: matched once, told for any number of resamples.

Matching is that of COCO, and depends on one photo at a time. What follows, the precision at
101 recalls, depends on how often each photo is counted, and is done here for many resamples at
once: a photo counted twice is a photo that stands in the set twice. Detections of equal scores keep
the order of their photos, in a resample too.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import Params

from ..common.wording import few
from .annotations import read_annotations
from .coco_eval import VectorizedCOCOeval

_RECALLS = Params('bbox').recThrs
_TINY = np.spacing(1)  # COCO adds it to the number of detections

Range = tuple[float, float]
ALL: Range = (0.0, 1e10)
# COCO's, by the area of a box in pixels
SIZES: dict[str, Range] = {
    'small': (0.0, 32.0**2),
    'medium': (32.0**2, 96.0**2),
    'large': (96.0**2, 1e10),
}


@dataclass(frozen=True, kw_only=True)
class ClassMatches:
    """The detections D of one class, by falling score, against the boxes of I photos."""

    photo: np.ndarray  # [D] that each is on
    hit: np.ndarray  # [T, D] whether it found a box, at each of T thresholds of IoU
    counted: np.ndarray  # [T, D] whether it counts at all: not so in a crowd, or out of range
    num_boxes: np.ndarray  # [I] that count, on each photo

    def on(self, photos_I: np.ndarray) -> ClassMatches:
        """The same on the photos of a mask alone."""
        kept_D = photos_I[self.photo]
        return ClassMatches(
            photo=self.photo[kept_D],
            hit=self.hit[:, kept_D],
            counted=self.counted[:, kept_D],
            num_boxes=self.num_boxes * photos_I,
        )

    def average_precision(self, counts_BI: np.ndarray, num_boxes_B: np.ndarray) -> np.ndarray:
        """[B, T]."""
        weight_BD = counts_BI[:, self.photo]
        of_each = zip(self.hit, self.counted, strict=True)
        aps = [_average_precision(weight_BD, num_boxes_B, *threshold) for threshold in of_each]
        return np.stack(aps, 1)


def _average_precision(
    weight_BD: np.ndarray, num_boxes_B: np.ndarray, hit_D: np.ndarray, counted_D: np.ndarray
) -> np.ndarray:
    """[B], at one threshold of IoU. Only the ranks of the K hits matter: there recall grows."""
    counted = np.flatnonzero(counted_D)
    hits = np.flatnonzero(hit_D[counted])
    if not len(hits):
        return np.zeros(len(weight_BD))
    weight_BD = weight_BD[:, counted[: hits[-1] + 1]]
    begins = np.concatenate([[0], hits[:-1] + 1])  # behind the hit before
    found_BK = np.add.reduceat(weight_BD, begins, axis=1).cumsum(1)
    right_BK = weight_BD[:, hits].cumsum(1)
    precision_BK = right_BK / (found_BK + _TINY)
    best_BK = np.maximum.accumulate(precision_BK[:, ::-1], 1)[:, ::-1]  # at this recall or more
    recall_BK = right_BK / np.maximum(num_boxes_B, 1)[:, None]
    reached_BK = np.searchsorted(_RECALLS, recall_BK, side='right')
    return (np.diff(reached_BK, prepend=0) * best_BK).sum(1) / len(_RECALLS)


@dataclass(frozen=True)
class AveragePrecision:
    """counts [B, I] of photos -> [B, T]: the mean over the classes that have boxes, else NaN."""

    classes: Sequence[ClassMatches]

    def on(self, photos_I: np.ndarray) -> AveragePrecision:
        """The same on the photos of a mask alone."""
        return AveragePrecision([matches.on(photos_I) for matches in self.classes])

    @property
    def num_boxes(self) -> int:
        return int(sum(matches.num_boxes.sum() for matches in self.classes))

    @property
    def photos_with_boxes(self) -> np.ndarray:
        """Mask [I] of the photos that have such boxes."""
        mask: np.ndarray = np.any([matches.num_boxes > 0 for matches in self.classes], 0)
        return mask

    @property
    def num_photos(self) -> int:
        """Number of photos that have such boxes."""
        return int(self.photos_with_boxes.sum())

    def __call__(self, counts_BI: np.ndarray) -> np.ndarray:
        total_BT, present_B = 0.0, np.zeros(len(counts_BI))
        for matches in self.classes:
            num_boxes_B = counts_BI @ matches.num_boxes
            ap_BT = matches.average_precision(counts_BI, num_boxes_B)
            total_BT = total_BT + np.where(num_boxes_B[:, None] > 0, ap_BT, 0)
            present_B += num_boxes_B > 0
        with np.errstate(invalid='ignore'):  # 0 / 0 where no class has boxes
            return total_BT / present_B[:, None]


class Truth:
    """The boxes of a COCO annotation file, against which detections are matched.

    Those that no detection can match are left out, as in `NaViTCocoMetric`. Sizes that the file
    lacks are read from the images in `folder`.
    """

    def __init__(self, file: Path, classes: Sequence[str], folder: str = '') -> None:
        found = read_annotations(str(file))
        if unreadable := found.read_sizes(folder):
            raise ValueError(
                f'{file}: {len(unreadable):,} of {len(found.images):,} images have no height and '
                f'width, and the files cannot be read: {few(unreadable)}'
            )
        found = found.matchable()
        self.images: list[dict[str, Any]] = sorted(found.images, key=lambda item: item['id'])
        self.categories = [item for item in found.categories if item['name'] in classes]
        ids = {item['id'] for item in self.categories}
        self.boxes: list[dict[str, Any]] = [
            dict(item, id=number)  # for COCOeval a box of id 0 is never found
            for number, item in enumerate(found.annotations, start=1)
            if item['category_id'] in ids
        ]
        self.counted = found.counted_detections()
        sizes = {item['id']: item['height'] * item['width'] for item in self.images}
        self._pixels: dict[Any, int] = sizes

    def share(self, box: dict[str, Any]) -> float:
        """The part of its photo that a box covers."""
        return float(box['bbox'][2] * box['bbox'][3] / self._pixels[box['image_id']])

    def match(
        self,
        detections: Sequence[dict[str, Any]],
        *,
        ranges: Sequence[Range] = (ALL,),
        relative: bool = False,
    ) -> list[AveragePrecision]:
        """One statistic for each range of areas, from and to, at `counted` detections a photo.

        Areas are in pixels, as the annotations have them, or `relative` to the photo.
        """
        truth = self._coco(self.boxes, relative=relative)
        area = [dict(item, area=item['bbox'][2] * item['bbox'][3]) for item in detections]
        found = self._coco(
            [dict(item, id=i, iscrowd=0) for i, item in enumerate(area, 1)], relative=relative
        )
        evaluation = VectorizedCOCOeval(truth, found, 'bbox')
        evaluation.params.areaRng = [list(limits) for limits in ranges]
        evaluation.params.maxDets = [self.counted]
        with redirect_stdout(StringIO()):
            evaluation.evaluate()
        shape = (len(self.categories), len(ranges), len(self.images))
        records = np.empty(shape, dtype=object)
        records.flat = evaluation.evalImgs
        thresholds = len(evaluation.params.iouThrs)
        return [
            AveragePrecision([_class_matches(row, thresholds) for row in records[:, number]])
            for number in range(len(ranges))
        ]

    def _coco(self, boxes: Sequence[dict[str, Any]], *, relative: bool) -> COCO:
        """Boxes as pycocotools takes them; copies, as it writes into what it is given."""
        coco = COCO()
        copies = [dict(item, area=self.share(item)) if relative else dict(item) for item in boxes]
        coco.dataset = dict(
            images=self.images, annotations=copies, categories=self.categories, info={}
        )
        with redirect_stdout(StringIO()):
            coco.createIndex()
        return coco


def _class_matches(records: np.ndarray, num_thresholds: int) -> ClassMatches:
    """What COCOeval found photo by photo (None: neither boxes nor detections), in one order."""
    num_boxes_I = np.array(
        [0 if item is None else np.count_nonzero(item['gtIgnore'] == 0) for item in records]
    )
    photos = [i for i, item in enumerate(records) if item is not None]
    score_D = np.concatenate([[], *(records[i]['dtScores'] for i in photos)])
    photo_D = np.repeat(photos, [len(records[i]['dtScores']) for i in photos]).astype(int)
    none_TD = [np.zeros((num_thresholds, 0))]
    ignored_TD = np.concatenate([*none_TD, *(records[i]['dtIgnore'] for i in photos)], 1) > 0
    matched_TD = np.concatenate([*none_TD, *(records[i]['dtMatches'] for i in photos)], 1) > 0
    order = np.argsort(-score_D, kind='mergesort')  # as COCOeval: equal scores in photos' order
    return ClassMatches(
        photo=photo_D[order],
        hit=matched_TD[:, order],
        counted=~ignored_TD[:, order],
        num_boxes=num_boxes_I,
    )
