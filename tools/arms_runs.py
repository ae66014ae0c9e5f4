"""One training of a comparison: a config with a seed, in a folder of its own, and its evaluations.

OUT/CONFIG_seedK/                 a work dir of tools/train.py
    epoch_20.pth                  and last_checkpoint names it: the training is complete
    log.txt, run.json             what was said; how it was started
    evaluation/batch_1.json       predictions and how they were made, in plain JSON
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device

from navit_backbone.tasks.common.pretrained import fill_left_out
from navit_backbone.tasks.common.text_files import read_json
from navit_backbone.tools.command_line import add_config_arguments, read_config
from navit_backbone.tools.measure import machine

# What decides how a model comes out, and how it is tested.
TRAINING = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler')
TRAINING += ('custom_hooks', 'randomness')
TEST = ('test_dataloader', 'test_cfg', 'test_evaluator')

_ETA = re.compile(r'\(train\).*\beta: (?:(\d+) days?, )?(\d+):(\d\d):(\d\d)')
_TIME = re.compile(r'^(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) - ', re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A config, a seed, and where they belong."""

    config: Path
    seed: int
    out: Path
    options: Sequence[str] = ()  # KEY=VALUE of --cfg-options
    fold: int | None = None  # the one that is held out

    @property
    def folder(self) -> Path:
        fold = '' if self.fold is None else f'_fold{self.fold}'
        return self.out / f'{self.config.stem}_seed{self.seed}{fold}'

    @property
    def singles(self) -> Sequence[Run]:
        """The trainings that it is made of: itself."""
        return [self]

    @cached_property
    def cfg(self) -> Config:
        """The config as the tools read it."""
        parser = argparse.ArgumentParser()
        add_config_arguments(parser)
        options = [*self.options, f'randomness.seed={self.seed}']
        args = parser.parse_args([str(self.config), '--cfg-options', *options])
        return read_config(args.config, args.cfg_options)

    @property
    def checkpoint(self) -> Path:
        """What the training ends with."""
        loop = self.cfg.train_cfg
        by_epoch = 'max_epochs' in loop
        return self.folder / (
            f'epoch_{loop.max_epochs}.pth' if by_epoch else f'iter_{loop.max_iters}.pth'
        )

    @property
    def is_complete(self) -> bool:
        """Whether the end of the training is there, and whole: it is named once it is written."""
        last = self.folder / 'last_checkpoint'
        named = Path(last.read_text().strip()).name if last.exists() else ''
        return named == self.checkpoint.name and self.checkpoint.exists()

    def train(self) -> Iterator[str]:
        """Train to the end, from the last checkpoint where there is one; the lines of its log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        resume = ['--resume'] if (self.folder / 'last_checkpoint').exists() else []
        if not resume:
            _write(self.folder / 'run.json', provenance())
        arguments = [str(self.config), '--work-dir', str(self.folder), *resume, '--cfg-options']
        arguments += [*self.options, f'randomness.seed={self.seed}']
        yield from lines_of('train', arguments, self.folder / 'log.txt')
        if not self.is_complete:
            raise ValueError(
                f'{self.folder}: the training ended without {self.checkpoint.name}; let '
                'default_hooks.checkpoint save the end of the training under this name'
            )

    def evaluation(self, batch_size: int) -> Path:
        """Where the predictions at this batch size are."""
        return self.folder / 'evaluation' / f'batch_{batch_size}.json'

    def is_evaluated(self, batch_size: int) -> bool:
        """Whether they are there, and newer than the checkpoint."""
        file = self.evaluation(batch_size)
        return file.exists() and file.stat().st_mtime >= self.checkpoint.stat().st_mtime

    def evaluate(self, batch_size: int, task: ModuleType) -> None:
        """Write them; `task` knows what an evaluation leaves, and where."""
        work = self.evaluation(batch_size).with_suffix('')
        work.mkdir(parents=True, exist_ok=True)
        arguments = [str(self.config), str(self.checkpoint), '--work-dir', str(work)]
        arguments += ['--cfg-options', *self.options, f'test_dataloader.batch_size={batch_size}']
        arguments += task.evaluation_options(work)
        for _ in lines_of('test', arguments, work / 'log.txt'):
            pass
        content = dict(
            config=str(self.config),
            seed=self.seed,
            checkpoint=self.checkpoint.name,
            batch_size=batch_size,
            **provenance(),
            **task.predictions(self.cfg, work),
        )
        _write(self.evaluation(batch_size), content)

    def evaluated(self, batch_size: int) -> dict[str, Any]:
        """What `evaluate` wrote."""
        file = self.evaluation(batch_size)
        try:
            content: dict[str, Any] = read_json(file)
        except ValueError as error:
            raise ValueError(f'{error}. Fix: remove it, the next run makes it again') from error
        return content

    @property
    def wall_time(self) -> timedelta:
        """From the first to the last line of each session of the training, as its logs have it."""
        total = timedelta()
        for log in self.folder.glob('*/*.log'):
            if '(train)' in (text := log.read_text()):
                times = [datetime.strptime(t, '%Y/%m/%d %H:%M:%S') for t in _TIME.findall(text)]
                total += times[-1] - times[0]
        return total

    @property
    def begun(self) -> dict[str, str]:
        """The date, machine and code of its training; empty where it was started by hand."""
        file = self.folder / 'run.json'
        return json.loads(file.read_text()) if file.exists() else {}

    def changes(self) -> list[str]:
        """Return the keys of the config that differ from what was trained."""
        stored = self.folder / f'{self.config.stem}.py'
        if not stored.exists():
            return []
        now = deepcopy(self.cfg)
        fill_left_out(now.model)
        return list(differences([Config.fromfile(stored), now], TRAINING))


@dataclass(frozen=True, kw_only=True)
class FoldedRun:
    """A run for each fold held out, which together have seen every example as a test once."""

    singles: Sequence[Run]
    task: ModuleType

    @property
    def config(self) -> Path:
        return self.singles[0].config

    @property
    def seed(self) -> int:
        return self.singles[0].seed

    @property
    def cfg(self) -> Config:
        """That of the first fold."""
        return self.singles[0].cfg

    @property
    def checkpoint(self) -> Path:
        """The first that is missing, else that of the first fold."""
        missing = [item for item in self.singles if not item.is_complete]
        return (missing or self.singles)[0].checkpoint

    @property
    def is_complete(self) -> bool:
        return all(item.is_complete for item in self.singles)

    def evaluated(self, batch_size: int) -> dict[str, Any]:
        """The evaluations of all folds as one."""
        pooled: dict[str, Any] = self.task.pooled([r.evaluated(batch_size) for r in self.singles])
        return pooled

    @property
    def wall_time(self) -> timedelta:
        """Of all folds."""
        return sum((item.wall_time for item in self.singles), timedelta())

    @property
    def begun(self) -> dict[str, str]:
        """Where the first fold was trained."""
        return self.singles[0].begun

    def changes(self) -> list[str]:
        """The keys that differ from what was trained, in any fold."""
        return sorted({key for item in self.singles for key in item.changes()})


def in_folds(run: Run, count: int, task: ModuleType) -> FoldedRun:
    """The run with each of `count` folds held out in turn."""
    if not hasattr(task, 'fold_options'):
        name = task.__name__.split('.')[-2]
        raise ValueError(
            f'--folds {count}: {run.config} is of {name}, and folds are for lists of clips. Fix: '
            'leave out --folds'
        )
    task.refuse_other_folds(run.cfg, count)
    return FoldedRun(
        singles=[
            replace(run, fold=fold, options=[*run.options, *task.fold_options(fold)])
            for fold in range(count)
        ],
        task=task,
    )


def lines_of(tool: str, arguments: Sequence[str], log: Path) -> Iterator[str]:
    """Run a tool in a process of its own; its lines, which are added to `log` as well."""
    command = [sys.executable, '-u', '-m', f'navit_backbone.tools.{tool}', *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace'
    )
    assert process.stdout is not None, 'it was asked for'
    last = ''
    try:
        with log.open('a') as file:
            for line in process.stdout:
                file.write(line)
                file.flush()
                last = line.strip() or last
                yield line
    except BaseException:  # we were stopped, and it would go on alone
        process.terminate()
        process.wait()
        raise
    if status := process.wait():
        raise ValueError(f'tools/{tool}.py ended with status {status}: {last} (log: {log})')


def seconds_left(line: str) -> int | None:
    """What a line of a training's log says of the time left."""
    if (found := _ETA.search(line)) is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((24 * days + hours) * 60 + minutes) * 60 + seconds


def differences(configs: Sequence[Config], parts: Sequence[str]) -> dict[str, list[Any]]:
    """The keys in which configs differ, with the value of each; None where it has no such key."""
    flat = [dict(_leaves({part: cfg.get(part) for part in parts}, '')) for cfg in configs]
    keys = dict.fromkeys(key for leaves in flat for key in leaves)
    values = {key: [leaves.get(key) for leaves in flat] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def _leaves(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, (list, tuple)):
        items = list(enumerate(node))
    else:
        yield name, node
        return
    for key, value in items:
        yield from _leaves(value, f'{name}.{key}' if name else str(key))


def provenance() -> dict[str, str]:
    """When, on what and with which code something is made."""
    found = machine(torch.device(get_device()))
    return dict(date=datetime.now().strftime('%Y-%m-%d'), code=_commit(), **found)


def _commit() -> str:
    """The commit, with a mark where files differ from it; empty outside a clone."""
    command = ['git', '-C', str(Path(__file__).parent), 'describe', '--always', '--dirty']
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ''


def _write(file: Path, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    partial = file.with_suffix('.partial')
    partial.write_text(json.dumps(content))
    os.replace(partial, file)
