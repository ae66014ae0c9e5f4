"""Text files as users write them: any Unicode encoding, any newline, any separator of a table."""

from __future__ import annotations

import codecs
import csv
import io
import json
import logging
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mmengine.fileio import get
from mmengine.logging import print_log

from .file_formats import describe_content
from .name_forms import composed

# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, 'utf-8'),
    (codecs.BOM_UTF32_LE, 'utf-32-le'),
    (codecs.BOM_UTF32_BE, 'utf-32-be'),
    (codecs.BOM_UTF16_LE, 'utf-16-le'),
    (codecs.BOM_UTF16_BE, 'utf-16-be'),
)
_UTF_16 = ('utf-16-le', 'utf-16-be')
_SEPARATORS = (',', ';', '\t')
_LABELMAP_LINE = re.compile(r'# ?label:.*|[^:]+:(\d+,\d+,\d+)?:[^:]*:[^:]*')  # of CVAT
_NUMBERED_LINE = re.compile(r'(\d+)(?:[.:,;)]?\s+|[,;:)])(\S.*)')
_SEPARATOR_LINE = re.compile(r'"?sep=(\W)"?', re.IGNORECASE)  # the first line of Excel's CSV


def read_text(path: str | Path, backend_args: dict[str, Any] | None = None) -> str:
    r"""Read a text file in any encoding that editors and spreadsheets write.

    UTF-8, UTF-16 and UTF-32 are read with or without a byte order mark (without: UTF-16 by its NUL
    bytes). Other bytes are read as Windows-1252, with one warning that names the file. The text has
    no byte order mark, and each newline is ``\n``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not text in one of these encodings.
    """
    return decode(get(str(path), backend_args=backend_args), str(path))


def decode(content: bytes, name: str) -> str:
    """Decode the bytes of a text file as `read_text` does; `name` is for messages."""
    mark, encoding = next(((m, e) for m, e in _MARKS if content.startswith(m)), (b'', ''))
    encoding = encoding or _encoding_without_mark(content)
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        text = _decode_windows(content, error, name)
    if '\0' in text:
        raise ValueError(f'{name} is not a text file (it has NUL bytes). Fix: save it as UTF-8')
    return text.replace('\r\n', '\n').replace('\r', '\n')


def _encoding_without_mark(content: bytes) -> str:
    """Detect UTF-16 by the NUL bytes of its digits, Latin letters and newlines.

    They all stand at odd places (little-endian) or at even ones, and in any language lines end.
    An ideographic space (U+3000) has a NUL at the other place, so newlines alone decide first.
    """
    if b'\0' not in content or len(content) % 2:
        return 'utf-8'
    little, big = (content.decode(encoding, 'replace').count('\n') for encoding in _UTF_16)
    if not little * big and little + big:
        return _UTF_16[little < big]
    even, odd = content[::2].count(0), content[1::2].count(0)
    if max(even, odd) * 40 < len(content) or max(even, odd) <= 8 * min(even, odd):
        return 'utf-8'
    return 'utf-16-le' if odd > even else 'utf-16-be'


def _decode_windows(content: bytes, fault: UnicodeDecodeError, name: str) -> str:
    """Decode as Windows-1252, which agrees with Latin-1 in all printed letters."""
    reason = f'it is not {fault.encoding.upper()} (byte {fault.start}: {fault.reason})'
    if fault.encoding != 'utf-8' or content.startswith(codecs.BOM_UTF8):
        raise ValueError(f'{name} cannot be decoded, {reason}. Fix: save it as UTF-8') from fault
    try:
        text = content.decode('cp1252')
    except UnicodeDecodeError as error:
        raise ValueError(
            f'{name} cannot be decoded, {reason}, nor Windows-1252. Fix: save it as UTF-8'
        ) from error
    _warn_windows(name, reason)
    return text


@cache
def _warn_windows(name: str, reason: str) -> None:
    print_log(
        f'{name}: read as Windows-1252 (Latin-1): {reason}. If names look wrong, save the file as '
        'UTF-8',
        'current',
        logging.WARNING,
    )


def read_lines(path: str | Path, backend_args: dict[str, Any] | None = None) -> list[str]:
    """Return the lines of a text file without their newlines; line N stands at N - 1.

    Unlike `str.splitlines`, only newlines end a line, not form feeds or Unicode separators.
    """
    lines = read_text(path, backend_args).split('\n')
    return lines[:-1] if lines[-1] == '' else lines


def read_names(path: str | Path, backend_args: dict[str, Any] | None = None) -> list[str]:
    """Return the lines of a text file without blanks around them; empty lines are left out."""
    return [name for line in read_lines(path, backend_args) if (name := line.strip())]


