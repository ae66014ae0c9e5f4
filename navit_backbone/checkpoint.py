"""Weights into a model, checked and not guessed; and our own file format.

What disagrees with the model that is to take the weights is refused by name, with the way out:
neither a LayerScale, a register or an epsilon is ever dropped in silence.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .conversion import NaViTWeights, as_given, convert, refuse_nan, summary
from .families import FAMILIES, Statistics
from .inflation import TABLE, Inflation, PatchResize, fit_patches
from .position import complete_rotary, describe_position
from .sealed import Progress, unseen, write_sealed
from .vit import EXTRA, Arch, NaViT, complete_qk_norm
from .weight_files import (
    UnsafeWeightsError,
    is_safetensors,
    read_checkpoint,
    read_header,
    read_safetensors,
    register_safe_loader,
)
from .weight_sources import find_source

__all__ = [
    'LoadReport',
    'NaViTWeights',
    'UnsafeWeightsError',
    'build',
    'check_target',
    'guard_loading',
    'header_of',
    'load_weights',
    'read_checkpoint',
    'read_weights',
    'register_safe_loader',
    'save_navit',
    'tensors_of',
    'told_by',
    'weights_of',
]

FORMAT, VERSION = 'navit-backbone', 1
# Parts that a model may have beyond its weights, or leave out; and the fields of Arch for them.
OPTIONAL, OPTIONAL_FIELDS = ('pool.', 'classifier.'), ('pooling', 'num_classes')
# A final norm may be left out of a model; where a file lacks it, its share of the model tells.
UNTOLD = (*OPTIONAL_FIELDS, 'final_norm')


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What happened to every tensor; `print` it."""

    source: str
    family: str
    loaded: tuple[str, ...]
    interpolated: tuple[str, ...]  # at run time, to each picture's own grid
    left_over: tuple[str, ...]
    missing: tuple[str, ...]
    share: float  # of the model's values, optional parts aside
    statistics: Statistics | None = None  # mean and std of the input that the weights know
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f'{self.source} ({self.family}): {len(self.loaded)} tensors loaded, '
            f'{self.share:.1%} of the backbone',
            f'  interpolated to each picture: {summary(self.interpolated)}',
            f'  left over: {summary(self.left_over)}',
            f'  missing: {summary(self.missing)}',
        ]
        return '\n'.join(lines + [f'  note: {note}' for note in self.notes])


def load_weights(
    model: NaViT,
    checkpoint: str | os.PathLike[str] | NaViTWeights,
    *,
    min_share: float = 1.0,
    family: str = 'auto',
    prefix: str | None = None,
    inflation: Inflation = 'central',
    patch_resize: PatchResize | None = None,
) -> LoadReport:
    """Load weights of any known family, or of our format, into `model`; raise where they disagree.

    `min_share` of the model's values must be there, optional pooling and classifier aside.
    Weights of pictures go into a model of clips by `inflation`, those of clips into one of
    pictures exactly (`inflation.fit_patches`). `patch_resize='flexivit'` resamples the kernels of
    patches of another height and width than the model's.
    """
    if isinstance(checkpoint, NaViTWeights):
        weights = checkpoint
    else:
        weights = read_weights(checkpoint, family=family, prefix=prefix)
    name = weights.source
    weights = fit_patches(weights, model, inflation, patch_resize)
    report = _check(model, weights, name, min_share)
    targets = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for key in report.loaded:
            targets[key].copy_(weights.tensors[key])
    return report


def read_weights(
    source: str | os.PathLike[str],
    *,
    family: str = 'auto',
    prefix: str | None = None,
    num_heads: int | None = None,
    progress: Progress = unseen,
) -> NaViTWeights:
    """The weights of a source under NaViT's names: a file, a folder or hf://owner/name[@revision].

    `prefix` picks one of several models inside.
    """
    if family != 'auto' and family not in FAMILIES:
        raise ValueError(f'family={family!r} is not one of {["auto", *FAMILIES]}')
    found = find_source(source)
    (path, *more), own = found.files, {}
    if not more and is_safetensors(path):
        own = read_header(path)
    if own.get('format') == FORMAT:
        tensors, header = read_safetensors(path)
        return _from_header(path, tensors, header)
    content = found.read(progress, prefix=prefix)
    weights = convert(
        content.tensors,
        name=found.name,
        family=family,
        prefix=content.prefix,
        num_heads=num_heads,
        stated=found.stated(),
        progress=progress,
    )
    notes = [f'{key} holds other weights: --prefix {key} takes those' for key in content.models]
    left_over = (*weights.left_over, *content.beside)
    return replace(weights, left_over=left_over, notes=(*weights.notes, *notes))


