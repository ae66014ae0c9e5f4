"""Evens out the cost of attention over the rows of one step, by exchanging examples among them.

Rows that fill one budget hold about equally many tokens, but attention costs the sum of squared
lengths, and a step takes as long as its dearest row. One or two examples of a row may be worth as
many tokens as others of another row, and more squares: to exchange them changes nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np

Row = list[tuple[Any, ...]]  # (key, tokens) of each example, or (key, tokens, (height, width))

_CONSIDERED = 16  # examples of a row; the choices among them grow with the fourth power
_PARTNERS = 8  # that the dearest row tries, the cheapest first
_CLOSE_ENOUGH = 0.01  # of the dearest row: not worth an exchange


def tokens(row: Row) -> int:
    """The tokens of a row."""
    return sum(length for _, length, *_ in row)


def squares(row: Row) -> int:
    """The sum of squared lengths, which is what attention costs."""
    return sum(length**2 for _, length, *_ in row)


def balanced(
    rows: Sequence[Row], *, budget: int | None, max_examples: int | None = None, slack: int = 0
) -> list[Row]:
    """The same examples in as many rows, the dearest of which is no dearer than before.

    No row exceeds the limits, and none has fewer tokens than the one that had fewest, unless only
    `slack` below the budget; without a budget each keeps its number of examples. Where examples
    have a size, no row gets one that is higher or wider than all it had. Rows depend on the
    lengths, the sizes and their order alone.
    """
    rows = [list(row) for row in rows]
    for _ in range(4 * len(rows)):
        cheap_first = sorted(range(len(rows)), key=lambda i: squares(rows[i]))
        dearest = cheap_first.pop()
        for other in cheap_first[:_PARTNERS]:
            exchange = _exchange(rows[dearest], rows[other], budget, max_examples, slack)
            if exchange is not None:
                _apply(rows[dearest], rows[other], *exchange)
                break
        else:
            break
    return rows


def _exchange(
    dear: Row, cheap: Row, budget: int | None, max_examples: int | None, slack: int
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The places in both rows whose exchange brings their squares closest, if any does."""
    gap = squares(dear) - squares(cheap)
    if gap <= _CLOSE_ENOUGH * squares(dear):
        return None
    given, taken = _sums(dear), _sums(cheap)
    examples, more, dearer = (  # each [choices of dear, choices of cheap]: what goes over
        np.subtract.outer(given[:, i], taken[:, i]) for i in range(3)
    )
    new_dear, new_cheap = tokens(dear) - more, tokens(cheap) + more
    least = min(tokens(dear), tokens(cheap))
    allowed = np.logical_and.outer(_fit(dear, cheap), _fit(cheap, dear))
    if budget is None:  # every row has the same number of examples
        allowed &= examples == 0
    else:
        least = min(least, budget - slack)
        allowed &= np.maximum(new_dear, new_cheap) <= budget
    allowed &= np.minimum(new_dear, new_cheap) >= least
    if max_examples is not None:
        allowed &= (len(cheap) + examples <= max_examples) & (len(dear) - examples <= max_examples)
    left = np.where(allowed, abs(gap - 2 * dearer), gap)
    if left.min() == gap:
        return None
    i, j = np.unravel_index(left.argmin(), left.shape)
    choices = [_choices(min(len(row), _CONSIDERED))[0] for row in (dear, cheap)]
    return choices[0][i], choices[1][j]


def _sums(row: Row) -> np.ndarray:
    """[choices, 3]: the examples, tokens and squares of each choice of places in a row."""
    lengths = np.array([length for _, length, *_ in row[:_CONSIDERED]])
    members = _choices(len(lengths))[1]
    return members @ np.stack([np.ones_like(lengths), lengths, lengths**2], axis=1)


def _fit(row: Row, other: Row) -> np.ndarray:
    """Return [choices of row] bool, True where all chosen examples fit the other row's canvas."""
    members = _choices(min(len(row), _CONSIDERED))[1]
    if len(row[0]) == 2:  # without sizes
        return np.ones(len(members), dtype=bool)
    canvas = np.max([size for *_, size in other], axis=0)
    outside = np.array([size for *_, size in row[:_CONSIDERED]]) > canvas
    return members @ outside.any(axis=1) == 0


@lru_cache(maxsize=_CONSIDERED)
def _choices(count: int) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """No, one or two of `count` places; and [choices, count]: 1 where a place is chosen."""
    choices = [choice for size in range(3) for choice in combinations(range(count), size)]
    members = np.zeros((len(choices), count), dtype=np.int64)
    for member, choice in zip(members, choices, strict=True):
        member[list(choice)] = 1
    return choices, members


def _apply(dear: Row, cheap: Row, given: Sequence[int], taken: Sequence[int]) -> None:
    goes, comes = [dear[i] for i in given], [cheap[j] for j in taken]
    dear[:] = [pair for i, pair in enumerate(dear) if i not in given] + comes
    cheap[:] = [pair for j, pair in enumerate(cheap) if j not in taken] + goes
