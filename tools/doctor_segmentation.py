"""What the doctor holds a segmentor to: its heads, and the label maps of its data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from mmengine.config import Config
from torch import nn

from navit_backbone.tasks.common.wording import few
from navit_backbone.tasks.segmentation.label_check import check_ignored, problem_of, read_some
from navit_backbone.tasks.segmentation.mixed_sizes import window_problem
from navit_backbone.tools.doctor import Finding
from navit_backbone.tools.doctor_config import MISTAKES, build_metrics, told
from navit_backbone.tools.doctor_heads import Maps

NUM_READ = 50  # label maps of a data set that are read


def check_decode_heads(model: nn.Module, cfg: Config, maps: Maps) -> Iterator[Finding]:
    """Every head's maps, stride, ignored label and loss."""
    for key in ('decode_head', 'auxiliary_head'):
        heads = getattr(model, key, None)
        if heads is None:
            continue
        several = isinstance(heads, nn.ModuleList)
        for number, head in enumerate(heads if several else [heads]):
            name = f'model.{key}.{number}' if several else f'model.{key}'
            yield from _head(name, head, model, maps)
    mode = (cfg.model.get('test_cfg') or {}).get('mode', 'whole')
    size = (cfg.get('test_dataloader') or {}).get('batch_size', 1)
    if problem := window_problem(model):
        yield Finding(name='model.test_cfg.crop_size', found='', problem=problem)
    if mode == 'slide' and size > 1:
        yield Finding(
            name='model.test_cfg.mode',
            found='slide',
            note=f'test_dataloader.batch_size={size}: windows are cut out of batches of one size '
            "alone; mode='whole' takes any sizes",
        )


def _head(name: str, head: Any, model: nn.Module, maps: Maps) -> Iterator[Finding]:
    indexes = getattr(head, 'in_index', None)
    if indexes is not None:
        several = isinstance(indexes, (list, tuple))
        places = list(indexes) if several else [indexes]
        beyond = [i for i in places if not -len(maps.channels) <= i < len(maps.channels)]
        if beyond:
            problem = f'{beyond} of the {len(maps.channels)} maps that heads get'
            yield Finding(name=f'{name}.in_index', found='', problem=problem, fix='number them')
            return
        given = [maps.channels[i] for i in places]
        taken = head.in_channels
        fits = taken in (given if several else given[0], sum(given))
        yield Finding(
            name=f'{name}.in_channels',
            found=f'{taken} at stride {", ".join(f"{maps.strides[i]:g}" for i in places)}',
            problem='' if fits else f'{taken}, but its maps have {given} channels',
            fix=f'set {name}.in_channels={given if several else given[0]}',
        )
    stride, patch = getattr(head, 'in_stride', None), getattr(model.backbone, 'patch_size', None)
    if stride is not None and patch is not None and stride != patch:
        yield Finding(
            name=f'{name}.in_stride',
            found='',
            problem=f'{stride}, but the backbone gives maps of stride {patch}, its patch_size',
            fix=f'set {name}.in_stride={patch}',
        )
    padding = getattr(model.data_preprocessor, 'seg_pad_val', None)
    if padding is not None and padding != head.ignore_index:
        yield Finding(
            name=f'{name}.ignore_index',
            found='',
            problem=f'{head.ignore_index}, but label maps are padded with {padding}, which would '
            'count as a class',
            fix=f'set model.data_preprocessor.seg_pad_val={head.ignore_index}',
        )
    losses = getattr(head, 'loss_decode', None)
    for loss in losses if isinstance(losses, nn.ModuleList) else [losses]:
        if getattr(loss, 'avg_non_ignore', True) is False:
            yield Finding(
                name=f'{name}.loss_decode',
                found='',
                problem='averages over ignored pixels too, so the more padding a batch has, the '
                'smaller is its loss',
                fix=f"set {name}.loss_decode=dict(type='NaViTCrossEntropyLoss'), or its "
                'avg_non_ignore=True',
            )


def check_ignored_labels(
    model: nn.Module, cfg: Config, datasets: Mapping[str, Any]
) -> Iterator[Finding]:
    """Check that head and metrics ignore the label that the data ignores, as training does."""
    for split, dataset in datasets.items():
        try:
            metrics = build_metrics(cfg, [split]).values()
            check_ignored(dataset, model if split == 'train' else None, metrics)
        except MISTAKES as error:
            yield Finding(name=f'{split}: ignore_index', found='', problem=told(error))


def check_label_maps(datasets: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether label maps can be read and fit, and which classes are in them."""
    for split, dataset in datasets.items():
        if not hasattr(dataset, 'reduce_zero_label'):
            continue
        steps = [s for s in dataset.pipeline.transforms if hasattr(s, '_load_seg_map')]
        if not steps:
            yield Finding(
                name=f'{split}_dataloader.dataset.pipeline',
                found='',
                problem='no transform loads label maps',
                fix="put dict(type='LoadSegMap') in: in training before the resize, in evaluation "
                'after it',
            )
            continue
        yield _counted(f'{split}_dataloader: label maps', dataset)


def _counted(name: str, dataset: Any) -> Finding:
    maps = read_some(dataset, NUM_READ)
    if maps.faults:
        count = f'{len(maps.faults)} of the {maps.num_read} that were read cannot be used'
        return Finding(name=name, found='', problem=f'{count}; {maps.faults[0]}')
    pixels, classes = maps.pixels, dataset.metainfo['classes']
    absent = [classes[i] for i in np.flatnonzero(pixels[: len(classes)] == 0)]
    share = pixels[dataset.ignore_index] / max(1, pixels.sum())
    found = f'{maps.num_read} of {len(dataset)} read, {100 * share:.1f} % of the pixels ignored'
    if problem := problem_of(dataset, maps):
        return Finding(name=name, found='', problem=f'{maps.num_read} read: {problem}')
    note = f'{len(absent)} of {len(classes)} classes have no pixel in these: {few(absent)}'
    if dataset.reduce_zero_label and classes[-1] in absent:
        note += '; if it is because reduce_zero_label shifts them, leave it out'
    return Finding(name=name, found=found, note=note if absent else '')
