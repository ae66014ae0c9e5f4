"""The packed model: N pictures together equal N pictures alone, whatever stands beside them."""

import pytest
import torch
from oracles import ODD_SIZES, perturb, pictures
from test_position import KINDS

from navit_backbone import NaViT, drop_tokens, pack, pack_canvas, patchify
from navit_backbone.layers import DropPath, Stream
from navit_backbone.pooling import softmax_by
from navit_backbone.vit import ARCHS, Arch

SMALL = dict(embed_dims=24, num_layers=4, num_heads=3, feedforward_channels=40)
FULL = dict(SMALL, pooling='map', num_classes=5)
MODELS = {
    'plain': dict(arch=FULL),
    'paper': dict(
        arch=dict(FULL, qk_norm=True, qkv_bias=False, norm_bias=False), position='factorised'
    ),
    'class token': dict(arch=dict(FULL, prefix_tokens=1, pooling='token')),
    'registers': dict(arch=dict(FULL, prefix_tokens=3, pooling='mean')),
    'windowed': dict(arch=FULL, window_size=3, global_attn_indexes=(1, 3)),
    'windowed, registers': dict(
        arch=dict(FULL, prefix_tokens=2), window_size=2, global_attn_indexes=(1, 3)
    ),
    'rope': dict(arch=dict(FULL, rope=dict(theta=100.0)), position=None),
    'rope, windowed, class token': dict(
        arch=dict(FULL, rope={}, prefix_tokens=1),
        position='learned_1d',
        window_size=3,
        global_attn_indexes=(2,),
    ),
    'rms, swiglu, layer scale': dict(
        arch=dict(FULL, norm='rms_norm', mlp='swiglu', layer_scale=0.1)
    ),
    **{f'position {kind}': dict(arch=FULL, position=kind) for kind in KINDS},
}
# 24 / 3 = 8 wide heads divide by 4, so RoPE fits


def build(name, **options):
    torch.manual_seed(0)
    return perturb(NaViT(**{'patch_size': 16, **MODELS[name], **options}).double()).eval()


def packs(images, patch=16):
    return [patchify(image, (1, patch, patch)) for image in images]


def results(model, packed):
    """Everything the model gives, in one row per token and one per example."""
    output = model(packed, (0, 2, -1))
    per_token = torch.cat([*output.features, output.tokens], 1)
    per_example = torch.cat([output.prefix.flatten(1), model.classify(output)], 1)
    return per_token, per_example, output.segment_ids


def gradients(model, total):
    model.zero_grad()
    total.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(got, expected):
    assert got.keys() == expected.keys() and len(got) > 10
    for name in got:
        scale = expected[name].abs().max().clamp(min=1)
        assert (got[name] - expected[name]).abs().max() < 1e-10 * scale, name


@pytest.mark.parametrize('name', MODELS)
def test_a_batch_equals_its_pictures_alone(name):
    model, images = build(name), pictures(ODD_SIZES)
    tokens, examples, ids = results(model, pack(packs(images)))
    alone = [results(model, item) for item in packs(images)]
    assert torch.allclose(tokens, torch.cat([a[0] for a in alone]), rtol=0, atol=1e-10)
    assert torch.allclose(examples, torch.cat([a[1] for a in alone]), rtol=0, atol=1e-10)
    assert ids.tolist() == [i for i, a in enumerate(alone) for _ in a[0]]

    weight = torch.randn(tokens.shape[1], dtype=torch.float64)
    whole = gradients(model, (tokens @ weight).sum() + examples.sum())
    alone = [results(model, item) for item in packs(images)]
    summed = gradients(model, sum((t @ weight).sum() + e.sum() for t, e, _ in alone))
    assert_same_gradients(whole, summed)


