"""Clips that are broken in each way that films are, and clips of rare kinds, which are as good."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import av
import numpy as np
from PIL import Image

from navit_backbone.tasks.common.drawings import draw
from navit_backbone.tasks.common.video_reader import open_video
from navit_backbone.tasks.video.motions import write_motions

Change = Callable[[Path], object]
BROKEN_IN_VAL = ('00003.mp4', '00030.mp4')


def write_clips(folder: Path, *, num_clips: int, num_broken: int) -> dict[str, str]:
    """The motions of drawings, some broken, as many of rare kinds; the broken ones, and how.

    Of 40 clips held out those of `BROKEN_IN_VAL` are broken.
    """

    def drawing(split: str, number: int) -> tuple[str, np.ndarray]:
        image = draw(0, split, number).image[..., ::-1]
        return f'{split} {number}', np.ascontiguousarray(image)

    write_motions(drawing, folder, num_clips=dict(train=num_clips, val=40))
    files = sorted((folder / 'train').glob('*.mp4'))
    chosen = [files[i] for i in np.random.default_rng(0).permutation(num_clips)[: 2 * num_broken]]
    broken = {}
    for file, (how, change) in zip(chosen[::2], itertools.cycle(CLIP_BREAKS.items()), strict=False):
        change(file)
        broken[str(file)] = how
    for file, change in zip(chosen[1::2], itertools.cycle(CLIP_KINDS.values()), strict=False):
        change(file)
    for name in BROKEN_IN_VAL:
        cut(folder / 'val' / name)
    return broken


def cut(file: Path, share: float = 0.5) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


def cut_behind_its_index(file: Path) -> None:
    encode(file, frames_of(file), options={'movflags': 'faststart'})
    cut(file, 0.7)


def sound_alone(file: Path) -> None:
    with av.open(str(file), 'w') as container:
        stream = container.add_stream('aac', rate=16000)
        for _ in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), 'fltp', 'mono')
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def no_frames(file: Path) -> None:
    encode(file, [])


def zeros_in_the_stream(file: Path) -> None:
    draws = np.random.default_rng(0)
    encode(file, draws.integers(0, 256, (60, 120, 160, 3), dtype=np.uint8))
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20_000] = bytes(20_000)
    file.write_bytes(bytes(content))


def frames_of(file: Path) -> np.ndarray:
    reader = open_video(str(file))
    return reader.read(range(reader.num_frames))


def encode(
    file: Path,
    frames: Sequence[np.ndarray] | np.ndarray,
    *,
    codec: str = 'libx264',
    pixels: str = 'yuv420p',
    container_format: str = 'mp4',
    turned: float | None = None,
    options: dict[str, str] | None = None,
) -> None:
    with av.open(str(file), 'w', format=container_format, options=options or {}) as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = frames[0].shape[:2] if len(frames) else (96, 112)
        stream.pix_fmt = pixels
        if turned is not None:
            stream.set_display_rotation(turned)
        for array in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), 'rgb24')
            container.mux(stream.encode(frame))
        container.start_encoding()  # a header, where there are no frames
        container.mux(stream.encode())


def again(
    file: Path, *, frames: slice = slice(None), crop: int = 0, **options: str | float
) -> None:
    """Encode it in another way, or less of it; `crop`: columns and rows that are left out."""
    encode(file, frames_of(file)[frames, crop:, crop:], **options)


def store_a_picture(file: Path) -> None:
    frame = frames_of(file)[8]
    file.unlink()
    Image.fromarray(frame).save(file, format='PNG')


CLIP_BREAKS: dict[str, Change] = {
    'cut in half': cut,
    'cut off behind its index': cut_behind_its_index,
    'no bytes': lambda file: file.write_bytes(b''),
    'a text of that name': lambda file: file.write_text('this is no film ' * 100),
    'sound alone': sound_alone,
    'no frames': no_frames,
    'zeros in the stream': zeros_in_the_stream,
    'no file': lambda file: file.unlink(),
}
CLIP_KINDS: dict[str, Change] = {
    'one frame': partial(again, frames=slice(1)),
    'shorter than the sampling asks': partial(again, frames=slice(3)),
    '10 bits': partial(again, pixels='yuv420p10le'),
    '4:4:4': partial(again, pixels='yuv444p'),
    'odd sides': partial(again, pixels='yuv444p', crop=11),
    'turned': partial(again, turned=90),
    'WebM by another name': partial(again, codec='libvpx-vp9', container_format='webm'),
    'a picture by the name of a film': store_a_picture,
}
