"""Pictures and label maps: folders of one's own and mmseg's data sets, checked and seeded."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import cv2
import mmcv
import numpy as np
from mmengine import fileio
from mmengine.logging import print_log
from mmengine.registry import DATASETS, TRANSFORMS
from mmseg.datasets import (
    ADE20KDataset,
    BaseSegDataset,
    CityscapesDataset,
    COCOStuffDataset,
    PascalContextDataset,
    PascalContextDataset59,
)
from mmseg.datasets.transforms import LoadAnnotations
from PIL import UnidentifiedImageError

from ..common.dataset import EmptiedSampleError, SeededSamples
from ..common.file_formats import describe_content, describe_damage
from ..common.folders import find_files, is_system_file, warn_once
from ..common.groups import GroupFile
from ..common.name_forms import matched, path_in
from ..common.orientation import SIDEWAYS, is_on_its_side, orientation_of, turn
from ..common.palette import Colour, palette
from ..common.picture_sizes import PICTURE_SUFFIXES
from ..common.resampling import resize_labels
from ..common.sample import BadSampleError
from ..common.text_files import read_class_names, read_lines, read_names
from ..common.wording import few
from .label_check import count_pixels

_LARGEST = 255  # labels are bytes; this one is never a class
_DARK: Colour = (36, 36, 44)
_BACKGROUND = ('background', 'null', 'void', 'other', 'none')


@TRANSFORMS.register_module()
class LoadSegMap(LoadAnnotations):
    """mmseg's `LoadAnnotations` for label maps, which checks what it reads.

    A label map is an image of one channel whose values are class numbers; the ignored label is
    255. One of several channels, of another size than its image, or with numbers that no class
    has is a bad sample, and the error names the fix. As in mmseg 0 becomes the ignored label by the
    data set's `reduce_zero_label`, and only then the classes that are left out are mapped. Without
    a `seg_map_path` (the Inferencers give none) nothing is loaded.

    Args:
        resize: resize a map of another size by nearest neighbour. A map that lies on its side is
            refused even so.
        turn: turn maps by the EXIF orientation of their images: for maps that were drawn on the
            images as they are stored. A map that has the size of its image as shown, where these
            sizes differ, is upright and stays so.
    """

    def __init__(self, *, resize: bool = False, turn: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.resize, self.turn = resize, turn

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        if results.get('seg_map_path') is not None:
            self._load_seg_map(results)
        return results

    def _load_seg_map(self, results: dict[str, Any]) -> None:
        file, ignored = results['seg_map_path'], results.get('ignore_index', _LARGEST)
        content = fileio.get(file, backend_args=self.backend_args)
        labels = self._one_channel(self._decoded(content, file), file)
        if self.turn:
            labels = self._turned(labels, results)
        labels = self._of_size(labels, results, file)
        _check_numbers(labels, results, file)
        labels = labels.astype(np.uint8)
        if results['reduce_zero_label']:
            labels = np.where(labels == ignored, ignored, labels - np.uint8(1)).astype(np.uint8)
            labels[labels == _LARGEST] = ignored  # 0 wrapped around
        if results.get('label_map') is not None:
            table = np.arange(_LARGEST + 1, dtype=np.uint8)
            for old, new in results['label_map'].items():
                table[old] = new
            labels = table[labels]
        results['gt_seg_map'] = labels
        results['seg_fields'].append('gt_seg_map')

    def _decoded(self, content: bytes, file: str) -> np.ndarray:
        """Decode a label map; raise BadSampleError, by its file, where it is no image."""
        try:
            labels = mmcv.imfrombytes(content, flag='unchanged', backend=self.imdecode_backend)
        except (UnidentifiedImageError, cv2.error):
            labels = None
        if labels is None:
            found = describe_content(content, file)
            if not found and content.isascii():
                found = 'the file is text'
            found = found or describe_damage(file)
            raise BadSampleError(
                f'{file}: no label map can be read from it, {found}. Label maps are images of one '
                'channel: PNG, TIFF, BMP, WebP or GIF'
            )
        return labels

    def _one_channel(self, labels: np.ndarray, file: str) -> np.ndarray:
        if labels.ndim == 3 and labels.shape[2] == 1:
            labels = labels[..., 0]
        if labels.ndim == 2 and np.issubdtype(labels.dtype, np.integer):
            return labels
        if labels.dtype == bool:
            return labels.astype(np.uint8)
        if labels.ndim == 2:
            raise BadSampleError(
                f'{file}: a label map has whole numbers, this one has {labels.dtype}. Fix: export '
                'it with 8 or 16 bits a pixel'
            )
        raise BadSampleError(
            f'{file}: a label map has one channel of class numbers, this one is '
            f'{labels.dtype} {list(labels.shape)} (a picture in colours?): '
            '`python tools/prepare_data.py masks` turns colours into class numbers'
        )

    def _turned(self, labels: np.ndarray, results: dict[str, Any]) -> np.ndarray:
        """Turn a map by its image's EXIF orientation, unless its size shows that it is upright."""
        orientation = orientation_of(results['img_path'], self.backend_args)
        h, w = results['ori_shape'][:2]
        stored = (w, h) if orientation in SIDEWAYS else (h, w)
        return labels if is_on_its_side(labels.shape, stored) else turn(labels, orientation)

    def _of_size(self, labels: np.ndarray, results: dict[str, Any], file: str) -> np.ndarray:
        h, w = results['ori_shape'][:2]
        if labels.shape == (h, w):
            return labels
        if is_on_its_side(labels.shape, (h, w)):
            raise BadSampleError(self._on_its_side(labels.shape, results, file))
        if not self.resize:
            raise BadSampleError(
                f'{file}: the label map is {labels.shape[0]} x {labels.shape[1]} pixels (height x '
                f'width), its picture {results["img_path"]} {h} x {w}: replace one of them, or set '
                "dict(type='LoadSegMap', resize=True) to resize such maps by nearest neighbour"
            )
        return resize_labels(labels, (h, w))

    def _on_its_side(self, size: tuple[int, ...], results: dict[str, Any], file: str) -> str:
        """Describe a map whose height and width are swapped against its image."""
        (h, w), image = results['ori_shape'][:2], results['img_path']
        text = (
            f'{file}: the label map is {size[0]} x {size[1]} pixels (height x width), its image '
            f'{image} {h} x {w}: height and width are swapped'
        )
        orientation = orientation_of(image, self.backend_args)
        if orientation not in SIDEWAYS:
            return f'{text}. Fix: turn the map or the image by a quarter, as the image is shown'
        return (
            f'{text} by the EXIF orientation {orientation} of the image, which loading applies. '
            "Fix: dict(type='LoadSegMap', turn=True) turns maps in the same way"
        )

    def __repr__(self) -> str:
        return f'{type(self).__name__}(resize={self.resize}, turn={self.turn})'


