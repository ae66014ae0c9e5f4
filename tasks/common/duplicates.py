"""Find files that are in a data set twice, or in both training and evaluation.

Three kinds, the first two of which are exact: the same file, files of equal bytes, and images that
look alike, as a copy that was resized or saved again does.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from PIL import Image, ImageOps

from .dataset import file_of, seeded_parts
from .picture_sizes import PICTURE_SUFFIXES, UNREADABLE, Measured, measured_files
from .resampling import resize_image
from .wording import counted, few

MAX_AT_START = 5_000  # files that are compared before training; the doctor compares more
MAX_COMPARED = 200_000

_NUM_BYTES = 1 << 20  # read of each end of a file
_MAX_DISTANCE = 6  # of 128 bits, between images that may look alike
_MAX_DIFFERENCE = 0.15  # of the contrast, between the thumbnails of images that look alike
_THUMBNAIL = 32
_MIN_CONTRAST = 4.0  # grey levels of 255; below it all images look alike
_NUM_KEPT = 4096  # thumbnails

Files = Sequence[tuple[str, str]]  # (name, path) of each sample


@dataclass(frozen=True)
class Group:
    """Samples that are one: their numbers, and whether exactly or only to the eye."""

    members: tuple[int, ...]
    exact: bool


@dataclass(frozen=True)
class Remark:
    """A sentence about duplicates, and whether exact ones are in training and evaluation both."""

    text: str
    split: str
    is_leak: bool = False


def duplicate_groups(paths: Sequence[str], *, looks: bool = True) -> list[Group]:
    """Return the groups of two or more files that are one, exact ones first.

    Images are compared by their looks too, unless `looks` is False; of exact copies one is, and the
    others join its group. Folders, as those of frames, and files that cannot be read are compared
    by their paths alone.
    """
    same = _Labels(len(paths))
    for members in _by_key(map(os.path.realpath, paths)):
        same.join(members)
    firsts = same.firsts()
    for members in _equal_files([paths[i] for i in firsts]):
        same.join([firsts[i] for i in members])
    groups = [Group(members, exact=True) for members in same.groups()]
    if not looks:
        return groups
    copies = same.copies()
    images = [[i for i in part if paths[i].lower().endswith(PICTURE_SUFFIXES)] for part in copies]
    compared = [number for number, part in enumerate(images) if part]
    alike = _look_alikes([paths[images[number][0]] for number in compared])
    return groups + [
        Group(tuple(sorted(i for m in members for i in copies[compared[m]])), exact=False)
        for members in alike.groups()
    ]


def first_copies(
    paths: Sequence[str], *, looks: bool = True, groups: Sequence[str | None] = ()
) -> list[int]:
    """Return for each file the number of the first one that is the same, exactly or to the eye.

    Files of one group are taken for the same where `groups` are given; None and '' are none.
    """
    labels = _Labels(len(paths))
    for members in _by_key(group or None for group in groups):
        labels.join(members)
    for group in duplicate_groups(paths, looks=looks):
        labels.join(group.members)
    first: list[int] = labels.of.tolist()
    return first


def duplicate_remarks(
    splits: Mapping[str, Files], *, max_compared: int = MAX_COMPARED
) -> Iterator[Remark]:
    """Describe samples that are twice in a split, or in two of them.

    `splits` are named `train`, `val` and `test`. Two that list the same files are one. More files
    than `max_compared` are compared by their names alone, and a remark says so.
    """
    parts = _different(splits)
    samples = [(split, *file) for split, files in parts.items() for file in files]
    if len(samples) > max_compared:
        yield Remark(
            f'{len(samples):,} files are more than {max_compared:,}: duplicates are looked for by '
            'their paths alone',
            split='train',
        )
        paths = _by_key(os.path.realpath(path) for _, _, path in samples)
        groups = [Group(tuple(members), exact=True) for members in paths]
    else:
        groups = duplicate_groups([path for _, _, path in samples])
    exact = _Labels(len(samples))
    for group in groups:
        if group.exact:
            exact.join(group.members)
    for split in parts:
        yield from _within(split, samples, groups, exact.of)
    for one, other in combinations(parts, 2):
        yield from _across(one, other, samples, groups, exact.of)


def _within(
    split: str,
    samples: Sequence[tuple[str, str, str]],
    groups: Iterable[Group],
    exact_N: np.ndarray,
) -> Iterator[Remark]:
    """Describe the pairs of one split; samples of one label in `exact_N` are exact copies."""
    for exact, one, several in (
        (True, 'stands twice in', 'stand twice in'),
        (False, 'looks like another one of', 'look like another one of'),
    ):
        pairs = []
        for group in groups:
            if group.exact != exact:
                continue
            members = [i for i in group.members if samples[i][0] == split]
            if not exact:  # one of each set of exact copies, which are listed as such
                members = list({exact_N[i]: i for i in reversed(members)}.values())[::-1]
            pairs += [f'{samples[members[0]][1]} = {samples[i][1]}' for i in members[1:]]
        if pairs:
            words = f'{counted(len(pairs), "sample")} {one if len(pairs) == 1 else several}'
            yield Remark(f'{words} {split}: {few(pairs)}', split)


def _across(
    one: str,
    other: str,
    samples: Sequence[tuple[str, str, str]],
    groups: Iterable[Group],
    exact_N: np.ndarray,
) -> Iterator[Remark]:
    """Describe the pairs of two splits; samples of one label in `exact_N` are exact copies."""
    total = sum(split == other for split, _, _ in samples)
    where = 'training' if one == 'train' else one
    for exact, words in (
        (True, f'in {where} too, the same files or equal bytes'),
        (False, f'like one of {where}, as copies that were resized or saved again do'),
    ):
        pairs = []
        for group in groups:
            if group.exact != exact:
                continue
            ones = [i for i in group.members if samples[i][0] == one]
            listed = set() if exact else {exact_N[i] for i in ones}  # as exact copies
            others = [i for i in group.members if samples[i][0] == other]
            pairs += [
                f'{samples[i][1]} = {samples[ones[0]][1]}'
                for i in others
                if ones and exact_N[i] not in listed
            ]
        if pairs:
            verb = ('is', 'are') if exact else ('looks', 'look')
            yield Remark(
                f'{len(pairs):,} of {counted(total, "sample")} of {other} '
                f'{verb[len(pairs) > 1]} {words}: {few(pairs)}. Fix: take '
                'them out of one of the two; tools/prepare_data.py split puts them on one side',
                other,
                is_leak=exact and one == 'train',
            )


def _different(splits: Mapping[str, Files]) -> dict[str, Files]:
    """Return the splits that do not repeat an earlier one, as test often repeats val."""
    parts: dict[str, Files] = {}
    for split, files in splits.items():
        if split == 'train' or list(files) not in [
            list(f) for s, f in parts.items() if s != 'train'
        ]:
            parts[split] = files
    return parts


@HOOKS.register_module()
class DuplicateCheckHook(Hook):
    """Warns before training of samples that are in training and validation both, or listed twice.

    Sets of more than `max_compared` files are left to the doctor.
    """

    def __init__(self, max_compared: int = MAX_AT_START) -> None:
        self.max_compared = max_compared

    def before_train(self, runner: Runner) -> None:
        if not is_main_process():
            return
        datasets = {'train': runner.train_dataloader.dataset}
        if runner.val_loop is not None:
            datasets['val'] = runner.val_dataloader.dataset
        number = sum(len(part) for data in datasets.values() for part in seeded_parts(data))  # type: ignore[arg-type]
        if number > self.max_compared:
            runner.logger.info(
                f'{number:,} files: duplicates of training and validation are not looked for, as '
                f'there are more than {self.max_compared:,}; tools/doctor.py CONFIG looks for them'
            )
            return
        splits = {split: files_of(dataset) for split, dataset in datasets.items()}
        for remark in duplicate_remarks(splits):
            runner.logger.warning(remark.text)


def files_of(dataset: object) -> list[tuple[str, str]]:
    """Return (name, path) of each sample of a data set, or of those that it wraps."""
    paths = [
        os.path.abspath(path)
        for part in seeded_parts(dataset)
        for i in range(len(part))  # type: ignore[arg-type]
        if '://' not in (path := file_of(part.get_data_info(i)))  # type: ignore[attr-defined]
    ]
    folder = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ''
    return [(os.path.relpath(path, folder), path) for path in paths]


# --------------------------------------------------------------------------------------------------
# Equal bytes


def _by_key(keys: Iterable[Hashable], numbers: Sequence[int] | None = None) -> list[list[int]]:
    """Return the groups of two or more numbers with equal keys; None is no key."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        if key is not None:
            groups[key].append(place if numbers is None else numbers[place])
    return [members for members in groups.values() if len(members) > 1]


