"""A trained segmentor on pictures that no data set lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..common.inference import Predictor


class Segmentor(Predictor):
    """A class for each of a picture's own pixels."""

    @torch.no_grad()
    def find(self, results: dict[str, Any]) -> np.ndarray:
        """The class numbers [h, w] uint8 of a picture that was read, at its own size."""
        labels = self.sample(results).pred_sem_seg.data.squeeze(0)
        found: np.ndarray = labels.cpu().numpy().astype(np.uint8)
        return found
