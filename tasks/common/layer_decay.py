"""Layer-wise learning-rate decay for any backbone that can say how deep a parameter lies."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Parameters grouped by depth: the deeper below the output, the smaller the learning rate.

    ``paramwise_cfg=dict(decay_rate=0.75)``. A layer's learning rate is that of the optimizer times
    decay_rate ** (layers above it). The depth comes from the backbone's
    ``get_layer_depth(name, prefix) -> (layer, number of layers)``, mmpretrain's protocol; all
    that is not backbone counts as its last layer. Weight decay applies to weights of two dimensions
    or more alone: not to biases, norms and scales, nor to position tables and tokens.
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        rate = self.paramwise_cfg.get('decay_rate')
        if set(self.paramwise_cfg) != {'decay_rate'} or not 0 < rate <= 1:
            raise ValueError(
                'optim_wrapper.paramwise_cfg must be dict(decay_rate=r) with 0 < r <= 1, got '
                f'{dict(self.paramwise_cfg)}'
            )
        if self.base_lr is None:
            raise ValueError('optim_wrapper.optimizer needs lr, which decay_rate is to scale')

    def __call__(self, model: nn.Module) -> OptimWrapper:
        model = getattr(model, 'module', model)  # what a distributed wrapper holds
        groups = self._groups(model)
        optimizer = OPTIMIZERS.build({**self.optimizer_cfg, 'params': groups})
        wrapper = {'type': 'OptimWrapper', **self.optim_wrapper_cfg}
        return OPTIM_WRAPPERS.build(wrapper, default_args={'optimizer': optimizer})

    def _groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """One group for each layer and weight decay, from the lowest layer up; printed."""
        members: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
        backbones = find_backbones(model)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                above = layers_above(name, backbones)
                members[above, decays(name, parameter)].append(parameter)
        groups = []
        for (above, decayed), parameters in sorted(members.items(), reverse=True):
            lr = self.base_lr * self.paramwise_cfg['decay_rate'] ** above
            group = {'params': parameters, 'lr': lr}
            if self.base_wd is not None:
                group['weight_decay'] = self.base_wd if decayed else 0.0
            groups.append(group)
            print_log(
                f'layer decay: {above:2d} layers from the top, lr {lr:.3g}, weight decay '
                f'{group.get("weight_decay")}: {len(parameters)} tensors, '
                f'{sum(p.numel() for p in parameters):,} parameters',
                logger='current',
            )
        return groups


def find_backbones(model: nn.Module) -> dict[str, nn.Module]:
    """The outermost modules that know the depth of their parameters, by the prefix in names."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inner = any(name.startswith(prefix) for prefix in found)
        if callable(getattr(module, 'get_layer_depth', None)) and not inner:
            found[f'{name}.' if name else ''] = module
    if not found:
        raise ValueError(
            f'{type(model).__name__} holds no module with get_layer_depth(name, prefix), so layers '
            'cannot be told apart: use NaViTBackbone, or leave out '
            "optim_wrapper.constructor='LayerDecayOptimWrapperConstructor' and its paramwise_cfg"
        )
    return found


def layers_above(name: str, backbones: dict[str, nn.Module]) -> int:
    """How many layers lie between a parameter and the output."""
    for prefix, backbone in backbones.items():
        if name.startswith(prefix):
            layer, num_layers = backbone.get_layer_depth(name, prefix)
            return num_layers - 1 - layer
    return 0


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: position tables and tokens are no weights by name."""
    return parameter.ndim >= 2 and name.endswith('weight') and '.position.' not in f'.{name}'
