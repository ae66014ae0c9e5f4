"""Resampling of images and label maps: the only place where pixels are resized.

Every filter is antialiased: where an axis shrinks, it covers all source pixels of a target pixel.
Sizes are (height, width).
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

Size = tuple[int, int]

DEFAULT_FILTER = 'area'
_PILLOW = {name: Image.Resampling[name.upper()] for name in ('bilinear', 'bicubic', 'lanczos')}
FILTERS = (DEFAULT_FILTER, *_PILLOW)
_BACK_FROM_FLOAT32 = (np.float16, np.float64)
_CV2_CHANNELS = 4  # the most that INTER_AREA takes at once


def check_filter(owner: str, interpolation: str) -> str:
    """Return `interpolation`; raise ValueError naming `owner` where it is not one of FILTERS."""
    if interpolation in FILTERS:
        return interpolation
    fix = "use 'area', the default"
    if interpolation == 'nearest':
        fix = f'it aliases when an image shrinks; {fix} (label maps are always resized by nearest)'
    raise ValueError(
        f'{owner}: interpolation={interpolation!r} is not one of {", ".join(map(repr, FILTERS))}: '
        f'{fix}'
    )


def resize_image(
    image: np.ndarray,
    size: Size,
    interpolation: str = DEFAULT_FILTER,
    *,
    extent: tuple[float, float] | None = None,
) -> np.ndarray:
    """Resize an image [h, w] or [h, w, channels] to `size`, antialiased; the dtype stays.

    'area' averages the covered source pixels along an axis that shrinks and is cubic (a = -0.75)
    along one that grows. 'bilinear', 'bicubic' and 'lanczos' are Pillow's, to the bit. The image
    is uint8, uint16 or floating; float16 and float64 are computed in float32. Raise ValueError for
    another dtype, an empty image or an unknown filter.

    `extent`, of 'area' where both axes shrink to a half or less, is the (height, width) of what is
    resized, in pixels of the image, whose last row and column may stick out of it.
    """
    check_filter('resize_image', interpolation)
    if image.ndim not in (2, 3) or image.size == 0 or min(size) < 1:
        raise ValueError(
            f'an image of shape {list(image.shape)} cannot be resized to {size[0]} x {size[1]} '
            'pixels (height x width): it must be [h, w] or [h, w, channels], with at least one '
            'pixel before and after'
        )
    if extent is not None:
        return _resize_extent(image, size, extent)
    if image.shape[:2] == tuple(size):
        return image
    if image.dtype in _BACK_FROM_FLOAT32:
        resized = resize_image(image.astype(np.float32), size, interpolation)
        return resized.astype(image.dtype)
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        raise ValueError(
            f'an image of dtype {image.dtype} cannot be resized: convert it to uint8, uint16 or '
            'float32 (label maps: resize_labels)'
        )
    resize = _resize_area if interpolation == 'area' else _resize_pillow
    return resize(np.ascontiguousarray(image), size, interpolation).reshape(*size, *image.shape[2:])


def resize_frames(
    frames: np.ndarray, size: Size, interpolation: str = DEFAULT_FILTER
) -> np.ndarray:
    """Resize frames [frames, h, w, channels] one by one, as `resize_image` does."""
    if frames.shape[1:3] == tuple(size):
        return frames
    return np.stack([resize_image(frame, size, interpolation) for frame in frames])


def resize_labels(labels: np.ndarray, size: Size) -> np.ndarray:
    """Resize a label map [h, w] or [h, w, channels] of any dtype by nearest neighbour.

    Each target pixel takes the label at its own centre (torch's 'nearest-exact'), so labels stay
    aligned with the image; cv2.INTER_NEAREST takes that at its upper left corner.
    """
    if labels.shape[:2] == tuple(size):
        return labels
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for old, new in zip(labels.shape[:2], size, strict=True)
    )
    return labels.take(rows, axis=0).take(columns, axis=1)


def _resize_area(image: np.ndarray, size: Size, _: str) -> np.ndarray:
    """Shrink by area, then grow by cubic: cv2.INTER_AREA is no area where an axis grows."""
    if image.ndim == 3 and image.shape[2] > _CV2_CHANNELS:
        return _by_channel(_resize_area, image, size, '')
    smaller = min(size[0], image.shape[0]), min(size[1], image.shape[1])
    for (h, w), rule in ((smaller, cv2.INTER_AREA), (size, cv2.INTER_CUBIC)):
        if image.shape[:2] != (h, w):
            image = cv2.resize(image, (w, h), interpolation=rule)
    return image


def _resize_extent(image: np.ndarray, size: Size, extent: tuple[float, float]) -> np.ndarray:
    """Average the areas that `extent` divides into; what sticks out is less than half of one."""
    scale = [new / old for new, old in zip(size, extent, strict=True)]
    resized = cv2.resize(image, None, fx=scale[1], fy=scale[0], interpolation=cv2.INTER_AREA)
    return resized[: size[0], : size[1]].reshape(*size, *image.shape[2:])


def _resize_pillow(image: np.ndarray, size: Size, interpolation: str) -> np.ndarray:
    """Resize by Pillow; it has modes of several channels for 3 of uint8 alone."""
    if image.ndim == 3 and (image.shape[2] != 3 or image.dtype != np.uint8):
        return _by_channel(_resize_pillow, image, size, interpolation)
    return np.asarray(Image.fromarray(image).resize(size[::-1], _PILLOW[interpolation]))


def _by_channel(
    resize: Callable[[np.ndarray, Size, str], np.ndarray],
    image: np.ndarray,
    size: Size,
    interpolation: str,
) -> np.ndarray:
    channels = [np.ascontiguousarray(image[..., c]) for c in range(image.shape[2])]
    return np.stack([resize(channel, size, interpolation) for channel in channels], axis=-1)
