"""The models of timm and of Hugging Face: what each computes, and what it is built by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .plans import Plan

Target = Literal['timm', 'hf']
NAMES: dict[Target, str] = {'timm': 'timm', 'hf': 'Hugging Face'}


@dataclass(frozen=True, kw_only=True)
class Home:
    """A model of another library: whose names it uses, what it computes, what it is built by."""

    model: str
    family: str  # of `families`, whose rules name its tensors
    needs: Mapping[str, tuple[Any, ...]]  # the values of `facts` that it computes
    config: Callable[[Plan], dict[str, Any] | None]  # None where no config makes its widths
    absent: Callable[[Plan], tuple[str, ...]] = lambda plan: ()  # names that this one lacks
    blank: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # zeros: axes before width
    load: str = ''  # what loading it needs besides the path
    notes: tuple[str, ...] = ()


# --------------------------------------------------------------------------------------------------
# How each is built


def _timm(plan: Plan) -> dict[str, Any]:
    """The arguments of timm's VisionTransformer."""
    arch = plan.arch
    width, hidden = arch.embed_dims, arch.feedforward_channels
    ratio = hidden / width  # timm cuts the product to a whole number
    return {
        'img_size': plan.side * plan.patch,
        'patch_size': plan.patch,
        'num_classes': arch.num_classes,
        'global_pool': {'mean': 'avg', 'token': 'token'}.get(arch.pooling or '')
        or ('token' if plan.class_tokens else 'avg'),
        'embed_dim': arch.embed_dims,
        'depth': arch.num_layers,
        'num_heads': arch.num_heads,
        'mlp_ratio': ratio if int(width * ratio) == hidden else (hidden + 0.5) / width,
        'qkv_bias': arch.qkv_bias,
        'qk_norm': bool(arch.qk_norm),
        'init_values': arch.layer_scale,
        'class_token': bool(plan.class_tokens),
        'no_embed_class': bool(arch.registers),
        'reg_tokens': arch.registers,
        'pre_norm': arch.pre_norm,
        'final_norm': arch.final_norm,
        'fc_norm': False,
    }


def _timm_distilled(plan: Plan) -> dict[str, Any]:
    """The arguments of timm's VisionTransformerDistilled: both tokens have a position."""
    own = _timm(plan) | {'num_classes': 0, 'global_pool': 'token'}
    return {k: v for k, v in own.items() if k not in ('class_token', 'no_embed_class')}


def _hugging_face(plan: Plan, model_type: str, architecture: str) -> dict[str, Any]:
    """What all their configs say."""
    arch = plan.arch
    activations = {'gelu_tanh': 'gelu_pytorch_tanh', 'swiglu': 'silu'}
    return {
        'architectures': [architecture],
        'model_type': model_type,
        'dtype': plan.dtype,
        'hidden_size': arch.embed_dims,
        'num_hidden_layers': arch.num_layers,
        'num_attention_heads': arch.num_heads,
        'intermediate_size': arch.feedforward_channels,
        'hidden_act': activations.get(arch.mlp, arch.mlp),
        'layer_norm_eps': arch.norm_eps,
        'num_channels': 3,
        'image_size': plan.side * plan.patch,
        'patch_size': plan.patch,
    }


def _vit(plan: Plan) -> dict[str, Any]:
    return _hugging_face(plan, 'vit', 'ViTModel') | {'qkv_bias': plan.arch.qkv_bias}


def _deit(plan: Plan) -> dict[str, Any]:
    return _hugging_face(plan, 'deit', 'DeiTModel') | {'qkv_bias': plan.arch.qkv_bias}


