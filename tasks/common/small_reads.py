"""Large JPEG files decoded small: at 1/2, 1/4 or 1/8, where the planned size allows it.

A JPEG decoder can stop its inverse transform at fewer pixels, each the mean of what it stands for:
much of the work of decoding, and of the resizing after it, is then never done. What the resizing
makes of them differs little from what it makes of the whole image as long as it still averages 2 x
2 of them or more, so no image is decoded at less than twice the size that it is scaled to.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import cv2
import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from PIL import Image

from .picture_sizes import UNREADABLE, exif_orientation, shown_size
from .resampling import DEFAULT_FILTER
from .resize import REDUCTION, Reduction, SizePlanner

_GAP = 2  # decoded pixels along a side of a pixel that the image is resized to, at least
_JPEG = b'\xff\xd8\xff'
_FLAGS = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
}


class LoadImageSmall(LoadImageFromFile):
    """mmcv's `LoadImageFromFile`, which decodes a JPEG no larger than the planner needs it.

    `ori_shape` and `img_shape` stay those of the file, as do the annotations, which are loaded
    after it; `results[REDUCTION]` lets the planner scale from there. Other formats are decoded
    whole.
    """

    def __init__(self, loader: LoadImageFromFile, planner: SizePlanner) -> None:
        self.__dict__.update(loader.__dict__)
        self.planner = planner

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        content = fileio.get(results['img_path'], backend_args=self.backend_args)
        reduction = self._reduction(content, results)
        flag: Any = self.color_type if reduction is None else _FLAGS[reduction.factor]
        image = mmcv.imfrombytes(content, flag=flag, backend=self.imdecode_backend)
        assert image is not None, f'failed to load image: {results["img_path"]}'
        shape = image.shape[:2]
        if reduction is not None:
            shape, results[REDUCTION] = reduction.native_size, reduction
        results['img'] = image.astype(np.float32) if self.to_float32 else image
        results['img_shape'] = results['ori_shape'] = shape
        return results

    def _reduction(self, content: bytes, results: dict[str, Any]) -> Reduction | None:
        """Choose how small to decode the image; return None to decode it whole."""
        if not content.startswith(_JPEG):
            return None
        try:
            with Image.open(io.BytesIO(content)) as header:
                native = shown_size(header)
                upright = exif_orientation(header) in (None, 1)
        except UNREADABLE:
            return None  # decoding says what is wrong
        draws = {key: results.get(key) for key in ('sample_seed', 'token_cap')}
        scaled = self.planner.scaled_size(*native, **draws)
        for factor in _FLAGS:
            # turning may bring the last pixel, which stands for less than the others, to the front
            even = upright or all(side % factor == 0 for side in native)
            large = all(n >= _GAP * factor * m for n, m in zip(native, scaled, strict=True))
            if even and large:
                return Reduction(native, factor)
        return None


def read_small(transforms: list[Any]) -> None:
    """Let a pipeline decode JPEG files small, in place, where nothing but the planner can notice.

    That is where loading is mmcv's own, in colour by OpenCV, where only annotations are loaded
    between it and the planner, and where the planner averages areas ('area'): Pillow's filters are
    kept to the bit.
    """
    kinds = [type(transform) for transform in transforms]
    if kinds[:1] != [LoadImageFromFile]:
        return
    loader = transforms[0]
    plain = loader.color_type == 'color' and loader.imdecode_backend == 'cv2'
    if not plain or loader.file_client_args is not None or loader.ignore_empty:
        return
    planner = _next_planner(transforms[1:])
    if planner is not None and planner.interpolation == DEFAULT_FILTER:
        transforms[0] = LoadImageSmall(loader, planner)


def _next_planner(transforms: Sequence[Any]) -> Any:
    """The transform that follows the loading of annotations, if it scales images."""
    after = (t for t in transforms if not type(t).__name__.startswith('Load'))
    planner = next(after, None)
    return planner if hasattr(planner, 'scaled_size') else None
