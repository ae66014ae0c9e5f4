"""What a user changes in a config in one place: where the data lies, and which classes it has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.fileio import join_path
from mmengine.logging import print_log
from mmengine.registry import DATASETS, init_default_scope

Classes = tuple[str, ...]

# Parts of a model whose num_classes does not count the classes of the data set.
APART = ('backbone', 'rpn_head', 'semantic_head', 'data_preprocessor')


def override(cfg: Config, options: Mapping[str, Any]) -> None:
    """Merge `--cfg-options` into `cfg`; four of them reach every place where they matter.

    `data_root`: whatever stands under the config's `data_root` moves to the new one. `classes`: the
    class names to use, where not all that the annotation file has, or a .txt file of them.
    `reduce_zero_label`, of label maps whose 0 is unlabelled. `patch_size`, where a config states it
    once: of the backbone, and of all that plans and cuts clips for it.
    """
    if 'patch_size' in options and 'patch_size' not in cfg:
        raise ValueError(
            '--cfg-options patch_size: this config states none in one place; set '
            'model.backbone.patch_size, and that of each ResizeToTokenBudget in the pipelines'
        )
    if 'data_root' in options:
        _move(cfg, str(cfg.get('data_root')).rstrip('/'), str(options['data_root']))
    cfg.merge_from_dict(dict(options))
    if 'classes' in options:
        names = options['classes']
        if not isinstance(names, str):
            names = list(names)
        elif not names.endswith('.txt'):  # else a file that lists them
            names = [names]
        for dataset in _datasets(cfg, ('train', 'val', 'test')).values():
            dataset['metainfo'] = {**dataset.get('metainfo', {}), 'classes': names}
    if 'patch_size' in options:
        loaders = [cfg.get(f'{split}_dataloader') for split in ('train', 'val', 'test')]
        for parent, key in _entries(loaders, ('patch_size',)):
            parent[key] = options['patch_size']
        cfg.model.backbone.patch_size = options['patch_size']
    if 'reduce_zero_label' in options:
        for dataset in _datasets(cfg, ('train', 'val', 'test')).values():
            dataset['reduce_zero_label'] = options['reduce_zero_label']


def _move(cfg: Config, old: str, new: str) -> None:
    """Let the paths in and under the folder `old` be in and under `new`."""
    for parent, key in _entries(cfg._cfg_dict, ('data_root', 'ann_file')):
        path = str(parent[key])
        if path.rstrip('/') == old:
            parent[key] = new
        elif path.startswith(f'{old}/'):
            parent[key] = join_path(new, path[len(old) + 1 :])


def follow_classes(cfg: Config, splits: Sequence[str] = ('train', 'val')) -> Classes:
    """Set the model's `num_classes` by the data of `splits`, all of which have the same classes."""
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    names = {split: class_names(data) for split, data in _datasets(cfg, splits).items()}
    if len(set(names.values())) > 1:
        raise ValueError(
            f'the data sets disagree in their classes or the order of these: {names}; let them '
            "agree, or give the names for all: --cfg-options \"classes=['cat', 'dog']\""
        )
    classes = next(iter(names.values()))
    set_num_classes(cfg.model, len(classes))
    return classes


def set_num_classes(model: dict[str, Any], num_classes: int) -> None:
    """Set `num_classes` in a model's config wherever it counts the classes of the data.

    The weights of classes in a loss follow where all classes have one, and the last entry is that
    of no object (DETR and its kin).
    """
    for parent, key in _entries(model, ('num_classes',)):
        if parent[key] == num_classes:
            continue
        print_log(f'{parent.get("type")}: num_classes {parent[key]} -> {num_classes}', 'current')
        for loss in parent.values():
            weights = loss.get('class_weight') if isinstance(loss, dict) else None
            if isinstance(weights, (list, tuple)) and len(weights) == parent[key] + 1:
                *each, nothing = weights
                if len(set(each)) > 1:
                    raise ValueError(
                        f'{parent.get("type")} weighs {parent[key]} classes one by one '
                        f'(class_weight), but the data has {num_classes}: give a weight for each'
                    )
                loss['class_weight'] = [each[0]] * num_classes + [nothing]
        parent[key] = num_classes


def class_names(dataset: dict[str, Any]) -> Classes:
    """The classes of a data set's config, without reading its samples."""
    built = DATASETS.build({**_innermost(dataset), 'lazy_init': True, 'pipeline': []})
    if 'classes' not in built.metainfo:  # a lazy data set passes over a missing file, we do not
        built.full_init()
    return tuple(built.metainfo['classes'])


def classes_in(dataset_meta: Any) -> tuple[str, ...]:
    """The class names that a checkpoint or a published model holds; none where it has none."""
    if not isinstance(dataset_meta, dict):
        return ()
    given = {str(key).lower(): value for key, value in dataset_meta.items()}
    return tuple(given.get('classes') or ())


def _datasets(cfg: Config, splits: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The innermost data set of each split that the config has."""
    loaders = {split: cfg.get(f'{split}_dataloader') for split in splits}
    return {split: _innermost(loader['dataset']) for split, loader in loaders.items() if loader}


def _innermost(dataset: dict[str, Any]) -> dict[str, Any]:
    """What the wrappers of mmengine hold; of several the first."""
    while 'dataset' in dataset or 'datasets' in dataset:
        dataset = dataset['dataset'] if 'dataset' in dataset else dataset['datasets'][0]
    return dataset


def _entries(node: Any, keys: Sequence[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """Every (dict, key) with one of `keys` below `node`, but for the parts `APART`."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in keys:
                yield node, key
            elif key not in APART:
                yield from _entries(value, keys)
    elif isinstance(node, (list, tuple)):
        for item in node:
            yield from _entries(item, keys)
