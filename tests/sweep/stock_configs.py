"""The stock configs of mmdet: which are swept, and each with the change of docs/adopt.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmdet
from mmdet.models import BaseMOTModel, BaseReID, FastRCNN, ResNet, SemiBaseDetector, SwinTransformer
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from sweep.adoption import adopted
from sweep.one_step import Pictures

STOCK = Path(mmdet.__file__).parent / '.mim/configs'
ARCH = dict(embed_dims=48, num_layers=2, num_heads=2, feedforward_channels=64, prefix_tokens=1)
LEFT_OUT = {
    BaseMOTModel: 'tracking',
    BaseReID: 'ReID',
    SemiBaseDetector: 'semi-supervised',
    FastRCNN: 'takes proposals from a file',
}
# Its deformable convolutions take no map of less than 3 x 3 cells, at the coarsest stride too.
LARGER = dict(DDOD=3)
# The most of each that a model is left with: regions, queries and results; depth and width.
MOST = dict(num=32, num_proposals=50, num_queries=50, num_dn_queries=20, max_per_img=50)
MOST |= dict(stacked_convs=1, num_convs=2, feedforward_channels=128)
CANVAS = (128, 128)


def paths() -> list[str]:
    """All configs of mmdet that are no parts of others."""
    found = [path.relative_to(STOCK) for path in STOCK.rglob('*.py')]
    return sorted(str(path) for path in found if '_base_' not in path.parts)


def read(path: str) -> Config:
    """The config, or a ValueError that says why it is left out."""
    init_default_scope('mmdet')
    try:
        cfg = Config.fromfile(STOCK / path)
    except ImportError as error:
        raise ValueError(f'needs another package: {error.__cause__ or error}') from error
    except FileNotFoundError as error:
        raise ValueError('inherits a file that is absent') from error
    if reason := left_out(cfg):
        raise ValueError(reason)
    return cfg


def left_out(cfg: Config) -> str | None:
    """Why a config is none of a detector with a ResNet or a Swin; None where it is."""
    model = cfg.get('model')
    if model is None:
        return 'has no model: a part of other configs'
    kind = MODELS.get(model.type)
    for base, reason in LEFT_OUT.items():
        if isinstance(kind, type) and issubclass(kind, base):
            return reason
    if 'language_model' in model:
        return 'text-conditioned'
    if model.get('data_preprocessor', {}).get('type') == 'LineDetDataProcessor':
        return 'finds lanes, not objects'
    name = model.get('backbone', {}).get('type')
    if name is None:
        return 'a model of another package'
    backbone = MODELS.get(name)
    if not (isinstance(backbone, type) and issubclass(backbone, (ResNet, SwinTransformer))):
        return f'another backbone: {name}'
    return None


def adopt(path: str, stock: Config) -> ConfigDict:
    """The model of a stock config, with the lines of docs/adopt.md after it."""
    lines = adopted(
        stock.model.to_dict(),
        arch=ARCH,
        width=ARCH['embed_dims'],
        imports=stock.get('custom_imports', {}).get('imports', []),
    )
    return Config.fromstring(f'_base_ = {str(STOCK / path)!r}\n{lines}', '.py').model


def pictures(cfg: Config) -> Pictures:
    """What the training pipeline loads, and how many classes the head counts."""
    model, loader = cfg.model.to_dict(), cfg.train_dataloader.to_dict()
    counts = {
        key: [node[key] for node in dicts(model) if isinstance(node.get(key), int)]
        for key in ('num_classes', 'num_things_classes')
    }
    things = min(counts['num_things_classes'] or counts['num_classes'] or [1])
    loads = [node for node in dicts(loader) if str(node.get('type')).startswith('Load')]
    panoptic = any(node['type'] == 'LoadPanopticAnnotations' for node in loads)
    masks = panoptic or any(node.get('with_mask') for node in loads)
    bitmaps = panoptic or any(node.get('poly2mask', True) for node in loads if 'with_mask' in node)
    return Pictures(
        num_classes=min([things, *counts['num_classes']]),
        num_things=things,
        masks=('bitmaps' if bitmaps else 'polygons') if masks else None,
        class_map=panoptic or any(node.get('with_seg') for node in loads),
        scale=LARGER.get(model['type'], 1),
    )


def shrink(model: ConfigDict) -> ConfigDict:
    """Few regions, queries, results and layers, a small canvas; nothing is downloaded.

    A stock backbone without its weights needs BatchNorm to train, lest its values overflow.
    """
    for node in dicts(model):
        for key, most in MOST.items():
            if isinstance(node.get(key), int):
                node[key] = min(node[key], most)
        if 'layer_cfg' in node:  # an encoder or a decoder
            node['num_layers'] = 2
        if node.get('type') == 'BatchFixedSizePad':
            node['size'] = CANVAS
        if node.get('type') in ('SyncBN', 'MMSyncBN'):  # of one process
            node['type'] = 'BN'
        if (node.get('init_cfg') or {}).get('type') == 'Pretrained':
            node['init_cfg'] = None
        unset = dict(pretrained=None, teacher_ckpt=None, norm_eval=False)
        node.update({key: value for key, value in unset.items() if key in node})
    return model


def dicts(node: Any) -> Iterator[dict[str, Any]]:
    """Every dict in a config, itself among them."""
    if isinstance(node, dict):
        yield node
    for item in node.values() if isinstance(node, dict) else node:
        if isinstance(item, (dict, list, tuple)):
            yield from dicts(item)
