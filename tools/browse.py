"""Show the data as the model will see it.

    python tools/browse.py CONFIG --out-dir DIR

Writes one picture per sample (patch grid, token count, boxes with their classes) and `batch.png`,
the packed batch beside what padding it would cost. Of clips it writes contact sheets: the frames
that are seen, by tubelets.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import LoadAnnotations, LoadImageFromFile
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATA_SAMPLERS, DATASETS
from mmengine.structures import BaseDataElement
from rich.progress import track

from navit_backbone.tasks.common.dataset import file_of
from navit_backbone.tasks.common.fonts import drawn_names
from navit_backbone.tasks.common.overlay import IGNORED
from navit_backbone.tasks.common.palette import palette
from navit_backbone.tasks.common.pictures import Shown, batch_picture, grid_of, sample_picture
from navit_backbone.tasks.common.resize import find_planner
from navit_backbone.tasks.common.sampling import SeededSampler
from navit_backbone.tools.command_line import (
    add_config_arguments,
    output_folder,
    read_config,
    run,
    task_of,
)
from navit_backbone.vit import patch_shapes


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument(
        '--out-dir', type=output_folder, required=True, help='made where it is missing'
    )
    parser.add_argument('--num', type=int, default=16, help='samples to show (16)')
    parser.add_argument('--batch-size', type=int, help="examples in batch.png (the config's)")
    parser.add_argument('--split', choices=['train', 'val', 'test'], default='train')
    parser.add_argument('--seed', type=int, help="of the draws (the config's randomness.seed)")
    parser.add_argument('--epoch', type=int, default=0, help='counted from 0 (0)')
    args = parser.parse_args()
    if args.num < 1 or (args.batch_size is not None and args.batch_size < 1):
        parser.error(f'--num {args.num} and --batch-size {args.batch_size} must be at least 1')
    if args.epoch < 0 or (args.seed is not None and args.seed < 0):
        parser.error(f'--epoch {args.epoch} and --seed {args.seed} must be at least 0')
    return args


def main() -> None:
    """Run; a user's mistake ends with a sentence, not a traceback."""
    args = parse_args()
    run(lambda: browse(args), args.config)


def browse(args: argparse.Namespace) -> None:
    """Draw the first samples of the asked epoch, in the order of training."""
    config = load_config(args)
    loader = config[f'{args.split}_dataloader']
    dataset = build_dataset(config, loader)
    seed = config.get('randomness', {}).get('seed') or 0 if args.seed is None else args.seed
    sampler = SeededSampler(dataset, shuffle=args.split == 'train', seed=seed)
    sampler.set_epoch(args.epoch)
    num = min(args.num, len(dataset))
    indices, batch_size = first_samples(loader, sampler, num, args.batch_size)
    args.out_dir.mkdir(parents=True, exist_ok=True)
    if task_of(config, args.config) == 'video':
        draw_clips(config, dataset, indices[:num], args.out_dir)
        return
    patch_size = patch_size_of(config, dataset)
    samples = []
    for number, index in enumerate(track(indices, description='drawing')):
        shown = shown_of(dataset[index], dataset.metainfo)
        samples.append(shown)
        if number < num:
            name = f'{number:04d}_{Path(shown.name).stem}.png'
            sample_picture(shown, patch_size).save(args.out_dir / name)
    images = [shown.image for shown in samples[:batch_size]]
    batch_picture(images, patch_size).save(args.out_dir / 'batch.png')
    report(samples[:num], patch_size, args.out_dir)


