"""Whether a checkpoint fits a whole model: mmengine loads what fits and only logs the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

from navit_backbone.families import summary


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
        check_fit(model, checkpoint.get('state_dict', checkpoint), runner._load_from, min_share)


def check_fit(
    model: nn.Module, state: Mapping[str, Any], name: object, min_share: float = 1.0
) -> None:
    """Raise unless at least `min_share` of the model's values are in `state`, in their shapes."""
    wanted = {k: t for k, t in model.state_dict().items() if not k.endswith('num_batches_tracked')}
    given = {key.removeprefix('module.'): item for key, item in state.items()}
    missing = [key for key in wanted if key not in given]
    bent = [key for key in wanted if key in given and _shape(given[key]) != wanted[key].shape]
    total = sum(t.numel() for t in wanted.values())
    lost = sum(wanted[key].numel() for key in (*missing, *bent))
    if lost and 1 - lost / total < max(min_share, 1e-9):
        shapes = [f'{k} {_shape(given[k])} instead of {tuple(wanted[k].shape)}' for k in bent[:4]]
        raise ValueError(
            f'{name} does not fit this model: {1 - lost / total:.1%} of its values are there, '
            f'{min_share:.0%} are needed. Missing: {summary(missing)}. Of another shape: '
            f'{", ".join(shapes) or "none"}. Use the config and the classes that it was trained '
            'with; weights of a backbone alone go into its init_cfg'
        )


def _shape(item: object) -> tuple[int, ...]:
    return tuple(item.shape) if isinstance(item, Tensor) else ()
