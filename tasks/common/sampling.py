"""A sampler whose indices carry (seed, epoch, index) to the data set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from .sample import SampleIndex, SampleSeed


@DATA_SAMPLERS.register_module()
class SeededSampler(Sampler[SampleIndex]):
    """Each index of the data set once an epoch, shared out over the ranks, with its seed.

    `seed` is the runner's where the config gives none, and one for all ranks where neither does.
    The epoch comes from mmengine's loops through `set_epoch`. With `round_up` every rank gets
    equally many indices, the first ones of the epoch repeated where they do not divide evenly.
    """

    def __init__(
        self,
        dataset: Sized,
        *,
        shuffle: bool = True,
        seed: int | None = None,
        round_up: bool = True,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError(
                f'{type(dataset).__name__} is empty, nothing to sample: check its ann_file and '
                'data_root, and whether filter_cfg leaves anything'
            )
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed = sync_random_seed() if seed is None else seed
        self.round_up = round_up
        self.epoch = 0
        self.rank, self.world_size = get_dist_info()

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next iteration: the pass over the data, counted from 0."""
        self.epoch = epoch

    def order(self, epoch: int) -> list[int]:
        """The indices of one epoch, all ranks together."""
        count = len(self.dataset)
        if not self.shuffle:
            return list(range(count))
        return np.random.default_rng([self.seed, epoch]).permutation(count).tolist()

    def __iter__(self) -> Iterator[SampleIndex]:
        epoch, order = self.epoch, self.order(self.epoch)
        if self.round_up:
            total = len(self) * self.world_size
            order = (order * math.ceil(total / len(order)))[:total]
        share = order[self.rank :: self.world_size]
        return iter([SampleIndex(i, SampleSeed(self.seed, epoch, i)) for i in share])

    def __len__(self) -> int:
        if self.round_up:
            return math.ceil(len(self.dataset) / self.world_size)
        return math.ceil((len(self.dataset) - self.rank) / self.world_size)
