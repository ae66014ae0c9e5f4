"""One vector per example from its tokens."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .layers import Mlp

Pooling = Literal['token', 'mean', 'map']


def build_pooling(
    kind: Pooling,
    dim: int,
    *,
    num_heads: int,
    hidden: int,
    act: nn.Module | None = None,
    eps: float = 1e-6,
) -> nn.Module:
    """The pooling of a `kind`; each is called with (tokens [T, D], prefix [N, R, D], ids [T])."""
    if kind == 'token':
        return TokenPooling()
    if kind == 'mean':
        return MeanPooling()
    if kind == 'map':
        return AttentionPooling(dim, num_heads=num_heads, hidden=hidden, act=act, eps=eps)
    raise ValueError(f'pooling={kind!r} is not one of {get_args(Pooling)} or None')


class TokenPooling(nn.Module):
    """The first prefix token: ViT's class token."""

    def forward(self, tokens_TD: Tensor, prefix_NRD: Tensor, ids_T: Tensor) -> Tensor:
        return prefix_NRD[:, 0]


class MeanPooling(nn.Module):
    """The mean over an example's own tokens, prefix tokens left out."""

    def forward(self, tokens_TD: Tensor, prefix_NRD: Tensor, ids_T: Tensor) -> Tensor:
        num = len(prefix_NRD)
        return _sum_by(tokens_TD, ids_T, num) / _sum_by(
            torch.ones_like(tokens_TD[:, :1]), ids_T, num
        )


class AttentionPooling(nn.Module):
    """Multi-head attention pooling (MAP; Zhai et al. 2022, used by NaViT section 2.1).

    A learned probe attends to an example's own tokens; ``out + MLP(LayerNorm(out))`` follows. The
    probe is the same for all examples, so the scores are one product over the whole pack, and the
    softmax runs within examples.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        hidden: int,
        act: nn.Module | None = None,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.probe = nn.Parameter(torch.empty(1, dim))
        nn.init.xavier_uniform_(self.probe)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, hidden=hidden, act=act)

    def forward(self, tokens_TD: Tensor, prefix_NRD: Tensor, ids_T: Tensor) -> Tensor:
        q_HK = self.q(self.probe).unflatten(1, (self.num_heads, -1))[0]
        k_THK, v_THK = self.kv(tokens_TD).unflatten(1, (2, self.num_heads, -1)).unbind(1)
        scores_TH = (k_THK * q_HK).sum(-1) / math.sqrt(q_HK.shape[-1])
        weights_TH = softmax_by(scores_TH, ids_T, len(prefix_NRD))
        out_ND = self.proj(
            _sum_by((weights_TH[..., None] * v_THK).flatten(1), ids_T, len(prefix_NRD))
        )
        pooled: Tensor = out_ND + self.mlp(self.norm(out_ND))
        return pooled


def softmax_by(scores_TH: Tensor, ids_T: Tensor, num: int) -> Tensor:
    """Softmax over the rows of each of `num` examples: [T, H]."""
    index = ids_T[:, None].expand_as(scores_TH)
    top_NH = scores_TH.new_full((num, scores_TH.shape[1]), -torch.inf)
    top_NH = top_NH.scatter_reduce(0, index, scores_TH.detach(), 'amax')
    weights_TH = (scores_TH - top_NH[ids_T]).exp()
    return weights_TH / _sum_by(weights_TH, ids_T, num)[ids_T]


def mean_by(x_FRD: Tensor, example_F: Tensor, num: int) -> Tensor:
    """The mean over the rows of each of `num` examples, none of them without a row: [N, R, D].

    The example of a row ([F]) is known on the host.
    """
    counts = torch.bincount(example_F, minlength=num)[:, None]
    index = example_F.to(x_FRD.device, non_blocking=True)
    sums = _sum_by(x_FRD.flatten(1), index, num)
    return (sums / counts.to(sums.device, non_blocking=True)).view(num, *x_FRD.shape[1:])


def _sum_by(x_TD: Tensor, ids_T: Tensor, num: int) -> Tensor:
    # wide: sums of bfloat16 stop growing at a few hundred tokens
    wide = torch.promote_types(x_TD.dtype, torch.float32)
    sums = x_TD.new_zeros(num, x_TD.shape[1], dtype=wide).index_add(0, ids_T, x_TD.to(wide))
    return sums.to(x_TD.dtype)
