"""Segmentation of pictures too large for the logits of all classes at their own size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.registry import MODELS
from mmengine.structures import PixelData
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder
from mmseg.models.utils import resize
from mmseg.structures import SegDataSample
from torch import Tensor


@MODELS.register_module()
class NativeEncoderDecoder(EncoderDecoder):
    """mmseg's `EncoderDecoder`, whose memory does not grow with classes times a picture's pixels.

    Logits are resized to a picture's own size for a few classes at a time, and only the best class
    of each pixel is kept: the labels are those of `EncoderDecoder`, to the bit. Samples get
    `pred_sem_seg` alone, no `seg_logits`, so mmseg's test-time augmentation, which averages these,
    needs the stock class. `max_piece` is the most pixels, over all classes of a piece, that are
    resized at once; a piece has at least one class.
    """

    def __init__(self, *args: Any, max_piece: int = 2**26, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        head = self.decode_head
        stock = isinstance(head, BaseDecodeHead) and all(
            getattr(type(head), name) is getattr(BaseDecodeHead, name)
            for name in ('predict', 'predict_by_feat')
        )
        if not stock:
            raise ValueError(
                f'NativeEncoderDecoder cannot take {type(head).__name__}, whose logits are no '
                'resized map: use EncoderDecoder'
            )
        self.max_piece = max_piece
        slides = self.test_cfg.get('mode', 'whole') == 'slide'  # adds up logits on the whole canvas
        if hasattr(self.data_preprocessor, 'max_pixels') and not slides:
            self.data_preprocessor.max_pixels = None

    def predict(
        self, inputs: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """Samples with the `pred_sem_seg` of each picture, [1, h, w] at its own size."""
        canvas = (int(inputs.shape[2]), int(inputs.shape[3]))
        if data_samples is None:
            whole = dict(ori_shape=canvas, img_shape=canvas, pad_shape=canvas)
            data_samples = [SegDataSample(metainfo=whole) for _ in range(len(inputs))]
        metas = [sample.metainfo for sample in data_samples]
        if self.test_cfg.get('mode', 'whole') == 'slide':
            logits = self.slide_inference(inputs, metas)
        else:
            logits = self.decode_head(self.extract_feat(inputs))
        for sample, own in zip(data_samples, logits, strict=True):
            labels = self._labels(own[None], canvas, sample.metainfo)
            sample.set_data({'pred_sem_seg': PixelData(data=labels[None])})
        return data_samples

    def _labels(self, logits: Tensor, canvas: tuple[int, int], meta: Mapping[str, Any]) -> Tensor:
        """The best class of each pixel, [h, w]."""
        size = tuple(meta['ori_shape'][:2])
        step = max(1, self.max_piece // max(size[0] * size[1], canvas[0] * canvas[1]))
        best: Tensor | None = None
        for first in range(0, logits.shape[1], step):
            piece = self._at_own_size(logits[:, first : first + step], canvas, meta)[0]
            if self.out_channels == 1:
                return (piece[0].sigmoid() > self.decode_head.threshold).to(piece)
            value, label = piece.max(0)
            label += first
            if best is None:
                best, labels = value, label
            else:
                ahead = value > best
                best[ahead], labels[ahead] = value[ahead], label[ahead]
        return labels

    def _at_own_size(
        self, logits: Tensor, canvas: tuple[int, int], meta: Mapping[str, Any]
    ) -> Tensor:
        """What `EncoderDecoder` makes of logits: to the canvas, to the picture, to its own size."""
        options = dict(mode='bilinear', align_corners=self.align_corners, warning=False)
        if tuple(logits.shape[2:]) != canvas:
            logits = resize(logits, size=canvas, **options)
        left, right, top, bottom = meta.get('img_padding_size', meta.get('padding_size', [0] * 4))
        logits = logits[:, :, top : canvas[0] - bottom, left : canvas[1] - right]
        if meta.get('flip'):
            logits = logits.flip(3 if meta['flip_direction'] == 'horizontal' else 2)
        return resize(logits, size=tuple(meta['ori_shape'][:2]), **options)
