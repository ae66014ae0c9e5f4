"""EXIF orientation: how an image is turned when it is shown, and arrays turned the same way."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from mmengine.fileio import get
from PIL import Image

from .picture_sizes import UNREADABLE, exif_orientation

Size = tuple[int, int]

_TURNS = {
    1: lambda array: array,
    2: lambda array: array[:, ::-1],
    3: lambda array: array[::-1, ::-1],
    4: lambda array: array[::-1],
    5: lambda array: array.swapaxes(0, 1),
    6: lambda array: np.rot90(array, -1),
    7: lambda array: np.rot90(array, 2).swapaxes(0, 1),
    8: lambda array: np.rot90(array),
}
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap height and width


def orientation_of(file: str, backend_args: dict[str, Any] | None = None) -> int:
    """Read the EXIF orientation of an image file, 1 to 8; 1 where it has none or is unreadable."""
    try:
        with Image.open(io.BytesIO(get(file, backend_args=backend_args))) as image:
            found = exif_orientation(image)
    except UNREADABLE:
        return 1
    return found if found in _TURNS else 1


def turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn [h, w, ...], as it is stored, the way an image of this orientation is shown."""
    return np.ascontiguousarray(_TURNS[orientation](array))


def is_on_its_side(size: Size, shown: Size) -> bool:
    """Return whether a (height, width) is `shown` with its sides swapped, at the same scale or not.

    False where it is `shown` upright too, up to a pixel of rounding, as for squares.
    """
    if size in (shown, shown[::-1]):
        return size != shown
    return _has_shape(size, shown[::-1]) and not _has_shape(size, shown)


def _has_shape(size: Size, other: Size) -> bool:
    """Return whether one size is the other one scaled, where each side is rounded to a pixel."""
    return abs(size[0] * other[1] - size[1] * other[0]) <= sum(other)
