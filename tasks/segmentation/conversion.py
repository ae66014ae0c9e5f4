"""Label maps of public data sets, and of colours, as class numbers where mmseg looks for them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from navit_backbone.file_writing import written_whole

from ..common.folders import is_system_file, search, warn_once
from ..common.overlay import IGNORED
from ..common.text_files import read_names, write_new
from ..common.wording import few

_NUM_THREADS = 8
_NUMBERS = r'[(\[]?\s*(?P<r>\d+)[\s,;]+(?P<g>\d+)[\s,;]+(?P<b>\d+)\s*[)\]]?'
_COLOUR_FIRST = re.compile(rf'\s*{_NUMBERS}[\s,;:]+(?P<name>.*\S)\s*')
_COLOUR_LAST = re.compile(rf'\s*(?P<name>.*[^\s:,;=])\s*[:,;=\s]\s*{_NUMBERS}\s*')
_HEX = r'#(?P<hex>[0-9a-fA-F]{6})'
_HEX_FIRST = re.compile(rf'\s*{_HEX}[\s,;:]+(?P<name>.*\S)\s*')
_HEX_LAST = re.compile(rf'\s*(?P<name>.*[^\s:,;=])\s*[:,;=\s]\s*{_HEX}\s*')
_COMMENT = re.compile(r'\s*#\s')
_CVAT = re.compile(r'([^:]+:\d+,\d+,\d+):[^:]*:[^:]*')  # NAME:R,G,B:PARTS:ACTIONS
# Names of the columns of a table of colours
_NAMES = {'name', 'class', 'label'}
_PARTS = ({'r', 'red'}, {'g', 'green'}, {'b', 'blue'})
_HEXES = {'hex', 'colour', 'color'}

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

MAP_SUFFIXES = ('.png', '.tif', '.tiff', '.bmp', '.gif', '.webp')  # of label maps in colours

Colour = tuple[int, int, int]
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
        names = [name for name in read_names(source) if name in there]
        write_new(lists / f'{split}.txt', names)
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


def coloured(
    folder: Path, out: Path, colours: dict[Colour, int], *, overwrite: bool = False
) -> int:
    """Write maps of class numbers, as PNG, for the label maps in colours below a folder.

    Raises:
        ValueError: a pixel has a colour without a class; `out` has such files already and
            `overwrite` is not set, or is `folder`; two maps would have one name.
    """
    if out.resolve() == folder.resolve():
        raise ValueError(f'--out {out} holds the maps in colours, which would be lost: set another')
    if not folder.is_dir():
        raise ValueError(f'no folder of label maps at {folder}')

    def numbers(file: Path) -> np.ndarray:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert('RGB')).astype(np.int64)
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

    found = search(folder, MAP_SUFFIXES)
    if not found.files:
        jpeg = '. JPEG changes colours: export the maps as PNG' if '.jpg' in found.others else ''
        raise ValueError(
            f'no label maps in colours in {folder}: looked for {" ".join(MAP_SUFFIXES)}{jpeg}'
        )
    if found.left_out:
        warn_once(found.left_out)
    targets = [out / file.relative_to(folder).with_suffix('.png') for file in found.files]
    if twice := [target for target, count in Counter(targets).items() if count > 1]:
        raise ValueError(
            f'{folder}: several label maps would be written to {few(twice)}: rename one of them'
        )
    if there := [target for target in targets if target.exists() and not overwrite]:
        raise ValueError(
            f'{len(there):,} of {len(targets):,} label maps are in {out} already ({few(there)}), '
            'and may have other numbers: set another --out, or --overwrite'
        )
    return convert(found.files, targets, np.arange(256, dtype=np.uint8), read=numbers, anew=True)


def read_colours(lines: Sequence[str], source: str) -> tuple[dict[Colour, int], list[str]]:
    """Return the number of each colour, and the names of the classes in the order of the lines.

    A line is `R G B NAME`, `NAME: (R, G, B)`, `#RRGGBB NAME` or `NAME #RRGGBB`. A first line that
    names columns, as `name,r,g,b`, is left out, and so are comments of CVAT's labelmap.txt
    (``# ...``) and what it has after a colour. Several colours may have one name; the name
    `ignored` is 255.

    Raises:
        ValueError: a line has another form, or its colour has a line already, or there are more
            than 255 classes; names `source` and the lines.
    """
    colours: dict[Colour, int] = {}
    numbers: dict[Colour, int] = {}  # of the lines
    names: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or _COMMENT.match(line) or (not numbers and _is_header(line)):
            continue
        colour, name = _parse_colour(line, f'{source}, line {number}')
        if colour in numbers:
            raise ValueError(
                f'{source}, line {number}: the colour {colour} has a class already, in line '
                f'{numbers[colour]}'
            )
        numbers[colour] = number
        if name == 'ignored':
            colours[colour] = IGNORED
            continue
        if name not in names:
            names.append(name)
        colours[colour] = names.index(name)
    if not names:
        raise ValueError(f'{source} names no class: write R G B NAME, one a line')
    if len(names) > IGNORED:
        raise ValueError(
            f'{source} names {len(names)} classes: label maps hold {IGNORED}, numbered from 0, and '
            f'{IGNORED} is the ignored label. Fix: give several colours one name, or the name '
            'ignored'
        )
    return colours, names


def _parse_colour(line: str, place: str) -> tuple[Colour, str]:
    if (cvat := _CVAT.fullmatch(line)) is not None:
        line = cvat[1]
    if (found := _HEX_FIRST.fullmatch(line) or _HEX_LAST.fullmatch(line)) is not None:
        r, g, b = bytes.fromhex(found['hex'])
        return (r, g, b), found['name'].strip('"')
    found = _COLOUR_FIRST.fullmatch(line) or _COLOUR_LAST.fullmatch(line)
    values = tuple(int(found[part]) for part in 'rgb') if found else ()
    if not found or max(values) > 255:
        raise ValueError(
            f'{place}: {line!r} is not R G B NAME, as 0 128 0 grass, nor NAME: (R, G, B), nor '
            '#RRGGBB NAME; each of R, G and B is 0 to 255'
        )
    return (values[0], values[1], values[2]), found['name'].strip('"')


def _is_header(line: str) -> bool:
    """Return whether a line names the columns of those below it, and no columns beside them."""
    words = {word.strip('"').lower() for word in re.split(r'[\s,;]+', line.strip())}
    colour = bool(words & _HEXES) or all(words & part for part in _PARTS)
    return colour and bool(words & _NAMES) and words <= _NAMES.union(_HEXES, *_PARTS)


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
        try:
            labels = (read or _png_labels)(file)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f'{file}: cannot be read, replace or remove it ({error})') from error
        with written_whole(target) as aside:
            Image.fromarray(table[labels]).save(aside, format='PNG')

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
    files = sorted(file for file in folder.rglob(pattern) if not is_system_file(file.name))
    if not files:
        raise ValueError(f'no {pattern} in {folder}: unpack {source} there')
    return files
