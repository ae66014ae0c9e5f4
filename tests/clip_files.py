"""Videos drawn on the spot: each frame says its number, and one corner which way is up."""

from fractions import Fraction

import av
import numpy as np

RED = (255, 0, 0)


def frame_of(number, size=(48, 64)):
    """Grey of 10 times the number, the upper left quarter of each side red."""
    h, w = size
    frame = np.full((h, w, 3), 10 * number % 256, dtype=np.uint8)
    frame[: h // 4, : w // 4] = RED
    return frame


def number_of(frame):
    """The number that `frame_of` drew, read off the middle."""
    h, w = frame.shape[:2]
    return round(float(frame[h // 2 :, w // 2 :].mean()) / 10)


def numbered(number, size=(96, 128)):
    """A frame with the number in binary: eight bars, white where a bit is set, on any codec."""
    h, w = size
    bits = [number >> bit & 1 for bit in range(8)]
    bars = np.repeat(np.array(bits, dtype=np.uint8) * 219 + 16, w // 8)
    return np.ascontiguousarray(np.broadcast_to(bars[None, :, None], (h, w, 3)))


def read_number(frame):
    """The number that `numbered` drew."""
    bars = np.array_split(frame.mean(axis=(0, 2)), 8)
    middles = [bar[len(bar) // 4 : -(len(bar) // 4)].mean() for bar in bars]
    return sum(int(grey > 126) << bit for bit, grey in enumerate(middles))


def write_video(
    file, frames=20, *, size=(48, 64), codec='libx264', pixels='yuv420p', fps=10, turned=None,
    times=None, content=None, options=None, codec_options=None, pixel_aspect=None, kind=None,
):  # fmt: skip
    """A video of `frames` frames, or of the arrays `content`; `times` in hundredths of a second."""
    content = [frame_of(i, size) for i in range(frames)] if content is None else content
    with av.open(str(file), 'w', format=kind, options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=codec_options or {})
        stream.height, stream.width = content[0].shape[:2]
        stream.pix_fmt = pixels
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 100)
        if turned is not None:
            stream.set_display_rotation(turned)
        for i, array in enumerate(content):
            frame = av.VideoFrame.from_ndarray(array, 'rgb24')
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


def copy_from(source, file, seconds):
    """Copy without encoding from the key frame before a time on; the clock begins at that time."""
    with av.open(str(source)) as container, av.open(str(file), 'w') as target:
        stream = container.streams.video[0]
        copied = target.add_stream_from_template(stream)
        start = int(seconds / stream.time_base)
        container.seek(start, stream=stream)
        for packet in container.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = (
                    packet.pts - start, packet.dts - start, copied
                )  # fmt: skip
                target.mux(packet)
    return file


def write_sound(file):
    """A file with sound and no picture."""
    with av.open(str(file), 'w') as container:
        stream = container.add_stream('aac', rate=16000)
        for _ in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), 'fltp', 'mono')
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file
