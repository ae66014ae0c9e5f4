"""Data sets in COCO's format."""

from __future__ import annotations

import difflib
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from mmdet.datasets import CocoDataset
from mmengine.fileio import exists
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from ..common.classes import Classes
from ..common.dataset import SeededSamples
from ..common.groups import GroupFile
from ..common.palette import palette
from ..common.wording import few
from .annotations import IMAGE_FIELDS, Annotations, category_names, read_annotations


@DATASETS.register_module()
class NaViTCocoDataset(SeededSamples, CocoDataset):
    """Boxes and masks in COCO's format, every draw of a sample seeded.

    The classes are those of the annotation file, or a part of them in the file's order:
    ``metainfo=dict(classes=...)``. All arguments are those of mmdet's `CocoDataset`, and so are the
    samples; a file against the format is refused, and what mmdet leaves out in silence is logged.

    An image record may have a field `group` (or ``groups.csv`` in `data_root` lists it, with the
    columns `file` and `group`): images of one group, as duplicates or crops of one scan, are
    resampled together in intervals, and never both trained on and held out.
    """

    METAINFO: ClassVar[dict[str, Any]] = {}  # not COCO's 80 classes
    image_fields: ClassVar[Sequence[str]] = IMAGE_FIELDS

    def __init__(self, *args: Any, lazy_init: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, lazy_init=True, **kwargs)
        # mmengine's default names another key, which stands for data_root, than mmdet reads
        self.data_prefix.setdefault('img', self.data_prefix.get('img_path', ''))
        if not lazy_init:
            self.full_init()
        # mmdet's Inferencers build a lazy data set for its colours, on machines without the data
        elif exists(self.ann_file, backend_args=self.backend_args):
            self._name_classes(category_names(self.ann_file, self.backend_args))

    def load_data_list(self) -> list[dict[str, Any]]:
        found = read_annotations(self.ann_file, self.backend_args, image_fields=self.image_fields)
        self._name_classes(tuple(item['name'] for item in found.categories))
        chosen = set(self._metainfo['classes'])
        self.cat_ids = [item['id'] for item in found.categories if item['name'] in chosen]
        self.cat2label = {identity: label for label, identity in enumerate(self.cat_ids)}
        masks = any(getattr(item, 'with_mask', False) for item in self.pipeline.transforms)
        for remark in [*_remarks(found, self.cat_ids), *(_masks_remark(found) if masks else ())]:
            print_log(f'{self.ann_file}: {remark}', 'current', logging.WARNING)
        return self._data_list(found)

    def _data_list(self, found: Annotations) -> list[dict[str, Any]]:
        """The samples, and the maps of categories to images, as mmdet's loader gives them."""
        self.cat_img_map: dict[Any, list[Any]] = defaultdict(list)
        by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for item in found.annotations:
            self.cat_img_map[item['category_id']].append(item['image_id'])
            by_image[item['image_id']].append(item)
        records = []
        groups = GroupFile(self.data_root or '.')
        for item in found.images:
            record = self.parse_data_info(
                dict(raw_img_info={**item, 'img_id': item['id']}, raw_ann_info=by_image[item['id']])
            )
            if group := item.get('group') or groups[record['img_path']]:
                record['group'] = str(group)
            records.append(record)
        return records

    def filter_data(self) -> list[dict[str, Any]]:
        """The pictures that mmdet would keep, which must be one at least."""
        left: list[dict[str, Any]] = super().filter_data()
        if not left:
            raise ValueError(
                f'{self.ann_file}: none of its {len(self.data_list)} pictures is left, as '
                f'filter_cfg={self.filter_cfg} asks for a size and for boxes of '
                f'{few(self.metainfo["classes"])}: correct the file, or set filter_empty_gt=False'
            )
        return left

    def _name_classes(self, found: Classes) -> None:
        given = self._metainfo.get('classes')
        classes = found if given is None else _chosen(given, found, self.ann_file)
        self._metainfo['classes'] = classes
        self._metainfo.setdefault('palette', palette(len(classes)))


def _masks_remark(found: Annotations) -> Iterator[str]:
    """Let mmdet ignore boxes without a mask, as it does those whose polygons have no area."""
    without = found.without_mask()
    if without and len(without) == len(found.annotations):
        raise ValueError(
            f'{found.file}: no annotation has a segmentation, but the pipeline loads masks: use a '
            'detector of boxes and LoadAnnotations(with_bbox=True), or add masks'
        )
    for item in without:
        item['segmentation'] = [[]]
    if without:
        ids = few([item['id'] for item in without])
        share = f'{len(without):,} of {len(found.annotations):,} boxes'
        yield f'{share} have no mask and are ignored: id {ids}'


def _remarks(found: Annotations, cat_ids: Sequence[Any]) -> Iterator[str]:
    """What is legal, and yet most likely not meant."""
    for reason, entries in found.unusable().items():
        ids = few([item['id'] for item in entries])
        share = f'{len(entries):,} of {len(found.annotations):,} boxes'
        yield f'{share} are left out of training, {reason}: id {ids}'
    unseen = {*cat_ids} - {item['category_id'] for item in found.annotations}
    empty = [item['name'] for item in found.categories if item['id'] in unseen]
    if empty:
        yield f'{len(empty)} of {len(cat_ids)} classes have no box: {few(empty)}'


def _chosen(given: Sequence[str], found: Classes, ann_file: str) -> Classes:
    """The `given` classes. mmdet numbers them as the file does, so another order is refused."""
    unknown = [name for name in given if name not in set(found)]
    if unknown:
        near = difflib.get_close_matches(str(unknown[0]), found, 3) or found[:20]
        raise ValueError(
            f'metainfo.classes: {unknown[0]!r} is none of the {len(found)} categories of '
            f'{ann_file}, which has {", ".join(near)}: take names from there'
        )
    expected = tuple(name for name in found if name in set(given))
    if not given or tuple(given) != expected:
        raise ValueError(
            f'metainfo.classes={list(given)} must name categories of {ann_file} in its order, '
            f'{list(expected or found)}: leave classes out to take them all, or keep to that order'
        )
    return expected
