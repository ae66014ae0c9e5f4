"""Truth and prediction over the picture, for `tools/test.py --show-dir`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmseg.structures import SegDataSample

from ..common.overlay import labelled


@HOOKS.register_module()
class OverlayHook(Hook):
    """Draws each test picture under its truth and its prediction, with a legend of the classes.

    With `draw` into `test_out_dir` (within the work dir, where the path is not absolute), under the
    pictures' names, in the folders that they lie in below their common one. Without it into the
    visualizer's `save_dir`, which mmseg's own script sets, else into `overlays/` of the work dir.
    `show` opens each in a window besides, for `wait_time` seconds (0: until a key).
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

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[SegDataSample] | None = None,
    ) -> None:
        if not self.draw:
            return
        dataset = runner.test_dataloader.dataset
        meta = dataset.metainfo
        folder = Path(runner.work_dir) / (self.test_out_dir or 'overlays')
        shown = (runner.cfg.get('visualizer') or {}).get('save_dir')
        if self.test_out_dir is None and shown is not None:
            folder = Path(shown)
        for sample in outputs or ():
            content = get(sample.img_path)
            image = mmcv.imfrombytes(content, channel_order='rgb')
            maps = {'prediction': _numbers(sample.pred_sem_seg)}
            if 'gt_sem_seg' in sample:
                maps = {'truth': _numbers(sample.gt_sem_seg), **maps}
            prefix = Path(dataset.data_prefix.get('img_path') or '')
            path = Path(sample.img_path)
            inner = path.relative_to(prefix) if prefix in path.parents else Path(path.name)
            out = (folder / inner).with_suffix('.jpg')
            out.parent.mkdir(parents=True, exist_ok=True)
            classes, colours = meta['classes'], meta['palette']
            sheet = labelled(image, [*maps.values()], classes, colours, titles=[*maps])
            sheet.save(out, quality=92)
            if self.show:
                runner.visualizer.show(np.asarray(sheet), path.name, wait_time=self.wait_time)


def _numbers(data: Any) -> np.ndarray:
    numbers: np.ndarray = data.data.squeeze(0).cpu().numpy().astype(np.uint8)
    return numbers
