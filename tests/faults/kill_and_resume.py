"""Kill a training by SIGKILL at random steps, resume it each time, compare all that it did.

    python tests/faults/kill_and_resume.py [--kills 20] [--steps 63] [--workers 0 2] [--seed 0]

What everything_with_a_state.py describes is trained once undisturbed, and once killed again and
again; every fourth kill waits for a checkpoint that is being written. The samples, pixels and
losses of every step, whether trained the first time or again, and the weights at the end have to be
the same to the last bit; else the exit status is 1. `--batches tokens`: the same in batches of a
token budget; `segmentation`: of a segmentor; `clips`: of a classifier of clips.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from step_log import FILE

from navit_backbone.tasks.common.sample_set import write_sample_set

HERE = Path(__file__).resolve().parent
CONFIGS = {
    'size': 'everything_with_a_state.py',
    'tokens': 'everything_by_tokens.py',
    'segmentation': 'everything_segmented.py',
    'clips': 'everything_of_clips.py',
}
STEPS_PER_EPOCH = 7
PATIENCE = 300  # seconds for what takes one or two


@dataclass(frozen=True)
class Kill:
    """When to kill: after a step was logged, at once, a little later, or amid a write."""

    step: int
    delay: float = 0.0  # seconds
    in_write: bool = False


class Training:
    """`tools/train.py --resume` in a process of its own, and the log of its steps."""

    def __init__(self, config: Path, work_dir: Path, options: list[str]) -> None:
        self.command = ['train.py', str(config), '--work-dir', str(work_dir), '--resume']
        self.command += ['--cfg-options', *options]
        self.work_dir, self.output = work_dir, work_dir.with_suffix('.txt')

    def steps(self) -> list[tuple[int | str, dict]]:
        """All steps so far, those that were trained again too."""
        log = self.work_dir / FILE
        *lines, _ = (
            log.read_text().split('\n') if log.is_file() else ['']
        )  # the last may be growing
        return [tuple(json.loads(line)) for line in lines]

    def finish(self) -> None:
        """Train to the end."""
        process = _start(self.command, self.output)
        process.join(PATIENCE)
        if process.exitcode != 0:
            self._give_up(process)

    def has_reached(self, goal: int, *, known: int) -> bool:
        """Return whether a step from `goal` on was logged after the first `known` lines."""
        return any(step >= goal for step, _ in self.steps()[known:])

    def run_until(self, kill: Kill) -> bool:
        """Train, and kill it there; whether a write was cut off."""
        is_reached = partial(self.has_reached, kill.step, known=len(self.steps()))
        process = _start(self.command, self.output, is_reached if kill.in_write else None)
        self._wait(process, is_reached)
        if kill.in_write:
            self._wait(process, lambda: any(self.work_dir.glob('*.pth.part')))
        time.sleep(kill.delay)
        process.kill()
        process.join()
        return any(self.work_dir.glob('*.part'))

    def _wait(self, process: multiprocessing.Process, seen: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not seen():
            if process.exitcode is not None or time.monotonic() > end:
                self._give_up(process)
            time.sleep(0.0005)

    def _give_up(self, process: multiprocessing.Process) -> None:
        process.kill()
        said = '\n'.join(self.output.read_text().splitlines()[-30:])
        raise RuntimeError(f'{" ".join(self.command)} ended with {process.exitcode}:\n{said}')


def _start(
    command: list[str], output: Path, hold: Callable[[], bool] | None = None
) -> multiprocessing.Process:
    """Start a process from a server that imported everything once and did nothing else.

    Once `hold` returns True, the next write of a checkpoint waits to be killed.
    """
    context = multiprocessing.get_context('forkserver')
    modules = ['navit_backbone.tools.train', 'mmdet.apis', 'mmseg.apis', 'step_log']
    context.set_forkserver_preload(modules)
    process = context.Process(target=_train, args=(command, output, hold))
    process.start()
    return process


def _hold_write(hold: Callable[[], bool]) -> None:
    """Stop before a checkpoint gets its name: on a busy machine a killer misses a short write."""
    replace = os.replace

    def held(source: Path, target: Path) -> None:
        if str(source).endswith('.pth.part') and hold():
            time.sleep(PATIENCE)
        replace(source, target)

    os.replace = held


def _train(command: list[str], output: Path, hold: Callable[[], bool] | None) -> None:
    import yapf.yapflib.yapf_api

    from navit_backbone.tools import train

    # with every checkpoint the config is laid out anew, which takes longer than a step here
    yapf.yapflib.yapf_api.FormatCode = lambda text, **_: (text, True)
    if hold is not None:
        _hold_write(hold)
    with output.open('a') as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.argv = command
    train.main()


def differences(expected: list, found: list) -> list[str]:
    """Where two logs disagree; a step that was trained twice has to be the same twice."""
    known = dict(expected)
    missing = [f'{step}: never reached' for step in known if step not in dict(found)]
    return missing + [
        f'{step}: {key} is {record.get(key)}, not {known[step].get(key)}'
        for step, record in found
        for key in sorted({*record, *known[step]})
        if record.get(key) != known[step].get(key)
    ]


def compare(
    folder: Path, *, batches: str, workers: int, steps: int, kills: list[Kill]
) -> list[str]:
    """Train with and without kills; the differences."""
    name, config = f'batches by {batches}, {workers} workers', HERE / CONFIGS[batches]
    root = folder / ('clips' if batches == 'clips' else 'set')
    _write_set(root)
    options = [f'data_root={root}', f'train_cfg.max_epochs={steps // STEPS_PER_EPOCH}']
    for loader in ('train_dataloader', 'val_dataloader'):
        options.append(f'{loader}.num_workers={workers}')
        options.append(f'{loader}.persistent_workers={workers > 0}')
    undisturbed = Training(config, folder / f'{name}, undisturbed', options)
    undisturbed.finish()
    killed = Training(config, folder / f'{name}, killed', options)
    for number, kill in enumerate(kills, start=1):
        cut_off = killed.run_until(kill)
        before = max((step for step, _ in killed.steps()), default=0)
        print(
            f'{name}: kill {number} of {len(kills)} after step {before}'
            f'{", amid a write" if cut_off else ""}',
            flush=True,
        )
    killed.finish()
    expected, found = undisturbed.steps(), killed.steps()
    again = len(found) - len(expected)
    print(f'{name}: {len(expected) - 1} steps, {again} of them trained again')
    return differences(expected, found)


def _write_set(root: Path) -> None:
    if root.name != 'clips':
        write_sample_set(root, seed=0, num_pictures=dict(train=20, val=2))
        return
    from navit_backbone.tasks.common.drawings import draw
    from navit_backbone.tasks.video.motions import write_motions

    write_motions(
        lambda split, number: (f'{split} {number}', draw(0, split, number).image),
        root,
        num_clips=dict(train=24, val=2),
    )


def random_kills(count: int, *, steps: int, seed: int) -> list[Kill]:
    """At `count` steps, in order; the time within a step is random too."""
    draw = random.Random(seed)
    chosen = sorted(draw.sample(range(1, steps - 3), count))  # the last save is 3 steps off
    return [
        Kill(step, in_write=True) if i % 4 == 3 else Kill(step, delay=draw.uniform(0, 0.2))
        for i, step in enumerate(chosen)
    ]


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--steps', type=int, default=63, help=f'a multiple of {STEPS_PER_EPOCH}')
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--batches', choices=CONFIGS, nargs='+', default=['size'])
    parser.add_argument('--workers', type=int, nargs='+', default=[0, 2])
    parser.add_argument('--seed', type=int, default=0, help='of the steps to kill at')
    args = parser.parse_args()
    if args.steps % STEPS_PER_EPOCH or args.kills > args.steps - 4:
        parser.error(f'--steps: a multiple of {STEPS_PER_EPOCH}, at least 4 more than --kills')
    return args


def main() -> int:
    """Compare for each number of workers; 1 where anything differs."""
    args, found = parse_args(), []
    kills = random_kills(args.kills, steps=args.steps, seed=args.seed)
    with tempfile.TemporaryDirectory() as folder:
        for batches, workers in itertools.product(args.batches, args.workers):
            options = dict(batches=batches, workers=workers, steps=args.steps, kills=kills)
            found += compare(Path(folder), **options)
    print('\n'.join(found) or 'every batch, every loss and all weights are the same')
    return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main())
