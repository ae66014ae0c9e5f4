"""Where weights come from: a file, a folder as Hugging Face lays it out, or a name on its Hub.

A `config.json` beside the tensors says what none of them tells; it is read as JSON, never imported.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from torch import Tensor

from .conversion import CONFIG_NAMES
from .families import FAMILIES, REFUSED_TYPES
from .recognition import enter_prefix, find_tensors, other_models
from .sealed import Progress, unseen
from .weight_files import read_checkpoint

HUB = 'hf://'
SUFFIXES = ('.safetensors', '.pth', '.pt', '.bin', '.npz')
INDEX = '.index.json'
_SHARD = re.compile(r'-(\d+)-of-(\d+)\.\w+$')
# What a folder is looked through for, in this order; an index lists the shards beside it.
LAYOUTS = (
    'model.safetensors',
    'model.safetensors.index.json',
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
)
_ACTIVATIONS = {'gelu_pytorch_tanh': 'gelu_tanh', 'gelu_new': 'gelu_tanh'}  # the others as they are


class Content(NamedTuple):
    """Tensors and metadata that were read from a source."""

    tensors: dict[str, Tensor]
    beside: tuple[str, ...]  # the names of what else is there
    models: tuple[str, ...]  # those of `beside` that hold another model
    prefix: str | None  # what is left of the prefix once its wrapper was entered


@dataclass(frozen=True, kw_only=True)
class Source:
    """Files that together hold the tensors of one origin."""

    name: str  # as it was given: what a name tells of its family is in here
    files: tuple[Path, ...]
    index: Path | None = None  # what lists the files, if anything
    promised: Mapping[str, str] | None = None  # by the index: tensors, and the names of their files
    whole_folder: bool = False  # what else is in the folder is of the same model

    def read(self, progress: Progress = unseen, *, prefix: str | None = None) -> Content:
        """Read all tensors, or those in the wrapper that `prefix` begins with."""
        tensors: dict[str, Tensor] = {}
        beside: dict[str, None] = {}
        models: dict[str, None] = {}
        rest = prefix
        done, total = 0, sum(file.stat().st_size for file in self.files if file.is_file())
        progress('reading', done, total)
        for file in self.files:
            content, rest = enter_prefix(read_checkpoint(file), prefix)
            models |= dict.fromkeys(other_models(content))
            found, others = find_tensors(content, str(file))
            if twice := sorted(found.keys() & tensors.keys()):
                raise ValueError(
                    f'{file}: {twice[0]} is in another file of {self.index} too: they are of two '
                    'models; fetch the folder again'
                )
            self._check_promised(file, found)
            tensors |= found
            beside |= dict.fromkeys(others)
            done += file.stat().st_size
            progress('reading', done, total)
        return Content(tensors, tuple(beside), tuple(models), rest)

    def _check_promised(self, file: Path, found: Mapping[str, Tensor]) -> None:
        folder = file.parent if self.index is None else self.index.parent
        for key, shard in (self.promised or {}).items():
            if folder / shard == file and key not in found:
                raise ValueError(
                    f'{file} lacks {key}, which {self.index} promises: they are of two models, or '
                    'the file was cut; fetch both again'
                )

    def stated(self) -> dict[str, Any]:
        """What `config.json` and `preprocessor_config.json` say, for `convert(stated=...)`."""
        folder = self.files[0].parent if self.index is None else self.index.parent
        if self.files[0].name.startswith('open_clip'):  # beside a config.json of other files
            return _of_open_clip(folder / 'open_clip_config.json')
        path = folder / 'config.json'
        config = _read_json(path)
        model_type, inner = _of_ours(config, path)
        said = {'model_type': model_type, **_fields(inner, path)} if model_type else {}
        if model_type or self.whole_folder:
            seen, timm = folder / 'preprocessor_config.json', config.get('pretrained_cfg')
            found = _statistics(_read_json(seen), ('image_mean', 'image_std'), seen)
            if not found and isinstance(timm, dict):
                found = _statistics(timm, ('mean', 'std'), path)
            said['statistics'] = found
        return said


def find_source(source: str | os.PathLike[str]) -> Source:
    """The files behind a path, a folder or `hf://owner/name[@revision]`, which is fetched."""
    name = os.fspath(source)
    if name.startswith(HUB):
        return _in_folder(_fetch(name), name)
    path = Path(name).expanduser()
    if path.is_dir():
        return _in_folder(path, str(path))
    if path.name.endswith(INDEX) and path.is_file():
        return _of_index(path, str(path))
    shard = _SHARD.search(path.name)
    if shard and int(shard[2]) > 1 and path.is_file():
        raise ValueError(
            f'{path} is shard {int(shard[1])} of {int(shard[2])}, and its other files hold the '
            f'rest of the model: give the folder with all of them, {path.parent}'
        )
    return Source(name=str(path), files=(path,))


def _in_folder(folder: Path, name: str) -> Source:
    there = next((folder / item for item in LAYOUTS if (folder / item).is_file()), None)
    if there is None:
        alone = sorted(item for item in folder.iterdir() if item.suffix in SUFFIXES)
        if len(alone) != 1:
            found = f'only {", ".join(item.name for item in alone[:4])}: give' if alone else 'give'
            raise FileNotFoundError(
                f'{name} is a folder with none of {", ".join(LAYOUTS)} in it; {found} the path of '
                'a .safetensors, .pth, .pt, .bin or .npz file'
            )
        there = alone[0]
    if there.suffix != '.json':
        return Source(name=name, files=(there,), whole_folder=True)
    return _of_index(there, name)


def _of_index(there: Path, name: str) -> Source:
    """Return the shards that an index lists, in its folder."""
    folder, promised = there.parent, _promised(there)
    files = tuple(folder / shard for shard in sorted(set(promised.values())))
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(
            f'{name} lacks {", ".join(missing[:4])}{", ..." if len(missing) > 4 else ""}: '
            f'{there.name} lists {len(files)} files, {len(missing)} of them are not there; fetch '
            'them into the same folder'
        )
    return Source(name=name, files=files, index=there, promised=promised, whole_folder=True)


def _promised(index: Path) -> dict[str, str]:
    """The tensors that an index lists, and the name of the file of each, beside it or below."""
    listed = _read_json(index).get('weight_map')
    if not isinstance(listed, dict) or not listed:
        raise ValueError(f'{index} has no weight_map, which lists tensors: fetch it again')
    for key, shard in listed.items():
        inside = isinstance(shard, str) and not re.search(r'^/|[\\:]', shard)
        if not inside or {'..', ''} & {*PurePosixPath(shard).parts, shard}:
            raise ValueError(
                f'{index}: {key} is said to be in {shard!r}, which is no file of this folder: '
                'nothing was read; fetch the index from where the weights were published'
            )
    return listed


def _fetch(name: str) -> Path:
    """The folder of a model on the Hub, in its cache: safetensors, or pickles where it has none."""
    match = re.fullmatch(r'hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?', name)
    if match is None:
        raise ValueError(
            f'{name}: a model on the Hub is hf://owner/name or hf://owner/name@revision'
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(
            f"{name} needs huggingface_hub: pip install 'navit-backbone[hub]', or fetch the folder "
            'of the model otherwise and give its path'
        ) from error
    repository, revision = match.groups()
    folder = Path()
    for pattern in ('*.safetensors', '*.bin'):
        try:
            found = snapshot_download(
                repository,
                revision=revision,
                allow_patterns=['*.json', pattern],
                ignore_patterns=['*/*'],  # other formats and parts of pipelines
            )
        except (OSError, ValueError) as error:  # all that huggingface_hub raises on purpose
            said = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise ValueError(
                f'{name} could not be fetched ({said[:200]}): check the name and the connection; '
                "where its owner asks for consent, give it on the model's page and log in with "
                '`hf auth login`; or give the path of a folder that was fetched otherwise'
            ) from error
        folder = Path(found)
        if any(folder.glob(pattern)):
            break
    return folder


# --------------------------------------------------------------------------------------------------
# What a config.json says


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is no file, or no object in it."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f'{path} is no JSON ({error}): fetch it again, or take it out of the folder and state '
            'the family (--family)'
        ) from error
    return content if isinstance(content, dict) else {}


def _of_ours(config: Mapping[str, Any], path: Path) -> tuple[str | None, Mapping[str, Any]]:
    """The model_type that a family has, the outer one first, and what describes its tower."""
    tower = config.get('vision_config')
    inner = tower if isinstance(tower, dict) else config
    known = {kind for family in FAMILIES.values() for kind in family.model_types}
    kinds = [str(part.get('model_type')) for part in (config, inner)]
    for kind in kinds:
        if kind in REFUSED_TYPES:
            raise ValueError(f'{path} says model_type {kind!r}: it is {REFUSED_TYPES[kind]}')
    found = next((kind for kind in kinds if kind in known), None)
    if found is None and config.get('pe_type') == 'rope2d':
        return 'univitar', _of_univitar(config)
    return found, inner if found else {}


def _of_univitar(config: Mapping[str, Any]) -> dict[str, Any]:
    """What UniViTAR's config, which names no type, says in the terms of the others."""
    names = (*CONFIG_NAMES.values(), 'layer_norm_eps', 'rope_theta')
    inner = {key: config[key] for key in names if key in config}
    if isinstance(wide := inner.get('intermediate_size'), int):
        inner['intermediate_size'] = int(wide * 2 / 3)  # its SwiGLU is narrower by a third
    return inner


