"""NaViT's tensors under the names of a family: the rules of `families`, read from right to left.

What `conversion` folded cannot be told apart again: a class token keeps the position row that was
added to it, and the table has a row of zeros there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .checkpoint import OPTIONAL
from .conversion import NaViTWeights, summary
from .families import FAMILIES, Family, Rule
from .vit import shape_name


class GivenBack(NamedTuple):
    """Tensors as a family names them."""

    tensors: dict[str, Tensor]
    left_out: tuple[str, ...]  # of ours: pooling and classifier, where the family has none
    notes: tuple[str, ...]  # what is not as it was


def give_back(weights: NaViTWeights, family: str, *, absent: Collection[str] = ()) -> GivenBack:
    """The weights of a picture model under the names of `family`; raise where one has no place.

    `absent`: names of theirs that the model at hand does not have, though others of its family do.
    """
    spec = FAMILIES[family]
    own, notes = dict(weights.tensors), []
    given: dict[str, Tensor] = {}
    mlp = 'gated' if 'blocks.0.mlp.fc3.weight' in own else 'plain'
    rules = [r for r in spec.rules if r.written in ('any', mlp) and not set(r.theirs) & set(absent)]
    notes += _fold_patch_bias(own, rules)
    for rule in rules:
        for names, theirs in _places(rule, weights):
            if all(name in own for name in names):
                parts = [own.pop(name) for name in names]
                given |= dict(zip(theirs, _theirs(rule, parts, weights), strict=True))
    notes += _drop_zeros(given, rules, weights)
    notes += _unfold_prefix(own, given, spec, weights)
    if wrong := [key for key in own if not key.startswith(OPTIONAL)]:
        raise ValueError(f'{summary(wrong)}: {family} has no place for them; keep our own format')
    return GivenBack(given, tuple(own), tuple(notes))


def covered_tokens(spec: Family, weights: NaViTWeights) -> int:
    """How many prefix tokens get a row in the position table of `spec`."""
    tokens, registers = (int(weights.arch.get(k, 0)) for k in ('prefix_tokens', 'registers'))
    counts = {'all': tokens, 'class': tokens - registers, 'none': 0}
    # where both are usual, models with registers have no rows for any of them
    return counts[spec.covered[-1] if registers else spec.covered[0]]


def _places(rule: Rule, weights: NaViTWeights) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The names of ours and of theirs, for every block and for weight and bias."""
    (shape,) = weights.patch_shapes
    found: dict[tuple[str, ...], tuple[str, ...]] = {}
    for i in range(weights.arch['num_layers']):
        for p in ('weight', 'bias'):
            ours = tuple(item.format(i=i, p=p, shape=shape_name(shape)) for item in rule.ours)
            found.setdefault(ours, tuple(item.format(i=i, p=p) for item in rule.theirs))
    yield from found.items()


def _theirs(rule: Rule, parts: list[Tensor], weights: NaViTWeights) -> list[Tensor]:
    """Their tensors of a rule from ours: views wherever values stay in their order."""
    ((_, h, w),) = weights.patch_shapes
    tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
    if rule.form == 'kernel':
        tensor = tensor.unflatten(1, (-1, h, w))
    elif rule.form == 'channels_last':
        tensor = tensor.unflatten(1, (-1, h * w)).transpose(1, 2).flatten(1)
    elif rule.form == 'row':
        tensor = tensor[None]
    else:
        assert rule.form == 'same', f'no way back for {rule.form}'
    return list(tensor.chunk(len(rule.theirs)))


def _drop_zeros(given: dict[str, Tensor], rules: list[Rule], weights: NaViTWeights) -> list[str]:
    """Leave out what may be absent, where it is zero in every block."""
    notes = []
    for rule in rules:
        for template in rule.optional:
            keys = [template.format(i=i) for i in range(weights.arch['num_layers'])]
            there = [key for key in keys if key in given]
            if there and not any(given[key].any() for key in there):
                for key in there:
                    del given[key]
                notes.append(f'{template}: zeros, and left out')
    return notes


def _fold_patch_bias(own: dict[str, Tensor], rules: list[Rule]) -> list[str]:
    """Where their patch embedding has no bias, it goes into every row of the position table.

    The weights of an interpolation sum to one, so the same is added at every grid.
    """
    if any(item == 'patch_embed.{shape}.bias' for rule in rules for item in rule.ours):
        return []
    (key,) = (key for key in own if key.startswith('patch_embed.') and key.endswith('.bias'))
    bias, table = own.pop(key), own.get('position.table')
    if not bias.any():
        return []
    assert table is not None, 'a family without a patch bias has a position table'
    wide = torch.promote_types(torch.promote_types(table.dtype, bias.dtype), torch.float32)
    own['position.table'] = (table.to(wide) + bias.to(wide)).to(table.dtype)
    return [f'{key}: they have none, so it is added to every row of the position table']


def _unfold_prefix(
    own: dict[str, Tensor], given: dict[str, Tensor], spec: Family, weights: NaViTWeights
) -> list[str]:
    """Class tokens, registers and the position table as theirs; what is not as it was."""
    # the table of an nn.Embedding has no axis for the batch, and the token beside it only its own
    embedding = bool(spec.position) and spec.position[0].endswith('.weight')
    if (prefix := own.pop('prefix', None)) is not None:
        registers = weights.arch.get('registers', 0)
        tokens = prefix[: len(prefix) - registers]
        for key, token in zip(spec.tokens, tokens, strict=False):
            given[key] = token if embedding else token[None, None]
        if registers:
            given[spec.registers] = prefix[-registers:][None]
    if not spec.position or 'position.table' not in own:
        return []
    rows = own.pop('position.table').flatten(0, 1)
    (key,) = spec.position
    count = covered_tokens(spec, weights)
    rows = torch.cat([rows.new_zeros(count, rows.shape[1]), rows])
    given[key] = rows if embedding else rows[None]
    names = ', '.join(item for item in spec.tokens if item in given)
    return [f'{key}: zeros in the rows of {names}, which hold the sums already'] if count else []
