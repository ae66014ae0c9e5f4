"""The families of public weights that become NaViT's, one declarative spec each.

A spec says which of their tensors make which of ours, and what no tensor tells: norm and eps,
activation, number of heads, the rule by which positions are interpolated, the input that the
weights were trained on. `recognition` and `conversion` read the specs one way,
`given_back` the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std of RGB in [0, 1]
INCEPTION = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SATELLITE = ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))

Form = Literal[
    'same', 'kernel', 'clip_kernel', 'channels_last', 'row', 'masked',
    'flax_in', 'flax_out', 'flax_conv', 'flat',
]  # fmt: skip
Covered = Literal['all', 'class', 'none']
Written = Literal['any', 'plain', 'gated', 'never']
Statistics = tuple[tuple[float, ...], tuple[float, ...]]

# Widths whose number of heads is the same in nearly all public ViTs; no tensor tells it.
HEADS = {
    192: 3, 256: 4, 320: 5, 384: 6, 512: 8, 640: 10, 768: 12, 832: 13, 896: 14, 1024: 16, 1152: 16,
    1280: 16, 1408: 16, 1536: 24, 1664: 16, 1920: 24,
}  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """Which of their tensors make which of ours: joined along the first axis, then cut again.

    In a name {i} stands for the number of a block, {p} for `weight` or `bias`, and in ours {shape}
    for the shape of a patch. `form`: 'same'; 'kernel', of a convolution over pictures, and
    'clip_kernel', over clips, for a matrix of the same order; 'channels_last', a matrix on (row,
    column, channel); 'row', a vector with axes of one; 'masked', a bias and the mask that it is
    multiplied by; 'flax_in' and 'flax_out', Flax's matrices [in, ...] and [..., out]; 'flax_conv',
    its convolution [height, width, in, out]; 'flat', a vector in several axes.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    form: Form = 'same'
    shares: tuple[int, ...] = ()  # of ours, where they are not equal
    optional: tuple[str, ...] = ()  # of theirs, what counts as zeros where it is absent
    beside: str = ''  # a tensor that must be there
    without: str = ''  # a tensor that must not be there
    written: Written = 'any'  # with which MLPs it holds on the way back; 'never' is only read


def rule(theirs: str | tuple[str, ...], ours: str | tuple[str, ...], **options: Any) -> Rule:
    """A `Rule`, of which a single name may stand alone."""
    own = (theirs,) if isinstance(theirs, str) else theirs
    return Rule(own, (ours,) if isinstance(ours, str) else ours, **options)


@dataclass(frozen=True, kw_only=True)
class Family:
    """How the files of one origin are laid out, and what they do not say."""

    signature: str  # a key that all of them hold, as a regular expression
    rules: tuple[Rule, ...]
    arch: Mapping[str, Any]  # fields of Arch that no tensor tells
    heads: Mapping[int, int] = field(default_factory=lambda: HEADS)  # by width
    tokens: tuple[str, ...] = ()  # keys of the class tokens, in their order
    registers: str = ''  # key of the registers, which follow these
    position: tuple[str, ...] = ()  # the key of the position table, or those of its two axes
    covered: tuple[Covered, ...] = ('none',)  # prefix tokens that have a row in the table
    interpolation: Mapping[str, Any] = field(default_factory=dict)  # of the table
    statistics: Statistics | None = None  # of the input; None where they differ from file to file
    named_statistics: Mapping[str, Statistics] = field(default_factory=dict)  # by what a name tells
    ends_in_norm: bool = True  # all of them; else their tensors tell
    aliases: Mapping[str, str] = field(default_factory=dict)  # other spellings of keys
    periods: str = ''  # key of RoPE's periods, which are held against arch['rope']
    requires: str = ''  # a key that tells them from others of the same layout
    mark: str = ''  # a key that tells them likewise, or their name does; exports may leave it out
    heads_in: str = ''  # a tensor [width, heads, width of a head]
    told_by: str = '$^'  # what in a key or in 'folder/file' tells the family, and it alone
    strangers: Mapping[str, str] = field(default_factory=dict)  # names of what only looks like it
    droppable: str = '$^'  # keys that may be left over
    model_types: tuple[str, ...] = ()  # those of a config.json
    act_of_gate: bool = False  # its activation is that of gated MLPs too


# --------------------------------------------------------------------------------------------------
# timm's VisionTransformer, and those that share its names

_NORMS = (rule('blocks.{i}.norm1.{p}', 'blocks.{i}.norm1.{p}'),
          rule('blocks.{i}.norm2.{p}', 'blocks.{i}.norm2.{p}'))  # fmt: skip
_SCALES = (rule('blocks.{i}.ls1.gamma', 'blocks.{i}.ls1.gamma'),
           rule('blocks.{i}.ls2.gamma', 'blocks.{i}.ls2.gamma'))  # fmt: skip
_MLP = (rule('blocks.{i}.mlp.fc1.{p}', 'blocks.{i}.mlp.fc1.{p}'),
        rule('blocks.{i}.mlp.fc2.{p}', 'blocks.{i}.mlp.fc2.{p}'))  # fmt: skip