def _check_numbers(labels: np.ndarray, results: dict[str, Any], file: str) -> None:
    """Raise where a pixel has a number that is neither a class nor ignored."""
    known, ignored = results.get('num_labels'), results.get('ignore_index', _LARGEST)
    if known is None or labels.size == 0:
        return
    if int(labels.max()) < known and int(labels.min()) >= 0:
        return
    beyond = labels[((labels >= known) | (labels < 0)) & (labels != ignored)]
    if not beyond.size:
        return
    numbers = np.unique(beyond).tolist()
    advice = 'correct the map, or name all classes'
    if not results['reduce_zero_label'] and numbers == [known]:
        advice += (
            "; if its classes begin at 1 and 0 is unlabelled, set the data set's "
            'reduce_zero_label=True'
        )
    raise BadSampleError(
        f'{file}: {beyond.size:,} pixels have the labels {few(numbers)}, but there are {known} '
        f'labels, 0 to {known - 1}, and {ignored} for ignored pixels: {advice}'
    )


def refuse_odd_ignore_index(label: Any) -> None:
    """Raise ValueError where the ignored label of a data set does not fit in a byte."""
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label <= _LARGEST:
        raise ValueError(
            f'the data set has ignore_index={label!r}, and label maps hold bytes. Fix: set it to a '
            f'whole number, 0 to {_LARGEST} ({_LARGEST} by default)'
        )