def weights_of(
    model: NaViT,
    *,
    input_mean: tuple[float, ...] | None = None,
    input_std: tuple[float, ...] | None = None,
) -> NaViTWeights:
    """A model's own weights, ready for `save_navit`."""
    return NaViTWeights(
        tensors=tensors_of(model),
        arch=model.arch.to_dict(),
        position=describe_position(model.position),
        temporal_position=model.architecture()['temporal_position'],
        input_mean=input_mean,
        input_std=input_std,
    )


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's state dict without what describes its architecture."""
    return {key: item for key, item in model.state_dict().items() if key != EXTRA}


def build(weights: NaViTWeights) -> NaViT:
    """The model that these weights fit, as yet with random values."""
    needed = ['embed_dims', 'num_layers', 'num_heads', 'feedforward_channels']
    needed += ['norm', 'norm_eps', 'mlp', 'rope']
    unknown = [name for name in needed if name not in weights.arch]
    if weights.position is None and any(key.startswith('position.') for key in weights.tensors):
        unknown.append('position')
    if unknown == ['num_heads']:
        raise ValueError(
            f'{weights.source}: no tensor tells the number of heads, and width '
            f'{weights.arch["embed_dims"]} has no usual one: state it by num_heads=... '
            '(--num-heads N)'
        )
    if unknown:
        raise ValueError(
            f'nothing in {weights.source} tells {", ".join(unknown)}: state the family, or save '
            'from the model itself: save_navit(path, weights_of(model))'
        )
    shapes: Any = weights.patch_shapes
    return NaViT(
        Arch(**weights.arch),
        patch_size=shapes,
        position=weights.position,
        temporal_position=weights.temporal_position,
    )


def save_navit(
    path: str | os.PathLike[str],
    weights: NaViTWeights,
    *,
    overwrite: bool = False,
    progress: Progress = unseen,
) -> LoadReport:
    """Write our format: safetensors, with all that is needed to build the model in its header."""
    file = Path(path)
    check_target(file, overwrite=overwrite)
    with torch.device('meta'):
        model = build(weights)
    report = replace(_check(model, weights, weights.source, min_share=1.0), source=str(file))
    write_sealed(file, weights.tensors, header_of(weights), progress=progress)
    return report


def check_target(file: Path, *, overwrite: bool) -> None:
    """Raise ValueError where no file of ours may be written."""
    if file.suffix != '.safetensors':
        raise ValueError(
            f'{file}: our format is safetensors; give a name that ends in .safetensors'
        )
    if file.exists() and not overwrite:
        raise ValueError(f'{file} exists: give another name, or overwrite it (--overwrite)')


def header_of(weights: NaViTWeights, prefix: str = '') -> dict[str, str]:
    """What the header of a file says of the model that takes its tensors named `prefix`...

    A whole detector is a file of ours too: its header has more fields, and its NaViT a prefix.
    """
    return {
        'format': FORMAT,
        'version': str(VERSION),
        'prefix': prefix,
        'arch': json.dumps(weights.arch),
        'patch_size': json.dumps(weights.patch_shapes),
        'position': json.dumps(weights.position),
        'temporal_position': json.dumps(weights.temporal_position),
        'input_mean': json.dumps(weights.input_mean),
        'input_std': json.dumps(weights.input_std),
        'family': weights.family,
    }


def guard_loading(model: NaViT) -> None:
    """Make `load_state_dict` raise on tensors of `model` that are missing, misshapen or not finite.

    mmengine's `load_from`, `--resume` and Inferencers load through it and only log what did not
    fit. torch does not tell a hook what `strict` was, so this holds for any of its values.
    """
    model.register_load_state_dict_pre_hook(_check_incoming)  # type: ignore[no-untyped-call]


