"""Lines of clip lists: a path, which may hold blanks, and one label or more."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

_FIX = 'Fix: write a TAB between the path and the label, or use a CSV file'


class _Split(NamedTuple):
    path: str
    frames: str  # empty where the kind of clip has none
    label: str


class LineParser:
    """Parser of lines `PATH LABEL`, or of frame folders `FOLDER FRAMES LABEL`.

    A line with a TAB is split at its TABs. Otherwise blanks may stand in the path and in the label,
    and the path is the part that ends with a media suffix (for frame folders: the part before the
    number of frames). Where several parts could be the path, the one that exists is; a line that
    this does not settle is refused. With `multi_class`, several labels follow the path: separated
    by TABs, or numbers separated by blanks.
    """

    def __init__(
        self,
        folder: Path,
        suffixes: tuple[str, ...],
        *,
        frames: bool = False,
        multi_class: bool = False,
    ) -> None:
        self.folder, self.suffixes = folder, suffixes
        self.frames, self.multi_class = frames, multi_class
        shape = 'FOLDER FRAMES LABEL' if frames else 'PATH LABEL'
        self.shape = shape + (', of LABEL numbers one or more' if multi_class else '')
        self._exists: Callable[[Path], bool] = Path.is_dir if frames else Path.is_file

    def parse(self, line: str, place: str) -> dict[str, Any]:
        """Return `file`, `labels` and, for frame folders, `frames`, all as texts.

        Raises:
            ValueError: the line has another form, or could be read in several ways; names `place`.
        """
        found = self._tabs(line, place) if '\t' in line.strip() else self._blanks(line, place)
        entry: dict[str, Any] = {'file': found[0].path, 'labels': [item.label for item in found]}
        return {**entry, 'frames': found[0].frames} if self.frames else entry

    def _tabs(self, line: str, place: str) -> list[_Split]:
        fields = [field.strip() for field in line.strip().split('\t')]
        first = 1 + self.frames
        labels = fields[first:]
        if not all(fields) or not labels or (len(labels) > 1 and not self.multi_class):
            raise ValueError(f'{place}: {line!r} is not {self.shape}, separated by TABs')
        number = fields[1] if self.frames else ''
        if number and not number.isdecimal():
            raise ValueError(f'{place}: {number!r} in {line!r} is not a number of frames')
        return [_Split(fields[0], number, label) for label in labels]

    def _blanks(self, line: str, place: str) -> list[_Split]:
        line = line.strip()
        found = list(self._splits(line))
        if len(found) > 1:
            there = [split for split in found if self._exists(self.folder / split.path)]
            found = there or (found[:1] if self.multi_class else found)
        if len(found) > 1:
            paths = ' or '.join(repr(split.path) for split in found[:3])
            raise ValueError(
                f'{place}: {line!r} can be read in several ways: the path may be {paths}. {_FIX}'
            )
        if not found:
            raise ValueError(f'{place}: {line!r} is not {self.shape}. {_FIX}')
        (split,) = found
        if not self.multi_class:
            return [split]
        return [split._replace(label=label) for label in split.label.split()]

    def _splits(self, line: str) -> Iterator[_Split]:
        """Yield the ways in which a line can be split at its blanks."""
        places = [(blank.start(), blank.end()) for blank in re.finditer(r'\s+', line)]
        if self.frames:
            yield from self._folder_splits(line, places)
            return
        parts = [_Split(line[:start], '', line[end:]) for start, end in places]
        parts = [part for part in parts if self._is_label(part.label)]
        media = [part for part in parts if part.path.lower().endswith(self.suffixes)]
        if media or line.lower().endswith(self.suffixes):
            yield from media
        elif there := [part for part in parts if self._exists(self.folder / part.path)]:
            yield from there[-1:]
        elif self.multi_class:
            yield from parts[:1]
        else:  # a path without suffix: the label is the last word, where that is a number
            yield from (
                parts if len(parts) == 1 else parts[-1:] if _ends_with_number(line) else parts
            )

    def _folder_splits(self, line: str, places: list[tuple[int, int]]) -> list[_Split]:
        parts = [
            _Split(line[:start], line[end:stop], line[after:])
            for (start, end), (stop, after) in pairwise(places)
        ]
        found = [p for p in parts if p.frames.isdecimal() and self._is_label(p.label)]
        # "take 2 30 1" has 30 frames and the label 1, not 2 frames and the label "30 1"
        return [p for p in found if not self.multi_class and is_number(p.label)] or found

    def _is_label(self, text: str) -> bool:
        if not self.multi_class:
            return not text.lower().endswith(self.suffixes)
        return all(map(is_number, text.split()))


def is_number(text: str) -> bool:
    """Return whether a label is a whole number, with or without leading zeros."""
    return text.removeprefix('-').isdecimal()


def _ends_with_number(line: str) -> bool:
    """Return whether the last word of a line is a number."""
    return is_number(line.split()[-1])
