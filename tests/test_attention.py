"""Every kernel behind the door against dense attention in plain maths, forward and gradient."""

import logging

import pytest
import torch
import torch.nn.functional as F
from oracles import dense_attention
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from navit_backbone.attention import (
    _announce,
    _backward_runs,
    _forward_runs,
    attention,
    fused_obstacle,
    pick_kernel,
    segment_attention,
)
from navit_backbone.packing import Segments

LENGTHS = [[7], [5, 5, 5], [1, 2, 300, 1], [3, 3, 8, 8, 8, 1], [1] * 9, [4, 0, 4, 2]]
CPU = torch.device('cpu')


def qkv(lengths, dtype=torch.float64, heads=3, width=8, device='cpu'):
    generator = torch.Generator().manual_seed(sum(lengths))
    shape = (sum(lengths), 3, heads, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype).unbind(1)


def run(function, q, k, v):
    """The output and the gradients of a random projection of it."""
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out = function(*leaves)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return out, *torch.autograd.grad((out * weight).sum(), leaves)


@pytest.mark.parametrize('policy', ['auto', 'sdpa'])
@pytest.mark.parametrize('lengths', LENGTHS, ids=str)
def test_cpu_kernels_equal_plain_maths(lengths, policy):
    q, k, v = qkv(lengths)
    segments = Segments.of(torch.tensor(lengths), CPU)
    got = run(lambda *x: attention(*x, segments, policy), q, k, v)
    expected = run(lambda *x: dense_attention(*x, lengths), q, k, v)
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() < 1e-12


@pytest.mark.parametrize('lengths', LENGTHS[1:2], ids=str)
def test_the_segmented_kernel_serves_equal_segments_too(lengths):
    q, k, v = qkv(lengths)
    got = run(lambda *x: segment_attention(*x, torch.tensor(lengths))[0], q, k, v)
    expected = run(lambda *x: dense_attention(*x, lengths), q, k, v)
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() < 1e-12


@pytest.mark.parametrize('lengths', LENGTHS, ids=str)
def test_the_segmented_kernel_of_other_devices_equals_plain_maths(lengths, monkeypatch):
    monkeypatch.setattr('navit_backbone.attention._has_flash', lambda x: False)
    q, k, v = qkv(lengths)
    got = run(lambda *x: segment_attention(*x, torch.tensor(lengths))[0], q, k, v)
    expected = run(lambda *x: dense_attention(*x, lengths), q, k, v)
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() < 1e-12


@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_lower_precision_stays_near_plain_maths(dtype, tolerance):
    lengths = [3, 3, 200, 17]
    q, k, v = qkv(lengths, dtype)
    segments = Segments.of(torch.tensor(lengths), CPU)
    got = run(lambda *x: attention(*x, segments), q, k, v)
    exact = [x.double() for x in (q, k, v)]
    expected = run(lambda *x: dense_attention(*x, lengths), *exact)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == dtype
        assert (a - b).abs().max() < tolerance * b.abs().max().clamp(min=1)


def test_norms_that_widen_queries_do_not_widen_the_result():
    q, k, v = qkv([3, 5], torch.float32)
    segments = Segments.of(torch.tensor([3, 5]), CPU)
    assert attention(q, k, v.bfloat16(), segments).dtype == torch.bfloat16


def test_the_opaque_operator_keeps_its_contracts():
    leaves = [x.detach().clone().requires_grad_() for x in qkv([2, 2, 5])]
    results = torch.library.opcheck(segment_attention, (*leaves, torch.tensor([2, 2, 5])))
    assert len(results) >= 4
    assert set(results.values()) == {'SUCCESS'}


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_varlen_is_traced_with_fake_cuda_tensors(dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (9, 0))
    with FakeTensorMode():
        q, k, v = (torch.empty(10, 2, 16, device='cuda', dtype=dtype) for _ in range(3))
        cu = torch.empty(3, dtype=torch.int32, device='cuda')
        segments = Segments(cu, torch.empty(2, dtype=torch.long), 6, False)
        graph = make_fx(lambda q, k, v: attention(q, k, v, segments))(q, k, v)
        out = graph(q, k, v)
    called = [str(node.target) for node in graph.graph.nodes if node.op == 'call_function']
    assert any('varlen_attn' in name for name in called), called
    assert out.shape == (10, 2, 16) and out.dtype == dtype and out.device.type == 'cuda'


