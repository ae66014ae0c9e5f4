"""Read how many bytes a video file should have, as .avi, .mkv, .webm and .wmv state it."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import BinaryIO

_EBML, _SEGMENT = b'\x1a\x45\xdf\xa3', b'\x18\x53\x80\x67'
_ASF = uuid.UUID('75b22630-668e-11cf-a6d9-00aa0062ce6c').bytes_le
_ASF_DATA = uuid.UUID('75b22636-668e-11cf-a6d9-00aa0062ce6c').bytes_le
_UNFINISHED = (0, 2**32 - 1)  # sizes of a RIFF file that was never closed


def stated_num_bytes(file: str | Path) -> int | None:
    """Return the least size in bytes that a header states of its file; None where it states none.

    Files written to a pipe, or never closed, and other formats (.ts, .mpg) state none.
    """
    with open(file, 'rb') as content:
        head = content.read(16)
        if head.startswith(b'RIFF'):
            size = int.from_bytes(head[4:8], 'little')
            return None if size in _UNFINISHED else size + 8
        if head.startswith(_EBML):
            return _end_of_segment(content)
        if head == _ASF:
            return _end_of_asf_data(content)
    return None


def _end_of_segment(content: BinaryIO) -> int | None:
    """Return where the segment of a Matroska file ends: it holds all but the header."""
    content.seek(len(_EBML))
    content.seek(_read_length(content) or 0, 1)
    if content.read(len(_SEGMENT)) != _SEGMENT:
        return None
    length = _read_length(content)
    return None if length is None else content.tell() + length


def _read_length(content: BinaryIO) -> int | None:
    """Read a length of EBML, of 1 to 8 bytes; None if it is unknown, which is all bits set."""
    first = (content.read(1) or b'\0')[0]
    if not first:
        return None
    width = 9 - first.bit_length()  # leading zeros, and the bit that ends them
    bits = 7 * width
    value = int.from_bytes(bytes([first]) + content.read(width - 1), 'big') & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value


def _end_of_asf_data(content: BinaryIO) -> int | None:
    """Return where the data of an ASF file ends; its header comes first, its index last."""
    content.seek(16)
    header = int.from_bytes(content.read(8), 'little')
    content.seek(header)
    kind, size = content.read(16), int.from_bytes(content.read(8), 'little')
    return header + size if kind == _ASF_DATA and size else None