@pytest.mark.parametrize('name', MODELS)
def test_neighbours_and_order_do_not_matter(name):
    model, images = build(name), pictures(ODD_SIZES)
    tokens, examples, ids = results(model, pack(packs(images)))
    order = [3, 0, 5, 1, 4, 2]
    moved = results(model, pack(packs([images[i] for i in order])))
    for place, index in enumerate(order):
        same = moved[0][moved[2] == place]
        assert torch.allclose(same, tokens[ids == index], rtol=0, atol=1e-10)
        assert torch.allclose(moved[1][place], examples[index], rtol=0, atol=1e-10)
    images[2] = torch.full((3, 90, 30), 1e3, dtype=torch.float64)
    beside = results(model, pack(packs(images)))
    assert torch.allclose(beside[0][beside[2] == 3], tokens[ids == 3], rtol=0, atol=1e-10)
    assert torch.allclose(beside[1][3], examples[3], rtol=0, atol=1e-10)
    assert not torch.allclose(beside[1][2], examples[2])


@pytest.mark.parametrize('name', MODELS)
def test_tokens_permuted_with_their_coordinates_give_permuted_tokens(name):
    model, packed = build(name), pack(packs(pictures(ODD_SIZES)))
    order = torch.argsort(packed.segment_ids + torch.rand(len(packed.segment_ids)) * 0.9)
    tokens, examples, _ = results(model, packed)
    moved = results(model, packed.take(order, packed.lengths))
    assert torch.allclose(moved[0], tokens[order], rtol=0, atol=1e-10)
    assert torch.allclose(moved[1], examples, rtol=0, atol=1e-10)


