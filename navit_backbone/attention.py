"""The one door to attention: `attention(q, k, v, segments)`; the kernels stand behind it.

Examples are segments of one long sequence, and a token attends to its own segment only. A T x T
mask is never made. Which kernel runs is picked per call, from what is known on the host:

==========  ====================================================================================
varlen      CUDA sm80 or newer, bf16 or fp16, head width a multiple of 8 and at most 256:
            `torch.nn.attention.varlen`, whatever the lengths
batched     all segments of one length: one scaled-dot-product attention over a batch of them,
            in eager mode and under `torch.export`
segmented   everything else, and all lengths under `torch.compile`: one scaled-dot-product
            attention per run of equal segments, inside one opaque operator, so that a compiled
            block stack holds one node, not one per segment, and is compiled once
==========  ====================================================================================

Forward and backward pass of `segmented` keep no n x n weights either where a fused kernel serves:
PyTorch's flash attention on CPU, its memory-efficient attention on CUDA (float32, bfloat16,
float16). Elsewhere (float64 on CUDA, odd head widths) the backward pass holds the weights of one
run of equal segments at a time; the log says why.
"""

from __future__ import annotations

import functools
import logging
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .packing import Segments

aten = torch.ops.aten
Policy = Literal['auto', 'varlen', 'sdpa']
Kernel = Literal['varlen', 'batched', 'segmented']


def attention(
    q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, segments: Segments, policy: Policy = 'auto'
) -> Tensor:
    """Softmax attention of every token to the tokens of its segment: [T, H, K].

    The scale is 1 / sqrt(K). `policy` 'auto' takes the first kernel of the table above that fits;
    'varlen' insists on that kernel and 'sdpa' excludes it.
    """
    q_THK, k_THK = q_THK.to(v_THK.dtype), k_THK.to(v_THK.dtype)  # norms widen under autocast
    # the opaque operator serves equal segments as well; one graph then serves every batch
    equal = not torch.compiler.is_dynamo_compiling() and segments.equal
    kernel = pick_kernel(policy, v_THK.device, v_THK.dtype, v_THK.shape[-1], equal)
    if kernel == 'varlen':
        return _varlen(q_THK, k_THK, v_THK, segments)
    if kernel == 'batched':
        return _batched(q_THK, k_THK, v_THK, len(segments.lengths))
    out: Tensor = segment_attention(q_THK, k_THK, v_THK, segments.lengths)[0]
    return out


def check_policy(policy: str) -> None:
    """Raise ValueError unless `policy` is one that `attention` takes."""
    if policy not in get_args(Policy):
        raise ValueError(f'attention={policy!r} is not one of {get_args(Policy)}')


def pick_kernel(
    policy: Policy, device: torch.device, dtype: torch.dtype, head_width: int, equal: bool
) -> Kernel:
    """The kernel for a call, said once in the log with the reason."""
    obstacle = varlen_obstacle(device, dtype, head_width)
    if policy == 'varlen' and obstacle:
        raise ValueError(f"attention='varlen' cannot run: {obstacle}; use 'auto'")
    if policy != 'sdpa' and not obstacle:
        return _announce('varlen', f'{dtype} on {device.type}, heads of {head_width}')
    reason = "attention='sdpa'" if policy == 'sdpa' else f'no varlen: {obstacle}'
    if equal:
        return _announce('batched', f'{reason}; all segments are equal')
    reason = f'{reason}; segments of several lengths'
    if slow := fused_obstacle(device, dtype, head_width):
        reason = f'{reason}; the backward pass takes n x n of memory: {slow}'
    return _announce('segmented', reason)


# What torch.compiler.assume_constant_result sets; calling it would import all of torch's compiler,
# seconds of it, and change the environment. A trace then takes the answer as it is, log and all.
pick_kernel._dynamo_marked_constant = True  # type: ignore[attr-defined]


