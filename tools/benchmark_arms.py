"""What `benchmark.py` compares: one NaViT packed and padded, Siglip2, and their FLOPs.

All arms of a row hold the same pictures on the same canvas and end in the same kind of loss.
"""

from __future__ import annotations

import gc
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from navit_backbone.layers import Attention
from navit_backbone.packer import Packer
from navit_backbone.packing import PackedPatches, Size, inside, pack_canvas, unpack_canvas
from navit_backbone.tools.measure import Arm, interleaved, resident_bytes
from navit_backbone.vit import ARCHS, Arch, NaViT

PATCH_SIZE = 16
Lengths = Sequence[Sequence[int]]  # of the segments of each round's batch, padding included


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Pictures in the upper left corners of one canvas, as OpenMMLab pads them."""

    canvas: Tensor  # [B, 3, height, width]
    sizes: list[Size]  # (height, width) of each, in pixels
    packed: PackedPatches  # made beforehand, for arms whose own packing is not what is timed

    @classmethod
    def of(cls, sizes: Sequence[Size], *, seed: int, device: torch.device) -> Batch:
        """Noise in the given sizes, and zeros where no picture is."""
        generator = torch.Generator().manual_seed(seed)
        height, width = (max(axis) for axis in zip(*sizes, strict=True))
        height, width = (-(-side // PATCH_SIZE) * PATCH_SIZE for side in (height, width))
        canvas = torch.zeros(len(sizes), 3, height, width)
        for slot, (h, w) in zip(canvas, sizes, strict=True):
            slot[:, :h, :w] = torch.randn(3, h, w, generator=generator)
        canvas, sizes = canvas.to(device), list(sizes)
        return cls(canvas=canvas, sizes=sizes, packed=pack_canvas(canvas, sizes, PATCH_SIZE))

    @property
    def grid(self) -> Size:
        """The canvas in patches."""
        height, width = self.canvas.shape[2:]
        return height // PATCH_SIZE, width // PATCH_SIZE

    @property
    def lengths(self) -> list[int]:
        """Tokens of each picture."""
        return [num_tokens(size) for size in self.sizes]

    @property
    def padded_lengths(self) -> list[int]:
        """Tokens of each picture and its padding."""
        return [self.grid[0] * self.grid[1]] * len(self.sizes)

    def pack(self) -> PackedPatches:
        """The pictures alone, packed now."""
        return pack_canvas(self.canvas, self.sizes, PATCH_SIZE)

    def pack_whole(self) -> PackedPatches:
        """The canvas as it is: padding counts as picture."""
        size = (self.canvas.shape[2], self.canvas.shape[3])
        return pack_canvas(self.canvas, [size] * len(self.sizes), PATCH_SIZE)


def num_tokens(size: Size) -> int:
    """Tokens of a picture: partial patches at the border count."""
    height, width = (-(-side // PATCH_SIZE) for side in size)
    return height * width


def by_orientation(sizes: Sequence[Size]) -> list[list[Size]]:
    """Upright and other pictures apart, as mmdet's AspectRatioBatchSampler has them."""
    groups = [[s for s in sizes if s[0] > s[1]], [s for s in sizes if s[0] <= s[1]]]
    return [group for group in groups if group]


def photo_sizes(annotations: Path, scale: float) -> list[Size]:
    """The sizes of the photos that a COCO file lists, all scaled by one factor."""
    images = json.loads(annotations.read_text())['images']
    return [
        (max(1, round(image['height'] * scale)), max(1, round(image['width'] * scale)))
        for image in images
    ]


def draw_batches(sizes: Sequence[Size], num: int, batch_size: int) -> list[list[Size]]:
    """`num` random batches, the same in every run."""
    rng = random.Random(0)
    return [rng.sample(list(sizes), batch_size) for _ in range(num)]


