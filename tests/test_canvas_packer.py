"""The promises of the canvas packer, each against brute force on small pools."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navit_backbone.tasks.common.canvas_packer import CanvasPacker

PATCH = 16


@st.composite
def streams(draw: st.DrawFn, longest: int = 40) -> tuple[CanvasPacker[int], list[tuple[int, int]]]:
    """A packer of small limits, and the grids (rows, columns) of examples that it accepts."""
    budget = draw(st.none() | st.integers(1, 60))
    packer: CanvasPacker[int] = CanvasPacker(
        budget,
        pool_size=draw(st.integers(1, 8)),
        max_examples=draw(st.integers(1, 6)),
        slack=min(draw(st.sampled_from([0, 1, 3])), (budget or 4) - 1),
        divisor=draw(st.sampled_from([1, 32, 100])),
    )
    side = st.integers(1, 9)
    grid = st.tuples(side, side).filter(lambda grid: math.prod(grid) <= (budget or 81))
    return packer, draw(st.lists(grid, max_size=longest))


def push(packer, key, grid):
    return packer.push(key, math.prod(grid), (grid[0] * PATCH, grid[1] * PATCH))


def watched(packer, grids, first=0):
    """Every row beside the pool that it was taken from."""
    taken = []
    for key, grid in enumerate(grids, first):
        size = (grid[0] * PATCH, grid[1] * PATCH)
        pool = [*packer.waiting, (key, math.prod(grid), size)]
        if row := push(packer, key, grid):
            taken.append((row, pool))
        assert len(packer.waiting) < packer.pool_size
    return taken


def tokens(row) -> int:
    return sum(length for _, length, _ in row)


def fullest(packer, pool) -> int:
    """The most tokens that a row with the oldest can hold, by trying all rows."""
    rows = (
        [pool[0], *others]
        for count in range(min(packer.max_examples, len(pool)))
        for others in combinations(pool[1:], count)
    )
    return max(tokens(row) for row in rows if tokens(row) <= packer.budget)


def share(packer, row) -> Fraction:
    """The share of the canvas that the images of a row cover."""
    canvas = [
        math.ceil(max(size[axis] for *_, size in row) / packer.divisor) * packer.divisor
        for axis in (0, 1)
    ]
    return Fraction(sum(math.prod(size) for *_, size in row), len(row) * math.prod(canvas))


def candidates(packer, pool):
    """For every canvas that holds the oldest: it, and the largest of the others while they fit."""
    rounded = [
        tuple(math.ceil(side / packer.divisor) * packer.divisor for side in size)
        for *_, size in pool
    ]
    largest_first = sorted(range(1, len(pool)), key=lambda i: -math.prod(pool[i][2]))
    for height in {h for h, _ in rounded}:
        for width in {w for _, w in rounded}:
            if rounded[0][0] > height or rounded[0][1] > width:
                continue
            row = [pool[0]]
            for i in largest_first:
                fits = rounded[i][0] <= height and rounded[i][1] <= width
                within = packer.budget is None or tokens(row) + pool[i][1] <= packer.budget
                if fits and within and len(row) < packer.max_examples:
                    row.append(pool[i])
            yield row


@given(streams())
def test_every_example_leaves_once_within_the_limits(stream):
    packer, grids = stream
    rows = [row for row, _ in watched(packer, grids)] + packer.flush()
    assert sorted(key for row in rows for key, *_ in row) == list(range(len(grids)))
    assert not packer.waiting
    for row in rows:
        assert tokens(row) <= (packer.budget or math.inf)
        assert len(row) <= packer.max_examples
        assert row == sorted(row), 'a row keeps the order of arrival'


@settings(max_examples=200)
@given(streams())
def test_a_row_holds_the_oldest_and_is_as_full_as_the_slack_allows(stream):
    packer, grids = stream
    for row, pool in watched(packer, grids):
        assert row[0] == pool[0]
        assert set(row) <= set(pool)
        if packer.budget is None:
            assert len(row) == min(packer.max_examples, len(pool))
        elif tokens(row) < packer.budget - packer.slack:
            most = fullest(packer, pool)
            assert most < packer.budget - packer.slack
            assert tokens(row) >= most - packer.slack


@settings(max_examples=200)
@given(streams())
def test_of_the_full_rows_the_one_leaves_that_covers_most_of_its_canvas(stream):
    packer, grids = stream
    for row, pool in watched(packer, grids):
        rows = list(candidates(packer, pool))
        if packer.budget is None:
            full = [r for r in rows if len(r) == min(packer.max_examples, len(pool))]
        else:
            full = [r for r in rows if tokens(r) >= packer.budget - packer.slack]
        if full:
            assert float(share(packer, row)) == pytest.approx(
                float(max(share(packer, r) for r in full))
            )


@given(streams(longest=80))
def test_nobody_waits_for_more_rows_than_were_older_examples(stream):
    packer, grids = stream
    older: dict[int, int] = {}  # key -> rows that may still leave before it
    for key, grid in enumerate(grids):
        older[key] = len(packer.waiting)
        if row := push(packer, key, grid):
            gone = [older.pop(name) for name, *_ in row]
            assert min(gone) >= 0
            older = {name: rows - 1 for name, rows in older.items()}
            assert all(rows >= 0 for rows in older.values())


@given(streams(), st.data())
def test_a_resumed_packer_yields_the_same_rows(stream, data):
    packer, grids = stream
    cut = data.draw(st.integers(0, len(grids)))
    watched(packer, grids[:cut])
    names = ('pool_size', 'max_examples', 'slack', 'divisor')
    resumed: CanvasPacker[int] = CanvasPacker(
        packer.budget, **{name: getattr(packer, name) for name in names}
    )
    resumed.load_state_dict(json.loads(json.dumps(packer.state_dict())))
    assert resumed.state_dict() == packer.state_dict()
    assert watched(resumed, grids[cut:], cut) == watched(packer, grids[cut:], cut)
    assert resumed.flush() == packer.flush()


@pytest.mark.parametrize('grids', [[(1, 40)] * 3, [(40, 1), (1, 40)] * 4, [(7, 7)] * 5])
def test_one_shape_covers_all_of_a_canvas_that_it_divides(grids):
    packer: CanvasPacker[int] = CanvasPacker(None, pool_size=6, max_examples=2, divisor=PATCH)
    rows = [row for row, _ in watched(packer, grids)]
    assert all(share(packer, row) == 1 for row in rows if len({size for *_, size in row}) == 1)
    assert all(len({size for *_, size in row}) == 1 for row in rows)


@pytest.mark.parametrize(
    ('size', 'length', 'words'),
    [
        ((0, 16), 1, r"'photo\.jpg'.*0 x 16"),
        ((16, 16), 0, r"'photo\.jpg' has 0 tokens"),
        ((160, 160), 100, r"'photo\.jpg' has 100 tokens.*50"),
    ],
)
def test_what_no_row_can_hold_is_refused_by_name(size, length, words):
    packer: CanvasPacker[str] = CanvasPacker(50, pool_size=4, max_examples=2)
    with pytest.raises(ValueError, match=words):
        packer.push('photo.jpg', length, size)
    assert not packer.waiting


@pytest.mark.parametrize('limit', ['budget', 'pool_size', 'max_examples', 'slack', 'divisor'])
def test_a_state_of_other_limits_is_refused_by_name(limit):
    limits = dict(budget=50, pool_size=4, max_examples=2, slack=1, divisor=32)
    state = CanvasPacker(**limits).state_dict()
    with pytest.raises(ValueError, match=limit):
        CanvasPacker(**limits | {limit: limits[limit] + 1}).load_state_dict(state)
