"""Many processes: their arguments on the command line, and gloo where there is no CUDA."""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from mmengine.config import Config


def add_launcher_arguments(parser: argparse.ArgumentParser) -> None:
    """Who started the processes; `tools/dist_*.sh` and `tools/slurm_*.sh` give this themselves."""
    launchers = ['none', 'pytorch', 'slurm', 'mpi']
    parser.add_argument('--launcher', choices=launchers, default='none', help='of many processes')
    parser.add_argument('--local-rank', '--local_rank', type=int, help=argparse.SUPPRESS)


def use_launcher(cfg: Config, args: argparse.Namespace) -> None:
    """Let the runner of `cfg` join the other processes; on machines without CUDA by gloo."""
    cfg.launcher = args.launcher
    if args.local_rank is not None:
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if args.launcher == 'pytorch' and 'RANK' not in os.environ:
        raise ValueError(
            '--launcher pytorch without its processes: start them with tools/dist_train.sh, '
            'tools/dist_test.sh or torchrun --nproc_per_node N tools/train.py ...'
        )
    if args.launcher != 'none' and not torch.cuda.is_available():
        _start_on_cpu(cfg)


def leave_processes() -> None:
    """Wait for the others when all is done: one that ends while they talk may abort them."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _start_on_cpu(cfg: Config) -> None:
    """Join the processes before the runner does: mmengine would ask CUDA for a device."""
    if cfg.launcher != 'pytorch':
        raise ValueError(
            f'--launcher {cfg.launcher} needs CUDA, and torch finds none: use torchrun and '
            '--launcher pytorch'
        )
    dist.init_process_group('gloo')
    cfg.model_wrapper_cfg = {
        'type': 'MMDistributedDataParallel',
        'broadcast_buffers': False,
        'find_unused_parameters': cfg.get('find_unused_parameters', False),
        **(cfg.get('model_wrapper_cfg') or {}),
        'device_ids': None,
    }
