"""Whose weights a state dict holds: the models in it, and the family of the one that is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from .families import FAMILIES, REFUSED, Family
from .weight_files import COMPILED, refuse_unusual

# What wraps the weights of a model; where none of these is there, any other key with tensors in it.
WRAPPERS = ('state_dict', 'model', 'model_state_dict', 'teacher', 'module')


_NO_MODELS = re.compile(
    r'^state$|optim|sched|scaler|message_hub|meta$|resume|callback|loops|rng|args'
)


def find_tensors(content: Mapping[str, Any], name: str) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors inside a checkpoint's wrappers, and the names of what else is in it.

    Where several wrappers hold tensors, their names stay before the keys, so that one is picked.
    """
    models = _models_in(content)
    others = [str(key) for key in content if key not in models]
    if len(models) > 1:
        found = {key: find_tensors(item, name)[0] for key, item in models.items()}
        joined = {f'{w}.{key}': item for w, model in found.items() for key, item in model.items()}
        return joined, others
    for item in models.values():
        tensors, more = find_tensors(item, name)
        return tensors, [*others, *more]
    tensors = {
        key.replace(COMPILED, ''): item
        for key, item in content.items()
        if isinstance(key, str) and isinstance(item, Tensor)
    }
    if tensors:
        refuse_unusual(tensors, name)
        return tensors, [str(k) for k, item in content.items() if not isinstance(item, Tensor)]
    there = ', '.join(map(str, list(content)[:6])) or 'nothing'
    if 'param_groups' in content or 'optimizer' in content:
        raise ValueError(f'{name} holds an optimizer ({there}) and no weights: give the model file')
    raise ValueError(f'{name} holds no tensors, only {there}: give a state dict')


def enter_prefix(
    content: Mapping[str, Any], prefix: str | None
) -> tuple[Mapping[str, Any], str | None]:
    """Return the part of a checkpoint that the first words of a prefix name, and the other words.

    `model_ema` of {'model': ..., 'model_ema': ...} is that dict, and no word is left (None).
    """
    rest = (prefix or '').removesuffix('.')
    while rest:
        keys = [
            key
            for key, item in content.items()
            if isinstance(item, Mapping) and f'{rest}.'.startswith(f'{key}.')
        ]
        if not keys:
            return content, rest
        key = max(keys, key=len)
        content, rest = content[key], rest[len(key) + 1 :]
    return content, prefix if prefix == '' else None


def other_models(content: Mapping[str, Any]) -> list[str]:
    """Return the names of wrappers that hold tensors and are not read unless they are picked."""
    read = _models_in(content)
    return [str(k) for k, item in content.items() if k not in read and _is_model(str(k), item)]


