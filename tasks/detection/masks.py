"""Masks in COCO's format, checked here since pycocotools hangs or crashes on some broken ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Size = tuple[int, int]  # height, width

_FARTHEST = 100_000  # pixels; pycocotools walks along each edge of a polygon in fifths of a pixel
_LONGEST = 7  # characters of one compressed run length, 35 bits


def mask_fault(segmentation: Any, size: Size | None) -> str:
    """Return the rule that a segmentation breaks, or ''; `size` is that of its image, if known."""
    if isinstance(segmentation, list):
        sound = all(map(_is_polygon, segmentation))
        return '' if sound else _FORMAT if not _is_far(segmentation) else _FAR
    if not isinstance(segmentation, dict) or not _is_size(segmentation.get('size')):
        return _FORMAT
    height, width = stated = tuple(segmentation['size'])
    if size not in (None, stated):
        return "the size of a segmentation in run lengths must be its image's height and width"
    try:
        runs = run_lengths(segmentation.get('counts'))
    except ValueError as error:
        return str(error)
    if (total := int(runs.sum())) != height * width:
        return (
            f'the run lengths of a segmentation must add up to height x width: they have {total:,} '
            f'pixels, its image {height} x {width} = {height * width:,}'
        )
    return ''


_FORMAT = (
    'segmentation must be a list of polygons, as [[x, y, x, y, ...], ...], or one object of run '
    'lengths with size and counts'
)
_FAR = f'the coordinates of a polygon must lie within {_FARTHEST:,} pixels of the origin'


def run_lengths(counts: Any) -> np.ndarray:
    """Return the run lengths [R] of a mask, from a list or from COCO's compressed text.

    Raises ValueError, which names the rule, where they are not whole numbers of 0 or more.
    """
    if isinstance(counts, str):
        runs = _decoded(counts)
        given: Any = counts if len(counts) < 40 else f'{counts[:40]}...'
    elif isinstance(counts, list):
        wrong = [run for run in counts if type(run) is not int or not 0 <= run < 2**31]
        runs, given = np.array([] if wrong else counts, dtype=np.int64), wrong[:3]
        if wrong:
            runs = None
    else:
        raise ValueError(_FORMAT)
    if runs is None or (runs < 0).any():
        raise ValueError(
            'the run lengths of a segmentation must be whole numbers of 0 or more, or their '
            f'compressed text: got {given!r}'
        )
    return runs


def _decoded(text: str) -> np.ndarray | None:
    """Return the run lengths of COCO's compressed text; None where it is not one.

    Each character holds 5 bits of a number, lowest first, and whether another one follows; the
    highest bit of the last one is the sign. From the fourth number on, each is the difference from
    the one two before it.
    """
    if not text.isascii():
        return None
    codes = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) - 48
    if not len(codes):
        return codes
    ends = np.flatnonzero(codes & 32 == 0)
    if codes.min() < 0 or codes.max() > 63 or not len(ends) or ends[-1] != len(codes) - 1:
        return None
    begins = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - begins + 1
    if lengths.max() > _LONGEST:
        return None
    place = np.arange(len(codes)) - np.repeat(begins, lengths)
    values = np.add.reduceat((codes & 31) << (5 * place), begins)
    values -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values


def sound_parts(polygons: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """Return the polygons of three corners or more, each an x and a y."""
    return [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]


def mask_area(segmentation: Any) -> float:
    """Return the pixels of a mask that `mask_fault` finds nothing against; of polygons the sum."""
    if isinstance(segmentation, dict):
        return float(run_lengths(segmentation['counts'])[1::2].sum())
    return sum(map(_polygon_area, sound_parts(segmentation)), 0.0)


def mask_box(segmentation: Any) -> list[float] | None:
    """Return [x, y, width, height] around a mask that `mask_fault` finds nothing against.

    Of polygons around their corners, as COCO's own boxes are. None where a mask has no pixel.
    """
    if isinstance(segmentation, dict):
        return _run_box(run_lengths(segmentation['counts']), segmentation['size'][0])
    corners = [value for polygon in sound_parts(segmentation) for value in polygon]
    if not corners:
        return None
    (left, top), (right, bottom) = (
        (float(least(corners[::2])), float(least(corners[1::2]))) for least in (min, max)
    )
    return [left, top, right - left, bottom - top]


def _run_box(runs: np.ndarray, height: int) -> list[float] | None:
    """Return the box around the set pixels; runs go down the columns, unset ones first."""
    ends = runs.cumsum()[1::2]
    begins = ends - runs[1::2]
    begins, last = begins[begins < ends], ends[begins < ends] - 1  # runs of no pixel aside
    if not len(begins):
        return None
    left, right = int(begins[0]) // height, int(last[-1]) // height
    whole = begins // height < last // height  # runs on into the next column
    top = 0 if whole.any() else int((begins % height).min())
    bottom = height - 1 if whole.any() else int((last % height).max())
    return [float(left), float(top), float(right - left + 1), float(bottom - top + 1)]


def _polygon_area(polygon: Sequence[float]) -> float:
    x, y = np.array(polygon, dtype=float).reshape(-1, 2).T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def _is_polygon(value: Any) -> bool:
    return (
        isinstance(value, list)
        and {*map(type, value)} <= {int, float}
        # before the sum, which overflows on numbers that are too large for a float
        and (not value or max(max(value), -min(value)) <= _FARTHEST)
        and sum(value) == sum(value)  # NaN is not
    )


def _is_far(polygons: Sequence[Any]) -> bool:
    """Return whether polygons hold only numbers, large ones included."""
    return all(
        isinstance(value, list)
        and {*map(type, value)} <= {int, float}
        and all(number == number for number in value)  # NaN is not
        for value in polygons
    )


def _is_size(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(type(side) is int and 0 < side < 2**31 for side in value)
    )
