"""Small random models of every family that can be converted, and what they compute."""

import copy
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import plain_models
import torch
from oracles import perturb

D, HIDDEN, HEADS, DEPTH, PATCH, GRID = 32, 48, 4, 2, 14, 4


class Answer(NamedTuple):
    """What a model makes of a picture, after its final norm."""

    tokens: torch.Tensor  # [N, D]
    prefix: torch.Tensor  # [R, D]
    pooled: torch.Tensor | None = None  # [D], where the family has attention pooling


class Foreign(NamedTuple):
    """A model of a family: its tensors as its files name them, and its answers."""

    state: dict[str, torch.Tensor]
    answer: Callable[[torch.Tensor], Answer]
    options: Mapping[str, Any] = MappingProxyType({})  # of convert, for what no tensor tells
    exact: bool = True  # float64 throughout; else it computes in float32 inside
    others: Callable[[], dict[str, torch.Tensor]] | None = None  # in-memory names


SEEDS = itertools.count()


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(next(SEEDS))) * 0.2


def dense(name, rows, columns, bias=True):
    return {f'{name}.weight': draw(rows, columns)} | ({f'{name}.bias': draw(rows)} if bias else {})


def norm(name, width, bias=True):
    return {f'{name}.weight': 1 + draw(width)} | ({f'{name}.bias': draw(width)} if bias else {})


# --------------------------------------------------------------------------------------------------
# By plain maths