def draw_clips(config: Config, dataset: Any, indices: Sequence[int], out_dir: Path) -> None:
    """A contact sheet for each clip."""
    from navit_backbone.tasks.common.clip_pictures import clip_sheet

    shapes = patch_shapes(config.model.backbone.get('patch_size', 16))
    classes, tokens = drawn_names(tuple(dataset.metainfo['classes'])), []
    for number, index in enumerate(track(indices, description='drawing')):
        packed = dataset[index]
        sample, view = packed['data_samples'], packed['inputs'][0]
        frames = view.permute(1, 2, 3, 0).numpy()
        name = Path(file_of(sample.metainfo)).name
        labels = ', '.join(classes[i] for i in sample.gt_label.tolist())
        title = f'{name}: {labels}; cannot be read'
        if not sample.get('bad', False):
            h, w, total, rate = sample.measured
            title = (
                f'{name}: {labels}; {len(frames)} of {total} frames of {h} x {w} px (height x '
                f'width) at {rate:g} a second, seen at {frames.shape[1]} x {frames.shape[2]}'
            )
        sheet = clip_sheet(frames, shapes, sample.frame_inds[0].tolist(), title)
        sheet.save(out_dir / f'{number:04d}_{Path(name).stem}.png')
        steps = (-(-len(frames) // t) * -(-frames.shape[1] // p) * -(-frames.shape[2] // q)
                 for t, p, q in shapes)  # fmt: skip
        tokens.append(sum(steps))
    print(
        f'{len(tokens)} clips in {out_dir}\n'
        f'tokens a clip: {min(tokens):,} to {max(tokens):,}, mean {np.mean(tokens):,.1f}'
    )


def first_samples(
    loader: ConfigDict, sampler: SeededSampler, num: int, batch_size: int | None
) -> tuple[list[int], int]:
    """At least `num` samples in the order of training, and how many of them make the first batch.

    Where the config batches by tokens and no `batch_size` is asked for, so does this.
    """
    most = loader.get('batch_size', 1)
    if loader.get('batch_sampler') is None or batch_size is not None:
        batch_size = min(batch_size or most, len(sampler))
        return list(sampler)[: max(num, batch_size)], batch_size
    batches = DATA_SAMPLERS.build(
        loader.batch_sampler, default_args=dict(sampler=sampler, batch_size=most)
    )
    indices: list[int] = []
    first = 0
    for batch in batches:
        indices += batch
        first = first or len(batch)
        if len(indices) >= num:
            break
    return indices[: max(num, first)], first


def load_config(args: argparse.Namespace) -> Config:
    """The config with its overrides, and with the loader that was asked for."""
    config = read_config(args.config, args.cfg_options)
    if config.get(f'{args.split}_dataloader') is None:
        raise ValueError(f'{args.config} has no {args.split}_dataloader: choose another --split')
    return config


def build_dataset(config: Config, loader: ConfigDict) -> Any:
    """The data set as the runner would build it."""
    try:
        dataset = DATASETS.build(loader.dataset)
    except (KeyError, TypeError) as error:  # an unknown type or argument in the config
        raise ValueError(f'the data set of {config.filename} cannot be built: {error}') from error
    if hasattr(dataset, 'pipeline'):
        load_truth_first(dataset.pipeline.transforms)
    return dataset


def load_truth_first(transforms: list[Any]) -> None:
    """Move the loading of boxes and label maps to directly behind that of the image.

    Pipelines of evaluation load them behind the resizing, at the native size; drawn on the resized
    image, they must be resized with it.
    """
    kinds = (LoadImageFromFile, LoadAnnotations)
    transforms.sort(
        key=lambda item: next((n for n, kind in enumerate(kinds) if isinstance(item, kind)), 2)
    )


def patch_size_of(config: Config, dataset: Any) -> int:
    """The patch of the model, or of the pipeline where the config has no NaViT backbone."""
    backbone = config.get('model', {}).get('backbone', {})
    if 'patch_size' in backbone:
        return int(backbone['patch_size'])
    planner = find_planner(dataset.pipeline.transforms) if hasattr(dataset, 'pipeline') else None
    if planner is None:
        print('neither model.backbone nor the pipeline names a patch size: showing patches of 16')
    return 16 if planner is None else planner.patch_size


def shown_of(packed: dict[str, Any], meta: Mapping[str, Any]) -> Shown:
    """What Pack*Inputs of mmdet or mmseg made of a sample."""
    sample: BaseDataElement = packed['data_samples']
    instances = sample.get('gt_instances')
    classes = meta.get('classes', ())
    marks: dict[str, Any] = {}
    if instances is not None:
        boxes = instances.bboxes
        labels = instances.labels.tolist()
        marks['boxes'] = getattr(boxes, 'tensor', boxes).numpy()
        names = drawn_names(tuple(classes))
        marks['labels'] = [names[i] if i < len(names) else str(i) for i in labels]
        marks['classes'] = labels
        if 'masks' in instances:
            marks['masks'] = instances.masks.to_ndarray().astype(bool)
    if sample.get('gt_sem_seg') is not None:
        labels = sample.gt_sem_seg.data[0].numpy().astype(np.uint8)
        known = labels[labels != IGNORED]
        count = max(len(classes), int(known.max()) + 1 if known.size else 0)
        given = meta.get('palette') or ()
        marks['regions'] = labels
        marks['names'] = [*classes, *map(str, range(len(classes), count))]
        marks['palette'] = given if len(given) >= count else palette(count)
    image = packed['inputs'].permute(1, 2, 0).numpy()[..., ::-1]  # the loaders give BGR
    return Shown(
        # changes of colour give fractions, and values beyond black and white
        image=np.ascontiguousarray(image.round().clip(0, 255).astype(np.uint8)),
        name=Path(sample.get('img_path', 'sample')).name,
        native_size=sample.get('ori_shape'),
        **marks,
    )


def report(samples: list[Shown], patch_size: int, out_dir: Path) -> None:
    """Say where the pictures are and how many tokens they take."""
    tokens = [int(np.prod(grid_of(shown.image.shape[:2], patch_size))) for shown in samples]
    print(
        f'{len(tokens)} samples in {out_dir}, and the packed batch in {out_dir / "batch.png"}\n'
        f'tokens a sample: {min(tokens):,} to {max(tokens):,}, mean {np.mean(tokens):,.1f}'
    )


if __name__ == '__main__':
    main()
