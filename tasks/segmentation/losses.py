"""Cross entropy of label maps as a mean over the labelled pixels of all images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..common.example_mean import mean_over_ranks


@MODELS.register_module()
class NaViTCrossEntropyLoss(nn.Module):
    """Softmax cross entropy, the mean over the labelled pixels of all ranks: a `loss_decode`.

    mmseg's own divides by the pixels of each rank (with `avg_non_ignore` by the labelled ones), so
    that a pixel weighs more where the others of its rank are few. With `class_weight`, a number for
    each class, it is the mean weighted by the pixels' classes. The loss is multiplied by
    `loss_weight` and logged as `loss_name`.
    """

    def __init__(
        self,
        *,
        class_weight: Sequence[float] | None = None,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_ce',
    ) -> None:
        super().__init__()
        weight = None if class_weight is None else torch.tensor(class_weight, dtype=torch.float32)
        self.class_weight: Tensor | None
        self.register_buffer('class_weight', weight, persistent=False)
        self.loss_weight, self.loss_name = loss_weight, loss_name

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        weight: Tensor | None = None,
        *,
        ignore_index: int = 255,
        **kwargs: Any,
    ) -> Tensor:
        """Return the loss of logits [B, classes, H, W] against labels [B, H, W].

        `weight` [B, H, W] are the weights of a pixel sampler, as mmseg's heads give them.
        """
        if kwargs:
            raise ValueError(f'NaViTCrossEntropyLoss takes no {sorted(kwargs)}')
        labelled = (labels != ignore_index).to(logits.dtype)
        counted = labelled if weight is None else labelled * weight
        if self.class_weight is not None:
            known = torch.where(labels != ignore_index, labels, 0)
            counted = counted * self.class_weight.to(logits.dtype)[known]
        losses = F.cross_entropy(logits, labels, reduction='none', ignore_index=ignore_index)
        # a sampler chooses pixels, by weights of 0 and 1: the others are not counted
        return self.loss_weight * mean_over_ranks((losses * counted).sum(), counted.sum())