def _equal_files(paths: Sequence[str]) -> list[list[int]]:
    """Return the groups of two or more files of equal bytes.

    Files of one size are compared by their ends; whole files are read only where the ends agree.
    """
    one_size = [i for members in _by_key(map(_size, paths)) for i in members]
    groups = _equal_by(content_hash, paths, one_size, what='bytes')
    whole = [members for members in groups if (_size(paths[members[0]]) or 0) <= 2 * _NUM_BYTES]
    long = [members for members in groups if (_size(paths[members[0]]) or 0) > 2 * _NUM_BYTES]
    in_doubt = [i for members in long for i in members]
    return whole + _equal_by(whole_hash, paths, in_doubt, what='whole files')


def _equal_by(
    measure: Callable[[str], Measured], paths: Sequence[str], numbers: Sequence[int], *, what: str
) -> list[list[int]]:
    """Return the groups of the `numbers` whose files have one measure."""
    numbers = sorted(numbers)
    if not numbers:
        return []
    return _by_key(measured_files([paths[i] for i in numbers], measure, what=what), numbers)


def _size(path: str) -> int | None:
    """Bytes of a file; None for a folder, an empty file or none."""
    try:
        return (os.path.isfile(path) and os.path.getsize(path)) or None
    except OSError:
        return None