def _dinov2(plan: Plan) -> dict[str, Any] | None:
    arch, own = plan.arch, _hugging_face(plan, 'dinov2', 'Dinov2Model')
    gated, hidden = arch.mlp == 'swiglu', own.pop('intermediate_size')
    for ratio in range(1, 1 + 2 * hidden // arch.embed_dims):
        wide = ratio * arch.embed_dims
        if hidden == ((int(wide * 2 / 3) + 7) // 8 * 8 if gated else wide):
            return own | {
                'mlp_ratio': ratio,
                'use_swiglu_ffn': gated,
                'qkv_bias': arch.qkv_bias,
                'layerscale_value': arch.layer_scale,
                'use_mask_token': False,
            }
    return None


def _dinov2_reg(plan: Plan) -> dict[str, Any] | None:
    own = _dinov2(plan)
    names = {
        'architectures': ['Dinov2WithRegistersModel'],
        'model_type': 'dinov2_with_registers',
        'num_register_tokens': plan.arch.registers,
    }
    return own and {k: v for k, v in own.items() if k != 'use_mask_token'} | names


def _dinov3(plan: Plan) -> dict[str, Any]:
    arch, bias = plan.arch, plan.arch.qkv_bias
    own = _hugging_face(plan, 'dinov3_vit', 'DINOv3ViTModel')
    return own | {
        'image_size': 14 * plan.patch,  # they compute nothing by it
        'rope_theta': (arch.rope or {}).get('theta'),
        'num_register_tokens': arch.registers,
        'use_gated_mlp': arch.mlp == 'swiglu',
        'query_bias': bias,
        'key_bias': plan.key_bias,
        'value_bias': bias,
        'layerscale_value': arch.layer_scale,
    }


def _clip(plan: Plan) -> dict[str, Any]:
    return _hugging_face(plan, 'clip_vision_model', 'CLIPVisionModel')


def _siglip2(plan: Plan) -> dict[str, Any]:
    own = _hugging_face(plan, 'siglip2_vision_model', 'Siglip2VisionModel')
    del own['image_size']
    return own | {
        'num_patches': plan.side**2,
        'vision_use_head': plan.arch.pooling == 'map',
    }


# --------------------------------------------------------------------------------------------------
# Which models there are

_GELUS = ('gelu', 'gelu_tanh', 'quick_gelu')
PICTURES: dict[str, tuple[Any, ...]] = {  # what all of them need
    'patch_size': ('square',),
    'temporal_position': (None,),
    'position.grid': ('square',),
    'arch.norm': ('layer_norm',),
    'arch.norm_bias': (True,),
}
_PLAIN: dict[str, tuple[Any, ...]] = {
    'position': ('learned_1d',),
    'class tokens': (1,),
    'arch.registers': ('none',),
    'arch.pre_norm': (False,),
    'arch.final_norm': (True,),
    'arch.mlp': _GELUS,
    'arch.qk_norm': (None,),
    'arch.layer_scale': ('none',),
    'arch.rope': (None,),
}
_DINO = _PLAIN | {'arch.layer_scale': ('one',), 'arch.mlp': (*_GELUS, 'swiglu')}
_TIMM = {
    'position': ('learned_1d',),
    'class tokens': (0, 1),
    'arch.norm_eps': (1e-6,),
    'arch.mlp': ('gelu',),
    'arch.qk_norm': (None, 'kind=head_layer_norm, eps=1e-06, bias=True, after_rope=False'),
    'arch.rope': (None,),
    'arch.pooling': (None, 'token', 'mean'),
}
_NO_POOLER = ', add_pooling_layer=False'  # a layer after the class token that starts at random

HOMES: dict[Target, tuple[Home, ...]] = {
    'timm': (
        Home(
            model='timm.models.vision_transformer.VisionTransformer',
            family='timm-vit',
            needs=_TIMM,
            config=_timm,
            absent=lambda plan: ('patch_embed.proj.bias',) if plan.arch.pre_norm else (),
        ),
        Home(
            model='timm.models.deit.VisionTransformerDistilled',
            family='timm-vit',
            needs=_TIMM | {'class tokens': (2,), 'arch.registers': ('none',)},
            config=_timm_distilled,
            absent=lambda plan: (
                'head.{p}',  # theirs has two, and answers by their mean
                *(('patch_embed.proj.bias',) if plan.arch.pre_norm else ()),
            ),
        ),
    ),
    'hf': (
        Home(model='ViTModel', family='hf-vit', needs=_PLAIN, config=_vit, load=_NO_POOLER),
        Home(
            model='DeiTModel',
            family='hf-vit',
            needs=_PLAIN | {'class tokens': (2,)},
            config=_deit,
            load=_NO_POOLER,
        ),
        Home(model='Dinov2Model', family='hf-dinov2', needs=_DINO, config=_dinov2),
        Home(
            model='Dinov2WithRegistersModel',
            family='hf-dinov2-reg',
            needs=_DINO | {'arch.registers': ('some',)},
            config=_dinov2_reg,
            blank={'embeddings.mask_token': (1,)},
        ),
        Home(
            model='DINOv3ViTModel',
            family='hf-dinov3',
            needs=_DINO
            | {
                'position': (None,),
                'arch.registers': ('some', 'none'),
                'arch.rope': ('kind=normalised, layout=half',),
            },
            config=_dinov3,
            blank={'embeddings.mask_token': (1, 1), 'embeddings.register_tokens': (1, 0)},
        ),
        Home(
            model='CLIPVisionModel',
            family='hf-clip',
            needs=_PLAIN | {'arch.pre_norm': (True,), 'arch.qkv_bias': (True,)},
            config=_clip,
            notes=('its last_hidden_state stands before the final norm, which follows in pooling',),
        ),
        Home(
            model='Siglip2VisionModel',
            family='hf-siglip2',
            needs=_PLAIN | {'class tokens': (0,), 'arch.qkv_bias': (True,)},
            config=_siglip2,
        ),
    ),
}
