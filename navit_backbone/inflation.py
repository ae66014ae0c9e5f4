"""Patch embeddings of one shape for models of another: in time, and in space."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from .conversion import NaViTWeights
from .interpolation import interpolation_rows
from .packing import PatchShape, Size
from .vit import NaViT, shape_name

Inflation = Literal['central', 'mean']
PatchResize = Literal['flexivit']
TABLE = 'temporal_position.t'  # the one of a model for clips


def fit_patches(
    weights: NaViTWeights,
    model: NaViT,
    inflation: Inflation = 'central',
    patch_resize: PatchResize | None = None,
) -> NaViTWeights:
    """The weights with patches of the model's length in time, where theirs differ in that alone.

    With `patch_resize` they may differ in height and width too: `resampled` brings them to the
    model's first. Nothing else of the weights changes, the grid of their positions neither.

    From pictures to tubelets: `inflation` 'central' lets the frame in the middle see what the
    picture saw and the others nothing (ViViT, section 3.4), 'mean' shares it out evenly. A clip of
    one repeated frame gives the tokens of the picture either way.

    From tubelets to pictures: the sum over time, and the temporal position of the first frame
    joins the bias. That is exact, as a picture is a clip that repeats its only frame.
    """
    if inflation not in get_args(Inflation):
        raise ValueError(f'inflation={inflation!r} is not one of {get_args(Inflation)}')
    if patch_resize not in (None, *get_args(PatchResize)):
        raise ValueError(f'patch_resize={patch_resize!r} is not one of {get_args(PatchResize)}')
    if patch_resize is not None:
        weights = _of_sides(weights, {(h, w) for _, h, w in model.patch_shapes})
    here, there = sorted(model.patch_shapes), weights.patch_shapes
    if here == there or not here or {shape[1:] for shape in here} != {shape[1:] for shape in there}:
        return weights
    if [shape[0] for shape in there] == [1]:
        return _inflated(weights, here, inflation)
    if [shape[0] for shape in here] == [1] and len(there) == 1:
        return _deflated(weights, here[0])
    return weights


def resampled(kernel: Tensor, shape: PatchShape, size: Size) -> Tensor:
    """A kernel [D, C * t * h * w] for patches of `shape` as one for patches of `size`.

    FlexiViT's PI-resize (arXiv 2212.08013, section 3.4). With B the matrix that resizes a patch
    bilinearly it is pinv(B^T) times the kernel: what gives a resized patch the token that the
    kernel gives the patch. Exactly so where no side shrinks; else it is the least squares' choice
    for patches of white noise. B is separable, so its inverse is one matrix a side.
    """
    t, h, w = shape
    y, x = (
        torch.linalg.pinv(interpolation_rows(side, new, 'bilinear', antialias=True).T)
        for side, new in zip((h, w), size, strict=True)
    )
    frames = kernel.unflatten(1, (-1, t, h, w)).double()
    out = torch.einsum('yh,dcthw,xw->dctyx', y, frames, x)
    return out.flatten(1).to(kernel.dtype)


def _of_sides(weights: NaViTWeights, sizes: set[Size]) -> NaViTWeights:
    """The weights with all kernels resampled to the one size of the model's patches."""
    embeds, others = _embeddings(weights)
    shapes = weights.patch_shapes
    if len(sizes) != 1 or len({shape[1:] for shape in shapes}) != 1 or shapes[0][1:] in sizes:
        return weights  # what does not fit is told on loading
    (size,) = sizes
    for t, h, w in shapes:
        old, new = (f'patch_embed.{shape_name((t, *sides))}' for sides in ((h, w), size))
        others[f'{new}.weight'] = resampled(embeds[f'{old}.weight'], (t, h, w), size)
        if f'{old}.bias' in embeds:
            others[f'{new}.bias'] = embeds[f'{old}.bias']
    names = ' and '.join(map(shape_name, shapes))
    note = f'the patch embedding of {names} was resampled to {shape_name(size)} pixels (FlexiViT)'
    return replace(weights, tensors=others, notes=(*weights.notes, note))


def _inflated(
    weights: NaViTWeights, shapes: list[PatchShape], inflation: Inflation
) -> NaViTWeights:
    (picture,) = weights.patch_shapes
    embeds, others = _embeddings(weights)
    bias = embeds.get(f'patch_embed.{shape_name(picture)}.bias')
    kernel = embeds[f'patch_embed.{shape_name(picture)}.weight']
    for shape in shapes:
        others[f'patch_embed.{shape_name(shape)}.weight'] = _over_time(kernel, shape, inflation)
        if bias is not None:
            others[f'patch_embed.{shape_name(shape)}.bias'] = bias
    names = ' and '.join(map(shape_name, shapes))
    note = f'the patch embedding of pictures was inflated to {names} ({inflation})'
    return replace(weights, tensors=others, notes=(*weights.notes, note))


def _over_time(kernel: Tensor, shape: PatchShape, inflation: Inflation) -> Tensor:
    """[D, C * h * w] -> [D, C * t * h * w]."""
    t, h, w = shape
    frame = kernel.reshape(len(kernel), -1, h * w)
    clip = frame.new_zeros(*frame.shape[:2], t, h * w)
    if inflation == 'mean':
        clip[:] = frame[:, :, None] / t
    else:
        clip[:, :, t // 2] = frame
    return clip.flatten(1)


def _deflated(weights: NaViTWeights, shape: PatchShape) -> NaViTWeights:
    (tubelet,) = weights.patch_shapes
    embeds, others = _embeddings(weights)
    t, h, w = tubelet
    kernel = embeds[f'patch_embed.{shape_name(tubelet)}.weight']
    bias = embeds.get(f'patch_embed.{shape_name(tubelet)}.bias')
    first = others.pop(TABLE, torch.zeros(1, kernel.shape[0], dtype=kernel.dtype))[0]
    summed = kernel.unflatten(1, (-1, t, h * w)).sum(2).flatten(1)
    others[f'patch_embed.{shape_name(shape)}.weight'] = summed
    if bias is not None:
        others[f'patch_embed.{shape_name(shape)}.bias'] = bias + first
    note = (
        f'the patch embedding of clips, {shape_name(tubelet)}, was summed over time, for pictures'
    )
    notes = (*weights.notes, note)
    return replace(weights, tensors=others, temporal_position=None, notes=notes)


def _embeddings(weights: NaViTWeights) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the patch embeddings, and the others."""
    embeds = {k: t for k, t in weights.tensors.items() if k.startswith('patch_embed.')}
    return embeds, {k: t for k, t in weights.tensors.items() if k not in embeds}
