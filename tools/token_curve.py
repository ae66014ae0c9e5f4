"""Quality and time of a model by the tokens that it sees a picture with: tools/test.py --tokens."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from navit_backbone.tasks.common.batch_tokens import BatchTokens
from navit_backbone.tools.command_line import build_runner

NATIVE = 'native'
_UNBOUNDED = 2**20  # tokens: a picture of 16,384 x 16,384 pixels at a patch of 16


def budgets_of(text: str) -> list[int | str]:
    """'256,400,native' as numbers of tokens; native: every picture at its own size."""
    budgets: list[int | str] = []
    for part in text.split(','):
        if part != NATIVE and not (part.isdecimal() and int(part)):
            raise ValueError(
                f'--tokens {text}: {part!r} is no number of tokens; give them as 256,576,1024, and '
                f'{NATIVE} for the pictures as they are'
            )
        budgets.append(part if part == NATIVE else int(part))
    return budgets


def with_budget(cfg: Config, budget: int | str) -> Config:
    """A copy of the config that tests with so many tokens a picture."""
    cfg = deepcopy(cfg)
    steps = [
        step
        for step in cfg.test_dataloader.dataset.pipeline
        if step['type'] in ('ResizeToTokenBudget', 'ClipToTokenBudget')
    ]
    if len(steps) != 1:
        raise ValueError(
            f'{cfg.filename}: --tokens sets max_tokens of ResizeToTokenBudget or '
            f'ClipToTokenBudget, of which the test pipeline has {len(steps)}: give it one'
        )
    (step,) = steps
    for name in ('native', 'min_tokens'):
        step.pop(name, None)
    if budget == NATIVE:
        step.update(max_tokens=_UNBOUNDED, min_tokens=1)
    else:
        step.max_tokens = budget
    cfg.work_dir = str(Path(cfg.work_dir) / f'tokens_{budget}')
    return cfg


def curve(cfg: Config, budgets: Sequence[int | str]) -> list[dict[str, Any]]:
    """The figures of each budget, with tokens and seconds in the model for each picture or clip."""
    rows = []
    for budget in budgets:
        runner = build_runner(with_budget(cfg, budget))
        spent = Timed(runner)
        figures = runner.test()
        rows.append({'budget': budget, **spent.an_example(), **figures})
    return rows


class Timed:
    """Counts the time within the model's test steps, and the tokens that it was given.

    The first step warms up, so where there are more it does not count.
    """

    def __init__(self, runner: Runner) -> None:
        self.count = BatchTokens(runner.model)
        self.steps: list[tuple[float, int, int]] = []  # seconds, tokens, examples
        runner.model.test_step = self._timed(runner.model.test_step)

    def _timed(self, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def timed(data: Any) -> Any:
            start = time.perf_counter()
            found = step(data)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds, cost = time.perf_counter() - start, self.count.of(data)
            self.steps.append((seconds, cost.tokens, cost.examples))
            return found

        return timed

    def an_example(self) -> dict[str, float]:
        """Means over the pictures or clips."""
        _, tokens, examples = map(sum, zip(*self.steps, strict=True))
        warm = self.steps[1:] or self.steps
        return {
            'tokens': round(tokens / examples, 1),
            'seconds': round(sum(s for s, *_ in warm) / sum(n for *_, n in warm), 5),
        }


def report(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Print a table, each row of a picture or clip; token_curve.json and a plot go to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = [
        key for key in rows[0] if all(isinstance(r.get(key), (int, float, str)) for r in rows)
    ]
    width = max(10, *(len(key) for key in columns)) + 2
    print('tokens and seconds in the model are means a picture or clip')
    print(''.join(f'{key:>{width}}' for key in columns))
    for row in rows:
        print(''.join(f'{_short(row[key]):>{width}}' for key in columns))
    (folder / 'token_curve.json').write_text(json.dumps(list(rows), indent=1) + '\n')
    plot(rows, folder / 'token_curve.png')
    print(f'the same, and a plot, in {folder}/token_curve.json and .png')


def _short(value: float | str) -> str:
    if not isinstance(value, float):
        return str(value)
    return f'{value:.2f}' if value >= 1 else f'{value:.4f}'


def plot(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """The leading figure over the tokens, and the time beside it."""
    from matplotlib.figure import Figure

    figure = next(
        (key for key in ('mIoU', 'coco/bbox_mAP', 'top1') if key in rows[0]), list(rows[0])[-1]
    )
    rows = sorted(rows, key=lambda row: row['tokens'])
    x = [row['tokens'] for row in rows]
    canvas = Figure(figsize=(9, 3.6), layout='constrained')
    quality, cost = canvas.subplots(1, 2)
    quality.plot(x, [row[figure] for row in rows], marker='o')
    quality.set_ylabel(figure)
    cost.plot(x, [1000 * row['seconds'] for row in rows], marker='o', color='tab:red')
    cost.set_ylabel('milliseconds in the model, each')
    for axes in (quality, cost):
        axes.set_xlabel('tokens a picture or clip')
        axes.grid(alpha=0.3)
        for row, at in zip(rows, x, strict=True):
            if row['budget'] == NATIVE:
                axes.axvline(at, color='grey', linestyle=':', linewidth=1)
    canvas.savefig(file, dpi=110)
