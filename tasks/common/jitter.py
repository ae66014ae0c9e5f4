"""Large-scale jitter (Copy-Paste, arXiv 2012.07177; ViTDet) without padding.

A picture is scaled at random around the size that its token budget gives it. What is larger than
the budget is cropped to it; what is smaller is simply a smaller picture, as packing wastes nothing.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from .resampling import DEFAULT_FILTER, check_filter
from .resize import (
    ResizeToTokenBudget,
    Size,
    check_annotated_size,
    native_size,
    token_budget_size,
)
from .sample import SampleSeed

_PER_BOX = ('gt_bboxes_labels', 'gt_ignore_flags', 'gt_instances_ids')


@TRANSFORMS.register_module()
class LargeScaleJitter(BaseTransform):
    """Scale each picture by a random factor, and crop what then exceeds `max_tokens`.

    The factor, uniform in `scale_range`, is of the sides at which `ResizeToTokenBudget(max_tokens)`
    shows the picture; its tokens grow with the square. The crop has the picture's own aspect. Sizes
    are whole patches, and known before anything is loaded: `num_tokens`.

    Changes `img`, `gt_bboxes`, `gt_masks`, `gt_seg_map` (and what `seg_fields` names), and leaves
    out of all that belongs to boxes those that a crop has nothing of. `recompute_bbox` draws boxes
    close around what is left of their masks. A crop without any box is what ViTDet allows; with
    `allow_negative_crop=False` it is moved to hold the centre of one, if the picture has any.
    `interpolation` is the antialiased filter, as in `ResizeToTokenBudget`.
    """

    size_fields: ClassVar[tuple[str, ...]] = ('height', 'width')

    def __init__(
        self,
        max_tokens: int,
        *,
        patch_size: int = 16,
        scale_range: tuple[float, float] = (0.1, 2.0),
        allow_negative_crop: bool = True,
        recompute_bbox: bool = False,
        interpolation: str = DEFAULT_FILTER,
    ) -> None:
        low, high = scale_range
        if not 0 < low <= high:
            raise ValueError(
                f'scale_range={scale_range} must be a low and a high factor above 0; (0.1, 2.0) is '
                "ViTDet's"
            )
        self._resize = ResizeToTokenBudget(
            max_tokens,
            patch_size=patch_size,
            interpolation=check_filter(type(self).__name__, interpolation),
        )
        self.max_tokens = max_tokens
        self.patch_size = patch_size
        self.scale_range = (float(low), float(high))
        self.allow_negative_crop = allow_negative_crop
        self.recompute_bbox = recompute_bbox

    @property
    def interpolation(self) -> str:
        """The antialiased filter."""
        return self._resize.interpolation

    def target_size(
        self,
        h: int,
        w: int,
        *,
        sample_seed: SampleSeed | None = None,
        token_cap: int | None = None,
    ) -> Size:
        """The size that a picture of `h` x `w` pixels ends with, for a transform and a sampler."""
        return self._sizes(h, w, sample_seed, token_cap)[1]

    def scaled_size(self, h: int, w: int, **draws: Any) -> Size:
        """Return the size that an image of `h` x `w` pixels is scaled to, before it is cropped."""
        return self._sizes(h, w, **draws)[0]

    def num_tokens(self, h: int, w: int, *, sample_seed: SampleSeed | None = None) -> int:
        """The tokens that a picture of `h` x `w` pixels will have."""
        new_h, new_w = self.target_size(h, w, sample_seed=sample_seed)
        return new_h * new_w // self.patch_size**2

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        check_annotated_size(results)
        seed = results.get('sample_seed')
        scaled, window = self._sizes(*native_size(results), seed, results.get('token_cap'))
        results = self._resize.resized(results, scaled)
        if window != scaled:
            rng = SampleSeed(*seed).generator('jitter crop')
            self._crop(results, self._offset(results, window, rng), window)
        return results

    def _sizes(
        self, h: int, w: int, sample_seed: SampleSeed | None = None, token_cap: int | None = None
    ) -> tuple[Size, Size]:
        """The picture scaled, and the window cut out of it: never larger, as sides grow alike."""
        if sample_seed is None:
            raise ValueError(
                "LargeScaleJitter needs results['sample_seed'] = (seed, epoch, index): use a data "
                "set with SeededSamples (NaViTCocoDataset, for one) and sampler=dict(type='"
                "SeededSampler')"
            )
        factor = SampleSeed(*sample_seed).generator('jitter scale').uniform(*self.scale_range)
        budget = max(1, int(self.max_tokens * factor**2))
        most = min(budget, self.max_tokens, token_cap or budget)
        scaled, window = (
            token_budget_size(h, w, patch_size=self.patch_size, max_tokens=tokens)
            for tokens in (budget, most)
        )
        return scaled, window

    def _offset(self, results: dict[str, Any], window: Size, rng: np.random.Generator) -> Size:
        """Where in the picture the window begins, (y, x) in pixels."""
        margins = np.subtract(results['img_shape'], window)
        y, x = rng.integers(margins + 1).tolist()
        boxes = results.get('gt_bboxes')
        if self.allow_negative_crop or boxes is None or len(boxes) == 0:
            return y, x
        if _shifted(boxes, (y, x), window)[1].any():
            return y, x
        centre = _centres(boxes)[rng.integers(len(boxes))].astype(int)  # (y, x)
        low = np.clip(centre - window + 1, 0, margins)
        y, x = rng.integers(low, np.clip(centre, low, margins) + 1).tolist()
        return y, x

    def _crop(self, results: dict[str, Any], offset: Size, window: Size) -> None:
        (y, x), (h, w) = offset, window
        for key in {'img', 'gt_seg_map', *results.get('seg_fields', ())}:
            if results.get(key) is not None:
                results[key] = results[key][y : y + h, x : x + w]
        results['img_shape'] = window
        step = np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1]], dtype=np.float32)
        results['homography_matrix'] = step @ results['homography_matrix']
        kept = None
        if results.get('gt_bboxes') is not None:
            results['gt_bboxes'], inside = _shifted(results['gt_bboxes'], offset, window)
            kept = inside.nonzero()[0]
            for key in ('gt_bboxes', *_PER_BOX):
                if results.get(key) is not None:
                    results[key] = results[key][kept]
        if results.get('gt_masks') is not None:
            masks = results['gt_masks'] if kept is None else results['gt_masks'][kept]
            results['gt_masks'] = masks.crop(np.array([x, y, x + w, y + h]))
            if self.recompute_bbox and kept is not None:
                results['gt_bboxes'] = results['gt_masks'].get_bboxes(type(results['gt_bboxes']))

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(max_tokens={self.max_tokens}, patch_size={self.patch_size}, '
            f'scale_range={self.scale_range}, allow_negative_crop={self.allow_negative_crop}, '
            f'recompute_bbox={self.recompute_bbox}, '
            f'interpolation={self.interpolation!r})'
        )


def _shifted(boxes: Any, offset: Size, window: Size) -> tuple[Any, np.ndarray]:
    """The boxes as the window sees them, and [N] bool: which of them it sees at all.

    Boxes of mmdet, which know how, or an array [N, 4] as mmcv loads it.
    """
    (y, x), (h, w) = offset, window
    if hasattr(boxes, 'translate_'):
        boxes = boxes.clone()
        boxes.translate_([-x, -y])
        boxes.clip_(window)
        return boxes, boxes.is_inside(window).numpy()
    moved = (boxes - np.array([x, y, x, y], dtype=boxes.dtype)).clip(0, [w, h, w, h])
    return moved.astype(boxes.dtype), (moved[:, 2:] > moved[:, :2]).all(axis=1)


def _centres(boxes: Any) -> np.ndarray:
    """[N, 2] as (y, x)."""
    if hasattr(boxes, 'centers'):
        return boxes.centers.numpy()[:, ::-1]
    return (boxes[:, 1::-1] + boxes[:, :1:-1]) / 2
