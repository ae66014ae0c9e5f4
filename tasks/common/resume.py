"""Training that goes on after a stop as if there had been none: the same batches and losses."""

from __future__ import annotations

import math
import signal
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_rank, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.optim import OptimWrapperDict
from mmengine.registry import HOOKS, LOOPS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from .checkpoints import INTERRUPTED, note_last, remove_leftovers
from .data_place import (
    changes_of_run,
    facts_of_run,
    pass_under_way,
    place_of,
    sampler_state,
    set_epoch,
    skip,
    unseeded,
)
from .generators import generator_states, restore_generators
from .loaded_weights import source_of
from .stop_signal import HeedParentOnly, StopRequest

_KEY = 'exact_resume'  # of all this in a checkpoint
_FIELDS = {'run', 'pass', 'num_consumed', 'validated', 'sampler', 'ranks'}


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """mmengine's loop by epochs, in which the batches of a resumed epoch keep their numbers.

    With mmengine's the same is trained, but the log and whatever goes by `batch_idx` count from 0.
    """

    first_batch = 0  # of the epoch under way: ExactCheckpointHook sets it

    def run_iter(self, idx: int, data_batch: Any) -> None:
        super().run_iter(self.first_batch + idx, data_batch)


@HOOKS.register_module()
class ExactCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, whose checkpoints are whole and are gone on from exactly.

    It takes the same arguments, in `default_hooks.checkpoint`; with `by_epoch=False` it saves in
    the middle of epochs. Besides mmengine's a checkpoint holds how many batches of the epoch were
    trained on, the sampler's state, and the states of every rank's generators. To go on, batches
    are skipped in the sampler (`SeededSampler`, `TokenBudgetBatchSampler`), without loading.

    A checkpoint that falls between two steps of one gradient accumulation waits for its end. A
    validation that the stop cut off is done first. On SIGTERM and Ctrl-C the step is finished,
    a checkpoint saved, and the process ends with code 143 or 130; a second one ends it at once.
    """

    def __init__(self, **kwargs: Any) -> None:
        remote = [k for k in ('backend_args', 'file_client_args') if kwargs.get(k) is not None]
        if remote or '://' in str(kwargs.get('out_dir')):
            raise ValueError(
                f'ExactCheckpointHook writes to folders of this machine, not by '
                f'{", ".join(remote) or kwargs["out_dir"]}: leave it out, or use CheckpointHook'
            )
        super().__init__(**kwargs, backend_args=dict(backend='whole_files'))
        self._resumed: dict[str, Any] | None = None  # a checkpoint's state until it is in place
        self._state: dict[str, Any] | None = None  # what the checkpoint being written will hold
        self._late: int | None = None  # number of a checkpoint that waits for its gradients
        self._num_consumed = 0  # batches of the pass over the data under way
        self._validated = False  # what was trained so far
        self._stop = StopRequest()

    # ----------------------------------------------------------------------------------------------
    # Saving

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._num_consumed = self._num_consumed % len(runner.train_dataloader) + 1
        self._validated = False
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if _amid_accumulation(runner):
            return
        meta = dict(epoch=runner.epoch, iter=runner.iter + 1)
        if self._late is not None:
            self._save_checkpoint_with_step(runner, self._late, meta)
        if number := self._stop.agreed(runner.iter + 1):
            self._write(runner, INTERRUPTED, meta)
            runner.logger.warning(
                f'{signal.Signals(number).name}: stopped after step {runner.iter + 1} of '
                f'{runner.max_iters}, saved as {self.last_ckpt}; go on with --resume'
            )
            self._stop.ignore()
            raise SystemExit(128 + number)

    def after_train_epoch(self, runner: Runner) -> None:
        self._num_consumed = 0
        super().after_train_epoch(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        self._validated = True
        super().after_val_epoch(runner, metrics)

    def after_train(self, runner: Runner) -> None:
        self._stop.ignore()
        if self._late is not None:  # training was ended early: no step will use the gradients
            name = self.filename_tmpl.format(self._late)
            self._write(runner, name, dict(epoch=runner.epoch, iter=runner.iter))
        super().after_train(runner)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, float]) -> None:
        """Save the model where a metric is the best so far; NaN and infinity never are."""
        if not self.save_best:
            return
        lost = {k: v for k, v in metrics.items() if isinstance(v, Real) and not math.isfinite(v)}
        judged = {next(iter(metrics)) if key == 'auto' else key for key in self.key_indicators}
        for key in lost.keys() & judged:
            runner.logger.warning(f'{key} is {lost[key]}: this evaluation counts for no best model')
        super()._save_best_checkpoint(runner, {**metrics, **dict.fromkeys(lost)})  # None is skipped
        self.file_backend.remove_outdated()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        """Save checkpoint number `step`, and only then remove those that it outdates."""
        if _amid_accumulation(runner):
            self._late = step
            return
        self._late = None
        outdated = [INTERRUPTED]
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated.append(self.filename_tmpl.format(self.keep_ckpt_ids.popleft()))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self._write(runner, self.filename_tmpl.format(step), meta)
        if is_main_process():
            for name in outdated:
                Path(self.out_dir, name).unlink(missing_ok=True)

    def _write(self, runner: Runner, name: str, meta: dict[str, Any]) -> None:
        """Save a checkpoint to go on from, and note it as the latest."""
        self.last_ckpt = str(Path(self.out_dir, name))
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        self._state = {
            'run': facts_of_run(runner),
            'pass': pass_under_way(runner.train_loop),
            'num_consumed': self._num_consumed,
            'validated': self._validated,
            'sampler': sampler_state(runner.train_dataloader),
            'ranks': all_gather_object(generator_states()),
        }
        runner.save_checkpoint(
            self.out_dir,
            name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            backend_args=self.backend_args,
            **self.args,
        )
        self._state = None
        if is_main_process():
            note_last(Path(runner.work_dir), Path(self.last_ckpt))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if self._state is not None:
            checkpoint[_KEY] = self._state

    # ----------------------------------------------------------------------------------------------
    # Going on

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that cannot be gone on from, before any of it is in place."""
        if not (runner._resume and isinstance(runner._train_loop, BaseLoop)):
            return
        name = source_of(checkpoint.get('state_dict'), runner)
        self._resumed = checkpoint.get(_KEY)
        if self._resumed is None:
            runner.logger.warning(
                f'{name} holds neither the place in the data nor the generators (it is not of '
                'ExactCheckpointHook): training goes on from it, but not as it would have'
            )
            return
        if not isinstance(self._resumed, dict) or not set(self._resumed) >= _FIELDS:
            raise ValueError(f'{name} is damaged: its {_KEY} has to hold {", ".join(_FIELDS)}')
        changes = changes_of_run(self._resumed['run'], runner)
        if changes and self._resumed['num_consumed']:
            raise ValueError(
                f'{name} was saved in the middle of an epoch, of a run with {changes}. What is '
                'left of an epoch can only be trained on unchanged: resume as it was, or from a '
                'checkpoint between two epochs, or start anew from its weights (load_from)'
            )
        _refuse_unskippable(self._resumed, runner, name)
        if changes:
            self._resumed = None
            runner.logger.warning(
                f'{name} is of a run with {changes}: training goes on at the start of an epoch, '
                'but with another order of samples and other random draws than it would have had'
            )
        elif self._resumed['sampler'] is not None:
            place_of(runner.train_dataloader).load_state_dict(self._resumed['sampler'])

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if is_main_process():
            self.file_backend.remove_outdated()
            for folder in {Path(self.out_dir), Path(runner.work_dir)}:
                remove_leftovers(folder)
        self._stop.listen()
        for loader in _loaders(runner):
            if loader.generator is None:  # else each new iterator draws from the global one
                loader.generator = torch.Generator().manual_seed(runner.seed)
            loader.worker_init_fn = HeedParentOnly(loader.worker_init_fn)
        if self._resumed is not None:
            self._put_back(runner, self._resumed)
        if runner._resume and (remark := _finished_remark(runner.train_loop)):
            runner.logger.warning(f'{runner._load_from or runner.work_dir}: {remark}')

    def before_train_epoch(self, runner: Runner) -> None:
        loop, state, self._resumed = runner.train_loop, self._resumed, None
        self._num_consumed = state['num_consumed'] if state else 0
        if isinstance(loop, ResumableEpochLoop):
            loop.first_batch = self._num_consumed
        if state and state['sampler'] is not None:
            set_epoch(loop.dataloader, pass_under_way(loop))
            skip(loop.dataloader, self._num_consumed)

    def _put_back(self, runner: Runner, state: dict[str, Any]) -> None:
        """The place in the data, the generators, and a validation that was cut off."""
        loop, self._num_consumed = runner.train_loop, state['num_consumed']
        runner.logger.info(
            f'going on after step {loop.iter}: batch {self._num_consumed + 1} of the '
            f'{len(loop.dataloader)} of a pass over the data'
        )
        for part in unseeded(loop.dataloader.dataset):
            runner.logger.warning(
                f'{type(part).__name__} draws from the generators of its workers, which begin '
                'anew: same samples, other augmentations. SeededSamples mends it'
            )
        if state['sampler'] is not None and isinstance(loop, IterBasedTrainLoop):
            loop.dataloader_iterator._epoch = state['pass']
            loop.fast_forward_on_resume = True  # leave out mmengine's replay of all batches
        restore_generators(state['ranks'][get_rank()])
        self.last_ckpt = runner.message_hub.get_info('last_ckpt')  # a better score saves it again
        if not state['validated'] and _validation_due(loop, self._num_consumed):
            runner.logger.info('the validation that was cut off comes first')
            runner.val_loop.run()


