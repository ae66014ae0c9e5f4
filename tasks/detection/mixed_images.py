"""Mosaic, mixup and the like, which join several pictures, with every draw seeded."""

from __future__ import annotations

import copy
from typing import Any

from mmdet.datasets import MultiImageMixDataset
from mmengine.registry import DATASETS

from ..common.resize import find_planner
from ..common.sample import SampleIndex, SampleSeed, seeded


@DATASETS.register_module()
class SeededMultiImageMixDataset(MultiImageMixDataset):
    """mmdet's `MultiImageMixDataset`, whose draws depend on (seed, epoch, index) alone.

    mmdet's draws the pictures to join from global state, and asks for them by plain numbers. Here
    that state is seeded for each sample, and the pictures joined to it draw anew each time. Put the
    transform that decides sizes (`ResizeToTokenBudget`) after the joining ones; a joined picture
    counts as the most tokens that it allows. mmdet's joining transforms shrink without
    antialiasing: where images are larger than their `img_scale`, resize them in the pipeline of the
    inner data set, by `AntialiasedResize(keep_ratio=True)`. Transforms with a cache
    (`CachedMosaic`) remember what their worker saw, which no seed can change.
    """

    def __getitem__(self, index: int) -> dict[str, Any]:
        carried = isinstance(index, SampleIndex)
        seed = index.sample_seed if carried else SampleSeed(0, 0, int(index))
        mixed = copy.copy(self)
        mixed.dataset = _Partners(self.dataset, seed)
        with seeded(seed, 'joined pictures'):
            results: dict[str, Any] = super(SeededMultiImageMixDataset, mixed).__getitem__(index)
        return results

    @property
    def max_tokens(self) -> int | None:
        """The most that a sample can have; None where no transform plans its size."""
        planner = find_planner(self.pipeline)
        return None if planner is None else planner.max_tokens

    def num_tokens(self, index: int) -> int | None:
        """No sample has more; what joining leaves of the sizes is not known beforehand."""
        return self.max_tokens

    def target_size(self, index: int) -> None:
        """Not known beforehand."""

    def complete_sizes(self) -> None:
        """Sizes of the files decide nothing."""


class _Partners:
    """The pictures that one sample may be joined with: plain numbers get seeds of this sample."""

    def __init__(self, dataset: Any, seed: SampleSeed) -> None:
        self.dataset = dataset
        self._draws = seed.generator('seeds of joined pictures')
        self._epoch = seed.epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not isinstance(index, SampleIndex):
            draw = int(self._draws.integers(2**63))
            index = SampleIndex(index, SampleSeed(draw, self._epoch, int(index)))
        return self.dataset[index]
