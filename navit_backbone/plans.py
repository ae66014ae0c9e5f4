"""The model that weights fit, in the terms in which other libraries differ from it and agree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .checkpoint import build, load_weights
from .conversion import NaViTWeights
from .position import describe_position
from .vit import Arch


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The model that weights fit, in the numbers that another library asks for."""

    arch: Arch
    patch: int  # its side in pixels; 0 where it is no square
    side: int  # of the grid of its position table, in patches; 0 where that is no square
    position: Mapping[str, Any] | None
    dtype: str
    facts: Mapping[str, Any]  # what tells whether another model computes the same
    key_bias: bool = False

    @property
    def class_tokens(self) -> int:
        """How many of the prefix tokens are no registers."""
        return self.arch.prefix_tokens - self.arch.registers


def plan_of(weights: NaViTWeights) -> Plan:
    """The model that these weights fit; raise where they are not whole."""
    with torch.device('meta'):
        model = build(weights)
    load_weights(model, weights)  # checks names and shapes; on meta nothing is copied
    position = describe_position(model.position)
    dtypes = {str(t.dtype).removeprefix('torch.') for t in weights.tensors.values()}
    _, height, width = model.patch_shapes[0]
    grid = (position or {}).get('grid', (0, 0))
    return Plan(
        arch=model.arch,
        patch=height if height == width else 0,
        side=grid[0] if grid[0] == grid[1] else 0,
        position=position,
        dtype=dtypes.pop() if len(dtypes) == 1 else 'float32',
        facts=_facts(model.arch, position, weights),
    )


def _facts(arch: Arch, position: Mapping[str, Any] | None, weights: NaViTWeights) -> dict[str, Any]:
    """What a model computes, where models of ViT's kind differ."""
    shapes = weights.patch_shapes
    square = len(shapes) == 1 and shapes[0][0] == 1 and shapes[0][1] == shapes[0][2]
    height, width = (position or {}).get('grid', (0, 0))
    class_tokens = arch.prefix_tokens - arch.registers
    no_token = arch.pooling == 'token' and not class_tokens
    return {
        'patch_size': 'square' if square else str(shapes),
        'temporal_position': weights.temporal_position,
        'position': position and position['kind'],
        'position.grid': 'square' if height == width else f'{height} x {width}',
        'class tokens': class_tokens,
        'arch.registers': 'some' if arch.registers else 'none',
        'arch.norm': arch.norm,
        'arch.norm_bias': arch.norm_bias,
        'arch.norm_eps': 1e-6 if math.isclose(arch.norm_eps, 1e-6) else arch.norm_eps,
        'arch.pre_norm': arch.pre_norm,
        'arch.final_norm': arch.final_norm,
        'arch.mlp': arch.mlp,
        'arch.qkv_bias': arch.qkv_bias,
        'arch.qk_norm': _told(arch.qk_norm),
        'arch.layer_scale': 'none' if arch.layer_scale is None else 'one',
        'arch.rope': _told(arch.rope, without='theta'),
        'arch.pooling': 'the first register' if no_token else arch.pooling,
    }


def _told(spec: Any, without: str = '') -> str | None:
    return spec and ', '.join(f'{key}={item}' for key, item in spec.items() if key != without)