_TIMM_BLOCK = (
    *_NORMS,
    *_SCALES,
    *_MLP,
    rule('blocks.{i}.attn.qkv.{p}', 'blocks.{i}.attn.qkv.{p}'),
    rule('blocks.{i}.attn.proj.{p}', 'blocks.{i}.attn.proj.{p}'),
    rule('blocks.{i}.attn.q_norm.{p}', 'blocks.{i}.attn.q_norm.{p}'),
    rule('blocks.{i}.attn.k_norm.{p}', 'blocks.{i}.attn.k_norm.{p}'),
    rule('norm.{p}', 'norm.{p}'),
)
_CONV = rule('patch_embed.proj.weight', 'patch_embed.{shape}.weight', form='kernel')
_CONV_BIAS = rule('patch_embed.proj.bias', 'patch_embed.{shape}.bias')
_RADIO = 'RADIO, which has a rule of positions and an input of its own: it is not read'
_TIMM: dict[str, Any] = {
    'signature': r'patch_embed\.proj\.weight',
    'rules': (
        *_TIMM_BLOCK,
        _CONV,
        _CONV_BIAS,
        rule('norm_pre.{p}', 'norm_pre.{p}'),
        rule('head.{p}', 'classifier.{p}'),
    ),
    'arch': {
        'norm': 'layer_norm',
        'norm_eps': 1e-6,
        'mlp': 'gelu',
        'qk_norm': {'kind': 'head_layer_norm', 'bias': True},
    },
    'tokens': ('cls_token', 'dist_token'),
    'registers': 'reg_token',
    'position': ('pos_embed',),
    'covered': ('all', 'none'),
    'interpolation': {'interpolation': 'bicubic', 'antialias': True},
    'droppable': r'(head|head_dist|pre_logits|fc_norm)\..*',
    'aliases': {r'blocks\.(\d+)\.gamma_([12])': r'blocks.\1.ls\2.gamma'},  # DeiT III's first files
    'strangers': {
        r'_rpn_': 'a ViT whose norms follow attention and MLP: it is not read',
        r'_rope_|vit_pe_': 'a ViT with a RoPE that no tensor tells: it is not read',
        r'siglip': (
            "SigLIP in timm's VisionTransformer, whose activation and heads differ from model to "
            'model: take its NaFlex files, as hf://google/siglip2-base-patch16-naflex'
        ),
        r'radio_?v\d|c[-_]radio': _RADIO,
    },
}
# What was trained with QuickGELU, as timm notes, though it computes GELU under most of the names.
_QUICK = (
    r'(clip_quickgelu|clip_.*\.(openai|metaclip_400m|metaclip_2pt5b|dfn5b)\b'
    r'|patch32_clip_224\.laion400m|large_patch14_clip_224\.dfn2b\b'
    r'|huge_patch14_clip_224\.metaclip2)'
)

# NaFlexViT embeds patches of (row, column, channel), and its table stands on a grid of its own.
_NAFLEX = (
    *_TIMM_BLOCK,
    rule('embeds.proj.weight', 'patch_embed.{shape}.weight', form='channels_last'),
    rule('embeds.proj.bias', 'patch_embed.{shape}.bias'),
    rule('attn_pool.latent', 'pool.probe', form='row'),
    rule('attn_pool.q.{p}', 'pool.q.{p}'),
    rule('attn_pool.kv.{p}', 'pool.kv.{p}'),
    rule('attn_pool.proj.{p}', 'pool.proj.{p}'),
    rule('attn_pool.norm.{p}', 'pool.norm.{p}'),
    rule('attn_pool.mlp.fc1.{p}', 'pool.mlp.fc1.{p}'),
    rule('attn_pool.mlp.fc2.{p}', 'pool.mlp.fc2.{p}'),
    rule('head.{p}', 'classifier.{p}'),
)
_NAFLEXVIT: dict[str, Any] = {
    'signature': r'embeds\.proj\.weight',
    'rules': _NAFLEX,
    'arch': _TIMM['arch'],
    'tokens': ('embeds.cls_token',),
    'registers': 'embeds.reg_token',
    'droppable': r'(head|fc_norm)\..*',
    'statistics': INCEPTION,
    'strangers': {r'radio_?v\d|c[-_]radio': _RADIO},
}
_PAR = {'keep_aspect': True}
_BY_GRID = {'interpolation': 'bicubic', 'antialias': True}
_BY_AXIS = {'interpolation': 'bilinear', 'antialias': False}

# --------------------------------------------------------------------------------------------------
# DINOv2 and DINOv3 as Meta has them

_DINO_SWIGLU = (
    rule('blocks.{i}.mlp.w12.{p}', ('blocks.{i}.mlp.fc1.{p}', 'blocks.{i}.mlp.fc3.{p}')),
    rule('blocks.{i}.mlp.w1.{p}', 'blocks.{i}.mlp.fc1.{p}'),
    rule('blocks.{i}.mlp.w2.{p}', 'blocks.{i}.mlp.fc3.{p}'),
    rule('blocks.{i}.mlp.w3.{p}', 'blocks.{i}.mlp.fc2.{p}'),
)
_SCALED = {'interpolation': 'bicubic', 'antialias': False, 'offset': 0.1}
_UNCHUNKED = {r'blocks\.\d+\.(\d+\..*)': r'blocks.\1'}  # of training checkpoints
_DINOV2: dict[str, Any] = {
    'signature': r'patch_embed\.proj\.weight',
    'rules': (*_TIMM_BLOCK, *_DINO_SWIGLU, _CONV, _CONV_BIAS),
    'arch': {'norm': 'layer_norm', 'norm_eps': 1e-6, 'mlp': 'gelu'},
    'tokens': ('cls_token',),
    'position': ('pos_embed',),
    'covered': ('class',),
    'statistics': IMAGENET,
    'aliases': _UNCHUNKED,
    'droppable': r'mask_token|head\..*|(dino|ibot)_head\..*',
}
_DINOV3_HEADS = {**HEADS, 1280: 20, 4096: 32}
_DINOV3_ARCH = {
    'norm': 'layer_norm',
    'norm_eps': 1e-5,
    'mlp': 'gelu',
    'rope': {'kind': 'normalised', 'theta': 100.0},
}