def _check_incoming(
    module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict[str, Any], *_: Any
) -> None:
    name = metadata.get('file', 'the checkpoint')
    wanted = {k: t for k, t in tensors_of(module).items() if not k.startswith(OPTIONAL)}
    missing = [key for key in wanted if prefix + key not in state]
    part = prefix.rstrip('.') or 'NaViT'
    if len(missing) == len(wanted):
        raise ValueError(
            f'{name} holds nothing for {part}: load_from, --resume, test and predict take '
            'a checkpoint of the whole model; weights of a backbone alone go into the backbone by '
            "init_cfg=dict(type='Pretrained', checkpoint=...)"
        )
    if missing:
        raise ValueError(
            f'{name} has no {summary(missing)} for {part}: it is of another model; use the config '
            'that it was trained with'
        )
    if isinstance(module, NaViT) and prefix + EXTRA in state:
        module.check_architecture(state[prefix + EXTRA], name)
    for key, tensor in wanted.items():
        given = state[prefix + key]
        if given.shape != tensor.shape:
            raise ValueError(
                f'{prefix}{key}: {name} has {tuple(given.shape)}, the model '
                f'{tuple(tensor.shape)}: use the config that it was trained with'
            )
    refuse_nan({prefix + key: state[prefix + key] for key in wanted}, name)


# --------------------------------------------------------------------------------------------------
# Against a model


def _check(model: NaViT, weights: NaViTWeights, name: str, min_share: float) -> LoadReport:
    """What loading will do; raise where the two do not fit."""
    if wrong := _disagreements(model, weights):
        raise ValueError(f'{name} does not fit this model:\n  ' + '\n  '.join(wrong))
    report = _report(name, weights, tensors_of(model), _notes(model, weights))
    if report.share < min_share:
        raise ValueError(
            f'{report}\n{report.share:.1%} of the backbone is there and min_share asks for '
            f'{min_share:.1%}: give weights of this model, leave out what is missing '
            '(arch.final_norm=False where a norm is), or set min_share lower to start it anew'
        )
    return report


def _disagreements(model: NaViT, weights: NaViTWeights) -> list[str]:
    """What would make the model compute something else than the weights' origin, with ways out."""
    wrong = _wrong_fields(model.arch, weights.arch)
    shapes = sorted(model.patch_shapes)
    if weights.patch_shapes != shapes:
        wrong.append(_other_patches(weights.patch_shapes, shapes))
    elif weights.position is not None:
        here, rule = describe_position(model.position), weights.position
        if not weights.stated:
            rule = {key: value for key, value in rule.items() if key in ('kind', 'grid')}
        if here is None or any(here.get(key) != value for key, value in rule.items()):
            wrong.append(
                f'the file has position {weights.position}, the model {here}: '
                f'set position={weights.position}'
            )
    time, time_here = weights.temporal_position, model.architecture()['temporal_position']
    if time is not None and time != time_here:
        wrong.append(
            f'the file has temporal_position {time}, the model {time_here}: '
            f'set temporal_position={time}'
        )
    if wrong:
        return wrong
    targets = tensors_of(model)
    for key, tensor in weights.tensors.items():
        if key not in targets:
            if not key.startswith((*OPTIONAL, 'norm.')):
                wrong.append(f'{key}: the model has no such part')
        elif targets[key].shape != tensor.shape and not key.startswith(OPTIONAL):
            sizes = f'{tuple(tensor.shape)}, the model {tuple(targets[key].shape)}'
            wrong.append(f'{key}: the file has {sizes}')
        elif not tensor.is_floating_point() or tensor.itemsize < 2:
            wrong.append(f'{key}: the file has {tensor.dtype}, and quantised weights are not read')
    return wrong


def _other_patches(there: list[tuple[int, ...]], here: list[tuple[int, int, int]]) -> str:
    """What to do where patches differ (t, h, w); those of pictures start tubelets of any length."""
    given, built = (' and '.join('x'.join(map(str, s)) for s in shapes) for shapes in (there, here))
    wanted, resized = list(there), ''
    if len(there) == 1:
        ((frames, *size),) = there
        if frames == 1 or {t for t, *_ in here} == {1}:  # the length in time is the model's
            wanted = [(t, *size) for t, *_ in here]
        if any(size != own for _, *own in here):
            resized = ", or resample the file's by patch_resize='flexivit' in init_cfg"
    sides = [h if t == 1 and h == w else (t, h, w) for t, h, w in wanted]
    return (
        f'the file has patches of {given} (t x h x w), the model of {built}: set patch_size='
        f'{sides[0] if len(sides) == 1 else sides}'
        + (' or leave it out' if wanted == there else '')
        + resized
    )