class CheckedSegSamples(SeededSamples):
    """Mix in before a data set of mmseg: seeded samples, and pairs of files that are checked.

    ``groups.csv`` in `data_root`, with the columns `file` and `group`, names images that depend on
    each other: they are resampled together in intervals, and never both trained on and held out.
    A picture without a label map is refused by name, a map without a picture is named and left out.
    In training a sample without a labelled pixel, from the file or after a crop, is replaced, and
    counted.
    """

    _present: list[list[int]] | None = None  # of each sample, the classes with pixels

    def load_data_list(self) -> list[dict[str, Any]]:
        for key in ('img_path', 'seg_map_path'):
            folder = str(self.data_prefix.get(key) or '')  # type: ignore[attr-defined]
            if folder and '://' not in folder and not Path(folder).is_dir():
                raise ValueError(
                    f'no folder at {folder}: set data_root to the folder of the data set, and '
                    f'data_prefix.{key} to the path within it'
                )
        classes = self.metainfo['classes']  # type: ignore[attr-defined]
        if len(classes) < 2:
            raise ValueError(
                f'one class alone, {list(classes)}, and the pixels of all others are ignored: a '
                'model would learn to say it everywhere; name what it is to be told from as well'
            )
        refuse_odd_ignore_index(self.ignore_index)  # type: ignore[attr-defined]
        found: list[dict[str, Any]] = super().load_data_list()  # type: ignore[misc]
        found = [record for record in found if not is_system_file(record['img_path'])]
        self._check_pairs(found)
        groups = GroupFile(getattr(self, 'data_root', None) or '.')
        named = getattr(self, 'named', None) or type(self).METAINFO['classes']  # type: ignore[attr-defined]
        for record in found:
            record['num_labels'] = len(named) + bool(self.reduce_zero_label)  # type: ignore[attr-defined]
            record['ignore_index'] = self.ignore_index  # type: ignore[attr-defined]
            if group := groups[record['img_path']]:
                record['group'] = group
        return found

    def _check_pairs(self, found: Sequence[dict[str, Any]]) -> None:
        pictures = self.data_prefix.get('img_path') or ''  # type: ignore[attr-defined]
        maps = self.data_prefix.get('seg_map_path') or None  # type: ignore[attr-defined]
        if not found and self.ann_file and Path(self.ann_file).is_file():  # type: ignore[attr-defined]
            raise ValueError(
                f'{self.ann_file} lists no pictures: write the name of one a line, or set '  # type: ignore[attr-defined]
                "ann_file to '' for all pictures of the folder"
            )
        if not found:
            raise ValueError(
                f'no pictures in {pictures}: looked for '
                f'{self.img_suffix or " ".join(PICTURE_SUFFIXES)}; set data_root, '  # type: ignore[attr-defined]
                'data_prefix.img_path or img_suffix'
            )
        if maps is None or '://' in str(maps):
            return
        there = {str(path) for path in find_files(maps, [self.seg_map_suffix])}  # type: ignore[attr-defined]
        wanted = {str(Path(record['seg_map_path'])): record['img_path'] for record in found}
        if lacking := [picture for file, picture in wanted.items() if file not in there]:
            raise ValueError(
                f'{len(lacking):,} of {len(found):,} pictures have no label map in {maps} '
                f'(*{self.seg_map_suffix}): {few(lacking)}; '  # type: ignore[attr-defined]
                + _near(min(set(wanted) - there), there)
                + 'add the maps, list the pictures that have one in ann_file, or set seg_map_suffix'
            )
        if self.seg_map_suffix.lower().endswith(('.jpg', '.jpeg')):  # type: ignore[attr-defined]
            warn_once(
                f'{maps}: label maps in JPEG, which changes class numbers at the borders of '
                'regions. Fix: export them again as PNG'
            )
        over = sorted(there - set(wanted))
        if over and not self.ann_file:  # type: ignore[attr-defined]
            print_log(
                f'{maps}: {len(over):,} label maps have no picture in {pictures} and are left out: '
                f'{few(over)}',
                'current',
                logging.WARNING,
            )

    def get_cat_ids(self, index: int) -> list[int]:
        """Return the classes with pixels in a label map, for samplers that balance them.

        Reads all maps at the first call; a map that cannot be read has no classes.
        """
        if self._present is None or len(self._present) != len(self):  # type: ignore[arg-type]
            number = len(self.metainfo['classes'])  # type: ignore[attr-defined]
            self._present = [
                [] if isinstance(count, str) else np.flatnonzero(count[:number]).tolist()
                for count in count_pixels(self, range(len(self)))  # type: ignore[arg-type]
            ]
        return self._present[index]

    def _run_pipeline(self, index: int, *args: Any) -> dict[str, Any]:
        results = super()._run_pipeline(index, *args)
        sample = results.get('data_samples')
        if self.test_mode or sample is None or 'gt_sem_seg' not in sample:  # type: ignore[attr-defined]
            return results
        if bool((sample.gt_sem_seg.data == self.ignore_index).all()):  # type: ignore[attr-defined]
            file = self.get_data_info(index)['seg_map_path']  # type: ignore[attr-defined]
            raise EmptiedSampleError(f'{file}: no pixel with a class is left')
        return results


