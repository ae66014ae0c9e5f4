"""Losses as means over the examples of all ranks and of all gradient accumulation steps.

Token budgets make batches uneven: the mean of each rank's mean would weigh an example by how few
others share its batch. A loss of ours is a sum over its examples (clips, labelled pixels), divided
by their number in the whole update of the weights:

- over the ranks by `mean_over_ranks`, which the loss calls;
- over accumulation steps by `ExampleMeanOptimWrapper`, `ExampleMeanAmpOptimWrapper` (float16) and
  `BFloat16OptimWrapper`, which weigh the gradient of each step by the number of examples that the
  loss has reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn

from .counts import require_count

_counts: ContextVar[list[Tensor] | None] = ContextVar('counts of the step under way', default=None)


def mean_over_ranks(total: Tensor, count: Tensor | float) -> Tensor:
    """Divide this rank's sum of losses by the mean number of examples a rank.

    The mean over the ranks, which distributed training takes of gradients, is then the sum over all
    examples divided by their number. `total` is a scalar with a gradient; `count` may be 0 on some
    ranks or on all. Nothing is read from the device. All ranks have to call this equally often.
    """
    examples = torch.as_tensor(count, dtype=total.dtype, device=total.device).detach().clone()
    all_reduce(examples)
    if (counts := _counts.get()) is not None:
        counts.append(examples)
    return total * get_world_size() / _divisor(examples)


def _divisor(examples: Tensor) -> Tensor:
    """Return the number, or 1 where it is 0."""
    return torch.where(examples > 0, examples, torch.ones_like(examples))


class _ExampleMean:
    """Mix in before an OptimWrapper, whose accumulated gradients become means over examples.

    With `accumulative_counts` above 1 a step of few examples counts for less than one of many, as
    if all had come in one batch. A step's number of examples is the first one that a loss gives to
    `mean_over_ranks`; where no loss does, steps count equally, as in mmengine.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if (counts := kwargs.get('accumulative_counts')) is not None:
            require_count('optim_wrapper.accumulative_counts', counts)
        super().__init__(*args, **kwargs)
        self._first: Tensor | None = None  # examples of the first step since the last update
        self._all: Tensor | None = None  # and of all of them
        self._step: list[Tensor] = []

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        self._step = []
        token = _counts.set(self._step)
        try:
            with super().optim_context(model):  # type: ignore[misc]
                yield
        finally:
            _counts.reset(token)

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Multiply the mean of this step by its number of examples, over that of the first step."""
        if self._accumulative_counts == 1 or not self._step:  # type: ignore[attr-defined]
            scaled: Tensor = super().scale_loss(loss)  # type: ignore[misc]
            return scaled
        examples = self._step[0]
        if self._first is None or self._all is None:
            self._first, self._all = _divisor(examples), torch.zeros_like(examples)
        self._all = self._all + examples
        return loss * examples / self._first

    def step(self, **kwargs: Any) -> None:
        """Divide the accumulated gradient by the number of examples, then clip and update."""
        if self._first is not None and self._all is not None:
            share = self._first / _divisor(self._all)
            for group in self.optimizer.param_groups:  # type: ignore[attr-defined]
                for parameter in group['params']:
                    if parameter.grad is not None:
                        parameter.grad.mul_(share.to(parameter.grad.dtype))
            self._first = self._all = None
        super().step(**kwargs)  # type: ignore[misc]


@OPTIM_WRAPPERS.register_module()
class ExampleMeanOptimWrapper(_ExampleMean, OptimWrapper):
    """OptimWrapper that accumulates gradients as a mean over examples, not over steps."""


@OPTIM_WRAPPERS.register_module()
class ExampleMeanAmpOptimWrapper(_ExampleMean, AmpOptimWrapper):
    """mmengine's AmpOptimWrapper (float16, a GPU) with gradients as a mean over examples.

    mmengine's own counts accumulation steps equally, however few examples one has.

    Raises:
        ValueError: there is no GPU, or none that mmengine knows.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
        except AssertionError as error:  # mmengine's words for a missing GPU
            raise ValueError(
                f'{type(self).__name__}: {error}. Fix: train on a GPU, or set '
                'optim_wrapper.type=BFloat16OptimWrapper, which runs on CPU too'
            ) from error
