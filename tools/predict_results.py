"""File of results of tools/predict.py: lines while it runs, one JSON at the end."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from navit_backbone.file_writing import written_whole


class Results:
    """Results of all inputs, on disk after each of them.

    While predict runs, `predictions.jsonl` gains a line for each input; its first line is `header`.
    A process that is killed leaves it: each line is a JSON object of its own. `finish` turns it
    into `predictions.json`: the header with the lists in `lists`, of which the first has an entry
    for each input, and with `skipped` and `not_drawn`. Neither time nor memory grows faster than
    the number of inputs, and memory with those that fail only.

    The lines of an earlier run that was killed are renamed, never overwritten: `kept` is their new
    file, or None. A `predictions.json` of an earlier run is replaced.
    """

    def __init__(self, out_dir: Path, header: Mapping[str, Any], lists: Sequence[str]) -> None:
        out_dir.mkdir(parents=True, exist_ok=True)
        self.lines, self.whole = out_dir / 'predictions.jsonl', out_dir / 'predictions.json'
        self.count = 0
        self.failed: dict[str, list[dict[str, str]]] = {'skipped': [], 'not_drawn': []}
        self._header, self._lists = dict(header), lists
        self._num_rows = 0
        self._shown: set[type[Exception]] = set()
        self.kept = _keep_aside(self.lines)
        self._file = self.lines.open('wb', buffering=0)
        self._append(self._header)
        self.whole.unlink(missing_ok=True)  # it holds the results of a run before

    def add(self, entry: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] = ()) -> None:
        """Write the entry of an input, and its rows in the second list; both are numbered."""
        listed, *further = self._lists
        entry = {'id': self.count + 1, **entry}
        first = self._num_rows + 1
        numbered = [{'id': first + i, 'image_id': entry['id'], **row} for i, row in enumerate(rows)]
        self._append({listed: entry, **dict.fromkeys(further, numbered)})
        self.count += 1
        self._num_rows += len(rows)

    def fail(self, kind: str, file: Path, reason: str, unexpected: Exception | None = None) -> None:
        """List an input that was `skipped`, or predicted but `not_drawn`.

        An `unexpected` error may be one of the code: the first of its type prints its traceback.
        """
        if unexpected is not None and type(unexpected) not in self._shown:
            self._shown.add(type(unexpected))
            traceback.print_exception(unexpected)
        item = {'file_name': str(file), 'reason': reason}
        self.failed[kind].append(item)
        with suppress(OSError):  # where the disk is full, the list in memory has it still
            self._append({kind: item})

    def finish(self) -> None:
        """Write predictions.json, and remove the lines; raise OSError where the disk is full."""
        with written_whole(self.whole) as aside, aside.open('w', encoding='utf-8') as out:
            out.write(json.dumps(self._header, indent=1).removesuffix('\n}'))
            for name in self._lists:
                _write_list(out, name, self._entries(name))
            for name, items in self.failed.items():
                _write_list(out, name, items)
            out.write('\n}\n')
        self._file.close()
        self.lines.unlink()

    def _append(self, content: Mapping[str, Any]) -> None:
        """Write one line, or none where it does not fit on the disk."""
        line = memoryview(f'{json.dumps(content)}\n'.encode())
        start = self._file.tell()
        try:
            while line:  # a write may take a part
                line = line[self._file.write(line) :]
        except BaseException:
            self._file.truncate(start)
            self._file.seek(start)
            raise

    def _entries(self, name: str) -> Iterator[Any]:
        with self.lines.open(encoding='utf-8') as lines:
            next(lines)  # the header
            for line in lines:
                content = json.loads(line).get(name, [])
                yield from content if isinstance(content, list) else [content]


def _keep_aside(lines: Path) -> Path | None:
    """Rename the lines of a killed run to a free name; return it, or None where they hold none."""
    if not lines.is_file():
        return None
    with lines.open('rb') as content:
        if sum(1 for _ in zip(content, range(2), strict=False)) < 2:  # a header at most
            return None
    number = 1
    while (kept := lines.with_name(f'{lines.stem}_killed_{number}{lines.suffix}')).exists():
        number += 1
    return lines.rename(kept)


def _write_list(out: Any, name: str, items: Any) -> None:
    out.write(f',\n {json.dumps(name)}: [')
    separator = ''
    for item in items:
        out.write(f'{separator}\n  {json.dumps(item)}')
        separator = ','
    out.write('\n ]' if separator else ']')
