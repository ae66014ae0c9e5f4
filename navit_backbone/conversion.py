"""Weights of other projects under NaViT's names, by the specs of `families`.

A key that has no place is refused, since the rest would compute something else.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .families import FAMILIES, Family, Rule
from .layers import ACTIVATIONS
from .recognition import (
    find_family,
    is_ruled,
    key_pattern,
    of_model_type,
    own_tensors,
    place_of,
    readable,
    refuse_known,
    respelled,
    unknown_keys,
)
from .sealed import Progress, unseen
from .vit import EXTRA, read_architecture

_KERNELS = {'kernel': 4, 'clip_kernel': 5}  # and their dimensions
# What a config.json may say and tensors tell too, under the names of Arch and under its own.
CONFIG_NAMES = {
    'embed_dims': 'hidden_size',
    'num_layers': 'num_hidden_layers',
    'feedforward_channels': 'intermediate_size',
    'num_heads': 'num_attention_heads',
    'patch_size': 'patch_size',
}


@dataclass(frozen=True, kw_only=True)
class NaViTWeights:
    """Tensors under NaViT's names, and what is known of the model that they fit."""

    tensors: dict[str, Tensor]
    arch: dict[str, Any]  # fields of Arch; those that nothing tells are absent
    position: dict[str, Any] | None = None  # as NaViT takes it; None where nothing tells it
    temporal_position: dict[str, Any] | None = None  # likewise; None where there is none
    input_mean: tuple[float, ...] | None = None  # of RGB in [0, 1]
    input_std: tuple[float, ...] | None = None
    family: str = 'navit'
    stated: bool = True  # the family was stated, not found from names
    told: str = ''  # what told the family
    source: str = 'these weights'  # the name of the file, for messages
    left_over: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what was done to the tensors, for the report

    @property
    def patch_shapes(self) -> list[tuple[int, ...]]:
        """The (t, h, w) of every patch embedding."""
        names = [key.split('.')[1] for key in self.tensors if key.startswith('patch_embed.')]
        return sorted({tuple(int(side) for side in name.split('x')) for name in names})


def convert(
    tensors: Mapping[str, Tensor],
    *,
    name: str = 'the state dict',
    family: str = 'auto',
    prefix: str | None = None,
    num_heads: int | None = None,
    stated: Mapping[str, Any] | None = None,
    progress: Progress = unseen,
) -> NaViTWeights:
    """Foreign tensors under NaViT's names, nothing resized; raise on a key that has no place.

    `stated`: what a config beside the file says: `model_type`, `statistics`, `patch_size` and
    fields of Arch, where tensors tell none of these otherwise; `config` is the file's own name.
    """
    refuse_known(tensors, name)
    family, told, said, unused = _by_config(family, stated or {})
    candidates = list(FAMILIES) if family == 'auto' else [family]
    own, others = own_tensors(tensors, candidates, name, prefix, told)
    chosen, told = (family, told) if family != 'auto' else find_family(own, others, name)
    spec = FAMILIES[chosen]
    own = respelled(own, spec)
    heads_told = own[spec.heads_in].shape[1] if spec.heads_in in own else None
    if spec.requires and not any(re.fullmatch(spec.requires, key) for key in own):
        raise ValueError(
            f'{name} is not of the family {chosen}, which has {readable(spec.requires)}: leave '
            '--family out, or state the one that it is of'
        )
    known = own.pop(EXTRA, None) if not spec.rules else None
    if unknown := unknown_keys(own, spec):
        raise ValueError(
            f'{name}: as {chosen} there is no place in NaViT for {summary(unknown)}: loading the '
            'rest would compute something else; take weights of a plain ViT, state another '
            'family, or remove these keys if they do not matter'
        )
    left = [key for key in own if re.fullmatch(spec.droppable, key) and not is_ruled(key, spec)]
    renamed, notes = _rename(own, spec, name)
    if 'dist_token' in own or any(key.startswith(('fc_norm.', 'pre_logits.')) for key in left):
        # two heads on two tokens, or a layer before the head: our classifier would answer otherwise
        heads = [key for key in renamed if key.startswith('classifier.')]
        left += [key.replace('classifier', 'head') for key in heads]
        renamed = {key: item for key, item in renamed.items() if key not in heads}
    _fold_patch_bias(renamed)
    position = _fold_prefix(own, renamed, spec, name)
    refuse_nan(renamed, name, progress)
    arch = _agreed(_arch_of(renamed, spec, own, name), said, spec, renamed, name)
    temporal = None
    if known is not None:  # a checkpoint of ours says what it is
        description = read_architecture(known, name)
        arch, temporal = description['arch'], description['temporal_position']
        position = as_given(description['position'])
    heads_of_width = spec.heads.get(arch['embed_dims']) if spec.rules else None
    if heads_found := num_heads or heads_told or arch.get('num_heads') or heads_of_width:
        arch['num_heads'] = heads_found
    if spec.periods in own:
        _check_periods(own[spec.periods], arch['rope'], name)
    by_name = (s for p, s in spec.named_statistics.items() if re.search(p, place_of(name)))
    mean, std = said.get('statistics') or next(by_name, spec.statistics) or (None, None)
    return NaViTWeights(
        tensors=renamed,
        arch=arch,
        position=position,
        temporal_position=temporal,
        input_mean=mean,
        input_std=std,
        family=chosen,
        stated=family != 'auto',
        told=told,
        source=name,
        left_over=(*left, *others),
        notes=(*notes, *unused, *_precision(renamed)),
    )


