"""A training run as a benchmark sees it: what each step took, waited for data, and held."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from navit_backbone.tools.measure import Result, give_back_free_memory, resident_bytes


@dataclass
class RunRecord(Hook):
    """What each step of a run took, waited and held."""

    took: list[float]
    waited: list[float]
    bytes: list[int]  # every so many steps
    every: int

    priority = 'VERY_LOW'

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        scalars = runner.message_hub.log_scalars
        self.took.append(float(scalars['train/time'].current()))
        self.waited.append(float(scalars['train/data_time'].current()))
        if runner.iter % self.every:
            return
        give_back_free_memory()
        children = Path(f'/proc/self/task/{os.getpid()}/children').read_text().split()
        self.bytes.append(resident_bytes(peak=False) + sum(_private(pid) for pid in children))


def _private(pid: str) -> int:
    """Bytes that a worker does not share with the process it was forked from."""
    lines = Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith('Private_'))


def record_of(cfg: Config, steps: int) -> RunRecord:
    """Train as a config says, without evaluations and checkpoints; memory a hundred times."""
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.default_hooks.checkpoint = None
    record = RunRecord([], [], [], every=max(1, steps // 100))
    with TemporaryDirectory() as folder:
        cfg.work_dir = folder
        runner = Runner.from_cfg(cfg)
        runner.register_hook(record)
        runner.train()
    return record


def waiting(what: str, seen: RunRecord, *, few: str) -> Result:
    """The share of a run's time that waits for data, without its first tenth; `few`: a caution."""
    first = len(seen.took) // 10
    share = sum(seen.waited[first:]) / sum(seen.took[first:])
    return Result(
        what=f'{what}: share of the time that waits for data',
        figure=f'{few}{share:.2%}',
        target='under 10 %',
        detail=f'{median(seen.took):.3f} s a step',
    )
