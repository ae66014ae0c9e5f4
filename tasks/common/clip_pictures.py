"""Contact sheets of clips as the model sees them: frames with their patch grid, by tubelets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from navit_backbone.packing import PatchShape

from .fonts import TextLine
from .resampling import resize_image

_INK, _FAINT, _PAPER = (30, 30, 34), (110, 110, 118), (250, 250, 248)
_GAP, _LINE, _MARGIN = 6, 20, 14
_WIDTH = 1400  # pixels that a line of frames takes at most


def clip_sheet(
    frames: np.ndarray, shapes: Sequence[PatchShape], indices: Sequence[int], title: str
) -> Image.Image:
    """The frames [t, h, w, 3] of a clip in order, under each its number in the file.

    The grid is that of the first patch shape; frames of one tubelet stand close together. The
    heading says how many tokens each shape makes of the clip.
    """
    count, h, w = frames.shape[:3]
    span, rows, columns = shapes[0]
    zoom = max(1, 160 // max(h, w))
    tiles = [_gridded(frame, (rows, columns), zoom) for frame in frames]
    steps = [list(range(first, min(first + span, count))) for first in range(0, count, span)]
    width = max(len(step) for step in steps) * (w * zoom + 1) + _GAP
    per_line = max(1, _WIDTH // width)
    lines = math.ceil(len(steps) / per_line)
    tokens = ', '.join(
        f'{-(-count // t)} x {-(-h // p)} x {-(-w // q)} tubelets of {t} x {p} x {q} = '
        f'{-(-count // t) * -(-h // p) * -(-w // q):,} tokens'
        for t, p, q in shapes
    )
    heading, details = TextLine(tokens, 18), TextLine(title, 13)
    size = (
        max(per_line * width, heading.width, details.width) + 2 * _MARGIN,
        64 + lines * (h * zoom + _LINE + _GAP) + _MARGIN,
    )
    sheet = Image.new('RGB', size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    heading.draw(draw, (_MARGIN, 10), _INK)
    details.draw(draw, (_MARGIN, 36), _FAINT)
    for number, step in enumerate(steps):
        x = _MARGIN + number % per_line * width
        y = 64 + number // per_line * (h * zoom + _LINE + _GAP)
        for place, frame in enumerate(step):
            left = x + place * (w * zoom + 1)
            sheet.paste(tiles[frame], (left, y))
            TextLine(str(indices[frame]), 13).draw(draw, (left, y + h * zoom + 2), _FAINT)
    return sheet


def _gridded(frame: np.ndarray, patch: tuple[int, int], zoom: int) -> Image.Image:
    h, w = frame.shape[:2]
    picture = Image.fromarray(resize_image(frame, (h * zoom, w * zoom)))
    lines = Image.new('RGBA', picture.size)
    draw = ImageDraw.Draw(lines)
    for x in range(0, w * zoom, patch[1] * zoom):
        draw.line((x, 0, x, h * zoom), fill=(255, 255, 255, 90))
    for y in range(0, h * zoom, patch[0] * zoom):
        draw.line((0, y, w * zoom, y), fill=(255, 255, 255, 90))
    return Image.alpha_composite(picture.convert('RGBA'), lines).convert('RGB')