# --------------------------------------------------------------------------------------------------
# Hugging Face


def _separate(theirs: str, names: tuple[str, str, str], **options: Any) -> Rule:
    """The rule that joins queries, keys and values; `theirs` has {n} for their names."""
    parts = tuple(theirs.replace('{n}', name) for name in names)
    return rule(parts, 'blocks.{i}.attn.qkv.{p}', **options)


_QKV = ('query', 'key', 'value')
_Q_K_V = ('q_proj', 'k_proj', 'v_proj')
_HF_PATCHES = (
    rule(
        'embeddings.patch_embeddings.projection.weight',
        'patch_embed.{shape}.weight',
        form='kernel',
    ),
    rule('embeddings.patch_embeddings.projection.bias', 'patch_embed.{shape}.bias'),
)
_HF_ATTENTION = (
    _separate('encoder.layer.{i}.attention.attention.{n}.{p}', _QKV),
    rule('encoder.layer.{i}.attention.output.dense.{p}', 'blocks.{i}.attn.proj.{p}'),
)
# In memory version 5 of transformers has other names than in its files.
_HF_SHORT = {
    r'(?:encoder\.)?layers?\.(\d+)\.attention\.q_proj\.(\w+)': (
        r'encoder.layer.\1.attention.attention.query.\2'
    ),
    r'(?:encoder\.)?layers?\.(\d+)\.attention\.k_proj\.(\w+)': (
        r'encoder.layer.\1.attention.attention.key.\2'
    ),
    r'(?:encoder\.)?layers?\.(\d+)\.attention\.v_proj\.(\w+)': (
        r'encoder.layer.\1.attention.attention.value.\2'
    ),
    r'(?:encoder\.)?layers?\.(\d+)\.attention\.o_proj\.(\w+)': (
        r'encoder.layer.\1.attention.output.dense.\2'
    ),
}
_HF_VIT: dict[str, Any] = {
    'signature': r'embeddings\.patch_embeddings\.projection\.weight',
    'rules': (
        *_HF_PATCHES,
        *_HF_ATTENTION,
        rule('encoder.layer.{i}.layernorm_before.{p}', 'blocks.{i}.norm1.{p}'),
        rule('encoder.layer.{i}.layernorm_after.{p}', 'blocks.{i}.norm2.{p}'),
        rule('encoder.layer.{i}.intermediate.dense.{p}', 'blocks.{i}.mlp.fc1.{p}'),
        rule('encoder.layer.{i}.output.dense.{p}', 'blocks.{i}.mlp.fc2.{p}'),
        rule('layernorm.{p}', 'norm.{p}'),
    ),
    'arch': {'norm': 'layer_norm', 'norm_eps': 1e-12, 'mlp': 'gelu'},
    'tokens': ('embeddings.cls_token', 'embeddings.distillation_token'),
    'position': ('embeddings.position_embeddings',),
    'covered': ('all',),
    'interpolation': {'interpolation': 'bicubic', 'antialias': False},
    'aliases': {
        **_HF_SHORT,
        r'layers\.(\d+)\.mlp\.fc1\.(\w+)': r'encoder.layer.\1.intermediate.dense.\2',
        r'layers\.(\d+)\.mlp\.fc2\.(\w+)': r'encoder.layer.\1.output.dense.\2',
        r'layers\.(\d+)\.(layernorm_\w+\.\w+)': r'encoder.layer.\1.\2',
    },
    'droppable': r'pooler\..*|embeddings\.mask_token',
}
_HF_DINOV2: dict[str, Any] = {
    'signature': r'embeddings\.patch_embeddings\.projection\.weight',
    'rules': (
        *_HF_PATCHES,
        *_HF_ATTENTION,
        rule('encoder.layer.{i}.norm1.{p}', 'blocks.{i}.norm1.{p}'),
        rule('encoder.layer.{i}.norm2.{p}', 'blocks.{i}.norm2.{p}'),
        rule('encoder.layer.{i}.layer_scale1.lambda1', 'blocks.{i}.ls1.gamma'),
        rule('encoder.layer.{i}.layer_scale2.lambda1', 'blocks.{i}.ls2.gamma'),
        rule('encoder.layer.{i}.mlp.fc1.{p}', 'blocks.{i}.mlp.fc1.{p}', written='plain'),
        rule('encoder.layer.{i}.mlp.fc2.{p}', 'blocks.{i}.mlp.fc2.{p}', written='plain'),
        rule(
            'encoder.layer.{i}.mlp.weights_in.{p}',
            ('blocks.{i}.mlp.fc1.{p}', 'blocks.{i}.mlp.fc3.{p}'),
            written='gated',
        ),
        rule('encoder.layer.{i}.mlp.weights_out.{p}', 'blocks.{i}.mlp.fc2.{p}', written='gated'),
        # the names in memory
        rule('encoder.layer.{i}.mlp.gate_proj.{p}', 'blocks.{i}.mlp.fc1.{p}', written='never'),
        rule('encoder.layer.{i}.mlp.up_proj.{p}', 'blocks.{i}.mlp.fc3.{p}', written='never'),
        rule('encoder.layer.{i}.mlp.down_proj.{p}', 'blocks.{i}.mlp.fc2.{p}', written='never'),
        rule('layernorm.{p}', 'norm.{p}'),
    ),
    'arch': {'norm': 'layer_norm', 'norm_eps': 1e-6, 'mlp': 'gelu'},
    'tokens': ('embeddings.cls_token',),
    'position': ('embeddings.position_embeddings',),
    'covered': ('class',),
    'statistics': IMAGENET,
    'aliases': {
        **_HF_SHORT,
        r'layers\.(\d+)\.((?:norm|mlp|layer_scale).*)': r'encoder.layer.\1.\2',
    },
    'droppable': r'embeddings\.mask_token',
    'requires': r'encoder\.layer\.\d+\.layer_scale1\.lambda1',
}
_GATE = 'layer.{i}.mlp.gate_proj.weight'
_CLIP_TOWER = (
    _separate('encoder.layers.{i}.self_attn.{n}.{p}', _Q_K_V),
    rule('encoder.layers.{i}.self_attn.out_proj.{p}', 'blocks.{i}.attn.proj.{p}'),
    rule('encoder.layers.{i}.layer_norm1.{p}', 'blocks.{i}.norm1.{p}'),
    rule('encoder.layers.{i}.layer_norm2.{p}', 'blocks.{i}.norm2.{p}'),
    rule('encoder.layers.{i}.mlp.fc1.{p}', 'blocks.{i}.mlp.fc1.{p}'),
    rule('encoder.layers.{i}.mlp.fc2.{p}', 'blocks.{i}.mlp.fc2.{p}'),
    rule('post_layernorm.{p}', 'norm.{p}'),
)
_SIGLIP_POOL = (
    rule('head.probe', 'pool.probe', form='row'),
    rule('head.attention.in_proj_{p}', ('pool.q.{p}', 'pool.kv.{p}'), shares=(1, 2)),
    rule('head.attention.out_proj.{p}', 'pool.proj.{p}'),
    rule('head.layernorm.{p}', 'pool.norm.{p}'),
    rule('head.mlp.fc1.{p}', 'pool.mlp.fc1.{p}'),
    rule('head.mlp.fc2.{p}', 'pool.mlp.fc2.{p}'),
)
_HF_CLIP: dict[str, Any] = {
    'signature': r'embeddings\.patch_embedding\.weight',
    'rules': (
        *_CLIP_TOWER,
        rule('embeddings.patch_embedding.weight', 'patch_embed.{shape}.weight', form='kernel'),
        rule('pre_layrnorm.{p}', 'norm_pre.{p}'),  # spelled like that
    ),
    'tokens': ('embeddings.class_embedding',),
    'position': ('embeddings.position_embedding.weight',),
    'covered': ('all',),
    'interpolation': {'interpolation': 'bicubic', 'antialias': False},
    'statistics': CLIP,
    'droppable': r'embeddings\.position_ids',
    'requires': r'pre_layrnorm\.weight',
}
_CLIP_ARCH = {'norm': 'layer_norm', 'norm_eps': 1e-5}
_OPENAI: dict[str, Any] = {
    'signature': r'conv1\.weight',
    'rules': (
        rule('conv1.weight', 'patch_embed.{shape}.weight', form='kernel'),
        rule('transformer.resblocks.{i}.attn.in_proj_{p}', 'blocks.{i}.attn.qkv.{p}'),
        rule('transformer.resblocks.{i}.attn.out_proj.{p}', 'blocks.{i}.attn.proj.{p}'),
        rule('transformer.resblocks.{i}.ln_1.{p}', 'blocks.{i}.norm1.{p}'),
        rule('transformer.resblocks.{i}.ln_2.{p}', 'blocks.{i}.norm2.{p}'),
        rule('transformer.resblocks.{i}.mlp.c_fc.{p}', 'blocks.{i}.mlp.fc1.{p}'),
        rule('transformer.resblocks.{i}.mlp.c_proj.{p}', 'blocks.{i}.mlp.fc2.{p}'),
        rule('ln_pre.{p}', 'norm_pre.{p}'),
        rule('ln_post.{p}', 'norm.{p}'),
    ),
    'tokens': ('class_embedding',),
    'position': ('positional_embedding',),
    'covered': ('all',),
    'statistics': CLIP,
    'droppable': r'proj',
    'requires': r'transformer\.resblocks\.\d+\.ln_1\.weight',
}
_MM: dict[str, Any] = {
    'ends_in_norm': False,
    'signature': r'patch_embed\.projection\.weight',
    'tokens': ('cls_token',),
    'position': ('pos_embed',),
    'covered': ('all', 'none'),
    'interpolation': {'interpolation': 'bicubic', 'antialias': False},
}
_MM_BLOCK = (
    rule('patch_embed.projection.weight', 'patch_embed.{shape}.weight', form='kernel'),
    rule('patch_embed.projection.bias', 'patch_embed.{shape}.bias'),
    rule('layers.{i}.ln1.{p}', 'blocks.{i}.norm1.{p}'),
    rule('layers.{i}.ln2.{p}', 'blocks.{i}.norm2.{p}'),
    rule('layers.{i}.ffn.layers.0.0.{p}', 'blocks.{i}.mlp.fc1.{p}'),
    rule('layers.{i}.ffn.layers.1.{p}', 'blocks.{i}.mlp.fc2.{p}'),
    rule('ln1.{p}', 'norm.{p}'),
)

