"""What stands in label maps, looked at before the first step and not at the first validation."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from rich.progress import track
from torch import nn

from ..common.class_check import named
from ..common.dataset import LOADER_ERRORS, seeded_parts
from ..common.picture_check import PictureCheckHook, refuse
from ..common.picture_sizes import picture_size
from ..common.sample import BadSampleError, with_file

_NUM_READ = 64  # maps of a training set
_NUM_THREADS = 8
_MANY = 1000  # take long enough to show progress
_BROKEN = (BadSampleError, *LOADER_ERRORS)


class Found(NamedTuple):
    """What was read of some label maps."""

    pixels: np.ndarray  # [256] of each label, as training sees them
    faults: list[str]  # of the maps that cannot be used, a sentence each
    num_read: int

    @property
    def num_good(self) -> int:
        return self.num_read - len(self.faults)


def count_pixels(dataset: Any, indices: Iterable[int]) -> list[np.ndarray | str]:
    """Return [256] pixels of each label for each of these samples, or what is wrong with its map.

    Labels are those that training sees. Nothing is raised.
    """
    chosen = list(indices)
    (loader,) = [s for s in dataset.pipeline.transforms if hasattr(s, '_load_seg_map')][:1]

    def count(index: int) -> np.ndarray | str:
        record = dataset.get_data_info(index)
        try:
            record['ori_shape'] = tuple(int(side) for side in picture_size(record['img_path']))
            labels = loader(record)['gt_seg_map']
        except _BROKEN as error:
            return with_file(str(record['seg_map_path']), error)
        return np.bincount(labels.ravel(), minlength=256)

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        counts = pool.map(count, chosen)
        hidden = len(chosen) < _MANY
        return list(track(counts, 'reading label maps', len(chosen), disable=hidden))


def read_label_maps(dataset: Any, indices: Iterable[int]) -> Found:
    """Read the label maps of these samples; raise nothing."""
    counts = count_pixels(dataset, indices)
    pixels = sum((c for c in counts if not isinstance(c, str)), np.zeros(256, dtype=np.int64))
    return Found(pixels, [c for c in counts if isinstance(c, str)], len(counts))


def problem_of(dataset: Any, found: Found) -> str:
    """Describe why label maps have nothing to learn from or to compare with; empty if they have.

    In an evaluation one class with pixels is enough.
    """
    classes, counts = dataset.metainfo['classes'], found.pixels
    present = np.flatnonzero(counts[: len(classes)])
    ignored = counts[dataset.ignore_index] / max(counts.sum(), 1)
    if not len(present):
        return (
            f'no pixel has a class, {ignored:.0%} of all are ignored. Fix: look at '
            'reduce_zero_label, and at the numbers in the label maps'
        )
    if len(present) > 1 or dataset.test_mode:
        return ''
    name = classes[present[0]]
    text = (
        f'of {len(classes)} classes only {name!r} has pixels, and {100 * ignored:.1f} % of all are '
        'ignored: a model would learn to predict that class everywhere'
    )
    if present[0] == 0 and ignored > 0:
        text += f'. Fix, where the maps are 0 and 255: {_binary_fix(dataset, classes)}'
    return text


def _binary_fix(dataset: Any, classes: Sequence[str]) -> str:
    """Return the commands that number maps of 0 and 255, in which 255 is the ignored label."""
    folder = Path(dataset.data_prefix['seg_map_path'])
    out = folder.with_name(f'{folder.name}_numbered')
    colours = [f'0 0 0 {classes[0]}', f'255 255 255 {classes[1]}']
    command = ['masks', str(folder), '--colours', *colours, '--out', str(out)]
    within = os.path.relpath(out, dataset.data_root or '.')
    return (
        f'python tools/prepare_data.py {shlex.join(command)}, then set data_prefix.seg_map_path to '
        f'{within!r}'
    )


def read_some(dataset: Any, num_maps: int) -> Found:
    """Read this many label maps all over a data set, and all where these have a problem."""
    found = read_label_maps(dataset, range(0, len(dataset), max(1, len(dataset) // num_maps)))
    if found.num_read < len(dataset) and (not found.num_good or problem_of(dataset, found)):
        return read_label_maps(dataset, range(len(dataset)))
    return found


def check_ignored(dataset: Any, model: Any, metrics: Iterable[Any]) -> None:
    """Raise ValueError where the head or a metric ignores another label than the data set.

    They would count the ignored pixels as a class, or stop at a label that no class has.
    """
    head = getattr(getattr(model, 'module', model), 'decode_head', None)
    heads = head if isinstance(head, nn.ModuleList) else [head]
    users = [('model.decode_head', item) for item in heads]
    users += [(f'the metric {type(metric).__name__}', metric) for metric in metrics]
    for part in seeded_parts(dataset):
        ignored = getattr(part, 'ignore_index', None)
        for name, user in users:
            label = getattr(user, 'ignore_index', ignored)
            if ignored is not None and label != ignored:
                raise ValueError(
                    f'{named(part)} has ignore_index={ignored}, {name} has ignore_index={label}. '
                    'Fix: set both to the same number, and model.data_preprocessor.seg_pad_val too'
                )


@HOOKS.register_module()
class LabelMapCheckHook(PictureCheckHook):
    """Reads all label maps of an evaluation, and some of a training set, before the first step.

    Refuses an evaluation with maps that it would stop at, and names them all; a training set of
    which no map can be used; and either where no pixel has a class. A training set where one class
    alone has pixels is refused too. All its maps are read before it is.
    """

    def before_train(self, runner: Runner) -> None:
        check_ignored(runner.train_dataloader.dataset, runner.model, ())
        if runner.val_loop is not None:
            metrics = runner.val_loop.evaluator.metrics
            check_ignored(runner.val_dataloader.dataset, None, metrics)
        super().before_train(runner)

    def before_test(self, runner: Runner) -> None:
        metrics = runner.test_loop.evaluator.metrics
        check_ignored(runner.test_dataloader.dataset, None, metrics)
        super().before_test(runner)

    def check_some(self, dataset: Any) -> None:
        found = _on_main(dataset, lambda: read_some(dataset, _NUM_READ))
        if found is None:
            return
        if not found.num_good:
            raise ValueError(f'not one label map can be used: {found.faults[0]}')
        if problem := problem_of(dataset, found):
            raise ValueError(f'label maps of {named(dataset)}: {problem}')

    def check_all(self, dataset: Any) -> None:
        found = _on_main(dataset, lambda: read_label_maps(dataset, range(len(dataset))))
        if found is None:
            return
        refuse(found.faults, f'of {len(dataset)} label maps')
        if problem := problem_of(dataset, found):
            raise ValueError(f'label maps of {named(dataset)}: {problem}')


def _on_main(dataset: Any, read: Callable[[], Found]) -> Found | None:
    """Return what the first rank reads; None where there are no label maps on this disk."""
    loads = any(hasattr(step, '_load_seg_map') for step in dataset.pipeline.transforms)
    info = dataset.get_data_info(0)
    if not loads or not info.get('seg_map_path') or '://' in str(info['seg_map_path']):
        return None
    held: list[Any] = [read()] if is_main_process() else [None]
    broadcast_object_list(held)
    found: Found = held[0]
    return found
