"""A trained classifier on clips that no data set lists; clips with what was found under them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import av
import av.error
import numpy as np
import torch
from mmengine.config import Config
from PIL import Image, ImageDraw, ImageFont

from ..common.clip_packing import pack_clips
from ..common.inference import Predictor
from ..common.palette import Colour
from ..common.picture_sizes import PICTURE_SUFFIXES
from ..common.video_reader import VIDEO_SUFFIXES, FrameFolder, UnreadableVideoError, upright

_INK, _PAPER, _EMPTY = (30, 30, 34), (250, 250, 248), (226, 226, 226)
_LINE, _BAR = 22, 90  # pixels


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
    font = ImageFont.load_default(14)
    bar = min(_BAR, width // 4)
    for line, number in enumerate(order.tolist()):
        y = 3 + line * _LINE
        score = float(scores[number])
        draw.rectangle((4, y + 4, 4 + bar, y + _LINE - 5), fill=_EMPTY)
        draw.rectangle((4, y + 4, 4 + round(bar * score), y + _LINE - 5), fill=colours[number])
        text = f'{100 * score:.1f} %  {classes[number]}'
        draw.text((bar + 10, y + 2), text, fill=_INK, font=font)
    return sheet


def write_labelled(file: Path, out: Path, labels: Image.Image) -> None:
    """The video at its own size, upright, at its own pace, with `labels` under every frame.

    Written whole or not at all, frame by frame.
    """
    aside = out.with_name(f'.{out.name}.partial.mp4')
    try:
        with av.open(str(aside), 'w') as target:
            if file.is_dir():
                _draw(FrameFolder(str(file)), target, labels)
            else:
                with av.open(str(file)) as source:
                    _copy(source, target, labels)
        os.replace(aside, out)
    except av.error.FFmpegError as error:
        raise UnreadableVideoError(f'{file}: {error}') from error
    finally:
        aside.unlink(missing_ok=True)


def _copy(source: Any, target: Any, labels: Image.Image) -> None:
    stream = source.streams.video[0]
    written = _stream(target, stream.average_rate or 25)
    for frame in source.decode(stream):
        new = _labelled(upright(frame), labels, written)
        new.pts, new.time_base = frame.pts, frame.time_base
        target.mux(written.encode(new))
    target.mux(written.encode())


def _draw(reader: FrameFolder, target: Any, labels: Image.Image) -> None:
    written = _stream(target, round(reader.fps))
    for number in range(reader.num_frames):
        target.mux(written.encode(_labelled(reader.read([number])[0], labels, written)))
    target.mux(written.encode())


def _stream(target: Any, rate: Any) -> Any:
    written = target.add_stream('libx264', rate=rate, options={'crf': '20'})
    written.pix_fmt = 'yuv420p'
    return written


def _labelled(frame: np.ndarray, labels: Image.Image, stream: Any) -> av.VideoFrame:
    array = under(frame, labels)
    if not stream.codec_context.is_open:
        stream.height, stream.width = array.shape[:2]
    return av.VideoFrame.from_ndarray(array, 'rgb24')


def under(frame: np.ndarray, labels: Image.Image) -> np.ndarray:
    """The frame, and the labels below it; even sides, as the codec wants them."""
    h, w = frame.shape[:2]
    width = max(w, labels.width)
    height = h + labels.height
    sheet = np.full((height + height % 2, width + width % 2, 3), _PAPER, dtype=np.uint8)
    sheet[:h, :w] = frame
    sheet[h : h + labels.height, : labels.width] = np.asarray(labels)
    return sheet
