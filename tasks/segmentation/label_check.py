"""What stands in label maps, looked at before the first step and not at the first validation."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from rich.progress import track

from ..common.picture_check import PictureCheckHook, refuse
from ..common.picture_sizes import UNREADABLE, picture_size
from ..common.sample import BadSampleError

_NUM_READ = 64  # maps of a training set
_NUM_THREADS = 8
_MANY = 1000  # take long enough to show progress
_BROKEN = (BadSampleError, *UNREADABLE, cv2.error, AssertionError, AttributeError)


class Found(NamedTuple):
    """What was read of some label maps."""

    pixels: np.ndarray  # [256] of each label, as training sees them
    faults: list[str]  # of the maps that cannot be used, a sentence each
    num_read: int


def read_label_maps(dataset: Any, indices: Iterable[int]) -> Found:
    """The labels of these samples; raise nothing."""
    chosen = list(indices)
    (loader,) = [s for s in dataset.pipeline.transforms if hasattr(s, '_load_seg_map')][:1]

    def read(index: int) -> np.ndarray | str:
        record = dataset.get_data_info(index)
        try:
            record['ori_shape'] = tuple(int(side) for side in picture_size(record['img_path']))
            labels = loader(record)['gt_seg_map']
        except _BROKEN as error:
            file, told = record['seg_map_path'], ' '.join(str(error).split())
            return told if str(file) in told else f'{file}: {told or type(error).__name__}'
        return np.bincount(labels.ravel(), minlength=256)

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        found = track(
            pool.map(read, chosen), 'reading label maps', len(chosen), disable=len(chosen) < _MANY
        )
        counts = list(found)
    pixels = sum((c for c in counts if not isinstance(c, str)), np.zeros(256, dtype=np.int64))
    return Found(pixels, [c for c in counts if isinstance(c, str)], len(chosen))


def one_class_alone(dataset: Any, found: Found) -> str:
    """What is wrong where only one class has pixels and all others are ignored; empty if not."""
    classes, counts = dataset.metainfo['classes'], found.pixels
    there = np.flatnonzero(counts[: len(classes)])
    if len(there) != 1:
        return ''
    share = 100 * counts[dataset.ignore_index] / max(counts.sum(), 1)
    text = (
        f'of {len(classes)} classes only {classes[there[0]]!r} has pixels, and {share:.1f} % of '
        'all are ignored: a model would learn to say that one everywhere'
    )
    if there[0] == 0 and share > 0:
        text += '; where the maps are 0 and 255, 255 is the ignored label: write 1 in its place'
    return text


@HOOKS.register_module()
class LabelMapCheckHook(PictureCheckHook):
    """Reads all label maps of an evaluation, and some of a training set, before the first step.

    An evaluation with maps that it would stop at is refused, and all of these are named. A training
    set of which no map can be used is refused; where one class alone has pixels, that is said.
    """

    def check_some(self, dataset: Any) -> None:
        found = _on_main(dataset, range(0, len(dataset), max(1, len(dataset) // _NUM_READ)))
        if found is None:
            return
        if len(found.faults) == found.num_read:
            raise ValueError(f'not one label map can be used: {found.faults[0]}')
        if text := one_class_alone(dataset, found):
            print_log(f'label maps: {text}', 'current', logging.WARNING)

    def check_all(self, dataset: Any) -> None:
        found = _on_main(dataset, range(len(dataset)))
        if found is not None:
            refuse(found.faults, f'of {len(dataset)} label maps')


def _on_main(dataset: Any, indices: Iterable[int]) -> Found | None:
    """What the first rank reads, on all ranks; None where there are no label maps on this disk."""
    loads = any(hasattr(step, '_load_seg_map') for step in dataset.pipeline.transforms)
    info = dataset.get_data_info(0)
    if not loads or not info.get('seg_map_path') or '://' in str(info['seg_map_path']):
        return None
    held: list[Any] = [read_label_maps(dataset, indices)] if is_main_process() else [None]
    broadcast_object_list(held)
    found: Found = held[0]
    return found
