"""Whether a model counts the classes of its data, asked before the first step, under any script."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from .classes import APART, classes_in
from .groups import shared_groups
from .name_forms import composed
from .wording import few


@HOOKS.register_module()
class ClassCheckHook(Hook):
    """Refuse a model that counts other classes than the data has, and splits that do not fit.

    Splits have to agree in their classes and share no group. A test, or a resumed training, on data
    that gives the classes of the checkpoint's training other numbers is refused too. Training that
    starts from such a checkpoint (`load_from`) logs a warning.
    """

    def __init__(self) -> None:
        self._trained: tuple[str, ...] = ()  # the classes that the checkpoint knows

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        meta = checkpoint.get('meta')
        self._trained = classes_in(meta.get('dataset_meta') if isinstance(meta, dict) else None)

    def before_train(self, runner: Runner) -> None:
        check_classes(runner.model, runner.train_dataloader.dataset)
        if runner._resume:
            check_resumed(self._trained, runner.train_dataloader.dataset)
        elif remark := order_remark(self._trained, runner.train_dataloader.dataset):
            runner.logger.warning(remark)
        if runner.val_loop is not None:
            check_same_classes(runner.train_dataloader.dataset, runner.val_dataloader.dataset)
            check_groups(runner.train_dataloader.dataset, runner.val_dataloader.dataset)

    def before_val(self, runner: Runner) -> None:
        check_classes(runner.model, runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        check_classes(runner.model, runner.test_dataloader.dataset)
        check_trained(self._trained, runner.test_dataloader.dataset)


def check_trained(trained: Sequence[str], dataset: Any) -> None:
    """Raise where a test counts the classes of a training in another order; say other names."""
    names = list(dataset.metainfo['classes'])
    if not trained or list(trained) == names:
        return
    if len(trained) == len(names) and _moved(trained, names):
        first = next(i for i, name in enumerate(names) if _folded(name) != _folded(trained[i]))
        raise ValueError(
            f'{named(dataset)} has the classes of the checkpoint in another order (class {first} '
            f'is {names[first]!r}, in training it was {trained[first]!r}): give '
            f'classes={list(trained)}'
        )
    print_log(
        f'the checkpoint was trained on the classes {few(list(trained))}, {named(dataset)} has '
        f'{few(names)}: they are matched by their numbers',
        'current',
        logging.WARNING,
    )


def check_resumed(trained: Sequence[str], dataset: Any) -> None:
    """Raise where a resumed training would go on with other numbers for its classes.

    Classes that only have other names are logged: a corrected name changes nothing.
    """
    names = list(dataset.metainfo['classes'])
    if not trained or list(trained) == names:
        return
    if moved := _moved(trained, names):
        name, number = moved
        raise ValueError(
            f'{named(dataset)} has the classes {names}, and the checkpoint to resume was trained '
            f'on {list(trained)}: {name!r} is number {names.index(name)} here and was '
            f'{number}. Resume with --cfg-options "classes={list(trained)}", or start '
            'anew from its weights with load_from'
        )
    print_log(
        f'the training to resume had the classes {few(list(trained))}, {named(dataset)} has '
        f'{few(names)}: it goes on with the same numbers under the new names',
        'current',
        logging.WARNING,
    )


def order_remark(trained: Sequence[str], dataset: Any) -> str:
    """Describe that the checkpoint to start from numbers the classes otherwise; '' if it does not.

    A head for another number of classes is not loaded, so nothing is wrong then.
    """
    names = list(dataset.metainfo['classes'])
    if len(trained) != len(names) or not (moved := _moved(trained, names)):
        return ''
    name, number = moved
    return (
        f'{named(dataset)} has the classes {few(names)}, and the checkpoint of load_from was '
        f'trained on {few(list(trained))}: {name!r} is number {names.index(name)} here and was '
        f'{number}. Its head starts with the weights of other classes, and has to learn them '
        'again. Fix: give the data the order of the checkpoint'
    )


def _moved(trained: Sequence[str], names: Sequence[str]) -> tuple[str, int] | None:
    """Return the first class whose number was another in the training, and that number.

    Upper and lower case are one name.
    """
    numbers = {_folded(name): number for number, name in enumerate(trained)}
    moved = (
        (name, was) for i, name in enumerate(names) if (was := numbers.get(_folded(name), i)) != i
    )
    return next(moved, None)


def _folded(name: str) -> str:
    return composed(name).casefold()


def check_classes(model: nn.Module, dataset: Any) -> None:
    """Raise where a head counts other classes than the data set has."""
    expected = len(dataset.metainfo['classes'])
    for name, module in counting_parts(model):
        if (found := module.num_classes) != expected:
            raise ValueError(
                f'{name} ({type(module).__name__}) has num_classes={found}, but {named(dataset)} '
                f'has {expected} classes: set model.{name}.num_classes={expected}, or use '
                'tools/train.py, where it follows from the data'
            )


def counting_parts(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The parts of a model whose `num_classes` counts the classes of the data, by their names."""
    for name, module in model.named_modules():
        name = name.removeprefix('module.')  # of a distributed wrapper
        # a segmentor repeats what its head counts
        if name and hasattr(module, 'num_classes') and not set(name.split('.')) & set(APART):
            yield name, module


def check_same_classes(train: Any, val: Any) -> None:
    """Raise where labels would mean one class in training and another in evaluation."""
    names = [[composed(n) for n in dataset.metainfo['classes']] for dataset in (train, val)]
    if names[0] != names[1]:
        raise ValueError(
            f'classes differ: {named(train)} has {names[0]}, {named(val)} {names[1]}: both need '
            'the same categories in the same order; give the names for all, as in --cfg-options '
            "\"classes=['cat', 'dog']\", or mend one of the two"
        )
    for key in ('reduce_zero_label', 'ignore_index'):  # of label maps
        given = [getattr(dataset, key, None) for dataset in (train, val)]
        if given[0] != given[1]:
            raise ValueError(
                f'{key} differs: {named(train)} has {given[0]}, {named(val)} {given[1]}: a label '
                'would mean one class in training and another in evaluation; give both the same'
            )


def check_groups(train: Any, val: Any) -> None:
    """Raise where examples of one group are both in training and in evaluation."""
    for problem in shared_groups(train, val):
        raise ValueError(f'{named(train)} and {named(val)}: {problem}')


def named(dataset: Any) -> str:
    """What to call a data set: its annotation file, else its folder, else its class."""
    file = getattr(dataset, 'ann_file', '')
    folders = getattr(dataset, 'data_prefix', None) or {}
    return str(file or next(iter(folders.values()), '') or type(dataset).__name__)