def _wrong_fields(model: Arch, given: Mapping[str, Any]) -> list[str]:
    here = model.to_dict()
    wrong = {
        key: value
        for key, value in given.items()
        if key not in UNTOLD and not _same(key, value, here[key])
    }
    lines = [
        f'arch.{k}: {value!r} in the file, {here[k]!r} in the model' for k, value in wrong.items()
    ]
    if wrong:
        changes = ', '.join(f'{key}={value!r}' for key, value in wrong.items())
        lines.append(f'take other weights, or set arch=dict(preset=..., {changes})')
    return lines


def _same(key: str, there: Any, here: Any) -> bool:
    if key == 'layer_scale':  # its value at the start does not matter once weights are loaded
        return (there is None) == (here is None)
    if key in ('rope', 'qk_norm'):
        complete = complete_rotary if key == 'rope' else complete_qk_norm
        return bool(complete(there) == here)
    if isinstance(there, float) and isinstance(here, float):
        return math.isclose(there, here)
    return bool(there == here)


def _report(
    name: str, weights: NaViTWeights, targets: Mapping[str, Tensor], notes: tuple[str, ...]
) -> LoadReport:
    fits = [k for k, t in weights.tensors.items() if k in targets and t.shape == targets[k].shape]
    sizes = {k: t.numel() for k, t in targets.items() if not k.startswith(OPTIONAL)}
    if TABLE not in weights.tensors:
        sizes.pop(TABLE, None)  # weights of pictures: it starts at zero, and changes nothing
    share = sum(sizes.get(key, 0) for key in fits) / max(sum(sizes.values()), 1)
    return LoadReport(
        source=name,
        family=weights.family,
        loaded=tuple(fits),
        interpolated=tuple(k for k in fits if k == 'position.table' and weights.position),
        left_over=(*(k for k in weights.tensors if k not in fits), *weights.left_over),
        missing=tuple(k for k, t in targets.items() if k not in fits and t.numel()),
        share=share,
        statistics=_statistics(weights),
        notes=notes,
    )


def _statistics(weights: NaViTWeights) -> Statistics | None:
    mean, std = weights.input_mean, weights.input_std
    return (mean, std) if mean and std else None


def _notes(model: NaViT, weights: NaViTWeights) -> tuple[str, ...]:
    notes = list(weights.notes)
    if 'num_heads' not in weights.arch:
        notes.append(f'no tensor tells the number of heads: the model has {model.arch.num_heads}')
    here, there = describe_position(model.position), weights.position
    if here and there and here != there:
        notes.append(f'positions are interpolated as {here}; {weights.family} does it as {there}')
    return tuple(notes)


# --------------------------------------------------------------------------------------------------
# Our format


def told_by(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What a file of ours says of its model, as NaViT's arguments; None of any other file.

    `arch`, `patch_size`, `position` and `temporal_position`; the tensors are not read.
    """
    file = Path(path).expanduser()
    if not is_safetensors(file):
        return None
    header = read_header(file)
    if header.get('format') != FORMAT:
        return None
    values = _values(file, header)
    return {key: values[key] for key in ('arch', 'patch_size', 'position', 'temporal_position')}


def _values(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a header as values."""
    if int(header.get('version', 0)) > VERSION:
        raise ValueError(
            f'{path} is of version {header["version"]}, this installation reads up to {VERSION}: '
            'update navit-backbone'
        )
    try:
        values = {
            key: json.loads(header[key])
            for key in ('arch', 'patch_size', 'position', 'input_mean', 'input_std')
        }
        values['temporal_position'] = json.loads(header.get('temporal_position', 'null'))
    except (KeyError, json.JSONDecodeError) as error:
        raise ValueError(f'{path}: its header is damaged ({error}): convert it again') from error
    if unknown := set(values['arch']) - {item.name for item in fields(Arch)}:
        raise ValueError(f'{path}: its header names {sorted(unknown)}, unknown here')
    return values | {'position': as_given(values['position'])}


def _from_header(path: Path, tensors: dict[str, Tensor], header: Mapping[str, str]) -> NaViTWeights:
    values, prefix = _values(path, header), header.get('prefix', '')
    own = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
    own.pop(EXTRA, None)
    refuse_nan(own, str(path))
    mean, std = (tuple(values[k]) if values[k] else None for k in ('input_mean', 'input_std'))
    return NaViTWeights(
        tensors=own,
        arch=values['arch'],
        position=values['position'],
        temporal_position=values['temporal_position'],
        input_mean=mean,
        input_std=std,
        family=header.get('family', 'navit'),
        source=str(path),
        told='told by its header',
        left_over=tuple(key for key in tensors if not key.startswith(prefix)),
    )
