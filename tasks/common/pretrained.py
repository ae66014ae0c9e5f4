"""What the file of a backbone's first weights tells a config, and whether its input is theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from navit_backbone.backbone import (
    NaViTBackbone,
    NaViTClipBackbone,
    PackedBackbone,
    complete,
)
from navit_backbone.checkpoint import told_by
from navit_backbone.vit import EXTRA, read_architecture

OURS = (NaViTBackbone.__name__, NaViTClipBackbone.__name__)
_ENOUGH = 1e-3  # of a mean or std in [0, 1], by which two count as different


def fill_from_file(model: MutableMapping[str, Any]) -> None:
    """Write into a model's config what it leaves to the file that its backbone starts from.

    A file that is not there, or that is not ours, tells nothing.
    """
    backbone = _backbone(model)
    start = (backbone or {}).get('init_cfg') or {}
    file = start.get('checkpoint') if start.get('type') == 'Pretrained' else None
    if backbone is not None and file is not None and told_by(file):
        fill_left_out(model)


def fill_left_out(model: MutableMapping[str, Any]) -> None:
    """Write into a model's config what its backbone is where it does not say: by file or default.

    Training writes the same into the config of its work dir.
    """
    backbone = _backbone(model)
    if backbone is not None:
        backbone.update(complete(backbone, pictures=backbone['type'] == NaViTBackbone.__name__))


def leaves_out(model: MutableMapping[str, Any]) -> bool:
    """Whether a model's config leaves something of its backbone to a file."""
    backbone = _backbone(model)
    if backbone is None:
        return False
    pictures = backbone['type'] == NaViTBackbone.__name__
    untold = complete({**backbone, 'init_cfg': None}, pictures=pictures)
    return bool(untold) or not _whole(backbone['arch'])


def _whole(arch: Any) -> bool:
    return isinstance(arch, str) or 'preset' in arch


def fill_from_state(model: MutableMapping[str, Any], state: Mapping[str, Any]) -> None:
    """The same from a checkpoint of training, which tells it too; the first file is not needed."""
    key = next((key for key in state if key.endswith(f'backbone.vit.{EXTRA}')), None)
    backbone = _backbone(model)
    if backbone is not None and key is not None:
        metadata = getattr(state, '_metadata', None)
        told = read_architecture(state[key], str(getattr(metadata, 'file', '') or 'the checkpoint'))
        pictures = backbone['type'] == NaViTBackbone.__name__
        backbone.update(complete(backbone, told=told, pictures=pictures))


def _backbone(model: MutableMapping[str, Any]) -> Any:
    backbone = model.get('backbone')
    return backbone if isinstance(backbone, dict) and backbone.get('type') in OURS else None


@HOOKS.register_module()
class PretrainedHook(Hook):
    """What follows from the file of a backbone's first weights, in training.

    What the config left to the file is written into the config that the work dir and every
    checkpoint keep. And the input is held against theirs: a `data_preprocessor` whose mean and std
    are not those that the weights know is refused.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        found = False
        for name, module in _backbones(runner.model):
            config = runner.cfg.get('model')
            for part in name.split('.'):
                config = config.get(part) if isinstance(config, dict) else None
            if isinstance(config, dict) and module.completed:
                config.update(module.completed)
                found = True
        if found:
            runner.dump_config()

    def before_train(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        mean, std = (getattr(model.data_preprocessor, name, None) for name in ('mean', 'std'))
        for name, module in _backbones(model):
            if module.statistics is not None and isinstance(mean, Tensor):
                check_input((mean, std), module.statistics, name)


def check_input(given: tuple[Tensor, Tensor], known: Any, name: str) -> None:
    """Raise where mean and std in [0, 255] are not those that weights know, in [0, 1]."""
    found = torch.stack([part.flatten().double().cpu() / 255 for part in given])
    wanted = torch.tensor(known, dtype=torch.float64)
    if found.shape != wanted.shape or (found - wanted).abs().max() > _ENOUGH:
        stated, right = ([[round(255 * v, 3) for v in row] for row in t.tolist()]
                         for t in (found, wanted))  # fmt: skip
        raise ValueError(
            f'model.data_preprocessor has mean={stated[0]}, std={stated[1]}, and the weights of '
            f'model.{name} know an input of mean={right[0]}, std={right[1]} (RGB): set these, with '
            'bgr_to_rgb=True where pictures are loaded as BGR; or leave PretrainedHook out of '
            'custom_hooks to train on another input'
        )


def _backbones(model: nn.Module) -> Iterator[tuple[str, PackedBackbone]]:
    model = model.module if is_model_wrapper(model) else model
    for name, module in model.named_modules():
        if isinstance(module, PackedBackbone):
            yield name, module
