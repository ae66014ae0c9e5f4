"""Whole numbers of a config: how many tokens, images, steps."""

from __future__ import annotations

from numbers import Integral
from typing import Any


def require_count(name: str, value: Any) -> None:
    """Raise ValueError, which names the field, where a value is no whole number of at least 1."""
    if not isinstance(value, Integral):
        raise ValueError(f'{name}={value!r} must be a whole number, as 64')
    if value < 1:
        raise ValueError(f'{name}={value} must be at least 1')
