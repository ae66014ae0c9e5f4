"""A trained classifier on clips that no data set lists; clips with what was found under them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import av
import av.error
import numpy as np
import torch
from mmengine.config import Config
from PIL import Image, ImageDraw

from ..common.clip_packing import pack_clips
from ..common.fonts import TextLine, drawn_names
from ..common.inference import Predictor
from ..common.palette import Colour
from ..common.picture_sizes import PICTURE_SUFFIXES
from ..common.video_reader import (
    VIDEO_SUFFIXES,
    ClipReader,
    FrameFolder,
    UnreadableVideoError,
    open_video,
)

_INK, _PAPER, _EMPTY = (30, 30, 34), (250, 250, 248), (226, 226, 226)
_LINE, _BAR = 22, 90  # pixels
_TICK = Fraction(1, 90000)  # seconds
_MAX_TICKS = 3600 * 90000  # between two frames, an hour: .mp4 cannot hold many more
_MAX_RATE = 240.0  # frames a second that the encoder plans for; times are exact whatever it is


class Classifier(Predictor):
    """The score of each class of a video or a picture."""

    suffixes: ClassVar[tuple[str, ...]] = (*VIDEO_SUFFIXES, *PICTURE_SUFFIXES)
    listed = 'clips'

    def __init__(self, cfg: Config, checkpoint: Path, *, device: str) -> None:
        super().__init__(cfg, checkpoint, device=device)
        self.patch_size = cfg.test_dataloader.collate_fn.get('patch_size', 16)

    def read(self, file: Path) -> dict[str, Any]:
        """The clip opened; whatever that raises."""
        key = 'img_path' if file.suffix.lower() in PICTURE_SUFFIXES else 'video_path'
        key = 'frame_dir' if file.is_dir() else key
        results: dict[str, Any] = self.load({key: str(file), 'sample_idx': 0})
        return results

    def describe(self, results: dict[str, Any]) -> dict[str, Any]:
        """What predictions.json says of a clip that was read."""
        h, w, frames, fps = results['measured']
        return {'height': h, 'width': w, 'frames': frames, 'fps': fps}

    def shown(self, results: dict[str, Any]) -> None:
        """Nothing: a clip is drawn from its file."""
        return None

    @torch.no_grad()
    def find(self, results: dict[str, Any]) -> np.ndarray:
        """The scores of all classes: [num_classes]."""
        batch = pack_clips([self.prepare(results)], patch_size=self.patch_size)
        found: np.ndarray = self.model.test_step(batch)[0].pred_score.cpu().numpy()
        return found


def with_flips(cfg: Config) -> None:
    """Refused: views of clips are taken by the planner of their pipeline."""
    raise ValueError(
        '--tta is of pictures; views of clips are those of ClipToTokenBudget: '
        'test_dataloader.dataset.pipeline.1.num_clips=4, or crops=3 there'
    )


def panel(
    width: int, classes: Sequence[str], scores: np.ndarray, colours: Sequence[Colour], top: int = 5
) -> Image.Image:
    """The classes of the highest scores as bars, a line each, `width` pixels wide."""
    order = np.argsort(-scores, kind='stable')[:top]
    sheet = Image.new('RGB', (width, _LINE * len(order) + 6), _PAPER)
    draw = ImageDraw.Draw(sheet)
    names = drawn_names(tuple(classes))
    bar = min(_BAR, width // 4)
    for line, number in enumerate(order.tolist()):
        y = 3 + line * _LINE
        score = float(scores[number])
        draw.rectangle((4, y + 4, 4 + bar, y + _LINE - 5), fill=_EMPTY)
        draw.rectangle((4, y + 4, 4 + round(bar * score), y + _LINE - 5), fill=colours[number])
        room = width - bar - 14
        text = TextLine((f'{100 * score:.1f} %  ', names[number]), 14, max_width=room)
        text.draw(draw, (bar + 10, y + 2), _INK)
    return sheet


def write_labelled(file: Path, out: Path, labels: Image.Image) -> None:
    """Write a clip at its own size and pace, with `labels` under every frame.

    The file is written whole or not at all. Raises UnreadableVideoError if the clip cannot be read,
    or its frames cannot be encoded.
    """
    reader = FrameFolder(str(file)) if file.is_dir() else open_video(str(file))
    aside = out.with_name(f'.{out.name}.partial.mp4')
    try:
        with av.open(str(aside), 'w') as target:
            _encode(reader, target, labels)
        os.replace(aside, out)
    except av.error.FFmpegError as error:
        raise UnreadableVideoError(f'{file}: cannot be drawn to {out}: {error}') from error
    finally:
        aside.unlink(missing_ok=True)


def _encode(reader: ClipReader, target: Any, labels: Image.Image) -> None:
    """Encode all frames at their times, rounded to ticks that rise from frame to frame."""
    rate = Fraction(min(max(reader.fps, 1.0), _MAX_RATE)).limit_denominator(1001)
    stream = target.add_stream('libx264', rate=rate, options={'crf': '20'})
    stream.pix_fmt = 'yuv420p'
    stream.codec_context.time_base = _TICK
    tick = -1
    for seconds, frame in zip(reader.times.tolist(), reader.frames(), strict=True):
        array = under(frame, labels)
        if not stream.codec_context.is_open:
            stream.height, stream.width = array.shape[:2]
        drawn = av.VideoFrame.from_ndarray(array, 'rgb24')
        tick = min(max(round(seconds / _TICK), tick + 1), tick + _MAX_TICKS)
        drawn.pts, drawn.time_base = tick, _TICK
        target.mux(stream.encode(drawn))
    target.mux(stream.encode())


def under(frame: np.ndarray, labels: Image.Image) -> np.ndarray:
    """The frame, and the labels below it; even sides, as the codec wants them."""
    h, w = frame.shape[:2]
    width = max(w, labels.width)
    height = h + labels.height
    sheet = np.full((height + height % 2, width + width % 2, 3), _PAPER, dtype=np.uint8)
    sheet[:h, :w] = frame
    sheet[h : h + labels.height, : labels.width] = np.asarray(labels)
    return sheet
