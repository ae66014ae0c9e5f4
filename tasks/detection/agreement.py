"""Whether model, data and evaluator agree, asked before the first step, under any script."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmdet.models.roi_heads.roi_extractors.base_roi_extractor import BaseRoIExtractor
from mmengine.evaluator import Evaluator
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ..common.class_check import ClassCheckHook, named


@HOOKS.register_module()
class AgreementHook(ClassCheckHook):
    """Refuses parts of an experiment that do not agree, before training, validation and test.

    A model that counts other classes than the data has, or splits with other classes; a head for
    maps of other channels than the neck gives; an evaluator for other pictures than are predicted.
    """

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        check_channels(runner.model)
        if runner.val_loop is not None:
            check_evaluator(runner.val_evaluator, runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        super().before_test(runner)
        check_evaluator(runner.test_evaluator, runner.test_dataloader.dataset)


def check_channels(model: nn.Module) -> None:
    """Raise where a head, or what cuts out regions for it, takes other maps than the neck gives."""
    model = getattr(model, 'module', model)  # of a distributed wrapper
    given = getattr(getattr(model, 'neck', None), 'out_channels', None)
    for name, field, taken in _takers_of_maps(model):
        if isinstance(given, int) and isinstance(taken, int) and taken != given:
            raise ValueError(
                f'{name} has {field}={taken}, but the neck gives maps of {given} channels: set '
                f'model.{name}.{field}={given}, or model.neck.out_channels={taken}'
            )


def _takers_of_maps(model: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """(name, field of its channels, channels)."""
    for name, module in model.named_modules():
        if name in ('bbox_head', 'rpn_head'):
            yield name, 'in_channels', getattr(module, 'in_channels', None)
        elif isinstance(module, BaseRoIExtractor):
            yield name, 'out_channels', module.out_channels


def check_evaluator(evaluator: Evaluator, dataset: Any) -> None:
    """Raise where the annotations to compare with are not of the pictures that are predicted."""
    for metric in evaluator.metrics:
        sizes = getattr(metric, 'picture_sizes', None)
        if sizes is None:  # a stock metric, or one that takes the truth from the data set
            continue
        infos = (dataset.get_data_info(i) for i in range(len(dataset)))
        strange = [i for i in infos if sizes.get(i['img_id']) != (i['height'], i['width'])]
        if strange:
            raise ValueError(
                f'{type(metric).__name__} compares with {metric.ann_file}, which does not have '
                f'image {strange[0]["img_id"]!r} of {named(dataset)}: both need the same ann_file'
            )
