"""Stop training at the first loss, gradient or weight that is NaN or infinite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.dist import all_gather_object, all_reduce, get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

from navit_backbone.conversion import summary

from .checkpoints import noted_checkpoint
from .dataset import file_of

_MIN_LOSS_SCALE = 1e-4  # a dynamic loss scale below it never recovers
_MOST_NAMED = 8
_BY_GRADIENTS = 'but its gradients are not finite'
_NEVER = torch.iinfo(torch.int64).max
# SciPy's words for predictions that are not finite, in the matching of DETR and its relatives
_MATCHING = ('invalid numeric entries', 'cost matrix is infeasible')


class DivergenceError(ValueError):
    """Values are NaN or infinite; the message names the step, its samples and fixes."""


class _Step(NamedTuple):
    """One training step, its values still on their device."""

    number: int  # counted from 1
    samples: tuple[str, ...]
    learning_rate: float
    losses: dict[str, Tensor]
    gradient_norm: Tensor | None  # where the optimizer stepped
    accumulated: tuple[str, ...]  # the samples that these gradients are of
    clipped_norm: float | None  # the norm before clipping, where the optimizer wrapper clips


@HOOKS.register_module()
class DivergenceHook(Hook):
    """Stops training with `DivergenceError` where a loss, a gradient or a weight is not finite.

    The error names the first such step, the samples of its batch, the loss terms, the learning
    rate, the gradient norm, and the last checkpoint, which is kept. A checkpoint with weights that
    are not finite is never saved, by no hook, and a model with such weights is not evaluated.

    On one CPU process every step is checked at once. Elsewhere the losses and the gradient norm of
    each step stay on their device, and are read every `interval` steps, and before every save and
    evaluation: one wait for the device, and one exchange between ranks, instead of one per step.

    A loss scaler (AmpOptimWrapper) skips steps with overflowing gradients, which is normal: with it
    gradients are not checked, but a scale below 1e-4 stops training too.
    """

    priority = 'VERY_HIGH'  # before any hook that saves

    def __init__(self, interval: int = 10) -> None:
        if interval < 1:
            raise ValueError(f'DivergenceHook: interval={interval} must be at least 1')
        self.interval = interval
        self._exempt: set[str] = set()  # masks of -inf and the like: not finite from the start
        self._steps: list[_Step] = []  # since the last check
        self._done = 0  # the last step
        self._norm: Tensor | None = None  # of the gradients of the step under way
        self._accumulated: tuple[str, ...] = ()  # samples since the last optimizer step
        self._handles: list[Any] = []

    def before_run(self, runner: Runner) -> None:
        self._exempt = set(nonfinite(_model(runner).state_dict()))

    def before_train(self, runner: Runner) -> None:
        self._steps, self._norm, self._accumulated = [], None, ()
        if not self._handles and not _scalers(runner):
            self._handles = [
                wrapper.optimizer.register_step_pre_hook(self._note_gradients)
                for wrapper in _wrappers(runner)
            ]
        loop = runner.train_loop
        if not hasattr(loop.run_iter, 'explains_divergence'):
            loop.run_iter = self._explained(loop.run_iter, runner)

    def _note_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = (p for group in optimizer.param_groups for p in group['params'])
        grads = [p.grad for p in parameters if p.grad is not None and not p.grad.is_sparse]
        if grads:
            norm = torch.nn.utils.get_total_norm(grads)
            self._norm = norm if self._norm is None else self._norm + norm

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        norm, self._norm, self._done = self._norm, None, runner.iter + 1
        names = tuple(sample_names(data_batch))
        self._accumulated += names
        self._steps.append(
            _Step(
                self._done,
                names,
                max(_rates(runner), default=math.nan),
                {k: v.detach() for k, v in (outputs or {}).items() if _is_loss(k, v)},
                norm,
                self._accumulated,
                _clipped_norm(runner),
            )
        )
        if norm is not None or not self._handles:
            self._accumulated = ()
        saves = any(
            isinstance(hook, CheckpointHook)
            and not hook.by_epoch
            and self.every_n_train_iters(runner, hook.interval)
            for hook in runner.hooks
        )
        at_once = get_world_size() == 1 and next(_model(runner).parameters()).device.type == 'cpu'
        if saves or at_once or self.every_n_train_iters(runner, self.interval):
            self._check(runner, weights=saves)

    def after_train_epoch(self, runner: Runner) -> None:
        self._check(runner, weights=True)

    def before_val(self, runner: Runner) -> None:
        self._check(runner, weights=True)

    def before_test(self, runner: Runner) -> None:
        self._check(runner, weights=True)

    def after_train(self, runner: Runner) -> None:
        self._check(runner, weights=True)
        while self._handles:
            self._handles.pop().remove()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Refuse what any hook saves at any other moment; only the main process comes here."""
        text = self._fault_of_steps(runner)[1]
        for key in ('state_dict', 'ema_state_dict'):
            text = text or self._fault_of_weights(runner, checkpoint.get(key, {}))
        if text:
            raise DivergenceError(_report(runner, text))

    def _check(self, runner: Runner, *, weights: bool) -> None:
        """Raise on all ranks where one of them has a value that is not finite."""
        number, text = self._fault_of_steps(runner)
        if weights and not text:
            text = self._fault_of_weights(runner, _model(runner).state_dict())
            number = self._done if text else _NEVER
        first = torch.tensor(number)
        all_reduce(first, 'min')
        if int(first) == _NEVER:
            self._steps.clear()
            return
        texts = [text for at, text in all_gather_object((number, text)) if at == int(first)]
        # one rank's loss spoils the gradients of all
        texts = [text for text in texts if _BY_GRADIENTS not in text] or texts
        raise DivergenceError(_report(runner, '; '.join(dict.fromkeys(texts))))

    def _fault_of_steps(self, runner: Runner) -> tuple[int, str]:
        """Return the first step since the last check that is not finite, and describe it."""
        values = [(step, value) for step in self._steps for value in _values(step)]
        if not values:
            return _NEVER, ''
        device = values[0][1].device
        finite = torch.stack([value.isfinite().all().to(device) for _, value in values])
        if not bool(finite.all()):
            step = values[finite.tolist().index(False)][0]
            return step.number, _describe(step, runner)
        for scaler in _scalers(runner):
            if scaler.get_scale() < _MIN_LOSS_SCALE:
                step = self._steps[-1]
                return step.number, (
                    f'{_describe(step, runner)}. The loss scale fell to {scaler.get_scale():.1e}: '
                    'gradients overflow at every scale'
                )
        return _NEVER, ''

    def _fault_of_weights(self, runner: Runner, state: Mapping[str, Any]) -> str:
        names = [key for key in nonfinite(state) if key.removeprefix('module.') not in self._exempt]
        if not names:
            return ''
        when = f'after step {max(self._done, runner.iter)}: ' if _trains(runner) else ''
        return f'{when}NaN or infinity in the weights {summary(names)}'

    def _explained(self, run_iter: Callable[..., Any], runner: Runner) -> Callable[..., Any]:
        """Wrap a training step: errors that NaN causes in it become `DivergenceError`."""

        @wraps(run_iter)
        def run_or_explain(*args: Any) -> Any:
            try:
                return run_iter(*args)
            except DivergenceError:
                raise
            except (ValueError, LookupError, AssertionError, ArithmeticError) as error:
                text = self._fault_of_steps(runner)[1]
                text = text or self._fault_of_weights(runner, _model(runner).state_dict())
                if not text and any(sign in str(error) for sign in _MATCHING):
                    names = _listed(sample_names(args[-1]))
                    text = f'at step {runner.iter + 1}: predictions are NaN or infinite ({names})'
                if not text:
                    raise
                raise DivergenceError(_report(runner, text)) from error

        run_or_explain.explains_divergence = True  # type: ignore[attr-defined]
        return run_or_explain


