"""Train a model.

    python tools/train.py CONFIG [--work-dir DIR] [--amp] [--resume [CHECKPOINT]]
    torchrun --nproc_per_node 8 tools/train.py CONFIG --launcher pytorch

`num_classes` follows from the data set. Progress and the time left are logged as it goes; what was
stopped goes on with --resume.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.runner import find_latest_checkpoint

from navit_backbone.tools.command_line import (
    add_config_arguments,
    build_runner,
    follow_classes,
    read_config,
    run,
)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument('--work-dir', type=Path, help='logs and checkpoints (work_dirs/CONFIG)')
    parser.add_argument('--amp', action='store_true', help='bfloat16 mixed precision, on CPU too')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from a checkpoint or a folder of them; alone: from the latest in the work dir',
    )
    launchers = ['none', 'pytorch', 'slurm', 'mpi']
    parser.add_argument('--launcher', choices=launchers, default='none', help='of many processes')
    parser.add_argument('--local-rank', '--local_rank', type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def train(args: argparse.Namespace) -> None:
    """Run the config's training from the beginning to the end."""
    cfg = read_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    cfg.work_dir = str(args.work_dir or cfg.get('work_dir') or f'work_dirs/{args.config.stem}')
    if args.local_rank is not None:
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if args.amp:
        use_bfloat16(cfg)
    if args.resume is not None:
        cfg.resume, cfg.load_from = True, checkpoint_of(args.resume)
    if args.launcher != 'none' and not torch.cuda.is_available():
        start_on_cpu(cfg)
    follow_classes(cfg, 'train', 'val')
    build_runner(cfg).train()


def use_bfloat16(cfg: Config) -> None:
    """Our wrapper in place of the optimizer's: no loss scale, and no GPU asked for."""
    cfg.optim_wrapper.type = 'BFloat16OptimWrapper'
    for key in ('loss_scale', 'dtype', 'use_fsdp'):
        cfg.optim_wrapper.pop(key, None)


def checkpoint_of(resume: str) -> str | None:
    """The file to go on from; None lets the runner look into its work dir."""
    if resume == 'auto':
        return None
    path = Path(resume)
    if not path.is_dir():
        return resume
    latest = find_latest_checkpoint(str(path))
    if latest is None:
        raise ValueError(f'{path} holds no last_checkpoint: give a checkpoint file')
    return str(latest)


def start_on_cpu(cfg: Config) -> None:
    """Join the processes by gloo; mmengine would ask CUDA for a device."""
    if cfg.launcher != 'pytorch':
        raise ValueError(
            f'--launcher {cfg.launcher} needs CUDA, and torch finds none: use torchrun and '
            '--launcher pytorch'
        )
    if 'RANK' not in os.environ:
        raise ValueError(
            '--launcher pytorch without its processes: start them with '
            'torchrun --nproc_per_node N tools/train.py ...'
        )
    dist.init_process_group('gloo')
    cfg.model_wrapper_cfg = {
        'type': 'MMDistributedDataParallel',
        'broadcast_buffers': False,
        'find_unused_parameters': cfg.get('find_unused_parameters', False),
        **(cfg.get('model_wrapper_cfg') or {}),
        'device_ids': None,
    }


def main() -> None:
    """Run; a user's mistake ends with a sentence, not a traceback."""
    args = parse_args()
    run(lambda: train(args), args.config)


if __name__ == '__main__':
    main()