def _by_config(
    family: str, stated: Mapping[str, Any]
) -> tuple[str, str, dict[str, Any], tuple[str, ...]]:
    """The family, what told it, what of `stated` counts, and a note on what does not."""
    said = dict(stated)
    file, model_type = said.setdefault('config', 'config.json'), said.pop('model_type', None)
    in_config = of_model_type(model_type)
    if in_config in ('auto', family):
        return family, 'stated', said, ()
    if family == 'auto':
        return in_config, f'told by its {file}, model_type {model_type!r}', said, ()
    one_layout = FAMILIES[in_config].signature == FAMILIES[family].signature
    sizes = [key for key in CONFIG_NAMES if one_layout and key in said]
    used = ', '.join(CONFIG_NAMES[key] for key in sizes)
    note = f'used for {used} alone' if used else 'not used'
    return (
        family,
        'stated',
        {'config': file, **{key: said[key] for key in sizes}},
        (f'its {file} is of model_type {model_type!r}, and was {note}',),
    )


def as_given(position: dict[str, Any] | None) -> dict[str, Any] | None:
    """A position's spec that JSON brought back."""
    if position and 'grid' in position:
        position['grid'] = tuple(position['grid'])
    return position


def _rename(own: dict[str, Tensor], spec: Family, name: str) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under our names, by the rules; what they are made of leaves `own`."""
    if not spec.rules:
        return dict(own), []
    shape = _patch_shape(own, spec, name)
    renamed: dict[str, Tensor] = {}
    notes: dict[str, None] = {}
    there = frozenset(own)
    for rule in sorted(spec.rules, key=lambda rule: rule.form != 'masked'):
        for place in _places(own, rule, there):
            keys = [template.format(**place) for template in rule.theirs]
            parts = _parts(own, rule, keys, place, name, notes)
            targets = [item.format(**place, shape=shape) for item in rule.ours]
            for target, item in zip(targets, _ours(rule, parts, f'{name}: {keys[0]}'), strict=True):
                renamed[target] = item
            if set(spec.tokens).isdisjoint(keys):
                for key in keys:
                    own.pop(key, None)
    return renamed, list(notes)


def _places(
    own: Mapping[str, Tensor], rule: Rule, there: frozenset[str]
) -> Iterator[dict[str, str]]:
    """The values of {i} and {p} for which a rule holds: the first of its tensors is there."""
    pattern = key_pattern(rule.theirs[0])
    for key in list(own):
        if not (match := pattern.fullmatch(key)):
            continue
        place = match.groupdict()
        masked = rule.form != 'masked' or rule.theirs[1].format(**place) in own
        beside = not rule.beside or rule.beside.format(**place) in there
        if masked and beside and not (rule.without and rule.without.format(**place) in there):
            yield place


def _parts(
    own: Mapping[str, Tensor],
    rule: Rule,
    keys: list[str],
    place: Mapping[str, str],
    name: str,
    notes: dict[str, None],
) -> list[Tensor]:
    """The tensors of a rule, zeros for those that may be absent."""
    first = own[keys[0]]
    optional = {template.format(**place) for template in rule.optional}
    parts = []
    for key in keys:
        if key in own:
            parts.append(own[key])
        elif key in optional:
            parts.append(torch.zeros_like(first))
            notes.setdefault(f'{rule.optional[0]}: absent, zeros here')
        else:
            raise ValueError(f'{name} lacks {key}, though it holds {keys[0]}: fetch it again')
    return parts


def _ours(rule: Rule, parts: list[Tensor], key: str) -> list[Tensor]:
    """Our tensors of a rule from theirs."""
    if rule.form == 'masked':
        return [_masked(*parts)]
    if rule.form in _FLAX:
        parts = [_FLAX[rule.form](part) for part in parts]
    tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
    if rule.form in _KERNELS:
        if tensor.ndim != (wanted := _KERNELS[rule.form]):
            raise ValueError(
                f'{key} has {tensor.ndim} dimensions {tuple(tensor.shape)}; a kernel of this '
                f'family has {wanted}'
            )
        tensor = tensor.flatten(1)
    elif rule.form == 'channels_last':
        tensor = tensor.unflatten(1, (-1, 3)).transpose(1, 2).flatten(1)
    elif rule.form == 'row':
        tensor = tensor.reshape(-1, tensor.shape[-1])
    if len(rule.ours) == 1:
        return [tensor]
    shares = rule.shares or (1,) * len(rule.ours)
    unit = len(tensor) // sum(shares)
    return [item.contiguous() for item in tensor.split([share * unit for share in shares])]


def _masked(bias: Tensor, mask: Tensor) -> Tensor:
    """DINOv3's bias of queries, keys and values: that of the keys counts as zero.

    The mask says so, (1, 0, 1); where it was never filled it is NaN, and the same holds.
    """
    third = len(bias) // 3
    usual = torch.ones_like(bias)
    usual[third : 2 * third] = 0
    mask = torch.where(mask.isfinite(), mask, usual).to(bias.dtype)
    return torch.where(mask == 0, 0, bias * mask)


# Flax stores [in, out], with the two axes (heads, width of a head) in place of one in attention,
# and convolutions as [height, width, in, out].
_FLAX: dict[str, Callable[[Tensor], Tensor]] = {
    'flax_in': lambda kernel: kernel.flatten(1).t().contiguous(),
    'flax_out': lambda kernel: kernel.flatten(0, -2).t().contiguous(),
    'flax_conv': lambda kernel: kernel.permute(3, 2, 0, 1).flatten(1),
    'flat': lambda vector: vector.flatten(),
}


def _patch_shape(own: Mapping[str, Tensor], spec: Family, name: str) -> str:
    """The name of the patch shape, from the kernel."""
    rule = next(r for r in spec.rules if r.ours == ('patch_embed.{shape}.weight',))
    (key,) = rule.theirs
    if key not in own:
        raise ValueError(f'{name} has no {key}: the patch embedding is missing')
    kernel = own[key]
    if rule.form == 'flax_conv' and kernel.ndim == 4:
        return f'1x{kernel.shape[0]}x{kernel.shape[1]}'
    if rule.form == 'channels_last':
        side = math.isqrt(kernel.shape[1] // 3)
        if kernel.ndim != 2 or side * side * 3 != kernel.shape[1]:
            raise ValueError(
                f'{name}: {key} has {tuple(kernel.shape)}, not (width, 3 * side * side) as in this '
                'family: take weights of a family that is known'
            )
        return f'1x{side}x{side}'
    sides = kernel.shape[2:]
    return 'x'.join(map(str, sides if len(sides) == 3 else (1, *sides)))


def _fold_patch_bias(renamed: dict[str, Tensor]) -> None:
    """CLIP's patch embedding has no bias: zeros."""
    for key in [key for key in renamed if re.fullmatch(r'patch_embed\.[\dx]+\.weight', key)]:
        bias = key.replace('.weight', '.bias')
        renamed.setdefault(bias, renamed[key].new_zeros(len(renamed[key])))


