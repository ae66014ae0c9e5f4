"""Memory of a conversion: what tools/convert_weights.py does, on a file like that of DINOv2-L."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import Tensor

from navit_backbone.checkpoint import read_weights, save_navit
from navit_backbone.tools.benchmark_arms import Setting
from navit_backbone.tools.measure import Result, in_new_process, resident_bytes, show_progress
from navit_backbone.vit import ARCHS

TARGET = 2.2  # times the file, beyond what the process held before
PATCH, GRID = 14, 37  # DINOv2's


def dinov2_state(arch_name: str) -> dict[str, Tensor]:
    """Random tensors under Hugging Face's names of DINOv2.

    Queries, keys and values stand apart there and are joined: no family copies more of its tensors.
    """
    arch = ARCHS[arch_name]
    dim, hidden = arch.embed_dims, arch.feedforward_channels
    generator = torch.Generator().manual_seed(0)

    def dense(name: str, *shape: int) -> dict[str, Tensor]:
        weight = torch.randn(*shape, generator=generator) * 0.02
        return {f'{name}.weight': weight, f'{name}.bias': torch.zeros(shape[0])}

    state = {
        'embeddings.cls_token': torch.zeros(1, 1, dim),
        'embeddings.position_embeddings': torch.zeros(1, 1 + GRID * GRID, dim),
        **dense('embeddings.patch_embeddings.projection', dim, 3, PATCH, PATCH),
        **dense('layernorm', dim),
    }
    for i in range(arch.num_layers):
        block = f'encoder.layer.{i}'
        for part in ('attention.query', 'attention.key', 'attention.value', 'output.dense'):
            state |= dense(f'{block}.attention.{part}', dim, dim)
        state |= dense(f'{block}.mlp.fc1', hidden, dim) | dense(f'{block}.mlp.fc2', dim, hidden)
        state |= dense(f'{block}.norm1', dim) | dense(f'{block}.norm2', dim)
        state |= {f'{block}.layer_scale{k}.lambda1': torch.ones(dim) for k in (1, 2)}
    return state


def write_source(path: Path, arch_name: str) -> int:
    """Write the file, and give the number of its values."""
    state = dinov2_state(arch_name)
    (save_file if path.suffix == '.safetensors' else torch.save)(state, path)
    return sum(tensor.numel() for tensor in state.values())


def conversion_memory(source: Path, out: Path) -> int:
    """Bytes that a conversion takes at its peak, beyond what the process held before it."""
    before = resident_bytes(peak=False)
    save_navit(out, read_weights(source))
    return resident_bytes(peak=True) - before


def conversion_rows(setting: Setting) -> list[Result]:
    """Peak memory over the size of the file; what is mapped from it counts as memory."""
    arch = 'tiny' if setting.smoke else 'large'
    suffixes = ('.safetensors', '.pth')
    if not Path('/proc/self/status').exists():
        return [Result(what='conversion', figure='skipped: the peak is read from /proc')]
    rows, started = [], time.monotonic()
    with TemporaryDirectory(prefix='navit-conversion-') as folder:
        for done, suffix in enumerate(suffixes, 1):
            source = Path(folder) / f'dinov2{suffix}'
            values = in_new_process(write_source, source, arch)
            taken = in_new_process(
                conversion_memory, source, source.with_suffix('.out.safetensors')
            )
            size = source.stat().st_size
            for file in Path(folder).iterdir():
                file.unlink()
            show_progress('conversion', done, len(suffixes), started)
            ratio = f'{taken / size:.2f}'
            rows.append(
                Result(
                    what=f'conversion of {values / 1e6:.0f} M values, {suffix}: memory over file',
                    figure=f'smaller file: no figure (smoke: {ratio})' if setting.smoke else ratio,
                    target=f'at most {TARGET}',
                    detail=f'{taken / 2**20:,.0f} over {size / 2**20:,.0f} MiB',
                )
            )
    return rows
