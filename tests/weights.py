"""Random weights under the names of timm's VisionTransformer, and small models for them."""

import torch
from oracles import perturb
from safetensors.torch import save_file

from navit_backbone import NaViT

ARCH = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=40)
WITH_CLASS = dict(ARCH, prefix_tokens=1)
GRID = dict(kind='learned_1d', grid=(5, 5))


def timm_state(
    seed=0, dim=24, depth=2, hidden=40, patch=16, grid=5, tokens=('cls_token',), **extra
):
    """A random state dict as timm's VisionTransformer names it."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator) * 0.1

    state = {name: draw(1, 1, dim) for name in tokens}
    state['pos_embed'] = draw(1, grid * grid + len(tokens), dim)
    state |= layer('patch_embed.proj', draw(dim, 3, patch, patch), draw(dim))
    for i in range(depth):
        block = f'blocks.{i}'
        state |= layer(f'{block}.norm1', 1 + draw(dim), draw(dim))
        state |= layer(f'{block}.attn.qkv', draw(3 * dim, dim), draw(3 * dim))
        state |= layer(f'{block}.attn.proj', draw(dim, dim), draw(dim))
        state |= layer(f'{block}.norm2', 1 + draw(dim), draw(dim))
        state |= layer(f'{block}.mlp.fc1', draw(hidden, dim), draw(hidden))
        state |= layer(f'{block}.mlp.fc2', draw(dim, hidden), draw(dim))
    state |= layer('norm', 1 + draw(dim), draw(dim))
    return state | extra


def layer(name, weight, bias):
    return {f'{name}.weight': weight, f'{name}.bias': bias}


def navit(arch=WITH_CLASS, **options):
    return perturb(NaViT(arch, **{'patch_size': 16, 'position': GRID, **options}), seed=3)


def save(path, state):
    """Write a state dict as the name of the file asks for."""
    (save_file if path.suffix == '.safetensors' else torch.save)(state, path)
    return path
