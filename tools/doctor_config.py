"""What the doctor sees in a config before its model is built: pipelines, data, weights."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS, MODELS
from mmengine.runner import Runner

from navit_backbone.backbone import refuse_missing
from navit_backbone.checkpoint import load_weights
from navit_backbone.tasks.common.bit_depth import darkness_of, sample_files
from navit_backbone.tasks.common.duplicates import duplicate_remarks, files_of
from navit_backbone.tasks.common.resize import find_planner
from navit_backbone.tools.command_line import mistake
from navit_backbone.tools.doctor import Finding

SPLITS = ('train', 'val', 'test')
PACKERS = {'mmdet': 'PackDetInputs', 'mmseg': 'PackSegInputs'}
OURS = ('NaViTBackbone', 'NaViTClipBackbone')
NUM_LOOKED_AT = 200  # pictures of a data set whose files are looked for
# What a registry, a constructor or a reader of files says to what a user wrote
MISTAKES = (ValueError, TypeError, KeyError, OSError, AssertionError, AttributeError, RuntimeError)


def examine_config(cfg: Config) -> Generator[Finding, None, dict[str, Any]]:
    """Look at all but the model; give the data sets of the splits that could be read."""
    datasets = {}
    for split in SPLITS:
        loader = cfg.get(f'{split}_dataloader')
        if loader is None or (split == 'test' and loader == cfg.get('val_dataloader')):
            continue
        yield from check_pipeline(f'{split}_dataloader.dataset', loader.dataset, cfg)
        dataset, finding = read_loader(f'{split}_dataloader', loader)
        yield finding
        if dataset is not None:
            datasets[split] = dataset
            yield check_pictures(f'{split}_dataloader.dataset.data_prefix', dataset)
            yield from check_evaluator(f'{split}_evaluator', cfg, dataset)
    yield from check_classes(datasets)
    yield from check_duplicates(datasets)
    yield from check_weights(cfg)
    return datasets


def build_metrics(cfg: Config, splits: Sequence[str] = ('val', 'test')) -> dict[str, Any]:
    """Build the metrics of these splits, by their place in the config."""
    metrics = {}
    for key in (f'{split}_evaluator' for split in splits):
        given = cfg.get(key) or []
        items = [given] if isinstance(given, Mapping) else list(given)
        for number, item in enumerate(items):
            metrics[key if len(items) == 1 else f'{key}.{number}'] = METRICS.build(item)
    return metrics


def told(error: Exception) -> str:
    """An error in one line."""
    return mistake(error, Path('the config')) or f'{type(error).__name__}: {error}'


# --------------------------------------------------------------------------------------------------
# Pipelines


def check_pipeline(key: str, dataset: Mapping[str, Any], cfg: Config) -> Iterator[Finding]:
    """What every pipeline owes to stock tools, and to pictures of their own sizes."""
    transforms = transforms_of(dataset)
    kinds = list(all_kinds(transforms))
    faults = [
        (
            kinds[:1] != ['LoadImageFromFile'],
            f'starts with {kinds[0] if kinds else "nothing"}',
            "let dict(type='LoadImageFromFile') be the first: the Inferencers look for it",
        ),
        (
            not kinds or not kinds[-1].startswith('Pack'),
            f'ends with {kinds[-1] if kinds else "nothing"}',
            f"let dict(type='{PACKERS[cfg.default_scope]}') be the last: it makes what the model "
            'takes',
        ),
        (
            'Pad' in kinds,
            "Pad overwrites a picture's img_shape, so padding counts as picture",
            'remove it: the data preprocessor pads',
        ),
    ]
    wrong = [(problem, fix) for fault, problem, fix in faults if fault]
    wrong += planner_faults(transforms, cfg.model.get('backbone') or {})
    for problem, fix in wrong:
        yield Finding(name=f'{key}.pipeline', found='', problem=problem, fix=fix)
    if not wrong:
        yield Finding(name=f'{key}.pipeline', found=' '.join(kinds))


def transforms_of(dataset: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a sample goes through: the innermost data set's transforms, then those of wrappers."""
    inner = dataset.get('dataset') or next(iter(dataset.get('datasets', ())), None)
    before = transforms_of(inner) if inner else []
    return [*before, *dataset.get('pipeline', ())]


def all_kinds(transforms: Sequence[Any]) -> Iterator[str]:
    """The types of transforms, and of those inside them."""
    for item in transforms:
        if isinstance(item, Mapping):
            yield item.get('type', '')
            yield from all_kinds(item.get('transforms', ()))
        elif isinstance(item, Sequence):
            yield from all_kinds(item)


