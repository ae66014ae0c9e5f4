"""A sampler whose indices carry (seed, epoch, index) to the data set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized
from typing import Any

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

    `repeats` takes each example so many times in a row, each time with draws of its own: repeated
    augmentation (Hoffer et al. 2020). An epoch is then as many times as long.
    """

    def __init__(
        self,
        dataset: Sized,
        *,
        shuffle: bool = True,
        seed: int | None = None,
        round_up: bool = True,
        repeats: int = 1,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError(
                f'{type(dataset).__name__} is empty, nothing to sample: check its ann_file and '
                'data_root, and whether filter_cfg leaves anything'
            )
        if repeats < 1:
            raise ValueError(f'repeats={repeats} must be at least 1')
        self.dataset, self.repeats = dataset, repeats
        self.shuffle = shuffle
        self.seed = sync_random_seed() if seed is None else seed
        self.round_up = round_up
        self.epoch = 0
        self.rank, self.world_size = get_dist_info()
        self._skipped = 0

    @property
    def num_draws(self) -> int:
        """Of one epoch, all ranks together."""
        return len(self.dataset) * self.repeats

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next iteration: the pass over the data, counted from 0."""
        self.epoch = epoch

    def order(self, epoch: int, *, seed: int | None = None) -> list[int]:
        """The draws of one epoch, all ranks together: index times `repeats` plus which repeat."""
        indices = np.arange(len(self.dataset))
        if self.shuffle:
            seed = self.seed if seed is None else seed
            indices = np.random.default_rng([seed, epoch]).permutation(len(indices))
        draws = indices[:, None] * self.repeats + np.arange(self.repeats)
        order: list[int] = draws.flatten().tolist()
        return order

    def sample_index(self, epoch: int, draw: int, *, seed: int | None = None) -> SampleIndex:
        """What the data set is asked for by a draw of an epoch."""
        seed = self.seed if seed is None else seed
        return SampleIndex(draw // self.repeats, SampleSeed(seed, epoch, draw))

    def state_dict(self) -> dict[str, Any]:
        """What it takes to issue the epoch under way again, from its start."""
        return {
            'seed': self.seed,
            'epoch': self.epoch,
            'shuffle': self.shuffle,
            'num_samples': self.num_draws,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the saved seed and epoch; refuses the state of other data."""
        own = self.state_dict()
        if set(state) != set(own):
            raise ValueError(
                f'the saved sampler has the fields {sorted(state)}, not {sorted(own)}: the state '
                'is damaged or of another sampler'
            )
        for name in ('shuffle', 'num_samples'):
            if state[name] != own[name]:
                raise ValueError(
                    f'the saved sampler has {name}={state[name]}, this one {own[name]}: resume '
                    'with the data set and sampler of the run, or start anew from its weights '
                    '(load_from)'
                )
        self.seed, self.epoch = state['seed'], state['epoch']

    def skip_samples(self, num: int) -> None:
        """Leave out the first `num` indices of this rank in the next iteration, and only there."""
        if not 0 <= num <= len(self):
            raise ValueError(f'cannot skip {num} of the {len(self)} samples of an epoch')
        self._skipped = num

    def __iter__(self) -> Iterator[SampleIndex]:
        epoch, order = self.epoch, self.order(self.epoch)
        if self.round_up:
            total = len(self) * self.world_size
            order = (order * math.ceil(total / len(order)))[:total]
        share = order[self.rank :: self.world_size][self._skipped :]
        self._skipped = 0
        return iter([self.sample_index(epoch, draw) for draw in share])

    def __len__(self) -> int:
        if self.round_up:
            return math.ceil(self.num_draws / self.world_size)
        return math.ceil((self.num_draws - self.rank) / self.world_size)
