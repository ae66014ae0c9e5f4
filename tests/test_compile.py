"""`torch.compile` of the block stack: one graph for all mixes of sizes, and the same numbers."""

import copy

import pytest
import torch
from oracles import pictures
from torch._dynamo.testing import CompileCounterWithBackend

from navit_backbone import NaViT, pack, patchify

ARCH = dict(embed_dims=24, num_layers=3, num_heads=3, feedforward_channels=40)
OPTIONS = {
    'plain': dict(arch=ARCH),
    'windowed, prefix, rope': dict(
        arch=dict(ARCH, prefix_tokens=1, rope={}), window_size=3, global_attn_indexes=(2,)
    ),
    'checkpointed': dict(arch=ARCH, with_cp=True),
    'drop path': dict(arch=ARCH, drop_path_rate=0.3),
}


def mixes():
    """Batches of several numbers and sizes of pictures, one of equal sizes among them."""
    generator = torch.Generator().manual_seed(0)
    for count in (2, 5, 3, 7, 4):
        sizes = torch.randint(1, 150, (count, 2), generator=generator).tolist()
        yield sizes if count != 7 else [(64, 48)] * count


@pytest.mark.parametrize('name', OPTIONS)
def test_the_stack_compiles_whole_and_no_more_after_the_second_batch(name):
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain = NaViT(**OPTIONS[name])
    model = copy.deepcopy(plain)
    counter = CompileCounterWithBackend('aot_eager')
    model.blocks.compile(backend=counter, fullgraph=True)
    graphs = []
    for sizes in mixes():
        packed = pack([patchify(x, (1, 16, 16)) for x in pictures(sizes, dtype=torch.float32)])
        torch.manual_seed(1)  # of the drop path
        got = model(packed, (0, -1))
        torch.manual_seed(1)
        expected = plain(packed, (0, -1))
        assert torch.allclose(got.tokens, expected.tokens, atol=1e-5)
        weight = torch.randn_like(got.tokens)
        (got.tokens * weight).sum().backward()
        (expected.tokens * weight).sum().backward()
        graphs.append(counter.frame_count)
    for (key, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-3), key
    assert graphs[0] == 1 and graphs[1:] == [graphs[1]] * 4 and graphs[1] <= 2


def test_compile_blocks_runs():
    torch._dynamo.reset()
    model = NaViT(ARCH)
    expected = model(patchify(torch.ones(3, 40, 50), (1, 16, 16))).tokens
    model.compile_blocks()
    got = model(patchify(torch.ones(3, 40, 50), (1, 16, 16))).tokens
    assert torch.allclose(got, expected, atol=1e-5)