def nonfinite(tensors: Mapping[str, Any]) -> list[str]:
    """Return the names of the floating tensors that hold NaN or infinity."""
    flags: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for name, item in tensors.items():
        if isinstance(item, Tensor) and item.is_floating_point():
            flags.setdefault(item.device, []).append((name, item.isfinite().all()))
    names: list[str] = []
    for found in flags.values():  # one wait for each device
        whole = torch.stack([flag for _, flag in found]).tolist()
        names += [name for (name, _), finite in zip(found, whole, strict=True) if not finite]
    return names


def sample_names(data_batch: Any) -> Iterator[str]:
    """Yield the file of each sample of a batch, as the loader gives it."""
    samples = data_batch.get('data_samples', ()) if isinstance(data_batch, dict) else ()
    if isinstance(samples, dict):  # a list for each branch of a semi-supervised model
        samples = [item for part in samples.values() for item in part]
    for sample in samples if isinstance(samples, Sequence) else ():
        info = getattr(sample, 'metainfo', None)
        if isinstance(info, dict):
            yield file_of(info)


def _values(step: _Step) -> list[Tensor]:
    """Return the values that have to be finite, losses first."""
    norms = [] if step.gradient_norm is None else [step.gradient_norm]
    return [*step.losses.values(), *norms]