def varlen_obstacle(device: torch.device, dtype: torch.dtype, head_width: int) -> str:
    """Why the varlen kernel cannot serve; empty where it can."""
    if device.type != 'cuda':
        return f'the device is {device.type}, not CUDA'
    if dtype not in (torch.bfloat16, torch.float16):
        return f'{dtype} is neither bfloat16 nor float16 (train with --amp)'
    if head_width % 8 or head_width > 256:
        return f'heads of {head_width} are not a multiple of 8 up to 256'
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f'the GPU is sm{capability[0]}{capability[1]}, older than sm80'
    return ''


def fused_obstacle(device: torch.device, dtype: torch.dtype, head_width: int) -> str:
    """Return why no fused kernel serves segments of several lengths; empty where one does."""
    if device.type == 'cpu':
        return ''
    if device.type != 'cuda' or torch.version.hip is not None:
        return f'no fused kernel is known for {"ROCm" if device.type == "cuda" else device.type}'
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f'{dtype} is not float32, bfloat16 or float16'
    if head_width % (multiple := 16 // dtype.itemsize):  # 16 bytes are loaded at once
        return f'heads of {head_width} are not a multiple of {multiple}'
    return ''


@functools.cache
def _announce(kernel: Kernel, reason: str) -> Kernel:
    logging.getLogger('navit_backbone').info('attention: %s (%s)', kernel, reason)
    return kernel


def _varlen(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, segments: Segments) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # imports CUDA-only parts of torch

    cu, longest = segments.cu_seqlens, segments.max_len
    q_THK, k_THK, v_THK = q_THK.contiguous(), k_THK.contiguous(), v_THK.contiguous()
    out = varlen_attn(q_THK, k_THK, v_THK, cu, cu, longest, longest)
    assert isinstance(out, Tensor), 'varlen_attn gives more than the output'
    return out


def _batched(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, count: int) -> Tensor:
    everything = slice(None)
    q, k, v = (_batch(x, everything, count) for x in (q_THK, k_THK, v_THK))
    return _flat(F.scaled_dot_product_attention(q, k, v))


def _runs(lengths: Tensor) -> list[tuple[slice, int]]:
    """(rows, number of segments) of each run of equal consecutive segments; empty ones left out."""
    sizes, counts = torch.unique_consecutive(lengths, return_counts=True)
    ends = (sizes * counts).cumsum(0).tolist()
    runs, start = [], 0
    for size, count, end in zip(sizes.tolist(), counts.tolist(), ends, strict=True):
        if size:
            runs.append((slice(start, end), count))
        start = end
    return runs


def _batch(x_THK: Tensor, rows: slice, count: int) -> Tensor:
    """A view [count, H, n, K] of a run of equal segments."""
    run: Tensor = x_THK[rows].unflatten(0, (count, -1)).transpose(1, 2)
    return run


def _flat(x: Tensor) -> Tensor:
    """[count, H, n, ...] -> [count * n, H, ...]."""
    return x.transpose(1, 2).flatten(0, 1)


@torch.library.custom_op('navit::segment_attention', mutates_args=())
def segment_attention(
    q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention within segments of the given `lengths` ([S], on the host), and its log-sum-exp.

    The log-sum-exp [T, H] is what the backward pass of a fused kernel needs; without one it is
    empty, and the backward pass computes the weights of a segment again.
    """
    return _forward_runs(q_THK, k_THK, v_THK, lengths)


def _forward_runs(
    q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    out, lse = _blank(v_THK), _new_lse(v_THK)
    for rows, count in _runs(lengths):
        q, k, v = (_batch(x, rows, count) for x in (q_THK, k_THK, v_THK))
        if _has_flash(v):
            part, part_lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
            lse[rows] = _flat(part_lse)
        elif _has_efficient(v):
            q, k, v = (_last_dense(x) for x in (q, k, v))
            part, part_lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, None, True)
            lse[rows] = _flat(part_lse[..., : q.shape[2]])  # its rows are filled up to 32
        else:
            part = F.scaled_dot_product_attention(q, k, v)
        out[rows] = _flat(part)
    return out, lse


@segment_attention.register_fake
def _(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    return _blank(v_THK), _new_lse(v_THK)


def _has_flash(x: Tensor) -> bool:
    """Whether the fused CPU kernel serves."""
    return x.device.type == 'cpu'


def _has_efficient(x: Tensor) -> bool:
    """Return whether the memory-efficient CUDA kernel can be used."""
    return x.device.type == 'cuda' and not fused_obstacle(x.device, x.dtype, x.shape[-1])


def _last_dense(x: Tensor) -> Tensor:
    """Return `x` with neighbouring values of its last axis next to one another in memory."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _blank(x_THK: Tensor) -> Tensor:
    return torch.empty_like(x_THK, memory_format=torch.contiguous_format)


def _new_lse(v_THK: Tensor) -> Tensor:
    dtype = torch.float64 if v_THK.dtype == torch.float64 else torch.float32
    num_tokens = v_THK.shape[0] if _has_flash(v_THK) or _has_efficient(v_THK) else 0
    return v_THK.new_empty(num_tokens, v_THK.shape[1], dtype=dtype)


@torch.library.custom_op('navit::segment_attention_backward', mutates_args=())
def segment_attention_backward(
    grad_THK: Tensor,
    q_THK: Tensor,
    k_THK: Tensor,
    v_THK: Tensor,
    out_THK: Tensor,
    lse: Tensor,
    lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients [T, H, K] of q, k and v."""
    return _backward_runs(grad_THK, q_THK, k_THK, v_THK, out_THK, lse, lengths)


def _backward_runs(
    grad_THK: Tensor,
    q_THK: Tensor,
    k_THK: Tensor,
    v_THK: Tensor,
    out_THK: Tensor,
    lse: Tensor,
    lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = [_blank(x) for x in (q_THK, k_THK, v_THK)]
    tensors = (q_THK, k_THK, v_THK, out_THK, grad_THK)
    for rows, count in _runs(lengths):
        q, k, v, out, grad = (_batch(x, rows, count) for x in tensors)
        if _has_flash(v):
            part_lse = lse[rows].unflatten(0, (count, -1)).transpose(1, 2)
            parts = aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad, q, k, v, out, part_lse, 0.0, False
            )
        elif _has_efficient(v):
            part_lse = lse[rows].unflatten(0, (count, -1)).transpose(1, 2)
            # as the forward pass fills them up: exp(-inf) is nothing
            part_lse = F.pad(part_lse, (0, -q.shape[2] % 32), value=torch.inf).contiguous()
            grad, q, k, v, out = (_last_dense(x) for x in (grad, q, k, v, out))
            unused = torch.zeros((), dtype=torch.long)  # seed and offset of dropout
            *parts, _ = aten._scaled_dot_product_efficient_attention_backward(
                grad, q, k, v, None, out, part_lse, unused, unused, 0.0, [True] * 3 + [False]
            )
        else:
            parts = _plain_backward(grad, q, k, v)
        for target, part in zip(grads, parts, strict=True):
            target[rows] = _flat(part)
    return grads[0], grads[1], grads[2]


@segment_attention_backward.register_fake
def _(
    grad_THK: Tensor,
    q_THK: Tensor,
    k_THK: Tensor,
    v_THK: Tensor,
    out_THK: Tensor,
    lse: Tensor,
    lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return _blank(q_THK), _blank(k_THK), _blank(v_THK)


def _plain_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """Gradients by the formulas: inside an operator autograd is off. Takes n x n of memory."""
    scale = q.shape[-1] ** -0.5
    weights = (scale * q @ k.transpose(-1, -2)).softmax(-1)  # [count, H, n, n]
    by_weight = grad @ v.transpose(-1, -2)
    by_score = weights * (by_weight - (by_weight * weights).sum(-1, keepdim=True)) * scale
    return by_score @ k, by_score.transpose(-1, -2) @ q, weights.transpose(-1, -2) @ grad


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, lengths = inputs
    ctx.save_for_backward(q, k, v, *output, lengths)


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    q, k, v, out, lse, lengths = ctx.saved_tensors
    return *segment_attention_backward(grad, q, k, v, out, lse, lengths), None


segment_attention.register_autograd(_backward, setup_context=_save)
