"""Whether model, data and evaluator agree, asked before the first step, under any script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    maps of other channels than the neck gives; an evaluator for other images than are predicted, or
    without a box to compare with. Warns where images hold more objects than the model can find.
    """

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        check_channels(runner.model)
        if runner.val_loop is not None:
            self._check_evaluation(runner, runner.val_evaluator, runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        super().before_test(runner)
        self._check_evaluation(runner, runner.test_evaluator, runner.test_dataloader.dataset)

    def _check_evaluation(self, runner: Runner, evaluator: Evaluator, dataset: Any) -> None:
        check_evaluator(evaluator, dataset)
        for remark in limit_remarks(runner.cfg.get('model') or {}, evaluator.metrics):
            runner.logger.warning(remark)


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
    """Raise where the annotations to compare with are not of the images that are predicted.

    And where they have no box to compare with. Sizes that they lack are those of the data set.
    """
    for metric in evaluator.metrics:
        if getattr(metric, 'picture_sizes', None) is None:
            continue  # a stock metric, or one that takes the truth from the data set
        infos = [dataset.get_data_info(i) for i in range(len(dataset))]
        metric.complete_sizes({info['img_id']: (info['height'], info['width']) for info in infos})
        sizes = metric.picture_sizes
        strange = [i for i in infos if sizes.get(i['img_id']) != (i['height'], i['width'])]
        if strange:
            raise ValueError(
                f'{type(metric).__name__} compares with {metric.ann_file}, which does not have '
                f'image {strange[0]["img_id"]!r} of {named(dataset)}: both need the same ann_file'
            )
        if not getattr(metric, 'format_only', False):
            metric.stated.require_objects(dataset.metainfo['classes'], training=False)


def limit_remarks(model: Mapping[str, Any], metrics: Sequence[Any]) -> Iterator[str]:
    """Describe the limits of a model and of metrics that images with many objects exceed."""
    for metric in metrics:
        found = getattr(metric, 'found', None)
        if found is None:
            continue
        objects = found.most_objects()
        limits = {**_limits(model), 'evaluator.max_dets': getattr(metric, 'max_dets', objects)}
        for key, limit in limits.items():
            if 0 < limit < objects:
                yield (
                    f'{metric.ann_file}: an image holds {objects:,} objects, but {key}={limit} '
                    f'lets at most {limit} be found in one. Fix: set {key}={objects} or more'
                )


def _limits(model: Mapping[str, Any]) -> dict[str, int]:
    """Return the most detections, proposals or queries of an image that a config allows."""
    model = model.get('module', model)  # of a wrapper for test-time augmentation
    tests = model.get('test_cfg') or {}
    found = {
        f'model.test_cfg.{f"{part}." if part else ""}max_per_img': of_part.get('max_per_img')
        for part, of_part in (('', tests), ('rpn', tests.get('rpn')), ('rcnn', tests.get('rcnn')))
        if isinstance(of_part, Mapping)
    }
    found['model.num_queries'] = model.get('num_queries')
    return {key: limit for key, limit in found.items() if isinstance(limit, int)}
