"""A training step and a prediction of any detector, on two small generated pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectors import sample
from mmdet.structures import DetDataSample
from mmdet.structures.mask import PolygonMasks
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from torch import Tensor, nn

SIZES = [(96, 70), (61, 113)]


@dataclass(frozen=True)
class Pictures:
    """What a detector is trained on beside boxes, and how many times larger than SIZES."""

    num_classes: int
    num_things: int
    masks: str | None = None  # 'bitmaps', 'polygons'
    class_map: bool = False
    scale: int = 1


def one_step(model: Mapping[str, Any], pictures: Pictures) -> nn.Module:
    """Build `model`, take a step of SGD and predict; raise where anything of it is wrong."""
    torch.manual_seed(0)
    for clock in ('epoch', 'iter'):  # as a runner tells it, and some heads ask it
        MessageHub.get_current_instance().update_info(clock, 0)
    detector = MODELS.build(model)
    detector.init_weights()
    strides = _watch_strides(detector)
    gradients = _watch_gradients(detector.backbone)
    detector.train()  # of some detectors it returns nothing
    optimizer = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1e-3))
    losses = detector.train_step(batch(pictures), build_optim_wrapper(detector, optimizer))
    _check_finite(losses)
    _check_finite({f'gradient {index}': gradient for index, gradient in enumerate(gradients)})
    if not any(gradient.any() for gradient in gradients):
        raise ValueError('no gradient reaches the backbone')
    _check_strides(detector, strides)
    detector.eval()
    with torch.no_grad():
        for result in detector.test_step(batch(pictures)):
            # scores alone: PAA's voting divides by the area of boxes, which may have none
            _check_finite(dict(scores=result.get('pred_instances', {}).get('scores')))
    return detector


def batch(pictures: Pictures) -> dict[str, list[Any]]:
    """Pictures of several sizes, as a loader collates them."""
    sizes = [(pictures.scale * h, pictures.scale * w) for h, w in SIZES]
    pairs = [sample(size, seed=seed) for seed, size in enumerate(sizes)]
    for _, item in pairs:
        _label(item, pictures)
    images, samples = zip(*pairs, strict=True)
    return dict(inputs=list(images), data_samples=list(samples))


def _label(item: DetDataSample, pictures: Pictures) -> None:
    """Classes from first to last, masks of the kind that the pipeline gives, a map of classes."""
    h, w = item.img_shape
    item.set_metainfo(dict(flip=False, border=np.array([0, h, 0, w])))  # CenterNet's, in tests
    found = item.gt_instances
    found.labels = torch.tensor([0, pictures.num_classes - 1])
    item.ignored_instances.labels = torch.zeros(0, dtype=torch.int64)
    if pictures.masks == 'polygons':
        corners = found.bboxes.numpy()[:, [0, 1, 2, 1, 2, 3, 0, 3]]
        found.masks = PolygonMasks([[polygon] for polygon in corners], h, w)
    elif pictures.masks is None:
        del found.masks
    if pictures.class_map:
        classes = torch.zeros(1, h, w, dtype=torch.int64)
        classes[:, h // 2 :] = pictures.num_things  # the first class of stuff
        item.gt_sem_seg = PixelData(sem_seg=classes)


def _watch_gradients(backbone: nn.Module) -> list[Tensor]:
    """The gradients to come of all weights that are trained."""
    seen: list[Tensor] = []
    for weight in backbone.parameters():
        if weight.requires_grad:
            weight.register_hook(seen.append)
    return seen


def _watch_strides(detector: nn.Module) -> list[float]:
    """The strides of the maps that the neck gives, once they are there."""
    widths: list[int] = []
    strides: list[float] = []
    detector.backbone.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[3]))
    neck = detector.neck if detector.with_neck else detector.backbone
    neck.register_forward_hook(
        lambda _, __, maps: strides.extend(widths[-1] / item.shape[3] for item in maps)
    )
    return strides


def _check_strides(detector: nn.Module, strides: Sequence[float]) -> None:
    """Every stride that a head counts with is that of a map that it gets.

    A fifth is the slack that YOLACT needs, whose anchors are laid out for 550 pixels.
    """
    for name, module in detector.named_modules():
        generator = getattr(module, 'prior_generator', None)
        laid = [np.mean(stride) for stride in getattr(generator, 'strides', [])]
        for stride in [*laid, *getattr(module, 'featmap_strides', [])]:
            if strides and not np.isclose(strides, stride, rtol=0.2).any():
                raise ValueError(f'{name} counts with stride {stride}, the maps have {strides}')


def _check_finite(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, Tensor) and not value.isfinite().all():
            raise ValueError(f'{name} is not finite')
