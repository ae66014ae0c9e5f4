"""Match names whose letters are written in several ways, as é in one code point or in two.

macOS stores some names decomposed (NFD), and most editors write them composed (NFC).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from unicodedata import normalize


def composed(name: str) -> str:
    """Return a name with its letters composed (NFC), the form in which class names are compared."""
    return name if name.isascii() else normalize('NFC', name)


def path_in(folder: str | os.PathLike[str], name: str) -> str:
    """Return the path of a listed name in a folder, in the form that exists; else as listed."""
    listed = os.path.join(folder, name)
    if name.isascii() or os.path.exists(listed):
        return listed
    others = (os.path.join(folder, normalize(form, name)) for form in ('NFC', 'NFD'))
    return next(filter(os.path.exists, others), listed)


def matched(names: Iterable[str], there: Iterable[str]) -> list[str]:
    """Return names as they are `there`, where they differ only in the form of letters."""
    known = {composed(name): name for name in there}
    return [known.get(composed(name), name) for name in names]
