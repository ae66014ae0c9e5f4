"""Train a model.

    python tools/train.py CONFIG [--work-dir DIR] [--amp] [--resume [CHECKPOINT]] [--auto-scale-lr]
    tools/dist_train.sh CONFIG GPUS [the same arguments]

`num_classes` follows from the data set. Progress and the time left are logged as it goes; what was
stopped goes on with --resume. Ctrl-C and SIGTERM end training after a step and a checkpoint, with
exit status 130 and 143; a second one ends it at once.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mmengine.config import Config

from navit_backbone.backbone import refuse_missing
from navit_backbone.tasks.common.checkpoints import check_whole, find_checkpoint, noted_checkpoint
from navit_backbone.tasks.common.classes import follow_classes
from navit_backbone.tasks.common.learning_rate import scale_learning_rate, take_base_batch_size
from navit_backbone.tools.command_line import (
    add_config_arguments,
    build_runner,
    output_folder,
    read_config,
    require_parts,
    run,
    set_work_dir,
)
from navit_backbone.tools.launchers import add_launcher_arguments, leave_processes, use_launcher


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument(
        '--work-dir', type=output_folder, help='logs and checkpoints (work_dirs/CONFIG)'
    )
    parser.add_argument('--amp', action='store_true', help='bfloat16 mixed precision, on CPU too')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the images a step over auto_scale_lr.base_batch_size',
    )
    parser.add_argument(
        '--resume',
        type=os.path.expanduser,
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from a checkpoint or a folder of them; alone: from the latest in the work dir',
    )
    add_launcher_arguments(parser)
    return parser.parse_args()


def train(args: argparse.Namespace) -> None:
    """Run the config's training from the beginning to the end."""
    cfg = read_config(args.config, args.cfg_options)
    require_parts(cfg, args.config, 'model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
    set_work_dir(cfg, args.config, args.work_dir)
    args.work_dir = Path(cfg.work_dir)
    if args.amp:
        use_bfloat16(cfg)
    if args.resume is not None:
        resume(cfg, args.resume)
    use_launcher(cfg, args)
    check_start(cfg)
    follow_classes(cfg)
    base_batch_size = take_base_batch_size(cfg, wanted=args.auto_scale_lr)
    runner = build_runner(cfg)
    if base_batch_size is not None:
        scale_learning_rate(runner, base_batch_size)
    runner.train()
    leave_processes()


def check_start(cfg: Config) -> None:
    """Refuse weights that are not there before hundreds of lines are logged."""
    backbone = cfg.model.get('backbone') or {}
    if str(backbone.get('type')).startswith('NaViT'):
        refuse_missing((backbone.get('init_cfg') or {}).get('checkpoint'))


def use_bfloat16(cfg: Config) -> None:
    """Our wrapper in place of the optimizer's: no loss scale, and no GPU asked for."""
    cfg.optim_wrapper.type = 'BFloat16OptimWrapper'
    for key in ('loss_scale', 'dtype', 'use_fsdp'):
        cfg.optim_wrapper.pop(key, None)


def resume(cfg: Config, wish: str) -> None:
    """Go on from the checkpoint that --resume means; from the beginning where there is none yet."""
    file = checkpoint_of(wish, Path(cfg.work_dir))
    cfg.resume = file is not None
    if file is None:
        print(f'nothing to resume in {cfg.work_dir} yet: training starts from the beginning')
    else:
        cfg.load_from = str(file)


def checkpoint_of(wish: str, work_dir: Path) -> Path | None:
    """The file that --resume names, finds in the folder it names, or finds in the work dir."""
    if wish == 'auto':
        return find_checkpoint(work_dir) if work_dir.is_dir() else None
    place = Path(wish)
    if place.is_dir():
        file = find_checkpoint(place)
        if file is None:
            raise ValueError(
                f'--resume {place}: the folder holds no checkpoint (epoch_N.pth, iter_N.pth)'
            )
        return file
    if not place.is_file():
        raise ValueError(
            f'--resume {place} does not exist: give the path of a checkpoint or of a work dir'
        )
    check_whole(place)
    return place


def way_on(work_dir: Path | None) -> str:
    """Describe where a stopped training goes on; '' while the work dir is not known."""
    if work_dir is None:
        return ''
    if file := noted_checkpoint(work_dir):
        return f'; the same command with --resume goes on from {file}'
    return f'; {work_dir} has no checkpoint yet, so training starts from the beginning again'


def main() -> None:
    """Run; a user's mistake ends with a sentence, not a traceback."""
    args = parse_args()
    run(lambda: train(args), args.config, way_on=lambda: way_on(args.work_dir))


if __name__ == '__main__':
    main()
