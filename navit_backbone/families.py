"""Weights of other projects under NaViT's names.

A family's spec says how its keys map to NaViT's and what its tensors cannot tell: norm and eps,
activation, number of heads, the interpolation rule of its positions, the input it was trained on.
A key that has no place is refused, since the rest would compute something else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std of RGB in [0, 1]
INCEPTION = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True, kw_only=True)
class Family:
    """How the files of one origin are laid out, declaratively."""

    signature: str  # a key that all of them hold, as a regular expression
    keys: Mapping[str, str]  # regular expression of their key -> ours; {shape} is the patch shape
    arch: Mapping[str, Any]  # fields of Arch that no tensor tells
    prefix: tuple[str, ...] = ()  # keys of the prefix tokens, in their order
    position: str = ''  # key of the position table
    droppable: str = '$^'  # regular expression of keys that may be left over
    antialias: bool = True  # how its origin interpolates the table: bicubic, with this or without
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # of the input
    told_by: str = '$^'  # regular expression: what in a key or in the file's name tells the family


_TIMM_BLOCK = r'norm1|norm2|attn\.qkv|attn\.proj|attn\.q_norm|attn\.k_norm|mlp\.fc1|mlp\.fc2'
_TIMM: dict[str, Any] = {
    'signature': r'patch_embed\.proj\.weight',
    'keys': {
        rf'(blocks\.\d+\.(?:{_TIMM_BLOCK})\.(?:weight|bias))': r'\1',
        r'(blocks\.\d+\.ls[12]\.gamma)': r'\1',
        r'norm\.(weight|bias)': r'norm.\1',
        r'patch_embed\.proj\.(weight|bias)': r'patch_embed.{shape}.\1',
        r'head\.(weight|bias)': r'classifier.\1',
    },
    'arch': {'norm': 'layer_norm', 'norm_eps': 1e-6, 'mlp': 'gelu', 'rope': None},
    'prefix': ('cls_token', 'dist_token', 'reg_token'),
    'position': 'pos_embed',
    'droppable': r'(head|head_dist|pre_logits|fc_norm)\..*',
}
FAMILIES = {
    'navit': Family(signature=r'patch_embed\.\d+x\d+x\d+\.weight', keys={r'(.*)': r'\1'}, arch={}),
    'mae': Family(
        **_TIMM | {'droppable': r'(head|fc_norm|decoder_\w+)\..*|mask_token|decoder_pos_embed'},
        antialias=False,
        statistics=IMAGENET,
        told_by=r'decoder_embed\.|(^|[_.-])mae([_.-]|$)',
    ),
    'timm-augreg': Family(**_TIMM, statistics=INCEPTION, told_by=r'augreg'),
    'timm-deit': Family(**_TIMM, statistics=IMAGENET, told_by=r'deit'),
    'deit': Family(**_TIMM, antialias=False, statistics=IMAGENET),  # the first release's own rule
    'timm-vit': Family(**_TIMM),
}
# Widths whose number of heads is the same in every public plain ViT; no tensor tells it.
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}


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
) -> NaViTWeights:
    """Foreign tensors under NaViT's names, nothing resized; raise on a key that has no place."""
    own, others = _strip(tensors, name, prefix)
    chosen = _find_family(own, Path(name).stem) if family == 'auto' else family
    spec = FAMILIES[chosen]
    if not any(re.fullmatch(spec.signature, key) for key in own):
        raise ValueError(f'{name} is not of the family {chosen}: no key {spec.signature} in it')
    refuse_nan(own, name)
    renamed, left = _rename(own, spec)
    if 'dist_token' in own or any(key.startswith('fc_norm.') for key in left):
        # two heads on two tokens, or a norm after the mean: our classifier would answer otherwise
        heads = [key for key in renamed if key.startswith('classifier.')]
        left += [key.replace('classifier', 'head') for key in heads]
        renamed = {key: item for key, item in renamed.items() if key not in heads}
    position = _fold_prefix(own, renamed, spec, name)
    arch = {**_arch_of(renamed, name), **spec.arch}
    if num_heads is None and 'num_heads' not in arch and spec.arch:
        num_heads = _HEADS.get(arch['embed_dims'])
    arch |= {'num_heads': num_heads} if num_heads else {}
    mean, std = spec.statistics or (None, None)
    return NaViTWeights(
        tensors=renamed,
        arch=arch,
        position=position,
        input_mean=mean,
        input_std=std,
        family=chosen,
        stated=family != 'auto',
        left_over=(*left, *others),
    )


