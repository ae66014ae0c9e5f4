"""Colours of classes."""

from __future__ import annotations

import colorsys

Colour = tuple[int, int, int]  # red, green, blue, 0 to 255


def palette(num_classes: int) -> list[Colour]:
    """As many colours, far apart in hue; the same ones every time."""
    hues = [(0.6180339887 * i) % 1 for i in range(num_classes)]  # the golden ratio spreads them
    return [tuple(round(255 * c) for c in colorsys.hsv_to_rgb(h, 0.8, 0.95)) for h in hues]
