"""Words that messages share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def few(items: Sequence[Any]) -> str:
    """The first five, and dots where there are more."""
    return ', '.join(str(item) for item in items[:5]) + (', ...' if len(items) > 5 else '')


def counted(number: int, noun: str, plural: str = '') -> str:
    """Return a number with its noun, as `1 sample` and `2,000 samples`."""
    return f'{number:,} {noun if number == 1 else plural or f"{noun}s"}'