class _Listed(BaseSegDataset):
    """Data set of mmseg whose `ann_file` may have any encoding that `read_text` reads."""

    def load_data_list(self) -> list[dict[str, Any]]:
        if not self.ann_file or Path(self.ann_file).is_dir():
            found: list[dict[str, Any]] = super().load_data_list()
            return found
        if not Path(self.ann_file).is_file():
            raise ValueError(f'no list of images at {self.ann_file}: set data_root or ann_file')
        folder = self.data_prefix['img_path']
        return [
            self._record(path_in(folder, f'{name}{self.img_suffix}'), name)
            for name in read_names(self.ann_file)
        ]

    def _record(self, img_path: str, name: str) -> dict[str, Any]:
        """Return the record of an image whose label map has this name before its suffix."""
        maps = self.data_prefix.get('seg_map_path') or None
        there = {'seg_map_path': path_in(maps, f'{name}{self.seg_map_suffix}')} if maps else {}
        return dict(
            img_path=img_path,
            **there,
            label_map=self.label_map,
            reduce_zero_label=self.reduce_zero_label,
            seg_fields=[],
        )


class _Folder(_Listed):
    """See `NaViTSegDataset`."""

    METAINFO: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        *args: Any,
        class_file: str = 'classes.txt',
        img_suffix: str = '',
        metainfo: dict[str, Any] | None = None,
        lazy_init: bool = False,
        **kwargs: Any,
    ) -> None:
        chosen = self._load_metainfo(metainfo).get('classes')
        self.named = read_classes(str(Path(kwargs.get('data_root') or '') / class_file), chosen)
        classes = self.named if chosen is None else tuple(chosen)
        metainfo = {'palette': _colours(classes), **(metainfo or {}), 'classes': classes}
        super().__init__(*args, metainfo=metainfo, img_suffix=img_suffix, lazy_init=True, **kwargs)
        if classes != self.named:
            new = {name: label for label, name in enumerate(classes)}
            self.label_map = {
                label: new.get(name, self.ignore_index) for label, name in enumerate(self.named)
            }
            self._metainfo['label_map'] = self.label_map
        if not lazy_init:
            self.full_init()

    def load_data_list(self) -> list[dict[str, Any]]:
        pictures = pictures_in(self.data_prefix['img_path'], self.img_suffix)
        if self.ann_file:
            pictures = {name: pictures[name] for name in self._listed(pictures)}
        return [self._record(file, name) for name, file in pictures.items()]

    def _listed(self, pictures: dict[str, str]) -> list[str]:
        """The names in `ann_file`, all of which have to be there."""
        if not Path(self.ann_file).is_file():
            raise ValueError(
                f'no list of pictures at {self.ann_file}: write it by `python '
                "tools/prepare_data.py split`, set ann_file to a file with a name a line, or to '' "
                'for all pictures of the folder'
            )
        names = [
            self._name_of(line.strip(), pictures, f'{self.ann_file}, line {number}')
            for number, line in enumerate(read_lines(self.ann_file), 1)
            if line.strip() and not is_system_file(line.strip())
        ]
        names = matched(names, pictures)
        if lacking := [name for name in names if name not in pictures]:
            folder = self.data_prefix['img_path']
            raise ValueError(
                f'{self.ann_file}: {len(lacking):,} of its {len(names):,} pictures are not in '
                f'{folder}: {few(lacking)}; correct the list, or data_prefix.img_path'
            )
        return names

    def _short(self, name: str) -> str:
        return name.removesuffix(self.img_suffix) if self.img_suffix else _stem(name)

    def _name_of(self, line: str, pictures: dict[str, str], place: str) -> str:
        """Return the name that a line gives with or without the suffix of its image.

        ``scan.tif`` is the image scan.tif.jpg or the image scan.tif: the one that is there.
        """
        short = self._short(line)
        if line not in pictures and short not in pictures:  # as Windows and `find` write paths
            line = line.replace('\\', '/').removeprefix('./')
            short = self._short(line)
        if line in pictures and short in pictures and short != line:
            raise ValueError(
                f'{place}: {line!r} is the name of two images, {pictures[line]} and '
                f'{pictures[short]}: write {line + Path(pictures[line]).suffix!r} or {short!r}'
            )
        return line if line in pictures else short


