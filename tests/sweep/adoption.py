"""The change of docs/adopt.md for any stock model of mmdet, as lines of a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from operator import mul
from typing import Any

# A pyramid of several strides takes the place of these; any other neck stays, behind a pyramid.
REPLACED = ('FPN', 'ChannelMapper')
CHANNELS = 256  # that the pyramid gives unless told otherwise

Neck = Mapping[str, Any]


def adopted(
    model: Mapping[str, Any], *, arch: str | Mapping[str, Any], width: int, imports: Sequence[str]
) -> str:
    """The lines that put a backbone of `width` channels into a config with this stock `model`.

    `imports` are the stock config's own custom imports.
    """
    pyramid, kept, more = _necks(model)
    pyramid = dict(type='SimpleFeaturePyramid', in_channels=width, **pyramid)
    neck = [pyramid, *kept] if kept else dict(pyramid, **_replacing(model, 'neck'))
    model_lines = dict(
        data_preprocessor=dict(type='NaViTDetDataPreprocessor', pad_size_divisor=_coarsest(neck)),
        backbone=dict(type='NaViTBackbone', arch=arch, _delete_=True),
        neck=neck,
        **more,
    )
    return '\n'.join(
        [
            f'custom_imports = dict(imports={[*imports, "navit_backbone.tasks.detection"]})',
            'model = dict(',
            *(f'    {key}={value!r},' for key, value in model_lines.items()),
            ')',
        ]
    )


def _necks(model: Mapping[str, Any]) -> tuple[dict[str, Any], list[Neck], dict[str, Any]]:
    """The pyramid's strides and channels, the stock necks behind it, and changes to the head."""
    strides = backbone_strides(model['backbone'])
    necks = model.get('neck')
    if not necks:
        return _without_neck(model, strides)
    first, *rest = necks if isinstance(necks, Sequence) else [necks]
    if first['type'] in REPLACED:
        start = strides[first.get('start_level', 0)]
        count = first.get('num_outs') or len(first['in_channels'])
        given = [start * 2**level for level in range(count)]
        return _pyramid(given, first['out_channels']), rest, {}
    if isinstance(first['in_channels'], int):
        strides, channels = strides[-1:], CHANNELS
    else:
        channels = [CHANNELS] * len(first['in_channels'])
    return _pyramid(strides), [dict(first, in_channels=channels), *rest], {}


def _without_neck(
    model: Mapping[str, Any], strides: list[int]
) -> tuple[dict[str, Any], list[Neck], dict[str, Any]]:
    """Heads that take the backbone's maps: of one width, or of one for each."""
    if 'panoptic_head' in model:
        channels = [CHANNELS] * len(strides)
        return _pyramid(strides), [], dict(panoptic_head=dict(in_channels=channels))
    return _pyramid(strides, model['rpn_head']['in_channels']), [], {}


def _pyramid(strides: list[int], channels: int = CHANNELS) -> dict[str, Any]:
    return dict(strides=strides) | (dict(out_channels=channels) if channels != CHANNELS else {})


def backbone_strides(backbone: Mapping[str, Any]) -> list[int]:
    """The strides of the maps that a ResNet or a Swin gives."""
    if backbone['type'] == 'SwinTransformer':
        strides = list(accumulate(backbone.get('strides', (4, 2, 2, 2)), mul))
    else:
        strides = [4 * s for s in accumulate(backbone.get('strides', (1, 2, 2, 2)), mul)]
    return [strides[index] for index in backbone.get('out_indices', range(len(strides)))]


def _coarsest(neck: Neck | Sequence[Neck]) -> int:
    """The last stride that necks of `num_outs` maps arrive at."""
    pyramid, *rest = neck if isinstance(neck, Sequence) else [neck]
    strides = pyramid['strides']
    for stock in rest:
        start = strides[stock.get('start_level', 0)]
        strides = [start * 2**level for level in range(stock.get('num_outs', len(strides)))]
    return max(strides)


def _replacing(model: Mapping[str, Any], key: str) -> dict[str, bool]:
    return dict(_delete_=True) if key in model else {}
