"""Vision Transformers as plain maths on foreign state dicts, from the formulas of their papers.

References for families that no installed library computes. Nothing here knows of NaViT: pictures
are [3, h, w], and each model gives (tokens of the patches [N, D], prefix tokens [R, D]).
"""

import torch
import torch.nn.functional as F


class State:
    """A state dict that is read by a prefix."""

    def __init__(self, tensors, prefix=''):
        self.tensors, self.prefix = tensors, prefix

    def __getitem__(self, key):
        return self.tensors[self.prefix + key]

    def get(self, key):
        return self.tensors.get(self.prefix + key)

    def at(self, name):
        return State(self.tensors, f'{self.prefix}{name}.')

    def linear(self, name, x):
        bias = self.get(f'{name}.bias')
        out = x @ self[f'{name}.weight'].T
        return out if bias is None else out + bias

    def layer_norm(self, name, x, eps):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return scaled * self[f'{name}.weight'] + self[f'{name}.bias']

    def rms_norm(self, name, x, eps):
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * self[f'{name}.weight']


def gelu(x):
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def silu(x):
    return x / (1 + torch.exp(-x))


def attend(q, k, v, num_heads):
    """[N, D] each."""
    q, k, v = (x.unflatten(1, (num_heads, -1)).transpose(0, 1) for x in (q, k, v))
    weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(0, 1).flatten(1)


