"""What the doctor holds a detector's heads to: the maps that they get, their norms and classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config
from torch import nn

from navit_backbone.tools.doctor import Finding

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
# Parts of a region head that see whole maps; the others see the cut-out regions alone.
_SEE_MAPS = ('semantic_head', 'glbctx_head')


@dataclass(frozen=True, kw_only=True)
class Maps:
    """What a model makes of a canvas whose sides all strides divide."""

    strides: list[float]  # of the maps that heads get
    channels: list[int]


def check_strides(model: nn.Module, cfg: Config, maps: Maps) -> Iterator[Finding]:
    """Every head's strides, levels and channels against the maps that it gets."""
    findings = [
        finding
        for name, module in model.named_modules()
        if name and not name.startswith(('backbone', 'neck'))
        for finding in _head_findings(*place_of(cfg.model, name), module, maps)
    ]
    yield from dict.fromkeys(findings)  # a cascade's stages are alike


def _head_findings(
    key: str, config: Mapping[str, Any], module: Any, maps: Maps
) -> Iterator[Finding]:
    if hasattr(module, 'prior_generator'):
        part = 'anchor_generator.strides' if 'anchor_generator' in config else 'strides'
        strides = [s if isinstance(s, int) else s[0] for s in module.prior_generator.strides]
        yield _compared(f'{key}.{part}', strides, maps.strides)
        if (width := getattr(module, 'in_channels', None)) is not None:
            yield from _same_width(f'{key}.in_channels', width, maps)
        ranges = getattr(module, 'regress_ranges', None)
        if ranges is not None and len(ranges) != len(maps.strides):
            yield _count(f'{key}.regress_ranges', len(ranges), maps)
    elif hasattr(module, 'featmap_strides'):
        used = maps.strides[: len(module.featmap_strides)]
        yield _compared(f'{key}.featmap_strides', module.featmap_strides, used)
        yield from _same_width(f'{key}.out_channels', module.out_channels, maps)
    elif 'Deformable' in type(module).__name__:
        levels = getattr(module, 'num_levels', len(maps.strides))
        if levels != len(maps.strides):
            yield _count(f'{key}: num_levels', levels, maps)


def _compared(key: str, given: Sequence[float], measured: Sequence[float]) -> Finding:
    problem = f'{said(given)}, but its maps have strides {said(measured)}'
    return Finding(
        name=key,
        found=said(given),
        problem='' if list(given) == list(measured) else problem,
        fix=f'set {key}=[{said(measured)}], or the strides of the neck to what the head has',
    )


def _same_width(key: str, width: int, maps: Maps) -> Iterator[Finding]:
    if width != maps.channels[0]:
        problem = f'{width}, but the maps have {maps.channels[0]} channels'
        yield Finding(name=key, found='', problem=problem, fix=f'set {key}={maps.channels[0]}')


def _count(key: str, count: int, maps: Maps) -> Finding:
    return Finding(
        name=key,
        found='',
        problem=f'{count} levels, but the neck gives {len(maps.strides)} maps',
        fix='let this, num_feature_levels (DETR) and the strides of the neck agree',
    )


def said(strides: Sequence[float]) -> str:
    return ', '.join(f'{stride:g}' for stride in strides)


def place_of(config: Mapping[str, Any], name: str) -> tuple[str, Mapping[str, Any]]:
    """Where a config speaks of the module `name`, as far down as it does, and what it says."""
    key, node = 'model', config
    for part in name.split('.'):
        inner = node.get(part)
        if not isinstance(inner, Mapping):
            if part.isdecimal():  # many modules of one part of the config
                continue
            break
        key, node = f'{key}.{part}', inner
    return key, node


# --------------------------------------------------------------------------------------------------
# Norms and classes


def check_norms(model: nn.Module, cfg: Config) -> Iterator[Finding]:
    """Norms of necks and heads whose statistics take in padding."""
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, _NORMS) and _sees_maps(name):
            key, _ = place_of(cfg.model, name)
            found.setdefault(key, []).append(type(module).__name__)
    for key, kinds in found.items():
        yield Finding(
            name=key,
            found='',
            problem=f'{len(kinds)} {" and ".join(sorted(set(kinds)))}: the statistics take in '
            'padding, so that what is found depends on the canvas and its other pictures',
            fix=f"set {key}.norm_cfg=dict(type='LayerNorm2d', eps=1e-6), where it takes a norm_cfg",
        )
    if not found:
        yield Finding(name='norms', found='none in neck and heads takes statistics over padding')


def _sees_maps(name: str) -> bool:
    first, *rest = name.split('.')
    if first == 'roi_head':  # else it sees the regions cut out
        return bool(rest) and rest[0] in _SEE_MAPS
    return first not in ('backbone', 'data_preprocessor')


def check_classes(model: nn.Module, cfg: Config, num_classes: int) -> Iterator[Finding]:
    """Every head's number of classes against that of the data."""
    from navit_backbone.tasks.common.class_check import counting_parts

    wrong = {}
    for name, module in counting_parts(model):
        key, _ = place_of(cfg.model, name)
        if module.num_classes != num_classes and key != 'model':
            wrong[f'{key}.num_classes'] = module.num_classes
    for key, count in wrong.items():
        yield Finding(
            name=key,
            found=f'{count}, the data has {num_classes} classes',
            note=f'tools/train.py sets {num_classes}; for stock scripts set {key}={num_classes}',
        )
    if not wrong:
        yield Finding(name='num_classes', found=f'{num_classes} in all heads, as the data has')