def timm_blocks(*, scales=False, qk_norm=False):
    state = norm('norm', D)
    for i in range(DEPTH):
        block = f'blocks.{i}'
        state |= norm(f'{block}.norm1', D) | norm(f'{block}.norm2', D)
        state |= dense(f'{block}.attn.qkv', 3 * D, D) | dense(f'{block}.attn.proj', D, D)
        state |= dense(f'{block}.mlp.fc1', HIDDEN, D) | dense(f'{block}.mlp.fc2', D, HIDDEN)
        if scales:
            state |= {f'{block}.ls1.gamma': draw(D), f'{block}.ls2.gamma': draw(D)}
        if qk_norm:
            state |= norm(f'{block}.attn.q_norm', D // HEADS)
            state |= norm(f'{block}.attn.k_norm', D // HEADS)
    return state


def deit3(registers=0, qk_norm=False):
    state = timm_blocks(scales=True, qk_norm=qk_norm) | {
        'patch_embed.proj.weight': draw(D, 3, PATCH, PATCH),
        'patch_embed.proj.bias': draw(D),
        'pos_embed': draw(1, GRID * GRID, D),
        'cls_token': draw(1, 1, D),
    }
    if registers:
        state['reg_token'] = draw(1, registers, D)
    return Foreign(state, by_plain_maths(plain_models.deit3, state), dict(family='timm-vit'))


def timm_clip(quick=False):
    state = timm_blocks() | norm('norm_pre', D) | {
        'patch_embed.proj.weight': draw(D, 3, PATCH, PATCH),
        'pos_embed': draw(1, 1 + GRID * GRID, D),
        'cls_token': draw(1, 1, D),
    }  # fmt: skip
    act = plain_models.quick_gelu if quick else plain_models.gelu

    def answer(image):
        tensors = {key: item.to(image.dtype) for key, item in state.items()}
        return Answer(*plain_models.timm_clip(tensors, image, HEADS, act))

    name = 'vit_base_patch16_clip_224.' + ('openai' if quick else 'laion2b')
    return Foreign(state, answer, dict(name=f'hf://timm/{name}'))


def dino():
    found = dinov2()
    dropped = ('mask_token', '.ls1.', '.ls2.')
    state = {k: t for k, t in found.state.items() if not any(part in k for part in dropped)}
    answer = by_plain_maths(plain_models.dinov2, state)
    return Foreign(state, answer, dict(name='dino_deitsmall16_pretrain.pth'))


def naflexvit(kind='', tokens=False):
    state = timm_blocks() | dense('embeds.proj', D, PATCH * PATCH * 3)
    if 'fac' in kind:
        state |= {'embeds.pos_embed_y': draw(1, 5, D), 'embeds.pos_embed_x': draw(1, 4, D)}
    else:
        state['embeds.pos_embed'] = draw(1, 5, 4, D)
    if tokens:
        state |= {'embeds.cls_token': draw(1, 1, D), 'embeds.reg_token': draw(1, 3, D)}
    else:
        state['attn_pool.latent'] = draw(1, 1, D)
        state |= dense('attn_pool.q', D, D) | dense('attn_pool.kv', 2 * D, D)
        state |= dense('attn_pool.proj', D, D) | norm('attn_pool.norm', D)
        state |= dense('attn_pool.mlp.fc1', HIDDEN, D) | dense('attn_pool.mlp.fc2', D, HIDDEN)

    def answer(image):
        tensors = {key: item.to(image.dtype) for key, item in state.items()}
        act = plain_models.gelu_tanh if kind == 'siglip' else plain_models.gelu
        mode = 'bilinear' if kind == 'siglip' else 'bicubic'
        found = plain_models.naflexvit(
            tensors, image, HEADS, aspect='par' in kind, act=act, mode=mode
        )
        if tokens:
            return Answer(*found)
        return Answer(*found, plain_models.naflex_pool(tensors, found[0], HEADS, act))

    family = f'naflexvit-{kind}' if kind else 'naflexvit'
    return Foreign(state, answer, dict(family=family))


def mmpretrain(swiglu=False, pre_norm=False, quick=False):
    state = {
        'cls_token': draw(1, 1, D),
        'pos_embed': draw(1, 1 + GRID * GRID, D),
        'patch_embed.projection.weight': draw(D, 3, PATCH, PATCH),
        **norm('ln1', D),
    }
    state |= norm('pre_norm', D) if pre_norm else {'patch_embed.projection.bias': draw(D)}
    for i in range(DEPTH):
        layer = f'layers.{i}'
        state |= norm(f'{layer}.ln1', D) | norm(f'{layer}.ln2', D)
        state |= dense(f'{layer}.attn.qkv', 3 * D, D) | dense(f'{layer}.attn.proj', D, D)
        if swiglu:
            state |= dense(f'{layer}.ffn.w12', 2 * HIDDEN, D) | dense(f'{layer}.ffn.w3', D, HIDDEN)
            state |= {f'{layer}.attn.gamma1.weight': draw(D), f'{layer}.ffn.gamma2.weight': draw(D)}
        else:
            state |= dense(f'{layer}.ffn.layers.0.0', HIDDEN, D)
            state |= dense(f'{layer}.ffn.layers.1', D, HIDDEN)
    act = plain_models.quick_gelu if quick else plain_models.gelu
    answer = by_plain_maths(partial(plain_models.mmpretrain, act=act), state)
    family = {'family': f'mmpretrain{"-clip" * quick}'} if pre_norm else {}
    return Foreign(state, answer, family)


def univitar():
    state = {
        'embeddings.patch_embedding.weight': draw(D, 3, 2, PATCH, PATCH),
        'embeddings.patch_embedding.bias': draw(D),
    }
    for i in range(DEPTH):
        layer = f'encoder.layers.{i}'
        state |= norm(f'{layer}.norm1', D, bias=False) | norm(f'{layer}.norm2', D, bias=False)
        state |= dense(f'{layer}.attn.qkv', 3 * D, D, bias=False)
        state |= dense(f'{layer}.attn.proj', D, D)
        state |= norm(f'{layer}.attn.q_norm', D, bias=False)
        state |= norm(f'{layer}.attn.k_norm', D, bias=False)
        state |= dense(f'{layer}.mlp.fc1', HIDDEN, D) | dense(f'{layer}.mlp.fc3', HIDDEN, D)
        state |= dense(f'{layer}.mlp.fc2', D, HIDDEN) | norm(f'{layer}.mlp.norm', HIDDEN, False)
        state |= {f'{layer}.ls1': draw(D), f'{layer}.ls2': draw(D)}

    def answer(picture):
        tensors = {key: item.to(picture.dtype) for key, item in state.items()}
        clip = picture[:, None] if picture.ndim == 3 else picture
        return Answer(*plain_models.univitar(tensors, clip, HEADS))

    return Foreign(state, answer)


def by_plain_maths(model, state):
    def answer(image):
        tensors = {key: item.to(image.dtype) for key, item in state.items()}
        return Answer(*model(tensors, image, HEADS))

    return answer


# --------------------------------------------------------------------------------------------------
# By transformers


def config_of(name, **options):
    import transformers

    common = dict(
        hidden_size=D,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=HIDDEN,
        image_size=GRID * PATCH,
        patch_size=PATCH,
        attn_implementation='sdpa',
    )
    return getattr(transformers, name)(**{**common, **options})


def model_of(name, config):
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    return perturb(model.double(), seed=1, scale=0.2)


def in_precision(model):
    """The model in the precision of a picture, and itself left as it is."""
    copies = {}

    def fitting(image):
        if image.dtype not in copies:
            copies[image.dtype] = copy.deepcopy(model).to(image.dtype)
        return copies[image.dtype]

    return fitting


def files_of(model, folder):
    """The tensors as `save_pretrained` writes them."""
    from safetensors.torch import load_file

    model.save_pretrained(folder)
    return load_file(folder / 'model.safetensors')


def hugging_face(model, prefix, *, folder, **options):
    """A model that takes pictures and gives prefix tokens before those of the patches."""

    fitting = in_precision(model)
    dinov = 'dinov' in type(model).__name__.lower()
    given = {} if dinov else {'interpolate_pos_encoding': True}

    def answer(image):
        hidden = fitting(image)(image[None], **given).last_hidden_state[0]
        return Answer(hidden[prefix:], hidden[:prefix])

    return Foreign(
        files_of(model, folder), answer, options, False, lambda: dict(model.state_dict())
    )


def hf_vit(folder):
    model = model_of('ViTModel', config_of('ViTConfig', layer_norm_eps=1e-12))
    return hugging_face(model, 1, folder=folder, family='hf-vit')


def hf_mae(folder):
    import transformers

    config = config_of('ViTMAEConfig', mask_ratio=0.0, layer_norm_eps=1e-12)
    torch.manual_seed(0)
    model = transformers.ViTMAEForPreTraining(config).eval()
    perturb(model.double(), seed=1, scale=0.2)

    fitting = in_precision(model.vit)

    def answer(image):
        count = (image.shape[1] // PATCH) * (image.shape[2] // PATCH)
        order = torch.arange(count, dtype=image.dtype)[None]  # MAE shuffles by noise
        out = fitting(image)(image[None], noise=order, interpolate_pos_encoding=True)
        hidden = out.last_hidden_state[0]
        return Answer(hidden[1:], hidden[:1])

    return Foreign(files_of(model, folder), answer, {}, False, model.state_dict)


def hf_dinov2(folder, swiglu=False):
    config = config_of('Dinov2Config', use_swiglu_ffn=swiglu)
    return hugging_face(model_of('Dinov2Model', config), 1, folder=folder)


def hf_dinov2_reg(folder):
    config = config_of('Dinov2WithRegistersConfig', num_register_tokens=4)
    return hugging_face(model_of('Dinov2WithRegistersModel', config), 5, folder=folder)


def hf_dinov3(folder, swiglu=False):
    config = config_of('DINOv3ViTConfig', num_register_tokens=4, use_gated_mlp=swiglu)
    if swiglu:
        config.hidden_act = 'silu'
    return hugging_face(model_of('DINOv3ViTModel', config), 5, folder=folder)


def hf_clip(folder, act='quick_gelu', antialias=False):
    model = model_of('CLIPVisionModel', config_of('CLIPVisionConfig', hidden_act=act))

    def positions(embeddings, height, width):
        table = rows[1:].to(embeddings).unflatten(0, (GRID, GRID))
        grid = (height // PATCH, width // PATCH)
        table = plain_models.resized(table, grid, mode='bicubic', antialias=True)
        return torch.cat([rows[:1].to(embeddings), table.flatten(0, 1)])[None]

    rows = model.embeddings.position_embedding.weight.detach()
    if antialias:
        model.embeddings.interpolate_pos_encoding = positions
    found = hugging_face(model, 1, folder=folder)
    fitting = in_precision(model.post_layernorm)

    def answer(image):
        # Hugging Face norms the class token alone; ours norms all
        plain, norm = found.answer(image), fitting(image)
        return Answer(norm(plain.tokens), norm(plain.prefix))

    family = 'hf-clip' if act == 'quick_gelu' else 'hf-open-clip'
    return found._replace(answer=answer, options=dict(family=family))


def hf_siglip2(folder):
    config = config_of('Siglip2VisionConfig', num_patches=GRID * GRID)
    model = model_of('Siglip2VisionModel', config)
    fitting = in_precision(model)

    def positions(table, shapes, max_length):
        # torch 2.13 on CPU, output width 1: Hugging Face's own call gives the first row repeated
        (grid,) = shapes.tolist()
        rule = dict(mode='bilinear', antialias=True)
        return plain_models.resized(table, grid, **rule).reshape(1, max_length, -1)

    model.embeddings.resize_positional_embeddings = positions

    def answer(image):
        patches, grid = plain_models.cut(image, PATCH)
        out = fitting(image)(
            pixel_values=patches.permute(0, 2, 3, 1).flatten(1)[None],
            pixel_attention_mask=torch.ones(1, len(patches), dtype=torch.int32),
            spatial_shapes=torch.tensor([grid]),
        )
        tokens = out.last_hidden_state[0]
        return Answer(tokens, tokens[:0], out.pooler_output[0])

    return Foreign(files_of(model, folder), answer, {}, False, model.state_dict)


# --------------------------------------------------------------------------------------------------
# The same models under the names of their first releases


def dinov2(registers=0, swiglu=False, chunked=False):
    state = timm_blocks(scales=True) | {
        'patch_embed.proj.weight': draw(D, 3, PATCH, PATCH),
        'patch_embed.proj.bias': draw(D),
        'pos_embed': draw(1, 1 + GRID * GRID, D),
        'cls_token': draw(1, 1, D),
        'mask_token': draw(1, D),
    }
    if registers:
        state['register_tokens'] = draw(1, registers, D)
    if swiglu:
        state = {key: item for key, item in state.items() if '.mlp.' not in key}
        for i in range(DEPTH):
            state |= dense(f'blocks.{i}.mlp.w12', 2 * HIDDEN, D)
            state |= dense(f'blocks.{i}.mlp.w3', D, HIDDEN)
    found = Foreign(state, by_plain_maths(plain_models.dinov2, state))
    if not chunked:
        return found
    renamed = {key.replace('blocks.', 'blocks.0.', 1): item for key, item in state.items()}
    renamed = {f'teacher.backbone.{key}': item for key, item in renamed.items()}
    return found._replace(state=renamed | {'teacher.dino_head.last.weight': draw(4, D)})


def dinov3(folder, swiglu=False, mask=None):
    """Meta's names: queries, keys and values in one, and a mask over the bias of the keys."""
    found = hf_dinov3(folder, swiglu)
    state = {}
    for key, item in found.state.items():
        if match := split(key, r'layer\.(\d+)\.attention\.q_proj\.(weight|bias)'):
            i, p = match
            parts = [found.state.get(f'layer.{i}.attention.{n}_proj.{p}') for n in 'qkv']
            state[f'blocks.{i}.attn.qkv.{p}'] = torch.cat(
                [draw(D) if part is None else part for part in parts]  # a raw bias of the keys
            )
        elif '.attention.k_proj' in key or '.attention.v_proj' in key:
            continue
        else:
            for old, new in (
                ('layer.', 'blocks.'), ('attention.o_proj', 'attn.proj'), ('lambda1', 'gamma'),
                ('layer_scale', 'ls'), ('embeddings.patch_embeddings', 'patch_embed.proj'),
                ('embeddings.cls_token', 'cls_token'), ('embeddings.mask_token', 'mask_token'),
                ('embeddings.register_tokens', 'storage_tokens'),
            ):  # fmt: skip
                key = key.replace(old, new)
            if swiglu:
                for old, new in (('gate_proj', 'w1'), ('up_proj', 'w2'), ('down_proj', 'w3')):
                    key = key.replace(old, new)
            else:
                key = key.replace('up_proj', 'fc1').replace('down_proj', 'fc2')
            state[key] = item
    usual = torch.cat([torch.ones(D), torch.zeros(D), torch.ones(D)])
    for i in range(DEPTH):
        state[f'blocks.{i}.attn.qkv.bias_mask'] = usual if mask is None else mask
    width = D // HEADS
    state['rope_embed.periods'] = 100 ** (torch.arange(width // 4) * 2 / (width // 2))
    return found._replace(state=state, others=None)


def split(text, pattern):
    import re

    match = re.fullmatch(pattern, text)
    return match and match.groups()


def clip(folder, act='quick_gelu'):
    """OpenAI's names, with a text tower beside; open_clip's models interpolate with antialias."""
    found = hf_clip(folder, act, antialias=act == 'gelu')
    state = {}
    for key, item in found.state.items():
        key = key.removeprefix('vision_model.')
        if match := split(key, r'encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)'):
            i, p = match
            start = next(k for k in found.state if k.endswith(key)).removesuffix(f'q_proj.{p}')
            parts = [found.state[f'{start}{n}_proj.{p}'] for n in 'qkv']
            state[f'visual.transformer.resblocks.{i}.attn.in_proj_{p}'] = torch.cat(parts)
        elif '.k_proj.' in key or '.v_proj.' in key or 'position_ids' in key:
            continue
        else:
            for old, new in (
                ('encoder.layers', 'transformer.resblocks'), ('self_attn.out', 'attn.out'),
                ('layer_norm', 'ln_'), ('mlp.fc1', 'mlp.c_fc'), ('mlp.fc2', 'mlp.c_proj'),
                ('pre_layrnorm', 'ln_pre'), ('post_layernorm', 'ln_post'),
                ('embeddings.class_embedding', 'class_embedding'),
                ('embeddings.patch_embedding', 'conv1'),
                ('embeddings.position_embedding.weight', 'positional_embedding'),
            ):  # fmt: skip
                key = key.replace(old, new)
            state[f'visual.{key}'] = item
    state |= {
        'visual.proj': draw(D, 8),
        'positional_embedding': draw(7, D),
        'logit_scale': torch.zeros(()),
    }
    state |= {'transformer.resblocks.0.ln_1.weight': draw(D), 'ln_final.weight': draw(D)}
    family = 'clip' if act == 'quick_gelu' else 'open-clip'
    return found._replace(state=state, others=None, options=dict(family=family))


def moonvit():
    """Kimi K2.5's tower at one frame, under MoonViT's names: pairs of neighbours turn there."""
    from transformers.models.kimi_k25.configuration_kimi_k25 import Kimi_K25VisionConfig
    from transformers.models.kimi_k25.modeling_kimi_k25 import Kimi_K25VisionModel

    config = Kimi_K25VisionConfig(
        hidden_size=D, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
        intermediate_size=HIDDEN, patch_size=PATCH, pos_emb_height=5, pos_emb_width=5,
        merge_kernel_size=(1, 1), attn_implementation='sdpa',
    )  # fmt: skip
    torch.manual_seed(0)
    model = perturb(Kimi_K25VisionModel(config).eval().double(), seed=1, scale=0.2)
    theirs = model.state_dict()
    state = {
        'patch_embed.proj.weight': theirs['patch_embed.proj.weight'],
        'patch_embed.proj.bias': theirs['patch_embed.proj.bias'],
        'patch_embed.pos_emb.weight': theirs['patch_embed.pos_emb.position_embeddings'],
        'encoder.final_layernorm.weight': theirs['final_layernorm.weight'],
        'encoder.final_layernorm.bias': theirs['final_layernorm.bias'],
    }
    width = D // HEADS
    # row j of ours is the row of theirs that turns as the first or second of the pair j // 2
    order = torch.arange(width).view(2, -1).T.flatten()
    for i in range(DEPTH):
        layer, block = f'layers.{i}', f'encoder.blocks.{i}'
        for p in ('weight', 'bias'):
            parts = []
            for n in 'qkv':
                part = theirs[f'{layer}.attn.{n}_proj.{p}']
                if n != 'v':
                    part = part.unflatten(0, (HEADS, width))[:, order].flatten(0, 1)
                parts.append(part)
            state[f'{block}.wqkv.{p}'] = torch.cat(parts)
            state[f'{block}.wo.{p}'] = theirs[f'{layer}.attn.proj.{p}']
            for old, new in (('norm1', 'norm0'), ('norm2', 'norm1')):
                state[f'{block}.{new}.{p}'] = theirs[f'{layer}.{old}.{p}']
            for old, new in (('fc1', 'fc0'), ('fc2', 'fc1')):
                state[f'{block}.mlp.{new}.{p}'] = theirs[f'{layer}.mlp.{old}.{p}']

    fitting = in_precision(model)

    def answer(image):
        model = fitting(image)
        patches, grid = plain_models.cut(image, PATCH)
        seen = {}
        hook = model.final_layernorm.register_forward_hook(
            lambda module, args, out: seen.update(out=out)
        )
        model(patches, grid_thw=torch.tensor([[1, *grid]]))
        hook.remove()
        tokens = seen['out']
        return Answer(tokens, tokens[:0])

    return Foreign(state, answer, {}, False)


def mmseg(mode='bicubic'):
    """mmsegmentation's VisionTransformer, computed by itself; SETR's is bilinear."""
    from mmseg.models.backbones import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=GRID * PATCH, patch_size=PATCH, embed_dims=D, num_layers=DEPTH, num_heads=HEADS,
        mlp_ratio=2, final_norm=True, output_cls_token=True, out_origin=False,
        norm_cfg=dict(type='LN', eps=1e-6), patch_bias=True, interpolate_mode=mode,
    )  # fmt: skip
    model.eval()  # gives nothing back there
    perturb(model.double(), seed=1, scale=0.2)
    fitting = in_precision(model)

    def answer(image):
        ((tokens, token),) = fitting(image)(image[None])
        return Answer(tokens[0].flatten(1).T, token)

    name = 'setr_naive' if mode == 'bilinear' else 'segmenter'
    return Foreign(dict(model.state_dict()), answer, dict(name=f'{name}_vit.pth'))
