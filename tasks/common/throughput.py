"""What a training step works through, in the log: tokens, padding, pictures, speed, waiting."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook, IterTimerHook, LoggerHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .batch_tokens import BatchTokens


@HOOKS.register_module()
class ThroughputHook(Hook):
    """Adds five figures to the lines of the training log, and so to JSON, TensorBoard and W&B.

    A step's `tokens` of the pictures themselves, `padded_tokens` that their canvases would have,
    and `images` (or clips, each view counted); `tokens_per_s`; and `data_wait`, the share of the
    time spent waiting for data.

    Means over the steps since the line before, in the same epoch, and of all ranks together: the
    tokens of a step are those of all ranks. The ranks talk at these lines alone. Times are those
    of mmengine's IterTimerHook, lines those of its LoggerHook.
    """

    def before_train(self, runner: Runner) -> None:
        for needed in (IterTimerHook, LoggerHook):
            if not any(isinstance(hook, needed) for hook in runner.hooks):
                raise ValueError(
                    f'ThroughputHook rests on {needed.__name__}, which is missing: put it back '
                    'into default_hooks, or leave ThroughputHook out of custom_hooks'
                )
        (self._logger, *_) = (hook for hook in runner.hooks if isinstance(hook, LoggerHook))
        self._count = BatchTokens(runner.model)
        self._restart()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        cost, hub = self._count.of(data_batch), runner.message_hub
        waited, seconds = (hub.get_scalar(f'train/{k}').current() for k in ('data_time', 'time'))
        step = (cost.tokens, cost.padded, cost.examples, waited, seconds)
        self._sums = [total + value for total, value in zip(self._sums, step, strict=True)]
        self._steps += 1
        if self.every_n_inner_iters(batch_idx, self._logger.interval) or self.end_of_epoch(
            runner.train_dataloader, batch_idx
        ):
            for name, value in self._means().items():
                hub.update_scalar(f'train/{name}', value)
            self._restart()

    def _means(self) -> dict[str, float]:
        sums = torch.tensor(self._sums, dtype=torch.float64)
        all_reduce(sums)
        tokens, padded, images, waited, seconds = sums.tolist()
        return {
            'tokens': tokens / self._steps,
            'padded_tokens': padded / self._steps,
            'images': images / self._steps,
            'tokens_per_s': tokens / (seconds / get_world_size()),
            'data_wait': waited / seconds,
        }

    def _restart(self) -> None:
        self._sums, self._steps = [0.0] * 5, 0