def _finished_remark(loop: BaseLoop) -> str:
    """Describe that a resumed training is at its end already, and what to raise; or ''."""
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    done, end = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
    if done < end:
        return ''
    unit, key = ('epochs', 'max_epochs') if by_epoch else ('steps', 'max_iters')
    return (
        f'nothing is left to train: the checkpoint is of {done:,} {unit}, and train_cfg.{key} is '
        f'{end}. Fix: to train on, raise it, as --cfg-options train_cfg.{key}={2 * done}'
    )


def _amid_accumulation(runner: Runner) -> bool:
    """Whether there are gradients that no step has used yet; no checkpoint holds them."""
    wrapper = runner.optim_wrapper
    parts = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    return not all(part.should_update() for part in parts)


def _refuse_unskippable(state: dict[str, Any], runner: Runner, name: str) -> None:
    """Raise where batches of an epoch have to be skipped and nothing can do it.

    mmengine's loop by iterations then loads them all again.
    """
    amid = state['num_consumed'] and isinstance(runner.train_loop, EpochBasedTrainLoop)
    if amid and (state['sampler'] is None or place_of(runner.train_dataloader) is None):
        raise ValueError(
            f'{name} was saved in the middle of an epoch, and the sampler of train_dataloader '
            "cannot skip to it: use sampler=dict(type='SeededSampler'), and save between epochs "
            '(by_epoch=True) where it must be another'
        )


def _loaders(runner: Runner) -> list[DataLoader]:
    loops = (runner.train_loop, runner.val_loop)
    return [loop.dataloader for loop in loops if loop is not None]


def _validation_due(loop: BaseLoop, num_consumed: int) -> bool:
    """Whether the loop would validate at this place before it trains on."""
    if loop.runner.val_loop is None:
        return False
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    done, end = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
    if by_epoch and num_consumed:
        return False
    loop._decide_current_val_interval()
    return done >= max(loop.val_begin, 1) and (done % loop.val_interval == 0 or done == end)
