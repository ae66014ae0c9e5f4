"""Batches of clips of any length and size: packed in the loader's workers, patches as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from mmengine.registry import FUNCTIONS
from torch import Tensor

from navit_backbone.packing import PackedPatches, PatchShape, drop_tokens, pack, patchify
from navit_backbone.vit import patch_shapes, shape_name

from .clip_budget import cell_of
from .clip_mixing import ClipMixing
from .clip_sample import ClipDataSample
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
    model's. Tokens are dropped here, down to the sample's `kept_tokens` of each patch shape; which
    ones depends on the sample's own seed alone, not on the rest of the batch. `mixing`, the fields
    of `ClipMixing`, mixes clips of the batch and their classes; that does depend on the batch.
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
    packs = [pack([patchify(view, shape) for clip in clips for view in clip]) for shape in shapes]
    if any('kept_tokens' in sample for sample in samples):
        packs = _dropped(packs, samples)
    return dict(inputs=packs, data_samples=samples)


def _dropped(
    packs: Sequence[PackedPatches], samples: Sequence[ClipDataSample]
) -> list[PackedPatches]:
    """Drop the tokens that each sample loses, by scores from its own seed."""
    views = [sample for sample in samples for _ in range(sample.num_views)]
    draws = [SampleSeed(*sample.sample_seed).generator('drop') for sample in samples]
    per_view = [draw for draw, s in zip(draws, samples, strict=True) for _ in range(s.num_views)]
    dropped = []
    for number, packed in enumerate(packs):
        lengths = packed.lengths.tolist()
        kept = [
            sample.kept_tokens[number] if 'kept_tokens' in sample else length
            for sample, length in zip(views, lengths, strict=True)
        ]
        scores = [draw.random(length) for draw, length in zip(per_view, lengths, strict=True)]
        scores_T = torch.from_numpy(np.concatenate(scores))
        dropped.append(drop_tokens(packed, torch.tensor(kept), scores=scores_T))
    return dropped


def _named(shapes: Sequence[PatchShape]) -> str:
    return ' and '.join(map(shape_name, shapes))


def normalised(packed: PackedPatches, mean: Tensor, std: Tensor) -> PackedPatches:
    """Bytes [T, P] as numbers, the `mean` and `std` of each channel ([C]) taken out."""
    per_channel = packed.patches.shape[1] // len(mean)  # values of a patch: channels come first
    mean_P, std_P = (item.repeat_interleave(per_channel) for item in (mean, std))
    return replace(packed, patches=(packed.patches.to(mean.dtype) - mean_P) / std_P)
