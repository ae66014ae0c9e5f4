"""Truth and prediction drawn for each test image, for `tools/test.py --show-dir`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image

from navit_backbone.file_writing import written_whole

from .output_files import OutputNames
from .wording import few
from .wrappers import inner_datasets


class DrawingHook(Hook):
    """Base of hooks that draw each test image with its truth and its prediction.

    With `draw` into `test_out_dir` (within the work dir, where the path is not absolute), in the
    folders that the images lie in below the data set's; images of the same name never share a
    drawing. Without `test_out_dir` into the visualizer's `save_dir`, which the host's own script
    sets, else into `overlays/` of the work dir. `show` also opens each in a window, for `wait_time`
    seconds (0: until a key is pressed). An image that cannot be drawn is listed at the end and
    stops no evaluation.
    """

    def __init__(
        self,
        *,
        draw: bool = False,
        show: bool = False,
        wait_time: float = 0.0,
        test_out_dir: str | None = None,
    ) -> None:
        self.draw, self.test_out_dir = draw, test_out_dir
        self.show, self.wait_time = show, wait_time
        self._names = OutputNames()
        self._failed: list[str] = []

    def drawing(self, image: np.ndarray, sample: Any, meta: Mapping[str, Any]) -> Image.Image:
        """Draw a data sample on its image [h, w, 3] (RGB); `meta` is the data set's."""
        raise NotImplementedError

    def before_test_epoch(self, runner: Runner) -> None:
        self._names, self._failed = OutputNames(), []

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        if not self.draw:
            return
        dataset, folder = runner.test_dataloader.dataset, self._folder(runner)
        for sample in outputs or ():
            out = folder / self._names.assign(inner_path(Path(sample.img_path), dataset))
            try:
                image = mmcv.imfrombytes(get(sample.img_path), channel_order='rgb')
                drawing = self.drawing(image, sample, dataset.metainfo)
                with written_whole(out) as aside:
                    drawing.save(aside, quality=92)
            except (OSError, ValueError, MemoryError) as error:  # a full disk, or JPEG's limit
                self._failed.append(f'{sample.img_path} ({error})')
                continue
            if self.show:
                runner.visualizer.show(np.asarray(drawing), out.name, wait_time=self.wait_time)

    def after_test_epoch(self, runner: Runner, metrics: Mapping[str, float] | None = None) -> None:
        if self._failed:
            runner.logger.log(
                logging.WARNING,
                f'{len(self._failed)} images were evaluated, but not drawn: {few(self._failed)}',
            )

    def _folder(self, runner: Runner) -> Path:
        shown = (runner.cfg.get('visualizer') or {}).get('save_dir')
        if self.test_out_dir is None and shown is not None:
            return Path(shown)
        return Path(runner.work_dir) / (self.test_out_dir or 'overlays')


def inner_path(file: Path, dataset: Any) -> Path:
    """Return the path of an image below the image folder of the data set that lists it."""
    folders = [folder for folder in _folders(dataset) if folder in file.parents]
    return file.relative_to(max(folders, key=lambda folder: len(folder.parts), default=file.parent))


def _folders(dataset: Any) -> Iterator[Path]:
    """Yield the data_prefix folders of a data set and of all that it wraps or joins."""
    for prefix in (getattr(dataset, 'data_prefix', None) or {}).values():
        if isinstance(prefix, str) and prefix:
            yield Path(prefix)
    for part in inner_datasets(dataset):
        yield from _folders(part)
