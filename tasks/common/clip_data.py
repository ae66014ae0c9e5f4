"""Clips and their classes: lists, CSV, folders of videos, of frames and of pictures."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS, TRANSFORMS

from .clip_lists import LineParser, is_number
from .clip_sample import ClipDataSample
from .dataset import SeededSamples, file_of
from .folders import is_system_file, search, visible
from .groups import GroupFile
from .name_forms import composed, path_in
from .picture_sizes import PICTURE_SUFFIXES, UNREADABLE, Measured
from .resize import find_planner
from .sample import BadSampleError, SampleSeed, seeded, with_file
from .text_files import Table, read_class_names, read_lines
from .video_reader import (
    VIDEO_SUFFIXES,
    ClipReader,
    FrameFolder,
    Picture,
    folder_measure,
    open_video,
    picture_measure,
    video_measure,
)
from .wording import few

Kind = Literal['videos', 'frames', 'pictures']
# Columns of a CSV that hold a number, and their keys in a record
_NUMBER_COLUMNS = {'frames': 'num_frames', 'fps': 'fps', 'height': 'height', 'width': 'width'}
_KEYS = {'videos': 'video_path', 'frames': 'frame_dir', 'pictures': 'img_path'}
MEASURES: dict[str, Callable[[str], Measured]] = {
    'videos': video_measure,
    'frames': folder_measure,
    'pictures': picture_measure,
}
_LABEL_COLUMNS = ('label', 'labels', 'class')
_MOST_NUMBERED = 100_000  # classes of a list of plain numbers
_FILE_COLUMNS = ('file', 'path', 'video', 'filename')  # of a CSV, the first that is there


def _what_is_in(folder: Path) -> str:
    """Some of the files and folders in it, to follow that what was looked for is not there."""
    names = [f'{item.name}{"/" if item.is_dir() else ""}' for item in visible(folder)]
    return f' in it, but {few(names)}' if names else ' in it'


def _numbered_classes(places: dict[str, str]) -> tuple[str, ...]:
    """Return the classes 0 to the largest label, and warn of those that no clip has."""
    numbers = {int(label) for label in places}
    count = max(max(numbers) + 1, 1)
    if count > _MOST_NUMBERED:
        raise ValueError(
            f'{places[str(count - 1)]}: the label {count - 1} would make {count:,} classes of the '
            f'{len(numbers):,} labels found, and at most {_MOST_NUMBERED:,} are allowed. Fix: '
            'number the classes from 0, or name them in metainfo.classes'
        )
    if absent := sorted(set(range(count)) - numbers):
        print_log(
            f'no clip has the label {few(absent)} of 0 to {count - 1}, the largest, which '
            f'{places[str(count - 1)]} gives: metainfo.classes says which classes there are',
            'current',
            logging.WARNING,
        )
    return tuple(str(number) for number in range(count))


def _path_in(folder: Path, name: str) -> str:
    """Return the path of a listed file; names of Windows may have backslashes."""
    if '\\' in name and not (folder / name).exists():
        name = name.replace('\\', '/')
    return path_in(folder, name)


def _refuse_header(entry: dict[str, Any], folder: Path) -> None:
    """Raise where a line of a list names columns, as those of a CSV do."""
    (label, *_), file = entry['labels'], entry['file']
    heading = file.lower() in _FILE_COLUMNS and label.lower() in _LABEL_COLUMNS
    if heading and not (folder / file).exists():
        raise ValueError(
            f'{entry["place"]}: {file + " " + label!r} is a header, and no such file exists. Fix: '
            'remove the line, or name the list .csv'
        )


def _number(text: str, column: str, place: str) -> int | float:
    """Return a number above 0, whole except for `fps`; spreadsheets write 30 as ``30.0`` too."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    whole = column != 'fps'
    if not 0 < value < math.inf or (whole and value != int(value)):
        kind = 'whole number' if whole else 'number with a decimal point'
        raise ValueError(f'{place}: {column} is {text!r}, not a {kind} above 0')
    return int(value) if whole else value


