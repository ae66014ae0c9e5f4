"""The frames and the size of a clip from its token budget: the one place that decides both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from navit_backbone.packing import PatchShape
from navit_backbone.vit import patch_shapes

from .counts import require_count
from .dataset import file_of
from .frame_sampling import FrameSampling
from .random_tokens import RandomTokens
from .resampling import DEFAULT_FILTER, Size, check_filter, resize_frames
from .resize import token_budget_size
from .sample import BadSampleError, SampleSeed
from .token_dropping import TokenDropping, kept_tokens


def cell_of(shapes: Sequence[PatchShape]) -> int:
    """The side in pixels that patches of all `shapes` divide."""
    return math.lcm(*(side for _, *sides in shapes for side in sides))


class ClipPlan(NamedTuple):
    """What will be seen of a clip: how many frames, and at which (height, width)."""

    num_frames: int
    size: Size


@TRANSFORMS.register_module()
class ClipToTokenBudget(BaseTransform):
    """Choose the frames of a clip and their size, so that it has at most `max_tokens` tokens.

    `sampling`, the fields of `FrameSampling`, says which frames are wanted. `patch_size` is the
    model's: a side in pixels, a (t, h, w) tubelet, or a list of these, whose tokens add up. Frames
    are scaled to the largest size of their aspect whose tokens, over all time steps, are within the
    budget, in whole cells: a cell is as high and wide as the patch (of several the least common
    multiple). That is where frames are traded against size: where a frame would get fewer than
    `min_cells`, there are fewer frames; and more than `max_cells` a frame never has. Fewer
    'uniform' frames still span the clip, others span less of it.

    With `min_tokens` clips keep their size, and only those of fewer tokens, or of more than
    `max_tokens`, are scaled: UniViTAR's `smart_resize`, where the time steps of a clip share both
    limits (its code has 576 and 16384). With `native`, the same without the lower limit, a clip is
    scaled up only as far as its short side lacks a cell. `random`, the fields of `RandomTokens`,
    draws the budget of each clip; `drop`, the fields of `TokenDropping`, the share of its tokens
    that is dropped. How many tokens of each patch shape stay is decided here, as `kept_tokens`, for
    the sampler and `pack_clips` alike. `square=True` squashes it to squares, the control arm of a
    comparison. A picture is a clip of one frame and needs no other transform.

    Draws come from `sample_seed`; with `test_mode` frames are spread evenly. `num_clips` views are
    taken in time, and with `crops=3` three squares of the short side along the long one of each;
    every view may have `max_tokens`. Writes `frame_inds` [views in time, frames], `img_shape`,
    `patch_shapes` and `num_views`; `LoadFrames` reads them.
    """

    size_fields: ClassVar[tuple[str, ...]] = ('height', 'width', 'num_frames', 'fps')

    def __init__(
        self,
        max_tokens: int,
        *,
        sampling: dict[str, Any] | None = None,
        patch_size: int | PatchShape | Sequence[int | PatchShape] = 16,
        min_cells: int = 1,
        max_cells: int | None = None,
        min_tokens: int | None = None,
        native: bool = False,
        random: dict[str, Any] | None = None,
        drop: dict[str, Any] | None = None,
        square: bool = False,
        num_clips: int = 1,
        crops: int = 1,
        test_mode: bool = False,
    ) -> None:
        at_least_1 = dict(max_tokens=max_tokens, num_clips=num_clips, min_cells=min_cells)
        for name, value in at_least_1.items():
            require_count(f'ClipToTokenBudget: {name}', value)
        self.patch_shapes = patch_shapes(patch_size)
        self.cell = cell_of(self.patch_shapes)
        self.patch_size = self.cell
        if max_cells is not None and max_cells < min_cells:
            raise ValueError(
                f'ClipToTokenBudget: max_cells={max_cells} is below min_cells={min_cells}'
            )
        if self._cost(1) * min_cells > max_tokens:
            raise ValueError(
                f'ClipToTokenBudget: one frame of min_cells={min_cells} has '
                f'{self._cost(1) * min_cells} tokens, above max_tokens={max_tokens}'
            )
        if crops not in (1, 3):
            raise ValueError(f'ClipToTokenBudget: crops={crops}; 1 is the whole frame, or 3')
        if not test_mode and (num_clips, crops) != (1, 1):
            raise ValueError(
                f'ClipToTokenBudget: num_clips={num_clips} and crops={crops} are views of an '
                'evaluation: set test_mode=True'
            )
        if test_mode and drop is not None:
            raise ValueError('ClipToTokenBudget: drop with test_mode: an evaluation drops nothing')
        if native and square:
            raise ValueError('ClipToTokenBudget: native and square exclude each other')
        if min_tokens is not None and (native or square):
            raise ValueError(
                f'ClipToTokenBudget: min_tokens={min_tokens} keeps native sizes: leave out '
                f'{"native, which is min_tokens=1" if native else "square, which squashes all"}'
            )
        if min_tokens is not None and not 1 <= min_tokens <= max_tokens:
            raise ValueError(
                f'ClipToTokenBudget: min_tokens={min_tokens} must lie between 1 and '
                f'max_tokens={max_tokens}'
            )
        self.sampling = FrameSampling.of(sampling or dict(num_frames=1))
        self.max_tokens, self.min_cells = max_tokens, min_cells
        self.max_cells = max_cells or max_tokens
        self.native, self.square = native, square
        self.min_tokens = 1 if native else min_tokens
        self.random = None if random is None else RandomTokens.of(random, max_tokens)
        self.drop = None if drop is None else TokenDropping.of(drop)
        self.num_clips, self.crops, self.test_mode = num_clips, crops, test_mode
        self.num_views = num_clips * crops

    def plan(
        self,
        h: int,
        w: int,
        frames: int,
        fps: float,
        *,
        sample_seed: SampleSeed | None = None,
        token_cap: int | None = None,
    ) -> ClipPlan:
        """Plan the frames and the size of a clip of `frames` frames of `h` x `w` pixels.

        With `token_cap` a view keeps at most so many tokens after dropping.
        """
        budget = self._budget(sample_seed)
        if token_cap is None:
            return self._plan(h, w, frames, fps, budget)
        rate = self._drop_rate(sample_seed)
        if rate < 1:  # more would stay than the cap, whatever the rounding
            budget = min(budget, int((token_cap + len(self.patch_shapes)) / (1 - rate)) + 1)
        plan = self._plan(h, w, frames, fps, budget)
        while budget > 1 and sum(self._kept(plan, rate)) > token_cap:
            budget -= 1
            plan = self._plan(h, w, frames, fps, budget)
        return plan

    def _plan(self, h: int, w: int, frames: int, fps: float, budget: int) -> ClipPlan:
        count = self.sampling.count(frames, fps)
        while count > 1 and budget // self._cost(count) < self.min_cells:
            count -= 1
        cost = self._cost(count)
        limit = max(min(budget, self.max_cells * cost), cost)  # a cell at least
        if self.square or self.crops == 3:
            h = w = 1 if self.min_tokens is None else min(h, w)
        size = token_budget_size(
            h,
            w,
            patch_size=self.cell,
            max_tokens=limit,
            min_tokens=self.min_tokens and min(self.min_tokens, limit),
            steps=cost,
        )
        return ClipPlan(count, size)

    def _kept(self, plan: ClipPlan, rate: float) -> list[int]:
        """Return how many tokens of each patch shape are kept of a view."""
        count, (h, w) = plan
        return [
            kept_tokens(-(-count // t) * (h // p) * (w // q), rate) for t, p, q in self.patch_shapes
        ]

    def _drop_rate(self, sample_seed: SampleSeed | None) -> float:
        return 0.0 if self.drop is None else self.drop.draw(_known(sample_seed))

    def _cost(self, frames: int) -> int:
        """The tokens of so many frames of one cell."""
        return sum(
            -(-frames // t) * (self.cell // h) * (self.cell // w) for t, h, w in self.patch_shapes
        )

    def target_size(self, *size: Any, sample_seed: SampleSeed | None = None) -> Size:
        """The (height, width) of the frames of a clip of these `size_fields`."""
        return self.plan(*size, sample_seed=sample_seed).size

    def num_tokens(self, *size: Any, sample_seed: SampleSeed | None = None) -> int:
        """Return the tokens that each view of a clip of these `size_fields` will have."""
        plan = self.plan(*size, sample_seed=sample_seed)
        return sum(self._kept(plan, self._drop_rate(sample_seed)))

    def _budget(self, sample_seed: SampleSeed | None) -> int:
        if self.random is None:
            return self.max_tokens
        return self.random.draw(_known(sample_seed))

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        seed = results.get('sample_seed')
        count, size = self.plan(
            *results['measured'], sample_seed=seed, token_cap=results.get('token_cap')
        )
        generator = None
        if not self.test_mode:
            generator = _known(seed).generator('frames')
        results['frame_inds'] = self.sampling.indices(
            min(count, len(results['reader'].times)),
            results['reader'].times,
            results['measured'][3],
            num_clips=self.num_clips,
            generator=generator,
        )
        if self.drop is not None:
            seen = ClipPlan(results['frame_inds'].shape[1], size)
            results['kept_tokens'] = tuple(self._kept(seen, self._drop_rate(seed)))
        results['img_shape'] = size
        results['patch_shapes'] = self.patch_shapes
        results['crops'] = self.crops
        results['num_views'] = self.num_views
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(max_tokens={self.max_tokens}, sampling={self.sampling}, '
            f'patch_size={self.patch_shapes}, min_cells={self.min_cells}, '
            f'max_cells={self.max_cells}, min_tokens={self.min_tokens}, '
            f'native={self.native}, random={self.random}, drop={self.drop}, square={self.square}, '
            f'num_clips={self.num_clips}, crops={self.crops}, test_mode={self.test_mode})'
        )


@TRANSFORMS.register_module()
class LoadFrames(BaseTransform):
    """Decode the frames that `ClipToTokenBudget` chose, at the size that it chose.

    Writes `imgs` [views, frames, h, w, 3] RGB uint8 and closes the reader. `interpolation` is the
    antialiased filter of `resize_image`: 'area' (the default), 'bilinear', 'bicubic' or 'lanczos'.
    """

    def __init__(self, *, interpolation: str = DEFAULT_FILTER) -> None:
        self.interpolation = check_filter(type(self).__name__, interpolation)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        reader, chosen = results.pop('reader'), results['frame_inds']
        frames = reader.read(chosen.flatten())
        (h, w), stated = frames.shape[1:3], results['measured'][:2]
        if (h, w) != tuple(stated):
            raise BadSampleError(
                f'{file_of(results)}: its frames are {h} x {w} pixels (height x width), the list '
                f'says {stated[0]} x {stated[1]}: correct the list'
            )
        h, w = size = results['img_shape']
        if results['crops'] == 3:
            size = _cover(frames.shape[1:3], h)
        frames = resize_frames(frames, size, self.interpolation)
        views = frames.reshape(*chosen.shape, *frames.shape[1:])
        if results['crops'] == 3:
            views = np.stack(
                [
                    views[:, :, top : top + h, left : left + w]
                    for top, left in _three_corners(size, (h, w))
                ],
                1,
            ).reshape(-1, chosen.shape[1], h, w, 3)
        results['imgs'] = views
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(interpolation={self.interpolation!r})'


def _known(sample_seed: SampleSeed | None) -> SampleSeed:
    if sample_seed is None:
        raise ValueError(
            "ClipToTokenBudget draws from results['sample_seed'] = (seed, epoch, index): use "
            'NaViTClipDataset, or another with SeededSamples, and '
            "sampler=dict(type='SeededSampler')"
        )
    return SampleSeed(*sample_seed)


def _cover(size: Size, short: int) -> Size:
    """The size whose short side is `short`, of the same aspect."""
    h, w = size
    scale = short / min(h, w)
    return (
        (short, max(short, round(w * scale))) if h <= w else (max(short, round(h * scale)), short)
    )


def _three_corners(size: Size, crop: Size) -> list[Size]:
    """The upper left corners of three crops along the long side: both ends and the middle."""
    free = (size[0] - crop[0], size[1] - crop[1])
    return [(free[0] * part // 2, free[1] * part // 2) for part in range(3)]
