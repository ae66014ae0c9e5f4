"""Clips from files: only the frames that are asked for, upright, with the time of each.

decord reads first; what it cannot read, PyAV does. A folder of frames and a single picture are
clips too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import av
import av.error
import cv2
import decord
import numpy as np

from .folders import visible
from .picture_sizes import PICTURE_SUFFIXES, Measured, picture_size

# Of the files that are taken for clips where a folder is searched.
VIDEO_SUFFIXES = ('.mp4', '.avi', '.mkv', '.webm', '.mov', '.m4v', '.mpg', '.mpeg', '.wmv', '.flv')
_ASSUMED_FPS = 25.0  # of what does not say


class UnreadableVideoError(ValueError):
    """A file that no reader can read; the message names it, and says why."""


class ClipReader(Protocol):
    """What all readers give. Sizes are (height, width) of the frames as they are shown."""

    num_frames: int
    fps: float
    size: tuple[int, int]
    times: np.ndarray  # [num_frames] seconds from the start at which each frame appears

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Frames [len(indices), h, w, 3] RGB, in the order asked for, some of them repeatedly."""


def open_video(file: str) -> ClipReader:
    """The reader of a video file; raise UnreadableVideoError, with the reason."""
    if not os.path.isfile(file):
        raise FileNotFoundError(f'{file}: there is no such file')
    if not os.path.getsize(file):
        raise UnreadableVideoError(f'{file}: the file is empty')
    try:
        return DecordReader(file)
    except UnreadableVideoError:
        pass  # what PyAV says of it is clearer
    try:
        return PyAVReader(file)
    except UnreadableVideoError as error:
        raise UnreadableVideoError(f'{file}: {error}') from error


class DecordReader:
    """A video by decord, with one decoding thread: workers share the cores out already."""

    def __init__(self, file: str) -> None:
        self.file = file
        decord.logging.set_level(decord.logging.QUIET)  # its faults come as exceptions too
        self._video = self._try(lambda: decord.VideoReader(file, num_threads=1))
        self.num_frames = len(self._video)
        if not self.num_frames:
            raise UnreadableVideoError('decord: no frames')
        self.fps = float(self._video.get_avg_fps()) or _ASSUMED_FPS

    @cached_property
    def size(self) -> tuple[int, int]:
        # Of a frame: decord does not say how it turns them. Decoded where the size is asked for.
        return self.read([0]).shape[1:3]

    @cached_property
    def times(self) -> np.ndarray:
        stamps = self._video.get_frame_timestamp(range(self.num_frames))[:, 0]
        return np.asarray(stamps - stamps[0], dtype=np.float64)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        wanted, places = np.unique(np.asarray(indices), return_inverse=True)
        try:
            frames = self._try(lambda: self._video.get_batch(wanted).asnumpy())
            if frames.shape[3] != 3:
                # decord 3.4 takes the padding of rows for a fourth channel at some widths, as 96
                raise UnreadableVideoError(f'decord: frames of shape {frames.shape}')
        except UnreadableVideoError as error:
            try:
                return PyAVReader(self.file).read(indices)
            except UnreadableVideoError as second:
                raise UnreadableVideoError(f'{self.file}: {error}; {second}') from second
        in_order = len(places) == len(wanted) and bool((np.diff(places) == 1).all())
        return np.asarray(frames if in_order else frames[places])  # a copy is 100 MB in full HD

    def _try(self, call: Any) -> Any:
        try:
            return call()
        except (RuntimeError, IndexError, decord.DECORDError) as error:
            raise UnreadableVideoError(f'decord: {_line(error)}') from error


class PyAVReader:
    """A video by PyAV, decoded from its start to the last frame asked for, and turned upright."""

    def __init__(self, file: str) -> None:
        self.file = file
        header = VideoHeader(file)
        self.num_frames, self.fps = header.num_frames, header.fps
        self.size, self.times = header.size, header.times

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        asked = np.asarray(indices)
        wanted, frames = set(asked.tolist()), {}
        try:
            with av.open(self.file) as container:
                for number, frame in enumerate(container.decode(video=0)):
                    if number in wanted:
                        frames[number] = upright(frame)
                    if len(frames) == len(wanted):
                        break
        except (av.error.FFmpegError, IndexError) as error:
            raise UnreadableVideoError(f'PyAV: {_line(error)}') from error
        if lacking := sorted(wanted - set(frames)):
            raise UnreadableVideoError(
                f'PyAV: frame {lacking[0]} of {self.num_frames} cannot be decoded'
            )
        return np.stack([frames[number] for number in asked.tolist()])