def _models_in(content: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the wrappers of a checkpoint with tensors in them: the usual ones, else any."""
    found = {key: item for key, item in content.items() if _is_model(str(key), item)}
    usual = {key: item for key, item in found.items() if key in WRAPPERS}
    bare = any(isinstance(item, Tensor) for item in content.values())
    return usual or ({} if bare else found)


def _is_model(key: str, item: Any) -> bool:
    named = isinstance(item, Mapping) and not _NO_MODELS.search(key)
    return named and 'param_groups' not in item and _holds_tensors(item)


def _holds_tensors(content: Mapping[str, Any]) -> bool:
    return any(
        isinstance(item, Tensor) or _is_model(str(key), item) for key, item in content.items()
    )


def refuse_known(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise on tensors of a model that would compute something else here."""
    for pattern, reason in REFUSED.items():
        if key := next((key for key in tensors if re.fullmatch(pattern, key)), None):
            raise ValueError(f'{name} holds {key}: it is {reason}')


def of_model_type(model_type: str | None) -> str:
    """The family of the `model_type` in a config.json, or 'auto'."""
    fitting = [name for name, spec in FAMILIES.items() if model_type in spec.model_types]
    return fitting[0] if fitting else 'auto'


def own_tensors(
    tensors: Mapping[str, Tensor], candidates: list[str], name: str, prefix: str | None, told: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the one model of a candidate, without their prefix, and the other keys."""
    signatures = {FAMILIES[candidate].signature for candidate in candidates}
    found = sorted(
        {
            key[: match.start(1)]
            for key in tensors
            for signature in signatures
            if (match := re.fullmatch(rf'(?:.*\.)?({signature})', key))
        }
    )
    choices = found
    if prefix is not None:
        wanted = prefix if not prefix or prefix.endswith('.') else f'{prefix}.'
        exact = [item for item in found if item in (wanted, f'{wanted}vit.')]
        found = exact or [item for item in found if wanted and item.startswith(wanted)]
    if not found:
        if len(candidates) == 1:
            (signature,) = signatures
            raise ValueError(
                f'{name} is not of the family {candidates[0]} ({told}): no key '
                f'{readable(signature)} in it; '
                f'it holds {", ".join(list(tensors)[:4])}, ...: state another (--family)'
            )
        raise ValueError(
            f'{name} is of no known family'
            + (f' under the prefix {prefix!r} (it has {choices})' if prefix else '')
            + f': known are {", ".join(FAMILIES)}; it holds {", ".join(list(tensors)[:4])}, ...'
        )
    if len(found) > 1:
        raise ValueError(
            f'{name} holds several models, under {found}: pick one with prefix=... (--prefix)'
        )
    start = found[0]
    own = {key[len(start) :]: item for key, item in tensors.items() if key.startswith(start)}
    return own, [key for key in tensors if not key.startswith(start)]


def find_family(own: Mapping[str, Tensor], others: list[str], name: str) -> tuple[str, str]:
    """The one family that the keys fit, or of several the one that a name tells; and what told."""
    faults = {}
    place, doubt = place_of(name), ''
    for candidate, spec in FAMILIES.items():
        keys = respelled(own, spec)
        signed = any(re.fullmatch(spec.signature, key) for key in keys)
        told = not spec.requires or any(re.fullmatch(spec.requires, key) for key in keys)
        told &= not spec.mark or spec.mark in keys or bool(re.search(spec.told_by, place))
        held = not spec.position or all(key in keys for key in spec.position)
        if signed and told and held:
            faults[candidate] = unknown_keys(keys, spec)
    fitting = [candidate for candidate, unknown in faults.items() if not unknown]
    for candidate in fitting or faults:
        for pattern, reason in FAMILIES[candidate].strangers.items():
            if re.search(pattern, place):
                raise ValueError(
                    f'{name} is {reason}; if its name misleads, state the family (--family)'
                )
    if not fitting and faults:
        return min(faults, key=lambda candidate: len(faults[candidate])), ''  # what is unknown
    if not fitting:
        raise ValueError(
            f'{name} looks like a ViT and is of no known family: it lacks what tells them apart; '
            f'known are {", ".join(FAMILIES)}; it holds {", ".join(list(own)[:4])}, ...'
        )
    if len(fitting) == 1:
        return fitting[0], 'told by its keys'
    for kind, texts in (('keys', (*own, *others)), ('name', (place,))):
        named = [
            candidate
            for candidate in fitting
            if any(re.search(FAMILIES[candidate].told_by, text) for text in texts if text)
        ]  # $^ is in ''
        if len(named) == 1:
            return named[0], f'told by its {kind}'
        if named:
            fitting, doubt = named, f', and its {kind} tell{"s" * (kind == "name")} more than one'
            break
    choices = '\n  '.join(f'{item}: {_untold(FAMILIES[item])}' for item in fitting)
    raise ValueError(
        f'{name} fits {", ".join(fitting)} alike{doubt}; they differ in what no tensor tells: '
        f'state which by family=... (--family {fitting[-1]}, say):\n  {choices}'
    )


def place_of(name: str) -> str:
    """The 'folder/file' of a source, or 'owner/model' on the Hub: what its name tells."""
    path = Path(name.lower())
    return f'{path.parent.name}/{path.name}'


def _untold(spec: Family) -> str:
    """What of a family no tensor tells, in a line."""
    arch, table = spec.arch, spec.interpolation
    parts = [f'eps {arch.get("norm_eps")}', str(arch.get('mlp', 'swiglu_norm'))]
    if table:
        smooth = 'with' if table.get('antialias') else 'without'
        parts.append(f'positions {table["interpolation"]} {smooth} antialias')
    if spec.statistics:
        parts.append(f'mean of the input {spec.statistics[0]}')
    return ', '.join(parts)


def respelled(own: Mapping[str, Tensor], spec: Family) -> dict[str, Tensor]:
    """The tensors under the spelling that the rules know."""
    if not spec.aliases:
        return dict(own)
    return {_respell(key, spec): item for key, item in own.items()}


def _respell(key: str, spec: Family) -> str:
    for pattern, spelling in spec.aliases.items():
        if re.fullmatch(pattern, key):
            return re.sub(pattern, spelling, key)
    return key


def unknown_keys(own: Mapping[str, Tensor], spec: Family) -> list[str]:
    """The keys that have no place."""
    known = {*spec.tokens, spec.registers, *spec.position}
    return [
        key
        for key in own
        if key not in known and not is_ruled(key, spec) and not re.fullmatch(spec.droppable, key)
    ]


def is_ruled(key: str, spec: Family) -> bool:
    """Whether a rule makes something of this key."""
    return not spec.rules or any(
        key_pattern(t).fullmatch(key) for r in spec.rules for t in r.theirs
    )


@cache
def key_pattern(template: str) -> re.Pattern[str]:
    """What the keys of a template look like, with the groups i and p."""
    text = re.escape(template).replace(r'\{i\}', r'(?P<i>\d+)')
    return re.compile(
        text.replace(r'\{p\}', r'(?P<p>weight|bias)').replace(r'\{shape\}', r'[\dx]+')
    )


def readable(pattern: str) -> str:
    """A key's regular expression as a name."""
    return pattern.replace(r'\d+', 'N').replace('\\', '')
