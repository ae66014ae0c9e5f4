"""Images of 16 bits: how many of the bits are used, and 8-bit images stretched to all of them.

Loading keeps the upper 8 of 16 bits, in every task. An image that holds 12 bits in 16 is then seen
at 15 of 255 at most.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from PIL import Image
from rich.progress import track

from .dataset import file_of, seeded_parts
from .file_formats import describe_damage
from .folders import search, visible, warn_once
from .picture_sizes import PICTURE_SUFFIXES, UNREADABLE
from .wording import few

_DEEP = ('.png', '.tif', '.tiff', '.pgm', '.ppm')  # suffixes of images that may have 16 bits
_DARK = 2**14  # values below are a quarter of full brightness at most
_NUM_READ = 16  # images of a data set that are decoded
_DEPTH = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR  # its own depth and channels, turned by EXIF
_MAX_SAMPLE_VALUE = 281  # the TIFF tag


def stated_largest(file: str | Path) -> int | None:
    """Read the largest value that a file states: sBIT of PNG, MaxSampleValue of TIFF; else None."""
    with open(file, 'rb') as content:
        if content.read(8) == b'\x89PNG\r\n\x1a\n':
            while len(head := content.read(8)) == 8 and head[4:] != b'IDAT':
                body = content.read(int.from_bytes(head[:4], 'big') + 4)
                if head[4:] == b'sBIT' and len(body) > 4:
                    return int(2 ** max(body[:-4]) - 1)
            return None
    try:
        with Image.open(file) as image:
            found = getattr(image, 'tag_v2', {}).get(_MAX_SAMPLE_VALUE)
    except UNREADABLE:
        return None
    return int(np.max(found)) if found is not None else None


def read_deep(file: str | Path) -> np.ndarray | None:
    """Decode an image of 16 bits, [h, w] or [h, w, 3] uint16; None for all other files."""
    if not Path(file).is_file() or Path(file).suffix.lower() not in _DEEP:
        return None
    try:
        image = _decoded(Path(file).read_bytes())
    except OSError:
        return None
    return image if image is not None and image.dtype == np.uint16 else None


def _decoded(content: bytes) -> np.ndarray | None:
    """Decode an image at its own depth, [h, w] or [h, w, 3]; None where OpenCV cannot."""
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), _DEPTH) if content else None
    except cv2.error:  # as of more pixels than it allows
        return None


def darkness_of(files: Sequence[str]) -> str:
    """Describe that images of 16 bits are dark as they are loaded; empty where they are not."""
    largest, deep = 0, []
    for file in files:
        if (image := read_deep(file)) is not None:
            largest = max(largest, stated_largest(file) or int(image.max()))
            deep.append(file)
    if not 0 < largest < _DARK:
        return ''
    folder = os.path.commonpath([Path(file).parent for file in deep])  # of all clips, for frames
    return (
        f'{deep[0]}: an image of 16 bits whose values reach {largest:,}. Loading keeps the upper 8 '
        f'of 16 bits, so it is seen at {largest >> 8} of 255 at most. Fix: python '
        f'tools/prepare_data.py depth {folder} --out {folder}_8bit writes images of 8 bits that '
        'use the whole range'
    )


def stretch_folder(
    folder: Path, out: Path, *, largest: int | None = None
) -> tuple[int, dict[Path, str]]:
    """Write the images below `folder` to `out`, those of 16 bits as 8 bits.

    Names stay. 255 is `largest`, else what a file states, else the largest value of 8, 10, 12, 14
    or 16 bits that holds all other images. Images of 8 bits are copied.

    Returns:
        How many were written, and the reason for each file that cannot be read.

    Raises:
        ValueError: there are no images, or `out` has one of them already.
    """
    if not folder.is_dir():
        raise ValueError(f'no folder of images at {folder}')
    found = search(folder, PICTURE_SUFFIXES)
    if not found.files:
        raise ValueError(f'no images in {folder}: looked for {" ".join(PICTURE_SUFFIXES)}')
    if found.left_out:
        warn_once(found.left_out)
    targets = [out / file.relative_to(folder) for file in found.files]
    if there := [target for target in targets if target.exists()]:
        raise ValueError(f'{out} has {few(there)} already, and nothing is overwritten: set --out')
    common = _largest_of_bits(found.files) if largest is None else largest
    skipped = {}
    for file, target in track(
        list(zip(found.files, targets, strict=True)), 'writing images', disable=len(targets) < 100
    ):
        try:
            content = _stretched(file, largest, common)
        except (ValueError, OSError) as error:
            skipped[file] = getattr(error, 'strerror', None) or str(error)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return len(targets) - len(skipped), skipped


def _stretched(file: Path, largest: int | None, common: int) -> bytes:
    """Return the content of an image file, one of 16 bits as 8 bits; raise if it is unreadable."""
    content = file.read_bytes()
    if file.suffix.lower() not in _DEEP:
        return content
    image = _decoded(content)
    if image is None:
        raise ValueError(describe_damage(str(file)))
    if image.dtype != np.uint16:
        return content
    top = largest or stated_largest(file) or common
    scaled = np.rint(np.minimum(image.astype(np.float64), top) * (255 / top)).astype(np.uint8)
    return cv2.imencode(file.suffix, scaled)[1].tobytes()


def _largest_of_bits(files: Sequence[Path]) -> int:
    """Return the largest value of the fewest of 8, 10, 12, 14 or 16 bits that hold all images."""
    images = ((file, read_deep(file)) for file in files)
    deep = ((file, image) for file, image in images if image is not None)
    largest = max((int(image.max()) for file, image in deep if not stated_largest(file)), default=0)
    return next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if largest < 2**bits)


@HOOKS.register_module()
class BitDepthHook(Hook):
    """Warn once where images of 16 bits would be seen dark."""

    def before_train(self, runner: Runner) -> None:
        self._warn(runner.train_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        self._warn(runner.test_dataloader.dataset)

    def _warn(self, dataset: Any) -> None:
        for part in seeded_parts(dataset):
            if is_main_process() and (text := darkness_of(sample_files(part))):
                print_log(text, 'current', logging.WARNING)
                return


def sample_files(dataset: Any) -> list[str]:
    """Return some of the images of a data set, as `sample_images` does."""
    step = max(1, len(dataset) // _NUM_READ)
    return sample_images(
        [Path(file_of(dataset.get_data_info(i))) for i in range(0, len(dataset), step)]
    )


def sample_images(files: Sequence[Path]) -> list[str]:
    """Return some of the files, evenly spaced; for folders of frames their middle frames."""
    some = files[:: max(1, len(files) // _NUM_READ)]
    return [str(_middle_frame(file) if file.is_dir() else file) for file in some]


def _middle_frame(folder: Path) -> Path:
    """Return an image of a folder; the first one is black in many clips."""
    frames = [file for file in visible(folder) if file.suffix.lower() in PICTURE_SUFFIXES]
    return frames[len(frames) // 2] if frames else folder
