"""Output files: checked before the work, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def check_output(path: Path, *, folder: bool = False) -> None:
    """Raise ValueError where `path` cannot become a file, or with `folder` a folder of files.

    Folders above it that do not exist are created later: the nearest that exists is checked, by
    creating a nameless file in it. What lies at `path` stays as it is.
    """
    try:
        problem = _problem(path.absolute(), folder)
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        kind = 'folder' if folder else 'file'
        raise ValueError(f'{path}: {problem}. Fix: give a {kind} in a folder that you can write to')


def _problem(path: Path, folder: bool) -> str:
    """Return what prevents the output, empty for nothing; raise OSError where the system does."""
    nearest = next(place for place in (path, *path.parents) if os.path.lexists(place))
    for part in path.relative_to(nearest).parts:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(nearest / part)  # raises for a name that is too long
    if nearest == path and not folder:
        if path.is_dir():
            return 'is a folder, and a file is wanted'
        if path.exists() and not os.access(path, os.W_OK):
            return 'this file is write-protected'
        if path.exists() and not path.is_file():
            return ''  # a device or a pipe
        nearest = path.parent
    if not nearest.is_dir():
        return 'is a file, and a folder is wanted' if nearest == path else f'{nearest} is a file'
    with tempfile.TemporaryFile(dir=nearest):
        return ''


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """Yield a path of the same suffix to write to; it becomes `out` when the block succeeds.

    The folder of `out` is created. After any error, and after Ctrl-C, `out` is as it was before. A
    device or a pipe is written to directly.

    Raises:
        OSError: the system refuses to write, as on a full disk; the message names `out`.
    """
    aside = out.with_name(f'.partial-{os.getpid()}-{threading.get_ident()}{out.suffix}')
    if out.exists() and not out.is_file() and not out.is_dir():
        aside = out
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        if aside != out:
            os.replace(aside, out)
    except OSError as error:
        own = {None, str(aside), *map(str, out.parents)}
        if error.errno is None or error.filename not in own:
            raise  # of what the block reads
        raise OSError(
            f'{out} cannot be written: {error.strerror}. Fix: make room, or choose another place'
        ) from error
    finally:
        if aside != out:
            aside.unlink(missing_ok=True)
