"""What `benchmark.py` measures of clips: training steps packed and padded, and reading frames."""

from __future__ import annotations

import csv
import io
import os
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from navit_backbone.packing import PackedPatches, PatchShape, pack, patchify, unpack
from navit_backbone.tools.benchmark_arms import Setting, Step, autocast, masked_attention
from navit_backbone.tools.command_line import enter_task, read_config
from navit_backbone.tools.measure import (
    Arm,
    Result,
    compared,
    give_back_free_memory,
    in_new_process,
    interleaved,
    resident_bytes,
)
from navit_backbone.tools.run_record import RunRecord, record_of, waiting
from navit_backbone.vit import ARCHS, NaViT

CONFIGS = Path(__file__).resolve().parents[1] / 'configs/video'
FIGHT, FOLDS = CONFIGS / 'cls_navit-ti_10e_fight.py', CONFIGS / 'fight_folds.csv'
STEPS = 'train_dataloader.batch_sampler.steps_per_epoch'
TUBELET: PatchShape = (2, 16, 16)
RATE = 4  # frames a second that are seen
SHARE = 0.5  # of the photos' scale: clips have many frames
BATCH = 8
FULL_HD, FRAMES, READ = (1080, 1920), 300, 16
READS = 4  # a round, since one read alone varies with the memory that it gets


class Clips(NamedTuple):
    """A batch of noise: packed, and on one canvas."""

    packed: PackedPatches
    canvas: PackedPatches  # every clip as long and large as the longest and largest
    mask: Tensor  # [B, 1, 1, N] the cells of the canvas that lie in its clip


def clip_sizes(scale: float) -> list[tuple[int, int, int]]:
    """(frames, height, width) of the fight clips at `RATE` frames a second, sides times `scale`."""
    with open(FOLDS, newline='') as content:
        rows = list(csv.DictReader(content))
    return [
        (
            max(1, round(int(row['frames']) / float(row['fps']) * RATE)),
            max(16, round(int(row['height']) * scale)),
            max(16, round(int(row['width']) * scale)),
        )
        for row in rows
    ]