def forward_flops(lengths: Sequence[int], arch: Arch) -> float:
    """FLOPs of the forward pass over segments of these lengths; backward has twice as many.

    A multiply-add is two. Per block 24 D^2 T + 4 D sum(n^2) where the MLP is 4 D wide; norms,
    activations and positions are left out.
    """
    dim, hidden = arch.embed_dims, arch.feedforward_channels
    tokens, squares = sum(lengths), sum(n * n for n in lengths)
    block = (8 * dim * dim + 4 * dim * hidden) * tokens + 4 * dim * squares
    return arch.num_layers * block + 2 * (3 * PATCH_SIZE**2) * dim * tokens


def size_of_equal_flops(lengths: Sequence[int], arch: Arch) -> Size:
    """A picture, close to square, of which as many cost what these cost, to a row of patches."""
    target = forward_flops(lengths, arch) / len(lengths)
    side = 1
    while forward_flops([side * side], arch) < target:
        side += 1
    columns = min(range(1, side + 1), key=lambda n: abs(forward_flops([side * n], arch) - target))
    return side * PATCH_SIZE, columns * PATCH_SIZE


class Step:
    """Forward and backward passes of one model with a linear loss on its tokens."""

    def __init__(self, model: nn.Module, *, dim: int, device: torch.device) -> None:
        self.model = model.to(device).train()
        self.readout_D = torch.randn(dim, generator=torch.Generator().manual_seed(1)).to(device)
        self.device = device

    def packed(self, packed: PackedPatches) -> None:
        """Attention within each picture of the pack."""
        with autocast(self.device):
            self.backward(self.model(packed).tokens)

    def masked(self, batch: Batch) -> None:
        """The padded canvas, with a key mask."""
        with autocast(self.device):
            self.backward(masked_tokens(self.model, batch))

    def siglip2(self, inputs: dict[str, Tensor]) -> None:
        """Pictures padded to the longest, with the model's own mask."""
        with autocast(self.device):
            self.backward(self.model(**inputs).last_hidden_state)

    def backward(self, tokens: Tensor) -> None:
        """The backward pass of a linear loss."""
        (tokens.float() @ self.readout_D).sum().backward()
        self.model.zero_grad(set_to_none=True)


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on CUDA, float32 on CPU."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == 'cuda')