def planner_faults(
    transforms: Sequence[dict[str, Any]], backbone: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """What is wrong with the transform that decides sizes, with the ways out."""
    try:
        planner = find_planner(Compose(list(transforms)).transforms)
    except MISTAKES:  # the loader, whose data set builds them too, tells
        return []
    if planner is None or backbone.get('type') != 'NaViTBackbone':
        return []
    ours, theirs = planner.patch_size, backbone.get('patch_size', 16)
    if ours == theirs:
        return []
    problem = f'{type(planner).__name__} counts patches of {ours} pixels, the backbone of {theirs}'
    return [(problem, f'set patch_size={theirs} there')]


# --------------------------------------------------------------------------------------------------
# Data


def read_loader(key: str, config: Mapping[str, Any]) -> tuple[Any, Finding]:
    """A loader's data set, read whole, and samplers that take it; None where that fails."""
    try:
        dataset = Runner.build_dataloader(config, seed=0).dataset
    except MISTAKES as error:
        return None, Finding(name=key, found='', problem=told(error))
    classes = dataset.metainfo.get('classes', ())
    found = f'{len(dataset)} examples, {len(classes)} classes: {", ".join(classes[:5])}'
    return dataset, Finding(name=key, found=found + (', ...' if len(classes) > 5 else ''))


def check_pictures(key: str, dataset: Any) -> Finding:
    """Whether files lie where the annotations say, of pictures all over the set."""
    step = max(1, len(dataset) // NUM_LOOKED_AT)
    files = [dataset.get_data_info(i)['img_path'] for i in range(0, len(dataset), step)]
    missing = [file for file in files if '://' not in file and not Path(file).is_file()]
    if not missing:
        found = f'{len(files)} of {len(dataset)} pictures looked for'
        return Finding(name=key, found=found, note=darkness_of(sample_files(dataset)))
    prefix = 'img' if 'img' in dataset.data_prefix else 'img_path'
    return Finding(
        name=key,
        found='',
        problem=f'{len(missing)} of {len(files)} pictures are missing, the first: {missing[0]}',
        fix=f'set data_root, or data_prefix.{prefix} to the folder of the pictures within it',
    )


def check_evaluator(key: str, cfg: Config, dataset: Any) -> Iterator[Finding]:
    """Check that figures are of the data set that is predicted, and of all its objects."""
    given = cfg.get(key) or []
    own = getattr(dataset, 'ann_file', None)
    for metric in [given] if isinstance(given, Mapping) else given:
        file = metric.get('ann_file')
        if file is None or own is None:
            continue
        if Path(file).resolve() != Path(own).resolve():
            yield Finding(
                name=f'{key}.ann_file',
                found='',
                problem=f'{file} is not the ann_file of the data set, {own}',
                fix=f'set {key}.ann_file={own}',
            )
        elif cfg.get('default_scope') == 'mmdet':
            yield from _check_objects(key, metric, cfg, dataset)


def _check_objects(
    key: str, metric: Mapping[str, Any], cfg: Config, dataset: Any
) -> Iterator[Finding]:
    """Check that an evaluation can use its annotations, and that a model can find all objects."""
    from navit_backbone.tasks.detection.agreement import check_evaluator, limit_remarks

    try:
        evaluator = Evaluator(metric)
        check_evaluator(evaluator, dataset)
    except MISTAKES as error:
        yield Finding(name=key, found='', problem=told(error))
        return
    for remark in limit_remarks(cfg.model, evaluator.metrics):
        yield Finding(name=key, found='', note=remark)


def check_classes(datasets: Mapping[str, Any]) -> Iterator[Finding]:
    """Check that a label means one class in all splits, and that no group is in two of them."""
    from navit_backbone.tasks.common.class_check import check_same_classes
    from navit_backbone.tasks.common.groups import shared_groups

    for one, other in pairwise(datasets.values()):
        try:
            check_same_classes(one, other)
        except ValueError as error:
            yield Finding(name='classes', found='', problem=str(error))
    for split in ('val', 'test'):
        if 'train' in datasets and split in datasets:
            for problem in shared_groups(datasets['train'], datasets[split]):
                yield Finding(name=f'{split}_dataloader: groups', found='', problem=problem)


def check_duplicates(datasets: Mapping[str, Any]) -> Iterator[Finding]:
    """Check that no sample is twice in a data set, or in both training and evaluation."""
    files = {split: files_of(dataset) for split, dataset in datasets.items()}
    for remark in duplicate_remarks(files):
        problem, note = (remark.text, '') if remark.is_leak else ('', remark.text)
        name = f'{remark.split}_dataloader: duplicates'
        yield Finding(name=name, found='', problem=problem, note=note)


# --------------------------------------------------------------------------------------------------
# Weights


def check_weights(cfg: Config) -> Iterator[Finding]:
    """Whether the files that training starts from exist, and fit."""
    backbone = cfg.model.get('backbone') or {}
    start = dict(backbone.get('init_cfg') or {}) if backbone else {}
    if start.pop('type', None) == 'Pretrained':
        yield check_start('model.backbone.init_cfg', dict(backbone), start)
    if (file := cfg.get('load_from')) and '://' not in file and not Path(file).is_file():
        yield Finding(
            name='load_from',
            found='',
            problem=f'no file at {file}',
            fix='give the checkpoint of a whole model, or leave load_from out',
        )


def check_start(key: str, backbone: dict[str, Any], start: dict[str, Any]) -> Finding:
    """Whether a backbone takes the weights of its `init_cfg`; a stock one: whether they exist."""
    file = str(start.get('checkpoint'))
    if backbone['type'] not in OURS:
        lacks = '://' not in file and not Path(file).is_file()
        return Finding(name=key, found=file, problem='there is no such file' if lacks else '')
    try:
        with torch.device('meta'):  # shapes alone: nothing is copied
            vit = MODELS.build({**backbone, 'init_cfg': None}).vit
    except MISTAKES:
        return Finding(name=key, found=file, note='not looked at: the model cannot be built')
    try:
        refuse_missing(start.get('checkpoint'))
        report = load_weights(vit, **start)
    except MISTAKES as error:
        fix = 'give a file that is there and fits, or model.backbone.init_cfg=None to start anew'
        return Finding(name=key, found='', problem=told(error), fix=fix)
    return Finding(name=key, found=f'{file}: {report.share:.1%} of the backbone')
