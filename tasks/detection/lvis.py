"""LVIS v1, without the `lvis` package, which numpy 2 breaks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from mmengine.registry import DATASETS
from pycocotools import mask as run_lengths

from .annotations import CATEGORY_FIELDS, Annotations, Entry, read_annotations
from .data import NaViTCocoDataset
from .federated_ap import out_of_range

_IMAGE_FIELDS = ('id', 'coco_url')


@DATASETS.register_module()
class NaViTLVISDataset(NaViTCocoDataset):
    """COCO's photos with the boxes and masks of LVIS v1; takes the place of `LVISV1Dataset`.

    The layout is mmdet's: `annotations/lvis_v1_{train,val}.json` beside COCO's folders `train2017`
    and `val2017`, and ``data_prefix=dict(img='')``, since LVIS draws on both folders for its own
    splits: a photo's folder and name are the end of its `coco_url`.
    """

    image_fields: ClassVar[Sequence[str]] = _IMAGE_FIELDS

    def _name_files(self, found: Annotations) -> None:
        for image in found.images:
            image['file_name'] = '/'.join(image['coco_url'].split('/')[-2:])
        super()._name_files(found)


def read_lvis(ann_file: str, backend_args: Entry | None = None) -> Annotations:
    """Return an LVIS annotation file with the lists of classes that its evaluation needs."""
    found = read_annotations(
        ann_file,
        backend_args,
        image_fields=(*_IMAGE_FIELDS, 'neg_category_ids', 'not_exhaustive_category_ids'),
        category_fields=(*CATEGORY_FIELDS, 'frequency'),
    )
    return replace(found, skips_ignored=True)


@dataclass(frozen=True, kw_only=True)
class LVISPicture:
    """What is known of one picture: its G boxes, and the labels that were looked for."""

    boxes: list[Entry]
    labels: np.ndarray  # [G]
    areas: np.ndarray  # [G]
    ignored: np.ndarray  # [G]
    size: tuple[int, int]
    looked_for: list[int]  # labels that it has, and labels that it surely has not
    not_exhaustive: list[int]  # labels of which not every object is marked

    def shapes(self, kind: str) -> list[Any]:
        """The boxes (x, y, width, height), or as masks in run lengths."""
        if kind == 'bbox':
            return [item['bbox'] for item in self.boxes]
        return [_run_lengths(item['segmentation'], self.size) for item in self.boxes]


class LVISTruth:
    """The pictures of an annotation file, `classes` numbered in the order in which they come."""

    def __init__(self, found: Annotations, classes: Sequence[str]) -> None:
        categories = {item['name']: item for item in found.categories}
        unknown = [name for name in classes if name not in categories]
        if unknown:
            raise ValueError(
                f'{found.file} has no category {unknown[0]!r}, but the evaluated data set has: '
                'the ann_file of the evaluator must be that of the data set'
            )
        self.file = found.file
        self.frequencies = np.array([categories[name]['frequency'] for name in classes])
        self._label_of = {categories[name]['id']: label for label, name in enumerate(classes)}
        self._images = {item['id']: item for item in found.images}
        self._boxes: dict[Any, list[Entry]] = defaultdict(list)
        for item in found.annotations:
            if item['category_id'] in self._label_of:
                self._boxes[item['image_id']].append(item)

    def picture(self, image_id: Any) -> LVISPicture:
        if image_id not in self._images:
            raise ValueError(
                f'{self.file} has no image {image_id!r}, but the evaluated data set has: the '
                'ann_file of the evaluator must be that of the data set'
            )
        image, boxes = self._images[image_id], self._boxes[image_id]
        labels = np.array([self._label_of[item['category_id']] for item in boxes], dtype=int)
        return LVISPicture(
            boxes=boxes,
            labels=labels,
            areas=np.array([item['area'] for item in boxes], dtype=float),
            ignored=np.array([bool(item.get('ignore')) for item in boxes], dtype=bool),
            size=(image['height'], image['width']),
            looked_for=[*labels, *self._labels(image['neg_category_ids'])],
            not_exhaustive=self._labels(image['not_exhaustive_category_ids']),
        )

    def num_boxes(self) -> np.ndarray:
        """[K, A]: the boxes of each class that count in each range of area, of all pictures."""
        counts = np.zeros((len(self.frequencies), 4), dtype=int)
        for image_id in self._images:
            picture = self.picture(image_id)
            counting_AG = ~out_of_range(picture.areas) & ~picture.ignored
            for a, of_range in enumerate(counting_AG):
                np.add.at(counts[:, a], picture.labels[of_range], 1)
        return counts

    def _labels(self, category_ids: Sequence[Any]) -> list[int]:
        return [self._label_of[item] for item in category_ids if item in self._label_of]


def _run_lengths(segmentation: Any, size: tuple[int, int]) -> Any:
    """A mask given by polygons or by run lengths, the latter compressed or not, compressed."""
    if isinstance(segmentation, list):
        return run_lengths.merge(run_lengths.frPyObjects(segmentation, *size))
    if isinstance(segmentation['counts'], list):
        return run_lengths.frPyObjects(segmentation, *size)
    return segmentation
