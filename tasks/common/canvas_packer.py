"""Choose images of like shape for a batch, so that they cover its canvas.

A batch is padded to one canvas: as high as its highest image and as wide as its widest, both
rounded up to a divisor. Neck and head compute all of it, padding included. So the images of a batch
are chosen from a pool of waiting ones, to cover as much of their canvas as possible.

    for key, length, size in examples:
        if row := packer.push(key, length, size):
            yield row
    yield from packer.flush()

Every row holds the oldest example. As the pool is full whenever a row leaves, an example that finds
i others waiting leaves with the (i + 1)-th row from then at the latest: nothing starves.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from navit_backbone.packer import Key, Packer, Pool
from navit_backbone.packing import Size


class CanvasPacker(Pool[Key]):
    """Packer of (key, length, size) into rows whose images cover their common canvas.

    A row holds at most `budget` tokens (None: any number) and `max_examples` examples. With a
    budget it is full up to `slack` tokens, or, where no row with the oldest example can be, has at
    most `slack` fewer than the fullest; without one it holds `max_examples`. Of such rows the one
    leaves whose images cover the largest share of their canvas, among those that take, for some
    canvas, the largest images that fit it.
    """

    _limits = ('budget', 'pool_size', 'max_examples', 'slack', 'divisor')
    max_examples: int

    def __init__(
        self,
        budget: int | None,
        *,
        pool_size: int,
        max_examples: int,
        slack: int = 0,
        divisor: int = 32,
    ) -> None:
        super().__init__(budget, pool_size=pool_size, max_examples=max_examples, slack=slack)
        if divisor < 1:
            raise ValueError(f'divisor must be at least 1, got {divisor}')
        self.divisor = divisor

    def push(self, key: Key, length: int, size: Size) -> list[tuple[Key, int, Size]] | None:
        """Add an example of `size` (height, width) in pixels; return a row if the pool is full."""
        self.waiting.append(self._checked(key, length, size))
        return self._take() if len(self.waiting) == self.pool_size else None

    def _checked(self, key: Any, length: int, size: Size = (0, 0)) -> tuple[Any, ...]:
        h, w = (int(side) for side in size)
        if min(h, w) < 1:
            raise ValueError(f'example {key!r} has {h} x {w} pixels: each side must be at least 1')
        return *super()._checked(key, length), (h, w)

    def _take(self) -> list[tuple[Any, ...]]:
        """Take the best row out of the pool."""
        taken = self._best_row()
        row = [self.waiting[i] for i in taken]
        for i in reversed(taken):
            del self.waiting[i]
        return row

    def _best_row(self) -> list[int]:
        """Return the places of the best row in the pool, the oldest first."""
        sizes = np.array([size for _, _, size in self.waiting])
        lengths = np.array([length for _, length, _ in self.waiting])
        areas = sizes.prod(axis=1)
        order = np.argsort(-areas, kind='stable')
        order = np.concatenate([[0], order[order != 0]])  # the oldest, then the largest first
        sides = -(-sizes[order] // self.divisor) * self.divisor
        canvases = _canvases(sides, least=sides[0])
        fits: np.ndarray = np.all(sides <= canvases[:, None], axis=2)  # [canvases, examples]
        rows = _filled(fits, lengths[order], self.budget, self.max_examples)
        counts, tokens = rows.sum(axis=1), rows @ lengths[order]
        if self.budget is None:
            enough = counts == counts.max()
        elif (tokens >= self.budget - self.slack).any():
            enough = tokens >= self.budget - self.slack
        else:
            fullest = self._fullest_row()
            most = sum(self.waiting[i][1] for i in fullest)
            enough = tokens >= most - self.slack
            if most >= self.budget - self.slack or not enough.any():
                return fullest
        share = (rows @ areas[order]) / (counts * canvases.prod(axis=1))
        best = np.argmax(np.where(enough, share, -1.0))
        return sorted(order[rows[best]].tolist())

    def _fullest_row(self) -> list[int]:
        """Return the places of the fullest row with the oldest, whatever its canvas."""
        assert self.budget is not None
        packer: Packer[int] = Packer(
            self.budget,
            pool_size=len(self.waiting),
            max_examples=self.max_examples,
            slack=self.slack,
        )
        for place, (_, length, _) in enumerate(self.waiting):
            if row := packer.push(place, length):
                return [place for place, _ in row]
        raise AssertionError('a full pool gives a row')


def _canvases(sides: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Return [canvases, 2]: all heights by all widths of `sides` [N, 2] from `least` on."""
    heights, widths = (np.unique(sides[:, i][sides[:, i] >= least[i]]) for i in range(2))
    return np.stack(np.meshgrid(heights, widths, indexing='ij'), axis=-1).reshape(-1, 2)


def _filled(
    fits: np.ndarray, lengths: np.ndarray, budget: int | None, max_examples: int
) -> np.ndarray:
    """Fill each canvas in order with the examples that fit: [canvases, examples] bool."""
    rows, left = np.zeros_like(fits), fits
    room: np.ndarray = np.full(len(fits), np.iinfo(np.int64).max if budget is None else budget)
    places: np.ndarray = np.full(len(fits), max_examples)
    while True:
        # take the longest run from the front that has room; then look for smaller ones behind it
        open_ = left & (lengths <= room[:, None]) & (places > 0)[:, None]
        run = open_ & (np.cumsum(open_ * lengths, axis=1) <= room[:, None])
        run &= np.cumsum(open_, axis=1) <= places[:, None]
        if not run.any():
            return rows
        rows, left = rows | run, left & ~run
        room, places = room - run @ lengths, places - run.sum(axis=1)
