"""Annotation files in COCO's format: read once, and checked whole before anything rests on them.

What cannot be meant (a field missing, text for a number, NaN, an id twice) is an error that names
the file, the rule and the first entry against it. What COCO's own files hold too (boxes of no area,
boxes outside their picture) mmdet leaves out of training; `unusable` finds it, to be told.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmengine.fileio import get_text

Entry = dict[str, Any]
IMAGE_FIELDS = ('id', 'file_name', 'height', 'width')
CATEGORY_FIELDS = ('id', 'name')
_ANNOTATION_FIELDS = ('id', 'image_id', 'category_id', 'bbox', 'area')
_LARGEST = sys.float_info.max  # JSON has whole numbers beyond it; infinity and NaN are not below


@dataclass(frozen=True)
class Annotations:
    """The lists of a COCO annotation file whose entries keep to the format."""

    file: str
    images: list[Entry]
    annotations: list[Entry]
    categories: list[Entry]

    def picture_sizes(self) -> dict[Any, tuple[int, int]]:
        """(height, width) by the id of the image."""
        return {item['id']: (item['height'], item['width']) for item in self.images}

    def unusable(self) -> dict[str, list[Entry]]:
        """The annotations from which mmdet makes no box, by the first reason that holds."""
        if not self.annotations:
            return {}
        sizes, unknown = self.picture_sizes(), (math.nan, math.nan)
        of_each = [sizes.get(item['image_id'], unknown) for item in self.annotations]
        height, width = np.array(of_each, dtype=float).T
        x, y, w, h = np.array([item['bbox'] for item in self.annotations], dtype=float).T
        area = np.array([item['area'] for item in self.annotations], dtype=float)
        shown_w = np.minimum(x + w, width) - np.maximum(x, 0)
        shown_h = np.minimum(y + h, height) - np.maximum(y, 0)
        reasons = {
            'of an image_id that is not listed': np.isnan(width),
            'less than 1 pixel wide or high': (w < 1) | (h < 1),
            'outside the picture': (shown_w <= 0) | (shown_h <= 0),
            'of area 0 or less': area <= 0,
        }
        first = np.argmax([np.zeros(len(area)), *reasons.values()], axis=0) - 1
        parts = {why: np.flatnonzero(first == i) for i, why in enumerate(reasons)}
        return {
            why: [self.annotations[i] for i in part] for why, part in parts.items() if len(part)
        }

    def without_mask(self) -> list[Entry]:
        """Those that give no mask, absent or of no area; a segmentation against the format raises.

        Only asked where masks are: a file for boxes may have anything there.
        """
        annotations = _Part(self.file, 'annotations', self.annotations, ())
        given = [item.get('segmentation') or [] for item in self.annotations]
        rule = 'segmentation must be a list of polygons [x, y, x, y, ...], or run lengths with size'
        annotations.require([_is_segmentation(value) for value in given], rule)
        sizes = self.picture_sizes()
        whole = [
            isinstance(value, list)
            or sizes.get(item['image_id'], tuple(value['size'])) == tuple(value['size'])
            for item, value in zip(self.annotations, given, strict=True)
        ]
        rule = "the size of a segmentation in run lengths must be the picture's height and width"
        annotations.require(whole, rule)
        return [
            item
            for item, value in zip(self.annotations, given, strict=True)
            if isinstance(value, list) and not any(map(_has_area, value))
        ]


def read_annotations(
    ann_file: str,
    backend_args: Entry | None = None,
    *,
    image_fields: Sequence[str] = IMAGE_FIELDS,
    category_fields: Sequence[str] = CATEGORY_FIELDS,
) -> Annotations:
    """What a COCO annotation file holds, or a ValueError that names what is against the format."""
    content = _content(ann_file, backend_args)
    categories = _categories(ann_file, content, category_fields)
    images = _Part(ann_file, 'images', content.get('images'), image_fields)
    annotations = _Part(ann_file, 'annotations', content.get('annotations'), _ANNOTATION_FIELDS)
    if not images.entries:
        raise ValueError(f'{ann_file} lists no images: each needs {", ".join(image_fields)}')
    for side in ('height', 'width'):
        images.require(_counts(images.column(side)), f'{side} must be 1 pixel or more')
    _check_boxes(annotations)
    _check_categories(annotations, categories)
    return Annotations(ann_file, images.entries, annotations.entries, categories.entries)


def category_names(ann_file: str, backend_args: Entry | None = None) -> tuple[str, ...]:
    """The names of the categories of a COCO annotation file, in its order."""
    content = _content(ann_file, backend_args)
    return tuple(_categories(ann_file, content, CATEGORY_FIELDS).column('name'))


def _content(ann_file: str, backend_args: Entry | None) -> Entry:
    try:
        content = json.loads(get_text(ann_file, backend_args=backend_args))
    except FileNotFoundError as error:
        raise ValueError(
            f'no annotation file at {ann_file}: set data_root to the folder of the data set, and '
            "ann_file to the file's path within it"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{ann_file} is not JSON ({error}): COCO's format is one JSON object with images, "
            'annotations and categories'
        ) from error
    return content if isinstance(content, dict) else {}


def _categories(file: str, content: Entry, fields: Sequence[str]) -> _Part:
    if not content.get('categories'):
        raise ValueError(
            f'{file} has no categories: add "categories": [{{"id": 1, "name": "..."}}, ...], whose '
            'ids the category_id of the annotations refer to'
        )
    return _Part(file, 'categories', content['categories'], fields)


class _Part:
    """One list of the file; all its entries have the `fields`, and ids of their own."""

    def __init__(self, file: str, name: str, entries: Any, fields: Sequence[str]) -> None:
        entries = [] if entries is None else entries  # COCO's test files have no annotations
        if not isinstance(entries, list) or not all(isinstance(item, dict) for item in entries):
            raise ValueError(f'{file}: {name} must be a list of objects with {", ".join(fields)}')
        self.file, self.name, self.entries = file, name, entries
        for field in fields:
            there = [field in item for item in entries]
            self.require(there, f"each needs the field '{field}'")
        for field in ('id', 'image_id', 'category_id'):
            if field in fields:
                plain = [isinstance(value, (int, str, float)) for value in self.column(field)]
                self.require(plain, f'{field} must be a number or a text')
        for field in ('name', 'file_name', 'coco_url'):
            if field in fields:
                text = [isinstance(value, str) for value in self.column(field)]
                self.require(text, f'{field} must be a text')
        if 'id' in fields:
            self._require_own_ids()

    def column(self, field: str) -> list[Any]:
        return [item[field] for item in self.entries]

    def require(self, holds: Sequence[bool] | np.ndarray, rule: str) -> None:
        """Raise where a rule does not hold of all entries."""
        against = np.flatnonzero(~np.asarray(holds, dtype=bool))
        if len(against):
            first = self.entries[against[0]]
            raise ValueError(
                f'{self.file}, {self.name}: {rule}; {len(against):,} of {len(self.entries):,} '
                f'{"is" if len(against) == 1 else "are"} against it, the first: {_brief(first)}'
            )

    def _require_own_ids(self) -> None:
        ids = self.column('id')
        if len(set(ids)) < len(ids):
            seen: set[Any] = set()
            first = [not (item in seen or seen.add(item)) for item in ids]
            self.require(first, 'each id must stand once')


def _brief(entry: Entry) -> str:
    """An entry as the file has it, but for long lists."""
    short = {key: value for key, value in entry.items() if len(repr(value)) < 60}
    return json.dumps(short)


def _check_boxes(annotations: _Part) -> None:
    boxes = _finite(annotations.column('bbox'), length=4)
    annotations.require(boxes, 'bbox must be four numbers, x, y, width, height')
    annotations.require(_finite(annotations.column('area')), 'area must be a number')
    crowd = [item.get('iscrowd') in (0, 1, None) for item in annotations.entries]
    annotations.require(crowd, 'iscrowd must be 0, or 1 for a crowd')


def _check_categories(annotations: _Part, categories: _Part) -> None:
    ids = set(categories.column('id'))
    known = [item in ids for item in annotations.column('category_id')]
    listed = ', '.join(str(item) for item in sorted(ids, key=str)[:10])
    rule = f'category_id must be the id of one of the {len(ids)} categories ({listed}'
    annotations.require(known, f'{rule}{", ..." if len(ids) > 10 else ""})')


def _is_segmentation(value: Any) -> bool:
    if isinstance(value, dict):
        return isinstance(value.get('size'), list) and isinstance(value.get('counts'), (list, str))
    return isinstance(value, list) and all(
        isinstance(polygon, list)
        and {*map(type, polygon)} <= {int, float}
        and abs(sum(polygon)) <= _LARGEST
        for polygon in value
    )


def _has_area(polygon: Sequence[float]) -> bool:
    """As mmdet sees it, which ignores the other ones."""
    return len(polygon) >= 6 and len(polygon) % 2 == 0


def _counts(values: Sequence[Any]) -> np.ndarray:
    """Which of them are numbers of 1 or more."""
    numbers = _finite(values)
    numbers[numbers] = np.array([v for v, n in zip(values, numbers, strict=True) if n]) >= 1
    return numbers


def _finite(values: Sequence[Any], *, length: int | None = None) -> np.ndarray:
    """Which of them are finite numbers, or lists of `length` such."""
    try:
        array = np.array(values)
    except ValueError:  # lists of several lengths
        array = np.array(None)
    shape = (len(values),) if length is None else (len(values), length)
    if array.dtype.kind in 'iuf' and array.shape == shape:
        return np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    return np.array([_is_finite(value, length) for value in values], dtype=bool)


def _is_finite(value: Any, length: int | None) -> bool:
    if length is None:
        return isinstance(value, (int, float)) and abs(value) <= _LARGEST
    return (
        isinstance(value, list)
        and len(value) == length
        and all(_is_finite(item, None) for item in value)
    )
