"""Names of the files that tools write, none in the place of another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .picture_sizes import PICTURE_SUFFIXES

_KEPT = ('.jpg', '.jpeg', '.png')  # suffixes that drawings keep


class OutputNames:
    """Output path of each input below one folder; no two inputs get the same.

    `also` returns a further file that is written next to a drawing, such as a label map; the two
    share one namespace. With `clips`, an input that has no suffix of an image is drawn as a video.
    """

    def __init__(self, also: Callable[[Path], Path] | None = None, *, clips: bool = False) -> None:
        self._also, self._clips = also, clips
        self._taken: set[str] = set()

    def assign(self, inner: Path) -> Path:
        """Return where the drawing of the input at `inner`, relative to its folder, is written.

        Sub-folders and suffixes stay; an image or video of a kind that is not written gains .png or
        .mp4. A name that is taken gains a number. Case does not tell names apart, since not all
        file systems keep it.
        """
        suffix = inner.suffix.lower()
        written = '.mp4' if self._clips and suffix not in PICTURE_SUFFIXES else '.png'
        kept = suffix in (*_KEPT, written)
        target = inner if kept else inner.with_name(f'{inner.name}{written}')
        number, stem = 1, target.stem
        while not self._taken.isdisjoint(names := self._names(target)):
            number += 1
            target = target.with_stem(f'{stem}_{number}')
        self._taken |= names
        return target

    def _names(self, target: Path) -> set[str]:
        files = [target] if self._also is None else [target, self._also(target)]
        return {str(file).lower() for file in files}