_MM_ARCH = {'norm': 'layer_norm', 'norm_eps': 1e-6, 'mlp': 'gelu'}
_MMPRETRAIN = _MM | {
    'rules': (
        *_MM_BLOCK,
        rule('layers.{i}.attn.qkv.{p}', 'blocks.{i}.attn.qkv.{p}'),
        rule('layers.{i}.attn.proj.{p}', 'blocks.{i}.attn.proj.{p}'),
        rule('layers.{i}.attn.gamma1.weight', 'blocks.{i}.ls1.gamma'),
        rule('layers.{i}.ffn.gamma2.weight', 'blocks.{i}.ls2.gamma'),
        rule('layers.{i}.ffn.w12.{p}', ('blocks.{i}.mlp.fc1.{p}', 'blocks.{i}.mlp.fc3.{p}')),
        rule('layers.{i}.ffn.w3.{p}', 'blocks.{i}.mlp.fc2.{p}'),
        rule('pre_norm.{p}', 'norm_pre.{p}'),
    ),
    'arch': _MM_ARCH,
    'requires': r'layers\.\d+\.attn\.qkv\.weight',
    'droppable': r'ln2\..*',
}
_SETR = r'(^|[/_.-])setr[/_.-]'
_MMSEG = _MM | {
    'rules': (
        *_MM_BLOCK,
        rule('layers.{i}.attn.attn.in_proj_{p}', 'blocks.{i}.attn.qkv.{p}'),
        rule('layers.{i}.attn.attn.out_proj.{p}', 'blocks.{i}.attn.proj.{p}'),
    ),
    'arch': _MM_ARCH,
    'requires': r'layers\.\d+\.attn\.attn\.in_proj_weight',
}

