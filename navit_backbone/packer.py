"""Which examples share a row, or a batch: exact fill of a token budget from a small waiting pool.

A row holds at most `budget` tokens and, where NaViT's E_max is given, at most `max_examples`
examples. Examples stream in and wait in a pool. A row leaves as soon as the oldest example and some
of the others fill the budget, exactly or up to `slack` tokens, and otherwise when the pool is full:
then the fullest row that holds the oldest. As every row takes the oldest, an example that finds i
others waiting leaves with the (i + 1)-th row from then at the latest: nothing starves.

    for key, length in examples:
        if row := packer.push(key, length):
            yield row
    yield from packer.flush()

All sums that the pool can reach stand in the bits of one integer, a *reach*: bit r is set when r
tokens of room can be left. Taking an example of n tokens is one shift by n, and what does not fit
falls off the low end. With `max_examples` each of these bits becomes a field of as many bits, which
say how many places can be left beside that room; the shift is then n fields and one place.
"""

from __future__ import annotations

from collections.abc import Hashable
from operator import index
from typing import Any, Generic, TypeVar

Key = TypeVar('Key', bound=Hashable)


class Pool(Generic[Key]):
    """Examples that wait for a row, and the limits of rows: what every packer has.

    A row lists its examples in order of arrival, each as it was pushed: (key, length, ...). At most
    `pool_size` wait. Rows depend on what was pushed and its order alone. A key is whatever names an
    example; for a state that survives JSON an int, a str or a tuple of them.
    """

    _limits: tuple[str, ...] = ('budget', 'pool_size', 'max_examples', 'slack')

    def __init__(
        self, budget: int | None, *, pool_size: int, max_examples: int | None, slack: int
    ) -> None:
        self.budget = budget
        self.slack = slack
        self.pool_size = pool_size
        self.max_examples = max_examples
        self.waiting: list[tuple[Any, ...]] = []
        for name in ('budget', 'pool_size', 'max_examples'):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f'{name} must be at least 1, got {value}')
        if slack < 0 or (budget is not None and slack >= budget):
            raise ValueError(f'slack must lie between 0 and the budget of {budget}, got {slack}')

    def flush(self) -> list[list[tuple[Any, ...]]]:
        """Empty the pool into rows, each with its oldest; the last may be short."""
        rows = []
        while self.waiting:
            rows.append(self._take())
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Return what it takes to go on with the same rows: the limits and the waiting examples."""
        limits = {name: getattr(self, name) for name in self._limits}
        return {**limits, 'waiting': [list(example) for example in self.waiting]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; refuse the state of other limits."""
        for name in self._limits:
            if name not in state or 'waiting' not in state:
                raise ValueError(f'the saved packer lacks {name} or waiting: the state is damaged')
            if state[name] != getattr(self, name):
                raise ValueError(
                    f'the saved packer has {name}={state[name]}, this one {getattr(self, name)}: '
                    f'build it with {name}={state[name]}, or start without the saved state'
                )
        waiting = [self._checked(_restored(key), *rest) for key, *rest in state['waiting']]
        if len(waiting) >= self.pool_size:
            raise ValueError(
                f'the saved packer holds {len(waiting)} waiting examples, but with '
                f'pool_size={self.pool_size} fewer than that can wait: the state is damaged'
            )
        self.waiting = waiting

    def _take(self) -> list[tuple[Any, ...]]:
        """Take a row with the oldest example out of the pool."""
        raise NotImplementedError

    def _checked(self, key: Any, length: int) -> tuple[Any, ...]:
        """Return the example with its length as an int; refuse by name what no row can hold."""
        try:
            tokens = index(length)
        except TypeError as error:
            raise ValueError(
                f'example {key!r}: its length must be a whole number, got {length!r}'
            ) from error
        if tokens < 1:
            raise ValueError(
                f'example {key!r} has {tokens} tokens: an example needs at least 1, leave it out'
            )
        if self.budget is not None and tokens > self.budget:
            raise ValueError(
                f'example {key!r} has {tokens} tokens but a row holds {self.budget}: '
                f'resize it to fewer tokens or raise the budget to at least {tokens}'
            )
        return key, tokens


class Packer(Pool[Key]):
    """Turn a stream of (key, length) into rows that fill a token budget, exactly where it can."""

    budget: int

    def __init__(
        self,
        budget: int,
        *,
        pool_size: int = 64,
        max_examples: int | None = None,
        slack: int = 0,
    ) -> None:
        super().__init__(budget, pool_size=pool_size, max_examples=max_examples, slack=slack)
        self._reaches: list[int] = []  # [i]: what waiting[0] reaches with any of waiting[1..i]
        places = min(max_examples or pool_size, pool_size)
        capped = places < pool_size  # no row outgrows the pool: a larger cap costs nothing
        self._places = places if capped else 1
        self._place = int(capped)
        self._open = _fields_with_a_place(budget, places) if capped else -1
        # room for no more than the slack, whatever the places
        self._full = (1 << self._places * (slack + 1)) - 1

    def push(self, key: Key, length: int) -> list[tuple[Key, int]] | None:
        """Add an example to the pool, and return a row if one is now due."""
        self.waiting.append(self._checked(key, length))
        self._extend()
        if self._reaches[-1] & self._full or len(self.waiting) == self.pool_size:
            return self._take()
        return None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; refuse the state of other limits."""
        super().load_state_dict(state)
        self._reaches = []
        self._extend()

    def _extend(self) -> None:
        """Bring the reaches up to date with the pool, as far as the first fill."""
        if not self.waiting:
            return
        if not self._reaches:
            room = self.budget - self.waiting[0][1]
            self._reaches.append(1 << (room * self._places + self._places - 1))
        reach = self._reaches[-1]
        for _, length in self.waiting[len(self._reaches) :]:
            if reach & self._full:
                break
            reach |= (reach & self._open) >> (length * self._places + self._place)
            self._reaches.append(reach)

    def _take(self) -> list[tuple[Key, int]]:
        """Take the fullest row with the oldest out of the pool; among equals newer ones stay."""
        reaches, waiting = self._reaches, self.waiting
        bit = (reaches[-1] & -reaches[-1]).bit_length() - 1  # least room, then fewest places
        alone = reaches[0].bit_length() - 1
        row = []
        newest = len(reaches)
        while bit != alone:
            newest -= 1
            if not reaches[newest - 1] >> bit & 1:  # not reached without this one
                row.append(waiting.pop(newest))
                bit += row[-1][1] * self._places + self._place
        row.append(waiting.pop(0))
        self._reaches = []
        self._extend()
        return row[::-1]


def _fields_with_a_place(budget: int, places: int) -> int:
    """All bits of the budget + 1 fields but the lowest of each: there no place is left."""
    field = format((1 << places) - 2, f'0{places}b')
    return int(field * (budget + 1), 2)


def _restored(key: Any) -> Any:
    """JSON turns tuples into lists, which name nothing."""
    return tuple(_restored(part) for part in key) if isinstance(key, list) else key
