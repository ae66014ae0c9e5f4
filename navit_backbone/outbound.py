"""Files of NaViT's weights that timm and Hugging Face read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from .conversion import NaViTWeights, summary
from .families import FAMILIES
from .given_back import GivenBack, give_back
from .homes import HOMES, NAMES, PICTURES, Home, Target
from .plans import Plan, plan_of
from .sealed import Progress, unseen, write_sealed

CONFIG, TENSORS, INPUT = 'config.json', 'model.safetensors', 'preprocessor_config.json'


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written, and what is not in it; `print` it."""

    path: Path
    model: str
    arguments: Mapping[str, Any]
    left_over: tuple[str, ...]  # of the source, when it was read
    left_out: tuple[str, ...]  # of ours, which have no place there
    notes: tuple[str, ...]
    use: str

    def __str__(self) -> str:
        told = ', '.join(f'{key}={value!r}' for key, value in self.arguments.items())
        lines = [
            f'{self.path}: {self.model}({told})',
            f'  left over: {summary(self.left_over)}',
            f'  left out: {summary(self.left_out)}',
        ]
        lines += [f'  note: {note}' for note in self.notes]
        return '\n'.join([*lines, f'Use it:\n  {self.use}'])


def write_for(
    target: Target,
    out: str | os.PathLike[str],
    weights: NaViTWeights,
    *,
    overwrite: bool = False,
    progress: Progress = unseen,
) -> Written:
    """Write a file for timm or a folder for Hugging Face; raise where no model there computes this.

    What is there is left alone unless `overwrite`, and stays whole until the new one is.
    """
    path = Path(out)
    check_place(target, path, overwrite=overwrite)
    plan = plan_of(weights)
    home = find_home(target, plan)
    back = _complete(give_back(weights, home.family, absent=home.absent(plan)), home, plan)
    plan = replace(plan, key_bias=any(key.endswith('.k_proj.bias') for key in back.tensors))
    arguments = home.config(plan)
    assert arguments is not None, 'find_home gives none that no config makes'
    notes = [*weights.notes, *back.notes, *interpolation_note(home, plan), *home.notes]
    if target == 'timm':
        header = {'format': 'pt', 'timm': json.dumps(arguments)}
        write_sealed(path, back.tensors, header, progress=progress)
        use = f"model.load_state_dict(safetensors.torch.load_file('{path}'))"
        notes.append(f'input: mean {weights.input_mean}, std {weights.input_std} of RGB in [0, 1]')
    else:
        texts = {CONFIG: arguments}
        if weights.input_mean is None:
            notes.append(f'no {INPUT}: nothing tells the mean and std of the input')
        else:
            texts[INPUT] = _input_of(plan, weights, arguments['model_type'])
        _write_folder(path, back.tensors, texts, progress)
        use = f"transformers.AutoModel.from_pretrained('{path}'{home.load})"
    return Written(
        path=path,
        model=home.model,
        arguments=arguments,
        left_over=weights.left_over,
        left_out=back.left_out,
        notes=tuple(notes),
        use=use,
    )


def check_place(target: Target, path: Path, *, overwrite: bool = False) -> None:
    """Raise where `write_for` would not write there."""
    if target == 'timm' and path.suffix != '.safetensors':
        raise ValueError(f'{path}: timm takes a file; give a name that ends in .safetensors')
    if target == 'hf' and path.suffix in ('.safetensors', '.pth', '.pt', '.bin'):
        raise ValueError(f'{path}: Hugging Face takes a folder; leave out {path.suffix}')
    if not path.exists():
        return
    if not overwrite:
        raise ValueError(f'{path} exists: give another name, or overwrite it (--overwrite)')
    if target == 'timm':
        return
    others = (
        [item.name for item in path.iterdir() if item.name not in (CONFIG, TENSORS, INPUT)]
        if path.is_dir()
        else ['no folder']
    )
    if others:
        raise ValueError(
            f'{path} holds what is not overwritten here ({", ".join(sorted(others)[:4])}): give '
            'another name'
        )


# --------------------------------------------------------------------------------------------------
# Which model it is