# --------------------------------------------------------------------------------------------------
# Google's vision_transformer (AugReg) and big_vision, as .npz

_BLOCK = 'Transformer.encoderblock_{i}.'
_FLAX_ATTENTION = f'{_BLOCK}MultiHeadDotProductAttention_1.'
_FLAX_POOL = 'MAPHead_0.MultiHeadDotProductAttention_0.'


def _flax_norm(theirs: str, ours: str) -> tuple[Rule, Rule]:
    return rule(f'{theirs}.scale', f'{ours}.weight'), rule(f'{theirs}.bias', f'{ours}.bias')


def _flax_dense(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """Return the rules of a layer from one or more axes to the last."""
    return (
        rule(f'{theirs}.kernel', f'{ours}.weight', form='flax_out'),
        rule(f'{theirs}.bias', f'{ours}.bias'),
    )


def _flax_heads(start: str, names: tuple[str, ...], ours: str) -> tuple[Rule, Rule]:
    """Return the rules of layers from the first axis to (heads, width of a head), joined."""
    kernels, biases = (tuple(f'{start}{n}.{kind}' for n in names) for kind in ('kernel', 'bias'))
    return (
        rule(kernels, f'{ours}.weight', form='flax_in'),
        rule(biases, f'{ours}.bias', form='flat'),
    )


_BIG_VISION: dict[str, Any] = {
    'signature': r'embedding\.kernel',
    'rules': (
        rule('embedding.kernel', 'patch_embed.{shape}.weight', form='flax_conv'),
        rule('embedding.bias', 'patch_embed.{shape}.bias'),
        *_flax_norm(f'{_BLOCK}LayerNorm_0', 'blocks.{i}.norm1'),
        *_flax_norm(f'{_BLOCK}LayerNorm_2', 'blocks.{i}.norm2'),
        *_flax_heads(_FLAX_ATTENTION, _QKV, 'blocks.{i}.attn.qkv'),
        *_flax_dense(f'{_FLAX_ATTENTION}out', 'blocks.{i}.attn.proj'),
        *_flax_dense(f'{_BLOCK}MlpBlock_3.Dense_0', 'blocks.{i}.mlp.fc1'),
        *_flax_dense(f'{_BLOCK}MlpBlock_3.Dense_1', 'blocks.{i}.mlp.fc2'),
        *_flax_norm('Transformer.encoder_norm', 'norm'),
        rule('MAPHead_0.probe', 'pool.probe', form='row'),
        *_flax_heads(_FLAX_POOL, ('query',), 'pool.q'),
        *_flax_heads(_FLAX_POOL, ('key', 'value'), 'pool.kv'),
        *_flax_dense(f'{_FLAX_POOL}out', 'pool.proj'),
        *_flax_norm('MAPHead_0.LayerNorm_0', 'pool.norm'),
        *_flax_dense('MAPHead_0.MlpBlock_0.Dense_0', 'pool.mlp.fc1'),
        *_flax_dense('MAPHead_0.MlpBlock_0.Dense_1', 'pool.mlp.fc2'),
        *_flax_dense('head', 'classifier'),
    ),
    # Flax's GELU is the approximation by tanh, which ports to torch leave out
    'arch': {'norm': 'layer_norm', 'norm_eps': 1e-6, 'mlp': 'gelu_tanh'},
    'tokens': ('cls',),
    'position': ('Transformer.posembed_input.pos_embedding',),
    'covered': ('all', 'none'),  # in big_vision the class token joins after the positions
    'interpolation': _BY_GRID,
    'statistics': INCEPTION,
    'aliases': {  # big_vision's names
        r'(Transformer\.encoderblock_\d+)\.LayerNorm_1\.(\w+)': r'\1.LayerNorm_2.\2',
        r'(Transformer\.encoderblock_\d+)\.MlpBlock_0\.(.+)': r'\1.MlpBlock_3.\2',
        r'(Transformer\.encoderblock_\d+)\.MultiHeadDotProductAttention_0\.(.+)': (
            r'\1.MultiHeadDotProductAttention_1.\2'
        ),
        r'pos_embedding': 'Transformer.posembed_input.pos_embedding',
    },
    'droppable': r'(head|pre_logits)\..*',
    'heads_in': 'Transformer.encoderblock_0.MultiHeadDotProductAttention_1.query.kernel',
}

# Where the keys fit several, what a name tells decides.
FAMILIES = {
    'navit': Family(
        signature=r'patch_embed\.\d+x\d+x\d+\.weight', rules=(), arch={}, ends_in_norm=False
    ),
    'mae': Family(
        **_TIMM
        | {
            'rules': tuple(item for item in _TIMM['rules'] if item not in _SCALES),  # DINOv2 has
            'droppable': r'(head|fc_norm|decoder_\w+)\..*|mask_token|decoder_pos_embed',
            'interpolation': {'interpolation': 'bicubic', 'antialias': False},
        },
        statistics=IMAGENET,
        told_by=r'decoder_embed\.|(^|[/_.-])mae([/_.-]|$)',
    ),
    'timm-augreg': Family(**_TIMM, statistics=INCEPTION, told_by=r'augreg'),
    'timm-deit': Family(**_TIMM, statistics=IMAGENET, told_by=r'^(?!.*dino).*deit'),
    'dino': Family(  # the first; DINOv2 kept its rule
        **_TIMM | {'interpolation': _SCALED}, statistics=IMAGENET, told_by=r'(^|[/_.-])dino_'
    ),
    'deit': Family(  # the first release's own rule
        **_TIMM | {'interpolation': {'interpolation': 'bicubic', 'antialias': False}},
        statistics=IMAGENET,
    ),
    'timm-vit': Family(
        **_TIMM, told_by=r'^(?!.*(mae|augreg|deit|clip|dino_)).*vit_([a-z]+|so\d+m\d?)_patch\d+'
    ),
    'timm-clip': Family(
        **_TIMM | {'arch': _TIMM['arch'] | {'norm_eps': 1e-5}},
        statistics=CLIP,
        named_statistics={r'large_patch14_clip_\d+\.laion2b': INCEPTION},
        requires=r'norm_pre\.weight',
        told_by=rf'^(?!.*{_QUICK}).*vit_[a-z0-9]+_patch\d+_.*clip',
    ),
    'timm-clip-quickgelu': Family(
        **_TIMM | {'arch': _TIMM['arch'] | {'norm_eps': 1e-5, 'mlp': 'quick_gelu'}},
        statistics=CLIP,
        requires=r'norm_pre\.weight',
        told_by=_QUICK,
    ),
    'naflexvit': Family(
        **_NAFLEXVIT,
        position=('embeds.pos_embed',),
        covered=('none',),
        interpolation=_BY_GRID,
        told_by=r'naflexvit(?!.*(_par|siglip))',
    ),
    'naflexvit-siglip': Family(
        **_NAFLEXVIT | {'arch': _TIMM['arch'] | {'mlp': 'gelu_tanh'}},
        position=('embeds.pos_embed',),
        covered=('none',),
        interpolation={'interpolation': 'bilinear', 'antialias': True},
        told_by=r'naflexvit.*siglip',
    ),
    'naflexvit-par': Family(
        **_NAFLEXVIT,
        position=('embeds.pos_embed',),
        interpolation=_BY_GRID | _PAR,
        told_by=r'_par_',
    ),
    'naflexvit-fac': Family(
        **_NAFLEXVIT,
        position=('embeds.pos_embed_y', 'embeds.pos_embed_x'),
        interpolation=_BY_AXIS,
        told_by=r'_fac_',
    ),
    'naflexvit-parfac': Family(
        **_NAFLEXVIT,
        position=('embeds.pos_embed_y', 'embeds.pos_embed_x'),
        interpolation=_BY_AXIS | _PAR,
        told_by=r'_parfac_',
    ),
    'dinov2': Family(
        **_DINOV2,
        interpolation=_SCALED,
        mark='mask_token',
        told_by=r'dinov2_vit(?!.*reg)',
    ),
    'dinov2-reg': Family(
        **_DINOV2,
        interpolation={'interpolation': 'bicubic', 'antialias': True},
        registers='register_tokens',
        requires=r'register_tokens',
    ),
    'dinov3': Family(
        signature=r'patch_embed\.proj\.weight',
        rules=(
            *_TIMM_BLOCK,
            *_DINO_SWIGLU,
            _CONV,
            _CONV_BIAS,
            rule(
                ('blocks.{i}.attn.qkv.bias', 'blocks.{i}.attn.qkv.bias_mask'),
                'blocks.{i}.attn.qkv.bias',
                form='masked',
            ),
        ),
        arch=_DINOV3_ARCH,
        heads=_DINOV3_HEADS,
        tokens=('cls_token',),
        registers='storage_tokens',
        statistics=IMAGENET,
        named_statistics={r'sat493m': SATELLITE},
        aliases=_UNCHUNKED,
        periods='rope_embed.periods',
        requires=r'rope_embed\.periods',
        droppable=r'mask_token|rope_embed\.periods|(local_)?cls_norm\..*',
    ),
    'hf-vit': Family(**_HF_VIT, model_types=('vit', 'deit')),
    'hf-mae': Family(
        **_HF_VIT | {'droppable': r'pooler\..*|embeddings\.mask_token'},
        statistics=IMAGENET,
        told_by=r'decoder\.decoder_embed\.|(^|[/_.-])mae([/_.-]|$)',
        model_types=('vit_mae',),
    ),
    'hf-dinov2': Family(
        **_HF_DINOV2,
        interpolation={'interpolation': 'bicubic', 'antialias': False},
        model_types=('dinov2',),
    ),
    'hf-dinov2-reg': Family(
        **_HF_DINOV2 | {'requires': r'embeddings\.register_tokens'},
        registers='embeddings.register_tokens',
        interpolation={'interpolation': 'bicubic', 'antialias': True},
        model_types=('dinov2_with_registers',),
    ),
    'hf-dinov3': Family(
        signature=r'embeddings\.patch_embeddings\.weight',
        rules=(
            rule('embeddings.patch_embeddings.weight', 'patch_embed.{shape}.weight', form='kernel'),
            rule('embeddings.patch_embeddings.bias', 'patch_embed.{shape}.bias'),
            _separate(
                'layer.{i}.attention.{n}.{p}',
                _Q_K_V,
                optional=('layer.{i}.attention.k_proj.bias',),
            ),
            rule('layer.{i}.attention.o_proj.{p}', 'blocks.{i}.attn.proj.{p}'),
            rule('layer.{i}.norm1.{p}', 'blocks.{i}.norm1.{p}'),
            rule('layer.{i}.norm2.{p}', 'blocks.{i}.norm2.{p}'),
            rule('layer.{i}.layer_scale1.lambda1', 'blocks.{i}.ls1.gamma'),
            rule('layer.{i}.layer_scale2.lambda1', 'blocks.{i}.ls2.gamma'),
            rule('layer.{i}.mlp.gate_proj.{p}', 'blocks.{i}.mlp.fc1.{p}', written='gated'),
            rule(
                'layer.{i}.mlp.up_proj.{p}',
                'blocks.{i}.mlp.fc3.{p}',
                beside=_GATE,
                written='gated',
            ),
            rule(
                'layer.{i}.mlp.up_proj.{p}',
                'blocks.{i}.mlp.fc1.{p}',
                without=_GATE,
                written='plain',
            ),
            rule('layer.{i}.mlp.down_proj.{p}', 'blocks.{i}.mlp.fc2.{p}'),
            rule('norm.{p}', 'norm.{p}'),
        ),
        arch=_DINOV3_ARCH,
        heads=_DINOV3_HEADS,
        tokens=('embeddings.cls_token',),
        registers='embeddings.register_tokens',
        statistics=IMAGENET,
        named_statistics={r'sat493m': SATELLITE},
        aliases={r'model\.(layer\..*)': r'\1'},
        requires=r'layer\.\d+\.layer_scale1\.lambda1',
        droppable=r'embeddings\.mask_token|rope_embeddings\..*',
        model_types=('dinov3_vit',),
        act_of_gate=True,
    ),
    'clip': Family(
        **_OPENAI,
        arch=_CLIP_ARCH | {'mlp': 'quick_gelu'},
        interpolation={'interpolation': 'bicubic', 'antialias': False},  # Hugging Face's
        told_by=r'openai|quickgelu|metaclip(?!.*altogether)|dfn5b|dfn2b(?!.*39b)',
        model_types=('open_clip_quickgelu',),
    ),
    'open-clip': Family(
        **_OPENAI,
        arch=_CLIP_ARCH | {'mlp': 'gelu'},
        interpolation={'interpolation': 'bicubic', 'antialias': True},
        named_statistics={r'clipa\b': IMAGENET, r'vit-l-14.*laion2b': INCEPTION},
        told_by=r'open_?clip|laion|datacomp|commonpool|altogether|clipa\b|dfn2b',
        model_types=('open_clip',),
    ),
    'hf-clip': Family(
        **_HF_CLIP,
        arch=_CLIP_ARCH | {'mlp': 'quick_gelu'},
        told_by=r'openai',
        model_types=('clip', 'clip_vision_model'),
    ),
    'hf-open-clip': Family(
        **_HF_CLIP,
        arch=_CLIP_ARCH | {'mlp': 'gelu'},
        named_statistics={r'vit-l-14.*laion2b': INCEPTION},
        told_by=r'laion|datacomp',
    ),
    'hf-siglip2': Family(
        signature=r'embeddings\.patch_embedding\.weight',
        rules=(
            *_CLIP_TOWER,
            *_SIGLIP_POOL,
            rule(
                'embeddings.patch_embedding.weight',
                'patch_embed.{shape}.weight',
                form='channels_last',
            ),
            rule('embeddings.patch_embedding.bias', 'patch_embed.{shape}.bias'),
        ),
        arch={'norm': 'layer_norm', 'norm_eps': 1e-6, 'mlp': 'gelu_tanh'},
        heads={**HEADS, 1536: 16},
        position=('embeddings.position_embedding.weight',),
        interpolation={'interpolation': 'bilinear', 'antialias': True},
        statistics=INCEPTION,
        model_types=('siglip2', 'siglip2_vision_model'),
    ),
    'univitar': Family(
        signature=r'embeddings\.patch_embedding\.weight',
        rules=(
            rule(
                'embeddings.patch_embedding.weight',
                'patch_embed.{shape}.weight',
                form='clip_kernel',
            ),
            rule('embeddings.patch_embedding.bias', 'patch_embed.{shape}.bias'),
            *(
                rule(f'encoder.layers.{{i}}.{name}', f'blocks.{{i}}.{name}')
                for name in (
                    'norm1.{p}',
                    'norm2.{p}',
                    'attn.qkv.{p}',
                    'attn.proj.{p}',
                    'attn.q_norm.{p}',
                    'attn.k_norm.{p}',
                    'mlp.fc1.{p}',
                    'mlp.fc2.{p}',
                    'mlp.fc3.{p}',
                    'mlp.norm.{p}',
                )
            ),
            rule('encoder.layers.{i}.ls1', 'blocks.{i}.ls1.gamma'),
            rule('encoder.layers.{i}.ls2', 'blocks.{i}.ls2.gamma'),
        ),
        arch={
            'norm': 'rms_norm',
            'norm_eps': 1e-6,
            'qk_norm': {'kind': 'wide_rms_norm', 'after_rope': True},
            'rope': {'kind': 'integer', 'theta': 10000.0},
        },
        statistics=IMAGENET,
        ends_in_norm=False,
        requires=r'encoder\.layers\.\d+\.mlp\.fc3\.weight',
        model_types=('univitar',),
    ),
    'moonvit': Family(
        signature=r'patch_embed\.pos_emb\.weight',
        rules=(
            _CONV,
            _CONV_BIAS,
            rule('encoder.blocks.{i}.norm0.{p}', 'blocks.{i}.norm1.{p}'),
            rule('encoder.blocks.{i}.norm1.{p}', 'blocks.{i}.norm2.{p}'),
            rule('encoder.blocks.{i}.wqkv.{p}', 'blocks.{i}.attn.qkv.{p}'),
            rule('encoder.blocks.{i}.wo.{p}', 'blocks.{i}.attn.proj.{p}'),
            rule('encoder.blocks.{i}.mlp.fc0.{p}', 'blocks.{i}.mlp.fc1.{p}'),
            rule('encoder.blocks.{i}.mlp.fc1.{p}', 'blocks.{i}.mlp.fc2.{p}'),
            rule('encoder.final_layernorm.{p}', 'norm.{p}'),
        ),
        arch={
            'norm': 'layer_norm',
            'norm_eps': 1e-5,
            'mlp': 'gelu_tanh',
            'rope': {'kind': 'integer', 'theta': 10000.0, 'layout': 'interleaved'},
        },
        position=('patch_embed.pos_emb.weight',),
        interpolation={'interpolation': 'bicubic', 'antialias': False},
        statistics=INCEPTION,
        model_types=('moonvit',),
    ),
    'big-vision': Family(**_BIG_VISION),
    'mmpretrain': Family(**_MMPRETRAIN),
    'mmpretrain-clip': Family(
        **_MMPRETRAIN
        | {
            'arch': _MM_ARCH | {'mlp': 'quick_gelu'},
            'statistics': CLIP,
            'requires': r'pre_norm\.weight',
            'told_by': r'clip',
        }
    ),
    'mmseg': Family(**_MMSEG, told_by=rf'^(?!.*{_SETR}).*/'),  # any other name; no key has a slash
    'mmseg-setr': Family(
        **_MMSEG | {'interpolation': {'interpolation': 'bilinear', 'antialias': False}},
        told_by=_SETR,
    ),
}

# What is known and has no place here: a key that tells it, a config's model_type, and why.
_QWEN = (
    'Qwen2.5-VL (or a relative of it): most of its blocks attend within windows of 112 pixels '
    'and its frames apart from each other, and it was trained to be read through its merger. '
    'Loaded here, where blocks attend to the whole picture, it would compute something else: '
    'take weights of another family'
)
_ADAPTER = (
    'an adapter (LoRA or a relative), which changes another model and is none itself: merge it '
    '(PEFT: model.merge_and_unload().save_pretrained(FOLDER)) and give that folder'
)
_ONE_SIDED = (
    'VideoMAE, BEiT or EVA, whose queries and values alone have biases (q_bias, v_bias) and whose '
    'positions are in no table: it is not read; take weights of another family'
)
REFUSED = {
    r'(.*\.)?merger\.(ln_q|norm)\.weight': _QWEN,
    r'(.*\.)?(lora_|hada_|lokr_|ia3_|oft_|boft_|vera_).*': _ADAPTER,
    r'(.*\.)?(attn|attention)\.q_bias': _ONE_SIDED,
    r'(.*\.)?conv_root\.kernel': (
        'a ViT behind a ResNet (R+ViT, hybrid), whose patches are of feature maps: take a plain ViT'
    ),
    r'(.*\.)?Transformer\.encoderblock\..*': (
        'big_vision with all blocks in one array (scan=True): take a file that has encoderblock_0, '
        'encoderblock_1, ...'
    ),
}
REFUSED_TYPES = dict.fromkeys(
    (
        'qwen2_vl', 'qwen2_5_vl', 'qwen2_5_vl_vision', 'qwen2_5_omni', 'qwen3_vl', 'qwen3_vl_moe',
        'qwen3_vl_vision',
    ),
    _QWEN,
) | dict.fromkeys(('videomae', 'beit', 'data2vec-vision'), _ONE_SIDED)  # fmt: skip