@pytest.mark.parametrize(
    'dtype, width, capability, reason',
    [
        (torch.float32, 64, (9, 0), 'neither bfloat16 nor float16'),
        (torch.bfloat16, 20, (9, 0), 'multiple of 8'),
        (torch.bfloat16, 264, (9, 0), 'multiple of 8'),
        (torch.bfloat16, 64, (7, 5), 'older than sm80'),
    ],
)
def test_varlen_is_passed_over_with_the_reason(dtype, width, capability, reason, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: capability)
    cuda = torch.device('cuda', 0)
    assert pick_kernel('auto', cuda, dtype, width, False) == 'segmented'
    assert pick_kernel('auto', cuda, dtype, width, True) == 'batched'
    with pytest.raises(ValueError, match=reason):
        pick_kernel('varlen', cuda, dtype, width, False)


def test_a_kernel_says_its_first_use_once_with_the_reason(caplog):
    _announce.cache_clear()
    caplog.set_level(logging.INFO, 'navit_backbone')
    q, k, v = qkv([2, 3])
    for _ in range(3):
        attention(q, k, v, Segments.of(torch.tensor([2, 3]), CPU))
    assert [r.message for r in caplog.records] == [
        'attention: segmented (no varlen: the device is cpu, not CUDA; segments of several lengths)'
    ]


@pytest.mark.cuda
@pytest.mark.parametrize('policy', ['auto', 'sdpa'])
@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize('lengths', LENGTHS[:5], ids=str)
def test_cuda_kernels_equal_plain_maths(lengths, dtype, tolerance, policy):
    q, k, v = qkv(lengths, dtype, device='cuda')
    segments = Segments.of(torch.tensor(lengths), q.device)
    got = run(lambda *x: attention(*x, segments, policy), q, k, v)
    exact = [x.double() for x in (q, k, v)]
    expected = run(lambda *x: dense_attention(*x, lengths), *exact)
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() < tolerance * b.abs().max().clamp(min=1)


# --------------------------------------------------------------------------------------------------
# The memory-efficient kernel of CUDA, of which no machine without a GPU has more than the shapes


@pytest.mark.parametrize(
    'device, dtype, width, reason',
    [
        ('cpu', torch.float64, 7, ''),
        ('cuda', torch.float32, 64, ''),
        ('cuda', torch.float32, 20, ''),
        ('cuda', torch.float16, 8, ''),
        ('cuda', torch.bfloat16, 264, ''),
        ('cuda', torch.float32, 6, 'heads of 6 are not a multiple of 4'),
        ('cuda', torch.bfloat16, 20, 'heads of 20 are not a multiple of 8'),
        ('cuda', torch.float64, 64, 'torch.float64 is not float32, bfloat16 or float16'),
        ('xpu', torch.float32, 64, 'no fused kernel is known for xpu'),
    ],
)
def test_where_a_fused_kernel_serves_segments(device, dtype, width, reason, caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (7, 5))
    assert fused_obstacle(torch.device(device), dtype, width) == reason
    _announce.cache_clear()
    caplog.set_level(logging.INFO, 'navit_backbone')
    assert pick_kernel('sdpa', torch.device(device), dtype, width, False) == 'segmented'
    (record,) = caplog.records
    assert ('n x n of memory' in record.message) == bool(reason)
    assert reason in record.message


def test_rocm_is_left_to_the_plain_backward(monkeypatch):
    monkeypatch.setattr(torch.version, 'hip', '6.4')
    reason = fused_obstacle(torch.device('cuda'), torch.float32, 64)
    assert reason == 'no fused kernel is known for ROCm'


def test_float32_on_cuda_is_one_operator_with_its_log_sum_exp():
    """One node for all segments, of a shape known without their lengths."""
    with FakeTensorMode():
        q, k, v = (torch.empty(10, 2, 16, device='cuda') for _ in range(3))
        cu = torch.empty(3, dtype=torch.int32, device='cuda')
        segments = Segments(cu, torch.empty(2, dtype=torch.long), 6, False)
        graph = make_fx(lambda q, k, v: attention(q, k, v, segments))(q, k, v)
        out, lse = segment_attention(q, k, v, segments.lengths)
    called = [str(node.target) for node in graph.graph.nodes if node.op == 'call_function']
    assert called[0] == 'navit.segment_attention.default', called
    assert sum('attention' in name for name in called) == 1
    assert (out.shape, lse.shape, lse.device.type) == ((10, 2, 16), (10, 2), 'cuda')