class VideoHeader:
    """What a video says of itself, and its packets: nothing is decoded but the first frame.

    Raises UnreadableVideoError where the file is broken, or cut off.
    """

    def __init__(self, file: str) -> None:
        try:
            with av.open(file) as container:
                if not container.streams.video:
                    raise UnreadableVideoError('no video stream in it')
                stream = container.streams.video[0]
                stated = stream.frames
                self.fps = float(stream.average_rate or 0) or _ASSUMED_FPS
                stamps = [p.pts for p in container.demux(stream) if p.size]
                base = float(stream.time_base or 0)
            with av.open(file) as container:
                self.size = upright(next(container.decode(video=0))).shape[:2]
        except (av.error.FFmpegError, StopIteration) as error:
            raise UnreadableVideoError(_line(error)) from error
        self.num_frames = len(stamps)
        if stated > len(stamps):
            raise UnreadableVideoError(
                f'cut off, {len(stamps)} of the {stated} frames are there that it announces'
            )
        known = base and None not in stamps
        times = np.sort(np.array(stamps, dtype=np.float64)) * base if known else None
        self.times = np.arange(len(stamps)) / self.fps if times is None else times - times[0]


class FrameFolder:
    """A folder of pictures, the frames in the order of their names (of the numbers in them)."""

    def __init__(self, folder: str, *, num_frames: int | None = None, fps: float = 25.0) -> None:
        self.files = frame_files(folder)
        if not self.files:
            raise UnreadableVideoError(f'{folder}: no pictures in it, or no such folder')
        if num_frames is not None and num_frames != len(self.files):
            raise UnreadableVideoError(
                f'{folder}: holds {len(self.files)} frames, the list says {num_frames}'
            )
        self.num_frames, self.fps = len(self.files), fps
        h, w = picture_size(self.files[0])
        self.size = (int(h), int(w))
        self.times = np.arange(self.num_frames) / fps

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        frames = {i: read_picture(self.files[i]) for i in set(np.asarray(indices).tolist())}
        for i, frame in frames.items():
            if frame.shape[:2] != self.size:
                raise UnreadableVideoError(
                    f'{self.files[i]}: is {frame.shape[0]} x {frame.shape[1]} pixels, the first '
                    f'frame of its folder {self.size[0]} x {self.size[1]}'
                )
        return np.stack([frames[i] for i in np.asarray(indices).tolist()])


class Picture:
    """A picture: a clip of one frame."""

    num_frames, fps = 1, 1.0

    def __init__(self, file: str) -> None:
        self._frame = read_picture(file)
        self.size = (self._frame.shape[0], self._frame.shape[1])
        self.times = np.zeros(1)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        return np.repeat(self._frame[None], len(indices), 0)


def read_picture(file: str) -> np.ndarray:
    """[h, w, 3] RGB, upright; raise UnreadableVideoError where it cannot be decoded."""
    content = np.fromfile(file, dtype=np.uint8)
    picture = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    if picture is None:
        raise UnreadableVideoError(f'{file}: OpenCV cannot decode it')
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def frame_files(folder: str) -> list[str]:
    """The pictures of a folder, img_2.jpg before img_10.jpg."""
    files = visible(folder) if Path(folder).is_dir() else ()
    found = [file for file in files if file.suffix.lower() in PICTURE_SUFFIXES]
    return [str(file) for file in sorted(found, key=_natural)]


def video_measure(file: str) -> Measured:
    """(height, width, frames, fps) of a video, from its header and packets."""
    header = VideoHeader(file)
    return (*header.size, header.num_frames, header.fps)


def folder_measure(folder: str) -> Measured:
    """The same of a folder of frames."""
    reader = FrameFolder(folder)
    return (*reader.size, reader.num_frames, reader.fps)


def picture_measure(file: str) -> Measured:
    """The same of a picture, without decoding it."""
    return (*picture_size(file), 1, 1.0)


def upright(frame: av.VideoFrame) -> np.ndarray:
    """Turned as its display matrix asks, by quarters, anticlockwise."""
    array = frame.to_ndarray(format='rgb24')
    quarters = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(array, quarters)) if quarters else array


def _natural(file: Path) -> tuple[tuple[int, int, str], ...]:
    """What sorts names by the numbers in them."""
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


def _line(error: BaseException) -> str:
    """What a reader said, in a line, without the path and the number of the error."""
    if isinstance(error, av.error.InvalidDataError):
        return 'no video in it, or cut off before its index'
    told = error.strerror if isinstance(error, av.error.FFmpegError) else str(error)
    return ' '.join(str(told).split())[:200] or type(error).__name__