def read_class_names(path: str | Path) -> list[str]:
    """Return the class names in a text file, one a line, their letters composed (NFC).

    Raises:
        ValueError: the lines hold more than names: numbers, several names, or the colours of a
            labelmap.txt of CVAT.
    """
    names = read_names(path)
    if len(names) == 1 and (mark := next((m for m in _SEPARATORS if m in names[0]), '')):
        raise ValueError(
            f'{path} has one line, {names[0]!r}, with {mark!r} in it. Fix: write one name a line'
        )
    if _are_numbered(names):
        raise ValueError(
            f'{path}: each line begins with its number, as {names[0]!r} does. Fix: keep the names '
            'alone, one a line; the first is that of label 0'
        )
    if names and all(_LABELMAP_LINE.fullmatch(name) for name in names):
        raise ValueError(
            f'{path} is a labelmap.txt of CVAT, with lines label:color_rgb:parts:actions, not a '
            'list of names. Fix: `python tools/prepare_data.py masks SegmentationClass --colours '
            f'{path} --out labels` writes label maps and classes.txt; for names alone, keep what '
            'stands before the first colon of each line'
        )
    return [composed(name) for name in names]


def _are_numbered(lines: Sequence[str]) -> bool:
    """Return whether lines are "1 walk", "2 run": numbers from 0 or 1 on, before different names.

    A digit that is part of a name ("3d printer") and amounts ("1 euro", "2 euro") are no numbers.
    """
    found = [match for line in lines if (match := _NUMBERED_LINE.fullmatch(line))]
    if not 1 < len(found) == len(lines):
        return False
    first = int(found[0][1])
    numbers = [int(match[1]) for match in found]
    rests = {match[2] for match in found}
    return numbers == list(range(first, first + len(lines))) and first < 2 and len(rests) > 1


def write_new(path: str | Path, names: Sequence[str], *, overwrite: bool = False) -> None:
    """Write names, one a line, as UTF-8; a file with the same names stays as it is.

    Raises:
        ValueError: the file has other content, and `overwrite` is not set.
    """
    file = Path(path)
    if file.exists() and not overwrite:
        refuse_other_names(file, names)
    else:
        file.write_text(''.join(f'{name}\n' for name in names), encoding='utf-8')


def refuse_other_names(path: str | Path, names: Sequence[str]) -> None:
    """Raise ValueError where a file exists and its lines are not these names."""
    if Path(path).exists() and read_names(path) != list(names):
        raise ValueError(
            f'{path} exists with other names, and nothing is overwritten. Fix: move it, choose '
            'another --out, or set --overwrite where the command has it'
        )


def read_json(path: str | Path, backend_args: dict[str, Any] | None = None) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON; names the file, and its format or the line and the column.
    """
    content = get(str(path), backend_args=backend_args)
    try:
        return json.loads(decode(content, str(path)))
    except (ValueError, RecursionError) as error:
        if known := describe_content(content, str(path)):
            raise ValueError(f'{path} is not JSON, {known}') from error
        if isinstance(error, (json.JSONDecodeError, RecursionError)):
            raise ValueError(f'{path} is not JSON ({error})') from error
        raise


class Table:
    """A CSV file with a header, its rows by column name, without blanks around any value.

    Commas, semicolons or TABs separate: the one that the header has most of, or the one that a
    first line ``sep=;`` names, as Excel writes it. Empty lines, and columns at the end without name
    and values, are left out.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        lines = read_text(path).split('\n')
        stated = _SEPARATOR_LINE.fullmatch(lines[0])
        if stated:
            lines[0] = ''  # line numbers stay
        header = next((line for line in lines if line.strip()), '')
        separator = stated[1] if stated else max(_SEPARATORS, key=header.count)
        # strict: a quote without an end would swallow the rows below it
        self._reader = csv.reader(io.StringIO('\n'.join(lines)), delimiter=separator, strict=True)
        self.columns = next((row for row in self._rows() if any(row)), [])
        while self.columns and not self.columns[-1]:
            self.columns.pop()
        if twice := sorted({name for name in self.columns if self.columns.count(name) > 1}):
            raise ValueError(f'{path}: the header names the columns {twice} twice')

    def __iter__(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield (line number, row); raise ValueError where a row has another number of fields."""
        for values in self._rows():
            if not any(values):
                continue
            if not any(values[len(self.columns) :]):
                values = values[: len(self.columns)]
            if len(values) != len(self.columns):
                raise ValueError(
                    f'{self.path}, line {self._reader.line_num}: has {len(values)} fields, the '
                    f'header has {len(self.columns)}: quote fields that contain the separator'
                )
            yield self._reader.line_num, dict(zip(self.columns, values, strict=True))

    def _rows(self) -> Iterator[list[str]]:
        """Yield the fields of each row without blanks around them."""
        begin = self._reader.line_num + 1
        try:
            for fields in self._reader:
                yield [field.strip() for field in fields]
                begin = self._reader.line_num + 1
        except csv.Error as error:
            raise ValueError(
                f'{self.path}, line {begin}: the quotes are not closed where the field ends '
                f'({error}). Fix: write a quote within a quoted field twice, or remove it'
            ) from error
