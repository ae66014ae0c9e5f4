"""Data sets in COCO's format."""

from __future__ import annotations

import difflib
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, ClassVar

from mmdet.datasets import CocoDataset
from mmengine.fileio import exists
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from ..common.classes import Classes
from ..common.dataset import SeededSamples
from ..common.groups import GroupFile
from ..common.name_forms import matched
from ..common.palette import palette
from ..common.wording import few
from .annotations import (
    IMAGE_FIELDS,
    Annotations,
    category_names,
    image_path,
    read_annotations,
)


@DATASETS.register_module()
class NaViTCocoDataset(SeededSamples, CocoDataset):
    """Boxes and masks in COCO's format, every draw of a sample seeded.

    The classes are those of the annotation file, or a part of them in the file's order:
    ``metainfo=dict(classes=...)``. All arguments are those of mmdet's `CocoDataset`, and so are the
    samples; a file against the format is refused, as is a training set without a box to learn from,
    and what mmdet leaves out in silence is logged. Image sizes that the file lacks are read from
    the images.

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
        self._name_files(found)
        masks = any(getattr(item, 'with_mask', False) for item in self.pipeline.transforms)
        if not self.test_mode:
            found.require_objects(chosen, training=True)
            self._log(_training_remarks(found, self.cat_ids))
        self._log(_masks_remark(found) if masks else ())
        return self._data_list(found)

    def _log(self, remarks: Iterable[str]) -> None:
        for remark in remarks:
            print_log(f'{self.ann_file}: {remark}', 'current', logging.WARNING)

    def _name_files(self, found: Annotations) -> None:
        """Read the sizes that the file lacks; an image that has none at all is left out."""
        if unreadable := found.read_sizes(self.data_prefix['img']):
            text = (
                f'{len(unreadable):,} of {len(found.images):,} images have no height and width, '
                f'and the files cannot be read: {few(unreadable)}'
            )
            if self.test_mode:
                raise ValueError(f'{self.ann_file}: {text}. Fix: replace or remove them')
            self._log([f'{text}; they are left out'])
            gone = {item['id'] for item in found.images if item['height'] is None}
            found.images[:] = [i for i in found.images if i['id'] not in gone]
            found.annotations[:] = [i for i in found.annotations if i['image_id'] not in gone]

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

    def parse_data_info(self, raw_data_info: dict[str, Any]) -> dict[str, Any]:
        info: dict[str, Any] = super().parse_data_info(raw_data_info)
        image = raw_data_info['raw_img_info']
        info['img_path'] = image_path(self.data_prefix['img'], image['file_name'])
        return info

    def filter_data(self) -> list[dict[str, Any]]:
        """Return the images that mmdet would keep, at least one, and log how many it leaves out."""
        left: list[dict[str, Any]] = super().filter_data()
        if not left:
            raise ValueError(
                f'{self.ann_file}: none of its {len(self.data_list)} images is left, as '
                f'filter_cfg={self.filter_cfg} asks for a size and for boxes of '
                f'{few(self.metainfo["classes"])}: correct the file, or set filter_empty_gt=False'
            )
        if not self.test_mode:
            self._log(self._images_remarks(left))
        return left

    def _images_remarks(self, left: Sequence[dict[str, Any]]) -> Iterator[str]:
        """Count the images without a box, and those that are left out for their size."""
        total = f'of {len(self.data_list):,} images'
        empty, kept = (
            sum(not info['instances'] for info in part) for part in (self.data_list, left)
        )
        if empty > kept:
            yield (
                f'{empty - kept:,} {total} have no box to learn from and are left out; '
                'filter_cfg.filter_empty_gt=False of this data set keeps them'
            )
        least = (self.filter_cfg or {}).get('min_size', 0)
        small = sum(min(info['height'], info['width']) < least for info in self.data_list)
        if small:
            yield f'{small:,} {total} are left out, smaller than filter_cfg.min_size={least}'

    def _name_classes(self, found: Classes) -> None:
        given = self._metainfo.get('classes')
        classes = found if given is None else _chosen(given, found, self.ann_file)
        self._metainfo['classes'] = classes
        self._metainfo.setdefault('palette', palette(len(classes)))


def _masks_remark(found: Annotations) -> Iterator[str]:
    """Let mmdet ignore boxes without a mask, as it does those whose polygons have no area."""
    without = found.without_mask()
    total = f'of {len(found.annotations):,} boxes'
    if without and sum(map(len, without.values())) == len(found.annotations):
        counts = ', '.join(f'{len(entries):,} {reason}' for reason, entries in without.items())
        remark = found.mask_remark()
        raise ValueError(
            f'{found.file}: no annotation has a segmentation with a pixel, but the pipeline loads '
            f'masks: {counts}. {f"{remark}. " if remark else ""}Fix: use a detector of boxes and '
            'LoadAnnotations(with_bbox=True), or correct the masks'
        )
    for reason, entries in without.items():
        ids = few([item['id'] for item in entries])
        yield f'{len(entries):,} {total} {reason} and are ignored: id {ids}'
    if remark := found.mask_remark():
        yield remark
    for item in chain(*without.values()):
        item['segmentation'] = [[]]


def _training_remarks(found: Annotations, cat_ids: Sequence[Any]) -> Iterator[str]:
    """Describe what was completed, what is left out, and what is legal but likely a mistake."""
    yield from found.remarks
    for reason, entries in found.unusable().items():
        ids = few([item['id'] for item in entries])
        share = f'{len(entries):,} of {len(found.annotations):,} boxes'
        yield f'{share} are left out of training, {reason}: id {ids}'
    yield from found.unit_remarks()
    urls = sum('://' in item.get('file_name', '') for item in found.images)
    if urls:
        yield (
            f'file_name is a URL in {urls:,} of {len(found.images):,} images: the last part of '
            'each is looked for in data_prefix.img'
        )
    unseen = {*cat_ids} - {item['category_id'] for item in found.annotations}
    empty = [item['name'] for item in found.categories if item['id'] in unseen]
    if empty:
        yield f'{len(empty)} of {len(cat_ids)} classes have no box: {few(empty)}'


def _chosen(given: Sequence[str], found: Classes, ann_file: str) -> Classes:
    """The `given` classes. mmdet numbers them as the file does, so another order is refused."""
    given = matched(given, found)
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
