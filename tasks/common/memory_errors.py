"""Out of memory: which pictures it was, how many tokens, and the ways out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner
from torch.utils.data import DataLoader

from .batch_tokens import BatchTokens
from .resize import find_planner
from .wrappers import inner_datasets

# What allocators say. CUDA's error has a type of its own; the CPU's, cuDNN's and cuBLAS's have not.
_SIGNS = ('out of memory', 'DefaultCPUAllocator', "can't allocate memory", 'ALLOC_FAILED')


class BatchMemoryError(torch.OutOfMemoryError):
    """Memory ran out in a step; the message names its batch and the ways out."""


@HOOKS.register_module()
class MemoryErrorHook(Hook):
    """Lets an out-of-memory error of a step say which batch it was: training, validation, test.

    Hooks do not see errors, so this one wraps the step of the runner's loops, under any script.
    """

    def before_run(self, runner: Runner) -> None:
        count = BatchTokens(runner.model)
        for name in ('train', 'val', 'test'):
            loop = getattr(runner, f'_{name}_loop')
            if isinstance(loop, BaseLoop) and 'run_iter' not in vars(loop):
                loop.run_iter = _explained(loop.run_iter, name, loop.dataloader, count)


def _explained(
    run_iter: Callable[..., Any], name: str, loader: DataLoader, count: BatchTokens
) -> Callable[..., Any]:
    """`run_iter`, the last of whose arguments is the batch in all loops of mmengine."""

    @wraps(run_iter)
    def run_or_explain(*args: Any) -> Any:
        try:
            return run_iter(*args)
        except (RuntimeError, MemoryError) as error:
            if not _ran_out(error):
                raise
            batch = count.of(args[-1]).text
            raise BatchMemoryError(
                f'out of memory at {batch}. In use: {", ".join(_limits(name, loader))}. Ways out: '
                f'{_ways_out(name)}. The allocator said: {" ".join(str(error).split())}'
            ) from error

    return run_or_explain


def _ran_out(error: Exception) -> bool:
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or any(sign in str(error) for sign in _SIGNS)


def _limits(name: str, loader: DataLoader) -> Iterator[str]:
    """The settings that decide how large a batch becomes."""
    sampler = loader.batch_sampler
    if hasattr(sampler, 'max_tokens'):
        yield f'{type(sampler).__name__}(max_tokens={sampler.max_tokens})'
    planner = find_planner(_transforms(loader.dataset))
    if hasattr(planner, 'max_tokens'):
        yield f'{type(planner).__name__}(max_tokens={planner.max_tokens})'
    yield f'{name}_dataloader.batch_size={getattr(sampler, "batch_size", None)}'


def _transforms(dataset: Any) -> Sequence[Any]:
    """Those of the pipeline of a data set, or of the first that it wraps or joins."""
    while not hasattr(dataset, 'pipeline') and inner_datasets(dataset):
        dataset = inner_datasets(dataset)[0]
    return dataset.pipeline.transforms if hasattr(dataset, 'pipeline') else ()


def _ways_out(name: str) -> str:
    fewer = f'a smaller max_tokens or {name}_dataloader.batch_size'
    if name != 'train':
        return fewer
    return (
        f'{fewer} (optim_wrapper.accumulative_counts=2 makes up for half), '
        'model.backbone.with_cp=True, --amp'
    )
