"""Picture sizes from token budgets: the one place where a size in pixels is decided.

Sizes are (height, width); a grid is a size in whole patches. The sides that come out are multiples
of the patch, so nothing after this needs to round again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from mmcv import rescale_size
from mmcv.transforms import BaseTransform, Resize
from mmengine.registry import TRANSFORMS

from .random_tokens import RandomTokens
from .resampling import DEFAULT_FILTER, Size, check_filter, resize_image, resize_labels
from .sample import BadSampleError, SampleSeed


def token_budget_size(
    h: int,
    w: int,
    *,
    patch_size: int,
    max_tokens: int,
    min_tokens: int | None = None,
    steps: int = 1,
) -> Size:
    """The size in pixels, whole patches a side, at which a picture of `h` x `w` pixels is shown.

    `max_tokens` alone: the picture is scaled up or down to the largest grid of its aspect within
    the budget. That is the largest scale at which both sides, each rounded to whole patches (at
    least one), keep the budget. So no side is more than half a patch off the exact aspect, and
    both grow with the budget.

    With `min_tokens`: the native size, each side rounded to whole patches; only where that has more
    than `max_tokens` or fewer than `min_tokens` it is scaled, rounding down or up. This is
    `smart_resize` of UniViTAR to the patch: so a picture with a side of less than a patch is first
    scaled up until that has one. Only where it leaves a slim picture without a patch on a side, or
    with more than `max_tokens`, the largest grid within the budget is taken instead.

    Both limits are of all `steps` of a clip, each of which has this grid.
    """
    if min(h, w, patch_size, max_tokens, steps) < 1:
        raise ValueError(
            'height, width, patch_size, max_tokens and steps must be at least 1: got '
            f'{h} x {w} pixels, patch_size={patch_size}, max_tokens={max_tokens}, steps={steps}'
        )
    if steps > max_tokens:
        raise ValueError(f'max_tokens={max_tokens} has no token for each of {steps} steps')
    if min_tokens is None:
        grid = _largest_grid(h, w, max_tokens // steps)
    elif 1 <= min_tokens <= max_tokens:
        area = patch_size**2  # in pixels, as the budget of a step is no whole number of patches
        limits = (min_tokens * area // steps, max_tokens * area // steps)
        grid = _native_grid(h, w, patch_size, *limits)
        if min(grid) < 1 or math.prod(grid) > max_tokens // steps:
            grid = _largest_grid(h, w, max_tokens // steps)
    else:
        raise ValueError(
            f'min_tokens={min_tokens} must lie between 1 and max_tokens={max_tokens}; '
            'leave it out to scale every picture to max_tokens'
        )
    return grid[0] * patch_size, grid[1] * patch_size


def _largest_grid(h: int, w: int, max_tokens: int) -> Size:
    """The largest grid within the budget whose sides are one scale of (h, w), rounded half up."""
    long, short = max(h, w), min(h, w)

    def least(rows: int) -> int:  # short side at the scale where the long one reaches `rows`
        return max(1, (short * (2 * rows - 1) + long) // (2 * long))

    low, high = 1, max_tokens  # the long side: by bisection, as rows * least(rows) only grows
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle * least(middle) <= max_tokens else (low, middle - 1)
    # the short side may still gain a patch before the long one does
    most = max(1, (short * (2 * low + 1) + long - 1) // (2 * long))
    columns = min(most, max_tokens // low)
    return (low, columns) if h >= w else (columns, low)


def _native_grid(h: int, w: int, patch_size: int, min_pixels: int, max_pixels: int) -> Size:
    """`smart_resize` of UniViTAR (and Qwen2-VL), in its floating point: its sizes, to the patch."""
    if h < patch_size:
        h, w = patch_size, int(patch_size / h * w) + 1
    if w < patch_size:
        h, w = int(patch_size / w * h) + 1, patch_size
    rows, columns = round(h / patch_size), round(w / patch_size)
    pixels = rows * columns * patch_size**2
    if pixels > max_pixels:
        shrink = math.sqrt(h * w / max_pixels)
        return math.floor(h / shrink / patch_size), math.floor(w / shrink / patch_size)
    if pixels < min_pixels:
        grow = math.sqrt(min_pixels / (h * w))
        return math.ceil(h * grow / patch_size), math.ceil(w * grow / patch_size)
    return rows, columns


REDUCTION = 'reduction'  # of results: set where the image was decoded smaller than it is


class Reduction(NamedTuple):
    """The size of an image in its file, and the divisor of both sides that it was decoded with."""

    native_size: Size
    factor: int


def native_size(results: dict[str, Any]) -> Size:
    """Return (height, width) of the image in its file, the scale of the annotations."""
    reduction = results.get(REDUCTION)
    size: Size = results['img'].shape[:2] if reduction is None else reduction.native_size
    return size


class SizePlanner(Protocol):
    """A transform that decides a sample's size, and can say beforehand how many tokens that is.

    What it counts is a function of the sample's `size_fields`, which are fields of its record, and
    of its seed alone; so a sampler counts what the transform will do in a worker.
    """

    size_fields: ClassVar[tuple[str, ...]]
    max_tokens: int  # no sample has more
    patch_size: int

    def target_size(self, *size: Any, sample_seed: SampleSeed | None = None) -> Size:
        """The (height, width) that a sample of this size will be shown at."""

    def scaled_size(
        self, *size: Any, sample_seed: Any = None, token_cap: int | None = None
    ) -> Size:
        """The (height, width) that its image is resized to, which may be cropped after it."""

    def num_tokens(self, *size: Any, sample_seed: SampleSeed | None = None) -> int:
        """The tokens that it will have."""


def find_planner(transforms: Iterable[Any]) -> SizePlanner | None:
    """The one transform of a pipeline that decides sizes, if there is one."""
    planners = [t for t in transforms if hasattr(t, 'num_tokens')]
    if len(planners) > 1:
        raise ValueError(
            f'{" and ".join(type(t).__name__ for t in planners)} in one pipeline: each decides the '
            'size of a sample, keep one of them'
        )
    return planners[0] if planners else None


@TRANSFORMS.register_module()
class ResizeToTokenBudget(BaseTransform):
    """Show each picture at the size that `token_budget_size` gives it, with what belongs to it.

    Takes the place of `Resize`: changes `img`, `gt_bboxes`, `gt_masks`, `gt_seg_map` (and what
    `seg_fields` names), writes `img_shape`, `scale` and `scale_factor` (both width first, as mmcv
    does), `keep_ratio` and `homography_matrix`.

    `random`, the fields of `RandomTokens`, draws the budget of each sample; its `high_tokens` is
    `max_tokens` where not given. `results['token_cap']`, where present, is a further limit.

    With `min_tokens` a picture keeps its size within the limits: UniViTAR's `smart_resize`, whose
    own limits are 576 and 16384.

    `square=True` squashes every picture to the largest square of its budget: the control arm of a
    comparison, which differs in the aspect and in nothing else.

    `interpolation` is the antialiased filter of `resize_image` for the image: 'area' (the default),
    'bilinear', 'bicubic' or 'lanczos'. Masks and label maps are resized by nearest neighbour.
    """

    size_fields: ClassVar[tuple[str, ...]] = ('height', 'width')

    def __init__(
        self,
        max_tokens: int,
        *,
        patch_size: int = 16,
        min_tokens: int | None = None,
        random: dict[str, Any] | None = None,
        square: bool = False,
        interpolation: str = DEFAULT_FILTER,
        clip_object_border: bool = True,
    ) -> None:
        token_budget_size(  # refuses what is out of range, here and not at the first picture
            1, 1, patch_size=patch_size, max_tokens=max_tokens, min_tokens=min_tokens
        )
        if random is not None and min_tokens is not None:
            raise ValueError(
                'random and min_tokens exclude each other: random scales every picture to a drawn '
                'budget, min_tokens keeps native sizes'
            )
        if square and min_tokens is not None:
            raise ValueError(
                'square and min_tokens exclude each other: square squashes every picture to '
                'max_tokens, min_tokens keeps native sizes'
            )
        self.max_tokens = max_tokens
        self.patch_size = patch_size
        self.min_tokens = min_tokens
        self.random = None if random is None else RandomTokens.of(random, max_tokens)
        self.square = square
        self.interpolation = check_filter(type(self).__name__, interpolation)
        self.clip_object_border = clip_object_border

    def target_size(
        self,
        h: int,
        w: int,
        *,
        sample_seed: SampleSeed | None = None,
        token_cap: int | None = None,
    ) -> Size:
        """The size that a picture of `h` x `w` pixels gets, for a transform and a sampler alike."""
        budget, floor = self.max_tokens, self.min_tokens
        if self.random is not None:
            if sample_seed is None:
                raise ValueError(
                    "ResizeToTokenBudget(random=...) needs results['sample_seed'] = (seed, epoch, "
                    'index): use a data set with SeededSamples (NaViTCocoDataset, for one) and '
                    "sampler=dict(type='SeededSampler')"
                )
            budget = self.random.draw(SampleSeed(*sample_seed))
        if token_cap is not None:
            budget = min(budget, token_cap)
            floor = floor and min(floor, token_cap)
        if self.square:
            h = w = 1
        return token_budget_size(
            h, w, patch_size=self.patch_size, max_tokens=budget, min_tokens=floor
        )

    def num_tokens(self, h: int, w: int, *, sample_seed: SampleSeed | None = None) -> int:
        """The tokens that a picture of `h` x `w` pixels will have."""
        new_h, new_w = self.target_size(h, w, sample_seed=sample_seed)
        return new_h * new_w // self.patch_size**2

    scaled_size = target_size

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        check_annotated_size(results)
        size = self.target_size(
            *native_size(results),
            sample_seed=results.get('sample_seed'),
            token_cap=results.get('token_cap'),
        )
        return self.resized(results, size)

    def resized(self, results: dict[str, Any], size: Size) -> dict[str, Any]:
        """The sample at `size`, with what belongs to it."""
        (h, w), (new_h, new_w) = native_size(results), size
        reduction = results.pop(REDUCTION, None)
        extent = None if reduction is None else (h / reduction.factor, w / reduction.factor)
        results['img'] = resize_image(results['img'], size, self.interpolation, extent=extent)
        results['img_shape'] = (new_h, new_w)
        results['scale'] = (new_w, new_h)
        results['scale_factor'] = (new_w / w, new_h / h)
        results['keep_ratio'] = False  # the axes are scaled apart, by up to half a patch
        resize_annotations(results, clip_object_border=self.clip_object_border)
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(max_tokens={self.max_tokens}, patch_size={self.patch_size}, '
            f'min_tokens={self.min_tokens}, random={self.random}, '
            f'square={self.square}, interpolation={self.interpolation!r}, '
            f'clip_object_border={self.clip_object_border})'
        )


def resize_annotations(results: dict[str, Any], *, clip_object_border: bool) -> None:
    """Resize boxes, masks and label maps to `img_shape`, by `scale_factor` (width first)."""
    scale_w, scale_h = results['scale_factor']
    if results.get('gt_bboxes') is not None:
        results['gt_bboxes'] = _resized_boxes(results, clip_object_border)
    if results.get('gt_masks') is not None:
        results['gt_masks'] = _resized_masks(results['gt_masks'], results['img_shape'])
    for key in {'gt_seg_map', *results.get('seg_fields', ())}:
        if results.get(key) is not None:
            results[key] = resize_labels(results[key], results['img_shape'])
    step = np.array([[scale_w, 0, 0], [0, scale_h, 0], [0, 0, 1]], dtype=np.float32)
    before = results.get('homography_matrix')
    results['homography_matrix'] = step if before is None else step @ before


def _resized_boxes(results: dict[str, Any], clip_object_border: bool) -> Any:
    """Boxes of mmdet, which scale themselves, or an array [N, 4] as mmcv loads it."""
    boxes, (h, w) = results['gt_bboxes'], results['img_shape']
    if hasattr(boxes, 'rescale_'):
        boxes.rescale_(results['scale_factor'])
        if clip_object_border:
            boxes.clip_(results['img_shape'])
        return boxes
    boxes = boxes * np.tile(np.array(results['scale_factor'], dtype=boxes.dtype), 2)
    return boxes.clip(0, [w, h, w, h]) if clip_object_border else boxes


def _resized_masks(masks: Any, size: Size) -> Any:
    """Resize mmdet's masks: polygons scale themselves, bitmaps [N, h, w] by nearest neighbour."""
    bitmaps = masks.masks
    if not isinstance(bitmaps, np.ndarray):
        return masks.resize(size)
    resized = resize_labels(bitmaps.transpose(1, 2, 0), size).transpose(2, 0, 1)
    return type(masks)(np.ascontiguousarray(resized), *size)