def content_hash(file: str) -> Measured:
    """Return the size in bytes and a hash of the first and the last MiB."""
    size = os.path.getsize(file)
    with open(file, 'rb') as content:
        digest = hashlib.blake2b(content.read(_NUM_BYTES), digest_size=8)
        if size > _NUM_BYTES:
            content.seek(max(_NUM_BYTES, size - _NUM_BYTES))
            digest.update(content.read())
    return size, int.from_bytes(digest.digest(), 'big')


def whole_hash(file: str) -> Measured:
    """Return the size in bytes and a hash of all bytes."""
    digest = hashlib.blake2b(digest_size=16)
    with open(file, 'rb') as content:
        while part := content.read(_NUM_BYTES):
            digest.update(part)
    return os.path.getsize(file), int.from_bytes(digest.digest(), 'big')


# --------------------------------------------------------------------------------------------------
# Looks


def look_hash(file: str) -> Measured:
    """Return 128 bits as two numbers: where an image of 9 x 9 grows brighter, rightwards and down.

    Two zeros for an image without contrast.
    """
    grey = _thumbnail(file, 9, 'L').astype(int)
    if grey.std() < _MIN_CONTRAST:
        return 0, 0
    right, down = grey[:8, 1:] > grey[:8, :-1], grey[1:, :8] > grey[:-1, :8]
    return tuple(int.from_bytes(np.packbits(bits).tobytes(), 'big') for bits in (right, down))


def _thumbnail(file: str, side: int, mode: str) -> np.ndarray:
    """Return the image as [side, side(, 3)] uint8, each pixel the mean of its part."""
    with Image.open(file) as image:
        image.draft(mode, (4 * side, 4 * side))  # a JPEG is decoded at an eighth of its size
        upright = ImageOps.exif_transpose(image)
        return resize_image(np.asarray(upright.convert(mode)), (side, side))


def _look_alikes(paths: Sequence[str]) -> _Labels:
    """Join the images that look alike: by their hashes first, then by their thumbnails."""
    labels = _Labels(len(paths))
    found = measured_files(paths, look_hash, what='images to compare') if paths else []
    numbers = np.array([i for i, bits in enumerate(found) if bits and any(bits)], dtype=int)
    hashes = np.array([found[i] for i in numbers], dtype=np.uint64).reshape(-1, 2).view(np.uint8)
    ones = np.array([bin(value).count('1') for value in range(256)], dtype=np.uint8)
    thumbnail = lru_cache(_NUM_KEPT)(_colours)
    for place, one in enumerate(numbers.tolist()):
        distance = ones[hashes[place] ^ hashes[place + 1 :]].sum(1)
        for other in numbers[place + 1 :][distance <= _MAX_DISTANCE].tolist():
            if labels.of[one] != labels.of[other] and _are_alike(
                thumbnail(paths[one]), thumbnail(paths[other])
            ):
                labels.join([one, other])
    return labels


def _colours(file: str) -> np.ndarray | None:
    try:
        return _thumbnail(file, _THUMBNAIL, 'RGB').astype(float)
    except UNREADABLE:
        return None


def _are_alike(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    """Compare thumbnails by their root mean square difference, in units of their contrast."""
    if one is None or other is None:
        return False
    difference = np.sqrt(((one - other) ** 2).mean())
    return bool(difference <= _MAX_DIFFERENCE * min(one.std(), other.std()))


class _Labels:
    """Numbers from 0, joined into groups that are labelled by their smallest number."""

    def __init__(self, count: int) -> None:
        self.of = np.arange(count)
        self._members: dict[int, list[int]] = {}  # of the groups of two or more

    def join(self, members: Iterable[int]) -> None:
        first, *others = sorted(set(self.of[list(members)].tolist()))
        for other in others:
            joined = self._members.pop(other, [other])
            self._members.setdefault(first, [first]).extend(joined)
            self.of[joined] = first

    def firsts(self) -> list[int]:
        """Return the smallest number of each group, and all numbers that are in none."""
        alone: list[int] = np.flatnonzero(self.of == np.arange(len(self.of))).tolist()
        return alone

    def groups(self) -> list[tuple[int, ...]]:
        """Return the groups of two or more."""
        return [tuple(members) for members in _by_key(self.of.tolist())]

    def copies(self) -> list[tuple[int, ...]]:
        """Return all groups, those of one number included, in the order of their first numbers."""
        return [tuple(sorted(self._members.get(first, [first]))) for first in self.firsts()]
