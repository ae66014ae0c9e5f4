"""docs/adopt.md as data: its diffs, applied to mmdet's configs, and its table of detectors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sweep.stock_configs import STOCK

PAGE = Path(__file__).resolve().parents[2] / 'docs/adopt.md'
_DIFF = re.compile(
    r'```diff\n--- (\S+)\n\+\+\+ \1\n@@ -(\d+),(\d+) \+\d+,(\d+) @@\n(.*?)```', re.DOTALL
)
_PART = re.compile(r'`(\S+?)`')


@dataclass(frozen=True)
class Diff:
    """A unified diff of one hunk."""

    config: str
    first: int  # line of the hunk in the stock config, counted from 1
    counts: tuple[int, int]  # lines before, lines after
    lines: tuple[str, ...]

    def side(self, sign: str) -> list[str]:
        """The hunk before ('-') or after ('+')."""
        return [line[1:] for line in self.lines if line[0] in f' {sign}']

    def applied(self) -> str:
        """The stock config with the diff; its context has to stand where the diff says."""
        source = (STOCK / self.config).read_text().splitlines()
        before, after = self.side('-'), self.side('+')
        start, stop = self.first - 1, self.first - 1 + len(before)
        assert (len(before), len(after)) == self.counts, f'{self.config}: the header miscounts'
        assert source[start:stop] == before, f'{self.config}: the context is another'
        return '\n'.join([*source[:start], *after, *source[stop:]])


@dataclass(frozen=True)
class Row:
    """What the page says of a class of detectors."""

    detector: str
    config: str
    norms: tuple[str, ...]  # the parts of the model whose norm_cfg is to be set
    keeps: bool  # whether a norm over the canvas is left
    sees: str  # letters of the page's legend
    needs: str  # why it may not run here


def diffs() -> list[Diff]:
    return [
        Diff(path, int(first), (int(before), int(after)), tuple(text.splitlines()))
        for path, first, before, after, text in _DIFF.findall(PAGE.read_text())
    ]


def rows() -> list[Row]:
    table = PAGE.read_text().split('## By detector')[1]
    cells = [line.split('|')[1:-1] for line in table.splitlines() if '.py`' in line]
    return [
        Row(
            detector=detector.strip(),
            config=_PART.findall(config)[0],
            norms=tuple(_PART.findall(norms)),
            keeps='keeps' in norms,
            sees=sees.strip(),
            needs=needs.strip(),
        )
        for detector, config, norms, sees, needs in cells
    ]
