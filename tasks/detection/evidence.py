"""What compares the detections of several arms: figures, parts of the test, and pictures.

tools/arms.py runs the comparison; this is all that it needs to know of detection.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.fileio import join_path
from PIL import Image

from ..common.classes import class_names
from ..common.fonts import drawn_names
from ..common.groups import GroupFile, group_numbers
from ..common.paired import Slice, Statistic, thirds
from ..common.palette import palette
from ..common.resampling import resize_image
from .annotations import image_path
from .average_precision import ALL, SIZES, AveragePrecision, Range, Truth
from .inference import annotated

_SHOWN_FROM = 0.3  # the score from which a detection is drawn
_DRAWN_AT = (720, 600)  # pixels: lines and labels are for this size

Content = Mapping[str, Any]  # what `predictions` gives


def evaluation_options(folder: Path) -> list[str]:
    """Overrides that let an evaluation leave its detections in `folder`, in COCO's form."""
    return [f'test_evaluator.outfile_prefix={folder.absolute() / "found"}']


def predictions(cfg: Config, folder: Path) -> dict[str, Any]:
    """The detections that an evaluation left, and the truth that they belong to."""
    data = cfg.test_dataloader.dataset
    prefix = (data.get('data_prefix') or {}).get('img', '')
    return dict(
        annotations=str(cfg.test_evaluator.ann_file),
        data_root=str(data.get('data_root') or ''),
        images=join_path(data.get('data_root') or '', prefix),
        classes=list(class_names(data)),
        predictions=json.loads((folder / 'found.bbox.json').read_text()),
    )


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some of the photos, or the boxes of some size; a detection elsewhere neither helps nor harms.

    Areas are in pixels, or `relative` to the photo.
    """

    name: str
    photos: np.ndarray  # [I] bool
    areas: Range = ALL
    relative: bool = False


class Evidence:
    """Detections of several runs on one test set, each as `predictions` gives it."""

    figures = ('AP', 'AP50', 'AP75')
    examples = 'photos'
    digits = 3  # of a fraction, as COCO has them

    def __init__(self, runs: Sequence[Content]) -> None:
        for key in ('annotations', 'classes'):
            given = sorted({json.dumps(run[key]) for run in runs})
            if len(given) > 1:
                raise ValueError(
                    f'arms are compared on one test set, but their {key} differ: '
                    f'{" and ".join(given)}; give the configs one test_dataloader and '
                    'test_evaluator, and remove the evaluation/ folders made with another'
                )
        self.classes: list[str] = runs[0]['classes']
        self.folder = str(runs[0]['images'])
        self.truth = Truth(Path(runs[0]['annotations']), self.classes, self.folder)
        self.num_examples = len(self.truth.images)
        files = GroupFile(Path(runs[0].get('data_root') or self.folder))
        self.groups = group_numbers(
            [
                str(image['group']) if image.get('group') else files[self._file(image)]
                for image in self.truth.images
            ]
        )

    def statistic(self, run: Content) -> Statistic:
        """The figures of a run on all photos."""
        return _figures(self.truth.match(run['predictions'])[0])

    def slices(self, arms: Sequence[Sequence[Content]]) -> list[Slice]:
        """All photos; by their aspect; by the size of the boxes, in pixels and in the photo."""
        parts = self._parts()
        measured = [[self._measured(parts, run) for run in arm] for arm in arms]
        slices = []
        for number, part in enumerate(parts):
            ap = measured[0][0][number]
            if ap.num_boxes:
                slices.append(
                    Slice(
                        name=part.name,
                        content=f'photos: {ap.num_photos}, boxes: {ap.num_boxes}',
                        num_groups=len(np.unique(self.groups[ap.photos_with_boxes])),
                        arms=[[_figures(run[number]) for run in arm] for arm in measured],
                    )
                )
        return slices

    def _parts(self) -> list[Part]:
        every_I = np.ones(self.num_examples, dtype=bool)
        sides = [sorted((image['height'], image['width'])) for image in self.truth.images]
        aspect_I = np.array([long / short for short, long in sides])
        shares = np.array([self.truth.share(b) for b in self.truth.boxes if not b['iscrowd']])
        parts = [Part(name='all photos', photos=every_I)]
        for low, high in thirds(aspect_I):
            name = f'long side {_between(low, high)} x the short'
            parts.append(Part(name=name, photos=(low <= aspect_I) & (aspect_I < high)))
        for size, areas in SIZES.items():
            parts.append(Part(name=f"{size} boxes (COCO's)", photos=every_I, areas=areas))
        for low, high in thirds(np.sqrt(shares)):
            name = f"box side {_between(low, high)} of the photo's"
            areas = (max(low, 0) ** 2, float(np.nextafter(high**2, 0)))
            parts.append(Part(name=name, photos=every_I, areas=areas, relative=True))
        return parts

    def _measured(self, parts: Sequence[Part], run: Content) -> list[AveragePrecision]:
        """One for each part."""
        found: dict[tuple[Range, bool], AveragePrecision] = {}
        for relative in (False, True):
            ranges = sorted({part.areas for part in parts if part.relative == relative})
            aps = self.truth.match(run['predictions'], ranges=ranges, relative=relative)
            found |= {(areas, relative): ap for areas, ap in zip(ranges, aps, strict=True)}
        return [found[part.areas, part.relative].on(part.photos) for part in parts]

    # What a person looks at

    def name(self, number: int) -> str:
        """A photo in a line of a table."""
        image = self.truth.images[number]
        boxes = sum(box['image_id'] == image['id'] for box in self.truth.boxes)
        return f'{image["file_name"]} ({image["width"]} x {image["height"]}, boxes: {boxes})'

    def drawn(self, number: int, run: Content | None) -> Image.Image:
        """A photo with what a run found on it, or with the truth."""
        image = self.truth.images[number]
        pixels = mmcv.imread(self._file(image), channel_order='rgb')
        (w, h), scale = mmcv.rescale_size(pixels.shape[1::-1], _DRAWN_AT, return_scale=True)
        pixels = resize_image(pixels, (h, w))
        items = self.truth.boxes if run is None else run['predictions']
        here = [item for item in items if item['image_id'] == image['id']]
        shown = [item for item in here if item.get('score', 1) >= _SHOWN_FROM]
        shown.sort(key=lambda item: -item.get('score', 1))
        objects = [self._object(item, scale) for item in shown]
        names = drawn_names(tuple(category['name'] for category in self.truth.categories))
        return annotated(pixels, objects, palette(len(names)), names)

    def _file(self, image: Content) -> str:
        return image_path(self.folder, image['file_name'])

    def _object(self, item: Content, scale: float) -> dict[str, Any]:
        """A box as it is drawn, on a photo of another scale."""
        ids = [category['id'] for category in self.truth.categories]
        label = ids.index(item['category_id'])
        return dict(
            category_id=label,
            category_name=self.truth.categories[label]['name'],
            bbox=[scale * side for side in item['bbox']],
            **({'score': item['score']} if 'score' in item else {}),
        )


def _figures(ap: AveragePrecision) -> Statistic:
    """AP, AP50 and AP75 out of the ten thresholds of IoU."""

    def figures(counts_BI: np.ndarray) -> np.ndarray:
        ap_BT = ap(counts_BI)
        return np.stack([ap_BT.mean(1), ap_BT[:, 0], ap_BT[:, 5]], 1)

    return figures


def _between(low: float, high: float) -> str:
    if np.isinf(low):
        return f'below {high:.2f}'
    return f'from {low:.2f}' if np.isinf(high) else f'{low:.2f} to {high:.2f}'