def _fold_prefix(
    own: Mapping[str, Tensor], renamed: dict[str, Tensor], spec: Family, name: str
) -> dict[str, Any] | None:
    """Put prefix tokens and the position table into `renamed`; give the position's spec.

    A class token's position row is added to it: nothing stands between the two in the model.
    """
    if not spec.rules:
        return None
    width = next(t.shape[0] for key, t in renamed.items() if key.startswith('patch_embed.'))
    tokens = [own[key].reshape(-1, width) for key in spec.tokens if key in own]
    registers = own[spec.registers].reshape(-1, width) if spec.registers in own else None
    num_class = sum(len(item) for item in tokens)
    parts = [*tokens, *([] if registers is None else [registers])]
    prefix = torch.cat(parts) if parts else None
    if prefix is not None:
        renamed['prefix'] = prefix
    if not spec.position:
        return None
    if missing := [key for key in spec.position if key not in own]:
        raise ValueError(f'{name} has no {missing[0]}, the learned positions of this family')
    rule = {'offset': 0.0, 'keep_aspect': False, **spec.interpolation}
    if len(spec.position) == 2:
        y, x = (own[key].reshape(-1, width) for key in spec.position)
        renamed['position.y'], renamed['position.x'] = y, x
        return {'kind': 'learned_axes', 'grid': (len(y), len(x)), **rule}
    table = own[spec.position[0]]
    if table.ndim == 4 and table.shape[1] == width != table.shape[3]:
        table = table.movedim(1, 3)  # [1, D, h, w], as of a convolution
    if table.shape[-1] != width:
        raise ValueError(
            f'{name}: {spec.position[0]} has the shape {tuple(table.shape)}, and the model is '
            f'{width} wide: positions are [1, N, D], [1, h, w, D] or [1, D, h, w]'
        )
    if table.ndim >= 3 and 1 not in table.shape[-3:-1] and table.shape[:-3] in ((), (1,)):
        grid = table.shape[-3:-1]
        if table.ndim == 4 or (len(table.shape) == 3 and 'none' in spec.covered):
            renamed['position.table'] = table.reshape(*grid, width)
            return {'kind': 'learned_1d', 'grid': tuple(grid), **rule}
    table = table.reshape(-1, width)
    total = 0 if prefix is None else len(prefix)
    counts = {'all': total, 'class': num_class, 'none': 0}
    rows = {counts[kind] for kind in spec.covered}
    fitting = [r for r in sorted(rows, reverse=True) if _square(len(table) - r)]
    if not fitting:
        raise ValueError(
            f'{name}: {spec.position[0]} has {len(table)} rows, and less those of the prefix '
            f'tokens ({" or ".join(map(str, sorted(rows)))}) they fill no square grid'
        )
    if len(fitting) > 1 and len(table) > fitting[0] + 1:
        raise ValueError(
            f'{name}: the {len(table)} rows of {spec.position[0]} are a square grid with and '
            f'without rows for the {fitting[0]} prefix tokens: drop these rows, or these tokens'
        )
    covered, side = fitting[0], math.isqrt(len(table) - fitting[0])
    if covered and prefix is not None:
        exact = torch.promote_types(prefix.dtype, torch.float32)
        sums = prefix[:covered].to(exact) + table[:covered].to(exact)
        renamed['prefix'] = torch.cat([sums.to(prefix.dtype), prefix[covered:]])
    renamed['position.table'] = table[covered:].reshape(side, side, width)
    return {'kind': 'learned_1d', 'grid': (side, side), **rule}


