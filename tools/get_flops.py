"""FLOPs of a model over the pictures or clips of its data set, packed and padded.

    python tools/get_flops.py CONFIG [--split val|train|test] [--max-images N] [--out FILE.json]

Sizes are those that the pipeline plans and the loader puts together; no file is read beyond its
header. A multiply-add is 2 FLOPs, as torch's FlopCounterMode has it, which is what counts here,
attention included; norms, activations, softmax, look-ups and mmcv's operators are none. Figures are
of the forward pass at prediction; the backward pass has twice as many. Each view of a clip counts
for itself; the dropping of tokens is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from mmengine.config import Config
from mmengine.runner import Runner
from rich.progress import track

from navit_backbone.file_writing import written_whole
from navit_backbone.tasks.common.flops import (
    BackboneFlops,
    Parts,
    parameters_after,
    parameters_of,
)
from navit_backbone.tasks.common.wrappers import locate, planned_parts
from navit_backbone.tools.command_line import (
    add_config_arguments,
    enter_task,
    output_file,
    read_config,
    run,
    task_of,
)

if TYPE_CHECKING:  # a task is imported once its config was read
    from navit_backbone.tasks.detection.flops import HeadFlops
    from navit_backbone.tasks.segmentation.flops import HeadFlops as SegmentorFlops
    from navit_backbone.tasks.video.flops import HeadFlops as ClassifierFlops

Shape = tuple[int, ...]  # (height, width) of a picture; (frames, height, width) of a clip
QUANTILES = {'min': 0, '25 %': 25, 'median': 50, '75 %': 75, '95 %': 95, 'max': 100}


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument('--split', choices=['val', 'train', 'test'], default='val')
    parser.add_argument(
        '--max-images', type=int, default=1000, metavar='N', help='at most as many (%(default)s)'
    )
    parser.add_argument('--out', type=output_file, help='the same figures as JSON')
    return parser.parse_args()


def get_flops(args: argparse.Namespace) -> None:
    """Print the tables; write what was asked for."""
    cfg = read_config(args.config, args.cfg_options)
    enter_task(cfg, args.config)
    task = import_module(f'navit_backbone.tasks.{task_of(cfg, args.config)}.flops')
    batches = list(batches_of(cfg, args.split, args.max_images))
    print('running the head ...', file=sys.stderr)
    costs = Costs(task.BackboneFlops(cfg.model.backbone), task.HeadFlops(cfg.model))
    found = survey(costs, batches)
    examples = 'views of clips' if task_of(cfg, args.config) == 'video' else 'pictures'
    content = {'config': str(args.config), 'split': args.split, 'examples': examples, **found}
    print(table(content))
    if args.out is not None:
        with written_whole(args.out) as aside:
            aside.write_text(json.dumps(content, indent=2) + '\n')


def batches_of(cfg: Config, split: str, max_images: int) -> Iterator[list[Shape]]:
    """The sizes of the examples of each batch that a loader makes, in its order."""
    loader_cfg = cfg.get(f'{split}_dataloader')
    if loader_cfg is None:
        raise ValueError(f'the config has no {split}_dataloader')
    if max_images < 1:
        raise ValueError(f'--max-images {max_images} must be at least 1')
    loader = Runner.build_dataloader(loader_cfg, seed=cfg.get('randomness', {}).get('seed', 0))
    for part in planned_parts(loader.dataset):
        part.complete_sizes()
    left = max_images
    for batch in loader.batch_sampler:
        sizes = [planned_sizes(loader.dataset, index) for index in batch[:left]]
        left -= len(sizes)
        yield list(chain.from_iterable(sizes))
        if not left:
            return


def planned_sizes(dataset: Any, index: int) -> list[Shape]:
    """What the pipeline will make of a picture, or of each view of a clip."""
    part, place = locate(dataset, index)
    sizes: list[Shape] | None = part.planned_views(place)
    if sizes is None:
        raise ValueError(
            f'the size of sample {int(index)} is not known beforehand: the pipeline needs a '
            'transform that plans sizes (ResizeToTokenBudget), the file of the picture a header'
        )
    return sizes


# --------------------------------------------------------------------------------------------------
# The figures


@dataclass(frozen=True)
class Costs:
    """FLOPs of a whole model, by part."""

    backbone: BackboneFlops
    after: HeadFlops | SegmentorFlops | ClassifierFlops

    def of(self, sizes: Sequence[Shape], *, padded: bool) -> Parts:
        """Of one batch; `padded`: all of its canvas counts as picture."""
        canvas = self.after.tokens.canvas(sizes)
        seen = [canvas] * len(sizes) if padded else sizes
        return {**self.backbone.of(seen), **self.after.of(seen, canvas)}


def survey(costs: Costs, batches: Sequence[Sequence[Shape]]) -> dict[str, Any]:
    """All figures, FLOPs in units of 10^9."""
    pictures, packed, padded = [], [], []
    blind = not costs.after.sizes_are_told
    for sizes in track(batches, description='counting'):
        pictures += [costs.of([size], padded=blind) for size in sizes]
        packed.append(costs.of(sizes, padded=False))
        padded.append(costs.of(sizes, padded=True))
    sizes = [size for batch in batches for size in batch]
    parameters = parameters_of(costs.backbone.backbone) | parameters_after(costs.after.model)
    tokens = costs.after.tokens
    return {
        'pictures': len(sizes),
        'batches': len(batches),
        'computes': 'padded' if blind else 'packed',
        'tokens': spread([tokens.real([size]) for size in sizes]),
        'gflops': spread([sum(parts.values()) / 1e9 for parts in pictures]),
        'parts': {
            part: {
                'gflops': fmean(parts.get(part, 0) for parts in pictures) / 1e9,
                'parameters': parameters.get(part, 0),
            }
            for part in {**pictures[0], **parameters}
            if pictures[0].get(part, 0) or parameters.get(part, 0)
        },
        'batch': {
            'pictures': fmean(map(len, batches)),
            'tokens': compared(map(tokens.real, batches), map(tokens.padded, batches)),
            'backbone_gflops': compared(map(of_backbone, packed), map(of_backbone, padded)),
            'gflops': compared(map(of_all, packed), map(of_all, padded)),
        },
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and quantiles."""
    cuts = np.percentile(values, list(QUANTILES.values()))
    return {'mean': fmean(values), **dict(zip(QUANTILES, cuts.tolist(), strict=True))}


