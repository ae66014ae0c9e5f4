"""Detect by its first bytes the format of a file that cannot be read."""

from __future__ import annotations

import shlex
from collections.abc import Callable

_CONVERT = 'convert it to JPEG or PNG, as with `magick {} {}.png`'
_DOWNLOAD = 'get the file itself again'

_HEAD = 512  # bytes that tell a format

# (test of the first bytes, name, fix)
_FORMATS: tuple[tuple[Callable[[bytes], bool], str, str], ...] = (
    (lambda head: not head, 'empty', _DOWNLOAD),
    (lambda head: head[4:12] in (b'ftypavif', b'ftypavis'), 'an AVIF image', _CONVERT),
    (
        lambda head: (
            head[4:8] == b'ftyp'
            and head[8:12]
            in (b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'mif1', b'msf1')
        ),
        'an HEIC image, as iPhones write it',
        _CONVERT,
    ),
    (
        lambda head: head.startswith((b'\xff\x0a', b'\0\0\0\x0cJXL \r\n\x87\n')),
        'a JPEG XL image',
        _CONVERT,
    ),
    (
        lambda head: head.startswith((b'\0\0\0\x0cjP  \r\n', b'\xff\x4f\xff\x51')),
        'a JPEG 2000 image',
        _CONVERT,
    ),
    (lambda head: head.startswith((b'GIF87a', b'GIF89a')), 'a GIF image', _CONVERT),
    (lambda head: head.startswith(b'8BPS'), 'a Photoshop file (PSD)', _CONVERT),
    (lambda head: head.startswith(b'%PDF'), 'a PDF', _CONVERT),
    (lambda head: b'<svg' in head.lower(), 'an SVG drawing', _CONVERT),
    (
        lambda head: head.lstrip().lower().startswith((b'<!doctype html', b'<html')),
        'a web page, as servers send in place of a file that is gone',
        _DOWNLOAD,
    ),
    (
        lambda head: head.startswith(b'version https://git-lfs'),
        'a pointer of Git LFS',
        'fetch the file itself with `git lfs pull`',
    ),
    (lambda head: head.startswith(b'PK\x03\x04'), 'a ZIP archive', 'unpack it'),
    (lambda head: head.startswith(b'\x1f\x8b'), 'a gzip archive', 'unpack it'),
    (
        lambda head: head.startswith(b'\x93NUMPY'),
        'a NumPy array (.npy)',
        'save it as PNG, as with Image.fromarray(numpy.load(...)).save(...)',
    ),
)


def describe_format(file: str) -> str:
    """Describe the format of a file that cannot be read, and the fix; '' if it is unknown.

    The suffix plays no part: phones, servers and people write other formats as .jpg.
    """
    try:
        with open(file, 'rb') as content:
            head = content.read(_HEAD)
    except OSError:
        return ''
    return describe_content(head, file)


def describe_content(content: bytes, file: str) -> str:
    """Describe the content of a file as `describe_format` does."""
    head = content[:_HEAD]
    for matches, name, fix in _FORMATS:
        if matches(head):
            quoted = shlex.quote(file)
            return f'the file is {name}. Fix: {fix.format(quoted, quoted)}'
    return ''


# first bytes of formats that OpenCV reads
_READABLE = {
    b'\xff\xd8\xff': 'a JPEG image',
    b'\x89PNG\r\n\x1a\n': 'a PNG image',
    b'II*\0': 'a TIFF image',
    b'MM\0*': 'a TIFF image',
    b'BM': 'a BMP image',
    b'RIFF': 'a WebP image',
}


def describe_damage(file: str) -> str:
    """Describe why OpenCV cannot decode an image file, and the fix."""
    if known := describe_format(file):
        return known
    try:
        with open(file, 'rb') as content:
            head = content.read(_HEAD)
    except OSError as error:
        return f'the file cannot be opened: {error.strerror}'
    name = next((name for magic, name in _READABLE.items() if head.startswith(magic)), '')
    fault = f'{name} that is damaged or incomplete' if name else 'of no image format known here'
    return f'the file is {fault}. Fix: {_DOWNLOAD}, or remove it'