def _check_periods(periods: Tensor, rope: Mapping[str, Any], name: str) -> None:
    """Raise where stored periods, which bfloat16 may have rounded, are not those of `rope`."""
    count = len(periods)
    wanted = rope['theta'] ** (torch.arange(count, dtype=torch.float64) / count)
    if not torch.allclose(periods.double(), wanted, rtol=0.01):
        raise ValueError(
            f'{name}: its RoPE has periods from {periods[0]:.3g} to {periods[-1]:.3g}, those of '
            f'theta={rope["theta"]:g} go from {wanted[0]:.3g} to {wanted[-1]:.3g}: weights with a '
            'RoPE of their own are not read'
        )


def _square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def _arch_of(
    tensors: Mapping[str, Tensor], spec: Family, own: Mapping[str, Tensor], name: str
) -> dict[str, Any]:
    """The fields of Arch that the family and tensors under our names tell."""
    numbers = {int(key.split('.')[1]) for key in tensors if re.match(r'blocks\.\d+\.', key)}
    if numbers != set(range(len(numbers))) or 'blocks.0.mlp.fc2.weight' not in tensors:
        raise ValueError(f'{name} lacks blocks: it holds the numbers {sorted(numbers)}')
    rows, hidden = (tensors[f'blocks.0.mlp.{n}.weight'].shape for n in ('fc1', 'fc2'))
    if rows[0] == 2 * hidden[1]:
        raise ValueError(
            f'{name}: blocks.0.mlp.fc1.weight has {rows[0]} rows for {hidden[1]} hidden channels: '
            "a gated MLP in one matrix as timm has it is not read; take its authors' own file"
        )
    pooled_norm = any(key.startswith('fc_norm.') for key in own)  # instead, after the mean
    arch: dict[str, Any] = dict(spec.arch)
    arch |= {
        'embed_dims': tensors['blocks.0.mlp.fc2.weight'].shape[0],
        'num_layers': len(numbers),
        'feedforward_channels': tensors['blocks.0.mlp.fc2.weight'].shape[1],
        'norm_bias': 'blocks.0.norm1.bias' in tensors,
        'pre_norm': 'norm_pre.weight' in tensors,
        'final_norm': 'norm.weight' in tensors or (spec.ends_in_norm and not pooled_norm),
        'qkv_bias': 'blocks.0.attn.qkv.bias' in tensors,
        'layer_scale': 1e-6 if 'blocks.0.ls1.gamma' in tensors else None,
        'prefix_tokens': len(tensors['prefix']) if 'prefix' in tensors else 0,
    }
    if 'blocks.0.mlp.fc3.weight' in tensors:
        arch['mlp'] = 'swiglu_norm' if 'blocks.0.mlp.norm.weight' in tensors else 'swiglu'
    if not arch['norm_bias'] and (not spec.rules or arch['norm'] == 'rms_norm'):
        del arch['norm_bias']  # an RMSNorm never has one
    arch |= _qk_norm_of(tensors, spec)
    if spec.rules:
        arch.setdefault('rope', None)
        registers = own.get(spec.registers)
        arch['registers'] = 0 if registers is None else registers.numel() // arch['embed_dims']
    if 'classifier.weight' in tensors:
        arch['num_classes'] = len(tensors['classifier.weight'])
    if 'pool.probe' in tensors:
        arch['pooling'] = 'map'
    elif 'classifier.weight' in tensors:
        of_class = arch['prefix_tokens'] > arch.get('registers', 0)
        arch['pooling'] = 'token' if of_class else 'mean'
    return arch