def _describe(step: _Step, runner: Runner) -> str:
    """Say which values of a step are not finite, and in which batch."""
    losses = {name: float(value) for name, value in step.losses.items()}
    bad = {name: value for name, value in losses.items() if not math.isfinite(value)}
    terms = {name: value for name, value in bad.items() if name != 'loss'} or bad
    samples = step.samples if terms else step.accumulated
    if terms:
        what = ', '.join(f'{name} is {value}' for name, value in terms.items())
    else:
        what = f'the loss is {losses.get("loss", math.nan):.4g}, {_BY_GRADIENTS}'
    norm = step.clipped_norm
    if norm is None and step.gradient_norm is not None:
        norm = float(step.gradient_norm)
    shown = 'not measured' if norm is None else f'{norm:.4g}'
    return (
        f'at step {step.number} of {runner.max_iters}: {what}. Learning rate '
        f'{step.learning_rate:.3g}, gradient norm {shown}, batch: {_listed(samples)}'
    )


def _report(runner: Runner, text: str) -> str:
    """Complete a description with the last checkpoint and with fixes."""
    if not _trains(runner):
        return f'this model cannot be evaluated: {text}; give an earlier checkpoint'
    last = noted_checkpoint(Path(runner.work_dir))
    start = f'load_from={last} ' if last else ''
    kept = f'The last good checkpoint is {last}' if last else 'No checkpoint was saved before it'
    rate = max(_rates(runner), default=0.0) / 10
    changes = f'{start}optim_wrapper.optimizer.lr={rate:.3g}'
    fixes = [
        'a lower learning rate or a longer warm-up, from good weights (--cfg-options '
        f'{changes}; --resume would restore the old rate)'
    ]
    if not all(getattr(wrapper, 'clip_grad_kwargs', None) for wrapper in _wrappers(runner)):
        fixes.append('optim_wrapper.clip_grad=dict(max_norm=1.0)')
    if any('float16' in type(w).__name__.lower() for w in _wrappers(runner)) or _scalers(runner):
        fixes.append('training without --amp')
    fixes.append('a look at these samples and their labels (tools/browse.py)')
    return f'training diverged {text}. {kept}. Try: {"; ".join(fixes)}'


def _listed(names: Sequence[str] | Iterator[str]) -> str:
    names = list(names)
    more = len(names) - _MOST_NAMED
    shown = ', '.join(names[:_MOST_NAMED]) or 'of unnamed samples'
    return f'{shown} and {more} more' if more > 0 else shown


def _is_loss(name: str, value: Any) -> bool:
    return 'loss' in name and isinstance(value, Tensor) and value.numel() == 1


def _model(runner: Runner) -> nn.Module:
    model: nn.Module = runner.model
    return model.module if is_model_wrapper(model) else model


def _trains(runner: Runner) -> bool:
    return isinstance(runner._train_loop, BaseLoop)


def _wrappers(runner: Runner) -> list[OptimWrapper]:
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict):
        return list(wrapper.values())
    return [wrapper] if isinstance(wrapper, OptimWrapper) else []


def _rates(runner: Runner) -> list[float]:
    """Return the learning rate of every group of parameters."""
    groups = (group for part in _wrappers(runner) for group in part.optimizer.param_groups)
    return [float(group['lr']) for group in groups]


def _clipped_norm(runner: Runner) -> float | None:
    """Return the gradient norm before clipping, which mmengine's wrappers log."""
    logged = runner.message_hub.log_scalars.get('train/grad_norm')
    return None if logged is None else float(logged.current())


def _scalers(runner: Runner) -> list[Any]:
    """Return the loss scalers that choose their scale themselves."""
    return [
        wrapper.loss_scaler
        for wrapper in _wrappers(runner)
        if getattr(wrapper, 'loss_scaler', None) is not None
        and getattr(wrapper, '_scale_update_param', None) is None
    ]
