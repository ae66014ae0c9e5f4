"""One file that is a whole trained model: weights, config, class names, where they came from.

It is a file of our own format (`navit_backbone.checkpoint`): `init_cfg`, `load_from` and
tools/test.py take it as weights. Its config is JSON and never runs: `config_of` reads values, and
`check_names` holds those that become objects to names that are registered. Two keys are refused
besides, since mmdet would run what they say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from mmengine import registry
from mmengine.config import Config
from mmengine.registry import MODELS, Registry
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from navit_backbone.checkpoint import header_of, weights_of
from navit_backbone.sealed import DIGEST, write_sealed
from navit_backbone.vit import EXTRA, NaViT
from navit_backbone.weight_files import read_header

from .classes import classes_in
from .loaded_weights import check_fit, load_model
from .palette import Colour

_TUPLE = '__tuple__'  # JSON has lists alone, and mmcv tells them from tuples
_OF_TRAINING = ('work_dir', 'load_from', 'resume', 'launcher')
# mmcv looks these up in its own operators, not in a registry
_OPERATORS = {'nms', 'soft_nms', 'nms_match', 'RoIAlign', 'RoIPool', 'DeformRoIPool'}
_RUN_BY_MMDET = {'warp_mode': 'is evaluated as Python', 'teacher_config': 'names a file to run'}
_SCOPES = ('mmengine', 'mmcv', 'mmdet', 'mmseg')


def publish(
    out: Path,
    *,
    cfg: Config,
    state: Mapping[str, Any],
    dataset_meta: Mapping[str, Any],
    notes: Mapping[str, Any],
    source: Path,
) -> Path:
    """Write the model of `cfg` with the weights of `state`; the name gains 8 digits of its digest.

    The config is checked as it will be on reading, and the weights against the model; what does
    not fit is refused by the name of `source`, the file that they come from. `notes` are further
    plain values, as figures of an evaluation.
    """
    values = {key: value for key, value in cfg.to_dict().items() if key not in _OF_TRAINING}
    text = json.dumps(_plain(values, 'config'))
    check_names(values)
    model = MODELS.build(cfg.model)
    check_fit(model, state, source)
    given = {key.removeprefix('module.'): item for key, item in state.items()}
    header = {
        **_header_of_navit(model, cfg),
        'config': text,
        'dataset_meta': json.dumps(
            {key: dataset_meta[key] for key in ('classes', 'palette') if key in dataset_meta}
        ),
        'notes': json.dumps(dict(notes)),
        'package': f'navit-backbone {metadata.version("navit-backbone")}',
    }
    for name, part in model.named_modules():
        key = f'{name}.{EXTRA}'
        if isinstance(part, NaViT) and key in given:
            part.check_architecture(given[key], 'the checkpoint')
            given[key] = part.get_extra_state()  # an average of checkpoints has it as floats
    # parts of one memory, as convolutions that levels share, become tensors of their own
    tensors = {key: given[key].clone() for key in model.state_dict() if key in given}
    return write_sealed(out, tensors, header, named=True, check=_open_again)


def _open_again(file: Path) -> None:
    """Raise unless a file that was just written can be predicted with, as tools/predict.py does."""
    cfg = config_of(file)
    check_names(cfg)
    content = CheckpointLoader.load_checkpoint(str(file), map_location='cpu')
    load_model(cfg.model, content, file, len(classes_in(content['meta']['dataset_meta'])))


def _header_of_navit(model: nn.Module, cfg: Config) -> dict[str, str]:
    """What says of the NaViT in a model how to build it, and what pictures it takes."""
    parts = {name: part for name, part in model.named_modules() if isinstance(part, NaViT)}
    if len(parts) != 1:
        raise ValueError(f'a published model has one NaViT, this one has {len(parts)}')
    ((name, vit),) = parts.items()
    statistics = cfg.model.get('data_preprocessor') or {}
    mean, std = (statistics.get(key) for key in ('mean', 'std'))
    return header_of(
        weights_of(
            vit,
            input_mean=mean and tuple(value / 255 for value in mean),
            input_std=std and tuple(value / 255 for value in std),
        ),
        prefix=f'{name}.',
    )


def config_of(path: Path) -> Config:
    """The config of a published model, its values as they were; nothing in it is run."""
    header = read_header(path)
    if 'config' not in header or DIGEST not in header:
        raise ValueError(
            f'{path} is no published model (tools/publish.py writes them): give CONFIG and '
            'CHECKPOINT instead'
        )
    try:
        classes = classes_in(json.loads(header.get('dataset_meta', '{}')))
        config = Config(_restored(json.loads(header['config'])))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f'{path}: its config is damaged ({error}): fetch it again') from error
    if not classes:  # the data set would be built to tell them: some read whatever file they name
        raise ValueError(f'{path} holds no class names: publish the model again')
    return config


def palette_in(dataset_meta: Any) -> list[Colour]:
    """The colours of these classes; none where it has none, or something else in their place."""
    given = dataset_meta.get('palette') if isinstance(dataset_meta, dict) else None
    listed = given if isinstance(given, (list, tuple)) else ()
    return [tuple(item) for item in listed] if all(map(_is_colour, listed)) else []


def _is_colour(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 3
        and all(isinstance(part, int) and 0 <= part <= 255 for part in value)
    )


def _plain(value: Any, where: str) -> Any:
    """The value as JSON can say it."""
    if isinstance(value, dict):
        if wrong := [key for key in value if not isinstance(key, str) or key == _TUPLE]:
            raise ValueError(f'{where} has the key {wrong[0]!r}: only words can be published')
        return {key: _plain(item, f'{where}.{key}') for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(item, f'{where}.{i}') for i, item in enumerate(value)]
        return items if isinstance(value, list) else {_TUPLE: items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(
        f'{where} is a {type(value).__name__}: a published config holds numbers, words, lists, '
        'tuples and dicts alone; name a registered class by its name'
    )


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return [_restored(item) for item in value]
    if isinstance(value, dict):
        if set(value) == {_TUPLE}:
            return tuple(_restored(value[_TUPLE]))
        return {key: _restored(item) for key, item in value.items()}
    return value


# --------------------------------------------------------------------------------------------------
# What a config may ask for


def check_names(config: Mapping[str, Any]) -> None:
    """Raise ValueError unless what prediction builds of a config names registered classes alone.

    mmengine imports whatever module a `type` or a scope names, and mmcv evaluates the type of an
    NMS as Python. So a name must be one that OpenMMLab or this project has registered by now.
    """
    scope = config.get('default_scope')
    if scope not in _SCOPES:
        raise ValueError(f'default_scope={scope!r} is not one of {_SCOPES}')
    known = _registered()
    _check_node(config.get('model'), 'model', known)
    loader = config.get('test_dataloader') or {}
    _check_node(loader.get('dataset', {}).get('pipeline'), 'test pipeline', known)


def _check_node(node: Any, where: str, known: set[str]) -> None:
    if isinstance(node, (list, tuple)):
        for number, item in enumerate(node):
            _check_node(item, f'{where}.{number}', known)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in _RUN_BY_MMDET:
                raise ValueError(f'{where}.{key} {_RUN_BY_MMDET[key]}: it cannot be published')
            allowed = {'type': known, '_scope_': set(_SCOPES)}.get(key)
            if allowed is not None and (not isinstance(value, str) or value not in allowed):
                raise ValueError(
                    f'{where}.{key}={value!r} is not registered by OpenMMLab or navit-backbone, '
                    'and a published model may name nothing else: use its config and checkpoint'
                )
            _check_node(value, f'{where}.{key}', known)


def _registered() -> set[str]:
    """Every registered name, alone and after its scope."""
    names = set(_OPERATORS)
    for root in vars(registry).values():
        for each in (root, *root.children.values()) if isinstance(root, Registry) else ():
            each.import_from_location()
            names |= set(each.module_dict)
            names |= {f'{each.scope}.{name}' for name in each.module_dict}
    return names


def is_published(path: Path) -> bool:
    """Return whether a path is meant as a published model: by its suffix, or by its content.

    Of a file of another name, as after a download, the beginning decides: the length of the header
    in eight bytes, the last of which are 0, and a JSON object.
    """
    if path.suffix == '.safetensors':
        return True
    if not path.is_file():
        return False
    with path.open('rb') as content:
        head = content.read(9)
    return head[4:] == b'\0\0\0\0{'
