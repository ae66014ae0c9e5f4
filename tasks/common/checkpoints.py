"""Checkpoints on disk: written whole or not at all, found again after any interruption."""

from __future__ import annotations

import errno
import os
import re
import shutil
import zipfile
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import print_log

INTERRUPTED = 'interrupted.pth'  # what a run saves that is told to stop
_UNFINISHED = '.part'
_LAST = 'last_checkpoint'  # mmengine's note of the latest
_NAME = re.compile(rf'(epoch|iter)_\d+\.pth|{re.escape(INTERRUPTED)}')


def write_whole(file: Path, content: bytes) -> None:
    """Write a file such that its name leads to its old content or to all of the new, always.

    Also when the process, or the machine, dies within: the content is written aside and reaches the
    disk before the name does, and the name reaches it before this returns.
    """
    aside = file.with_name(file.name + _UNFINISHED)
    try:
        with open(aside, 'wb') as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, file)
        _sync_folder(file.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        free = shutil.disk_usage(file.parent).free
        raise OSError(
            error.errno,
            f'{file} could not be written ({error.strerror}; it takes {_mib(len(content))}, '
            f'{_mib(free)} are free). The checkpoints before it are whole: make room, and go on '
            'with --resume',
        ) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of file systems that have no need
            raise
    finally:
        os.close(descriptor)


def _mib(count: int) -> str:
    return f'{count / 2**20:.1f} MiB'


@register_backend('whole_files')
class WholeFileBackend(LocalBackend):
    """Local files that appear whole, and stay until what replaces them is there.

    `put` is `write_whole`; `remove` only notes what is outdated, for `remove_outdated`. mmengine's
    CheckpointHook removes a checkpoint before it writes the next.
    """

    def __init__(self) -> None:
        self._outdated: list[tuple[Path, int]] = []  # with the inode: a name may be written anew

    def put(self, obj: bytes, filepath: str | Path) -> None:
        Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(filepath), obj)

    def remove(self, filepath: str | Path) -> None:
        self._outdated.append((Path(filepath), Path(filepath).stat().st_ino))

    def remove_outdated(self) -> None:
        """Remove what was noted, but for files that were written anew since."""
        for file, inode in self._outdated:
            if file.exists() and file.stat().st_ino == inode:
                file.unlink()
        self._outdated.clear()


def note_last(folder: Path, checkpoint: Path) -> None:
    """Tell mmengine, and `find_checkpoint`, which checkpoint is the latest."""
    write_whole(folder / _LAST, str(checkpoint).encode())


def remove_leftovers(folder: Path) -> None:
    """Remove what interrupted writes left in a folder of checkpoints."""
    for file in folder.glob(f'*{_UNFINISHED}'):
        file.unlink(missing_ok=True)


def find_checkpoint(folder: Path) -> Path | None:
    """The latest whole checkpoint of a work dir; None where there is none at all.

    A damaged one is passed over, with a warning, for the one before it.
    """
    faults = []
    for file in _latest_first(folder):
        fault = fault_of(file)
        if fault is not None:
            faults.append(f'{file} {fault}')
            continue
        for told in faults:
            print_log(f'{told}: {file} is taken instead')
        return file
    if faults:
        raise ValueError(
            f'{"; ".join(faults)}: there is no other, so fetch it again from a copy, or give '
            'another --work-dir to start anew'
        )
    return None


def noted_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint that `last_checkpoint` of a work dir names, where it exists."""
    note = folder / _LAST
    named = Path(note.read_text(errors='replace').strip()) if note.is_file() else Path()
    here = folder / named.name  # where the work dir was moved or copied, the note was not
    return next((file for file in (here, named) if file.is_file()), None)


def _latest_first(folder: Path) -> list[Path]:
    """The checkpoints of a work dir: what `last_checkpoint` names, then the others by time."""
    last = noted_checkpoint(folder)
    folders = {folder, last.parent} if last else {folder}  # a hook's out_dir may be elsewhere
    files = [
        file for place in folders for file in place.glob('*.pth') if _NAME.fullmatch(file.name)
    ]
    files.sort(key=lambda file: file.stat().st_mtime_ns, reverse=True)
    return [*([last] if last else []), *(file for file in files if file != last)]


def fault_of(file: Path) -> str | None:
    """What is wrong with a checkpoint's file, by its checksums; None where nothing is."""
    try:
        with zipfile.ZipFile(file) as archive:
            wrong = archive.testzip()
    except Exception as error:  # what zipfile raises depends on which of its fields is damaged
        wrong = str(error)
    return None if wrong is None else f'is truncated, corrupt or no file of weights ({wrong})'


def check_whole(file: Path) -> None:
    """Raise where a checkpoint is damaged, and name a whole one beside it."""
    fault = fault_of(file)
    if fault is None:
        return
    others = [item for item in _latest_first(file.parent) if item != file]
    whole = next((item for item in others if fault_of(item) is None), None)
    hint = f'go on from {whole}' if whole else 'there is no other beside it, so fetch it again'
    raise ValueError(f'{file} {fault}: {hint}')