def find_home(target: Target, plan: Plan) -> Home:
    """The model of a library that computes this; raise with what differs from the nearest."""
    wrong = {home.model: differences(home, plan) for home in HOMES[target]}
    for home in HOMES[target]:
        if not wrong[home.model]:
            return home
    fewest = min(map(len, wrong.values()))
    lines = [f'{m}: {line}' for m, found in wrong.items() for line in found if len(found) == fewest]
    other: Target = 'hf' if target == 'timm' else 'timm'
    elsewhere = [home.model for home in HOMES[other] if not differences(home, plan)]
    way_out = f'write it for {elsewhere[0]} (--to {other}), or ' if elsewhere else ''
    raise ValueError(
        f'no model of {NAMES[target]} computes what these weights do; what comes nearest differs:'
        '\n  ' + '\n  '.join(lines) + f'\n{way_out}keep our own format, which every task here '
        'reads (leave out --to)'
    )


def differences(home: Home, plan: Plan) -> list[str]:
    """A line for everything in which a home computes something else."""
    lines = [
        f'{key}: {plan.facts[key]!r} here, {" or ".join(map(repr, allowed))} there'
        for key, allowed in {**PICTURES, **home.needs}.items()
        if plan.facts[key] not in allowed
    ]
    if home.config(plan) is None:
        lines.append(
            f'arch.feedforward_channels: {plan.arch.feedforward_channels} here, what a whole '
            f'mlp_ratio makes of arch.embed_dims={plan.arch.embed_dims} there'
        )
    return lines


def interpolation_note(home: Home, plan: Plan) -> tuple[str, ...]:
    """Says so where grids other than that of the table get other positions there."""
    if plan.position is None:
        return ()
    usual = {'interpolation': 'bicubic', 'antialias': True, 'offset': 0.0, 'keep_aspect': False}
    here = {key: plan.position[key] for key in usual}
    there = {**usual, **FAMILIES[home.family].interpolation}
    if here == there:
        return ()
    own, theirs = (
        ', '.join(f'{key}={rule[key]}' for key in usual if here[key] != there[key])
        for rule in (here, there)
    )
    return (
        f'the same at {plan.side} x {plan.side} patches only: to other grids {home.model} '
        f'interpolates positions by {theirs}; these weights by {own}',
    )


# --------------------------------------------------------------------------------------------------
# What is in the files


def _complete(back: GivenBack, home: Home, plan: Plan) -> GivenBack:
    """With zeros for what their model has and NaViT does not keep."""
    tensors, notes = dict(back.tensors), list(back.notes)
    like = next(iter(tensors.values()))
    for key in home.blank.keys() - tensors.keys():
        tensors[key] = like.new_zeros(*home.blank[key], plan.arch.embed_dims)
        if tensors[key].numel():
            notes.append(f'{key}: zeros; it is not kept here, and used in training alone')
    return GivenBack(tensors, back.left_out, tuple(notes))


def _input_of(plan: Plan, weights: NaViTWeights, model_type: str) -> dict[str, Any]:
    """How pictures are prepared: the mean and std that are known, at the model's own size."""
    own: dict[str, Any] = {
        'do_resize': True,
        'do_rescale': True,
        'do_normalize': True,
        'image_mean': weights.input_mean,
        'image_std': weights.input_std,
    }
    if model_type == 'siglip2_vision_model':
        budget = {'patch_size': plan.patch, 'max_num_patches': plan.side**2}
        return own | {'image_processor_type': 'Siglip2ImageProcessor', **budget}
    side = (plan.side or 14) * plan.patch
    size = {'size': {'height': side, 'width': side}, 'resample': 3}  # bicubic
    return own | {'image_processor_type': 'ViTImageProcessor', **size}


def _write_folder(
    path: Path,
    tensors: Mapping[str, Tensor],
    texts: Mapping[str, Mapping[str, Any]],
    progress: Progress,
) -> None:
    """Write the folder aside and rename it; what was there goes last."""
    aside, old = (path.with_name(f'.{path.name}.{os.getpid()}.{kind}') for kind in ('part', 'old'))
    try:
        aside.mkdir(parents=True)
        write_sealed(aside / TENSORS, tensors, {'format': 'pt'}, progress=progress)
        for name, content in texts.items():
            (aside / name).write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
        if path.exists():
            path.replace(old)
        aside.replace(path)
    finally:
        if old.exists() and not path.exists():
            old.replace(path)
        for folder in (aside, old):
            shutil.rmtree(folder, ignore_errors=True)
