"""Train arms that differ in one thing, with several seeds each, and tell what the difference is.

    python tools/arms.py CONFIG CONFIG... [--seeds 0 1 2] [--out DIR] [--report FILE.md]

The first config is the arm that the others are compared with. Does what is missing: trains each
config with each seed in OUT/CONFIG_seedK, going on from the last checkpoint where a training was
stopped; evaluates the last checkpoint at each evaluation batch; then writes the report, a plot
beside it, and with --show-worst a sheet of pictures. So the same command repeats the tables.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from importlib import import_module
from types import ModuleType

import numpy as np

from navit_backbone.tools.arms_report import write
from navit_backbone.tools.arms_results import Arms, Results
from navit_backbone.tools.arms_runs import FoldedRun, Run, in_folds, seconds_left
from navit_backbone.tools.command_line import (
    expanded_path,
    output_file,
    output_folder,
    run,
    task_of,
)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', type=expanded_path, nargs='+', metavar='CONFIG')
    parser.add_argument('--names', nargs='+', help="of the arms (the configs' file names)")
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='(0 1 2)')
    parser.add_argument(
        '--folds', type=int, default=0, metavar='N',
        help='train N times, each time without a fold (column `fold` of the list), and pool',
    )  # fmt: skip
    parser.add_argument('--out', type=output_folder, default='work_dirs/arms', help='(%(default)s)')
    parser.add_argument('--report', type=output_file, help='(OUT/FIRST_CONFIG.md)')
    parser.add_argument(
        '--eval-batches', type=int, nargs='+', default=[1, 4, 8],
        help='the first is that of all tables but one (1 4 8)',
    )  # fmt: skip
    parser.add_argument('--resamples', type=int, default=10_000, help='(%(default)s)')
    parser.add_argument('--show-worst', type=int, default=0, metavar='N', help='draw N examples')
    parser.add_argument(
        '--no-train', action='store_true', help='compare the seeds that are complete in all arms'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='overrides, in all arms'
    )
    return parser.parse_args()


def arms(args: argparse.Namespace) -> None:
    """Train, evaluate, compare: what is there is kept."""
    names = check(args)
    runs: dict[str, list[Run | FoldedRun]] = {
        name: [
            Run(config=config, seed=seed, out=args.out, options=args.cfg_options)
            for seed in args.seeds
        ]
        for name, config in zip(names, args.configs, strict=True)
    }
    task = evidence_of(runs)
    if args.folds:
        runs = {
            name: [in_folds(run, args.folds, task) for run in arm] for name, arm in runs.items()
        }
    if args.no_train:
        runs = complete(runs)
    else:
        train([arm[seed] for seed in range(len(args.seeds)) for arm in runs.values()])
    evaluate([r for arm in runs.values() for r in arm], args.eval_batches, task)
    results = Results.of(runs, task, batch_sizes=args.eval_batches, num_resamples=args.resamples)
    path = args.report or args.out / f'{args.configs[0].stem}.md'
    command = shlex.join(['python', 'tools/arms.py', *sys.argv[1:]])
    write(results, path, command=command, num_drawn=args.show_worst)
    print(f'report: {path}')


def check(args: argparse.Namespace) -> list[str]:
    """Refuse what cannot be compared; the names of the arms."""
    stems = [config.stem for config in args.configs]
    names: list[str] = args.names or stems
    if len(args.configs) < 2:
        raise ValueError(f'{args.configs[0]} is one arm: a comparison needs two configs or more')
    for what, given in (('configs', stems), ('--names', names), ('--seeds', args.seeds)):
        if len(set(given)) < len(given):
            raise ValueError(f'{what} must differ from each other: got {" ".join(map(str, given))}')
    if len(names) != len(stems):
        raise ValueError(f'--names {" ".join(names)}: one for each of the {len(stems)} configs')
    if min(args.eval_batches) < 1 or args.resamples < 1:
        raise ValueError(
            f'--eval-batches {args.eval_batches} and --resamples {args.resamples} start from 1'
        )
    if min(args.seeds) < 0 or args.show_worst < 0:
        raise ValueError(
            f'--seeds {" ".join(map(str, args.seeds))} and --show-worst {args.show_worst} start '
            'from 0'
        )
    if args.folds < 0 or args.folds == 1:
        raise ValueError(f'--folds {args.folds}: give two folds or more, or leave it out')
    return names


def evidence_of(runs: Arms) -> ModuleType:
    """The module that knows what the configs' task measures."""
    tasks = {task_of(arm[0].cfg, arm[0].config) for arm in runs.values()}
    if len(tasks) > 1:
        raise ValueError(
            f'the configs are of {" and ".join(sorted(tasks))}: arms are compared within one task'
        )
    return import_module(f'navit_backbone.tasks.{tasks.pop()}.evidence')


def complete(runs: Arms) -> dict[str, list[Run | FoldedRun]]:
    """The seeds of which every arm is trained."""
    seeds = list(zip(*runs.values(), strict=True))
    missing = [r.checkpoint for row in seeds for r in row if not r.is_complete]
    kept = [row for row in seeds if all(r.is_complete for r in row)]
    print(''.join(f'not there: {file}\n' for file in missing), end='', file=sys.stderr)
    if not kept:
        raise ValueError(f'no seed is complete in all arms, {missing[0]} for one is missing: '
                         'leave out --no-train to train what is missing')  # fmt: skip
    return {name: [row[number] for row in kept] for number, name in enumerate(runs)}


def train(runs: Sequence[Run | FoldedRun]) -> None:
    """Those that are not complete, one after the other."""
    singles = [single for item in runs for single in item.singles]
    missing = [item for item in singles if not item.is_complete]
    took = [item.wall_time.total_seconds() for item in singles if item.is_complete]
    for number, item in enumerate(missing, 1):
        label = f'training {number}/{len(missing)}, {item.folder.name}'
        say(f'{label}: log in {item.folder / "log.txt"}')
        started = time.monotonic()
        for line in item.train():
            if (left := seconds_left(line)) is not None:
                each = float(np.mean(took or [time.monotonic() - started + left]))
                rest = left + (len(missing) - number) * each
                say(f'{label}: {clock(left)} left, {clock(rest)} for all')
        took.append(item.wall_time.total_seconds())


def evaluate(runs: Sequence[Run | FoldedRun], batch_sizes: Sequence[int], task: ModuleType) -> None:
    """Those whose predictions are missing or older than the checkpoint."""
    singles = [single for item in runs for single in item.singles]
    missing = [(r, size) for r in singles for size in batch_sizes if not r.is_evaluated(size)]
    started = time.monotonic()
    for number, (item, size) in enumerate(missing):
        spent = time.monotonic() - started
        left = f', {clock(spent / number * (len(missing) - number))} left' if number else ''
        say(f'evaluation {number + 1}/{len(missing)}, {item.folder.name}, batch {size}{left}')
        item.evaluate(size, task)


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """As 1:02:03."""
    return str(timedelta(seconds=round(seconds)))


def main() -> None:
    """Run; a user's mistake ends with a sentence, not a traceback."""
    args = parse_args()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # not without the training
    run(lambda: arms(args))


if __name__ == '__main__':
    main()
