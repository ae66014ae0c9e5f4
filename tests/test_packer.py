"""The packer's promises, each against the plain reading of it: brute force over small pools."""

from __future__ import annotations

import json
import random
import re
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navit_backbone.packer import Packer

Row = list[tuple[int, int]]


@st.composite
def streams(draw: st.DrawFn, longest: int = 60) -> tuple[Packer[int], list[int]]:
    """A packer of small limits, and lengths that it accepts; sometimes all multiples of one."""
    unit = draw(st.sampled_from([1, 1, 1, 7]))
    budget = draw(st.integers(1, 40)) * unit
    packer: Packer[int] = Packer(
        budget,
        pool_size=draw(st.integers(1, 9)),
        max_examples=draw(st.none() | st.integers(1, 10)),
        slack=min(draw(st.sampled_from([0, 0, 1, 2, 5])), budget - 1),
    )
    length = st.integers(1, budget // unit).map(lambda n: n * unit)
    return packer, draw(st.lists(length, max_size=longest))


def limits(packer: Packer[int]) -> dict[str, int | None]:
    return {name: getattr(packer, name) for name in ('pool_size', 'max_examples', 'slack')}


def watched(packer: Packer[int], lengths: list[int], first: int = 0) -> list[tuple[Row, Row]]:
    """Every row beside the pool that it was taken from."""
    taken = []
    for key, length in enumerate(lengths, first):
        pool = [*packer.waiting, (key, length)]
        if row := packer.push(key, length):
            taken.append((row, pool))
        assert len(packer.waiting) < packer.pool_size
    return taken


def rows_of(packer: Packer[int], lengths: list[int], first: int = 0) -> list[Row]:
    rows = [row for row, _ in watched(packer, lengths, first)]
    return rows + packer.flush()


def fullest(packer: Packer[int], pool: Row) -> int:
    """The most tokens that a row with the oldest can hold, by trying all rows."""
    oldest, rest = pool[0][1], [length for _, length in pool[1:]]
    cap = packer.max_examples or len(pool)
    sums = (
        oldest + sum(others)
        for count in range(min(cap, len(pool)))
        for others in combinations(rest, count)
    )
    return max(total for total in sums if total <= packer.budget)


def tokens(row: Row) -> int:
    return sum(length for _, length in row)


@given(streams())
def test_every_example_leaves_once_within_both_limits(stream):
    packer, lengths = stream
    rows = rows_of(packer, lengths)
    assert sorted(pair for row in rows for pair in row) == list(enumerate(lengths))
    assert not packer.waiting
    for row in rows:
        assert tokens(row) <= packer.budget
        assert len(row) <= (packer.max_examples or len(row))
        assert row == sorted(row), 'a row keeps the order of arrival'


@settings(max_examples=300)
@given(streams())
def test_a_row_is_the_fullest_with_the_oldest_and_leaves_when_it_is_due(stream):
    packer, lengths = stream
    for row, pool in watched(packer, lengths):
        assert row[0] == pool[0]
        assert set(row) <= set(pool)
        if tokens(row) < packer.budget - packer.slack:
            assert len(pool) == packer.pool_size, 'a short row left although others might come'
            assert tokens(row) == fullest(packer, pool)


@settings(max_examples=300)
@given(streams())
def test_a_full_row_is_seen_as_soon_as_it_is_there(stream):
    packer, lengths = stream
    full = packer.budget - packer.slack
    for key, length in enumerate(lengths):
        before = list(packer.waiting)
        full_already = bool(before) and fullest(packer, before) >= full
        row = packer.push(key, length)
        pool = [*before, (key, length)]
        due = full_already or fullest(packer, pool) >= full
        assert (row is not None and tokens(row) >= full) == due


@given(streams())
def test_flush_takes_the_fullest_rows_of_what_waits(stream):
    packer, lengths = stream
    watched(packer, lengths)
    left = list(packer.waiting)
    for row in packer.flush():
        assert row[0] == left[0]
        if tokens(row) < packer.budget - packer.slack:
            assert tokens(row) == fullest(packer, left)
        left = [pair for pair in left if pair not in row]
    assert not left


@given(streams(longest=120))
def test_nobody_waits_for_more_rows_than_were_older_examples(stream):
    packer, lengths = stream
    older: dict[int, int] = {}  # key -> rows that may still leave before it
    for key, length in enumerate(lengths):
        older[key] = len(packer.waiting)
        if row := packer.push(key, length):
            gone = [older.pop(name) for name, _ in row]
            assert min(gone) >= 0
            older = {name: rows - 1 for name, rows in older.items()}
            assert all(rows >= 0 for rows in older.values())


@given(streams(), st.data())
def test_a_resumed_packer_yields_the_same_rows(stream, data):
    packer, lengths = stream
    cut = data.draw(st.integers(0, len(lengths)))
    watched(packer, lengths[:cut])
    resumed: Packer[int] = Packer(packer.budget, **limits(packer))
    resumed.load_state_dict(json.loads(json.dumps(packer.state_dict())))
    assert resumed.state_dict() == packer.state_dict()
    assert rows_of(resumed, lengths[cut:], cut) == rows_of(packer, lengths[cut:], cut)


@given(streams())
def test_keys_do_not_matter(stream):
    packer, lengths = stream
    named: Packer[str] = Packer(packer.budget, **limits(packer))
    rows = [row for k, n in enumerate(lengths) if (row := named.push(f'{-k}', n))] + named.flush()
    expected = rows_of(packer, lengths)
    assert rows == [[(f'{-k}', n) for k, n in row] for row in expected]


@given(streams())
def test_a_cap_that_cannot_bind_changes_nothing(stream):
    packer, lengths = stream
    free: Packer[int] = Packer(packer.budget, **limits(packer) | {'max_examples': None})
    cap = packer.pool_size
    capped: Packer[int] = Packer(packer.budget, **limits(packer) | {'max_examples': cap})
    assert rows_of(free, lengths) == rows_of(capped, lengths)


@pytest.mark.parametrize('cap', range(1, 6))
def test_the_cap_holds_at_the_size_of_the_pool_too(cap):
    packer: Packer[int] = Packer(100, pool_size=5, max_examples=cap)
    assert max(map(len, rows_of(packer, [1] * 23))) == cap


def test_saving_neither_shares_nor_moves_the_state():
    packer: Packer[str] = Packer(10)
    packer.push('a', 7)
    state = packer.state_dict()
    assert packer.push('b', 3) == [('a', 7), ('b', 3)]
    assert state['waiting'] == [['a', 7]]
    packer.load_state_dict(state)
    assert packer.push('c', 3) == [('a', 7), ('c', 3)]


def test_tuple_keys_survive_json():
    packer: Packer[tuple[int, int]] = Packer(10)
    packer.push((3, 141), 7)
    packer.load_state_dict(json.loads(json.dumps(packer.state_dict())))
    assert packer.flush() == [[((3, 141), 7)]]


def test_numpy_lengths_become_plain_numbers():
    packer: Packer[int] = Packer(100)
    packer.push(0, np.int64(60))  # type: ignore[arg-type]
    assert packer.push(1, np.int16(40)) == [(0, 60), (1, 40)]  # type: ignore[arg-type]
    packer.push(2, np.uint8(200 - 101))  # type: ignore[arg-type]
    assert json.dumps(packer.state_dict())


@pytest.mark.parametrize(
    ('length', 'words'),
    [
        (1025, ("'photo.jpg'", '1025', '1024', 'resize', 'budget')),
        (0, ("'photo.jpg'", '0')),
        (-3, ("'photo.jpg'", '-3')),
        (2.5, ("'photo.jpg'", 'whole', '2.5')),
    ],
)
def test_a_length_that_fits_no_row_is_refused_by_name(length, words):
    packer: Packer[str] = Packer(1024)
    packer.push('first', 1000)
    before = packer.state_dict()
    with pytest.raises(ValueError, match='.*'.join(map(re.escape, words))):
        packer.push('photo.jpg', length)
    assert packer.state_dict() == before
    assert packer.push('last', 24) == [('first', 1000), ('last', 24)]


@pytest.mark.parametrize('name', ['budget', 'pool_size', 'max_examples'])
def test_limits_below_one_are_refused_by_name(name):
    given = {'budget': 8, name: 0}
    with pytest.raises(ValueError, match=f'{name} must be at least 1, got 0'):
        Packer(given.pop('budget'), **given)


@pytest.mark.parametrize('slack', [-1, 8])
def test_a_slack_beyond_the_budget_is_refused(slack):
    with pytest.raises(ValueError, match=f'slack .* 8, got {slack}'):
        Packer(8, slack=slack)


@pytest.mark.parametrize('name', ['budget', 'pool_size', 'max_examples', 'slack'])
def test_a_state_of_other_limits_is_refused_with_both_values(name):
    saved = Packer[int](100, pool_size=5, max_examples=3).state_dict()
    packer: Packer[int] = Packer(100, pool_size=5, max_examples=3)
    packer.load_state_dict(saved)
    with pytest.raises(ValueError, match=f'{name}=77.* {saved[name]}:'):
        packer.load_state_dict(saved | {name: 77})
    with pytest.raises(ValueError, match="'huge' has 101"):
        packer.load_state_dict(saved | {'waiting': [['huge', 101]]})
    with pytest.raises(ValueError, match='damaged'):
        packer.load_state_dict(saved | {'waiting': [[i, 1] for i in range(5)]})


@pytest.mark.parametrize('budget', [1024, 4096])
def test_real_picture_sizes_leave_less_than_a_thousandth_empty(budget):
    draw = random.Random(budget)
    packer: Packer[int] = Packer(budget, pool_size=64)
    rows = []
    for key in range(8000):
        side, other = (-(-draw.randint(128, 384) // 16) for _ in range(2))
        if row := packer.push(key, side * other):
            rows.append(row)
    filled = sum(map(tokens, rows))
    assert filled >= 0.999 * budget * len(rows)
