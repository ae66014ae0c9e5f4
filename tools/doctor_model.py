"""What the doctor sees when the model of a config is built and takes a batch of two sizes.

The model is built with as many blocks as give out maps and from random weights: neither strides nor
sizes depend on these. The strides of the maps are measured, not read from the config.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn

from navit_backbone.backbone import NaViTBackbone
from navit_backbone.packing import Size
from navit_backbone.tasks.common.dataset import seeded_parts
from navit_backbone.tasks.common.resize import ResizeToTokenBudget, find_planner
from navit_backbone.tasks.common.shallow import shallow
from navit_backbone.tools.doctor import Finding
from navit_backbone.tools.doctor_config import MISTAKES, told
from navit_backbone.tools.doctor_heads import (
    Maps,
    check_classes,
    check_norms,
    check_strides,
    said,
)

PREPROCESSORS = {'mmdet': 'NaViTDetDataPreprocessor', 'mmseg': 'NaViTSegDataPreprocessor'}


def examine_model(cfg: Config, datasets: Mapping[str, Any]) -> Iterator[Finding]:
    """Build the model and look at what it does; `datasets` are those that could be read."""
    segments = cfg.default_scope == 'mmseg'
    if segments:  # clips need no mmseg, nor the operators that it imports
        from navit_backbone.tools.doctor_segmentation import (
            check_decode_heads,
            check_ignored_labels,
            check_label_maps,
        )

    try:
        model = MODELS.build(shallow(cfg.model)).eval()
    except MISTAKES as error:
        yield Finding(name='model', found='', problem=f'cannot be built: {told(error)}')
        return
    count = sum(parameter.numel() for parameter in model.parameters())
    yield Finding(name='model', found=f'{type(model).__name__}, {count / 1e6:.1f} M at this depth')
    yield check_sizes(model, cfg.default_scope)
    maps = yield from measure(model, cfg)
    if maps is not None:
        yield from check_divisor(model, maps)
        if isinstance(model.backbone, NaViTBackbone):  # the stride of others has no name
            yield from check_in_stride(model)
        if segments:
            yield from check_decode_heads(model, cfg, maps)
        else:
            yield from check_strides(model, cfg, maps)
    yield from check_norms(model, cfg)
    for dataset in list(datasets.values())[:1]:  # all have the same classes
        yield from check_classes(model, cfg, len(dataset.metainfo['classes']))
    yield from check_positions(model, datasets)
    if segments:
        yield from check_ignored_labels(model, cfg, datasets)
        yield from check_label_maps(datasets)


# --------------------------------------------------------------------------------------------------
# Sizes


@torch.no_grad()
def check_sizes(model: nn.Module, scope: str) -> Finding:
    """Whether the backbone learns the sizes of a batch's pictures, and leaves padding alone."""
    key = 'model.data_preprocessor'
    kind = type(model.data_preprocessor).__name__
    step = 4 * patch_of(model)
    sizes = [(step, 3 * step), (2 * step, step)]
    seen: dict[str, Any] = {}
    hooks = [model.backbone.register_forward_pre_hook(lambda _, given: seen.update(x=given[0]))]
    ours = isinstance(model.backbone, NaViTBackbone)
    if ours:
        vit = model.backbone.vit
        hooks.append(vit.register_forward_pre_hook(lambda _, given: seen.update(pack=given[0])))
    try:
        inputs = model.data_preprocessor(batch_of(sizes, scope), training=False)['inputs']
        model.backbone(inputs)
    except MISTAKES as error:
        return Finding(name=key, found='', problem=f'{kind} does not do: {told(error)}')
    finally:
        for hook in hooks:
            hook.remove()
    if not ours:
        return Finding(name=key, found=f'{type(model.backbone).__name__} computes the whole canvas')
    arrived, computed = getattr(seen['x'], 'image_sizes', None), len(seen['pack'].patches)
    real = sum(h * w for h, w in sizes) // patch_of(model) ** 2
    if arrived == sizes and computed == real:
        return Finding(name=key, found=f'{kind}: sizes reach the backbone, padding is not computed')
    return Finding(
        name=key,
        found='',
        problem=f'{kind} does not tell the backbone that the pictures are of {sizes} pixels: '
        f'{computed} patches are computed where {real} are picture',
        fix=f"set model.data_preprocessor.type='{PREPROCESSORS[scope]}'",
    )


def patch_of(model: nn.Module) -> int:
    return getattr(model.backbone, 'patch_size', 16)


def batch_of(sizes: Sequence[Size], scope: str) -> dict[str, Any]:
    """What a loader gives for pictures of these sizes."""
    if scope == 'mmseg':
        from mmseg.structures import SegDataSample as Sample
    else:
        from mmdet.structures import DetDataSample as Sample

    samples = [
        Sample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
        for size in sizes
    ]
    images = [torch.zeros(3, *size, dtype=torch.uint8) for size in sizes]
    return dict(inputs=images, data_samples=samples)


