"""Groups of dependent examples: clips of one scene, crops of one source image, one patient.

Examples of a group are drawn, swapped and held out together. A data set names the group of each
record in the field `group`; a record without one is a group of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .name_forms import composed
from .text_files import Table
from .wording import counted, few

GROUP_FILE = 'groups.csv'  # looked for in the folder of a data set


def group_numbers(names: Sequence[str | None]) -> np.ndarray:
    """Number the groups from 0 in the order of their first examples: [N] int64.

    None and '' are groups of their own.
    """
    numbers: dict[Any, int] = {}
    keys = [('named', name) if name else ('single', i) for i, name in enumerate(names)]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


class GroupFile:
    """Table with the columns `file`, relative to its own folder, and `group`.

    Where the table does not exist, no file has a group.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / GROUP_FILE
        self._groups: dict[str, str] = {}
        if not self.path.is_file():
            return
        table = Table(self.path)
        if missing := [name for name in ('file', 'group') if name not in table.columns]:
            raise ValueError(
                f'{self.path}: the columns {missing} are missing, it has {table.columns}: a table '
                'of groups has the columns file and group'
            )
        for line, row in table:
            file = self._key(self.path.parent / row['file'])
            if self._groups.setdefault(file, row['group']) != row['group']:
                raise ValueError(
                    f'{self.path}, line {line}: {row["file"]} has the group {row["group"]!r}, '
                    f'above it has {self._groups[file]!r}: keep one of the two lines'
                )

    def __getitem__(self, file: str | Path) -> str | None:
        """Return the group of a file; None where it has none."""
        return self._groups.get(self._key(file)) or None

    @staticmethod
    def _key(file: str | Path) -> str:
        return composed(os.path.abspath(file))


def listed_groups(files: Sequence[str], folders: Iterable[str | Path]) -> list[str | None]:
    """Return the group of each file by the tables in some folders; None where none lists it.

    Raises:
        ValueError: a table lists none of the files, so its paths are not what they should be.
    """
    groups: list[str | None] = [None] * len(files)
    for folder in dict.fromkeys(map(os.path.abspath, folders)):
        table = GroupFile(folder)
        if not table.path.is_file():
            continue
        found = [table[file] for file in files]
        if files and not any(found):
            raise ValueError(
                f'{table.path} lists a group for none of the {len(files):,} files, of which the '
                f'first is {files[0]}. Fix: its column file must have their paths relative to '
                f'{folder}'
            )
        groups = [one or other for one, other in zip(groups, found, strict=True)]
    return groups


def groups_of(dataset: Any) -> set[str]:
    """Return the names of the groups in a data set; empty where its records have no `group`."""
    if not hasattr(dataset, 'get_data_info'):
        return set()
    records = (dataset.get_data_info(index) for index in range(len(dataset)))
    return {str(record['group']) for record in records if record.get('group')}


def shared_groups(train: Any, held_out: Any) -> Iterator[str]:
    """Yield a problem where a group has examples both in training and in evaluation."""
    held = groups_of(held_out)
    if both := sorted(groups_of(train) & held) if held else []:
        yield (
            f'{len(both):,} of {counted(len(held), "group")} '
            f'{"has" if len(both) == 1 else "have"} examples both in training and in evaluation: '
            f'{few(both)}. Fix: keep the examples of a group in one split or fold'
        )


def split_groups(folds: Sequence[int], names: Sequence[str | None]) -> list[str]:
    """Return the groups that have examples in more than one fold."""
    seen: dict[str, set[int]] = {}
    for fold, name in zip(folds, names, strict=True):
        if name:
            seen.setdefault(name, set()).add(fold)
    return sorted(name for name, numbers in seen.items() if len(numbers) > 1)
