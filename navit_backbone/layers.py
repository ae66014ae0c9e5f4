"""The parts of a transformer block on packed tokens [T, D], each as its paper writes it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from .attention import Policy, attention, check_policy
from .packing import PatchShape, Segments
from .position import rotate_halves

Norm = Callable[[int], nn.Module]
Rotation = Callable[[Tensor, Tensor, Tensor], Tensor]  # of [T, H, K] by cos and sin


class Stream(NamedTuple):
    """What a block knows of the tokens besides their values; the same for all blocks."""

    segments: Segments  # one per example, its prefix tokens counted
    windows: Segments | None  # the finer segments of windowed blocks
    example_ids: Tensor  # [T] int64
    cos: Tensor | None  # [T, 1, K / 2]: the rotation of queries and keys
    sin: Tensor | None


class PatchEmbed(nn.Linear):
    """Patches of one shape [T, P] to tokens [T, D]: a convolution whose stride is its kernel."""

    def __init__(self, dim: int, *, patch_shape: PatchShape, in_channels: int = 3) -> None:
        t, h, w = patch_shape
        super().__init__(in_channels * t * h * w, dim)
        self.patch_shape = patch_shape


class LayerScale(nn.Module):
    """A learned factor per channel (CaiT)."""

    def __init__(self, dim: int, *, init: float) -> None:
        super().__init__()
        self.init = init
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x_TD: Tensor) -> Tensor:
        return x_TD * self.gamma


class DropPath(nn.Module):
    """Leave out a branch for whole examples at random in training (stochastic depth)."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x_TD: Tensor, stream: Stream) -> Tensor:
        if not self.training or self.rate == 0:
            return x_TD
        keep = 1 - self.rate
        mask_N = x_TD.new_empty(len(stream.segments.lengths)).bernoulli_(keep) / keep
        return x_TD * mask_N[stream.example_ids, None]

    def extra_repr(self) -> str:
        return f'rate={self.rate:.3f}'


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), OpenAI CLIP's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    'gelu': nn.GELU,
    'gelu_tanh': partial(nn.GELU, approximate='tanh'),
    'quick_gelu': QuickGELU,
}


class Mlp(nn.Module):
    """Two linear layers with an activation between them: the exact GELU, unless told otherwise."""

    def __init__(self, dim: int, *, hidden: int, act: nn.Module | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = act or nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x_TD: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x_TD)))
        return out


class SwiGLU(nn.Module):
    """fc2(norm(silu(fc1(x)) * fc3(x))) (Shazeer 2020); fc1 is the gate. UniViTAR has the norm."""

    def __init__(self, dim: int, *, hidden: int, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc3 = nn.Linear(dim, hidden)
        self.act = nn.SiLU()
        self.norm = norm or nn.Identity()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x_TD: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.norm(self.act(self.fc1(x_TD)) * self.fc3(x_TD)))
        return out


class HeadLayerNorm(nn.LayerNorm):
    """A LayerNorm within each head, of queries or keys [T, H, K] (ViT-22B)."""

    def __init__(self, num_heads: int, head_width: int, *, eps: float, bias: bool) -> None:
        super().__init__(head_width, eps=eps, bias=bias)


class HeadRMSNorm(nn.RMSNorm):
    """An RMSNorm within each head, of queries or keys [T, H, K]."""

    def __init__(self, num_heads: int, head_width: int, *, eps: float, bias: bool) -> None:
        super().__init__(head_width, eps=eps)


class WideRMSNorm(nn.RMSNorm):
    """An RMSNorm across all heads, of queries or keys [T, H, K] (UniViTAR)."""

    def __init__(self, num_heads: int, head_width: int, *, eps: float, bias: bool) -> None:
        super().__init__(num_heads * head_width, eps=eps)

    def forward(self, x_THK: Tensor) -> Tensor:
        return super().forward(x_THK.flatten(1)).view_as(x_THK)


QK_NORMS: dict[str, type[HeadLayerNorm | HeadRMSNorm | WideRMSNorm]] = {
    'head_layer_norm': HeadLayerNorm,
    'head_rms_norm': HeadRMSNorm,
    'wide_rms_norm': WideRMSNorm,
}


class QKNorm(NamedTuple):
    """The norm of queries and keys. The defaults are ViT-22B's, which NaViT uses (section 2.1)."""

    kind: str = 'head_layer_norm'
    eps: float = 1e-6
    bias: bool = False  # of a LayerNorm
    after_rope: bool = False  # UniViTAR rotates first

    def build(self, num_heads: int, head_width: int) -> nn.Module:
        """The norm of the queries, or that of the keys."""
        return QK_NORMS[self.kind](num_heads, head_width, eps=self.eps, bias=self.bias)


class Attention(nn.Module):
    """Multi-head self-attention within segments; queries and keys may be normed and rotated."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        qkv_bias: bool = True,
        qk_norm: QKNorm | None = None,
        rotation: Rotation = rotate_halves,
        policy: Policy = 'auto',
    ) -> None:
        super().__init__()
        check_policy(policy)
        self.num_heads, self.rotation, self.policy = num_heads, rotation, policy
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        size = (num_heads, dim // num_heads)
        self.q_norm = qk_norm.build(*size) if qk_norm else nn.Identity()
        self.k_norm = qk_norm.build(*size) if qk_norm else nn.Identity()
        self.norm_after_rope = qk_norm is not None and qk_norm.after_rope
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_TD: Tensor, segments: Segments, stream: Stream) -> Tensor:
        qkv = rearrange(self.qkv(x_TD), 't (three h k) -> three t h k', three=3, h=self.num_heads)
        q_THK, k_THK, v_THK = qkv.unbind(0)
        if not self.norm_after_rope:
            q_THK, k_THK = self.q_norm(q_THK), self.k_norm(k_THK)
        if stream.cos is not None and stream.sin is not None:
            q_THK = self.rotation(q_THK, stream.cos, stream.sin)
            k_THK = self.rotation(k_THK, stream.cos, stream.sin)
        if self.norm_after_rope:
            q_THK, k_THK = self.q_norm(q_THK), self.k_norm(k_THK)
        out_THK = attention(q_THK, k_THK, v_THK, segments, self.policy)
        out: Tensor = self.proj(out_THK.flatten(1))
        return out


class Block(nn.Module):
    """A pre-norm transformer block: attention, then the MLP, each added to its input.

    A `windowed` block attends within `stream.windows` instead of within whole examples.
    """

    def __init__(
        self,
        dim: int,
        *,
        attn: Attention,
        mlp: nn.Module,
        norm: Norm,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        windowed: bool = False,
    ) -> None:
        super().__init__()
        scales = layer_scale is not None
        self.windowed = windowed
        self.norm1 = norm(dim)
        self.attn = attn
        self.ls1 = LayerScale(dim, init=layer_scale or 0.0) if scales else nn.Identity()
        self.norm2 = norm(dim)
        self.mlp = mlp
        self.ls2 = LayerScale(dim, init=layer_scale or 0.0) if scales else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x_TD: Tensor, stream: Stream) -> Tensor:
        segments = stream.windows if self.windowed else stream.segments
        assert segments is not None, 'a windowed block needs a stream with windows'
        attended = self.ls1(self.attn(self.norm1(x_TD), segments, stream))
        x_TD = x_TD + self.drop_path(attended, stream)
        out: Tensor = x_TD + self.drop_path(self.ls2(self.mlp(self.norm2(x_TD))), stream)
        return out
