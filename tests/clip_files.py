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


def write_video(
    file, frames=20, *, size=(48, 64), codec='libx264', pixels='yuv420p', fps=10, turned=None,
    times=None, content=None, options=None,
):  # fmt: skip
    """A video of `frames` frames, or of the arrays `content`; `times` in hundredths of a second."""
    content = [frame_of(i, size) for i in range(frames)] if content is None else content
    with av.open(str(file), 'w', options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = content[0].shape[:2]
        stream.pix_fmt = pixels
        if turned is not None:
            stream.set_display_rotation(turned)
        for i, array in enumerate(content):
            frame = av.VideoFrame.from_ndarray(array, 'rgb24')
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
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