def _agreed(
    arch: dict[str, Any],
    said: Mapping[str, Any],
    spec: Family,
    tensors: Mapping[str, Tensor],
    name: str,
) -> dict[str, Any]:
    """The architecture with what a config adds to it; raise where the two disagree."""
    file = said['config']
    if not said.keys() - {'config', 'statistics'}:
        return arch
    sides = {key.split('.')[1].split('x')[-1] for key in tensors if key.startswith('patch_embed.')}
    there = {**arch, 'patch_size': int(min(sides))}
    for key, term in CONFIG_NAMES.items():
        if key in said and there.get(key, said[key]) != said[key]:
            raise ValueError(
                f'{name}: its {file} says {term} {said[key]}, its tensors {there[key]}: they '
                f'are of two models; fetch both from one place, or take the {file} away'
            )
    if arch['embed_dims'] % said.get('num_heads', 1):
        raise ValueError(
            f'{name}: its {file} says num_attention_heads {said["num_heads"]}, which does '
            f'not divide the width of its tensors, {arch["embed_dims"]}: fetch both from one place'
        )
    added = {key: said[key] for key in ('num_heads', 'norm_eps', 'mlp') if key in said}
    if gated := str(arch['mlp']).startswith('swiglu'):
        act = added.pop('mlp', 'silu')
        if spec.act_of_gate and act != 'silu':
            raise ValueError(f'{name}: its config.json gates by {act!r}, and NaViT by silu alone')
    if not gated and added.get('mlp', 'gelu') not in ACTIVATIONS:
        raise ValueError(
            f'{name}: its {file} says hidden_act {added["mlp"]!r}, and NaViT has '
            f'{", ".join(ACTIVATIONS)}: it would compute something else; take another model'
        )
    if arch.get('rope') and 'rope' in said:
        added['rope'] = {**arch['rope'], **said['rope']}
    return arch | added


