"""Read clips from videos, folders of frames and images: only the frames asked for, as shown.

PyAV decodes videos. Frames are numbered in order of presentation, turned upright, and their pixels
made square.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import av
import av.error
import cv2
import numpy as np
from av.video.frame import PictureType

from .file_formats import describe_damage
from .folders import visible
from .frame_table import (
    ASSUMED_FPS,
    read_frame_table,
    video_stream,
)
from .picture_sizes import PICTURE_SUFFIXES, Measured, picture_size
from .resampling import resize_image
from .sample import UnreadableVideoError

# Suffixes of the files taken for clips when a folder is searched.
VIDEO_SUFFIXES = (
    '.mp4', '.avi', '.mkv', '.webm', '.mov', '.m4v', '.mpg', '.mpeg', '.wmv', '.flv', '.ts', '.mts',
    '.m2ts', '.vob', '.3gp', '.ogv',
)  # fmt: skip


class ClipReader(Protocol):
    """Interface of the readers. Sizes are (height, width) of the frames as shown."""

    num_frames: int
    fps: float
    size: tuple[int, int]
    times: np.ndarray  # [num_frames] seconds after the first frame at which each is shown, rising

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return frames [len(indices), h, w, 3] RGB uint8, in the order of `indices`."""

    def frames(self) -> Iterator[np.ndarray]:
        """Yield every frame [h, w, 3] RGB uint8 in order of presentation."""


def open_video(file: str) -> PyAVReader:
    """Return the reader of a video file; raise UnreadableVideoError with the reason."""
    if not os.path.isfile(file):
        raise FileNotFoundError(f'{file}: there is no such file')
    if not os.path.getsize(file):
        raise UnreadableVideoError(f'{file}: the file is empty')
    return PyAVReader(file)


