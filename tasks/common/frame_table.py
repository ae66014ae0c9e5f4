"""Find the frames of a video from its packets, without decoding: when each is shown."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

import av
import numpy as np
from av.stream import Disposition

from .container_size import stated_num_bytes
from .sample import UnreadableVideoError

ASSUMED_FPS = 25.0  # of a folder of frames, or a video without a clock
# Formats that store presentation times. Others store decoding times, which are the same only for a
# codec that decodes in the order of presentation (without B-frames).
_STORE_PRESENTATION_TIMES = ('mov', 'matroska', 'mpegts', 'flv', 'ogg', 'nut', 'mpeg')
# Formats in which frames keep their times after a seek; in .wmv and .mpg they can shift by some.
_SEEKABLE = ('mov', 'matroska', 'mpegts', 'flv', 'ogg', 'avi')
_PIXEL_ASPECTS = (Fraction(1, 10), Fraction(10))  # beyond: a faulty header
_LAST_FRAME = 0.5  # seconds that the last frame may last, by which no cut is found
_VP8_SHOWN = 0x10  # a bit of the first byte of a packet
_H264_IDR = 5  # the type of a unit


class FrameTable(NamedTuple):
    """The frames of a video in order of presentation, as its packets and header state them."""

    stamps: list[int] | None  # presentation times in units of `time_base`; None: not stated
    decode_stamps: list[int]  # of the packets, in file order
    stores_presentation_times: bool  # the format does, or the codec decodes in that order
    key_stamps: set[int]  # presentation times of the packets at which decoding can begin
    time_base: float  # seconds; 0 if not stated
    stated_fps: float
    pixel_aspect: Fraction  # width over height of a pixel
    size: tuple[int, int]  # (height, width) of the stored frames

    def with_decoded(self, stamps: list[int | None]) -> FrameTable:
        """Return the table with the stamps of all decoded frames, where these are their times."""
        known = [stamp for stamp in stamps if stamp is not None]
        is_clock = self.stores_presentation_times and self.time_base and len(known) == len(stamps)
        return self._replace(stamps=known if is_clock and _rise(known) and known else None)

    def clock(self, num_frames: int) -> tuple[np.ndarray, float]:
        """Return (seconds of each frame after the first, frames per second).

        Without presentation times the decoding times count, or their mean rate where some frames
        were lost in decoding, and without these the stated rate. That rate is returned where it
        agrees with the times, to half a frame over the whole clip, and otherwise the mean rate.
        """
        fps, stamps = self.stated_fps, self.stamps
        if stamps is None and _rise(self.decode_stamps):
            if len(self.decode_stamps) == num_frames:
                stamps = self.decode_stamps
            elif len(self.decode_stamps) > num_frames and self.time_base:
                fps = _mean_rate(self.decode_stamps, self.time_base, fps)
        if stamps is None or not self.time_base:
            return np.arange(num_frames) / fps, fps
        times = (np.array(stamps, dtype=np.float64) - stamps[0]) * self.time_base
        return times, _mean_rate(stamps, self.time_base, fps) if num_frames > 1 else fps


def video_stream(container: Any) -> Any:
    """Return the first video stream that is not cover art, set to decode in one thread."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:
                raise UnreadableVideoError('the codec of its video is unknown')
            stream.thread_count = 1  # data workers share the cores already
            return stream
    but = ', only cover art' if container.streams.video else ''
    raise UnreadableVideoError(f'no video stream in it{but}')


