"""Annotation files in COCO's format: read once, and checked whole before anything rests on them.

All rules stand here; data sets, metrics, `arms` and the doctor read files through them, so that
training and all evaluations see the same boxes.

- An error: whatever contradicts the format (a field missing, text for a number, NaN, run lengths
  that do not add up), and a file of which nothing can be used. It names the file, the rule, the
  first entry and the ids of others.
- Completed or taken, with a remark: a missing `area`, `iscrowd` or image size, a missing `bbox`
  beside a mask, ids that are text
  in one place and numbers in another, entries that are listed twice, a category that no annotation
  uses and whose name another one has.
- Left out and counted: what COCO's own files hold too, as boxes without area or outside their
  image, and masks outside it. `unusable` finds what training leaves out, `unmatchable` what an
  evaluation leaves out.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from ..common.name_forms import path_in
from ..common.picture_sizes import scan
from ..common.text_files import read_json
from ..common.wording import few
from .masks import mask_area, mask_box, mask_fault, sound_parts

Entry = dict[str, Any]
IMAGE_FIELDS = ('id', 'file_name')
CATEGORY_FIELDS = ('id', 'name')
_ANNOTATION_FIELDS = ('id', 'image_id', 'category_id')
_CATEGORY_LISTS = ('neg_category_ids', 'not_exhaustive_category_ids')
_SIDES = ('height', 'width')
COUNTED = 100  # detections of a class in an image, the best ones, of which COCO's AP is
_LARGEST = sys.float_info.max  # JSON has whole numbers beyond it; infinity and NaN are not below
OUTSIDE_MASK = 'have a mask outside their image'
_SIZES_FIX = 'remove both height and width, which are then read from the image files'
_FARTHEST_BOX = 2**20  # pixels; OpenCV reads no image that is longer
_FEW_CORNERS = 0.1  # share of the boxes that reach beyond their image
_MIN_PERCENT_BOXES = 5  # fewer boxes may lie near one corner of their images by chance
_MIN_PERCENT_SIDE = 200  # pixels; boxes of smaller images may well lie within 100 pixels


@dataclass(frozen=True)
class Annotations:
    """The lists of a COCO annotation file whose entries keep to the format."""

    file: str
    images: list[Entry]
    annotations: list[Entry]
    categories: list[Entry]
    remarks: tuple[str, ...] = ()  # what was completed or left out while reading
    skips_ignored: bool = False  # whether its evaluation leaves out boxes marked `ignore`, as LVIS

    # Sizes of images

    def picture_sizes(self) -> dict[Any, tuple[int, int] | None]:
        """Return (height, width) by the id of the image; None where the file states none."""
        return {
            item['id']: None if item['height'] is None else (item['height'], item['width'])
            for item in self.images
        }

    def complete_sizes(self, sizes: Mapping[Any, tuple[int, int] | None]) -> bool:
        """Take sizes by image id for the images that have none; return whether any was taken."""
        lacking = [item for item in self.images if item['height'] is None]
        for item in lacking:
            if (size := sizes.get(item['id'])) is not None:
                item['height'], item['width'] = (int(side) for side in size)
        return any(item['height'] is not None for item in lacking)

    def read_sizes(self, folder: str) -> list[str]:
        """Read the missing sizes from the headers of the files; return the files that fail.

        On several ranks all have to call this.
        """
        lacking = [item for item in self.images if item['height'] is None]
        files = [image_path(folder, item['file_name']) for item in lacking]
        found = scan(files, allow_none=len(lacking) < len(self.images))
        self.complete_sizes(
            {item['id']: size for item, size in zip(lacking, found, strict=True)}  # type: ignore[misc]
        )
        return [file for file, size in zip(files, found, strict=True) if size is None]

    # What is left out

    def unusable(self) -> dict[str, list[Entry]]:
        """Return the annotations of which mmdet makes no box, by the first reason that holds."""
        return self._by_reason(
            lambda shape: {
                'of an image_id that is not listed': shape.unlisted,
                'less than 1 pixel wide or high': (shape.w < 1) | (shape.h < 1),
                'outside the image': shape.outside,
                'of area 0 or less': shape.area <= 0,
                'marked as ignored': shape.ignored,
            }
        )

    def unmatchable(self) -> dict[str, list[Entry]]:
        """Return the annotations that no detection can match, by the first reason that holds."""
        return self._by_reason(
            lambda shape: {
                'of an image_id that is not listed': shape.unlisted,
                '0 pixels wide or high, or less': (shape.w <= 0) | (shape.h <= 0),
                'outside the image': shape.outside,
                'of an area below 0': shape.area < 0,  # pycocotools ignores them
            }
        )

    def matchable(self) -> Annotations:
        """Return the ground truth of an evaluation: all but the `unmatchable` annotations."""
        left_out = self.unmatchable()
        remarks = [
            f'{_share(entries, self.annotations)} are left out of the evaluation, {reason}: id '
            f'{few([item["id"] for item in entries])}'
            for reason, entries in left_out.items()
        ]
        numbers = _numbers(left_out)
        kept = [item for item in self.annotations if id(item) not in numbers]
        found = replace(self, annotations=kept)
        remarks += found.unit_remarks()
        return replace(found, remarks=(*self.remarks, *remarks))

    def without_mask(self) -> dict[str, list[Entry]]:
        """Return the annotations without a pixel of a mask, by reason; raise on a broken mask.

        Polygons of less than three corners are taken out where an annotation has others. Only
        called where masks are used: a file for boxes may have anything there.
        """
        annotations = _Part(self.file, 'annotations', self.annotations, ())
        sizes = self.picture_sizes()
        given = [item.get('segmentation') or [] for item in self.annotations]
        faults = [
            mask_fault(value, sizes.get(item['image_id']))
            for item, value in zip(self.annotations, given, strict=True)
        ]
        annotations.require(
            [not fault for fault in faults],
            next(filter(None, faults), ''),
            'export these masks again, or remove the annotations',
        )
        _refuse_mask_shares(annotations, given)
        without = []
        for item, value in zip(self.annotations, given, strict=True):
            if isinstance(value, dict):
                if not mask_area(value):
                    without.append(item)
                continue
            parts = sound_parts(value)
            if not parts:
                without.append(item)
            elif len(parts) < len(value):  # pycocotools takes four numbers for a box
                item['segmentation'] = parts
        outside = self._outside_masks()
        reasons = {'have no mask': without, OUTSIDE_MASK: outside}
        return {reason: entries for reason, entries in reasons.items() if entries}

    def _outside_masks(self) -> list[Entry]:
        """Return the annotations whose box meets their image, and whose mask does not."""
        shape = _Shapes(self)
        x, y, w, h = _mask_boxes([item.get('segmentation') for item in self.annotations])
        outside = (x >= shape.width) | (y >= shape.height) | (x + w <= 0) | (y + h <= 0)
        return [self.annotations[i] for i in np.flatnonzero(outside & ~shape.outside)]

    def mask_remark(self) -> str:
        """Describe masks that lie wholly outside their boxes, or ''; call `without_mask` first."""
        shape = _Shapes(self)
        x, y, w, h = _mask_boxes([item.get('segmentation') for item in self.annotations])

        def apart(x: np.ndarray, y: np.ndarray, w: np.ndarray, h: np.ndarray) -> np.ndarray:
            beside = (x > shape.x + shape.w) | (x + w < shape.x)
            return beside | (y > shape.y + shape.h) | (y + h < shape.y)

        wrong = apart(x, y, w, h)
        if not wrong.any():
            return ''
        entries = [self.annotations[i] for i in np.flatnonzero(wrong)]
        text = (
            f'{len(entries):,} of {len(wrong):,} masks lie outside their boxes: id '
            f'{few([item["id"] for item in entries])}'
        )
        swapped = (wrong & ~apart(y, x, h, w)).sum()
        if swapped * 2 > len(entries):
            return (
                f'{text}; with x and y swapped {swapped:,} would lie on their boxes. If so, write '
                'each polygon as [x, y, x, y, ...]'
            )
        return f'{text}. Check that segmentation and bbox are of the same object and image'

    # What an experiment needs

    def require_objects(self, names: Collection[str], *, training: bool) -> None:
        """Raise where no box of these classes can be learned from, or compared with."""
        ids = {item['id'] for item in self.categories if item['name'] in names}
        left_out = self.unusable() if training else self.unmatchable()
        numbers = _numbers(left_out)
        rest = [item for item in self.annotations if id(item) not in numbers]
        if self.skips_ignored and not training:
            left_out['marked as ignored'] = [item for item in rest if item.get('ignore')]
            rest = [item for item in rest if not item.get('ignore')]
        crowds = [item for item in rest if item['iscrowd']]
        left_out = left_out | {'a crowd (iscrowd=1)': crowds}
        left_out['of another class'] = [
            item for item in rest if not item['iscrowd'] and item['category_id'] not in ids
        ]
        if sum(map(len, left_out.values())) < len(self.annotations):
            return
        purpose = 'learn from' if training else 'compare with'
        if not self.annotations:
            raise ValueError(f'{self.file} has no annotations: there is no box to {purpose}')
        counts = '; '.join(
            f'{len(entries):,} {reason} (the first: {_brief(entries[0])})'
            for reason, entries in left_out.items()
            if entries
        )
        commonest = max(left_out, key=lambda reason: len(left_out[reason]))
        raise ValueError(
            f'{self.file}: there is no box of {few(sorted(names))} to {purpose}. Of '
            f'{len(self.annotations):,} boxes {counts}. Fix: {self._fix(commonest)}'
        )

    def _fix(self, reason: str) -> str:
        """Return the fix for a file without a usable box, by the commonest reason."""
        if reason.startswith('of an image_id'):
            ids = few([item['id'] for item in self.images])
            return (
                f'image_id must be the id of an image; those of the {len(self.images):,} are {ids}'
            )
        return {
            'outside the image': 'bbox must be [x, y, width, height] in pixels of the image',
            'of area 0 or less': 'remove the field area, which then follows from box or mask',
            'of an area below 0': 'remove the field area, which then follows from box or mask',
            'marked as ignored': 'remove the field ignore',
            'a crowd (iscrowd=1)': 'set iscrowd to 0 for single objects',
            'of another class': "check classes, which choose among the file's categories",
        }.get(reason, 'bbox must be [x, y, width, height] in pixels, width and height positive')

    def most_objects(self, *, of_one_class: bool = False) -> int:
        """Return the most boxes, crowds aside, of one image, or of one class in one image."""
        counts = Counter(
            (item['image_id'], item['category_id'] if of_one_class else None)
            for item in self.annotations
            if not item['iscrowd']
        )
        return max(counts.values(), default=0)

    def counted_detections(self, most: int = 1000) -> int:
        """Return how many detections of a class in an image AP counts.

        That is COCO's 100. Where an image holds more objects of one class it is `most`, or their
        number if that is larger.
        """
        objects = self.most_objects(of_one_class=True)
        return COUNTED if objects <= COUNTED else max(objects, most)

    def unit_remarks(self) -> list[str]:
        """Describe boxes that look as if they were no [x, y, width, height] in pixels."""
        return list(filter(None, (self.percent_remark(), self.corners_remark())))

    def percent_remark(self) -> str:
        """Describe boxes that look like percent of their images, as Label Studio has them; or ''.

        All lie within the first 100 pixels of large images, and some reach beyond half of these.
        """
        if len(self.annotations) < _MIN_PERCENT_BOXES:
            return ''
        shape = _Shapes(self)
        right, bottom = shape.x + shape.w, shape.y + shape.h
        sizes_N2 = np.stack([shape.height, shape.width], 1)
        sizes_N2 = sizes_N2[~np.isnan(sizes_N2).any(1)]
        if (
            min(shape.x.min(), shape.y.min()) < 0
            or max(right.max(), bottom.max()) > 100.01  # rounded
            or min(right.max(), bottom.max()) <= 50
            or not len(sizes_N2)
            or np.median(sizes_N2.min(1)) < _MIN_PERCENT_SIDE
        ):
            return ''
        height, width = np.median(sizes_N2, 0)
        return (
            f'all {len(right):,} boxes lie within the first 100 pixels of images of {height:.0f} x '
            f'{width:.0f} pixels (median height x width), the first: '
            f'{_brief(self.annotations[0])}. They may be percent of the image, as Label Studio has '
            'them. If so, multiply x and width by the width of the image / 100, y and height by '
            'its height / 100, and remove the field area'
        )

    def corners_remark(self) -> str:
        """Describe boxes that reach beyond their images, as corners given for sizes do; or ''."""
        if not self.annotations:
            return ''
        shape = _Shapes(self)
        beyond = (shape.x + shape.w > shape.width + 1) | (shape.y + shape.h > shape.height + 1)
        if beyond.mean() < _FEW_CORNERS:
            return ''
        text = f'{beyond.sum():,} of {len(beyond):,} boxes reach beyond the right or lower border'
        fit = (shape.x < shape.w) & (shape.y < shape.h)
        fit &= (shape.w <= shape.width + 1) & (shape.h <= shape.height + 1)
        if fit.all():
            return (
                f'{text}, and all would fit as corners [x1, y1, x2, y2]. If so, write '
                'bbox = [x1, y1, x2 - x1, y2 - y1]'
            )
        return f'{text} of their images: check that width, height and bbox are of the same images'

    def _by_reason(self, reasons_of: Any) -> dict[str, list[Entry]]:
        """Group the annotations by the first of the reasons that holds."""
        if not self.annotations:
            return {}
        reasons = reasons_of(_Shapes(self))
        none = np.zeros(len(self.annotations), dtype=bool)
        first = np.argmax([none, *reasons.values()], axis=0) - 1
        parts = {why: np.flatnonzero(first == i) for i, why in enumerate(reasons)}
        return {
            why: [self.annotations[i] for i in part] for why, part in parts.items() if len(part)
        }


class _Shapes:
    """The boxes of all annotations A, and the sizes of their images; NaN where unknown."""

    def __init__(self, found: Annotations) -> None:
        sizes = found.picture_sizes()
        items, unknown = found.annotations, (math.nan, math.nan)
        of_each = [sizes.get(item['image_id']) or unknown for item in items]
        self.height, self.width = np.array(of_each, dtype=float).reshape(-1, 2).T
        boxes = np.array([item['bbox'] for item in items], dtype=float)
        self.x, self.y, self.w, self.h = boxes.reshape(-1, 4).T
        self.area = np.array([item['area'] for item in items], dtype=float)
        self.unlisted = np.array([item['image_id'] not in sizes for item in items], dtype=bool)
        self.ignored = np.array([bool(item.get('ignore')) for item in items], dtype=bool)
        shown_w = np.minimum(self.x + self.w, self.width) - np.maximum(self.x, 0)
        shown_h = np.minimum(self.y + self.h, self.height) - np.maximum(self.y, 0)
        self.outside = (shown_w <= 0) | (shown_h <= 0)


def read_annotations(
    ann_file: str,
    backend_args: Entry | None = None,
    *,
    image_fields: Sequence[str] = IMAGE_FIELDS,
    category_fields: Sequence[str] = CATEGORY_FIELDS,
) -> Annotations:
    """Read a COCO annotation file.

    `height` and `width` are None in images for which the file states neither; `read_sizes` and
    `complete_sizes` fill them in.

    Raises:
        ValueError: there is no such file, or it breaks the format; names the rule and the entry.
    """
    content = _content(ann_file, backend_args)
    remarks: list[str] = []
    categories = _categories(ann_file, content, category_fields, remarks)
    images = _Part(ann_file, 'images', content.get('images'), image_fields)
    if not images.entries:
        raise ValueError(
            f'{ann_file} lists no images: each needs {", ".join((*image_fields, *_SIDES))}'
        )
    _unify_ids(images, remarks)
    images.drop_repeated(remarks)
    images.require_own_ids()
    _check_sizes(images)
    annotations = _Part(ann_file, 'annotations', content.get('annotations'), _ANNOTATION_FIELDS)
    annotations.drop_repeated(remarks)
    _remark_on_ids(annotations, remarks)
    _complete_boxes(annotations, remarks)
    _check_boxes(annotations)
    _refer(annotations, 'image_id', images, remarks)
    _refer(annotations, 'category_id', categories, remarks)
    for field in {*image_fields} & set(_CATEGORY_LISTS):
        _refer_lists(images, field, categories)
    _check_categories(annotations, categories)
    _complete(annotations, remarks)
    _refuse_shares(annotations, images)
    lists = images.entries, annotations.entries, categories.entries
    return Annotations(ann_file, *lists, tuple(remarks))


def category_names(ann_file: str, backend_args: Entry | None = None) -> tuple[str, ...]:
    """Return the names of the categories of a COCO annotation file, in its order."""
    content = _content(ann_file, backend_args)
    return tuple(_categories(ann_file, content, CATEGORY_FIELDS, []).column('name'))


def image_path(folder: str, file_name: str) -> str:
    r"""Return where a file lies that an annotation file names by a URL, or with backslashes.

    Of a URL the last part is taken. Backslashes separate folders where no file has them in its
    name; where the file is not there, its last part is tried in `folder`.
    """
    if '://' in file_name:
        return os.path.join(folder, unquote(os.path.basename(urlsplit(file_name).path)))
    file = path_in(folder, file_name)
    if '\\' not in file_name or os.path.isfile(file):
        return file
    parts = file_name.split('\\')
    files = [os.path.join(folder, '/'.join(parts)), os.path.join(folder, parts[-1])]
    return next(filter(os.path.isfile, files), files[0])


# --------------------------------------------------------------------------------------------------
# The format


def _content(ann_file: str, backend_args: Entry | None) -> Entry:
    try:
        content = read_json(ann_file, backend_args)
    except FileNotFoundError as error:
        raise ValueError(
            f'no annotation file at {ann_file}: set data_root to the folder of the data set, and '
            "ann_file to the file's path within it"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{error}: COCO's format is one JSON object with images, annotations and categories"
        ) from error
    return content if isinstance(content, dict) else {}


def _categories(file: str, content: Entry, fields: Sequence[str], remarks: list[str]) -> _Part:
    if not content.get('categories'):
        raise ValueError(
            f'{file} has no categories: add "categories": [{{"id": 1, "name": "..."}}, ...], whose '
            'ids the category_id of the annotations refer to'
        )
    categories = _Part(file, 'categories', content['categories'], fields)
    _unify_ids(categories, remarks)
    categories.require_own_ids()
    _drop_namesakes(categories, content.get('annotations'), remarks)
    return categories


class _Part:
    """One list of the file; all its entries have the `fields`."""

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
                plain = [_is_id(value) for value in self.column(field)]
                self.require(plain, f'{field} must be a number or a text')
        for field in ('name', 'file_name', 'coco_url'):
            if field in fields:
                text = [isinstance(value, str) for value in self.column(field)]
                self.require(text, f'{field} must be a text')
        for field in _CATEGORY_LISTS:
            if field in fields:
                lists = [
                    isinstance(value, list) and all(map(_is_id, value))
                    for value in self.column(field)
                ]
                self.require(lists, f'{field} must be a list of category ids')

    def column(self, field: str) -> list[Any]:
        return [item[field] for item in self.entries]

    def require(self, holds: Sequence[bool] | np.ndarray, rule: str, fix: str = '') -> None:
        """Raise where a rule does not hold of all entries."""
        against = np.flatnonzero(~np.asarray(holds, dtype=bool))
        if len(against):
            first, *others = (self.entries[i] for i in against[:6])
            ids = few([item['id'] for item in others if 'id' in item])
            raise ValueError(
                f'{self.file}, {self.name}: {rule}; {len(against):,} of {len(self.entries):,} '
                f'{"is" if len(against) == 1 else "are"} against it, the first: {_brief(first)}'
                + (f', then id {ids}' if ids else '')
                + (f'. Fix: {fix}' if fix else '')
            )

    def require_own_ids(self) -> None:
        """Raise where two entries have one id."""
        ids = self.column('id')
        if len(set(ids)) < len(ids):
            self.require(_is_first(ids), 'each id must stand once')

    def drop_repeated(self, remarks: list[str]) -> None:
        """Leave out entries that equal an earlier one of the same id."""
        ids = self.column('id')
        if len(set(ids)) == len(ids):
            return
        earlier: dict[Any, list[Entry]] = defaultdict(list)
        repeated, kept = [], []
        for item in self.entries:
            if item in earlier[item['id']]:
                repeated.append(item['id'])
            else:
                kept.append(item)
                earlier[item['id']].append(item)
        self.entries = kept
        if repeated:
            remarks.append(
                f'{len(repeated):,} {self.name} are listed twice and count once: id {few(repeated)}'
            )


def _is_id(value: Any) -> bool:
    return isinstance(value, str) or _is_finite(value, None)


def _is_first(values: Iterable[Any]) -> list[bool]:
    seen: set[Any] = set()
    return [not (item in seen or seen.add(item)) for item in values]  # type: ignore[func-returns-value]


def _brief(entry: Entry) -> str:
    """Return an entry as JSON, without its long lists."""
    short = {key: value for key, value in entry.items() if len(repr(value)) < 60}
    return json.dumps(short)


def _unify_ids(part: _Part, remarks: list[str]) -> None:
    """Convert all ids to text where some are: pycocotools sorts them, and would lose numbers."""
    ids = part.column('id')
    texts = [isinstance(value, str) for value in ids]
    if any(texts) and not all(texts):
        for item in part.entries:
            item['id'] = str(item['id'])
        remarks.append(
            f'the ids of {part.name} are text ({sum(texts):,}) and numbers '
            f'({len(texts) - sum(texts):,}): all are read as text'
        )


def _refer(annotations: _Part, field: str, part: _Part, remarks: list[str]) -> None:
    """Match references to ids that are text in one list and numbers in the other."""
    ids = set(part.column('id'))
    by_text = {str(value): value for value in ids}
    changed = 0
    for item in annotations.entries:
        if item[field] not in ids and str(item[field]) in by_text:
            item[field] = by_text[str(item[field])]
            changed += 1
    if changed:
        remarks.append(
            f'{changed:,} of {len(annotations.entries):,} annotations have a {field} that is text '
            f'where the id in {part.name} is a number, or the reverse: both are read as the same'
        )


def _refer_lists(images: _Part, field: str, categories: _Part) -> None:
    """Let the ids in lists of categories be those of the categories, as `_refer` does."""
    ids = categories.column('id')
    known, by_text = set(ids), {str(value): value for value in ids}
    for item in images.entries:
        item[field] = [v if v in known else by_text.get(str(v), v) for v in item[field]]


def _remark_on_ids(annotations: _Part, remarks: list[str]) -> None:
    ids = annotations.column('id')
    if len(set(ids)) < len(ids):
        shared = [value for value, first in zip(ids, _is_first(ids), strict=True) if not first]
        remarks.append(
            f'{len(shared):,} of {len(ids):,} annotations have the id of another one (id '
            f'{few(shared)}): all are used'
        )


def _drop_namesakes(categories: _Part, annotations: Any, remarks: list[str]) -> None:
    """Leave out categories whose name another one has, where no annotation uses them.

    Roboflow writes a category 0 for the whole data set, often of the name of its only class.
    """
    namesakes: dict[str, list[Entry]] = defaultdict(list)
    for item in categories.entries:
        namesakes[item['name']].append(item)
    if len(namesakes) == len(categories.entries):
        return
    items = annotations if isinstance(annotations, list) else []
    used = {str(item.get('category_id')) for item in items if isinstance(item, dict)}
    for name, entries in namesakes.items():
        chosen = [item for item in entries if str(item['id']) in used] or entries[-1:]
        if len(chosen) > 1:
            raise ValueError(
                f'{categories.file}, categories: the ids {few([i["id"] for i in chosen])} have one '
                f'name, {name!r}, and annotations use each. Fix: give each a name of its own, or '
                'give the annotations one category_id and remove the other categories'
            )
        gone = [item['id'] for item in entries if item is not chosen[0]]
        if gone:
            remarks.append(
                f'category {few(gone)} has no annotation and the name of category '
                f'{chosen[0]["id"]}, {name!r}, and is left out'
            )
            categories.entries = [
                item for item in categories.entries if item['name'] != name or item is chosen[0]
            ]


def _check_sizes(images: _Part) -> None:
    """Raise where a side is no number of pixels; let absent sizes be None."""
    for item in images.entries:
        if item.get('height') is None and item.get('width') is None:
            item['height'] = item['width'] = None
    for side in _SIDES:
        images.require(
            [side in item for item in images.entries], f"each needs the field '{side}'", _SIZES_FIX
        )
    for side in _SIDES:
        values = [
            1 if item['height'] is item['width'] is None else item[side] for item in images.entries
        ]
        images.require(_counts(values), f'{side} must be 1 pixel or more', _SIZES_FIX)


def _complete_boxes(annotations: _Part, remarks: list[str]) -> None:
    """Take the boxes that are absent from the masks; raise where there is no sound mask either.

    mmdet and pycocotools both need the field.
    """
    lacking = [item for item in annotations.entries if not _is_given(item.get('bbox'))]
    if not lacking:
        return
    for item in lacking:
        mask = item.get('segmentation')
        sound = mask and not mask_fault(mask, None)
        item['bbox'] = mask_box(mask) if sound else None
    annotations.require(
        [item['bbox'] is not None for item in annotations.entries],
        "each needs the field 'bbox', or a mask to take it from",
    )
    remarks.append(
        f'{len(lacking):,} of {len(annotations.entries):,} annotations have no bbox, which is '
        f'taken from their mask: id {few([item["id"] for item in lacking])}'
    )


def _is_given(box: Any) -> bool:
    return box is not None and box != []


def _check_boxes(annotations: _Part) -> None:
    boxes = _finite(annotations.column('bbox'), length=4)
    annotations.require(boxes, 'bbox must be four numbers, x, y, width, height')
    near = [max(map(abs, box)) <= _FARTHEST_BOX for box in annotations.column('bbox')]
    annotations.require(near, f'the numbers of bbox must lie within {_FARTHEST_BOX:,} pixels')
    areas = [item['area'] for item in annotations.entries if item.get('area') is not None]
    if not _finite(areas).all():
        known = [
            item.get('area') is None or _is_finite(item['area'], None)
            for item in annotations.entries
        ]
        annotations.require(known, 'area must be a number')
    crowd = [item.get('iscrowd') in (0, 1, None) for item in annotations.entries]
    annotations.require(crowd, 'iscrowd must be 0, or 1 for a crowd')


def _check_categories(annotations: _Part, categories: _Part) -> None:
    ids = set(categories.column('id'))
    known = [item in ids for item in annotations.column('category_id')]
    listed = ', '.join(str(item) for item in sorted(ids, key=str)[:10])
    rule = f'category_id must be the id of one of the {len(ids)} categories ({listed}'
    annotations.require(known, f'{rule}{", ..." if len(ids) > 10 else ""})')


def _complete(annotations: _Part, remarks: list[str]) -> None:
    """Fill in `iscrowd` by 0, and `area` by that of the mask, else of the box."""
    lacking = []
    for item in annotations.entries:
        item['iscrowd'] = int(item.get('iscrowd') or 0)
        if item.get('area') is None:
            lacking.append(item['id'])
            item['area'] = _area(item)
    if lacking:
        remarks.append(
            f'{len(lacking):,} of {len(annotations.entries):,} annotations have no area, which '
            'is taken from their mask or box'
        )


def _area(item: Entry) -> float:
    mask = item.get('segmentation')
    if mask and not mask_fault(mask, None) and (area := mask_area(mask)) > 0:
        return area
    return float(item['bbox'][2] * item['bbox'][3])


def _refuse_shares(annotations: _Part, images: _Part) -> None:
    """Raise where boxes are shares of the image instead of pixels."""
    if not annotations.entries:
        return
    boxes = np.array(annotations.column('bbox'), dtype=float)
    tiny = any((item['height'] or 3) <= 2 for item in images.entries)
    if np.abs(boxes).max() > 1.5 or (boxes == boxes.round()).all() or tiny:
        return
    raise ValueError(
        f'{annotations.file}, annotations: all {len(boxes):,} boxes lie within 0 and 1.5, the '
        f'first: {_brief(annotations.entries[0])}. They are shares of the image, where pixels are '
        'expected. Fix: multiply x and width by the width of the image, y and height by its height'
    )


def _refuse_mask_shares(annotations: _Part, masks: Sequence[Any]) -> None:
    """Raise where polygons are shares of the image, beside boxes in pixels."""
    polygons = [polygon for mask in masks if isinstance(mask, list) for polygon in mask if polygon]
    boxes = (max(map(abs, box)) for box in annotations.column('bbox'))
    if (
        not polygons
        or any(max(polygon) > 1.5 for polygon in polygons)
        or all(float(value).is_integer() for polygon in polygons for value in polygon)
        or all(side <= 1.5 for side in boxes)
    ):
        return
    raise ValueError(
        f'{annotations.file}, annotations: all {len(polygons):,} polygons lie within 0 and 1.5, '
        f'the first: {few(polygons[0])}. They are shares of the image, where pixels are expected. '
        'Fix: multiply each x by the width of the image, each y by its height'
    )


def _mask_boxes(masks: Sequence[Any]) -> np.ndarray:
    """Return x, y, width and height around each sound mask, NaN for none: [4, N]."""
    boxes = [(mask_box(mask) if mask else None) or [math.nan] * 4 for mask in masks]
    return np.array(boxes, dtype=float).reshape(-1, 4).T


def _numbers(left_out: Mapping[str, Sequence[Entry]]) -> set[int]:
    """Return Python identities of the entries, as several entries may have one id."""
    return {id(item) for entries in left_out.values() for item in entries}


def _share(part: Sequence[Entry], whole: Sequence[Entry]) -> str:
    return f'{len(part):,} of {len(whole):,} boxes'


def _counts(values: Sequence[Any]) -> np.ndarray:
    """Return which values are numbers of 1 or more: [N] bool."""
    numbers = _finite(values)
    numbers[numbers] = np.array([v for v, n in zip(values, numbers, strict=True) if n]) >= 1
    return numbers


def _finite(values: Sequence[Any], *, length: int | None = None) -> np.ndarray:
    """Return which values are finite numbers, or lists of `length` such: [N] bool."""
    try:
        array = np.array(values)
    except ValueError:  # lists of several lengths
        array = np.array(None)
    shape = (len(values),) if length is None else (len(values), length)
    if array.dtype.kind in 'iuf' and array.shape == shape and not _has_bool(values, length):
        return np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    return np.array([_is_finite(value, length) for value in values], dtype=bool)


def _has_bool(values: Sequence[Any], length: int | None) -> bool:
    """Return whether any of the numbers is true or false, which NumPy reads as 1 or 0."""
    return bool in (
        {*map(type, values)} if length is None else {type(v) for r in values for v in r}
    )


def _is_finite(value: Any, length: int | None) -> bool:
    if length is None:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and abs(value) <= _LARGEST
    return (
        isinstance(value, list)
        and len(value) == length
        and all(_is_finite(item, None) for item in value)
    )
