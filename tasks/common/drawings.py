"""Drawings of coloured shapes on textured paper: a detection and segmentation set out of nothing.

A drawing is a function of (seed, split, number) alone. Sides run from 96 to 320 pixels and aspects
from 0.4 to 2.5, so that what handles one size only fails on it. The form makes the class; the
colour tells an object from the paper, and no more.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .resampling import resize_image

CLASSES = ('circle', 'square', 'triangle', 'star', 'ring')
_SMOOTH = 4  # shapes are drawn this many times finer, then averaged


@dataclass(frozen=True)
class Drawing:
    """A picture and what is on it, in the order of painting."""

    image: np.ndarray  # [h, w, 3] uint8, BGR
    labels: list[int]  # numbers into CLASSES
    masks: list[np.ndarray]  # [h, w] bool: the visible pixels of each object, never empty


def draw(seed: int, split: str, number: int) -> Drawing:
    """Drawing `number` of a split: one to four shapes that overlap little."""
    random = np.random.default_rng([seed, number, *split.encode()])
    h, w = _size(random)
    image = _paper(random, h, w)
    labels: list[int] = []
    masks: list[np.ndarray] = []
    for _ in range(random.integers(1, 5)):
        label = int(random.integers(len(CLASSES)))
        alpha = _free_spot(random, CLASSES[label], masks, h, w)
        if alpha is None:
            continue  # no room left; the first shape always finds some
        image = _paint(random, image, alpha)
        covers = alpha > 0.5
        masks = [*(mask & ~covers for mask in masks), covers]
        labels.append(label)
    noise = random.normal(0, 4, image.shape)
    return Drawing((image + noise).clip(0, 255).astype(np.uint8), labels, masks)


def _size(random: np.random.Generator) -> tuple[int, int]:
    side = random.uniform(120, 210)  # of the square of equal area
    root = np.exp(random.uniform(np.log(0.4), np.log(2.5)) / 2)
    h, w = (int(np.clip(round(s), 96, 320)) for s in (side / root, side * root))
    return h, w


def _paper(random: np.random.Generator, h: int, w: int) -> np.ndarray:
    """A background of faint colour with clouds and scribbles on it: [h, w, 3] float."""
    clouds = random.normal(0, 1, (*random.integers(3, 7, size=2), 3)).astype(np.float32)
    clouds = resize_image(clouds, (h, w))
    gray = random.uniform(70, 190)
    image = gray + random.uniform(-12, 12, 3) + clouds * [9, 9, 9] + clouds[..., :1] * 12
    scribbles = np.zeros((h, w), dtype=np.float32)
    for _ in range(random.integers(2, 7)):
        points = random.uniform([0, 0], [w, h], (random.integers(2, 5), 2)).astype(np.int32)
        shade, width = float(random.uniform(-45, 45)), int(random.integers(1, 5))
        cv2.polylines(scribbles, [points], False, shade, width, cv2.LINE_AA)
    return image + scribbles[..., None]


def _free_spot(
    random: np.random.Generator, name: str, masks: list[np.ndarray], h: int, w: int
) -> np.ndarray | None:
    """The coverage [h, w] in [0, 1] of a shape placed where it hides little of the others."""
    for _ in range(25):
        size = random.uniform(0.3, 0.55) * np.sqrt(h * w)
        radius = float(np.clip(size, 40, 0.92 * min(h, w)) / 2)
        centre = [random.uniform(radius, side - radius) for side in (w, h)]
        alpha = _shape(name, np.array(centre), radius, random.uniform(0, 2 * np.pi), (h, w))
        box = _filled_box(alpha > 0.5)
        if all(_overlap(_filled_box(mask), box) <= 0.1 for mask in masks):
            return alpha
    return None


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """The share of the smaller of two areas that lies in the other one."""
    return (a & b).sum() / min(a.sum(), b.sum())


def _filled_box(mask: np.ndarray) -> np.ndarray:
    return mask.any(1)[:, None] & mask.any(0)[None]


def _shape(
    name: str, centre: np.ndarray, radius: float, angle: float, size: tuple[int, int]
) -> np.ndarray:
    """The coverage [h, w] in [0, 1] of one shape inscribed in a circle."""
    corners, inner = dict(
        circle=(64, 1), square=(4, 1), triangle=(3, 1), star=(10, 0.42), ring=(64, 1)
    )[name]
    angles = angle + np.arange(corners) * 2 * np.pi / corners
    lengths = np.where(np.arange(corners) % 2, inner, 1)
    outline = np.stack([np.cos(angles), np.sin(angles)], 1) * lengths[:, None] * radius
    fine = np.zeros((size[0] * _SMOOTH, size[1] * _SMOOTH), dtype=np.float32)
    holes = (1.0, 0.0) if name == 'ring' else (1.0,)
    for value in holes:
        shrink = 1.0 if value else 0.55
        points = np.round((centre + outline * shrink) * _SMOOTH).astype(np.int32)
        cv2.fillPoly(fine, [points], value)
    return resize_image(fine, size)


def _paint(random: np.random.Generator, image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """`image` with a shape on it in any bright colour, lit from one side."""
    h, w = alpha.shape
    colour = [random.integers(180), random.integers(170, 250), 255]
    colour = cv2.cvtColor(np.array([[colour]], dtype=np.uint8), cv2.COLOR_HSV2BGR)[0, 0]
    direction = random.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:h, :w] / max(h, w)
    light = random.uniform(0.65, 0.85) + 0.25 * (np.cos(direction) * x + np.sin(direction) * y)
    ink = colour * light.clip(0.45, 1)[..., None]
    return image + alpha[..., None] * (ink - image)
