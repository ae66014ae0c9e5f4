"""What `benchmark.py` measures of segmentation: steps on batches of mixed sizes, a large picture.

A linear head of 150 classes on random weights; pictures are noise in the sizes of coco128's photos.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from einops import rearrange
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from navit_backbone.packing import Size, pack_canvas
from navit_backbone.tools.benchmark_arms import (
    PATCH_SIZE,
    Batch,
    Setting,
    autocast,
    draw_batches,
    forward_flops,
    masked_tokens,
    num_tokens,
)
from navit_backbone.tools.measure import (
    Arm,
    Result,
    compared,
    in_new_process,
    interleaved,
    resident_bytes,
)
from navit_backbone.vit import ARCHS

NUM_CLASSES = 150
BATCH = 8
LARGE, LARGE_TOKENS = (4000, 6000), 16_384


class MaskedBackbone(nn.Module):
    """The same backbone on the padded canvas, with a key mask: what packing replaces."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.vit = backbone.vit

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Maps that carry the sizes of the pictures."""
        sizes: Sequence[Size] = x.image_sizes  # type: ignore[attr-defined]
        batch = Batch(canvas=x, sizes=list(sizes), packed=pack_canvas(x, sizes, PATCH_SIZE))
        tokens_BND = masked_tokens(self.vit, batch)
        maps = rearrange(tokens_BND, 'b (h w) d -> b d h w', h=batch.grid[0])
        maps.image_sizes = sizes  # type: ignore[attr-defined]
        return (maps,)


def segmentor(name: str, *, type: str = 'EncoderDecoder') -> Any:
    """A model of one of the ViT's sizes, from random weights."""
    from navit_backbone.tasks import segmentation  # noqa: F401  registers

    init_default_scope('mmseg')
    torch.manual_seed(0)
    return MODELS.build(
        dict(
            type=type,
            data_preprocessor=dict(
                type='NaViTSegDataPreprocessor', mean=[0.0] * 3, std=[1.0] * 3, size_divisor=16
            ),
            backbone=dict(type='NaViTBackbone', arch=name, position='sinusoidal'),
            decode_head=dict(
                type='NaViTLinearHead',
                in_channels=ARCHS[name].embed_dims,
                num_classes=NUM_CLASSES,
                loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
            ),
            train_cfg=ConfigDict(),
            test_cfg=ConfigDict(mode='whole'),
        )
    )


def noise(sizes: Sequence[Size], *, seed: int) -> dict[str, Any]:
    """What a loader gives of pictures of these sizes."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    generator = torch.Generator().manual_seed(seed)
    images, samples = [], []
    for size in sizes:
        sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size))
        labels = torch.randint(NUM_CLASSES, (1, *size), generator=generator)
        sample.gt_sem_seg = PixelData(data=labels)
        images.append(torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8))
        samples.append(sample)
    return dict(inputs=images, data_samples=samples)


def segmentation_rows(setting: Setting, name: str) -> list[Result]:
    """Evaluation and training steps, packed against padded with a key mask and against batch 1."""
    count = min(BATCH, len(setting.sizes))
    drawn = draw_batches(setting.sizes, setting.rounds, count)
    batches = [noise(sizes, seed=i) for i, sizes in enumerate(drawn)]
    packed = segmentor(name).to(setting.device)
    padded = deepcopy(packed)
    padded.backbone = MaskedBackbone(padded.backbone)
    work = [forward_flops([num_tokens(size) for size in sizes], ARCHS[name]) for sizes in drawn]

    def predict(model: Any, i: int, size: int = count) -> None:
        model.eval()
        for first in range(0, count, size):
            part = {key: value[first : first + size] for key, value in batches[i].items()}
            with torch.inference_mode(), autocast(setting.device):
                model.test_step(deepcopy(part))

    def train(model: Any, i: int) -> None:
        model.train()
        data = model.data_preprocessor(deepcopy(batches[i]), True)
        with autocast(setting.device):
            losses = model(**data, mode='loss')
        losses['decode.loss_ce'].backward()
        model.zero_grad(set_to_none=True)

    rows = []
    for what, arms, targets in (
        (
            'evaluation',
            {
                'packed': lambda i: predict(packed, i),
                'batch 1': lambda i: predict(packed, i, 1),
                'padded with a key mask': lambda i: predict(padded, i),
            },
            ['0.85' if setting.device.type == 'cpu' else '1.3', '1.3'],
        ),
        (
            'a training step',
            {
                'packed': lambda i: train(packed, i),
                'padded with a key mask': lambda i: train(padded, i),
            },
            ['1.3'],
        ),
    ):
        seconds = interleaved(
            arms, rounds=setting.rounds, label=f'{what}, {name}', device=setting.device
        )
        found = {arm: Arm(seconds=times, flops=work) for arm, times in seconds.items()}
        for arm, target in zip(list(arms)[1:], targets, strict=True):
            title = f'linear segmentor, {NUM_CLASSES} classes, {what} of {count}: mixed sizes'
            row = compared(f'{title} against {arm}, {name}', found['packed'], found[arm], target)
            rows.append(Result(**{**vars(row), 'flops': ''}))  # heads and resizing are not counted
    return rows


def large_rows(setting: Setting) -> list[Result]:
    """A picture of 24 million pixels, labelled at its own size."""
    size, tokens = ((400, 600), 384) if setting.smoke else (LARGE, LARGE_TOKENS)
    peak, seconds = in_new_process(label_large, size, tokens, torch.get_num_threads())
    few = 'smoke: ' if setting.smoke else ''
    return [
        Result(
            what=f'NativeEncoderDecoder, small: {size[1]} x {size[0]} pixels at {tokens:,} tokens',
            figure=f'{few}{peak / 2**30:.2f} GiB, {seconds:.0f} s',
            target='under 6 GiB',
            detail='the whole process at its peak; float32 on the CPU',
        )
    ]


def label_large(size: Size, tokens: int, threads: int) -> tuple[int, float]:
    """Bytes that the process takes at its peak, and seconds from pixels to labels."""
    from navit_backbone.tasks.common.resize import ResizeToTokenBudget

    torch.set_num_threads(threads)
    model = segmentor('small', type='NativeEncoderDecoder').eval()
    image = torch.randint(256, (*size, 3), dtype=torch.uint8).numpy()
    start = time.perf_counter()
    resize = ResizeToTokenBudget(tokens, patch_size=PATCH_SIZE)
    shown = resize(dict(img=image, ori_shape=size))['img']
    data = noise([shown.shape[:2]], seed=0)
    data['inputs'] = [torch.from_numpy(shown).permute(2, 0, 1).contiguous()]
    data['data_samples'][0].set_metainfo(dict(ori_shape=size))
    with torch.inference_mode():
        labels = model.test_step(data)[0].pred_sem_seg.data
    seconds = time.perf_counter() - start
    assert tuple(labels.shape[1:]) == size, 'labels are at the own size of the picture'
    return resident_bytes(peak=True), seconds