def _number_names(places: dict[str, str]) -> tuple[str, ...]:
    """Return names that are numbers in the order of the numbers, each of which stands for one."""
    names = sorted(places, key=lambda name: (int(name), name))
    for one, other in pairwise(names):
        if int(one) == int(other):
            raise ValueError(
                f'{places[other]}: the class {other!r} is the same number as {one!r} of '
                f'{places[one]}: write both the same way'
            )
    if [int(name) for name in names] != list(range(len(names))):
        print_log(
            f'classes are named by numbers: {few(names)} are the classes {few(range(len(names)))}',
            'current',
            logging.WARNING,
        )
    return tuple(names)


@DATASETS.register_module()
class NaViTClipDataset(SeededSamples, BaseDataset):
    """Clips with the classes that they show; `kind` says what a clip is.

    ``videos``    a file of any format that FFmpeg reads
    ``frames``    a folder of pictures, in the order of the numbers in their names
    ``pictures``  a picture: a clip of one frame

    They lie in ``data_prefix=dict(clips=...)`` under `data_root`, and `ann_file` lists them:

    - ``.txt`` (mmaction2's): ``PATH LABEL`` a line; of `frames` ``FOLDER FRAMES LABEL``; with
      `multi_class` one number or more. Paths and class names may have blanks, and a TAB separates
      where a line has one (`LineParser`).
    - ``.csv``, ``.tsv``: a header, a column `file` (or path, video, filename) and a column `label`;
      `where` takes the rows whose columns have these values, as ``where=dict(split='train')``,
      `where_not` the others. The columns width, height, frames and fps, where all have values, save
      a scan. Commas, semicolons or TABs separate. The column `group` (or the one that
      ``group='scene'`` names) says which clips depend on each other: they are resampled together in
      intervals, and never both trained on and held out.
    - none: a folder for each class. Links to folders are followed; hidden files and those of
      operating systems are left out.

    Lists and folders take groups from ``groups.csv`` in `data_root`, with the columns `file`,
    relative to it, and `group`. Other clips are groups of their own.

    Text files may have any encoding that `read_text` reads. Classes are
    ``metainfo=dict(classes=[...])``, else the lines of `class_file` in `data_root`, else the labels
    found. A label is the name of a class, else its number, counted from 0. Where all labels of a
    list are plain numbers, the classes are 0 to the largest; folders that are numbers, and numbers
    with leading zeros (``001``), are names, in the order of the numbers.

    Bad samples are replaced in training as in `SeededSamples`. In testing each is listed, and given
    out as one black frame marked ``bad``, which the metric counts as wrong.
    """

    METAINFO: ClassVar[dict[str, Any]] = {}
    _scanned = False

    def __init__(
        self,
        ann_file: str = '',
        *,
        kind: Kind = 'videos',
        multi_class: bool = False,
        where: dict[str, str] | None = None,
        where_not: dict[str, str] | None = None,
        group: str | None = None,
        class_file: str = 'classes.txt',
        data_prefix: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        if kind not in get_args(Kind):
            raise ValueError(f'kind={kind!r}, choose from {list(get_args(Kind))}')
        self.kind, self.multi_class, self.where = kind, multi_class, dict(where or {})
        self.where_not = dict(where_not or {})
        self.group, self.class_file = group, class_file
        self.measure = MEASURES[kind]  # type: ignore[method-assign]
        super().__init__(ann_file=ann_file, data_prefix=data_prefix or dict(clips=''), **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        folder = Path(self.data_prefix['clips'])
        if not folder.is_dir():
            raise ValueError(
                f'no folder of clips at {folder}: set data_root, or data_prefix.clips to the path '
                'within it'
            )
        found = list(self._entries(folder))
        if not found and not self.ann_file:
            raise ValueError(
                f'{folder}: no folder of a class{_what_is_in(folder)}. Fix: put the clips of each '
                f'class into a folder of its name, as {folder / "CLASS"}'
            )
        if not found:
            raise ValueError(f'{self.ann_file} lists no clips' + self._of_rows())
        classes = self._classes(found)
        if twice := sorted({name for name in classes if classes.count(name) > 1}):
            raise ValueError(
                f'{self.ann_file or folder}: the class names {few(twice)} stand there twice, in '
                f'metainfo.classes or {self.class_file}. Fix: name each class once'
            )
        self._metainfo['classes'] = classes
        numbers = {name: number for number, name in enumerate(classes)}
        self._check_first(found, numbers)
        groups = GroupFile(self.data_root or folder)
        for entry in found:
            entry.setdefault('group', groups[entry['file']])
        records = [self._record_of(entry, numbers) for entry in found]
        if self.ann_file and not self.multi_class:
            self._refuse_other_label(found, records)
        return records

    def _refuse_other_label(
        self, found: Sequence[dict[str, Any]], records: Sequence[dict[str, Any]]
    ) -> None:
        """Raise ValueError where the list gives one clip two classes."""
        first: dict[str, int] = {}
        for number, (entry, record) in enumerate(zip(found, records, strict=True)):
            before = first.setdefault(os.path.normpath(entry['file']), number)
            if record['gt_label'] != records[before]['gt_label']:
                other = found[before]
                raise ValueError(
                    f'{entry["place"]}: {entry["file"]} has the label {entry["labels"][0]!r}, and '
                    f'{other["labels"][0]!r} in {other["place"].rsplit(", ")[-1]}. Fix: keep one '
                    'of the two; for clips of several classes set multi_class=True and write all '
                    'labels of a clip in one line'
                )

    def _entries(self, folder: Path) -> Iterator[dict[str, Any]]:
        """`file`, `labels` as they are written, `place` where that was, and what a CSV tells."""
        if not self.ann_file:
            yield from self._in_folders(folder)
            return
        if not Path(self.ann_file).is_file():
            raise ValueError(
                f"no list of clips at {self.ann_file}: set ann_file, or ann_file='' where each "
                'class has a folder'
            )
        read = self._in_csv if self._is_table else self._in_list
        num_system = 0
        for entry in read():
            if is_system_file(entry['file']):
                num_system += 1
                continue
            labels = [composed(label) for label in entry['labels']]
            yield {**entry, 'file': _path_in(folder, entry['file']), 'labels': labels}
        if num_system:
            print_log(
                f'{self.ann_file}: left out {num_system:,} files of operating systems (._*, '
                '__MACOSX)',
                'current',
                logging.WARNING,
            )

    @property
    def _is_table(self) -> bool:
        return self.ann_file.lower().endswith(('.csv', '.tsv'))

    def _of_rows(self) -> str:
        """What the columns of `where` and `where_not` have, to follow that no row is left."""
        chosen = [*self.where, *self.where_not]
        if not chosen or not self._is_table:
            return ''
        rows = [row for _, row in Table(self.ann_file)]
        has = [f'{name}: {few(sorted({row[name] for row in rows}))}' for name in chosen]
        return f' with where={self.where}, where_not={self.where_not}; {"; ".join(has)}'

    def _in_list(self) -> Iterator[dict[str, Any]]:
        folder = Path(self.data_prefix['clips'])
        parser = LineParser(
            folder,
            self._suffixes,
            frames=self.kind == 'frames',
            multi_class=self.multi_class,
        )
        for number, line in enumerate(read_lines(self.ann_file), 1):
            if line.strip():
                place = f'{self.ann_file}, line {number}'
                if line.startswith('# '):
                    raise ValueError(f'{place}: {line!r} is a comment, not a clip: remove it')
                entry = {**parser.parse(line, place), 'place': place}
                _refuse_header(entry, folder)
                yield entry

    def _in_csv(self) -> Iterator[dict[str, Any]]:
        rows = Table(self.ann_file)
        path = next((name for name in _FILE_COLUMNS if name in rows.columns), None)
        needed = ['label', *self.where, *self.where_not, *filter(None, [self.group])]
        lacking = [name for name in needed if name not in rows.columns]
        if path is None:
            lacking.insert(0, ' or '.join(_FILE_COLUMNS))
        if lacking:
            raise ValueError(
                f'{self.ann_file}: its columns are {rows.columns}, it needs one of '
                f'{list(_FILE_COLUMNS)}, and {needed} ({lacking} missing)'
            )
        for number, row in rows:
            place = f'{self.ann_file}, line {number}'
            if any(row[name] != str(value) for name, value in self.where.items()):
                continue
            if any(row[name] == str(value) for name, value in self.where_not.items()):
                continue
            if not row[path]:
                raise ValueError(f'{place}: the column {path} is empty')
            labels = row['label'].split(';') if self.multi_class else [row['label']]
            known = {k: row[k] for k in ('width', 'height', 'frames', 'fps') if row.get(k)}
            labels = [label.strip() for label in labels]
            if len(labels) > 1 and '' in labels:
                raise ValueError(
                    f'{place}: {row["label"]!r} has an empty label before or after a ";". Fix: '
                    'write ";" only between labels'
                )
            if (column := self.group or 'group') in row:
                known['group'] = row[column]
            yield {'file': row[path], 'labels': labels, 'place': place, **known}

    @property
    def _suffixes(self) -> tuple[str, ...]:
        return VIDEO_SUFFIXES if self.kind == 'videos' else PICTURE_SUFFIXES

    def _in_folders(self, folder: Path) -> Iterator[dict[str, Any]]:
        clips: dict[Path, list[Path]] = {p: [] for p in visible(folder) if p.is_dir()}
        if self.kind == 'frames':
            for place, found in clips.items():
                found += [item for item in visible(place) if item.is_dir()]
        else:
            files = search(folder, self._suffixes)
            for file in files.files:
                place = folder / file.relative_to(folder).parts[0]
                if place in clips:
                    clips[place].append(file)
                else:  # beside the folders of the classes
                    files.others.setdefault(f'{file.suffix} in no folder of a class', []).append(
                        file
                    )
            if files.left_out:
                print_log(files.left_out, 'current', logging.WARNING)
        for place, found in clips.items():
            if not found:
                raise ValueError(
                    f'{place}: a class without {self.kind}{_what_is_in(place)}; remove it, fill '
                    f'it, or set kind (it is {self.kind!r})'
                )
            for clip in found:
                yield {'file': str(clip), 'labels': [composed(place.name)], 'place': str(place)}

    def _classes(self, found: Sequence[dict[str, Any]]) -> tuple[str, ...]:
        if stated := self._metainfo.get('classes'):
            return tuple(stated)
        file = Path(self.data_root or '') / self.class_file
        if self.class_file and file.is_file():
            return tuple(read_class_names(file))
        places = {label: entry['place'] for entry in reversed(found) for label in entry['labels']}
        if not all(map(is_number, places)):
            return tuple(sorted(places))
        if self.ann_file and all(str(int(label)) == label for label in places):
            return _numbered_classes(places)
        return _number_names(places)

    def _record_of(self, entry: dict[str, Any], numbers: dict[str, int]) -> dict[str, Any]:
        labels = [self._label(text, numbers, entry['place']) for text in entry['labels']]
        once = list(dict.fromkeys(labels))
        record: dict[str, Any] = {_KEYS[self.kind]: entry['file'], 'gt_label': once}
        if entry['group']:
            record['group'] = entry['group']
        for column, key in _NUMBER_COLUMNS.items():
            if column in entry:
                record[key] = _number(entry[column], column, entry['place'])
        return record

    def _label(self, text: str, numbers: dict[str, int], place: str) -> int:
        if not text.strip():
            raise ValueError(f'{place}: the label is missing')
        if text in numbers:
            return numbers[text]
        if text.isdecimal() and int(text) < len(numbers):
            return int(text)
        from_1 = text.isdecimal() and int(text) == len(numbers)
        raise ValueError(
            f'{place}: the label {text!r} is neither the number of a class, 0 to '
            f'{len(numbers) - 1}, nor the name of one: {few(list(numbers))}'
            + ('. Fix: if labels count from 1, write the names, or subtract 1' if from_1 else '')
        )

    def _check_first(self, found: Sequence[dict[str, Any]], numbers: dict[str, int]) -> None:
        """Warn where numbers seem to count named classes from 1: class 0 has no clip."""
        labels = {label for entry in found for label in entry['labels']}
        if numbers.keys() & labels or not labels or not all(map(is_number, labels)):
            return
        if '1' in labels and not any(int(label) == 0 for label in labels):
            print_log(
                f'{self.ann_file or self.data_prefix["clips"]}: no clip has the label 0, '
                f'{next(iter(numbers))!r}. Labels count from 0: if these count from 1, write the '
                'names of the classes, or subtract 1',
                'current',
                logging.WARNING,
            )

    # ----------------------------------------------------------------------------------------------
    # Samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not self.test_mode:
            return super().__getitem__(index)
        self.full_init()
        seed = self._seed_of(index)
        try:
            with seeded(seed):
                return self._run_pipeline(int(index), seed, None)
        except BadSampleError as fault:
            self._report(int(index), fault)
            return self._stand_in(int(index), seed)

    def _stand_in(self, index: int, seed: SampleSeed) -> dict[str, Any]:
        """A black frame in the place of a clip that cannot be read."""
        side = getattr(find_planner(self.pipeline.transforms), 'cell', 16)
        results = {
            **self._with_classes(super().sample_start(index)),
            'sample_seed': seed,
            'imgs': np.zeros((1, 1, side, side, 3), dtype=np.uint8),
            'img_shape': (side, side),
            'frame_inds': np.zeros((1, 1), dtype=np.int64),
            'num_views': 1,
            'bad': True,
        }
        packed: dict[str, Any] = self.pipeline.transforms[-1](results)
        return packed

    def _with_classes(self, record: dict[str, Any]) -> dict[str, Any]:
        classes = self.metainfo['classes']
        return {**record, 'classes': classes, 'num_classes': len(classes)}

    def get_cat_ids(self, index: int) -> list[int]:
        """Return the classes of a clip, for samplers that balance them."""
        labels: list[int] = self.get_data_info(index)['gt_label']
        return labels

    def complete_sizes(self) -> None:
        """Scan the files whose sizes the list does not tell."""
        super().complete_sizes()
        self._scanned = True

    def planned_views(self, index: int) -> list[tuple[int, ...]] | None:
        """(frames, height, width) of each view of a clip; what training drops of it is in there."""
        planner = find_planner(self.pipeline.transforms)
        size = self._size_of(int(index), planner.size_fields)
        if size is None:
            return None
        plan = planner.plan(*size, sample_seed=self._seed_of(index))
        return [(plan.num_frames, *plan.size)] * planner.num_views

    def sample_start(self, index: int) -> dict[str, Any]:
        """The record, and as `measured` what was read of the file's header before."""
        results = self._with_classes(super().sample_start(index))
        if self._sizes is None:
            return results
        known = self._sizes[index]
        if not np.isnan(known).any():
            h, w, frames, fps = known.tolist()
            results['measured'] = (int(h), int(w), int(frames), fps)
        elif self._scanned:
            file = file_of(results)
            try:
                self.measure(file)
            except UNREADABLE as error:  # cut off, say, and its header read before
                raise BadSampleError(with_file(file, error)) from error
        return results


def open_clip(
    kind: Kind, file: str, *, num_frames: int | None = None, fps: float | None = None
) -> ClipReader:
    """Return the reader of a clip; `num_frames` and `fps` are those a list states of a folder."""
    if kind == 'videos':
        return open_video(file)
    if kind == 'frames':
        return FrameFolder(file, num_frames=num_frames, fps=fps)
    return Picture(file)


@TRANSFORMS.register_module()
class LoadClip(BaseTransform):
    """Open a clip: a video, a folder of frames or a picture.

    Writes `reader`, `ori_shape` and `measured`, the (height, width, frames, fps) that
    `ClipToTokenBudget` plans by: those of the scan where there was one, so that the plan is that of
    the sampler and nothing is decoded yet; else those of the file, its size by its first frame.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        kind = next(kind for kind, key in _KEYS.items() if key in results)
        stated = {key: results.get(key) for key in ('num_frames', 'fps')}
        reader = open_clip(kind, results[_KEYS[kind]], **stated)
        if 'measured' not in results:
            results['measured'] = (*reader.size, reader.num_frames, reader.fps)
        results['reader'] = reader
        results['ori_shape'] = tuple(results['measured'][:2])
        return results


@TRANSFORMS.register_module()
class PackClipInputs(BaseTransform):
    """The last step: `inputs` [views, 3, frames, h, w] uint8 RGB, and a `ClipDataSample`."""

    META: ClassVar[tuple[str, ...]] = (
        'video_path', 'frame_dir', 'img_path', 'ori_shape', 'img_shape', 'frame_inds', 'measured',
        'num_views', 'flip', 'sample_idx', 'sample_seed', 'bad', 'kept_tokens', 'patch_shapes',
        'group',
    )  # fmt: skip

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        frames = np.ascontiguousarray(results['imgs'].transpose(0, 4, 1, 2, 3))
        sample = ClipDataSample(metainfo={k: results[k] for k in self.META if k in results})
        if results.get('gt_label') is not None:
            sample.gt_label = torch.tensor(results['gt_label'])
            scores = torch.zeros(results['num_classes'])
            scores[results['gt_label']] = 1.0
            sample.gt_score = scores
        return dict(inputs=torch.from_numpy(frames), data_samples=sample)
