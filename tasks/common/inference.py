"""A trained model on pictures that no data set lists."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.runner.checkpoint import CheckpointLoader

from .classes import class_names, classes_in
from .loaded_weights import load_model
from .palette import palette
from .picture_sizes import PICTURE_SUFFIXES
from .published import palette_in


class Predictor:
    """A model and its test pipeline. Tasks add what they find in a picture, and how it is drawn.

    `checkpoint` may be a published model; its class names and colours are those of its training.
    `suffixes` are those of the files that it takes, `listed` what predictions.json calls them.
    """

    suffixes: ClassVar[tuple[str, ...]] = PICTURE_SUFFIXES
    listed = 'images'

    def __init__(self, cfg: Config, checkpoint: Path, *, device: str) -> None:
        content = CheckpointLoader.load_checkpoint(str(checkpoint), map_location='cpu')
        self.classes = _classes(cfg, content, checkpoint)
        colours = palette_in(_dataset_meta(content))
        known = len(colours) == len(self.classes)
        self.palette = colours if known else palette(len(self.classes))
        self.model = load_model(cfg.model, content, checkpoint, len(self.classes)).to(device).eval()
        loader, *rest = cfg.test_dataloader.dataset.pipeline
        self.load, self.prepare = Compose([loader]), Compose(rest)

    def read(self, file: Path) -> dict[str, Any]:
        """The picture as the pipeline's first transform loads it; whatever that raises."""
        results: dict[str, Any] = self.load({'img_path': str(file), 'img_id': 0})
        return results

    def describe(self, results: dict[str, Any]) -> dict[str, Any]:
        """What predictions.json says of a picture that was read."""
        height, width = results['img'].shape[:2]
        return {'height': height, 'width': width}

    def shown(self, results: dict[str, Any]) -> Any:
        """The picture [h, w, 3] in RGB, to draw on."""
        return np.ascontiguousarray(results['img'][..., ::-1])

    def find(self, results: dict[str, Any]) -> Any:
        """What is found in a picture that was read, in the picture's own pixels."""
        raise NotImplementedError

    def sample(self, results: dict[str, Any]) -> Any:
        """The model's data sample for a picture that was read. Call it without gradients."""
        batch = {key: [value] for key, value in self.prepare(results).items()}
        return self.model.test_step(batch)[0]


def _dataset_meta(content: Mapping[str, Any]) -> Any:
    meta = content.get('meta')
    return meta.get('dataset_meta') if isinstance(meta, dict) else None


def _classes(cfg: Config, content: Mapping[str, Any], checkpoint: Path) -> tuple[str, ...]:
    """The class names that the checkpoint was trained with, else those of the config's data."""
    if classes := classes_in(_dataset_meta(content)):
        return classes
    try:
        return class_names(cfg.test_dataloader.dataset)
    except ValueError as error:
        raise ValueError(
            f'{checkpoint} holds no class names (tools/train.py saves them), and those of the data '
            f'are not at hand: {error}'
        ) from error
