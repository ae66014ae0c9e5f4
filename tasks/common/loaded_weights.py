"""Whether a checkpoint fits a whole model: mmengine loads what fits and only logs the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import BaseLoop, Runner, find_latest_checkpoint
from torch import Tensor, nn

from navit_backbone.conversion import refuse_nan, summary
from navit_backbone.vit import EXTRA

from .classes import classes_in, set_num_classes
from .pretrained import fill_from_state

_APART = ('num_batches_tracked', EXTRA)  # no weights
_RULE = {'betas', 'momentum', 'alpha', 'rho'}  # of these an optimizer has its own


@HOOKS.register_module()
class LoadedWeightsHook(Hook):
    """Refuses a checkpoint that does not fit the model, heads included, before it is loaded.

    To test, validate or resume, every tensor must be there in its shape. Training that starts from
    other weights (`load_from`) may bring parts of its own, as a head for other classes: they are
    listed, and `min_share` of the model's values must be loaded.
    """

    priority = 'VERY_HIGH'

    def __init__(self, min_share: float = 0.5) -> None:
        self.min_share = min_share

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model = getattr(model, 'module', model)  # of test-time augmentation
        trains = isinstance(runner._train_loop, BaseLoop) and not runner._resume
        min_share = self.min_share if trains else 1.0
        state = checkpoint.get('state_dict', checkpoint)
        name = source_of(state, runner)
        try:
            check_fit(model, state, name, min_share)
        except ValueError as error:
            meta = checkpoint.get('meta')
            trained = classes_in(meta.get('dataset_meta') if isinstance(meta, dict) else None)
            if trained:
                raise ValueError(f'{error}. It was trained on {", ".join(trained)}') from error
            raise
        if runner._resume:
            _check_resumable(runner, checkpoint, name)


def source_of(state: Any, runner: Runner) -> str:
    """The file of a state dict. Our reader noted it; the runner knows none where it searches."""
    noted = getattr(getattr(state, '_metadata', None), 'file', None)
    return str(noted or runner._load_from or find_latest_checkpoint(runner.work_dir))


def _check_resumable(runner: Runner, checkpoint: Mapping[str, Any], name: str) -> None:
    meta = checkpoint.get('meta')
    known = set(meta) if isinstance(meta, dict) else set()
    if not {'epoch', 'iter'} <= known or not isinstance(checkpoint.get('message_hub'), dict):
        raise ValueError(
            f'{name} holds weights but not how far training had come: resume from a checkpoint '
            'that tools/train.py saved, or start anew from these weights with load_from'
        )
    if 'optimizer' not in checkpoint:
        raise ValueError(
            f'{name} holds no state of the optimizer, as those of the best weights do not: resume '
            'from epoch_N.pth or iter_N.pth, or start anew from these weights with load_from'
        )
    for kind, saved, now in _shapes_of_training(runner, checkpoint):
        if saved != now:
            raise ValueError(
                f'{name} is of a training with {kind} {saved}, this config has {now}: resume with '
                'the config of that training, or start anew from its weights with load_from'
            )


def _shapes_of_training(
    runner: Runner, checkpoint: Mapping[str, Any]
) -> Iterator[tuple[str, object, object]]:
    """What has to agree of the optimizer and the schedules: its name, as saved, as it is now."""
    wrapper, schedules = runner.optim_wrapper, checkpoint.get('param_schedulers')
    if isinstance(wrapper, OptimWrapper) and not isinstance(wrapper, OptimWrapperDict):
        groups = checkpoint['optimizer']['param_groups'], wrapper.optimizer.param_groups
        yield 'an optimizer with', *(', '.join(sorted(_RULE & part[0].keys())) for part in groups)
        sizes = ([len(group['params']) for group in part] for part in groups)
        yield 'groups of parameters', *(f'{len(part)} ({sum(part)} tensors)' for part in sizes)
    if schedules is not None:
        yield 'schedules (param_scheduler)', len(schedules), len(runner.param_schedulers or [])


def check_fit(
    model: nn.Module, state: Mapping[str, Any], name: object, min_share: float = 1.0
) -> None:
    """Raise unless at least `min_share` of the model's values are in `state`, in their shapes.

    Those that are there must be finite, where the model's own are.
    """
    wanted = {k: t for k, t in model.state_dict().items() if not k.endswith(_APART)}
    given = {key.removeprefix('module.'): item for key, item in state.items()}
    missing = [key for key in wanted if key not in given]
    bent = [key for key in wanted if key in given and _shape(given[key]) != wanted[key].shape]
    total = sum(t.numel() for t in wanted.values())
    lost = sum(wanted[key].numel() for key in (*missing, *bent))
    if lost and 1 - lost / total < max(min_share, 1e-9):
        shapes = [f'{k} {_shape(given[k])} instead of {tuple(wanted[k].shape)}' for k in bent[:4]]
        way = 'Use the config and the classes that it was trained with'
        if len(missing) == len(wanted):
            own = summary([*map(str, state)]) if state else 'nothing'
            way = (
                f'It holds {own} instead. {way}, and save the '
                "tensors of the whole model under the model's own names"
            )
        raise ValueError(
            f'{name} does not fit this model: it lacks {lost:,} of {total:,} values, and '
            f'{"all" if min_share == 1 else f"{min_share:.0%}"} are needed. Missing: '
            f'{summary(missing)}. Of another shape: '
            f'{", ".join(shapes) or "none"}. {way}; weights of a backbone alone go into its '
            'init_cfg'
        )
    apart = {*missing, *bent, *(key for key, t in wanted.items() if not t.isfinite().all())}
    refuse_nan({key: given[key] for key in wanted if key not in apart}, str(name))


def load_model(
    model_cfg: ConfigDict, content: Mapping[str, Any], checkpoint: Path, num_classes: int
) -> nn.Module:
    """Return the model with a checkpoint's weights; raise where they do not fit."""
    state = content.get('state_dict', content)
    fill_from_state(model_cfg, state)
    set_num_classes(model_cfg, num_classes)
    model: nn.Module = revert_sync_batchnorm(MODELS.build(model_cfg))
    check_fit(model, state, checkpoint)
    model.load_state_dict({k.removeprefix('module.'): v for k, v in state.items()}, strict=False)
    return model


def _shape(item: object) -> tuple[int, ...] | str:
    """Return the shape of a tensor; of anything else its type, which is the shape of none."""
    return tuple(item.shape) if isinstance(item, Tensor) else f'({type(item).__name__})'
