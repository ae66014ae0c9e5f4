"""The sizes of samples before any transform: as annotations state them, or from a header scan.

A scan opens each file once and reads its header only. What it finds stands in a cache file, keyed
by path, bytes and time of change, so that the next run reads nothing but that.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from rich.progress import track

from .file_formats import describe_format

# Of the files that are taken for pictures where a folder is searched.
PICTURE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm')

Measured = tuple[float, ...]  # what a size planner's `size_fields` name
_ORIENTATION = 0x0112  # the EXIF tag
_ON_ITS_SIDE = (5, 6, 7, 8)
_VERSION = 2  # of the values that are measured: caches of other versions are not read
_NUM_THREADS = 16  # they wait for the disk most of the time
# Pillow raises SyntaxError on a broken PNG
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def stated_sizes(records: Iterable[Mapping[str, Any]], fields: Sequence[str]) -> np.ndarray:
    """[number of records, number of fields] float64: NaN where a record does not say."""
    rows = [[record.get(field, np.nan) for field in fields] for record in records]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(fields))


def picture_size(file: str) -> Measured:
    """(height, width) as loading will show the picture, its EXIF orientation applied."""
    with Image.open(file) as picture:  # reads the header only
        return shown_size(picture)


def shown_size(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) of an opened image with its EXIF orientation applied."""
    width, height = image.size
    turned = exif_orientation(image) in _ON_ITS_SIDE
    return (width, height) if turned else (height, width)


def exif_orientation(picture: Image.Image) -> Any:
    """Return the orientation of the header; None where its EXIF is damaged, as loading does."""
    if isinstance(picture, PngImageFile) and 'exif' not in picture.info:
        return None  # behind the pixels there may be one: Pillow would decode them all to see
    try:
        return picture.getexif().get(_ORIENTATION)
    except (SyntaxError, ValueError, struct.error):
        return None


def scan(
    files: Sequence[str],
    *,
    measure: Callable[[str], Measured] = picture_size,
    cache: Path | None = None,
    allow_none: bool = False,
) -> list[Measured | None]:
    """What `measure` finds in the header of each file; None, and a line in the log, if it fails.

    Raises ValueError where all fail, unless `allow_none`.
    On several ranks the first one reads and writes, and tells the others: all have to call this.
    """
    if not files:
        return []
    found: list[Any] = [None]
    if is_main_process():
        failure = 'its size cannot be read, it counts as the largest'
        found = [measured_files(files, measure, cache, what='sizes', failure=failure)]
    broadcast_object_list(found)
    sizes: list[Measured | None] = found[0]
    if not any(sizes) and not allow_none:
        raise ValueError(
            f'not one of {len(files)} files can be read, the first is {files[0]}: check data_root '
            'and data_prefix'
        )
    return sizes


def default_cache(files: Sequence[str], measure: Callable[[str], Measured]) -> Path:
    """The cache of what lies in the common folder of `files`, in the user's cache folder."""
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])
    key = hashlib.sha256(folder.encode()).hexdigest()[:16]
    caches = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    name = f'{measure.__name__}_v{_VERSION}_{Path(folder).name}_{key}.json'
    return caches / 'navit_backbone' / name


def measured_files(
    files: Sequence[str],
    measure: Callable[[str], Measured],
    cache: Path | None = None,
    *,
    what: str,
    failure: str = '',
) -> list[Measured | None]:
    """Return what `measure` finds in each file, from the cache where nothing has changed.

    None where it fails; `failure` is what is then logged. `what` names the measure in the progress.
    """
    files = [os.path.abspath(file) for file in files]
    cache = cache or default_cache(files, measure)
    known = _read(cache)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        states = dict(zip(files, pool.map(_state, files), strict=True))
        new = [
            file
            for file, state in states.items()
            if state is None or state != known.get(file, [None])[0]
        ]
        measured = pool.map(lambda file: _measured(file, measure, failure), new)
        few = len(new) < 1000  # a moment
        found = list(track(measured, f'reading {what}', total=len(new), disable=few))
    fresh = dict(zip(new, found, strict=True))
    read = {file: [states[file], size] for file, size in fresh.items() if size is not None}
    if read:
        _write(cache, known | read)
    return [fresh[file] if file in fresh else tuple(known[file][1]) for file in files]


def _state(file: str) -> list[int] | None:
    """What changes when a file does; None where there is none."""
    try:
        stat = os.stat(file)
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _measured(file: str, measure: Callable[[str], Measured], failure: str) -> Measured | None:
    try:
        return measure(file)
    except UNREADABLE as error:
        if failure:
            reason = describe_format(file) or ' '.join(str(error).split())
            print_log(f'{file}: {failure} ({reason})', logger='current', level=logging.WARNING)
        return None


def _read(cache: Path) -> dict[str, list[Any]]:
    """{file: [state, size]}; empty where there is no cache, or a damaged one."""
    try:
        content = json.loads(cache.read_text())
        return {str(file): [list(state), list(size)] for file, (state, size) in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        print_log(f'{cache}: not read, sizes are measured anew ({error})', logger='current')
        return {}


def _write(cache: Path, content: dict[str, list[Any]]) -> None:
    """Whole or not at all, whoever else writes; a folder that refuses is no reason to stop."""
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent) as folder:
            aside = Path(folder, cache.name)
            aside.write_text(json.dumps(content))
            os.replace(aside, cache)
    except OSError as error:
        print_log(
            f'{cache}: not written, sizes will be measured again next time ({error})',
            logger='current',
            level=logging.WARNING,
        )