def cut(image, p):
    """[3, h, w] -> [N, 3, p, p] row by row, and the grid."""
    c, h, w = image.shape
    grid = (h // p, w // p)
    patches = image.reshape(c, grid[0], p, grid[1], p).permute(1, 3, 0, 2, 4)
    return patches.reshape(-1, c, p, p), grid


def resized(table, grid, **rule):
    """[H, W, D] to another grid, as torch does it; channels last in memory, where it is right."""
    if tuple(table.shape[:2]) == tuple(grid):
        return table
    out = F.interpolate(table[None].permute(0, 3, 1, 2), size=grid, align_corners=False, **rule)
    return out[0].permute(1, 2, 0)


def timm_blocks(state, x, num_heads, norm_eps=1e-6, act=gelu):
    """timm's blocks and DINOv2's: with LayerScale, QK norms and SwiGLU where there are such."""
    depth = 1 + max(int(k.split('.')[1]) for k in state.tensors if k.startswith('blocks.'))
    for i in range(depth):
        block = state.at(f'blocks.{i}')
        q, k, v = block.linear('attn.qkv', block.layer_norm('norm1', x, norm_eps)).chunk(3, 1)
        if block.get('attn.q_norm.weight') is not None:
            heads = (-1, num_heads, q.shape[1] // num_heads)
            q = block.layer_norm('attn.q_norm', q.reshape(heads), 1e-6).flatten(1)
            k = block.layer_norm('attn.k_norm', k.reshape(heads), 1e-6).flatten(1)
        out = block.linear('attn.proj', attend(q, k, v, num_heads))
        scale = block.get('ls1.gamma')
        x = x + (out if scale is None else out * scale)
        y = block.layer_norm('norm2', x, norm_eps)
        if block.get('mlp.w12.weight') is not None:
            gate, up = block.linear('mlp.w12', y).chunk(2, 1)
            out = block.linear('mlp.w3', silu(gate) * up)
        else:
            out = block.linear('mlp.fc2', act(block.linear('mlp.fc1', y)))
        scale = block.get('ls2.gamma')
        x = x + (out if scale is None else out * scale)
    return state.layer_norm('norm', x, norm_eps)


def timm_clip(tensors, image, num_heads, act=gelu):
    """timm's CLIP towers: a norm before the blocks, patches without bias, eps 1e-5."""
    state = State(tensors)
    kernel = state['patch_embed.proj.weight']
    patches, grid = cut(image, kernel.shape[-1])
    rows = state['pos_embed'][0]
    side = int((len(rows) - 1) ** 0.5)
    table = resized(rows[1:].unflatten(0, (side, side)), grid, mode='bicubic', antialias=True)
    x = torch.einsum('nchw,dchw->nd', patches, kernel) + table.flatten(0, 1)
    x = state.layer_norm('norm_pre', torch.cat([state['cls_token'][0] + rows[:1], x]), 1e-5)
    x = timm_blocks(state, x, num_heads, 1e-5, act)
    return x[1:], x[:1]


def quick_gelu(x):
    return x / (1 + torch.exp(-1.702 * x))


def deit3(tensors, image, num_heads):
    """DeiT III (arXiv 2204.07118): LayerScale, and a class token that has no position."""
    state = State(tensors)
    kernel = state['patch_embed.proj.weight']
    patches, grid = cut(image, kernel.shape[-1])
    x = torch.einsum('nchw,dchw->nd', patches, kernel) + state['patch_embed.proj.bias']
    side = int(state['pos_embed'].shape[1] ** 0.5)
    table = state['pos_embed'][0].unflatten(0, (side, side))
    x = x + resized(table, grid, mode='bicubic', antialias=True).flatten(0, 1)
    prefix = [state[key][0] for key in ('cls_token', 'reg_token') if state.get(key) is not None]
    prefix = torch.cat([*prefix, x[:0]])
    x = timm_blocks(state, torch.cat([prefix, x]), num_heads)
    return x[len(prefix) :], x[: len(prefix)]


def gelu_tanh(x):
    return x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2


def naflexvit(tensors, image, num_heads, *, aspect=False, act=gelu, mode='bicubic'):
    """timm's NaFlexViT with linear patches, its table learned or factorised."""
    state = State(tensors)
    embeds = state.at('embeds')
    p = int((embeds['proj.weight'].shape[1] // 3) ** 0.5)
    patches, grid = cut(image, p)
    x = embeds.linear('proj', patches.permute(0, 2, 3, 1).flatten(1))  # row, column, channel
    sides = (max(grid), max(grid)) if aspect else grid
    if (table := embeds.get('pos_embed')) is not None:
        table = resized(table[0], sides, mode=mode, antialias=True)
        x = x + table[: grid[0], : grid[1]].flatten(0, 1)
    else:
        y, x_axis = (
            F.interpolate(
                embeds[f'pos_embed_{axis}'].transpose(1, 2), size=side, mode='linear'
            ).transpose(1, 2)[0]
            for axis, side in zip('yx', sides, strict=True)
        )
        x = x + (y[: grid[0], None] + x_axis[None, : grid[1]]).flatten(0, 1)
    prefix = [embeds[k][0] for k in ('cls_token', 'reg_token') if embeds.get(k) is not None]
    prefix = torch.cat([*prefix, x[:0]])
    x = timm_blocks(state, torch.cat([prefix, x]), num_heads, act=act)
    return x[len(prefix) :], x[: len(prefix)]


def naflex_pool(tensors, tokens, num_heads, act=gelu):
    """timm's AttentionPoolLatent: [N, D] -> [D]."""
    pool = State(tensors, 'attn_pool.')
    k, v = pool.linear('kv', tokens).chunk(2, 1)
    out = pool.linear('proj', attend(pool.linear('q', pool['latent'][0]), k, v, num_heads))
    hidden = act(pool.linear('mlp.fc1', pool.layer_norm('norm', out, 1e-6)))
    return (out + pool.linear('mlp.fc2', hidden))[0]


def mmpretrain(tensors, image, num_heads, act=gelu):
    """mmpretrain's VisionTransformer, with pre-norm and LayerScale where there are such."""
    state = State(tensors)
    kernel = state['patch_embed.projection.weight']
    patches, grid = cut(image, kernel.shape[-1])
    x = torch.einsum('nchw,dchw->nd', patches, kernel)
    if (bias := state.get('patch_embed.projection.bias')) is not None:
        x = x + bias
    rows = state['pos_embed'][0]
    side = int((len(rows) - 1) ** 0.5)
    table = resized(rows[1:].unflatten(0, (side, side)), grid, mode='bicubic')
    x = torch.cat([state['cls_token'][0] + rows[:1], x + table.flatten(0, 1)])
    if state.get('pre_norm.weight') is not None:
        x = state.layer_norm('pre_norm', x, 1e-6)
    depth = 1 + max(int(k.split('.')[1]) for k in tensors if k.startswith('layers.'))
    for i in range(depth):
        layer = state.at(f'layers.{i}')
        q, k, v = layer.linear('attn.qkv', layer.layer_norm('ln1', x, 1e-6)).chunk(3, 1)
        out = layer.linear('attn.proj', attend(q, k, v, num_heads))
        scale = layer.get('attn.gamma1.weight')
        x = x + (out if scale is None else out * scale)
        y = layer.layer_norm('ln2', x, 1e-6)
        if layer.get('ffn.w12.weight') is not None:
            gate, up = layer.linear('ffn.w12', y).chunk(2, 1)
            out = layer.linear('ffn.w3', silu(gate) * up)
        else:
            out = layer.linear('ffn.layers.1', act(layer.linear('ffn.layers.0.0', y)))
        scale = layer.get('ffn.gamma2.weight')
        x = x + (out if scale is None else out * scale)
    x = state.layer_norm('ln1', x, 1e-6)
    return x[1:], x[:1]


def univitar(tensors, clip, num_heads):
    """UniViTAR (arXiv 2504.01792) of a clip [3, t, h, w], as its released code orders things.

    RoPE by row and column, then RMSNorm over all heads of queries and keys; SwiGLU with an
    RMSNorm inside; LayerScale; no prefix, no final norm, nothing that tells frames apart.
    """
    state = State(tensors)
    kernel = state['embeddings.patch_embedding.weight']
    _, _, t, p, _ = kernel.shape
    c, frames, h, w = clip.shape
    if frames < t:
        clip, frames = clip.repeat(1, t, 1, 1), t  # a picture is shown twice
    grid = (frames // t, h // p, w // p)
    cells = clip.reshape(c, grid[0], t, grid[1], p, grid[2], p).permute(1, 3, 5, 0, 2, 4, 6)
    cells = cells.reshape(-1, c, t, p, p)
    x = torch.einsum('ncthw,dcthw->nd', cells, kernel) + state['embeddings.patch_embedding.bias']
    width = x.shape[1] // num_heads
    inverse = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) * 4 / width)
    rows = torch.arange(grid[1]).repeat_interleave(grid[2]).repeat(grid[0])
    columns = torch.arange(grid[2]).repeat(grid[0] * grid[1])
    angles = torch.cat([rows[:, None] * inverse, columns[:, None] * inverse], 1)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]

    def rotated(q):
        first, second = q.unflatten(1, (num_heads, width)).double().chunk(2, -1)
        turned = torch.complex(first, second) * turn
        return torch.cat([turned.real, turned.imag], -1).flatten(1).to(q)

    depth = 1 + max(int(k.split('.')[2]) for k in tensors if k.startswith('encoder.layers.'))
    for i in range(depth):
        layer = state.at(f'encoder.layers.{i}')
        q, k, v = layer.linear('attn.qkv', layer.rms_norm('norm1', x, 1e-6)).chunk(3, 1)
        q = layer.rms_norm('attn.q_norm', rotated(q), 1e-6)
        k = layer.rms_norm('attn.k_norm', rotated(k), 1e-6)
        x = x + layer.linear('attn.proj', attend(q, k, v, num_heads)) * layer['ls1']
        y = layer.rms_norm('norm2', x, 1e-6)
        hidden = silu(layer.linear('mlp.fc1', y)) * layer.linear('mlp.fc3', y)
        x = x + layer.linear('mlp.fc2', layer.rms_norm('mlp.norm', hidden, 1e-6)) * layer['ls2']
    return x, x[:0]


def dinov2(tensors, image, num_heads):
    """DINO and DINOv2 as Meta's code has them; with registers: by size, with antialias."""
    state = State(tensors)
    kernel = state['patch_embed.proj.weight']
    patches, grid = cut(image, kernel.shape[-1])
    x = torch.einsum('nchw,dchw->nd', patches, kernel) + state['patch_embed.proj.bias']
    rows, registers = state['pos_embed'][0], state.get('register_tokens')
    side = int((len(rows) - 1) ** 0.5)
    table = rows[1:].unflatten(0, (side, side))
    if grid != (side, side):
        scales = tuple((length + 0.1) / side for length in grid)
        rule = dict(scale_factor=scales) if registers is None else dict(size=grid, antialias=True)
        table = F.interpolate(table[None].permute(0, 3, 1, 2), mode='bicubic', **rule)
        table = table[0].permute(1, 2, 0)
    assert tuple(table.shape[:2]) == grid
    prefix = state['cls_token'][0] + rows[:1]
    if registers is not None:
        prefix = torch.cat([prefix, registers[0]])
    x = timm_blocks(state, torch.cat([prefix, x + table.flatten(0, 1)]), num_heads)
    return x[len(prefix) :], x[: len(prefix)]