def masked_tokens(vit: NaViT, batch: Batch) -> Tensor:
    """The same model on the padded canvas: [B, N, D], right where there is a picture.

    Every picture has its own positions, and no token attends to padding.
    """
    whole = batch.pack_whole()
    x_BND = vit.patch_embed['1x16x16'](whole.patches).unflatten(0, (len(batch.sizes), -1))
    positions = unpack_canvas(vit.position(batch.packed), batch.packed, batch.grid)
    x_BND = x_BND + rearrange(positions, 'b d h w -> b (h w) d').to(x_BND.dtype)
    cells = [(-(-h // PATCH_SIZE), -(-w // PATCH_SIZE)) for h, w in batch.sizes]
    mask = rearrange(inside(cells, batch.grid, x_BND.device), 'b 1 h w -> b 1 1 (h w)')
    for block in vit.blocks:
        x_BND = x_BND + masked_attention(block.attn, block.norm1(x_BND), mask)
        x_BND = x_BND + block.mlp(block.norm2(x_BND))
    return vit.norm(x_BND)


def masked_attention(attn: Attention, x_BND: Tensor, mask: Tensor) -> Tensor:
    """Attention of every token to the keys of the mask [B, 1, 1, N]."""
    q, k, v = rearrange(
        attn.qkv(x_BND), 'b n (three h k) -> three b h n k', three=3, h=attn.num_heads
    )
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return attn.proj(rearrange(out, 'b h n k -> b n (h k)'))


def siglip2_model(arch: Arch) -> nn.Module:
    """Hugging Face's vision tower of the same shape: random weights, no pooling."""
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    config = Siglip2VisionConfig(
        hidden_size=arch.embed_dims,
        intermediate_size=arch.feedforward_channels,
        num_hidden_layers=arch.num_layers,
        num_attention_heads=arch.num_heads,
        patch_size=PATCH_SIZE,
        hidden_act='gelu',
        vision_use_head=False,
    )
    return Siglip2VisionModel(config)


def siglip2_inputs(batch: Batch, max_num_patches: int) -> dict[str, Tensor]:
    """What its processor hands over: the patches of each picture, padded to one number of them."""
    packed = batch.packed
    rows = packed.patches.split(packed.lengths.tolist())
    pad = (F.pad(row, (0, 0, 0, max_num_patches - len(row))) for row in rows)
    mask = torch.arange(max_num_patches) < packed.lengths[:, None]
    return {
        'pixel_values': torch.stack(list(pad)),
        'pixel_attention_mask': mask.to(packed.patches.device, torch.int64),
        'spatial_shapes': packed.grids[:, 1:],
    }


def step_memory(count: int, side: int, device_type: str, threads: int) -> int:
    """Bytes that a step on `count` square pictures takes at its peak, beyond the model's."""
    torch.set_num_threads(threads)
    device = torch.device(device_type)
    step = Step(NaViT('tiny'), dim=ARCHS['tiny'].embed_dims, device=device)
    step.packed(Batch.of([(PATCH_SIZE, PATCH_SIZE)], seed=0, device=device).packed)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        before = resident_bytes(peak=False)
    step.packed(Batch.of([(side, side)] * count, seed=0, device=device).packed)
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) - before
    return resident_bytes(peak=True) - before


def random_lengths(num: int, *, low: int, high: int) -> list[int]:
    """Tokens of `num` pictures with sides drawn from low to high pixels, the same in every run."""
    rng = random.Random(0)
    return [num_tokens((rng.randint(low, high), rng.randint(low, high))) for _ in range(num)]


def pack_stream(lengths: Sequence[int], budget: int) -> tuple[float, float]:
    """CPU seconds for the stream, and the empty share of its rows.

    Garbage collection is off, as timeit has it: a pass over the whole process is not the packer's.
    """
    packer: Packer[int] = Packer(budget, pool_size=64)
    rows = []
    gc.disable()
    try:
        start = time.process_time()
        for key, length in enumerate(lengths):
            if row := packer.push(key, length):
                rows.append(row)
        seconds = time.process_time() - start
    finally:
        gc.enable()
    return seconds, 1 - sum(n for row in rows for _, n in row) / (budget * len(rows))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the command line fixes for all rows."""

    device: torch.device
    rounds: int
    data: Path  # the folder that holds coco128/
    scale: float  # of the photos
    sizes: Sequence[Size]  # of the photos, scaled; empty where they are absent
    batch_size: int
    smoke: bool

    def batches(self) -> list[Batch]:
        """One random batch of photos per round, the same in every run."""
        drawn = draw_batches(self.sizes, self.rounds, self.batch_size)
        return [Batch.of(sizes, seed=i, device=self.device) for i, sizes in enumerate(drawn)]

    def navit(self, name: str) -> Step:
        """Steps of our model, the same in every run."""
        torch.manual_seed(0)
        return Step(NaViT(name), dim=ARCHS[name].embed_dims, device=self.device)

    def measure(
        self, label: str, name: str, arms: dict[str, tuple[Callable[[int], None], Lengths]]
    ) -> dict[str, Arm]:
        """Every arm in every round; an arm is a step by its number, and what it computes on."""
        steps = {arm: step for arm, (step, _) in arms.items()}
        seconds = interleaved(
            steps, rounds=self.rounds, label=f'{label}, {name}', device=self.device
        )
        return {
            arm: Arm(
                seconds=seconds[arm], flops=[3 * forward_flops(n, ARCHS[name]) for n in lengths]
            )
            for arm, (_, lengths) in arms.items()
        }
