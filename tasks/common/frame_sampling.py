"""Which frames of a clip are seen: pure arithmetic on counts and times."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

_TOLERANCE = 1e-6  # of a frame: times of files are floats


@dataclass(frozen=True, kw_only=True)
class FrameSampling:
    """How frames are chosen; a clip shorter than asked for gives fewer, and none twice.

    ``uniform``  `num_frames` over the whole clip: one of each of as many equal parts (TSN).
    ``strided``  `num_frames`, each `interval` frames after the one before (SlowFast's "32 x 2").
    ``dense``    `num_frames` evenly in a window of `window` frames (I3D, TSM).
    ``fps``      `fps` frames a second by the clip's own times, at most the clip's own rate and
                 `num_frames` in all: clips of different length give different numbers.

    In training a draw decides which frame of each part, or where the window begins; in testing it
    is the middle one, or with several clips evenly spread ones.
    """

    kind: Literal['uniform', 'strided', 'dense', 'fps'] = 'uniform'
    num_frames: int
    interval: int | None = None
    window: int | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        needed = {'uniform': None, 'strided': 'interval', 'dense': 'window', 'fps': 'fps'}
        if self.kind not in needed:
            raise ValueError(f'sampling: kind={self.kind!r}, choose from {list(needed)}')
        for name in ('num_frames', 'interval', 'window', 'fps'):
            value = getattr(self, name)
            wanted = name in ('num_frames', needed[self.kind])
            if wanted and (value is None or value <= 0):
                raise ValueError(f'sampling: {self.kind!r} needs {name} above 0, got {value}')
            if not wanted and value is not None:
                raise ValueError(f'sampling: {name}={value} has no effect on {self.kind!r}')
        if self.window is not None and self.window < self.num_frames:
            raise ValueError(
                f'sampling: window={self.window} holds no num_frames={self.num_frames} frames'
            )

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> FrameSampling:
        """From the fields in a config."""
        unknown = set(fields) - set(cls.__dataclass_fields__)
        if unknown or 'num_frames' not in fields:
            raise ValueError(
                f'sampling takes {list(cls.__dataclass_fields__)}, of which num_frames must be '
                f'given: got {dict(fields)}'
            )
        return cls(**fields)

    def step(self, fps: float) -> float:
        """Frames of the clip from one chosen frame to the next; of 'uniform' that depends on it."""
        if self.kind == 'strided':
            return float(self.interval or 1)
        if self.kind == 'dense':
            return float(self.window or 1) / self.num_frames
        return max(fps / (self.fps or fps), 1.0)

    def count(self, frames: int, fps: float) -> int:
        """How many frames a clip of `frames` frames at `fps` a second gives: at least 1."""
        if self.kind == 'uniform':
            return min(self.num_frames, frames)
        there = 1 + math.floor((frames - 1) / self.step(fps) + _TOLERANCE)
        return min(self.num_frames, there)

    def indices(
        self,
        count: int,
        times: np.ndarray,
        fps: float,
        *,
        num_clips: int = 1,
        generator: np.random.Generator | None = None,
    ) -> np.ndarray:
        """`count` frames of each of `num_clips` views [num_clips, count], by the `times` of all.

        With a `generator` at random, without one evenly.
        """
        if self.kind == 'uniform':
            return self._parts(count, len(times), num_clips, generator)
        if generator is None:
            shares = (np.arange(num_clips) + 0.5) / num_clips
        else:
            shares = generator.random(num_clips)
        if self.kind == 'fps':
            return self._by_time(count, times, min(self.fps or fps, fps), shares)
        step = self.step(fps)
        free = max(len(times) - 1 - math.floor((count - 1) * step), 0)  # starts beside the first
        starts = np.minimum(np.floor(shares * (free + 1)), free).astype(np.int64)
        offsets = np.floor(np.arange(count) * step + _TOLERANCE).astype(np.int64)
        return np.minimum(starts[:, None] + offsets, len(times) - 1)

    def _parts(
        self, count: int, frames: int, num_clips: int, generator: np.random.Generator | None
    ) -> np.ndarray:
        shape = (num_clips, count)
        if generator is None:  # in each part the views divide it evenly
            within = np.broadcast_to(((np.arange(num_clips) + 0.5) / num_clips)[:, None], shape)
        else:
            within = generator.random(shape)
        places = (np.arange(count) + within) * frames / count
        return np.clip(np.floor(places).astype(np.int64), 0, frames - 1)

    def _by_time(
        self, count: int, times: np.ndarray, rate: float, shares: np.ndarray
    ) -> np.ndarray:
        """Return the frames shown at even moments; none twice, so neighbours of a long one."""
        starts = shares * max(float(times[-1]) - (count - 1) / rate, 0.0)
        moments = starts[:, None] + np.arange(count) / rate
        shown = np.searchsorted(times, moments + _TOLERANCE, side='right') - 1
        return _strictly_rising(shown, len(times))


def _strictly_rising(indices: np.ndarray, length: int) -> np.ndarray:
    """Return the strictly rising rows [rows, count] below `length` nearest to rows that rise.

    Indices rise strictly where index minus place never falls. The mean of the highest value up to
    each place and the lowest from there on never falls, and has the smallest largest change.
    """
    count = indices.shape[1]
    free = indices - np.arange(count)
    highest = np.maximum.accumulate(free, axis=1)
    lowest = np.minimum.accumulate(free[:, ::-1], axis=1)[:, ::-1]
    return np.clip((highest + lowest) // 2, 0, length - count) + np.arange(count)
