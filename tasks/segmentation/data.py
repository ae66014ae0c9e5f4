"""Pictures and label maps: folders of one's own and mmseg's data sets, checked and seeded."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

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

from ..common.dataset import EmptiedSampleError, SeededSamples
from ..common.groups import GroupFile
from ..common.palette import Colour, palette
from ..common.picture_sizes import PICTURE_SUFFIXES
from ..common.resampling import resize_labels
from ..common.sample import BadSampleError
from ..common.wording import few

_LARGEST = 255  # labels are bytes; this one is never a class
_DARK: Colour = (36, 36, 44)
_BACKGROUND = ('background', 'null', 'void', 'other', 'none')


@TRANSFORMS.register_module()
class LoadSegMap(LoadAnnotations):
    """mmseg's `LoadAnnotations` for label maps, which checks what it reads.

    A label map is a picture of one channel whose values are class numbers; the ignored label is
    255. One of several channels, of another size than its picture, or with numbers that no class
    has is a bad sample, named with the way out. `resize` takes a map of another size, by nearest
    neighbour. As in mmseg 0 becomes the ignored label by the data set's `reduce_zero_label`, and
    only then the classes that are left out are mapped. Without a `seg_map_path` (the Inferencers
    give none) nothing is loaded.
    """

    def __init__(self, *, resize: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.resize = resize

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        if results.get('seg_map_path') is not None:
            self._load_seg_map(results)
        return results

    def _load_seg_map(self, results: dict[str, Any]) -> None:
        file, ignored = results['seg_map_path'], results.get('ignore_index', _LARGEST)
        content = fileio.get(file, backend_args=self.backend_args)
        labels = mmcv.imfrombytes(content, flag='unchanged', backend=self.imdecode_backend)
        labels = self._one_channel(labels, file)
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

    def _one_channel(self, labels: np.ndarray, file: str) -> np.ndarray:
        if labels.ndim == 3 and labels.shape[2] == 1:
            labels = labels[..., 0]
        if labels.ndim == 2 and np.issubdtype(labels.dtype, np.integer):
            return labels
        if labels.dtype == bool:
            return labels.astype(np.uint8)
        raise BadSampleError(
            f'{file}: a label map has one channel of class numbers, this one is '
            f'{labels.dtype} {list(labels.shape)} (a picture in colours?): '
            '`python tools/prepare_data.py masks` turns colours into class numbers'
        )

    def _of_size(self, labels: np.ndarray, results: dict[str, Any], file: str) -> np.ndarray:
        h, w = results['ori_shape'][:2]
        if labels.shape == (h, w):
            return labels
        if not self.resize:
            raise BadSampleError(
                f'{file}: the label map is {labels.shape[0]} x {labels.shape[1]} pixels (height x '
                f'width), its picture {results["img_path"]} {h} x {w}: replace one of them, or set '
                "dict(type='LoadSegMap', resize=True) to resize such maps by nearest neighbour"
            )
        return resize_labels(labels, (h, w))

    def __repr__(self) -> str:
        return f'{type(self).__name__}(resize={self.resize})'


def _check_numbers(labels: np.ndarray, results: dict[str, Any], file: str) -> None:
    """Raise where a pixel has a number that is neither a class nor ignored."""
    known, ignored = results.get('num_labels'), results.get('ignore_index', _LARGEST)
    if known is None or labels.size == 0 or int(labels.max()) < known:
        return
    beyond = labels[(labels >= known) & (labels != ignored)]
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


class CheckedSegSamples(SeededSamples):
    """Mix in before a data set of mmseg: seeded samples, and pairs of files that are checked.

    ``groups.csv`` in `data_root`, with the columns `file` and `group`, names images that depend on
    each other: they are resampled together in intervals, and never both trained on and held out.
    A picture without a label map is refused by name, a map without a picture is named and left out.
    In training a sample without a labelled pixel, from the file or after a crop, is replaced, and
    counted.
    """

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
        found: list[dict[str, Any]] = super().load_data_list()  # type: ignore[misc]
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
        if not found:
            raise ValueError(
                f'no pictures in {pictures}: looked for *{self.img_suffix}; set data_root, '  # type: ignore[attr-defined]
                'data_prefix.img_path or img_suffix'
            )
        if maps is None or '://' in str(maps):
            return
        there = {str(path) for path in Path(maps).rglob(f'*{self.seg_map_suffix}')}  # type: ignore[attr-defined]
        wanted = {str(Path(record['seg_map_path'])): record['img_path'] for record in found}
        if lacking := [picture for file, picture in wanted.items() if file not in there]:
            raise ValueError(
                f'{len(lacking):,} of {len(found):,} pictures have no label map in {maps} '
                f'(*{self.seg_map_suffix}): {few(lacking)}; '  # type: ignore[attr-defined]
                + _near(next(iter(set(wanted) - there)), there)
                + 'add the maps, or list the pictures that have one in ann_file'
            )
        over = sorted(there - set(wanted))
        if over and not self.ann_file:  # type: ignore[attr-defined]
            print_log(
                f'{maps}: {len(over):,} label maps have no picture in {pictures} and are left out: '
                f'{few(over)}',
                'current',
                logging.WARNING,
            )

    def _run_pipeline(self, index: int, *args: Any) -> dict[str, Any]:
        results = super()._run_pipeline(index, *args)
        sample = results.get('data_samples')
        if self.test_mode or sample is None or 'gt_sem_seg' not in sample:  # type: ignore[attr-defined]
            return results
        if bool((sample.gt_sem_seg.data == self.ignore_index).all()):  # type: ignore[attr-defined]
            file = self.get_data_info(index)['seg_map_path']  # type: ignore[attr-defined]
            raise EmptiedSampleError(f'{file}: no pixel with a class is left')
        return results


class _Folder(BaseSegDataset):
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
        chosen = (metainfo or {}).get('classes')
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
        maps = self.data_prefix.get('seg_map_path') or None
        found = []
        for name, file in pictures.items():
            record: dict[str, Any] = dict(img_path=file, label_map=self.label_map, seg_fields=[])
            if maps is not None:
                record['seg_map_path'] = str(Path(maps) / f'{name}{self.seg_map_suffix}')
            found.append({**record, 'reduce_zero_label': self.reduce_zero_label})
        return found

    def _listed(self, pictures: dict[str, str]) -> list[str]:
        """The names in `ann_file`, all of which have to be there."""
        if not Path(self.ann_file).is_file():
            raise ValueError(
                f'no list of pictures at {self.ann_file}: write it by `python '
                "tools/prepare_data.py split`, set ann_file to a file with a name a line, or to '' "
                'for all pictures of the folder'
            )
        lines = [line.strip() for line in Path(self.ann_file).read_text().splitlines()]
        names = [_stem(line.removesuffix(self.img_suffix)) for line in lines if line]
        if lacking := [name for name in names if name not in pictures]:
            folder = self.data_prefix['img_path']
            raise ValueError(
                f'{self.ann_file}: {len(lacking):,} of its {len(names):,} pictures are not in '
                f'{folder}: {few(lacking)}; correct the list, or data_prefix.img_path'
            )
        return names


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
    for path in sorted(Path(folder).rglob('*')):
        if not path.name.lower().endswith((suffix.lower(),) if suffix else PICTURE_SUFFIXES):
            continue
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
    names = [line.strip() for line in Path(file).read_text().splitlines()]
    names = [name for name in names if name]
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
    close = difflib.get_close_matches(file, sorted(there), 1, 0.8)
    return f'{file} is missing, {close[0]} is there; ' if close else ''


@DATASETS.register_module()
class NaViTADE20KDataset(CheckedSegSamples, ADE20KDataset):
    """ADE20K (SceneParse150), its samples checked and seeded."""


@DATASETS.register_module()
class NaViTCityscapesDataset(CheckedSegSamples, CityscapesDataset):
    """Cityscapes, its samples checked and seeded."""


@DATASETS.register_module()
class NaViTPascalContextDataset(CheckedSegSamples, PascalContextDataset):
    """Pascal Context with its background, 60 classes, its samples checked and seeded."""


@DATASETS.register_module()
class NaViTPascalContextDataset59(CheckedSegSamples, PascalContextDataset59):
    """Pascal Context without background, 59 classes, its samples checked and seeded."""


@DATASETS.register_module()
class NaViTCOCOStuffDataset(CheckedSegSamples, COCOStuffDataset):
    """COCO-Stuff 164k, 171 classes, its samples checked and seeded."""
