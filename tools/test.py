"""Evaluate a checkpoint on the test set of its config.

python tools/test.py CONFIG CHECKPOINT [--show-dir DIR] [--tta] [--out FILE.json|FILE.pkl]
python tools/test.py CONFIG CHECKPOINT --tokens 256,576,1024,native    # quality and time by tokens
tools/dist_test.sh CONFIG CHECKPOINT GPUS [the same arguments]
"""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import METRICS

from navit_backbone.file_writing import written_whole
from navit_backbone.tasks.common.classes import follow_classes
from navit_backbone.tools.command_line import (
    add_config_arguments,
    build_runner,
    enter_task,
    expanded_path,
    output_file,
    output_folder,
    read_config,
    require_parts,
    run,
    set_work_dir,
    task_of,
    without_pretraining,
)
from navit_backbone.tools.launchers import add_launcher_arguments, leave_processes, use_launcher
from navit_backbone.tools.token_curve import budgets_of, curve, report


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument(
        'checkpoint', type=expanded_path, help='of the whole model, as tools/train.py saves'
    )
    parser.add_argument('--work-dir', type=output_folder, help='logs (work_dirs/CONFIG)')
    parser.add_argument(
        '--show-dir', type=output_folder, help='draw truth and predictions into this folder'
    )
    parser.add_argument('--tta', action='store_true', help='average over the flipped picture')
    parser.add_argument(
        '--out',
        type=output_file,
        help='.json: the figures; .pkl: the predictions, for offline evaluation',
    )
    parser.add_argument(
        '--tokens',
        metavar='N,N,...',
        help='test with each of these budgets, and draw figures and time over them; native: as the '
        'pictures are',
    )
    add_launcher_arguments(parser)
    args = parser.parse_args()
    if args.tokens and (args.out or args.tta or args.show_dir or args.launcher != 'none'):
        parser.error('--tokens goes with none of --out, --tta, --show-dir and --launcher')
    if args.out is not None and args.out.suffix not in ('.json', '.pkl'):
        parser.error(f'--out {args.out} must end in .json or .pkl')
    return args


def test(args: argparse.Namespace) -> None:
    """Print the figures; write what was asked for."""
    if not args.checkpoint.is_file():
        raise ValueError(f'no checkpoint at {args.checkpoint}: give a file of a work dir')
    cfg = read_config(args.config, args.cfg_options)
    require_parts(cfg, args.config, 'model', 'test_dataloader', 'test_evaluator', 'test_cfg')
    set_work_dir(cfg, args.config, args.work_dir)
    cfg.load_from, cfg.resume = str(args.checkpoint), False
    follow_classes(cfg, ('test',))
    without_pretraining(cfg, args.checkpoint)
    if args.show_dir is not None:
        show(cfg, args.show_dir)
    if args.tta:
        enter_task(cfg, args.config)
        import_module(f'navit_backbone.tasks.{task_of(cfg, args.config)}.inference').with_flips(cfg)
    if args.tokens:
        report(curve(cfg, budgets_of(args.tokens)), Path(cfg.work_dir))
        return
    use_launcher(cfg, args)
    runner = build_runner(cfg)
    if args.out is not None and args.out.suffix == '.pkl':
        kind = 'DumpDetResults' if cfg.get('default_scope') == 'mmdet' else 'DumpResults'
        dump = METRICS.build(dict(type=kind, out_file_path=str(args.out)))
        runner.test_evaluator.metrics.append(dump)
    figures = runner.test()
    leave_processes()
    if args.out is not None and args.out.suffix == '.json' and runner.rank == 0:
        known = {key: None if value != value else value for key, value in figures.items()}  # NaN
        content = {'config': str(args.config), 'checkpoint': str(args.checkpoint), **known}
        with written_whole(args.out) as aside:
            aside.write_text(json.dumps(content, indent=2) + '\n')


def show(cfg: Config, folder: Path) -> None:
    """Let the config's visualization hook draw every picture into `folder`."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ValueError(
            '--show-dir needs default_hooks.visualization in the config, which draws pictures of '
            'detectors and segmentors; what a classifier finds in clips tools/predict.py draws, '
            'and test_evaluator.output_dir=DIR keeps'
        )
    hook.update(draw=True, test_out_dir=str(folder.absolute()))


def main() -> None:
    """Run; a user's mistake ends with a sentence, not a traceback."""
    args = parse_args()
    run(lambda: test(args), args.config)


if __name__ == '__main__':
    main()
