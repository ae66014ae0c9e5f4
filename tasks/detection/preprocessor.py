"""Batches for mmdet that carry the sizes of their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.models import DetDataPreprocessor
from mmdet.structures import DetDataSample
from mmengine.registry import MODELS
from torch import Tensor

from navit_backbone.packing import Size


@MODELS.register_module()
class NaViTDetDataPreprocessor(DetDataPreprocessor):
    """mmdet's preprocessor, whose batch tensor says what is picture and what is padding.

    The canvas [B, 3, H, W] is padded to a multiple of `pad_size_divisor`, which should be the
    coarsest stride in use (the last of the neck's strides). Its plain attribute `image_sizes`
    lists the (height, width) of the pictures: each sample's `img_shape`, as it stands after the
    batch augmentations. It is set last, since any operation on a tensor drops it. All arguments
    are those of mmdet's `DetDataPreprocessor`.
    """

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        loaded = data['inputs']
        data = super().forward(data, training)
        inputs, samples = data['inputs'], data['data_samples']
        if samples is None:
            inputs.image_sizes = [tuple(image.shape[-2:]) for image in loaded]
        else:
            inputs.image_sizes = image_sizes(samples, inputs)
        return data


def image_sizes(samples: Sequence[DetDataSample], inputs: Tensor) -> list[Size]:
    """The `img_shape` of each sample as (height, width); all within the canvas."""
    height, width = inputs.shape[-2:]
    sizes = []
    for sample in samples:
        h, w = (int(side) for side in sample.img_shape[:2])
        if not (0 < h <= height and 0 < w <= width):
            raise ValueError(
                f'{sample.get("img_path", "a sample")}: img_shape is {h} x {w} pixels, its canvas '
                f'{height} x {width}: the transform (or batch augmentation) that changed the '
                'picture last must set img_shape to its (height, width)'
            )
        sizes.append((h, w))
    return sizes
