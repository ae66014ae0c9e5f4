"""Batches by tokens instead of by examples, or of like shape, and the endless stream behind them.

train_dataloader = dict(
    batch_size=32,  # the most examples of a batch
    sampler=dict(type='SeededSampler', shuffle=True),
    batch_sampler=dict(type='TokenBudgetBatchSampler', max_tokens=16384, pad_size_divisor=32),
    ...)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from navit_backbone.packer import Packer

from .balance import Row, balanced
from .canvas_packer import CanvasPacker
from .counts import require_count
from .resize import Size, find_planner
from .sample import SampleIndex
from .sampling import SeededSampler
from .wrappers import locate, planned_parts

_MOST_TOKENS = 2**24  # of a batch: the packer keeps a bit for each token and place in a row
_SURVEYED = 4096  # examples that the mean of a batch is taken from: 0.2 s, and 1 or 2 % exact


class RowStream:
    """The rows of all passes over the data, one after the other, without an end.

    A pass is one epoch of the `SeededSampler`: each example once. A row names its examples by
    (pass, index). Rows depend on the seed, the data and the packer's limits, not on the ranks.
    """

    def __init__(
        self,
        sampler: SeededSampler,
        packer: Packer[tuple[int, int]] | CanvasPacker[tuple[int, int]],
        *,
        seed: int | None = None,
    ) -> None:
        self.sampler = sampler
        self.packer = packer
        self.seed = sampler.seed if seed is None else seed
        self.current_pass = 0
        self.position = 0  # in the current pass
        self._order = sampler.order(0, seed=self.seed)

    def __next__(self) -> Row:
        while True:
            key = self._next_example()
            part, index = locate(self.sampler.dataset, self.sample_index(key))
            example: Any = (key, part.num_tokens(index))
            if isinstance(self.packer, CanvasPacker):
                example = (*example, part.target_size(index) or square_of(part))
            if row := self.packer.push(*example):
                return row

    @property
    def num_drawn(self) -> int:
        """Examples that have left or wait."""
        return self.current_pass * len(self._order) + self.position

    def _next_example(self) -> tuple[int, int]:
        if self.position == len(self._order):
            self._start(self.current_pass + 1, 0)
        self.position += 1
        return self.current_pass, self._order[self.position - 1]

    def _start(self, current_pass: int, position: int) -> None:
        self.current_pass, self.position = current_pass, position
        self._order = self.sampler.order(current_pass, seed=self.seed)

    def sample_index(self, key: tuple[int, int]) -> SampleIndex:
        """What the data set is asked for: the seed's epoch is the pass."""
        return self.sampler.sample_index(*key, seed=self.seed)

    def state_dict(self) -> dict[str, Any]:
        """What it takes to go on with the same rows: plain numbers and lists."""
        return {
            'pass': self.current_pass,
            'position': self.position,
            'packer': self.packer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        self.packer.load_state_dict(state['packer'])
        self._start(state['pass'], state['position'])


@DATA_SAMPLERS.register_module()
class TokenBudgetBatchSampler(Sampler[list[SampleIndex]]):
    """Batches of at most `max_tokens` tokens and `batch_size` examples, one for each rank a step.

    Where a neck and a head compute the whole canvas of a batch, `pad_size_divisor`, that of the
    data preprocessor, lets images of like shape share a batch: of the batches that a pool of
    waiting images has within 2 % of `max_tokens`, that one leaves whose images cover the largest
    share of the canvas (`CanvasPacker`). Then `max_tokens` may be left out, and every batch has
    `batch_size` images. What randomness this costs: the sizes within a batch are correlated; which
    images of a size meet, and in which order, stays random.

    All ranks follow the same stream of rows, of which a step takes one for each rank. So what is
    seen, in order, is the same on any number of ranks, but for exchanges within a step that even
    out the cost of attention. An example comes once in each pass over the data.

    An epoch has `steps_per_epoch` steps, by default as many as a pass takes on average, and what it
    does not reach opens the next: passes and epochs need not agree. An epoch is a function of its
    number, so that `set_epoch` leads anywhere; on the way there only sizes are planned.

    The tokens of a sample are what the transform in the data set's pipeline plans for it
    (`SizePlanner`), by its size: that of the annotations, or else of a scan of the files.
    """

    def __init__(
        self,
        sampler: SeededSampler,
        batch_size: int,
        *,
        max_tokens: int | None = None,
        pad_size_divisor: int | None = None,
        steps_per_epoch: int | None = None,
        pool_size: int | None = None,
    ) -> None:
        if not isinstance(sampler, SeededSampler):
            raise ValueError(
                f"TokenBudgetBatchSampler needs sampler=dict(type='SeededSampler'), whose seeds "
                f'decide the sizes, not {type(sampler).__name__}'
            )
        require_count('batch_size', batch_size)
        at_least_1 = {
            'max_tokens': max_tokens,
            'pad_size_divisor': pad_size_divisor,
            'steps_per_epoch': steps_per_epoch,
            'pool_size': pool_size,
        }
        for name, value in at_least_1.items():
            if value is not None:
                require_count(name, value)
        if max_tokens is not None and max_tokens > _MOST_TOKENS:
            raise ValueError(
                f'max_tokens={max_tokens} is above {_MOST_TOKENS}, more than a batch ever has. '
                'Fix: set batch_size times max_tokens of the pipeline, with which batch_size '
                'alone limits a batch'
            )
        if max_tokens is None and pad_size_divisor is None:
            raise ValueError(
                'TokenBudgetBatchSampler needs max_tokens, the tokens of a batch, or '
                'pad_size_divisor (32), with which batches of batch_size images of like shape are '
                'chosen, or both'
            )
        _prepare(sampler.dataset, max_tokens)
        self.sampler = sampler
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self.pad_size_divisor = pad_size_divisor
        # it has to hold the largest row, and small data are not to wait for many passes; with 16
        # batches to choose from a canvas is covered nearly as well as with any more
        wanted = max(64, batch_size if pad_size_divisor is None else 16 * batch_size)
        self.pool_size = pool_size or min(wanted, len(sampler.dataset))
        # tokens that a batch may lack: without any, few rows would cover their canvas, or could
        # exchange examples
        self.slack = (max_tokens or 0) // (256 if pad_size_divisor is None else 50)
        self.steps_per_epoch = steps_per_epoch or self._steps_of_a_pass()
        self._starts: dict[int, dict[str, Any]] = {}  # state of the stream by epoch
        self._skipped = 0
        most = '' if max_tokens is None else f'{max_tokens} tokens and '
        print_log(
            f'TokenBudgetBatchSampler: {self.steps_per_epoch} steps an epoch, each with '
            f'{sampler.world_size} batch(es) of at most {most}{batch_size} examples; about '
            f'{self.mean_batch_size:.1f} examples a batch, '
            f'{self._steps_of_a_pass()} steps a pass over the {len(sampler.dataset)}',
            logger='current',
        )

    def __len__(self) -> int:
        return self.steps_per_epoch

    @cached_property
    def mean_batch_size(self) -> float:
        """The mean examples of a batch: a function of the data and the limits alone."""
        if self.max_tokens is None:
            return min(self.batch_size, self.pool_size)
        stream, sizes = self._stream(seed=0), []
        for surveyed in (_SURVEYED // 4, _SURVEYED):  # the first rows leave the large ones waiting
            sizes = [len(next(stream))]
            while stream.num_drawn < surveyed:
                sizes.append(len(next(stream)))
        return sum(sizes) / len(sizes)

    def _steps_of_a_pass(self) -> int:
        examples_a_step = self.mean_batch_size * self.sampler.world_size
        return max(1, round(self.sampler.num_draws / examples_a_step))

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next iteration, which the sampler keeps; mmengine tells that one."""
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        # begins with the first batch: a DataLoader with workers asks twice, and uses the second
        epoch, skipped, self._skipped = self.sampler.epoch, self._skipped, 0
        stream = self._stream_at(epoch)
        ranks = range(self.sampler.world_size)
        for step in range(self.steps_per_epoch):
            rows = [next(stream) for _ in ranks]
            if step >= skipped:
                limits = dict(budget=self.max_tokens, max_examples=self.batch_size)
                row = balanced(rows, slack=self.slack, **limits)[self.sampler.rank]
                yield [stream.sample_index(key) for key, *_ in row]
        self._starts[epoch + 1] = stream.state_dict()

    def _stream(self, *, seed: int | None = None) -> RowStream:
        limits = dict(pool_size=self.pool_size, max_examples=self.batch_size, slack=self.slack)
        packer: Any
        if self.pad_size_divisor is None:
            packer = Packer(self.max_tokens, **limits)
        else:
            packer = CanvasPacker(self.max_tokens, divisor=self.pad_size_divisor, **limits)
        return RowStream(self.sampler, packer, seed=seed)

    def _stream_at(self, epoch: int) -> RowStream:
        """The stream at the start of an epoch, from the nearest start known."""
        stream = self._stream()
        known = max((start for start in self._starts if start <= epoch), default=0)
        if known in self._starts:
            stream.load_state_dict(self._starts[known])
        for _ in range((epoch - known) * self.steps_per_epoch * self.sampler.world_size):
            next(stream)
        self._starts = {k: state for k, state in self._starts.items() if k > epoch}
        self._starts[epoch] = stream.state_dict()
        return stream

    # ----------------------------------------------------------------------------------------------
    # Resuming

    def state_dict(self) -> dict[str, Any]:
        """What it takes to issue the epoch under way again, from its start, on any ranks."""
        stream = self._stream_at(self.sampler.epoch)
        return {'sampler': self.sampler.state_dict(), 'stream': stream.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the saved seed and epoch; refuses the state of other data or limits."""
        if set(state) != {'sampler', 'stream'}:
            raise ValueError(
                f'the saved batch sampler has the fields {sorted(state)}, not sampler and stream: '
                'the state is damaged or of another sampler'
            )
        self.sampler.load_state_dict(state['sampler'])
        self._stream().load_state_dict(state['stream'])
        self._starts = {self.sampler.epoch: state['stream']}

    def skip_batches(self, num: int) -> None:
        """Leave out the first `num` batches of the next iteration, and load nothing for them."""
        if not 0 <= num <= len(self):
            raise ValueError(f'cannot skip {num} of the {len(self)} batches of an epoch')
        self._skipped = num


def square_of(part: Any) -> Size:
    """Return the (height, width) assumed for a sample of unknown size: a square of most tokens."""
    planner = find_planner(getattr(part.pipeline, 'transforms', part.pipeline))
    side = math.ceil(math.sqrt(part.max_tokens)) * planner.patch_size
    return side, side


def _prepare(dataset: Any, max_tokens: int | None) -> None:
    """Refuse data whose samples may not fit a batch; read the sizes that annotations lack."""
    for part in planned_parts(dataset):
        most = part.max_tokens
        if most is None:
            raise ValueError(
                f'the pipeline of {type(part).__name__} has no transform that plans tokens: put '
                "dict(type='ResizeToTokenBudget', max_tokens=...) in the place of Resize"
            )
        if max_tokens is not None and most > max_tokens:
            raise ValueError(
                f'a sample of {type(part).__name__} may have {most} tokens, but a batch at most '
                f'{max_tokens}: lower max_tokens in its pipeline, or raise that of '
                f'TokenBudgetBatchSampler to at least {most}'
            )
        part.complete_sizes()
