"""FLOPs of a backbone on pictures of given sizes: counted by torch's own counter, nothing computed.

A multiply-add is two FLOPs. Norms, activations, softmax and look-ups count as nothing, and so do
operators that neither torch nor this file has a formula for. The backward pass has twice as many.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from navit_backbone.backbone import NaViTBackbone
from navit_backbone.packing import Size

Parts = dict[str, int]
_TOLERANCE = 1e-3
_PRODUCTS = 'attention'  # queries by keys, weights by values
# The parts of a NaViT, by the names of their modules; what is in none is norms and scales.
_MODULES = {
    'patch embedding': r'patch_embed\.\w+',
    'positions, prefix': r'position|temporal_position|prefix',
    'attention projections': r'blocks\.\d+\.attn\.(?:qkv|proj)',
    _PRODUCTS: r'blocks\.\d+\.attn',
    'MLP': r'blocks\.\d+\.mlp',
    'pooling': r'pool',
}


@register_flop_formula(torch.ops.navit.segment_attention, get_raw=True)
def _segment_attention(
    q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, lengths: Tensor, *_: Any, out_val: Any = None
) -> int:
    """Two products of n x n x K per head and segment of n tokens."""
    _, num_heads, width = q_THK.shape
    return 4 * num_heads * width * int((lengths**2).sum())


def count(run: Callable[[], object]) -> dict[str, int]:
    """FLOPs of a call, by the names of the modules that it went through; 'Global' is all."""
    counter = FlopCounterMode(display=False)
    # the only kernel that the counter knows on every device
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}


class BackboneFlops:
    """FLOPs of our backbone, by part; the model has shapes alone, as nothing is computed."""

    kind: ClassVar[type[nn.Module]] = NaViTBackbone

    def __init__(self, config: Mapping[str, Any]) -> None:
        with torch.device('meta'):
            backbone = MODELS.build({**config, 'init_cfg': None})
        if not isinstance(backbone, self.kind):
            raise ValueError(
                f'backbone {type(backbone).__name__}: FLOPs are counted of {self.kind.__name__} '
                'alone'
            )
        self.backbone: Any = backbone.eval()
        self._counted = cache(self._count)

    def of(self, sizes: Iterable[Any]) -> Parts:
        """Of one batch of examples of these sizes; padding is not computed."""
        return self._counted(tuple(sorted(sizes)))

    def _count(self, sizes: Sequence[Any]) -> Parts:
        counts = self._run(sizes)
        start = f'{self.kind.__name__}.vit.'
        found = {name.removeprefix(start): n for name, n in counts.items()}
        parts = {
            part: sum(n for name, n in found.items() if re.fullmatch(modules, name))
            for part, modules in _MODULES.items()
        }
        parts[_PRODUCTS] -= parts['attention projections']  # which it went through as well
        assert sum(parts.values()) == counts['Global'], 'a part of the backbone is not told'
        return parts

    def _run(self, sizes: Sequence[Size]) -> dict[str, int]:
        """`count` of one batch of pictures of these (height, width) in pixels."""
        height, width = (max(sides) for sides in zip(*sizes, strict=True))
        canvas = torch.empty(len(sizes), 3, height, width, device='meta')
        return count(lambda: self.backbone(canvas, image_sizes=sizes))


class CanvasFlops:
    """FLOPs of what follows a backbone for one picture, as a function of its canvas.

    Convolutions cost in proportion to the canvas, attention over maps to its square: three canvases
    tell all others, and a fourth is the proof. `measure` counts them on a canvas of a (height,
    width), `unit` is a side that all strides divide.
    """

    def __init__(self, measure: Callable[[Size], Parts], *, unit: int, name: str) -> None:
        *points, proof = [(unit * h, unit * w) for h, w in ((1, 1), (1, 2), (1, 3), (2, 2))]
        counted = {size: measure(size) for size in (*points, proof)}
        self.smallest, self.at_smallest = points[0], counted[points[0]]
        areas = [h * w for h, w in points]
        self._curves = {
            part: np.polyfit(areas, [counted[size][part] for size in points], deg=2)
            for part in ('neck', 'head')
        }
        told, true = (sum(parts.values()) for parts in (self.of(proof), counted[proof]))
        if abs(told - true) > _TOLERANCE * true:
            raise ValueError(
                f'{name} has {true:,} FLOPs after its backbone on {proof}, where {points} tell '
                f'{told:,}: they are no function of the area, and not countable'
            )

    def of(self, canvas: Size) -> Parts:
        """For one picture on a canvas of this (height, width)."""
        area = canvas[0] * canvas[1]
        return {part: round(np.polyval(curve, area)) for part, curve in self._curves.items()}


def after_backbone(model: nn.Module, run: Callable[[], object]) -> Parts:
    """What a run of the whole model costs in its neck, and in all behind it."""
    counts = count(run)
    name = type(model).__name__
    neck = counts.get(f'{name}.neck', 0)
    return {'neck': neck, 'head': counts['Global'] - counts[f'{name}.backbone'] - neck}


def parameters_after(model: nn.Module) -> Parts:
    """The parameters of a whole model after its backbone."""
    parts = {'neck': 0, 'head': 0}
    for name, parameter in model.named_parameters():
        if not name.startswith('backbone.'):
            parts['neck' if name.startswith('neck.') else 'head'] += parameter.numel()
    return parts


def side_of_all_strides(model: nn.Module) -> int:
    """Pixels that all strides of a whole model divide, and enough for as many queries as it has."""
    pads = model.data_preprocessor
    divisors = (getattr(pads, name, None) for name in ('pad_size_divisor', 'size_divisor'))
    divisor = next((divisor for divisor in divisors if divisor), 1)
    patch = getattr(model.backbone, 'patch_size', 16)
    return math.lcm(divisor, 16 * patch)


def parameters_of(backbone: nn.Module) -> Parts:
    """The parameters of our backbone, by the same parts."""
    parts = dict.fromkeys(_MODULES, 0) | {'norms': 0}
    owners = {part: modules for part, modules in _MODULES.items() if part != _PRODUCTS}
    for name, parameter in backbone.vit.named_parameters():  # type: ignore[union-attr]
        fits = (part for part, modules in owners.items() if re.match(rf'({modules})(\.|$)', name))
        parts[next(fits, 'norms')] += parameter.numel()
    return parts
