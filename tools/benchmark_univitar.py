"""What `benchmark.py` measures of UniViTAR: the whole model, forward and backward, in one pack."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from navit_backbone.packing import PatchShape, pack, patchify
from navit_backbone.tools.benchmark_arms import Setting, autocast
from navit_backbone.tools.measure import (
    Result,
    free_bytes,
    in_new_process,
    resident_bytes,
    show_progress,
)
from navit_backbone.vit import NaViT

ARCH = 'univitar_0.3b'
TUBELET: PatchShape = (2, 14, 14)
# (frames, height, width): a photo of 640 x 480 and a clip of 340 x 256 as smart_resize has them
PICTURE, CLIP = (1, 476, 644), (4, 252, 336)
# bytes: weights, gradients, activations (kept, or made again block by block), libraries; with some
# to spare
NEEDED = {False: 14 * 2**30, True: 7 * 2**30}
SMALL = dict(preset=ARCH, embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=48)


class Whole(NamedTuple):
    """One forward and backward pass."""

    parameters: int
    tokens: list[int]  # of the picture and of the clip
    seconds: tuple[float, float]  # forward, backward
    peak: int  # bytes that the process held at most, libraries and weights among them


def univitar_rows(setting: Setting) -> list[Result]:
    """Peak memory and seconds of a picture and a clip of 4 frames in one pack.

    Without checkpointing, and with it, as UniViTAR's own code trains.
    """
    started, rows = time.monotonic(), []
    for done, with_cp in enumerate((False, True), start=1):
        rows.append(_row(setting, with_cp))
        show_progress('univitar', done, 2, started)
    return rows


def _row(setting: Setting, with_cp: bool) -> Result:
    what = 'UniViTAR-0.3B: forward and backward of a picture and a clip of 4 frames in one pack'
    what += ', with_cp=True' if with_cp else ''
    if setting.device.type == 'cpu' and not Path('/proc/self/status').exists():
        return Result(what=what, figure='skipped: the peak is read from /proc, as Linux has it')
    needed, free = NEEDED[with_cp], free_bytes(setting.device)
    if not setting.smoke and free < needed:
        need = f'about {needed / 2**30:.0f} GiB are needed, {free / 2**30:.1f} are free'
        return Result(what=what, figure=f'skipped: {need}')
    arch: Any = SMALL if setting.smoke else dict(preset=ARCH)
    where = (setting.device.type, torch.get_num_threads())
    seen = in_new_process(whole_step, arch, with_cp, *where)
    forward, backward = seen.seconds
    peak = f'{seen.peak / 2**30:.2f} GiB at the peak'
    return Result(
        what=what,
        figure=f'a small model: no figure (smoke: {peak})' if setting.smoke else peak,
        detail=f'{seen.parameters / 1e6:.0f} M parameters, {" + ".join(map(str, seen.tokens))} '
        f'tokens; one pass: forward {forward:.1f} s, backward {backward:.1f} s',
    )


def whole_step(arch: Mapping[str, Any], with_cp: bool, device_type: str, threads: int) -> Whole:
    """Forward and backward, once; every parameter must get a finite gradient."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.device(device_type)
    model = NaViT(arch, patch_size=TUBELET, position=None, with_cp=with_cp).to(device).train()
    clips = [torch.randn(3, *size) for size in (PICTURE, CLIP)]
    packed = pack([patchify(clip, TUBELET) for clip in clips]).to(device)
    times = [time.perf_counter()]
    with autocast(device):
        loss = model(packed).tokens.float().square().mean()
    times.append(_now(device))
    loss.backward()
    times.append(_now(device))
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None and gradient.isfinite().all(), f'{name} has no gradient'
    cuda = device.type == 'cuda'
    return Whole(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        tokens=packed.lengths.tolist(),
        seconds=(times[1] - times[0], times[2] - times[1]),
        peak=torch.cuda.max_memory_allocated(device) if cuda else resident_bytes(peak=True),
    )


def _now(device: torch.device) -> float:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter()