def _precision(tensors: Mapping[str, Tensor]) -> list[str]:
    """The note that values are of another precision than float32, which is usual."""
    kinds = Counter(str(item.dtype).removeprefix('torch.') for item in tensors.values())
    if set(kinds) == {'float32'}:
        return []
    text = ' and '.join(f'{kind} ({count} tensors)' for kind, count in kinds.items())
    return [f'values are {text}: kept so in files, cast to the model when loaded']


def _qk_norm_of(tensors: Mapping[str, Tensor], spec: Family) -> dict[str, Any]:
    """`qk_norm`, and the heads that it tells; nothing where its kind is open."""
    scale = tensors.get('blocks.0.attn.q_norm.weight')
    if scale is None:
        return {'qk_norm': None}
    found: dict[str, Any] = {}
    width = tensors['blocks.0.mlp.fc2.weight'].shape[0]
    if len(scale) < width:
        found['num_heads'] = width // len(scale)
    return found | ({'qk_norm': spec.arch['qk_norm']} if 'qk_norm' in spec.arch else {})


def refuse_nan(tensors: Mapping[str, Tensor], name: str, progress: Progress = unseen) -> None:
    """Raise, naming the keys, where a tensor is not finite."""
    bad, done, total = [], 0, sum(item.nbytes for item in tensors.values())
    for key, item in tensors.items():
        # numbers of a byte are quantised, and refused as such
        if item.is_floating_point() and item.itemsize > 1 and not item.isfinite().all():
            bad.append(key)
        done += item.nbytes
        progress('checking', done, total)
    if bad:
        raise ValueError(f'{name}: {summary(bad)} hold NaN or infinity: give an earlier checkpoint')


def summary(keys: tuple[str, ...] | list[str]) -> str:
    """'norm.weight, norm.bias, blocks.0.ls1.gamma (+ 23 of blocks.*)', or 'none'."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(key.split('.')[0], []).append(key)
    parts = []
    for name, group in groups.items():
        many = len(group) > 2
        parts += [f'{group[0]} (+ {len(group) - 1} of {name}.*)'] if many else group
    return ', '.join(parts[:12]) + (', ...' if len(parts) > 12 else '') or 'none'
