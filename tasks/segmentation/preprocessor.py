"""Batches for mmseg of pictures of several sizes, in training and in evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.registry import MODELS
from mmseg.models import SegDataPreProcessor
from mmseg.structures import SegDataSample
from mmseg.utils import stack_batch

from navit_backbone.packing import Size

MAX_PIXELS = 2**24


@MODELS.register_module()
class NaViTSegDataPreprocessor(SegDataPreProcessor):
    """mmseg's preprocessor, whose batches may hold pictures of several sizes in evaluation too.

    Pictures are padded to the right and below to one canvas [B, 3, H, W], a multiple of
    `size_divisor`, which should be the coarsest stride in use. In training the label maps are
    padded alike with `seg_pad_val`, the ignored label; in evaluation they stay at their own size,
    and `img_padding_size` tells the unmodified segmentor what to cut off its logits. The canvas
    tensor's plain attribute `image_sizes` lists the (height, width) of the pictures, which
    `NaViTBackbone` reads. All other arguments are those of mmseg's `SegDataPreProcessor`; its
    `test_cfg`, where given, has the `size` or `size_divisor` of evaluation.

    `max_pixels`: a stock segmentor holds the logits of all classes at a picture's own size, which
    takes 4 * classes bytes a pixel, twice. A picture of more pixels is refused in evaluation;
    `NativeEncoderDecoder`, which needs no such map, lifts the limit.
    """

    def __init__(
        self,
        *args: Any,
        size_divisor: int | None = 16,
        size: Size | None = None,
        max_pixels: int | None = MAX_PIXELS,
        **kwargs: Any,
    ) -> None:
        if size is not None:
            size_divisor = None  # mmseg takes one of them
        super().__init__(*args, size=size, size_divisor=size_divisor, **kwargs)
        self.max_pixels = max_pixels
        # of sliding windows, which do not carry sizes (mixed_sizes.prepare_windows)
        self.one_size = False
        self.window_cell = size_divisor or 1

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in data['inputs']]
        if training:
            data = super().forward(data, training)
        else:
            data = self._stacked(self.cast_data(data), sizes)
        for sample, size in zip(data['data_samples'] or (), sizes, strict=False):
            # mmseg's stack_batch writes a torch.Size, by which its heads know a sliding window
            sample.set_metainfo({'img_shape': size})
        data['inputs'].image_sizes = sizes
        return data

    def _stacked(self, data: dict[str, Any], sizes: Sequence[Size]) -> dict[str, Any]:
        """An evaluation batch; label maps stay as they are."""
        inputs, samples = list(data['inputs']), data.get('data_samples')
        self._check(sizes, samples or ())
        if self._channel_conversion and inputs[0].shape[0] == 3:
            inputs = [image[[2, 1, 0]] for image in inputs]
        inputs = [image.float() for image in inputs]
        if self._enable_normalize:
            inputs = [(image - self.mean) / self.std for image in inputs]
        limits = self.test_cfg or dict(size=self.size, size_divisor=self.size_divisor)
        fill = self.pad_val
        if self.one_size:  # windows then get what the backbone adds to partial patches
            limits, fill = dict(size_divisor=self.window_cell), 0
        batch, paddings = stack_batch(inputs, pad_val=fill, **limits)
        canvas = (int(batch.shape[-2]), int(batch.shape[-1]))
        for sample, found in zip(samples or (), paddings, strict=False):
            padding = tuple(int(side) for side in found['img_padding_size'])
            sample.set_metainfo({'img_padding_size': padding, 'pad_shape': canvas})
        return dict(inputs=batch, data_samples=samples)

    def _check(self, sizes: Sequence[Size], samples: Sequence[SegDataSample]) -> None:
        if self.one_size and len(set(sizes)) > 1:
            raise ValueError(
                f"a batch of pictures of {len(set(sizes))} sizes, but model.test_cfg.mode='slide' "
                'cuts windows out of the whole batch, padding included: set '
                "test_dataloader.batch_size=1, or mode='whole', which takes any sizes"
            )
        for sample in samples:
            h, w = sample.ori_shape[:2]
            if self.max_pixels is not None and h * w > self.max_pixels:
                raise ValueError(
                    f'{sample.get("img_path", "a picture")} is {h} x {w} pixels, and a stock '
                    'segmentor (any, in slide mode) would hold the logits of all classes at that '
                    "size: set model.type='NativeEncoderDecoder' and model.test_cfg.mode='whole', "
                    'which labels it piece by piece, or raise '
                    f'model.data_preprocessor.max_pixels={self.max_pixels}'
                )
