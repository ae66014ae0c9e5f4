"""Evaluate a frozen model by the nearest neighbours of its vectors: nothing is trained.

    python tools/knn.py CONFIG [CHECKPOINT] [--k 5 10 20] [--temperature 0.07] [--out FILE.json]

The bank is the training set, seen as the test set is (test pipeline, no draws); each test example
takes the classes of the k vectors most alike. Without a CHECKPOINT the backbone has the weights
that the config starts from. For classifiers of clips and pictures.
"""

from __future__ import annotations

import argparse
import json
import math
from copy import deepcopy
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader
from rich.progress import track
from torch import Tensor

from navit_backbone.file_writing import written_whole
from navit_backbone.tasks.common.classes import follow_classes
from navit_backbone.tasks.common.knn import knn_scores
from navit_backbone.tasks.common.loaded_weights import load_model
from navit_backbone.tools.command_line import (
    add_config_arguments,
    enter_task,
    expanded_path,
    output_file,
    read_config,
    run,
    task_of,
    usable_device,
    without_pretraining,
)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument('checkpoint', type=expanded_path, nargs='?', help='of the whole model')
    parser.add_argument(
        '--k', type=int, nargs='+', help='(5 10 20, up to the clips of the training set)'
    )
    parser.add_argument('--temperature', type=float, default=0.07, help='(%(default)s)')
    parser.add_argument('--device', type=usable_device, default=get_device(), help='(%(default)s)')
    parser.add_argument('--out', type=output_file, help='the figures as JSON')
    args = parser.parse_args()
    if min(args.k or [1]) < 1 or not 0 < args.temperature < math.inf:
        parser.error(f'--k {args.k} from 1 and --temperature {args.temperature} above 0')
    return args


def knn(args: argparse.Namespace) -> None:
    """Print the accuracy at each k; write what was asked for."""
    cfg = read_config(args.config, args.cfg_options)
    if task_of(cfg, args.config) != 'video':
        raise ValueError(f'{args.config} is no classifier of clips or pictures')
    enter_task(cfg, args.config)
    classes = follow_classes(cfg)
    model = model_of(cfg, args)
    bank, labels, read = vectors(model, bank_loader(cfg), 'training set')
    bank, labels = bank[read], labels[read]
    if not len(bank):
        raise ValueError(
            f'none of the {len(read)} clips of the training set can be read, the log names them'
        )
    if max(wanted := args.k or neighbours_of(len(bank))) > len(bank):
        raise ValueError(
            f'--k {max(wanted)}: the training set has {len(bank)} clips that can be read, give '
            f'numbers from 1 to {len(bank)}'
        )
    queries, truth, known = vectors(model, cfg.test_dataloader, 'test set')
    figures: dict[str, Any] = {}
    for k in wanted:
        scores = knn_scores(
            bank, labels, queries, num_classes=len(classes), k=k, temperature=args.temperature
        )
        right = (scores.argmax(1) == truth) & known
        figures[f'top1 of {k} neighbours'] = 100 * right.float().mean().item()
        print(f'{k} neighbours: top1 {figures[f"top1 of {k} neighbours"]:.2f}')
    if args.out is not None:
        with written_whole(args.out) as aside:
            aside.write_text(json.dumps({'config': str(args.config), **figures}, indent=2) + '\n')


def neighbours_of(num_clips: int) -> list[int]:
    """Return the numbers of neighbours that are measured where none are asked for."""
    return [k for k in (5, 10, 20) if k <= num_clips] or [num_clips]


def model_of(cfg: Config, args: argparse.Namespace) -> Any:
    """The model with its weights, ready to look at clips."""
    if args.checkpoint is None:
        model = MODELS.build(cfg.model)
        model.init_weights()
        return model.to(args.device).eval()
    if not args.checkpoint.is_file():
        raise ValueError(f'no checkpoint at {args.checkpoint}: give a file of a work dir')
    without_pretraining(cfg, args.checkpoint)
    content = CheckpointLoader.load_checkpoint(str(args.checkpoint), map_location='cpu')
    model = load_model(cfg.model, content, args.checkpoint, cfg.model.head.num_classes)
    return model.to(args.device).eval()


def bank_loader(cfg: Config) -> dict[str, Any]:
    """The training set, as the test set is looked at; its broken clips are left out."""
    loader = deepcopy(cfg.test_dataloader)
    loader.dataset = deepcopy(cfg.train_dataloader.dataset)
    loader.dataset.pipeline = cfg.test_dataloader.dataset.pipeline
    loader.dataset.test_mode = True
    return loader


@torch.no_grad()
def vectors(model: Any, loader: dict[str, Any], name: str) -> tuple[Tensor, Tensor, Tensor]:
    """The vector, class, and whether it could be read, of every example; views are averaged."""
    found, labels, read = [], [], []
    batches = Runner.build_dataloader(loader, seed=0)
    for batch in track(batches, name):
        data = model.data_preprocessor(batch, False)
        views = [sample.num_views for sample in data['data_samples']]
        each = model(**data, mode='tensor').cpu().split(views)
        found += [part.mean(0) for part in each]
        labels += [int(sample.gt_label[0]) for sample in data['data_samples']]
        read += [not sample.get('bad', False) for sample in data['data_samples']]
    return torch.stack(found), torch.tensor(labels), torch.tensor(read)


def main() -> None:
    """Run; a user's mistake ends with a sentence, not a traceback."""
    args = parse_args()
    run(lambda: knn(args), args.config)


if __name__ == '__main__':
    main()