def _colours(classes: Sequence[str]) -> list[Colour]:
    """Of the classes; what is called background is dark, so that the others stand out."""
    colours = palette(len(classes))
    return [
        _DARK if name.lower() in _BACKGROUND else colour
        for name, colour in zip(classes, colours, strict=True)
    ]


def pictures_in(folder: str, suffix: str = '') -> dict[str, str]:
    """The pictures of a folder and those below it, by name without suffix, in order of the name."""
    if not Path(folder).is_dir():
        raise ValueError(f'no folder of pictures at {folder}: set data_root, data_prefix.img_path')
    found: dict[str, str] = {}
    for path in find_files(folder, [suffix] if suffix else PICTURE_SUFFIXES):
        whole = str(path.relative_to(folder))
        name = whole[: -len(suffix)] if suffix else _stem(whole)
        if name in found:
            raise ValueError(
                f'{found[name]} and {path} have one name, and so one label map: rename one of '
                "them, or set img_suffix='.jpg', or another, to take only these"
            )
        found[name] = str(path)
    return found


def _stem(name: str) -> str:
    """The name without the suffix of a picture, if it has one."""
    path = Path(name)
    return str(path.with_suffix('')) if path.suffix.lower() in PICTURE_SUFFIXES else name


@DATASETS.register_module()
class NaViTSegDataset(CheckedSegSamples, _Folder):
    """A folder of pictures, one of label maps of the same names, and the names of the classes.

    ``classes.txt`` in `data_root` (or `class_file`) has a class a line, the first that of label 0
    (of label 1 with `reduce_zero_label`). ``metainfo=dict(classes=...)`` chooses some of them, in
    any order; the pixels of the others are ignored. `ann_file` lists the pictures to take, a name
    a line, with or without suffix; without it all of the folder. Pictures may have any suffix of
    `PICTURE_SUFFIXES`, or `img_suffix` alone. All other arguments are those of mmseg's
    `BaseSegDataset`.
    """


def read_classes(file: str, chosen: Sequence[str] | None = None) -> tuple[str, ...]:
    """The names in a file, one a line; where there is no file the `chosen` ones are all."""
    if not Path(file).is_file():
        if chosen:
            return tuple(chosen)
        if not Path(file).parent.is_dir():
            raise ValueError(f'there is no folder {Path(file).parent}: set data_root')
        raise ValueError(
            f'no class names at {file}: write one a line, the first that of label 0, or give '
            "metainfo=dict(classes=['...', ...])"
        )
    names = read_class_names(file)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f'{file}: the class names {few(twice)} stand there twice')
    if not 0 < len(names) <= _LARGEST:
        raise ValueError(f'{file}: {len(names)} class names; 1 to {_LARGEST} are allowed')
    if unknown := [name for name in chosen or () if name not in names]:
        near = difflib.get_close_matches(str(unknown[0]), names, 3) or names[:20]
        raise ValueError(
            f'metainfo.classes: {unknown[0]!r} is none of the {len(names)} of {file}, which has '
            f'{", ".join(near)}: take names from there'
        )
    return tuple(names)


def _near(file: str, there: set[str]) -> str:
    same = [other for other in sorted(there) if other.lower() == file.lower()]
    close = same or difflib.get_close_matches(file, sorted(there), 1, 0.8)
    return f'{file} is missing, {close[0]} is there; ' if close else ''


@DATASETS.register_module()
class NaViTADE20KDataset(CheckedSegSamples, _Listed, ADE20KDataset):
    """ADE20K (SceneParse150), its samples checked and seeded."""


@DATASETS.register_module()
class NaViTCityscapesDataset(CheckedSegSamples, _Listed, CityscapesDataset):
    """Cityscapes, its samples checked and seeded."""


@DATASETS.register_module()
class NaViTPascalContextDataset(CheckedSegSamples, _Listed, PascalContextDataset):
    """Pascal Context with its background, 60 classes, its samples checked and seeded."""


@DATASETS.register_module()
class NaViTPascalContextDataset59(CheckedSegSamples, _Listed, PascalContextDataset59):
    """Pascal Context without background, 59 classes, its samples checked and seeded."""


@DATASETS.register_module()
class NaViTCOCOStuffDataset(CheckedSegSamples, _Listed, COCOStuffDataset):
    """COCO-Stuff 164k, 171 classes, its samples checked and seeded."""
