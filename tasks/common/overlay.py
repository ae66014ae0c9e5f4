"""Label maps over their pictures, with a legend; all at the picture's own size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .fonts import TextLine, drawn_names
from .palette import Colour

IGNORED = 255
_INK, _PAPER, _NO_CLASS = (30, 30, 34), (250, 250, 248), (120, 120, 120)
_MARGIN = 12


def overlay(image: np.ndarray, labels: np.ndarray, colours: Sequence[Colour]) -> Image.Image:
    """The picture [h, w, 3] (RGB), its classes in their colours, half through.

    A dark line runs along the borders of regions. Ignored pixels keep the picture's own colours.
    """
    table = np.array([*colours], dtype=np.uint8)
    known = labels != IGNORED
    out = image.copy()
    out[known] = image[known] // 2 + table[labels[known]] // 2
    edge = np.zeros(labels.shape, dtype=bool)
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    out[edge] = out[edge] // 3
    return Image.fromarray(out)


def shares(labels: np.ndarray) -> dict[int, float]:
    """The share of the picture that each label in it has, the largest first."""
    numbers, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind='stable')
    return {int(numbers[i]): float(counts[i] / labels.size) for i in order}


def legend(
    found: dict[int, float], classes: Sequence[str], colours: Sequence[Colour], height: int
) -> Image.Image:
    """Colour, name and share of each label, in as many columns as the height asks for."""
    size = min(40, max(14, height // 45))
    row, drawn = round(size * 1.6), drawn_names(tuple(classes))
    names = {label: drawn[label] if label != IGNORED else 'ignored' for label in found}
    texts = {
        label: TextLine((names[label], f'  {100 * share:.1f} %'), size)
        for label, share in found.items()
    }
    rows = max(1, (height - 2 * _MARGIN) // row)
    columns = math.ceil(len(texts) / rows)
    width = row + max(text.width for text in texts.values()) + 2 * _MARGIN
    panel = Image.new('RGB', (columns * width, height), _PAPER)
    draw = ImageDraw.Draw(panel)
    for place, (label, text) in enumerate(texts.items()):
        x, y = place // rows * width + _MARGIN, place % rows * row + _MARGIN
        colour = _NO_CLASS if label == IGNORED else colours[label]
        draw.rectangle((x, y, x + size, y + size), fill=colour, outline=_INK)
        text.draw(draw, (x + row, y), _INK)
    return panel


def labelled(
    image: np.ndarray,
    maps: Sequence[np.ndarray],
    classes: Sequence[str],
    colours: Sequence[Colour],
    *,
    titles: Sequence[str] = (),
) -> Image.Image:
    """The picture under each of the label maps, side by side, each with its title and legend.

    With one map and no title the picture stands in the upper left corner, at its own size.
    """
    height = max(image.shape[0], 120)
    parts = []
    for labels in maps:
        parts += [overlay(image, labels, colours), legend(shares(labels), classes, colours, height)]
    line = 28 if titles else 0
    sheet = Image.new('RGB', (sum(part.width for part in parts), height + line), _PAPER)
    draw, x = ImageDraw.Draw(sheet), 0
    for number, part in enumerate(parts):
        if titles and number % 2 == 0:
            TextLine(titles[number // 2], 18).draw(draw, (x + 4, 4), _INK)
        sheet.paste(part, (x, line))
        x += part.width
    return sheet


def label_picture(labels: np.ndarray, colours: Sequence[Colour]) -> Image.Image:
    """A PNG's worth of class numbers that viewers show in colours: mode P."""
    picture = Image.fromarray(labels.astype(np.uint8), mode='P')
    every = [*colours, *[_NO_CLASS] * (256 - len(colours))]  # of fewer, PNG keeps fewer bits
    picture.putpalette([value for colour in every for value in colour])
    return picture