def check_divisor(model: nn.Module, maps: Maps) -> Iterator[Finding]:
    """Whether the canvas is whole cells of the coarsest map."""
    divisor = getattr(model.data_preprocessor, 'pad_size_divisor', None)
    coarsest = max(maps.strides)
    if divisor is None or not isinstance(model.backbone, NaViTBackbone):
        return
    segments = hasattr(model.data_preprocessor, 'size_divisor')
    key = f'model.data_preprocessor.{"size_divisor" if segments else "pad_size_divisor"}'
    whole = divisor % coarsest == 0
    problem = f'{divisor} is no multiple of {coarsest:g}, the coarsest stride of the maps'
    fix = f'set {key}={coarsest:g}'
    yield Finding(name=key, found=str(divisor), problem='' if whole else problem, fix=fix)


def check_positions(model: nn.Module, datasets: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether the table of positions reaches as far as the longest picture of the data."""
    position = getattr(getattr(model.backbone, 'vit', None), 'position', None)
    limit = getattr(position, 'max_size', None)
    sides = [side for data in datasets.values() if (side := longest_side(data)) is not None]
    if limit is None or getattr(position, 'fractional', False) or not sides:
        return
    side = max(sides) // patch_of(model)
    problem = f'the data has a picture of {side} patches a side, positions end at {limit}'
    yield Finding(
        name='model.backbone.position',
        found=f'pictures of up to {side} patches a side, positions for {limit}',
        problem=problem if side > limit else '',
        fix=f'set its max_size={side} or more, lower max_tokens, or take a kind without a limit '
        '(learned_1d, sinusoidal, fourier)',
    )


def longest_side(dataset: Any) -> int | None:
    """The longest side in pixels that a data set's pictures may have; None where none is known."""
    sides = []
    for part in seeded_parts(dataset):
        planner = find_planner(part.pipeline.transforms)
        if planner is not None:
            largest = ResizeToTokenBudget(  # whatever is drawn: both sides grow with the budget
                planner.max_tokens,
                patch_size=planner.patch_size,
                min_tokens=getattr(planner, 'min_tokens', None),
                square=getattr(planner, 'square', False),
            )
            infos = (part.get_data_info(i) for i in range(len(part)))
            sizes = {(info['height'], info['width']) for info in infos if 'height' in info}
            sides += [max(largest.target_size(h, w)) for h, w in sizes]
    return max(sides, default=None)


# --------------------------------------------------------------------------------------------------
# Maps


@torch.no_grad()
def measure(model: nn.Module, cfg: Config) -> Generator[Finding, None, Maps | None]:
    """The maps that heads get, or a finding why there are none."""
    side = 16 * patch_of(model)
    canvas = torch.zeros(1, 3, side, side)
    canvas.image_sizes = [(side, side)]  # type: ignore[attr-defined]
    try:
        given = [item.shape[1] for item in model.backbone(canvas)]
    except MISTAKES as error:
        yield Finding(name='model.backbone', found='', problem=told(error))
        return None
    unsigned = model.backbone.register_forward_hook(_without_patch_size)
    try:
        outputs: Sequence[Tensor] = model.extract_feat(canvas)
    except MISTAKES as error:
        expected = cfg.model.get('neck', {}).get('in_channels')
        fits = expected in (given, given[-1])
        fix = '' if fits else f'set model.neck.in_channels={given[-1]} (it is {expected})'
        yield Finding(name='model.neck', found='', problem=told(error), fix=fix)
        return None
    finally:
        unsigned.remove()
    strides = [side / item.shape[-1] for item in outputs]
    source = 'model.neck' if getattr(model, 'with_neck', False) else 'model.backbone'
    yield Finding(name=source, found=f'maps at strides {said(strides)}')
    return Maps(strides=strides, channels=[item.shape[1] for item in outputs])


def _without_patch_size(_module: nn.Module, _given: Any, maps: Sequence[Tensor]) -> None:
    """Let a pyramid for other patches pass, so that all that does not fit is told at once."""
    for item in maps:
        vars(item).pop('patch_size', None)


def check_in_stride(model: nn.Module) -> Iterator[Finding]:
    """Whether the pyramid knows the stride of the maps that it gets."""
    stride = getattr(getattr(model, 'neck', None), 'in_stride', None)
    patch = patch_of(model)
    if stride is not None and stride != patch:
        yield Finding(
            name='model.neck.in_stride',
            found='',
            problem=f'{stride}, but the backbone gives maps of stride {patch}, its patch_size',
            fix=f'set model.neck.in_stride={patch}, and strides of {patch} times or over 2, 4, ...',
        )
