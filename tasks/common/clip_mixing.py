"""Mixup and CutMix for clips of any size: the partner is brought to a clip's own size first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .clip_sample import ClipDataSample
from .resampling import DEFAULT_FILTER, check_filter, resize_frames
from .sample import SampleSeed


@dataclass(frozen=True, kw_only=True)
class ClipMixing:
    """Mixes clips of a batch in pairs with probability `prob`, their `gt_score` in the same shares.

    Mixup (Zhang et al. 2018) averages with a share drawn from Beta(mixup, mixup); CutMix (Yun et
    al. 2019) puts a box of whole patches of the partner in the place of the clip's, over all its
    time, and counts classes by the share of patches. 0 leaves one out; where both are on, `switch`
    is the share of CutMix. `interpolation` is the filter of `resize_image` for partners.

    Unlike all other draws, these depend on the batch: a clip's partner is another one of the same
    batch and rank, and the draws are seeded by the first clip of the batch.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    prob: float = 1.0
    switch: float = 0.5
    interpolation: str = DEFAULT_FILTER

    def __post_init__(self) -> None:
        check_filter('mixing', self.interpolation)
        if min(self.mixup, self.cutmix) < 0 or self.mixup + self.cutmix == 0:
            raise ValueError(
                f'mixing: mixup={self.mixup} and cutmix={self.cutmix} are at least 0, and one of '
                'them is above'
            )
        for name in ('prob', 'switch'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'mixing: {name}={getattr(self, name)} must lie in [0, 1]')

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> ClipMixing:
        """From the fields in a config."""
        if unknown := set(fields) - set(cls.__dataclass_fields__):
            raise ValueError(
                f'mixing takes {list(cls.__dataclass_fields__)}, not {sorted(unknown)}'
            )
        return cls(**fields)

    def __call__(
        self, clips: Sequence[Tensor], samples: Sequence[ClipDataSample], cell: int
    ) -> list[Tensor]:
        """The mixed clips [views, C, frames, h, w] uint8; the samples' `gt_score` changes."""
        if len(clips) < 2:
            return list(clips)
        draws = SampleSeed(*samples[0].sample_seed).generator('mixing')
        partners = _derangement(len(clips), draws)
        scores = [sample.gt_score for sample in samples]
        mixed = []
        for i, clip in enumerate(clips):
            if draws.random() >= self.prob:
                mixed.append(clip)
                continue
            partner = fitted(clips[partners[i]], clip.shape[2:], self.interpolation)
            cut = self.cutmix > 0 and (self.mixup == 0 or draws.random() < self.switch)
            share = float(draws.beta(*[self.cutmix if cut else self.mixup] * 2))
            if cut:
                clip, share = cut_in(clip, partner, share, cell, draws)
            else:
                clip = torch.lerp(partner.float(), clip.float(), share).round().to(torch.uint8)
            mixed.append(clip)
            samples[i].gt_score = torch.lerp(scores[partners[i]], scores[i], share)
        return mixed


def fitted(clip: Tensor, size: Sequence[int], interpolation: str = DEFAULT_FILTER) -> Tensor:
    """Resize a clip [views, C, frames, h, w] uint8 to (frames, height, width).

    Frames are spread evenly over time; each is resized by `resize_image`.
    """
    frames, h, w = size
    if tuple(clip.shape[2:]) == tuple(size):
        return clip
    chosen = torch.linspace(0, clip.shape[2] - 1, frames).round().long()
    flat = clip[:, :, chosen].permute(0, 2, 3, 4, 1).flatten(0, 1)  # [views * frames, h, w, C]
    scaled = torch.from_numpy(resize_frames(flat.numpy(), (h, w), interpolation))
    return scaled.unflatten(0, (len(clip), frames)).permute(0, 4, 1, 2, 3)


def cut_in(
    clip: Tensor, partner: Tensor, share: float, cell: int, draws: np.random.Generator
) -> tuple[Tensor, float]:
    """The clip with a box of its partner in it, and the share of patches that stayed its own."""
    rows, cols = clip.shape[-2] // cell, clip.shape[-1] // cell
    side = (1 - share) ** 0.5
    height, width = round(rows * side), round(cols * side)
    top = int(draws.integers(rows - height + 1))
    left = int(draws.integers(cols - width + 1))
    box = (
        ...,
        slice(top * cell, (top + height) * cell),
        slice(left * cell, (left + width) * cell),
    )
    clip = clip.clone()
    clip[box] = partner[box]
    return clip, 1 - height * width / (rows * cols)


def _derangement(count: int, draws: np.random.Generator) -> list[int]:
    """A partner for each, never itself: the next one of a random circle."""
    circle = draws.permutation(count).tolist()
    following = dict(zip(circle, circle[1:] + circle[:1], strict=True))
    return [following[i] for i in range(count)]
