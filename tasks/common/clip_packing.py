"""Batches of clips of any length and size: packed in the loader's workers, patches as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from mmengine.registry import FUNCTIONS
from torch import Tensor

from navit_backbone.packing import PackedPatches, PatchShape, drop_tokens, pack, patchify
from navit_backbone.vit import patch_shapes, shape_name

from .clip_budget import cell_of
from .clip_mixing import ClipMixing
from .sample import SampleSeed


@FUNCTIONS.register_module()
def pack_clips(
    batch: Sequence[dict[str, Any]],
    *,
    patch_size: int | PatchShape | Sequence[int | PatchShape] = 16,
    mixing: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Collate samples of `PackClipInputs`: `inputs` a list of packs, one for each patch shape.

    All views of a sample are examples of their own, one after the other. `patch_size` is the
    model's; `mixing`, the fields of `ClipMixing`, mixes clips and their classes. Tokens are dropped
    here, at the rate that the sample's `drop_rate` says. Draws depend on the samples' seeds alone.
    """
    shapes = patch_shapes(patch_size)
    clips = [item['inputs'] for item in batch]
    samples = [item['data_samples'] for item in batch]
    cell = cell_of(shapes)
    for clip, sample in zip(clips, samples, strict=True):
        planned = sample.get('patch_shapes', shapes)
        if planned != shapes:
            raise ValueError(
                f'ClipToTokenBudget counted tokens of {_named(planned)}, and collate_fn cuts '
                f'{_named(shapes)}: give both the patch_size of the model'
            )
        if clip.shape[-2] % cell or clip.shape[-1] % cell:
            raise ValueError(
                f'a clip of {clip.shape[-2]} x {clip.shape[-1]} pixels is not whole patches of '
                f'{cell}: let ClipToTokenBudget(patch_size={patch_size}) decide the size; '
                f'it is {sample.get("video_path", sample.get("img_path", "of unknown name"))}'
            )
    if mixing is not None:
        clips = ClipMixing.of(mixing)(clips, samples, cell)
    rates = [sample.get('drop_rate', 0.0) for sample in samples for _ in range(sample.num_views)]
    generator = None
    if any(rates):
        generator = torch.Generator()
        generator.manual_seed(int(SampleSeed(*samples[0].sample_seed).words('drop', 1)[0]))
    packs = []
    for shape in shapes:
        packed = pack([patchify(view, shape) for clip in clips for view in clip])
        if generator is not None:
            packed = drop_tokens(packed, torch.tensor(rates), generator=generator)
        packs.append(packed)
    return dict(inputs=packs, data_samples=samples)


def _named(shapes: Sequence[PatchShape]) -> str:
    return ' and '.join(map(shape_name, shapes))


def normalised(packed: PackedPatches, mean: Tensor, std: Tensor) -> PackedPatches:
    """Bytes [T, P] as numbers, the `mean` and `std` of each channel ([C]) taken out."""
    per_channel = packed.patches.shape[1] // len(mean)  # values of a patch: channels come first
    mean_P, std_P = (item.repeat_interleave(per_channel) for item in (mean, std))
    return replace(packed, patches=(packed.patches.to(mean.dtype) - mean_P) / std_P)
