"""Text in drawings: every letter in a font that has it, each class name drawn differently.

ASCII is drawn in Pillow's own font. Other letters come from DejaVu Sans, which matplotlib brings
along (Latin, Greek, Cyrillic, Arabic, Hebrew), or else from a font of the system, as Chinese,
Japanese and Korean do.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib import font_manager, get_data_path
from matplotlib.ft2font import FT2Font
from mmengine.logging import print_log
from PIL import ImageDraw, ImageFont, features

from .palette import Colour

_CUT = '…'  # in place of letters left out
_PILLOW = ''  # the name of Pillow's own font, which has no file
_DEJAVU = str(Path(get_data_path(), 'fonts/ttf/DejaVuSans.ttf'))


class TextLine:
    """One line of text at `size` pixels, to be measured and drawn.

    A letter that no font has is drawn as its code, such as `U+732B` is in Python, so that different
    texts stay different. Several texts stand side by side, each in its own direction: a number does
    not change places with an Arabic name. The longest text is shortened in its middle where the
    line is wider than `max_width` pixels.
    """

    def __init__(
        self, text: str | Sequence[str], size: float, *, max_width: float | None = None
    ) -> None:
        self.size = size
        texts = [text] if isinstance(text, str) else list(text)
        self.runs = self._runs_of(texts)
        while max_width is not None and self.width > max_width:
            place = max(range(len(texts)), key=lambda i: len(texts[i]))
            letters = texts[place].replace(_CUT, '')
            if len(letters) < 4:
                break
            middle = len(letters) // 2
            texts[place] = letters[:middle] + _CUT + letters[middle + 1 :]
            self.runs = self._runs_of(texts)

    def _runs_of(self, texts: Sequence[str]) -> list[tuple[str, Any]]:
        """Return (part of a text, its font) from left to right."""
        return [
            (run, _font(file, self.size)) for text in texts for run, file in _runs(_drawable(text))
        ]

    @property
    def width(self) -> int:
        """Width in pixels, rounded up."""
        return int(sum(font.getlength(run) for run, font in self.runs)) + 1

    def draw(self, draw: ImageDraw.ImageDraw, corner: tuple[float, float], colour: Any) -> None:
        """Draw with the upper left corner of the text at `corner`, (x, y) in pixels."""
        x, y = corner
        for run, font in self.runs:  # all on one base line
            draw.text((x, y + round(0.9 * self.size)), run, fill=colour, font=font, anchor='ls')
            x += font.getlength(run)


@lru_cache
def drawn_names(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return how each class is named in drawings: no two are the same.

    A name is drawn as it is where fonts have all its letters. Otherwise it is numbered by its place
    (`#0`), and a warning lists once which number is which name.
    """
    drawn: list[str] = []
    numbered: list[str] = []
    for number, name in enumerate(classes):
        shown = unicodedata.normalize('NFC', name)
        if shown in drawn or _drawable(shown) != shown or not shown.strip():
            shown = f'#{number}'
            while shown in classes or shown in drawn:
                shown = f'#{shown}'
            numbered.append(f'{shown} = {name!r}')
        drawn.append(shown)
    if numbered:
        print_log(
            f'{len(numbered)} class names are numbered in drawings, since no font here has their '
            'letters or another class is drawn the same; install a font that has them, such as '
            f'the package fonts-noto-cjk: {", ".join(numbered)}',
            logger='current',
            level=logging.WARNING,
        )
    return tuple(drawn)


def font_families(texts: Sequence[str]) -> list[str]:
    """Return the font families in which matplotlib finds all letters of `texts`."""
    files = {file for text in texts for _, file in _runs(text) if file not in (_PILLOW, _DEJAVU)}
    for file in files:
        font_manager.fontManager.addfont(file)
    names = (font_manager.FontProperties(fname=file).get_name() for file in sorted(files))
    return ['DejaVu Sans', *names]


def _drawable(text: str) -> str:
    """Write the code of each letter that no font has in its place."""
    text = unicodedata.normalize('NFC', text)
    return ''.join(
        letter if _file_with(letter) is not None else letter.encode('unicode-escape').decode()
        for letter in text
    )


def _runs(text: str) -> Iterator[tuple[str, str]]:
    """Split into parts that one font draws: (part, file of the font).

    ASCII among other letters is drawn in their font where it has them, as Latin letters are.
    """
    fonts = {_file_with(letter) or _PILLOW for letter in text}
    other = fonts - {_PILLOW}
    if len(other) == 1 and _letters_of(file := other.pop()).issuperset(map(ord, text)):
        yield text, file
        return
    for file, letters in groupby(text, key=lambda letter: _file_with(letter) or _PILLOW):
        yield ''.join(letters), file


@lru_cache(4096)
def _file_with(letter: str) -> str | None:
    """Return the font file that has a letter; None where there is none."""
    if letter.isascii():
        return _PILLOW if letter.isprintable() else None
    right_to_left = unicodedata.bidirectional(letter) in ('R', 'AL')
    if not letter.isprintable() or (right_to_left and not features.check('raqm')):
        return None
    files = (file for file in (_DEJAVU, *_system_fonts()) if ord(letter) in _letters_of(file))
    return next(files, None)


@lru_cache(1)
def _system_fonts() -> tuple[str, ...]:
    """Return the font files of the system, regular faces first."""
    styled = ('bold', 'italic', 'oblique', 'light', 'black', 'thin', 'mono', 'condensed')
    files = font_manager.findSystemFonts()
    return tuple(sorted(files, key=lambda file: (any(s in file.lower() for s in styled), file)))


@lru_cache(None)
def _letters_of(file: str) -> frozenset[int]:
    """Return the code points of a font; none where it has no outlines or cannot be read."""
    try:
        font = FT2Font(file)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (RuntimeError, OSError):
        return frozenset()


@lru_cache(256)
def _font(file: str, size: float) -> Any:
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)


def draw_label(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: TextLine,
    colour: Colour,
) -> None:
    """Draw a filled label whose lower left corner is at `corner`, moved to lie within the image."""
    width, height = text.width + 6, round(1.15 * text.size) + 2
    x = max(0, min(corner[0], draw.im.size[0] - width))
    y = max(0, min(corner[1] - height, draw.im.size[1] - height))
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    text.draw(draw, (x + 3, y + 1), 'black' if bright else 'white')
