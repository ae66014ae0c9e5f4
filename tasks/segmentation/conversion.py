"""Label maps of public data sets, and of colours, as class numbers where mmseg looks for them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from ..common.overlay import IGNORED

_NUM_THREADS = 8
_NUMBERS = r'[(\[]?\s*(?P<r>\d+)[\s,]+(?P<g>\d+)[\s,]+(?P<b>\d+)\s*[)\]]?'
_COLOUR_FIRST = re.compile(rf'\s*{_NUMBERS}[\s,:]+(?P<name>.*\S)\s*')
_COLOUR_LAST = re.compile(rf'\s*(?P<name>.*[^\s:,=])\s*[:,=\s]\s*{_NUMBERS}\s*')

# Cityscapes: `id` of each of the 19 classes that are evaluated, in order of `trainId`.
CITYSCAPES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

# COCO-Stuff: of the values 0 to 181 of its pixel maps those that no picture has.
COCO_STUFF_UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)

# Pascal Context: numbers of the 59 classes among the 459 of its label maps, in order.
# fmt: off
PASCAL_CONTEXT = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80,
    85, 98, 104, 105, 113, 115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260,
    284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424,
    427, 440, 445, 454, 458,
)
# fmt: on

Read = Callable[[Path], np.ndarray]


def table_of(values: Sequence[int], *, size: int = 256, other: int = IGNORED) -> np.ndarray:
    """[size] uint8: the place of each of the `values`; `other` for all else."""
    table = np.full(size, other, dtype=np.uint8)
    table[list(values)] = np.arange(len(values))
    return table


def cityscapes(root: Path) -> int:
    """`*_labelTrainIds.png` beside each `*_labelIds.png` of gtFine; how many were written."""
    files = _found(root / 'gtFine', '*_gtFine_labelIds.png', 'gtFine_trainvaltest.zip')
    targets = [file.with_name(file.name.replace('labelIds', 'labelTrainIds')) for file in files]
    return convert(files, targets, table_of(CITYSCAPES))


def coco_stuff(root: Path) -> int:
    """`*_labelTrainIds.png` beside each pixel map of annotations/; how many were written."""
    files = [
        file
        for file in _found(root / 'annotations', '*.png', 'stuffthingmaps_trainval2017.zip')
        if not file.stem.endswith('_labelTrainIds')
    ]
    used = [value for value in range(182) if value not in COCO_STUFF_UNUSED]
    targets = [file.with_name(f'{file.stem}_labelTrainIds.png') for file in files]
    return convert(files, targets, table_of(used))


def pascal_context(root: Path, labels: Path) -> int:
    """SegmentationClassContext/ and ImageSets/SegmentationContext/ in `root`, which is VOC2010.

    `labels` is the folder of .mat files that the data set comes as (trainval.tar.gz), each with the
    459 classes of a picture; those that are none of the 59 become 0, the background.
    """
    files = _found(labels, '*.mat', 'trainval.tar.gz of Pascal Context')
    targets = [root / 'SegmentationClassContext' / f'{file.stem}.png' for file in files]
    table = table_of((0, *PASCAL_CONTEXT), size=2**16, other=0)
    written = convert(files, targets, table, read=_matlab_labels)
    there = {file.stem for file in files}
    lists = root / 'ImageSets' / 'SegmentationContext'
    lists.mkdir(parents=True, exist_ok=True)
    for split in ('train', 'val'):
        source = root / 'ImageSets' / 'Main' / f'{split}.txt'
        if not source.is_file():
            raise ValueError(f'no list of pictures at {source}: unpack VOC2010 there')
        names = [name for name in source.read_text().split() if name in there]
        (lists / f'{split}.txt').write_text(''.join(f'{name}\n' for name in names))
    return written


def check_ade20k(root: Path) -> None:
    """ADE20K is laid out as it comes; raise where a part of it is missing."""
    for split, count in (('training', 20_210), ('validation', 2_000)):
        for part, suffix in (('images', '.jpg'), ('annotations', '.png')):
            folder = root / part / split
            found = sum(1 for _ in folder.glob(f'*{suffix}'))
            if found != count:
                raise ValueError(
                    f'{folder} has {found:,} files *{suffix}, of {count:,}: unpack '
                    'ADEChallengeData2016.zip (http://data.csail.mit.edu/places/ADEchallenge/) so '
                    f'that {root} is its folder ADEChallengeData2016'
                )


def coloured(folder: Path, out: Path, colours: dict[tuple[int, int, int], int]) -> int:
    """Label maps in colours as class numbers; a colour that has none is refused, by name.

    All are written anew: those that are there may have numbers of other `colours`.
    """
    if out.resolve() == folder.resolve():
        raise ValueError(f'--out {out} holds the maps in colours, which would be lost: set another')

    def numbers(file: Path) -> np.ndarray:
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert('RGB')).astype(np.int64)
        codes = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
        labels = np.full(codes.shape, -1)
        for (r, g, b), number in colours.items():
            labels[codes == (r << 16 | g << 8 | b)] = number
        if (labels < 0).any():
            y, x = np.argwhere(labels < 0)[0].tolist()
            raise ValueError(
                f'{file}: {int((labels < 0).sum()):,} pixels have colours without a class, the '
                f'first {tuple(pixels[y, x].tolist())} at x={x}, y={y}: add a line for it'
            )
        return labels

    files = _found(folder, '*.png', 'label maps in colours')
    targets = [out / file.relative_to(folder) for file in files]
    return convert(files, targets, np.arange(256, dtype=np.uint8), read=numbers, anew=True)


def read_colours(file: Path) -> tuple[dict[tuple[int, int, int], int], list[str]]:
    """The number of each colour, and the names, of lines as `R G B NAME` or `NAME: (R, G, B)`.

    The name `ignored` is 255.
    """
    colours: dict[tuple[int, int, int], int] = {}
    names: list[str] = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not line.strip():
            continue
        found = _COLOUR_FIRST.fullmatch(line) or _COLOUR_LAST.fullmatch(line)
        colour = found and tuple(int(found[part]) for part in 'rgb')
        if not found or not colour or max(colour) > 255:
            raise ValueError(
                f'{file}, line {number}: {line!r} is not R G B NAME, as 0 128 0 grass, nor NAME: '
                '(R, G, B); each of them is 0 to 255'
            )
        name = found['name']
        if colour in colours:
            raise ValueError(f'{file}, line {number}: the colour {colour} has a class already')
        if name == 'ignored':
            colours[colour] = IGNORED
            continue
        if name not in names:  # several colours may make one class
            names.append(name)
        colours[colour] = names.index(name)
    if not names:
        raise ValueError(f'{file} names no class: write R G B NAME, one a line')
    return colours, names


def convert(
    files: Sequence[Path],
    targets: Sequence[Path],
    table: np.ndarray,
    *,
    read: Read | None = None,
    anew: bool = False,
) -> int:
    """Write what is missing, or all, each file whole or not at all; how many were written."""
    pairs = [(f, t) for f, t in zip(files, targets, strict=True) if anew or not t.is_file()]

    def one(pair: tuple[Path, Path]) -> None:
        file, target = pair
        labels = (read or _png_labels)(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f'{target.name}.partial')
        Image.fromarray(table[labels]).save(partial, format='PNG')
        os.replace(partial, target)

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        done: Iterable[None] = pool.map(one, pairs)
        for _ in track(done, 'writing label maps', total=len(pairs), disable=not pairs):
            pass
    return len(pairs)


def _png_labels(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        labels = np.asarray(picture)
    if labels.ndim != 2:
        raise ValueError(f'{file}: a map of class numbers has one channel, got {labels.shape}')
    return labels


def _matlab_labels(file: Path) -> np.ndarray:
    from scipy.io import loadmat

    labels: np.ndarray = loadmat(str(file))['LabelMap']
    return labels


def _found(folder: Path, pattern: str, source: str) -> list[Path]:
    files = sorted(folder.rglob(pattern))
    if not files:
        raise ValueError(f'no {pattern} in {folder}: unpack {source} there')
    return files