class Ops(TorchDispatchMode):
    """The names of all operators called, and the most elements of a tensor that one gives."""

    def __init__(self):
        super().__init__()
        self.names, self.most = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names.append(func.__name__)
        for item in torch.utils._pytree.tree_leaves(out):
            if isinstance(item, torch.Tensor):
                self.most = max(self.most, item.numel())
        return out


@pytest.mark.parametrize('lengths', [[3000, 700, 700, 5], [2048, 1]], ids=str)
@pytest.mark.parametrize('efficient', [True, False])
def test_no_weights_are_kept_on_cuda(lengths, efficient, monkeypatch):
    """On tensors without values, through the very functions that the operators run."""
    monkeypatch.setattr('navit_backbone.attention._has_efficient', lambda x: efficient)
    total, heads, width = sum(lengths), 12, 64
    q, k, v, grad = torch.empty(4, total, heads, width, device='meta').unbind(0)
    with Ops() as forward:
        out, lse = _forward_runs(q, k, v, torch.tensor(lengths))
    with Ops() as backward:
        parts = _backward_runs(grad, q, k, v, out, lse, torch.tensor(lengths))
    assert [x.shape for x in (out, *parts)] == [(total, heads, width)] * 4
    longest = max(lengths)
    if not efficient:
        assert backward.most >= heads * longest * longest
        return
    assert lse.shape == (total, heads)
    assert max(forward.most, backward.most) <= total * heads * width
    runs = len(set(lengths))
    for ops, name in ((forward, 'attention.default'), (backward, 'attention_backward.default')):
        assert ops.names.count(f'_scaled_dot_product_efficient_{name}') == runs


def efficient_forward(q, k, v, bias, compute_log_sumexp):
    """The kernel's contract in plain maths: rows of the log-sum-exp filled up to 32 by inf."""
    assert bias is None and compute_log_sumexp
    assert all(x.stride(-1) == 1 for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    lse = F.pad(scores.logsumexp(-1), (0, -q.shape[2] % 32), value=torch.inf)
    return scores.softmax(-1) @ v, lse, torch.zeros(()), torch.zeros(())


def efficient_backward(grad, q, k, v, bias, out, lse, seed, offset, dropout, wanted):
    assert bias is None and dropout == 0.0 and wanted == [True, True, True, False]
    assert all(x.stride(-1) == 1 for x in (grad, q, k, v, out, lse))
    count = q.shape[2]
    assert lse.shape[2] % 32 == 0 and lse.stride(1) % 8 == 0 and lse.stride(0) % 8 == 0
    assert lse[..., count:].isinf().all() and lse[..., :count].isfinite().all()
    scale = q.shape[-1] ** -0.5
    weights = (scale * q @ k.transpose(-1, -2) - lse[..., :count, None]).exp()
    scores = weights * (grad @ v.transpose(-1, -2) - (grad * out).sum(-1, keepdim=True)) * scale
    return scores @ k, scores.transpose(-1, -2) @ q, weights.transpose(-1, -2) @ grad, None


@pytest.mark.parametrize('lengths', [*LENGTHS, [32, 64, 33]], ids=str)
def test_the_efficient_kernel_gets_what_it_needs(lengths, monkeypatch):
    """Our side of the call, against a kernel in plain maths that checks what CUDA's demands."""
    monkeypatch.setattr('navit_backbone.attention._has_flash', lambda x: False)
    monkeypatch.setattr('navit_backbone.attention._has_efficient', lambda x: True)
    name = '_scaled_dot_product_efficient_attention'
    monkeypatch.setattr(torch.ops.aten, name, efficient_forward)
    monkeypatch.setattr(torch.ops.aten, f'{name}_backward', efficient_backward)
    q, k, v = qkv(lengths)
    got = run(lambda *x: segment_attention(*x, torch.tensor(lengths))[0], q, k, v)
    expected = run(lambda *x: dense_attention(*x, lengths), q, k, v)
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() < 1e-12
    leaf = v.clone().requires_grad_()  # a sum gives a gradient without memory of its own
    segment_attention(q, k, leaf, torch.tensor(lengths))[0].sum().backward()
    assert abs(leaf.grad.sum() - v.numel()) < 1e-9 * v.numel()


@pytest.mark.cuda
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_cuda_keeps_no_weights(dtype):
    lengths, heads = [4096, 1000, 3], 4
    q, k, v = (
        x.clone().requires_grad_()
        for x in qkv(lengths, dtype, heads=heads, width=64, device='cuda')
    )
    segments = Segments.of(torch.tensor(lengths), q.device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attention(q, k, v, segments, 'sdpa').sum().backward()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < heads * lengths[0] ** 2 * dtype.itemsize / 2
