"""Classes of clips from one vector each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..common.clip_sample import ClipDataSample
from ..common.example_mean import mean_over_ranks

_Average = Literal['prob', 'score']
_SIGMOID_BIAS = -10.0


@MODELS.register_module()
class NaViTClipHead(BaseModule):
    """Dropout and one linear layer; softmax over classes, or with `multi_label` a sigmoid of each.

    The loss is the cross entropy against `gt_score`, which mixing shares out over classes: its mean
    over the clips of all ranks. With `multi_label` a clip's loss is the sum over its classes, the
    weights start at zero and the biases at -10, so that a start on many classes costs next to
    nothing (Beyer et al. 2020, "Are we done with ImageNet?"; Zhai et al. 2022).

    `label_smoothing` s turns a target y of C classes into ``y (1 - s) + s / C``, with softmax and
    sigmoid alike: the classes that a clip does not show get s / C each, s in all, whatever C is.
    The scores of a clip's views are averaged as probabilities ('prob') or as logits ('score').
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *,
        multi_label: bool = False,
        label_smoothing: float = 0.0,
        dropout_ratio: float = 0.0,
        average_clips: _Average = 'prob',
        init_std: float = 0.02,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if num_classes == 1 and not multi_label:
            raise ValueError(
                'NaViTClipHead: a softmax over num_classes=1 is right whatever it sees, and learns '
                'nothing. Fix: give clips of two classes or more, those of each in a folder of its '
                'name or under its label, or set model.head.multi_label=True'
            )
        if not 0 <= label_smoothing < 1:
            raise ValueError(f'label_smoothing={label_smoothing} must lie in [0, 1)')
        if average_clips not in ('prob', 'score'):
            raise ValueError(f"average_clips={average_clips!r} is neither 'prob' nor 'score'")
        self.num_classes, self.multi_label = num_classes, multi_label
        self.label_smoothing, self.average_clips = label_smoothing, average_clips
        self.dropout = nn.Dropout(dropout_ratio)
        self.fc = nn.Linear(in_channels, num_classes)
        self.init_std = init_std

    def init_weights(self) -> None:
        if self.multi_label:
            nn.init.zeros_(self.fc.weight)
            nn.init.constant_(self.fc.bias, _SIGMOID_BIAS)
        else:
            nn.init.trunc_normal_(self.fc.weight, std=self.init_std)
            nn.init.zeros_(self.fc.bias)
        super().init_weights()

    def forward(self, vectors: Tensor) -> Tensor:
        """Logits [N, num_classes] of vectors [N, D]."""
        logits: Tensor = self.fc(self.dropout(vectors))
        return logits

    def loss(self, vectors: Tensor, samples: Sequence[ClipDataSample]) -> dict[str, Tensor]:
        """Return `loss_cls`, and `top1_acc` over the clips of one class, if there are any."""
        logits = self(vectors)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        target = torch.stack([sample.gt_score for sample in samples]).to(logits)
        smooth = self.label_smoothing
        wanted = target * (1 - smooth) + smooth / self.num_classes
        if self.multi_label:
            total = F.binary_cross_entropy_with_logits(logits, wanted, reduction='sum')
        else:
            total = F.cross_entropy(logits, wanted, reduction='sum')
        losses = {'loss_cls': mean_over_ranks(total, len(samples))}
        single = [i for i, sample in enumerate(samples) if len(sample.gt_label) == 1]
        if single:
            right = logits[single].argmax(1) == target[single].argmax(1)
            losses['top1_acc'] = right.float().mean().detach()
        return losses

    def predict(
        self, vectors: Tensor, samples: list[ClipDataSample], num_views: Sequence[int]
    ) -> list[ClipDataSample]:
        """Samples with `pred_score` [num_classes] and `pred_label` [1]."""
        logits = self(vectors).float()
        if self.average_clips == 'prob':
            logits = self._probabilities(logits)
        means = torch.stack([views.mean(0) for views in logits.split(list(num_views))])
        scores = means if self.average_clips == 'prob' else self._probabilities(means)
        labels = scores.argmax(1, keepdim=True)
        for sample, score, label in zip(samples, scores, labels, strict=True):
            sample.pred_score, sample.pred_label = score, label
        return samples

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.multi_label else logits.softmax(1)