def find_tensors(content: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """The dict of tensors inside a checkpoint's wrappers."""
    for wrapper in ('state_dict', 'model', 'model_state_dict', 'module'):
        if isinstance(content.get(wrapper), Mapping):
            return find_tensors(content[wrapper], name)
    tensors = {key: item for key, item in content.items() if isinstance(item, Tensor)}
    if tensors:
        return tensors
    inside = ', '.join(map(str, list(content)[:6])) or 'nothing'
    if 'param_groups' in content or 'optimizer' in content:
        raise ValueError(
            f'{name} holds an optimizer ({inside}) and no weights: give the model file'
        )
    raise ValueError(f'{name} holds no tensors, only {inside}: give a state dict')


def _strip(
    tensors: Mapping[str, Tensor], name: str, prefix: str | None
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the one model of a known family, its prefix taken off; and the other keys."""
    found = sorted(
        {
            key[: match.start(1)]
            for key in tensors
            for spec in FAMILIES.values()
            if (match := re.fullmatch(rf'(?:.*\.)?({spec.signature})', key))
        }
    )
    if prefix is not None:
        wanted = prefix if not prefix or prefix.endswith('.') else f'{prefix}.'
        found = [item for item in found if item in (wanted, f'{wanted}vit.')]
    if not found:
        raise ValueError(
            f'{name} is of no known family'
            + (f' under the prefix {prefix!r}' if prefix else '')
            + f': known are {", ".join(FAMILIES)}; it holds {", ".join(list(tensors)[:4])}, ...'
        )
    if len(found) > 1:
        raise ValueError(f'{name} holds several models, under {found}: pick one with prefix=...')
    start = found[0]
    own = {key[len(start) :]: item for key, item in tensors.items() if key.startswith(start)}
    return own, [key for key in tensors if not key.startswith(start)] if start else []


def _find_family(tensors: Mapping[str, Tensor], stem: str) -> str:
    texts = [*tensors, stem.lower()]
    fitting = [
        name
        for name, spec in FAMILIES.items()
        if any(re.fullmatch(spec.signature, key) for key in tensors)
    ]
    told = [n for n in fitting if any(re.search(FAMILIES[n].told_by, text) for text in texts)]
    return (told or fitting[-1:])[0]


def _rename(own: Mapping[str, Tensor], spec: Family) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under our names, and the keys that are left over; raise on one that has no place."""
    renamed: dict[str, Tensor] = {}
    left, unknown = [], []
    for key, tensor in own.items():
        rule = next((rule for rule in spec.keys if re.fullmatch(rule, key)), None)
        if rule is not None:
            target = re.sub(rule, spec.keys[rule], key)
            if '{shape}' in target:
                target = target.format(shape=_patch_shape(own, spec))
                tensor = tensor.flatten(1) if tensor.ndim > 1 else tensor
            renamed[target] = tensor
        elif re.fullmatch(spec.droppable, key):
            left.append(key)
        elif key not in (*spec.prefix, spec.position):
            unknown.append(key)
    if unknown:
        raise ValueError(
            f'no place in NaViT for {summary(unknown)}: loading the rest would compute something '
            'else; take weights of a plain ViT, or remove these keys if they do not matter'
        )
    return renamed, left


def _patch_shape(own: Mapping[str, Tensor], spec: Family) -> str:
    key = next(key for key in own if re.fullmatch(spec.signature, key))
    kernel = own[key]
    if kernel.ndim != 4:
        raise ValueError(
            f'{key} has {kernel.ndim} dimensions {tuple(kernel.shape)}; a picture model has 4'
        )
    return f'1x{kernel.shape[2]}x{kernel.shape[3]}'


def _fold_prefix(
    own: Mapping[str, Tensor], renamed: dict[str, Tensor], spec: Family, name: str
) -> dict[str, Any] | None:
    """Put prefix tokens and the position table into `renamed`; give the position's spec.

    A class token's position row is added to it: nothing stands between the two in the model.
    """
    if not spec.position:
        return None
    width = next(t.shape[0] for key, t in renamed.items() if key.startswith('patch_embed.'))
    tokens = [own[key].reshape(-1, width) for key in spec.prefix if key in own]
    prefix = torch.cat([torch.zeros(0, width), *tokens]).to(
        tokens[0] if tokens else torch.zeros(())
    )
    if spec.position not in own:
        raise ValueError(f'{name} has no {spec.position}, the learned positions of this family')
    table = own[spec.position].reshape(-1, width)
    for rows in (len(prefix), 0):
        side = math.isqrt(max(len(table) - rows, 0))
        if side and side * side == len(table) - rows:
            break
    else:
        raise ValueError(
            f'{name}: {spec.position} has {len(table)} rows, and neither these nor {len(prefix)} '
            'less (its prefix tokens) fill a square grid'
        )
    if rows:
        exact = torch.promote_types(prefix.dtype, torch.float32)
        prefix = (prefix.to(exact) + table[:rows].to(exact)).to(prefix.dtype)
    renamed['prefix'] = prefix
    renamed['position.table'] = table[rows:].reshape(side, side, width)
    rule = {'interpolation': 'bicubic', 'antialias': spec.antialias}
    return {'kind': 'learned_1d', 'grid': (side, side), **rule}


def _arch_of(tensors: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """The fields of Arch that tensors under our names tell."""
    numbers = {int(key.split('.')[1]) for key in tensors if re.match(r'blocks\.\d+\.', key)}
    if numbers != set(range(len(numbers))) or 'blocks.0.mlp.fc2.weight' not in tensors:
        raise ValueError(f'{name} lacks blocks: it holds the numbers {sorted(numbers)}')
    arch: dict[str, Any] = {
        'embed_dims': tensors['blocks.0.mlp.fc2.weight'].shape[0],
        'num_layers': len(numbers),
        'feedforward_channels': tensors['blocks.0.mlp.fc2.weight'].shape[1],
        'norm_bias': 'blocks.0.norm1.bias' in tensors,
        'mlp': 'swiglu' if 'blocks.0.mlp.fc3.weight' in tensors else 'gelu',
        'qkv_bias': 'blocks.0.attn.qkv.bias' in tensors,
        'qk_norm': 'blocks.0.attn.q_norm.weight' in tensors,
        'layer_scale': 1e-6 if 'blocks.0.ls1.gamma' in tensors else None,
        'prefix_tokens': len(tensors['prefix']) if 'prefix' in tensors else 0,
    }
    if arch['qk_norm']:
        arch['num_heads'] = arch['embed_dims'] // len(tensors['blocks.0.attn.q_norm.weight'])
    if 'classifier.weight' in tensors:
        arch['num_classes'] = len(tensors['classifier.weight'])
        pooling = 'token' if arch['prefix_tokens'] else 'mean'
        arch['pooling'] = 'map' if 'pool.probe' in tensors else pooling
    return arch


def refuse_nan(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise, naming the keys, where a tensor is not finite."""
    bad = [k for k, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
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
