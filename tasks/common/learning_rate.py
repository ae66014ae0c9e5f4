"""Learning rates that follow a step's pictures (--auto-scale-lr) and the training's length.

And how many steps a training is, which decides whether they ever get to their height.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmengine.config import Config, ConfigDict
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.optim.scheduler.param_scheduler import LinearParamScheduler
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils.data import DataLoader


def take_base_batch_size(cfg: Config, *, wanted: bool) -> int | None:
    """The images a step that the config's learning rate is meant for; None: do not scale.

    Scaling is on where `wanted`, or by mmengine's own switch, which is turned off: it counts
    neither accumulated gradients nor batches of many sizes.
    """
    settings = cfg.get('auto_scale_lr') or {}
    wanted = wanted or bool(settings.get('enable'))
    if settings:
        settings['enable'] = False
    if not wanted:
        return None
    base = settings.get('base_batch_size')
    if not isinstance(base, int) or base < 1:
        raise ValueError(
            f'scaling the learning rate needs auto_scale_lr.base_batch_size, which is {base}: add '
            'auto_scale_lr = dict(base_batch_size=N) to the config, with the N images a step that '
            'its learning rate is meant for'
        )
    return base


def scale_learning_rate(runner: Runner, base_batch_size: int) -> None:
    """Multiply the learning rates by the mean images a step over `base_batch_size`; say so.

    A step is what comes between two updates of the weights: the batches of all ranks, and of as
    many iterations as gradients are accumulated over. To be called before `runner.train()`.
    """
    wrapper = runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    batch, ranks = mean_batch_size(runner.train_dataloader), get_world_size()
    accumulated: int = wrapper._accumulative_counts
    images = batch * ranks * accumulated
    factor = images / base_batch_size
    for group in wrapper.optimizer.param_groups:
        group['lr'] *= factor
    runner.logger.info(
        f'learning rate x {factor:.4g}: {images:.4g} images a step (batches of {batch:.4g} x '
        f'{ranks} ranks x {accumulated} accumulated), and it is meant for {base_batch_size}'
    )


def mean_batch_size(loader: DataLoader) -> float:
    """The mean pictures of a batch of one rank; batches by token budget vary."""
    sampler = loader.batch_sampler
    return float(getattr(sampler, 'mean_batch_size', sampler.batch_size))


Length = tuple[int, int]  # epochs, and steps where an epoch has a stated number of them, else 0


def length_of(cfg: Config) -> Length | None:
    """How long a config trains; None where it does not count epochs."""
    epochs = (cfg.get('train_cfg') or {}).get('max_epochs')
    sampler = (cfg.get('train_dataloader') or {}).get('batch_sampler') or {}
    steps = sampler.get('steps_per_epoch') or 0
    if not isinstance(epochs, int) or not isinstance(steps, int) or epochs < 1:
        return None
    return epochs, epochs * steps


def follow_length(cfg: Config, before: Length | None) -> Iterator[str]:
    """Let schedules that were meant for another length end with the training; say which.

    What ended with the training ends with it again, and milestones keep their share of it.
    """
    after, schedules = length_of(cfg), cfg.get('param_scheduler') or []
    if before is None or after in (None, before):
        return
    for number, schedule in enumerate([schedules] if 'type' in schedules else schedules):
        changes = dict(_followed(schedule, before, after))
        for key, value in changes.items():
            yield f'param_scheduler.{number}.{key}: {schedule[key]} -> {value}'
        schedule.update(changes)


def _followed(schedule: ConfigDict, before: Length, after: Length) -> Iterator[tuple[str, object]]:
    by_epoch = schedule.get('by_epoch', True)
    old, new = (before[0], after[0]) if by_epoch else (before[1], after[1])
    for key in ('end', 'T_max'):
        if old and new and schedule.get(key) == old != new:
            yield key, new
    if old and new:
        share = new / old
    else:  # by iterations, of which nobody knows how many there are
        share = after[0] / before[0]
    if 'milestones' in schedule and share != 1:
        yield 'milestones', [max(1, round(share * place)) for place in schedule.milestones]


@HOOKS.register_module()
class WarmupCheckHook(Hook):
    """Says how many steps a training takes, and warns where most of them only warm up."""

    def before_train(self, runner: Runner) -> None:
        total, steps = runner.max_iters, len(runner.train_dataloader)
        runner.logger.info(f'{total} steps in all, {steps} in a pass of the loader')
        for number, schedule in enumerate(schedules_of(runner)):
            if not isinstance(schedule, LinearParamScheduler):
                continue
            rises = schedule.start_factor < schedule.end_factor
            warmup = schedule.end * (steps if schedule.by_epoch else 1)
            if rises and warmup > total / 2:
                runner.logger.warning(
                    f'the learning rate warms up for {warmup} of the {total} steps of this '
                    'training, and is at its full height for few or none: train for longer '
                    f'(train_cfg.max_epochs), or shorten the warm-up (param_scheduler.{number}.end)'
                )


def schedules_of(runner: Runner) -> Iterator[object]:
    """All schedules of a runner; those of several optimizers one after the other."""
    found = runner.param_schedulers
    for group in found.values() if isinstance(found, dict) else [found]:
        yield from group
