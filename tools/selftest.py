"""Whether what is computed here is right: `python tools/doctor.py --selftest`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from navit_backbone import NaViT, PackedPatches, Segments, pack, patchify
from navit_backbone.attention import Policy, attention, pick_kernel, varlen_obstacle
from navit_backbone.tools.measure import resident_bytes

MIXED = [37, 1, 64, 16, 16, 130]  # tokens of each segment
EQUAL = [48] * 5
SIDES = [(224, 224), (96, 320), (64, 64), (480, 160), (33, 250), (16, 16)]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call of attention, and how far from the oracle its numbers may lie."""

    device: str
    dtype: torch.dtype
    lengths: list[int]
    policy: Policy
    tolerance: float  # of the largest value of the oracle

    @property
    def kernel(self) -> str:
        equal = len(set(self.lengths)) == 1
        return pick_kernel(self.policy, torch.device(self.device), self.dtype, 64, equal)


def cases() -> Iterator[Case]:
    """Every kernel that this machine has, on every device."""
    kinds = [('cpu', torch.float64, 'sdpa', 1e-10), ('cpu', torch.bfloat16, 'sdpa', 2e-2)]
    if torch.cuda.is_available():
        kinds.append(('cuda', torch.float32, 'sdpa', 1e-3))
        if not varlen_obstacle(torch.device('cuda'), torch.bfloat16, 64):
            kinds.append(('cuda', torch.bfloat16, 'varlen', 2e-2))
    for device, dtype, policy, tolerance in kinds:
        for lengths in (MIXED, EQUAL):
            yield Case(
                device=device, dtype=dtype, lengths=lengths, policy=policy, tolerance=tolerance
            )


def dense_attention(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, lengths: list[int]) -> Tensor:
    """Attention [T, H, K] by a dense mask, in float64 on the CPU."""
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    scores = torch.einsum('qhk,shk->hqs', q_THK, k_THK) / q_THK.shape[-1] ** 0.5
    weights = scores.masked_fill(ids[:, None] != ids[None, :], -torch.inf).softmax(-1)
    return torch.einsum('hqs,shk->qhk', weights, v_THK)


def deviation(case: Case) -> float:
    """The largest error of the output and the gradients, relative to the oracle's largest value."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, sum(case.lengths), 3, 64)
    qkv = torch.randn(shape, generator=generator).to(case.dtype).to(case.device)
    grad = torch.randn(shape[1:], generator=generator).to(case.dtype)
    segments = Segments.of(torch.tensor(case.lengths), qkv.device)
    exact_qkv = qkv.cpu().double().clone().requires_grad_()
    qkv.requires_grad_()
    out = attention(*qkv.unbind(), segments, case.policy)
    out.backward(grad.to(case.device))
    exact_out = dense_attention(*exact_qkv.unbind(), case.lengths)
    exact_out.backward(grad.double())
    pairs = [(out.detach(), exact_out.detach()), (qkv.grad, exact_qkv.grad)]
    return max(
        float((ours.cpu().double() - exact).abs().max() / exact.abs().max())
        for ours, exact in pairs
    )


def check_attention() -> bool:
    """Print every kernel's deviation; whether all are within their tolerance."""
    right = True
    for case in cases():
        error = deviation(case)
        right &= error <= case.tolerance
        verdict = 'ok' if error <= case.tolerance else 'WRONG'
        what = f'{case.kernel}, {case.device}, {str(case.dtype).removeprefix("torch.")}'
        print(
            f'{verdict:<6}attention       {what}: off by {error:.1e} (limit {case.tolerance:.0e})'
        )
    return right


def example(device: torch.device) -> PackedPatches:
    """Noise of several sizes in one sequence."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(3, h, w, generator=generator) for h, w in SIDES]
    return pack([patchify(image.to(device), (1, 16, 16)) for image in images])


def check_training(steps: int = 4) -> bool:
    """Train NaViT-Ti on noise; whether each step lowers the loss. Prints speed and memory."""
    torch.manual_seed(0)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    packed = example(device)
    model = NaViT('tiny').to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    target = torch.randn(len(packed.patches), 192, device=device)
    losses, start = [], time.monotonic()
    for step in range(steps + 1):
        if step == 1:  # the first one warms up
            start = time.monotonic()
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == 'cuda'):
            loss = (model(packed).tokens.float() - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    speed = steps * len(packed.patches) / (time.monotonic() - start)
    right = all(later < earlier for earlier, later in pairwise(losses))
    told = f'loss {losses[0]:.4f} -> {losses[-1]:.4f}, {speed:,.0f} tokens/s on {device}'
    print(f'{"ok" if right else "WRONG":<6}training        {told}, {peak_memory(device)}')
    return right


def peak_memory(device: torch.device) -> str:
    cuda = device.type == 'cuda'
    used = torch.cuda.max_memory_allocated() if cuda else resident_bytes(peak=True)
    return f'{used / 2**20:,.0f} MiB at the peak'


def selftest() -> None:
    """Exit with a message where a kernel or a training step gives wrong numbers."""
    right = [check_attention(), check_training()]
    if not all(right):
        sys.exit(
            'this machine computes wrong numbers (see above): report it with the lines of '
            "tools/doctor.py; attention='sdpa' in the backbone leaves the varlen kernel out"
        )