def _of_open_clip(path: Path) -> dict[str, Any]:
    """What open_clip's config says of its own vision tower."""
    config = _read_json(path)
    model, seen = _part(config, 'model_cfg'), _part(config, 'preprocess_cfg')
    tower = _part(model, 'vision_cfg')
    if 'timm_model_name' in tower or not isinstance(tower.get('layers'), int):
        return {}  # a tower of other names
    names = {
        'hidden_size': tower.get('width'),
        'num_hidden_layers': tower['layers'],
        'patch_size': tower.get('patch_size'),
    }
    said = _fields(names, path)
    head = tower.get('head_width', 64)
    if type(head) is not int or head < 1:
        raise ValueError(f'{path}: head_width is {head!r}, not a number above 0: fetch it again')
    if 'embed_dims' in said:
        said['num_heads'] = said['embed_dims'] // head
    said['statistics'] = _statistics(seen, ('mean', 'std'), path)
    kind = 'open_clip_quickgelu' if model.get('quick_gelu') else 'open_clip'
    return {'model_type': kind, 'config': path.name, **said}


def _part(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = config.get(key)
    return found if isinstance(found, dict) else {}


def _fields(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Fields of Arch, and what `convert` compares with the tensors."""
    rope = config.get('rope_parameters')
    theta = config.get('rope_theta', rope.get('rope_theta') if isinstance(rope, dict) else None)
    numbers = {field: config.get(key) for field, key in CONFIG_NAMES.items()}
    numbers |= {'norm_eps': config.get('layer_norm_eps'), 'rope_theta': theta}
    if 'mlp_ratio' in config:  # which holds, whatever else is said
        numbers['feedforward_channels'] = None
    if isinstance(numbers['patch_size'], list):  # (height, width)
        numbers['patch_size'] = None
    said: dict[str, Any] = {}
    for field, value in numbers.items():
        wanted = (int, float) if field in ('norm_eps', 'rope_theta') else int
        if value is None:
            continue
        if not isinstance(value, wanted) or isinstance(value, bool) or not 0 < value < float('inf'):
            key = CONFIG_NAMES.get(field, {'norm_eps': 'layer_norm_eps'}.get(field, field))
            raise ValueError(f'{path}: {key} is {value!r}, not a number above 0: fetch it again')
        said[field] = value
    if 'rope_theta' in said:
        said['rope'] = {'theta': float(said.pop('rope_theta'))}
    if (act := config.get('hidden_act')) is not None:
        said['mlp'] = _ACTIVATIONS.get(act, act) if isinstance(act, str) else repr(act)
    return said


def _statistics(
    config: Mapping[str, Any], keys: tuple[str, str], path: Path
) -> tuple[tuple[float, ...], ...] | None:
    """Mean and std of RGB in [0, 1], where a file says both."""
    if any(config.get(key) is None for key in keys):
        return None
    for key in keys:
        item = config[key]
        right = isinstance(item, list) and len(item) == 3
        if not right or not all(type(value) in (int, float) for value in item):
            raise ValueError(f'{path}: {key} is {item!r}, not three numbers: fetch it again')
    return tuple(tuple(float(value) for value in config[key]) for key in keys)
