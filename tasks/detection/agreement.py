"""Whether model, data and evaluator agree, asked before the first step, under any script."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmdet.models.roi_heads.roi_extractors.base_roi_extractor import BaseRoIExtractor
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ..common.classes import APART


@HOOKS.register_module()
class AgreementHook(Hook):
    """Refuses parts of an experiment that do not agree, before training, validation and test.

    A model that counts other classes than the data has, or splits with other classes; a head for
    maps of other channels than the neck gives; an evaluator for other pictures than are predicted.
    """

    def before_train(self, runner: Runner) -> None:
        check_classes(runner.model, runner.train_dataloader.dataset)
        check_channels(runner.model)
        if runner.val_loop is not None:
            check_same_classes(runner.train_dataloader.dataset, runner.val_dataloader.dataset)
            check_evaluator(runner.val_evaluator, runner.val_dataloader.dataset)

    def before_val(self, runner: Runner) -> None:
        check_classes(runner.model, runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        check_classes(runner.model, runner.test_dataloader.dataset)
        check_evaluator(runner.test_evaluator, runner.test_dataloader.dataset)


def check_classes(model: nn.Module, dataset: Any) -> None:
    """Raise where a head counts other classes than the data set has."""
    expected = len(dataset.metainfo['classes'])
    for name, module in counting_parts(model):
        if (found := module.num_classes) != expected:
            raise ValueError(
                f'{name} ({type(module).__name__}) has num_classes={found}, but {_file(dataset)} '
                f'has {expected} classes: set model.{name}.num_classes={expected}, or use '
                'tools/train.py, where it follows from the data'
            )


def counting_parts(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The parts of a model whose `num_classes` counts the classes of the data, by their names."""
    for name, module in model.named_modules():
        if hasattr(module, 'num_classes') and not set(name.split('.')) & set(APART):
            yield name.removeprefix('module.'), module  # of a distributed wrapper


def check_same_classes(train: Any, val: Any) -> None:
    """Raise where labels would mean one class in training and another in evaluation."""
    names = [list(dataset.metainfo['classes']) for dataset in (train, val)]
    if names[0] != names[1]:
        raise ValueError(
            f'classes differ: {_file(train)} has {names[0]}, {_file(val)} {names[1]}: both need '
            'the same categories in the same order'
        )


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
                f'image {strange[0]["img_id"]!r} of {_file(dataset)}: both need the same ann_file'
            )


def _file(dataset: Any) -> str:
    return str(getattr(dataset, 'ann_file', type(dataset).__name__))