class PyAVReader:
    """Reader of a video file that decodes from the key frame before the frames asked for.

    Opening reads all packets and decodes none, since they state when each frame is shown. After a
    seek, frames are accepted only if the first is a key frame of the table and the others follow
    without a gap; otherwise the file is decoded from its start. Where packets do not state the
    times (no clock, or B-frames in .avi and .wmv), or the first frame is not whole, opening decodes
    the file once to count its frames.

    Raises UnreadableVideoError if the file is broken or cut off.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        try:
            with av.open(file) as container:
                self._table = read_frame_table(container)
        except _FAULTS as error:
            raise self._unreadable(error) from error
        stamps = self._table.stamps
        if stamps is None:
            decoded = [frame.pts for frame in self._decode()]
            self._table = self._table.with_decoded(decoded)
        self.num_frames = len(decoded if stamps is None else stamps)
        if not self.num_frames:
            raise UnreadableVideoError(f'{file}: no frames in it')
        self._numbers = {stamp: i for i, stamp in enumerate(self._table.stamps or ())}
        keys = [self._numbers[s] for s in self._table.key_stamps if s in self._numbers]
        self._keys = np.array(sorted(keys), dtype=np.int64)
        self.times, self.fps = self._table.clock(self.num_frames)

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width) of the first frame as shown; decodes it."""
        first = next(self._decode(), None)
        if first is None:
            raise self._undecodable(0)
        h, w = self._square_size(first)
        return (w, h) if _quarter_turns(first) % 2 else (h, w)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return frames [len(indices), h, w, 3]; raise UnreadableVideoError if one is missing."""
        asked = np.asarray(indices).tolist()
        rest = sorted(set(asked), reverse=True)
        found = dict(self._from_keys(rest)) if self._table.stamps is not None else {}
        if rest:
            found |= self._from_start(rest)
        return np.stack([found[number] for number in asked])

    def frames(self) -> Iterator[np.ndarray]:
        """Yield every frame [h, w, 3]; raise UnreadableVideoError if one is missing."""
        expected = 0
        for number, frame in self._numbered():
            if number != expected:
                break
            yield self._shown(frame)
            expected += 1
        if expected < self.num_frames:
            raise self._undecodable(expected)

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Yield the decoded frames from the start of the file."""
        count = 0
        try:
            with av.open(self.file) as container:
                for frame in container.decode(video_stream(container)):
                    count += 1
                    yield frame
        except _FAULTS as error:
            if count and isinstance(error, av.error.InvalidDataError):
                raise UnreadableVideoError(
                    f'{self.file}: damaged, decoding stops after {count} frames'
                ) from error
            raise self._unreadable(error) from error

    def _numbered(self) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield (number, frame) from the start, by presentation time where that is stated."""
        if self._table.stamps is None:
            yield from enumerate(self._decode())
            return
        last = -1
        for frame in self._decode():
            number = self._numbers.get(frame.pts, -1)
            if number < 0:
                continue  # before the first key frame
            if number <= last:
                raise UnreadableVideoError(f'{self.file}: its frames are decoded out of order')
            yield number, frame
            last = number

    def _from_start(self, rest: list[int]) -> dict[int, np.ndarray]:
        """Return the frames numbered in `rest`, descending, decoded from the start of the file."""
        found, wanted = {}, set(rest)
        for number, frame in self._numbered():
            if number in wanted:
                found[number] = self._shown(frame)
            if number >= rest[0]:
                break
        if missing := wanted - set(found):
            raise self._undecodable(min(missing))
        return found

    def _from_keys(self, rest: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Take frames from the end of `rest`, descending, up to the first that no seek reaches."""
        with ExitStack() as stack:
            stream = None
            try:
                while rest:
                    nearest, before = self._key_before(rest[-1]), len(rest)
                    # some containers land on a key frame after the one asked for
                    for place in sorted({max(nearest - back, 0) for back in (0, 1, 4)})[::-1]:
                        if place and stream is None:
                            stream = video_stream(stack.enter_context(av.open(self.file)))
                        yield from self._from_key(stream, place, rest)
                        if len(rest) < before:
                            break
                    else:
                        return
            except _FAULTS:
                return  # decoding from the start gives the reason

    def _from_key(
        self, stream: Any, place: int, rest: list[int]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Take frames from the end of `rest`, decoding from a key frame, or the start for place 0.

        Stops at a frame out of sequence, and where a seek is nearer to the next frame.
        """
        stamps, keys = self._table.stamps, self._keys
        assert stamps is not None, 'frames are looked up by their stamps'
        start, frames = 0, self._decode()  # a seek to the start may land behind it
        if place:
            start = keys[place]
            stream.container.seek(stamps[start], stream=stream)
            frames = stream.container.decode(stream)
        landed = expected = -1
        for frame in frames:
            number = self._numbers.get(frame.pts, -1)
            if landed < 0:
                if frame.pts is not None and frame.pts > stamps[rest[-1]]:
                    return
                is_key = frame.key_frame and frame.pict_type == PictureType.I and number in keys
                if number < 0 or (place and not is_key):
                    continue
                landed = expected = number
            if number != expected or frame.is_corrupt:
                return
            expected += 1
            if number == rest[-1]:
                yield rest.pop(), self._shown(frame)
                place = self._key_before(rest[-1]) if rest else 0
                # after an early landing the next seek would land there too
                if not rest or (landed >= start and place > 0 and keys[place] > expected):
                    return

    def _key_before(self, number: int) -> int:
        """Return the place among the key frames of the last one up to frame `number`, or -1."""
        return int(np.searchsorted(self._keys, number, side='right')) - 1

    def _shown(self, frame: av.VideoFrame) -> np.ndarray:
        """Return a frame [h, w, 3] RGB with square pixels, upright, of the size of the first."""
        h, w = self._square_size(frame)
        turns = _quarter_turns(frame)
        if (frame.height, frame.width) != self._table.size:  # it can change within a stream
            h, w = self.size[::-1] if turns % 2 else self.size
        array = resize_image(frame.to_ndarray(format='rgb24'), (h, w))
        return np.ascontiguousarray(np.rot90(array, turns)) if turns else array

    def _square_size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Return (height, width) before turning, the width scaled so that pixels are square."""
        return frame.height, max(1, round(frame.width * self._table.pixel_aspect))

    def _undecodable(self, number: int) -> UnreadableVideoError:
        return UnreadableVideoError(
            f'{self.file}: frame {number} of {self.num_frames} cannot be decoded'
        )

    def _unreadable(self, error: BaseException) -> UnreadableVideoError:
        return UnreadableVideoError(f'{self.file}: {_reason(error)}')


class FrameFolder:
    """Reader of a folder of images, the frames in the order of the numbers in their names.

    Raises UnreadableVideoError if it has no images, two of one name (``1.jpg``, ``1.png``), or not
    the `num_frames` that a list states.
    """

    def __init__(
        self, folder: str, *, num_frames: int | None = None, fps: float | None = None
    ) -> None:
        self.files = frame_files(folder)
        if not self.files:
            raise UnreadableVideoError(f'{folder}: no images in it, or no such folder')
        _refuse_frames_twice(folder, self.files)
        if num_frames is not None and num_frames != len(self.files):
            raise UnreadableVideoError(
                f'{folder}: holds {len(self.files)} frames, the list says {num_frames}'
            )
        self.num_frames, self.fps = len(self.files), fps or ASSUMED_FPS
        h, w = picture_size(self.files[0])
        self.size = (int(h), int(w))
        self.times = np.arange(self.num_frames) / self.fps

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        frames = {i: read_picture(self.files[i]) for i in set(np.asarray(indices).tolist())}
        for i, frame in frames.items():
            if frame.shape[:2] != self.size:
                raise UnreadableVideoError(
                    f'{self.files[i]}: is {frame.shape[0]} x {frame.shape[1]} pixels, the first '
                    f'frame of its folder {self.size[0]} x {self.size[1]}'
                )
        return np.stack([frames[i] for i in np.asarray(indices).tolist()])

    def frames(self) -> Iterator[np.ndarray]:
        for number in range(self.num_frames):
            yield self.read([number])[0]


class Picture:
    """Reader of an image, a clip of one frame."""

    num_frames, fps = 1, 1.0

    def __init__(self, file: str) -> None:
        self._frame = read_picture(file)
        self.size = (self._frame.shape[0], self._frame.shape[1])
        self.times = np.zeros(1)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        return np.repeat(self._frame[None], len(indices), 0)

    def frames(self) -> Iterator[np.ndarray]:
        yield self._frame


def read_picture(file: str) -> np.ndarray:
    """Return an image [h, w, 3] RGB, upright; raise UnreadableVideoError otherwise."""
    content = np.fromfile(file, dtype=np.uint8)
    picture = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    if picture is None:
        raise UnreadableVideoError(f'{file}: {describe_damage(file)}')
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def frame_files(folder: str) -> list[str]:
    """Return the images of a folder, img_2.jpg before img_10.jpg."""
    files = visible(folder) if Path(folder).is_dir() else ()
    found = [file for file in files if file.suffix.lower() in PICTURE_SUFFIXES]
    return [str(file) for file in sorted(found, key=_natural)]


def _refuse_frames_twice(folder: str, files: Sequence[str]) -> None:
    """Raise where names differ by their suffix only: each frame would be shown twice."""
    by_stem: dict[str, list[str]] = {}
    for file in map(Path, files):
        by_stem.setdefault(file.stem, []).append(file.name)
    twice = [names for names in by_stem.values() if len(names) > 1]
    if twice:
        raise UnreadableVideoError(
            f'{folder}: {len(twice)} frames are there twice, as {" and ".join(twice[0])}. Fix: '
            'keep the images of one suffix'
        )


def video_measure(file: str) -> Measured:
    """Return (height, width, frames, fps) of a video, decoding its first frame only."""
    reader = open_video(file)
    return (*reader.size, reader.num_frames, reader.fps)


def folder_measure(folder: str) -> Measured:
    """Return (height, width, frames, fps) of a folder of frames."""
    reader = FrameFolder(folder)
    return (*reader.size, reader.num_frames, reader.fps)


def picture_measure(file: str) -> Measured:
    """Return (height, width, 1, 1.0) of an image, without decoding it."""
    return (*picture_size(file), 1, 1.0)


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Return by how many quarters, anticlockwise, the display matrix turns a frame."""
    return round(frame.rotation / 90) % 4


def _natural(file: Path) -> tuple[tuple[int, int, str], ...]:
    """Return the key that sorts names by the numbers in them."""
    parts, digits = [], ''
    for char in f'{file.stem}\0':
        if char.isdecimal() and char.isascii():
            digits += char
            continue
        if digits:
            parts.append((0, int(digits), ''))
            digits = ''
        parts.append((1, 0, char))
    return (*parts, (2, 0, file.name))


_FAULTS = (av.error.FFmpegError, UnreadableVideoError)


def _reason(error: BaseException) -> str:
    """Return the message of a reader in one line, without its path and error number."""
    if isinstance(error, (av.error.InvalidDataError, av.error.EOFError)):
        return 'no video in it, damaged, or cut off before its index'
    text = error.strerror if isinstance(error, av.error.FFmpegError) else str(error)
    return ' '.join(str(text).split())[:200] or type(error).__name__
