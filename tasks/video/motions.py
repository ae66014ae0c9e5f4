"""Clips whose class is their motion, cut from still pictures: what can be told by time alone.

A window glides over a picture. Both motions of a pair run along the same path, one of them
backward, and the state in the middle of the path (place, zoom, angle) is drawn alike for all: the
frames without their order do not tell which of a pair it is, and the middle frame alone tells
nothing at all.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
from rich.progress import track

from ..common.groups import GROUP_FILE
from ..common.resampling import resize_image
from ..common.text_files import read_json

# What the content does; each pair is one path, forward and backward.
PAIRS = (('left', 'right'), ('up', 'down'), ('in', 'out'), ('clockwise', 'anticlockwise'))
MOTIONS = tuple(name for pair in PAIRS for name in pair)
_SIZES = ((112, 112), (96, 144), (144, 96), (96, 112), (128, 96))  # of clips
_FPS = 10
_SHARE = (0.7, 0.95)  # of the room in a picture that a path takes

Size = tuple[int, int]


class Path2D(NamedTuple):
    """A window's way: its centre, zoom and angle at each frame, in pixels of the picture."""

    centres: np.ndarray  # [frames, 2] (x, y)
    zooms: np.ndarray  # [frames] pixels of the picture a pixel of the clip
    angles: np.ndarray  # [frames] radians


def path(motion: str, picture: Size, clip: Size, frames: int, draws: np.random.Generator) -> Path2D:
    """The way of a window of `clip` pixels over a `picture`, inside it throughout.

    What is drawn does not depend on the motion, and the room that a path needs is that of the
    longest of all motions; so no motion is oftener near the border, nor larger.
    """
    pair = next(number for number, pair in enumerate(PAIRS) if motion in pair)
    shift, growth, turn = draws.uniform((0.25, 1.25, 0.3), (0.5, 1.6, 0.7))
    share, angle = draws.uniform(*_SHARE), draws.uniform(-np.pi, np.pi)
    places = draws.uniform(-1, 1, 2)
    side = min(clip)
    # from the middle of the picture to its border: half the window's diagonal, grown, and the shift
    reach = np.hypot(*clip) / 2 * growth**0.5 + shift * side / 2
    zoom = share * min(picture) / 2 / reach
    free = np.array([picture[1], picture[0]]) / 2 - zoom * reach
    middle = np.array([picture[1], picture[0]]) / 2 + places * free
    way = np.linspace(-0.5, 0.5, frames)
    centres = np.repeat(middle[None], frames, 0)
    zooms, angles = np.full(frames, zoom), np.full(frames, angle)
    if pair < 2:  # the content goes left where the window goes right
        along = angle + (np.pi / 2 if pair else 0.0)
        direction = np.array([np.cos(along), np.sin(along)])
        centres = centres + (way * shift * side * zoom)[:, None] * direction
    elif pair == 2:
        zooms = zoom * growth**-way
    else:
        angles = angle - way * turn
    order = slice(None) if motion == PAIRS[pair][0] else slice(None, None, -1)
    return Path2D(centres[order], zooms[order], angles[order])


def render(picture: np.ndarray, way: Path2D, clip: Size) -> np.ndarray:
    """The frames [frames, h, w, 3] that the window sees of a picture [h, w, 3].

    A large picture is first scaled to the clip's own pixels, by the zoom in the middle of the path:
    all motions are resampled alike.
    """
    h, w = clip
    scale = min(1.0, float((way.zooms[0] * way.zooms[-1]) ** -0.5))
    if scale < 1:
        rows, columns = (max(1, round(side * scale)) for side in picture.shape[:2])
        factors = np.array([columns / picture.shape[1], rows / picture.shape[0]])
        picture = resize_image(picture, (rows, columns))
        way = Path2D((way.centres + 0.5) * factors - 0.5, way.zooms * factors.min(), way.angles)
    frames = []
    for (x, y), zoom, angle in zip(way.centres, way.zooms, way.angles, strict=True):
        turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        corner = np.array([x, y]) - turn @ np.array([(w - 1) / 2, (h - 1) / 2])
        matrix = np.concatenate([turn, corner[:, None]], 1)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        frames.append(cv2.warpAffine(picture, matrix, (w, h), flags=flags))
    return np.stack(frames)


def write_motions(
    pictures: Callable[[str, int], tuple[str, np.ndarray]],
    out: Path,
    *,
    num_clips: dict[str, int],
    frames: int = 16,
    seed: int = 0,
) -> bool:
    """Write clips of all motions in turn, complete or not at all; False where the set exists.

    ``pictures(split, number)`` returns the name and the pixels [h, w, 3] RGB of the image that a
    clip is cut from. OUT gets ``SPLIT/NUMBER.mp4``, ``SPLIT.txt`` (a path and a class number a
    line), ``classes.txt``, and ``groups.csv``, where clips of one image are a group.
    """
    info = dict(version=2, seed=seed, frames=frames, **num_clips)
    stated = out / 'motions.json'
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if stated.is_file() and read_json(stated) == info:
            return False
        raise ValueError(
            f'--out {out} holds other files, and nothing is overwritten: remove it or choose '
            'another folder'
        )
    partial = out.with_name(out.name + '.partial')
    shutil.rmtree(partial, ignore_errors=True)
    sources = []
    for split, count in num_clips.items():
        (partial / split).mkdir(parents=True)
        lines = []
        for number in track(range(count), description=split):
            motion = number % len(MOTIONS)
            draws = np.random.default_rng([seed, *split.encode(), number])
            source, picture = pictures(split, int(draws.integers(2**31)))
            clip = _SIZES[int(draws.integers(len(_SIZES)))]
            way = path(MOTIONS[motion], picture.shape[:2], clip, frames, draws)
            name = f'{split}/{number:05d}.mp4'
            _write(partial / name, render(picture, way, clip))
            lines.append(f'{name} {motion}\n')
            sources.append((name, source))
        (partial / f'{split}.txt').write_text(''.join(lines))
    (partial / 'classes.txt').write_text(''.join(f'{name}\n' for name in MOTIONS))
    with (partial / GROUP_FILE).open('w', newline='', encoding='utf-8') as content:
        csv.writer(content).writerows([('file', 'group'), *sources])
    (partial / 'motions.json').write_text(json.dumps(info) + '\n')
    if out.exists():
        out.rmdir()
    partial.rename(out)
    return True


def _write(file: Path, frames: Sequence[np.ndarray] | np.ndarray) -> None:
    with av.open(str(file), 'w') as container:
        stream = container.add_stream('libx264', rate=_FPS, options={'crf': '15'})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = 'yuv420p'
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, 'rgb24')))
        container.mux(stream.encode())
