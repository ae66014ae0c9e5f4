"""Colours of classes."""

from __future__ import annotations

import colorsys
from functools import cache

import cv2
import numpy as np

Colour = tuple[int, int, int]  # red, green, blue, 0 to 255


def palette(num_classes: int) -> list[Colour]:
    """As many colours, each as unlike those before it as can be; the same ones every time.

    How unlike two colours look is their distance in CIELAB. More classes take more of the same
    list, so that a class keeps its colour; behind its 768 it begins again.
    """
    colours = _candidates()
    order = _order(min(num_classes, len(colours)))
    return [colours[order[i % len(order)]] for i in range(num_classes)]


@cache
def _candidates() -> list[Colour]:
    """Colours that are neither pale nor near black, the first one red."""
    shades = [(s, v) for s in (0.8, 0.4, 0.6, 1.0) for v in (1.0, 0.45, 0.65, 0.8)]
    found = [colorsys.hsv_to_rgb(hue / 48, s, v) for s, v in shades for hue in range(48)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in found]


@cache
def _order(num_classes: int) -> list[int]:
    """Numbers of candidates: the first, then each time the one farthest from all before it."""
    colours = np.array(_candidates(), dtype=np.float32)[None] / 255
    lab_ND = cv2.cvtColor(colours, cv2.COLOR_RGB2LAB)[0]
    nearest_N = np.full(len(lab_ND), np.inf)
    order: list[int] = []
    for number in range(num_classes):
        order.append(int(nearest_N.argmax()) if number else 0)
        apart_N = np.linalg.norm(lab_ND - lab_ND[order[-1]], axis=1)
        nearest_N = np.minimum(nearest_N, apart_N)
    return order