@TRANSFORMS.register_module()
class AntialiasedResize(Resize):
    """mmcv's `Resize`, and mmdet's and mmseg's, with the filters of `ResizeToTokenBudget`.

    For stock pipelines: `dict(type='RandomResize', resize_type='AntialiasedResize', ...)`. Changes
    what belongs to the image as `ResizeToTokenBudget` does, and key points as mmcv does.
    """

    def __init__(self, *args: Any, interpolation: str = DEFAULT_FILTER, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.interpolation = check_filter(type(self).__name__, interpolation)

    def _resize_img(self, results: dict[str, Any]) -> None:
        (h, w), (new_w, new_h) = results['img'].shape[:2], results['scale']
        if self.keep_ratio:
            new_w, new_h = rescale_size((w, h), (new_w, new_h))
        results['img'] = resize_image(results['img'], (new_h, new_w), self.interpolation)
        results['img_shape'] = (new_h, new_w)
        results['scale_factor'] = (new_w / w, new_h / h)
        results['keep_ratio'] = self.keep_ratio

    def _resize_bboxes(self, results: dict[str, Any]) -> None:
        resize_annotations(results, clip_object_border=self.clip_object_border)

    def _resize_seg(self, results: dict[str, Any]) -> None:
        """Label maps are resized with the boxes."""


def check_annotated_size(results: dict[str, Any]) -> None:
    """Boxes and token counts rest on the size that the annotation states: it must be true."""
    annotated, loaded = (results.get('height'), results.get('width')), results.get('ori_shape')
    if None in annotated or loaded is None or tuple(loaded) == annotated:
        return
    advice = 'correct height and width in the annotation file, or replace the picture'
    if tuple(loaded) == annotated[::-1]:
        advice = (
            'the two are swapped, most likely by an EXIF rotation, which loading applies: annotate '
            "the picture as it is shown, or set color_type='color_ignore_orientation' in "
            'LoadImageFromFile'
        )
    raise BadSampleError(
        f'{results.get("img_path")}: the picture is {loaded[0]} x {loaded[1]} pixels (height x '
        f'width), its annotation says {annotated[0]} x {annotated[1]}: {advice}'
    )
