"""Check that data of several classes a clip meets a head and a metric of several classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ..common.wrappers import inner_datasets

_SINGLE_LABEL_METRICS = ('top', 'mean_class')  # what their names begin with


@HOOKS.register_module()
class MultiLabelCheckHook(Hook):
    """Refuse to train or test on several classes a clip with a softmax head or with top-1."""

    def before_train(self, runner: Runner) -> None:
        metrics = {} if runner.val_loop is None else _metrics('val_evaluator', runner.val_loop)
        check_multi_label(
            {'train_dataloader': runner.train_dataloader.dataset},
            runner.model,
            metrics,
            [hook.save_best for hook in runner.hooks if isinstance(hook, CheckpointHook)],
        )

    def before_test(self, runner: Runner) -> None:
        data = {'test_dataloader': runner.test_dataloader.dataset}
        check_multi_label(data, runner.model, _metrics('test_evaluator', runner.test_loop))


def check_multi_label(
    datasets: Mapping[str, Any],
    model: nn.Module,
    metrics: Mapping[str, Any],
    save_best: Any = None,
) -> None:
    """Raise where a data set has `multi_class`, but not the head, a metric or `save_best`.

    `datasets` and `metrics` are named by their config keys; `save_best` are the checkpoint hook's
    figures.

    Raises:
        ValueError: names the data set, and all fields to set.
    """
    named = [f'{key}.dataset' for key, dataset in datasets.items() if _has_several(dataset)]
    if not named:
        return
    head = getattr(getattr(model, 'module', model), 'head', None)
    lacking = ['model.head'] if getattr(head, 'multi_label', True) is False else []
    lacking += [key for key, item in metrics.items() if getattr(item, 'multi_label', True) is False]
    fields = [f'{key}.multi_label=True' for key in lacking]
    if any(name.startswith(_SINGLE_LABEL_METRICS) for name in _names(save_best)):
        fields.append('default_hooks.checkpoint.save_best=mAP')
    if fields:
        raise ValueError(
            f'{named[0]} has multi_class=True (several classes a clip), but the model is trained '
            f'or evaluated as if a clip had one. Fix: set {" ".join(fields)}'
        )


def _has_several(dataset: Any) -> bool:
    if hasattr(dataset, 'multi_class'):
        return bool(dataset.multi_class)
    return any(_has_several(part) for part in inner_datasets(dataset))


def _metrics(key: str, loop: Any) -> dict[str, Any]:
    """Return the metrics of a loop by their config keys."""
    found = loop.evaluator.metrics
    return {key if len(found) == 1 else f'{key}.{i}': item for i, item in enumerate(found)}


def _names(save_best: Any) -> Iterator[str]:
    """Yield the names in nested lists."""
    if isinstance(save_best, str):
        yield save_best
    for item in save_best if isinstance(save_best, (list, tuple)) else ():
        yield from _names(item)