@pytest.mark.parametrize('name', MODELS)
def test_dropped_tokens_batch_as_alone(name):
    model, images = build(name), pictures(ODD_SIZES)
    generator = torch.Generator().manual_seed(3)
    kept = [
        drop_tokens(item, (item.lengths + 1) // 2, generator=generator) for item in packs(images)
    ]
    tokens, examples, _ = results(model, pack(kept))
    alone = [results(model, item) for item in kept]
    assert torch.allclose(tokens, torch.cat([a[0] for a in alone]), rtol=0, atol=1e-10)
    assert torch.allclose(examples, torch.cat([a[1] for a in alone]), rtol=0, atol=1e-10)


@pytest.mark.parametrize('name', ['plain', 'windowed, registers', 'rope, windowed, class token'])
def test_window_attention_against_a_dense_mask(name):
    """One windowed block written out: prefix apart, windows of the picture's own grid."""
    model = build(name, **{'window_size': 2, 'global_attn_indexes': (3,), **MODELS[name]})
    size = model.window_size
    block = next(block for block in model.blocks if block.windowed)
    packed = pack(packs(pictures([(70, 53)])))
    num_prefix = model.arch.prefix_tokens
    seen = {}
    block.register_forward_hook(lambda m, args, out: seen.update(x=args[0], s=args[1], out=out))
    model(packed)
    x, stream = seen['x'], seen['s']
    _, y, x_ = packed.coords.unbind(1)
    window = torch.cat([torch.full((num_prefix,), -1), (y // size) * 1000 + x_ // size])
    rows = torch.argsort(window, stable=True)  # the stream's order
    window = window[rows]
    qkv = block.attn.qkv(block.norm1(x)).unflatten(1, (3, 3, 8)).unbind(1)
    q, k, v = block.attn.q_norm(qkv[0]), block.attn.k_norm(qkv[1]), qkv[2]
    if stream.cos is not None:
        half = [torch.cat([-z[..., 4:], z[..., :4]], -1) for z in (q, k)]
        cos, sin = (torch.cat([z, z], -1) for z in (stream.cos, stream.sin))
        q, k = q * cos + half[0] * sin, k * cos + half[1] * sin
    scores = torch.einsum('qhk,shk->hqs', q, k) / 8**0.5
    scores = scores.masked_fill(window[:, None] != window[None], -torch.inf).softmax(-1)
    out = x + block.ls1(block.attn.proj(torch.einsum('hqs,shk->qhk', scores, v).flatten(1)))
    out = out + block.ls2(block.mlp(block.norm2(out)))
    assert torch.allclose(out, seen['out'], rtol=0, atol=1e-10)


def test_default_global_blocks_are_four_and_end_with_the_last():
    windowed = [block.windowed for block in NaViT('tiny', window_size=7).blocks]
    assert [i for i, w in enumerate(windowed) if not w] == [2, 5, 8, 11]


def test_several_patch_shapes_merge_by_example():
    torch.manual_seed(0)
    shapes = [(1, 16, 16), (2, 8, 8)]
    model = NaViT(dict(FULL, prefix_tokens=1), patch_size=shapes, position='sinusoidal')
    model = perturb(model.double()).eval()
    clips = [torch.randn(3, t, h, w).double() for t, h, w in ((3, 33, 20), (1, 16, 16), (4, 8, 50))]

    def tokens_of(items):
        output = model([pack([patchify(c, shape) for c in items]) for shape in shapes])
        return output, model.classify(output)

    output, logits = tokens_of(clips)
    assert len(output.tokens) == sum(
        -(-c.shape[1] // t) * -(-c.shape[2] // h) * -(-c.shape[3] // w)
        for c in clips
        for t, h, w in shapes
    )
    for index, clip in enumerate(clips):
        alone, alone_logits = tokens_of([clip])
        own = output.tokens[output.segment_ids == index]
        assert torch.allclose(own, alone.tokens, rtol=0, atol=1e-10)
        assert torch.allclose(logits[index], alone_logits[0], rtol=0, atol=1e-10)


def test_checkpointing_changes_neither_outputs_nor_gradients():
    plain = build('registers').train()
    saved = build('registers', with_cp=True).train()
    packed = pack(packs(pictures(ODD_SIZES)))
    got, expected = results(saved, packed), results(plain, packed)
    assert torch.equal(got[0], expected[0])
    assert_same_gradients(
        gradients(saved, got[0].square().sum() + got[1].sum()),
        gradients(plain, expected[0].square().sum() + expected[1].sum()),
    )


def test_drop_path_leaves_out_whole_examples_and_keeps_the_mean():
    drop = DropPath(0.25).train()
    packed = pack(packs(pictures(ODD_SIZES)))
    stream = Stream(packed.segments(), None, packed.segment_ids, None, None)
    x = torch.ones(len(packed.patches), 2, dtype=torch.float64)
    torch.manual_seed(0)
    draws = torch.stack([drop(x, stream) for _ in range(3000)])[..., 0]
    firsts = [int((packed.segment_ids == i).nonzero()[0]) for i in range(6)]
    assert torch.equal(draws, draws[:, firsts][:, packed.segment_ids])
    assert set(draws.unique().tolist()) == {0.0, 1 / 0.75}
    assert (draws[:, firsts].mean(0) - 1).abs().max() < 0.06
    assert torch.equal(drop.eval()(x, stream), x)


def test_drop_path_grows_linearly_with_depth():
    rates = [block.drop_path.rate for block in NaViT('tiny', drop_path_rate=0.22).blocks]
    assert rates == pytest.approx([0.02 * i for i in range(12)])


def test_pooling_against_loops():
    model = build('plain')
    output = model(pack(packs(pictures(ODD_SIZES))))
    pool = model.pool
    for index in range(len(ODD_SIZES)):
        own = output.tokens[output.segment_ids == index]
        out = torch.nn.functional.multi_head_attention_forward(
            pool.probe[None],
            own[:, None],
            own[:, None],
            24,
            3,
            torch.cat([pool.q.weight, pool.kv.weight]),
            torch.cat([pool.q.bias, pool.kv.bias]),
            None,
            None,
            False,
            0.0,
            pool.proj.weight,
            pool.proj.bias,
            need_weights=False,
        )[0][0, 0]
        expected = out + pool.mlp(pool.norm(out))
        assert torch.allclose(model.pooled(output)[index], expected, rtol=0, atol=1e-10)
    mean = build('registers')
    output = mean(pack(packs(pictures(ODD_SIZES))))
    for index in range(len(ODD_SIZES)):
        expected = output.tokens[output.segment_ids == index].mean(0)
        assert torch.allclose(mean.pooled(output)[index], expected, rtol=0, atol=1e-12)
    token = build('class token')
    output = token(pack(packs(pictures(ODD_SIZES))))
    assert torch.equal(token.pooled(output), output.prefix[:, 0])


def test_softmax_over_rows_survives_large_scores():
    scores = torch.tensor([[1e4], [1e4 - 1], [-1e4]], dtype=torch.float64)
    got = softmax_by(scores, torch.tensor([0, 0, 1]), 2)
    assert torch.allclose(got[:2, 0], scores[:2, 0].softmax(0))
    assert got[2, 0] == 1


@pytest.mark.parametrize(
    'name, width, depth, heads, millions',
    [
        ('tiny', 192, 12, 3, 5.5),
        ('small', 384, 12, 6, 21.7),
        ('base', 768, 12, 12, 85.8),
        ('large', 1024, 24, 16, 303.3),
    ],
)
@pytest.mark.parametrize('patch', [14, 16, 32])
def test_presets_have_the_published_shapes(name, width, depth, heads, millions, patch):
    with torch.device('meta'):
        model = NaViT(name, patch_size=patch)
    arch = model.arch
    assert (arch.embed_dims, arch.num_layers, arch.num_heads) == (width, depth, heads)
    body = sum(p.numel() for p in model.parameters())
    body -= sum(p.numel() for p in model.patch_embed.parameters()) + model.position.table.numel()
    body += width * (3 * 16 * 16 + 1) + 197 * width + width  # as counted at 16, with a class token
    assert body / 1e6 == pytest.approx(millions, rel=0.01)


def test_archs_name_what_is_wrong():
    for spec, message in (
        ('huge', "arch 'huge' is not one of"),
        (dict(preset='tiny', depth=3), "no field \\['depth'\\]"),
        (dict(embed_dims=24), 'num_layers'),
        (dict(SMALL, num_heads=5), 'does not divide into 5 heads'),
        (dict(SMALL, norm='batch_norm'), "arch.norm='batch_norm'"),
        (dict(SMALL, num_classes=3), 'needs arch.pooling'),
        (dict(SMALL, pooling='token'), 'prefix_tokens'),
    ):
        with pytest.raises(ValueError, match=message):
            Arch.of(spec)
    assert Arch.of(dict(preset='tiny', qk_norm=True)) == Arch(
        **{**ARCHS['tiny'].to_dict(), 'qk_norm': True}
    )


def test_models_name_what_is_wrong():
    packed = pack(packs(pictures([(16, 16)]), patch=8))
    with pytest.raises(ValueError, match=r'\(1, 8, 8\).*\(1, 16, 16\)'):
        build('plain')(packed)
    with pytest.raises(ValueError, match='global_attn_indexes without window_size'):
        NaViT(SMALL, global_attn_indexes=(1,))
    with pytest.raises(ValueError, match='beyond the 4 blocks'):
        NaViT(SMALL, window_size=2, global_attn_indexes=(4,))
    with pytest.raises(ValueError, match="attention='flash'"):
        NaViT(SMALL, attention='flash')
    model = NaViT(SMALL).double()
    with pytest.raises(ValueError, match='no pooling'):
        model.pooled(model(pack(packs(pictures([(16, 16)])))))


@pytest.mark.parametrize(
    ('given', 'named'),
    [
        (torch.zeros(2, 3, 32, 48), r'got a tensor of shape \(2, 3, 32, 48\): .*pack_canvas'),
        ([torch.zeros(3, 32, 48)] * 4, r'got a list of 4 with a tensor of shape \(3, 32, 48\): '),
        ((), 'got nothing: '),
        (5, 'got int 5: '),
        ([[1, 2]], r'got a list of 1 with list \[1, 2\]: '),
        ('cat.jpg', "got str 'cat.jpg': "),
        ({'inputs': 1}, 'got dict '),
        ([patchify(torch.zeros(3, 16, 16), (1, 16, 16)), None], 'got a list of 2 with NoneType'),
    ],
)
def test_anything_but_packs_is_refused_with_the_call_that_makes_them(given, named):
    model = NaViT(SMALL)
    with pytest.raises(TypeError, match=named) as raised:
        model(given)
    assert 'pack([patchify(image, patch_shape) for image in images])' in str(raised.value)


def test_the_calls_that_the_refusal_names_make_packs():
    model, images = NaViT(SMALL), torch.zeros(2, 3, 32, 48)
    packed = pack([patchify(image, (1, 16, 16)) for image in images])
    canvas = pack_canvas(images, [(32, 48), (16, 20)], 16)
    assert len(model(packed).tokens) == 12
    assert len(model([canvas]).tokens) == 6 + 2
