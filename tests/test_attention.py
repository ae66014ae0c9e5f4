"""Every kernel behind the door against dense attention in plain maths, forward and gradient."""

import logging

import pytest
import torch
from oracles import dense_attention
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from navit_backbone.attention import _announce, attention, pick_kernel, segment_attention
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