def compared(packed: Iterator[float], padded: Iterator[float]) -> dict[str, float]:
    """Means over the batches, and how many times as much padding costs."""
    ours, theirs = fmean(packed), fmean(padded)
    return {'packed': ours, 'padded': theirs, 'ratio': theirs / ours}


def of_backbone(parts: Parts) -> float:
    return sum(flops for part, flops in parts.items() if part not in ('neck', 'head')) / 1e9


def of_all(parts: Parts) -> float:
    return sum(parts.values()) / 1e9


# --------------------------------------------------------------------------------------------------
# The tables


def table(content: dict[str, Any]) -> str:
    """What is printed."""
    rows = [['one alone', *content['tokens']]]
    rows += [
        [name, *(f'{value:,.{digits}f}' for value in content[key].values())]
        for name, key, digits in (('tokens', 'tokens', 0), ('GFLOPs', 'gflops', 2))
    ]
    total = content['gflops']['mean']
    parts = [['part', 'GFLOPs', 'share', 'parameters']]
    for part, found in content['parts'].items():
        share = f'{found["gflops"] / total:.1%}'
        parts.append([part, f'{found["gflops"]:,.3f}', share, f'{found["parameters"]:,}'])
    count = sum(found['parameters'] for found in content['parts'].values())
    parts.append(['all', f'{total:,.3f}', '', f'{count:,}'])
    batch = [[f'a batch of {content["batch"]["pictures"]:.1f}', 'packed', 'padded', 'ratio']]
    for name, key in (
        ('tokens', 'tokens'),
        ('GFLOPs of the backbone', 'backbone_gflops'),
        ('GFLOPs of all', 'gflops'),
    ):
        batch.append([name, *(f'{value:,.2f}' for value in content['batch'][key].values())])
    title = f'{content["config"]}, {content["split"]}: {content["pictures"]} {content["examples"]}'
    if content['computes'] == 'padded':
        title += '\nIts preprocessor tells the backbone no sizes: all of a canvas is computed'
    return '\n\n'.join([title, *map(aligned, (rows, parts, batch))])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join(
        '  '.join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def main() -> None:
    """Run; a user's mistake ends with a sentence, not a traceback."""
    args = parse_args()
    run(lambda: get_flops(args), args.config)


if __name__ == '__main__':
    main()
