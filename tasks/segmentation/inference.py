"""A trained segmentor on pictures that no data set lists."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict

from ..common.inference import Predictor
from .mixed_sizes import prepare_windows


class Segmentor(Predictor):
    """A class for each of a picture's own pixels."""

    def __init__(self, cfg: Config, checkpoint: Path, *, device: str) -> None:
        super().__init__(cfg, checkpoint, device=device)
        prepare_windows(self.model)

    @torch.no_grad()
    def find(self, results: dict[str, Any]) -> np.ndarray:
        """The class numbers [h, w] uint8 of a picture that was read, at its own size."""
        labels = self.sample(results).pred_sem_seg.data.squeeze(0)
        found: np.ndarray = labels.cpu().numpy().astype(np.uint8)
        return found


def with_flips(cfg: Config) -> None:
    """Turn a config's test into one on every picture and its mirror image, scores averaged."""
    if cfg.model.type == 'NativeEncoderDecoder':
        raise ValueError(
            'test-time augmentation averages the scores of all classes, which NativeEncoderDecoder '
            "does not keep: set model.type='EncoderDecoder'"
        )
    if 'tta_model' not in cfg:
        cfg.tta_model = dict(type='SegTTAModel')
    if 'tta_pipeline' not in cfg:
        steps = deepcopy(cfg.test_dataloader.dataset.pipeline)
        last = [step for step in steps if step['type'] in ('LoadSegMap', 'LoadAnnotations')]
        first = [step for step in steps[:-1] if step not in last]
        flips = [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]
        views = dict(type='TestTimeAug', transforms=[flips, *([step] for step in last), steps[-1:]])
        cfg.tta_pipeline = [*first, views]
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