def read_frame_table(container: Any) -> FrameTable:
    """Read all packets of an opened video; raise UnreadableVideoError if it is cut off."""
    stream = video_stream(container)
    context = stream.codec_context
    is_hidden = _is_hidden_vp8 if context.name == 'vp8' else _is_discarded
    # The last packet only ends the stream. An empty one repeats a frame in .avi.
    packets, begins_clean = [], None
    for packet in container.demux(stream):
        if packet.size or packet.dts is not None:
            shown = bool(packet.size) and not is_hidden(packet)
            packets.append((packet.pts, packet.dts, packet.is_keyframe, shown))
        if begins_clean is None and packet.is_keyframe and packet.size:
            begins_clean = context.name != 'h264' or _has_idr(bytes(packet), context.extradata)
    # the index leaves out samples of no bytes, which the header counts
    stated = min(stream.frames, len(getattr(stream, 'index_entries', range(stream.frames))))
    if stated > len(packets):
        raise UnreadableVideoError(
            f'cut off, it has {len(packets)} of the {stated} frames that its header states: '
            'copy or export it again'
        )
    _refuse_missing_bytes(container, stream, packets)
    decode_stamps = [dts for _, dts, _, shown in packets if shown and dts is not None]
    name = container.format.name.split(',')[0]
    stores_times = name in _STORE_PRESENTATION_TIMES or not context.has_b_frames
    stores_times = stores_times and decode_stamps == sorted(decode_stamps)
    stamps = None
    if stores_times and stream.time_base and begins_clean:
        stamps = _presentation_stamps(packets)
    is_seekable = name in _SEEKABLE
    return FrameTable(
        stamps=stamps,
        decode_stamps=decode_stamps,
        stores_presentation_times=stores_times,
        key_stamps={pts for pts, _, is_key, shown in packets if is_key and shown and is_seekable},
        time_base=float(stream.time_base or 0),
        stated_fps=float(stream.average_rate or stream.guessed_rate or ASSUMED_FPS),
        pixel_aspect=_pixel_aspect(stream.sample_aspect_ratio),
        size=(context.height, context.width),
    )


def _refuse_missing_bytes(
    container: Any, stream: Any, packets: list[tuple[Any, Any, bool, bool]]
) -> None:
    """Raise if the file is shorter than it states, and so is the video.

    Either alone proves nothing: an index at the end may be cut off, and headers can be wrong.
    """
    stated, size = stated_num_bytes(container.name), container.size
    if stated is None or stated <= size:
        return
    if stream.frames:
        is_short = stream.frames > len(packets)
    else:
        shown = [pts for pts, _, _, _ in packets if pts is not None]
        end = float((max(shown, default=0)) * stream.time_base)
        is_short = container.duration is None or end + _LAST_FRAME < container.duration / 1e6
    if is_short:
        raise UnreadableVideoError(
            f'cut off, it has {len(packets)} frames in {size:,} bytes, and its header states '
            f'{stated:,} bytes: copy or export it again'
        )


def _presentation_stamps(packets: list[tuple[Any, Any, bool, bool]]) -> list[int] | None:
    """Return the presentation stamps, sorted; None if one is missing or occurs twice, or for none.

    What is shown before the first key frame, or stored before it, cannot be decoded: no frame.
    """
    first = next((i for i, (pts, _, is_key, _) in enumerate(packets) if is_key), None)
    if first is None or packets[first][0] is None:
        return None
    start = packets[first][0]
    stamps = [pts for pts, _, _, shown in packets[first:] if shown]
    if None in stamps or len(set(stamps)) < len(stamps):
        return None
    return sorted(stamp for stamp in stamps if stamp >= start) or None


def _mean_rate(stamps: list[int], time_base: float, stated: float) -> float:
    """Return the stated rate where it fits the stamps to half a frame, else their mean rate."""
    intervals, span = len(stamps) - 1, (stamps[-1] - stamps[0]) * time_base
    return intervals / span if abs(stated * span - intervals) > 0.5 else stated


def _rise(stamps: list[int]) -> bool:
    return all(a < b for a, b in pairwise(stamps))


def _is_discarded(packet: av.Packet) -> bool:
    """Return if an edit list cuts the frame off."""
    return bool(packet.is_discard)


def _is_hidden_vp8(packet: av.Packet) -> bool:
    """Return if a VP8 frame is only a reference for others (an alternate reference frame)."""
    return bool(packet.is_discard) or not memoryview(packet)[0] & _VP8_SHOWN


def _has_idr(content: bytes, extradata: bytes | None) -> bool:
    """Return if an H.264 packet holds an IDR picture, from which decoding shows every frame.

    From other key frames a decoder shows the frames after as many as repair the picture.
    """
    if content.startswith((b'\0\0\1', b'\0\0\0\1')):
        heads = [part[0] for part in content.split(b'\0\0\1')[1:] if part]
    else:  # each unit after its length
        width = (extradata[4] & 3) + 1 if extradata and len(extradata) > 4 else 4
        heads, place = [], 0
        while place + width < len(content):
            heads.append(content[place + width])
            place += width + int.from_bytes(content[place : place + width], 'big')
    return any(head & 31 == _H264_IDR for head in heads)


def _pixel_aspect(stated: Fraction | None) -> Fraction:
    """Return the width of a pixel over its height; 1 if it is not stated, or absurd."""
    low, high = _PIXEL_ASPECTS
    return stated if stated and low <= stated <= high else Fraction(1)
