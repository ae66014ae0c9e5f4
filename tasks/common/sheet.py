"""Pictures side by side on one sheet: a row for each example, a column for each view of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .fonts import TextLine
from .resampling import resize_image

_INK, _PAPER = (30, 30, 34), (250, 250, 248)
_GAP, _LINE = 10, 22  # pixels


def sheet(
    rows: Sequence[tuple[str, Sequence[Image.Image]]],
    columns: Sequence[str],
    *,
    cell: tuple[int, int] = (360, 300),
) -> Image.Image:
    """Each row with its text above it; pictures are scaled to lie within `cell` (width, height)."""
    shown = [(text, [_within(picture, cell) for picture in row]) for text, row in rows]
    heights = [max(picture.height for picture in row) + _LINE + _GAP for _, row in shown]
    width = len(columns) * (cell[0] + _GAP) + _GAP
    out = Image.new('RGB', (width, sum(heights) + _LINE + _GAP), _PAPER)
    draw = ImageDraw.Draw(out)
    for number, name in enumerate(columns):
        TextLine(name, 16, max_width=cell[0]).draw(
            draw, (_GAP + number * (cell[0] + _GAP), 5), _INK
        )
    y = _LINE + _GAP
    for (text, row), height in zip(shown, heights, strict=True):
        TextLine(text, 14, max_width=width - 2 * _GAP).draw(draw, (_GAP, y), _INK)
        for number, picture in enumerate(row):
            out.paste(picture, (_GAP + number * (cell[0] + _GAP), y + _LINE))
        y += height
    return out


def _within(picture: Image.Image, cell: tuple[int, int]) -> Image.Image:
    scale = min(cell[0] / picture.width, cell[1] / picture.height)
    w, h = (max(1, round(side * scale)) for side in picture.size)
    return Image.fromarray(resize_image(np.asarray(picture), (h, w), 'lanczos'))
