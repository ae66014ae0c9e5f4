"""A sample besides its data: the seed of its draws, the index that carries it, its faults.

Every random draw of a sample is a function of (seed, epoch, index) alone, so that results depend
neither on the number of workers nor on what was drawn before.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info


class BadSampleError(ValueError):
    """A sample whose data cannot be used; the message names its file and the reason."""


class UnreadableVideoError(ValueError):
    """A clip that cannot be read; the message names the file and the reason."""


def reason_of(file: str, error: Exception) -> str:
    """Return the message of an error on one line, without the file that a caller names itself."""
    text = str(error)
    if isinstance(error, OSError) and str(error.filename) == file and error.strerror:
        text = error.strerror
    return ' '.join(text.removeprefix(f'{file}: ').split()) or type(error).__name__


def with_file(file: str, error: Exception) -> str:
    """Return the message of an error on one line, which names its file once."""
    reason = reason_of(file, error)
    return reason if file in reason else f'{file}: {reason}'


class SampleSeed(NamedTuple):
    """The three numbers that decide every draw of one sample."""

    seed: int
    epoch: int
    index: int

    def words(self, purpose: str, count: int) -> tuple[int, ...]:
        """`count` numbers of 32 bits, at most 16: what the draws for one `purpose` start from."""
        text = f'{self.seed} {self.epoch} {self.index} {purpose}'
        digest = hashlib.blake2b(text.encode(), digest_size=4 * count).digest()
        return struct.unpack(f'<{count}I', digest)

    def generator(self, purpose: str) -> np.random.Generator:
        """A fresh generator for one `purpose`: equal arguments give equal draws, anywhere."""
        return np.random.default_rng(self.words(purpose, 4))


class SampleIndex(int):
    """A data set index that carries its `SampleSeed` through a loader and into its workers.

    It stays an `int`, so stock samplers and data sets take it. The wrappers of mmengine compute the
    index of the inner data set with `-` and `%`; the seed stays that of the outer index, so that
    the repeats of a repeated data set draw anew.
    """

    sample_seed: SampleSeed

    def __new__(cls, value: int, sample_seed: SampleSeed | tuple[int, int, int]) -> SampleIndex:
        self = super().__new__(cls, value)
        self.sample_seed = SampleSeed(*sample_seed)
        return self

    def __getnewargs__(self) -> tuple[int, SampleSeed]:  # what pickle and copy hand to __new__
        return int(self), self.sample_seed

    def __add__(self, other: int) -> SampleIndex:
        return SampleIndex(int(self) + other, self.sample_seed)

    def __sub__(self, other: int) -> SampleIndex:
        return SampleIndex(int(self) - other, self.sample_seed)

    def __mod__(self, other: int) -> SampleIndex:
        return SampleIndex(int(self) % other, self.sample_seed)


_within: ContextVar[bool] = ContextVar('within seeded', default=False)


@contextmanager
def seeded(sample_seed: SampleSeed, purpose: str = 'global state') -> Iterator[None]:
    """Seed numpy, random and torch from `sample_seed`; put their states back at the end.

    For stock transforms, which draw from global state. Device generators are left alone: no
    transform draws from them. In a worker of a loader the outermost puts nothing back: nobody else
    draws there, and numpy takes longer for it than for many a transform.
    """
    kept = None
    if _within.get() or get_worker_info() is None:
        kept = np.random.get_state(), random.getstate(), torch.get_rng_state()
    for_numpy, for_random, for_torch = sample_seed.words(purpose, 3)
    np.random.seed(for_numpy)
    random.seed(for_random)
    # torch.manual_seed would seed the devices too, and in a forked worker must not
    torch.default_generator.manual_seed(for_torch)
    outer = _within.set(True)
    try:
        yield
    finally:
        _within.reset(outer)
        if kept is not None:
            np.random.set_state(kept[0])
            random.setstate(kept[1])
            torch.set_rng_state(kept[2])