def clips_of(sizes: Sequence[tuple[int, int, int]], *, seed: int, device: torch.device) -> Clips:
    """Noise in these sizes."""
    generator = torch.Generator().manual_seed(seed)
    largest = [max(side) for side in zip(*sizes, strict=True)]
    grid = [-(-side // step) for side, step in zip(largest, TUBELET, strict=True)]
    canvas = torch.zeros(
        len(sizes), 3, *(cells * step for cells, step in zip(grid, TUBELET, strict=True))
    )
    inside = torch.zeros(len(sizes), *grid, dtype=torch.bool)
    packs = []
    for number, (t, h, w) in enumerate(sizes):
        clip = torch.randn(3, t, h, w, generator=generator)
        filled = t + -t % TUBELET[0]  # a clip that does not fill its tubelet repeats its last frame
        canvas[number, :, :filled, :h, :w] = clip[:, [min(i, t - 1) for i in range(filled)]]
        packs.append(patchify(clip, TUBELET))
        cells = packs[-1].shared_grid or (0, 0, 0)
        inside[number, : cells[0], : cells[1], : cells[2]] = True
    return Clips(
        packed=pack(packs).to(device),
        canvas=pack([patchify(clip, TUBELET) for clip in canvas]).to(device),
        mask=inside.flatten(1)[:, None, None].to(device),
    )


def masked_clip_tokens(vit: NaViT, clips: Clips) -> Tensor:
    """The same model on the padded canvas: [B, N, D], right where there is a clip.

    Every clip has its own positions, and no token attends to padding.
    """
    count, name = clips.canvas.num_examples, 'x'.join(map(str, TUBELET))
    x_BND = vit.patch_embed[name](clips.canvas.patches).unflatten(0, (count, -1))
    grid = clips.canvas.grids[0].tolist()
    positions = x_BND.new_zeros(count, *grid, x_BND.shape[2])
    assert vit.position is not None, 'the benchmark has positions'
    for slot, own in zip(positions, unpack(vit.position(clips.packed), clips.packed), strict=True):
        t, h, w = own.shape[:3]
        slot[:t, :h, :w] = own
    x_BND = x_BND + rearrange(positions, 'b t h w d -> b (t h w) d')
    for block in vit.blocks:
        x_BND = x_BND + masked_attention(block.attn, block.norm1(x_BND), clips.mask)
        x_BND = x_BND + block.mlp(block.norm2(x_BND))
    out: Tensor = vit.norm(x_BND)
    return out


def clip_rows(setting: Setting, name: str) -> list[Result]:
    """A training step on clips of mixed sizes and lengths, packed against padded."""
    sizes = clip_sizes(setting.scale * SHARE)
    rng, count = random.Random(0), 2 if setting.smoke else BATCH
    batches = [
        clips_of(rng.sample(sizes, count), seed=i, device=setting.device)
        for i in range(setting.rounds)
    ]
    torch.manual_seed(0)
    model = NaViT(name, patch_size=TUBELET, position='sinusoidal')
    step = Step(model, dim=ARCHS[name].embed_dims, device=setting.device)

    def masked(i: int) -> None:
        with autocast(setting.device):
            step.backward(masked_clip_tokens(model, batches[i]))

    arms = setting.measure(
        'clips',
        name,
        {
            'packed': (
                lambda i: step.packed(batches[i].packed),
                [b.packed.lengths.tolist() for b in batches],
            ),
            'padded': (masked, [b.canvas.lengths.tolist() for b in batches]),
        },
    )
    what = f'clips: a training step of {count}, packed against padded with a key mask, {name}'
    return [compared(what, arms['packed'], arms['padded'], '1.5')]


def waiting_rows(setting: Setting) -> list[Result]:
    """A training run of the fight config with two workers: what it waits for data."""
    if not (setting.data / 'fight').is_dir():
        return [Result(what='waiting', figure='skipped: no fight/; set NAVIT_DATA or --data')]
    size = (1, 3) if setting.smoke else (5, 12)
    seen = in_new_process(fight_run, str(setting.data), *size, torch.get_num_threads())
    few = 'smoke: ' if setting.smoke else ''
    what = f'{FIGHT.stem}, {len(seen.took)} steps of {BATCH} clips, 2 workers'
    return [waiting(what, seen, few=few)]


def fight_run(data: str, epochs: int, steps: int, threads: int) -> RunRecord:
    """Trains the fight config for so many epochs of so many steps, and says how it went."""
    torch.set_num_threads(threads)
    os.environ['NAVIT_DATA'] = data
    options = {'train_cfg.max_epochs': epochs, STEPS: steps}
    cfg = read_config(FIGHT, options)
    enter_task(cfg, FIGHT)
    return record_of(cfg, epochs * steps)


def reading_rows(setting: Setting) -> list[Result]:
    """16 frames of a 1080p video: ours, and as mmaction2 has it, the whole file into memory."""
    from navit_backbone.tasks.common.video_reader import open_video

    size, frames = ((48, 64), 20) if setting.smoke else (FULL_HD, FRAMES)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, 'clip.mp4'))
        write_clip(file, size, frames)
        rng = random.Random(0)
        chosen = [
            [sorted(rng.sample(range(frames), READ)) for _ in range(READS)]
            for _ in range(setting.rounds)
        ]

        def ours(i: int) -> None:
            for indices in chosen[i]:
                open_video(file).read(indices)

        def whole_file(i: int) -> None:
            for indices in chosen[i]:
                read_whole(file, indices)

        seconds = interleaved(
            {'ours': ours, 'whole file': whole_file}, rounds=setting.rounds, label='reading'
        )
        arms = {name: Arm(seconds=s, flops=[1.0] * len(s)) for name, s in seconds.items()}
        reads = 20 if setting.smoke else 1000
        small = str(Path(folder, 'small.mp4'))
        write_clip(small, (240, 320), 60)
        held = in_new_process(memory_of_reads, small, reads)
    what = f'reading {READ} of {frames} frames of {size[0]} x {size[1]}'
    return [
        compared(
            f'{what}, against the whole file into memory and then decord',
            arms['ours'],
            arms['whole file'],
            '1',
        ),
        Result(
            what=f'memory after {reads} reads of {READ} frames over that after a tenth of them',
            figure=f'{"smoke: " if setting.smoke else ""}{held[1] / held[0]:.3f}',
            target='flat: at most 1.05',
            detail=f'{held[1] / 2**20:,.0f} MiB, without what malloc keeps for later',
        ),
    ]


def read_whole(file: str, indices: Sequence[int]) -> np.ndarray:
    """mmaction2's DecordInit and DecordDecode, in accurate mode, with one thread."""
    import decord

    content = io.BytesIO(Path(file).read_bytes())
    frames: np.ndarray = decord.VideoReader(content, num_threads=1).get_batch(indices).asnumpy()
    return frames


def memory_of_reads(file: str, reads: int) -> tuple[int, int]:
    """Bytes held after a tenth of the reads, and after all."""
    from navit_backbone.tasks.common.video_reader import open_video

    rng, held = random.Random(0), []
    for number in range(1, reads + 1):
        reader = open_video(file)
        reader.read(sorted(rng.sample(range(reader.num_frames), READ)))
        if number in (reads // 10, reads):
            give_back_free_memory()
            held.append(resident_bytes(peak=False))
    return held[0], held[1]


def write_clip(file: str, size: tuple[int, int], frames: int) -> None:
    """A smooth pattern that moves, so that the file is neither noise nor nothing."""
    import av

    h, w = size
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    with av.open(file, 'w') as container:
        stream = container.add_stream('libx264', rate=30, options={'preset': 'veryfast'})
        stream.height, stream.width, stream.pix_fmt = h, w, 'yuv420p'
        for number in range(frames):
            waves = [np.sin((x + k * y + 9 * number) / (23 + 11 * k)) for k in range(3)]
            array = (127 + 120 * np.stack(waves, 2)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, 'rgb24')))
        container.mux(stream.encode())
