"""What the doctor sees in the config of a classifier of clips: data, patches, budgets, time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from navit_backbone.tasks.common.bit_depth import darkness_of, sample_files
from navit_backbone.tasks.common.dataset import file_of
from navit_backbone.tasks.common.resize import find_planner
from navit_backbone.tasks.common.sample import SampleSeed, with_file
from navit_backbone.tasks.common.wording import few
from navit_backbone.tasks.video.clip_check import clip_problem, refuse_other_length
from navit_backbone.tasks.video.label_check import check_multi_label
from navit_backbone.tools.doctor import Finding
from navit_backbone.tools.doctor_config import (
    MISTAKES,
    SPLITS,
    build_metrics,
    check_classes,
    check_duplicates,
    check_weights,
    read_loader,
    told,
)
from navit_backbone.vit import patch_shapes

NUM_READ = 20  # clips of a data set whose headers are read


def examine_clips(cfg: Config) -> Iterator[Finding]:
    """Look at the data of all splits, what it is cut into, and the model."""
    datasets: dict[str, Any] = {}
    for split in SPLITS:
        loader = cfg.get(f'{split}_dataloader')
        if loader is None or (split == 'test' and loader == cfg.get('val_dataloader')):
            continue
        key = f'{split}_dataloader'
        yield from check_patches(key, loader, cfg)
        dataset, finding = read_loader(key, loader)
        yield finding
        if dataset is not None and hasattr(dataset, 'kind'):
            datasets[split] = dataset
            yield check_clips(f'{key}.dataset', dataset)
    yield from check_classes(datasets)
    yield from check_duplicates(datasets)
    if 'train' in datasets:
        yield count_classes(datasets['train'])
    yield from check_weights(cfg)
    yield from check_model(cfg, datasets)


def check_patches(key: str, loader: Mapping[str, Any], cfg: Config) -> Iterator[Finding]:
    """Whether planner, collate function and backbone cut clips alike."""
    wanted = patch_shapes(cfg.model.backbone.get('patch_size', 16))
    for name, holder in (
        (f'{key}.collate_fn', loader.get('collate_fn') or {}),
        *(
            (f'{key}.dataset.pipeline.{number}', step)
            for number, step in enumerate(loader.dataset.get('pipeline', ()))
            if step['type'] == 'ClipToTokenBudget'
        ),
    ):
        given = patch_shapes(holder.get('patch_size', 16))
        if given != wanted:
            yield Finding(
                name=f'{name}.patch_size',
                found='',
                problem=f'{given}, but the backbone embeds {wanted}',
                fix=f'set {name}.patch_size={cfg.model.backbone.get("patch_size", 16)}',
            )


def check_clips(key: str, dataset: Any) -> Finding:
    """Whether clips can be read, and what of them is seen; of some all over the set."""
    chosen = list(range(0, len(dataset), max(1, len(dataset) // NUM_READ)))
    faults, tokens, frames = [], [], []
    planner = find_planner(dataset.pipeline.transforms)
    for index in chosen:
        file = file_of(dataset.get_data_info(index))
        try:
            size = dataset.measure(file)
            refuse_other_length(dataset.get_data_info(index), size)
        except MISTAKES as error:
            faults.append(with_file(file, error))
            continue
        if planner is not None:
            seed = SampleSeed(0, 0, index)
            tokens.append(planner.num_tokens(*size, sample_seed=seed))
            frames.append(planner.plan(*size, sample_seed=seed).num_frames)
    if len(faults) == len(chosen) and (problem := clip_problem(dataset)):
        return Finding(name=key, found='', problem=problem)
    found = f'{len(chosen)} of {len(dataset)} clips looked at'
    if tokens:
        found += (
            f': {min(frames)} to {max(frames)} frames, {min(tokens):,} to {max(tokens):,} tokens'
        )
    note = (
        f'{len(faults)} cannot be read: {few(faults)}; tools/check_videos.py with this config and '
        'its --cfg-options finds all'
    )
    note = note if faults else darkness_of(sample_files(dataset))
    return Finding(name=key, found=found, note=note)


def count_classes(dataset: Any) -> Finding:
    """How the classes are spread over the clips of a training set."""
    classes = dataset.metainfo['classes']
    counts = Counter(
        label for i in range(len(dataset)) for label in dataset.get_data_info(i)['gt_label']
    )
    absent = [name for number, name in enumerate(classes) if not counts[number]]
    present = sorted(counts.values())
    return Finding(
        name='train_dataloader: classes',
        found=f'{present[0]:,} to {present[-1]:,} clips each',
        note=f'{len(absent)} of {len(classes)} have none: {few(absent)}' if absent else '',
    )


def check_labels(cfg: Config, datasets: Mapping[str, Any], model: nn.Module) -> Iterator[Finding]:
    """Check that head and metrics take several classes a clip where the data has them."""
    metrics = build_metrics(cfg)
    checkpoint = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    loaders = {f'{split}_dataloader': data for split, data in datasets.items()}
    try:
        check_multi_label(loaders, model, metrics, checkpoint.get('save_best'))
    except ValueError as error:
        yield Finding(name='multi_class', found='', problem=str(error))


def check_model(cfg: Config, datasets: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether the model can be built, and has a position for every frame that it will see."""
    try:
        model = MODELS.build({**cfg.model, 'backbone': {**cfg.model.backbone, 'init_cfg': None}})
    except MISTAKES as error:
        yield Finding(name='model', found='', problem=f'cannot be built: {told(error)}')
        return
    number = sum(p.numel() for p in model.parameters())
    yield Finding(name='model', found=f'{number / 1e6:.1f} million parameters')
    time = model.backbone.vit.temporal_position
    planners = [find_planner(data.pipeline.transforms) for data in datasets.values()]
    most = max((p.sampling.num_frames for p in planners if hasattr(p, 'sampling')), default=1)
    if time is None and most > 1:
        yield Finding(
            name='model.backbone.temporal_position',
            found='None',
            note='the order of the frames is not seen; dict(max_size=64) lets it be',
        )
    elif time is not None and not time.fractional and most > time.max_size:
        yield Finding(
            name='model.backbone.temporal_position.max_size',
            found='',
            problem=f'{time.max_size} frames have positions, a clip may have {most}',
            fix=f'set it to {int(2 ** np.ceil(np.log2(most)))}, or fractional=True',
        )
    yield from check_labels(cfg, datasets, model)
    for split, data in datasets.items():
        if model.head.num_classes != len(data.metainfo['classes']):
            yield Finding(
                name='model.head.num_classes',
                found=str(model.head.num_classes),
                note=f'{split} has {len(data.metainfo["classes"])} classes; tools/train.py and '
                'tools/test.py follow the data',
            )
            return
