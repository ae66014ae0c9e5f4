"""Search folders of users' files: links followed, files of operating systems left out."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from mmengine.logging import print_log

from .wording import few

# Files and folders that macOS, Windows, network disks and archives add to those of a user.
_SYSTEM = ('__macosx', 'thumbs.db', 'desktop.ini', 'ehthumbs.db', '@eadir', '$recycle.bin')


@dataclass
class Search:
    """Files of a folder and those below it, in order of their paths, and what was left out."""

    folder: Path
    files: list[Path] = field(default_factory=list)
    others: dict[str, list[Path]] = field(default_factory=dict)  # suffix -> files that have it
    num_system: int = 0  # hidden files and those of the operating system
    loops: list[Path] = field(default_factory=list)  # links to a folder that holds them

    @property
    def left_out(self) -> str:
        """Describe in one line what was left out; empty where nothing was."""
        parts = []
        if self.others:
            kinds = [
                f'{len(files):,} {suffix or "without suffix"} ({min(files).name})'
                for suffix, files in sorted(self.others.items(), key=lambda kind: -len(kind[1]))
            ]
            parts.append(f'files of other suffixes: {few(kinds)}')
        if self.num_system:
            parts.append(f'{self.num_system:,} hidden or system files (._*, .DS_Store, __MACOSX)')
        if self.loops:
            parts.append(f'links to a folder around them: {few(self.loops)}')
        return f'{self.folder}: left out {"; ".join(parts)}' if parts else ''


def is_system_file(path: str | Path) -> bool:
    """Return whether a file, or a folder that holds it, is one that an operating system writes."""
    parts = [part.lower() for part in Path(path).parts]
    return any(part.startswith(('._', '.ds_store')) or part in _SYSTEM for part in parts)


def _is_left_out(item: Path) -> bool:
    return item.name.startswith('.') or is_system_file(item.name)


def visible(folder: str | Path) -> list[Path]:
    """Return what a folder holds, sorted, without hidden and system files and folders."""
    return sorted(item for item in Path(folder).iterdir() if not _is_left_out(item))


def search(folder: str | Path, suffixes: Sequence[str]) -> Search:
    """Find the files below a folder whose names end with one of `suffixes`, in any case.

    Links to folders are followed, but for those to a folder that holds them.
    """
    found, ends = Search(Path(folder)), tuple(suffix.lower() for suffix in suffixes)
    for file in _walk(Path(folder), (os.path.realpath(folder),), found):
        if file.name.lower().endswith(ends):
            found.files.append(file)
        else:
            found.others.setdefault(file.suffix.lower(), []).append(file)
    found.files.sort()
    return found


def find_files(folder: str | Path, suffixes: Sequence[str]) -> list[Path]:
    """Find files as `search` does, and log once what was left out."""
    found = search(folder, suffixes)
    if found.left_out:
        warn_once(found.left_out)
    return found.files


@cache
def warn_once(text: str) -> None:
    """Log a warning, but not again where several splits read one folder."""
    print_log(text, 'current', logging.WARNING)


def find_folders(folder: str | Path) -> list[Path]:
    """Return a folder and all below it, sorted; links are followed as in `search`."""
    found: list[Path] = [Path(folder)]
    for _ in _walk(Path(folder), (os.path.realpath(folder),), Search(Path(folder)), found):
        pass
    return sorted(found)


def _mode(item: Path) -> int:
    """Return the kind of a file; a broken link counts as a file, which fails when it is read."""
    try:
        return item.stat().st_mode
    except OSError:
        return stat.S_IFREG


def _walk(
    folder: Path, around: tuple[str, ...], found: Search, folders: list[Path] | None = None
) -> Iterator[Path]:
    """Yield the files below a folder; `around` are the real paths of it and of all that hold it."""
    for item in folder.iterdir():
        mode = _mode(item)
        is_folder = stat.S_ISDIR(mode)
        # whoever opens a named pipe waits for ever
        if _is_left_out(item) or not (is_folder or stat.S_ISREG(mode)):
            found.num_system += sum(len(f) for _, _, f in os.walk(item)) if is_folder else 1
        elif not is_folder:
            yield item
        elif (real := os.path.realpath(item)) in around:
            found.loops.append(item)
        else:
            if folders is not None:
                folders.append(item)
            yield from _walk(item, (*around, real), found, folders)
