"""Exchanges within a step even out its cost and break no limit."""

from __future__ import annotations

import random
from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from navit_backbone.packer import Packer
from navit_backbone.tasks.common.balance import balanced, squares, tokens


@st.composite
def steps(draw: st.DrawFn) -> tuple[list, dict]:
    """Rows within random limits, their keys numbered."""
    lengths = draw(
        st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=20), min_size=1, max_size=5)
    )
    keys = iter(range(1000))
    rows = [[(next(keys), length) for length in row] for row in lengths]
    limits = dict(
        budget=max(map(tokens, rows)) + draw(st.integers(0, 9)),
        max_examples=draw(st.none() | st.just(max(map(len, rows)))),
        slack=draw(st.integers(0, 12)),
    )
    return rows, limits


@settings(max_examples=300, deadline=None)
@given(steps())
def test_the_same_examples_within_all_limits_and_no_row_dearer_than_the_dearest(step):
    rows, limits = step
    before = [list(row) for row in rows]
    found = balanced(rows, **limits)
    assert rows == before, 'the rows that were given are left alone'
    assert sorted(chain(*found)) == sorted(chain(*rows))
    assert len(found) == len(rows)
    assert all(found)
    assert max(map(tokens, found)) <= limits['budget']
    least = min(limits['budget'] - limits['slack'], *map(tokens, rows), limits['budget'])
    assert min(map(tokens, found)) >= least
    assert max(map(len, found)) <= (limits['max_examples'] or 1000)
    assert max(map(squares, found)) <= max(map(squares, rows))
    assert found == balanced(rows, **limits)


def test_one_large_example_goes_for_two_small_ones():
    rows = [[('a', 8), ('b', 8)], [('c', 4), ('d', 4), ('e', 4), ('f', 4)]]
    assert [squares(row) for row in balanced(rows, budget=16)] == [96, 96]


def excess(rows: list) -> float:
    """How much dearer the dearest row is than the mean."""
    return max(map(squares, rows)) * len(rows) / sum(map(squares, rows)) - 1


def test_random_sizes_end_up_within_two_percent():
    draw, budget = random.Random(0), 8192
    packer: Packer[int] = Packer(budget, slack=budget // 256)
    rows = [row for i in range(4000) if (row := packer.push(i, draw.randint(100, 1024)))]
    for ranks in (2, 4, 8):
        groups = [rows[i : i + ranks] for i in range(0, len(rows) - ranks + 1, ranks)]
        after = [balanced(group, budget=budget, slack=packer.slack) for group in groups]
        assert sum(map(excess, groups)) / len(groups) > 0.04, 'it would be no test'
        assert max(map(excess, after)) < 0.02
        assert max(max(map(tokens, group)) / min(map(tokens, group)) for group in after) < 1.005
