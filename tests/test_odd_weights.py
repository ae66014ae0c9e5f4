"""Weights in unusual files: averaged, renamed, wrapped, of Flax, in parts, or of no model."""

import argparse
import gzip
import json
import math
import re

import foreign
import numpy as np
import pytest
import torch
from commands import call
from foreign import HEADS
from mmengine.runner.checkpoint import CheckpointLoader
from oracles import perturb, pictures
from safetensors.torch import save_file
from weights import WITH_CLASS, navit, timm_state

from navit_backbone import NaViT, pack, patchify
from navit_backbone.checkpoint import (
    UnsafeWeightsError,
    build,
    load_weights,
    read_checkpoint,
    read_weights,
    save_navit,
    told_by,
    weights_of,
)
from navit_backbone.families import INCEPTION
from navit_backbone.tools import convert_weights
from navit_backbone.vit import EXTRA, read_architecture

STATE = timm_state()
NAME = 'vit_tiny_patch16.pth'  # which tells the family


def answer(model, image):
    with torch.no_grad():
        output = model(pack([patchify(image, model.patch_shapes[0])]))
    return output.tokens, output.prefix


def loaded(path, **options):
    """The model that a source's weights fit, with these weights, in float64."""
    weights = read_weights(path, num_heads=3, **options)
    model = build(weights).double().eval()
    load_weights(model, weights)
    return model


def same(model, other, limit=0.0):
    for key, item in model.state_dict().items():
        assert (item.double() - other.state_dict()[key].double()).abs().max() <= limit, key


# --------------------------------------------------------------------------------------------------
# Arithmetic on checkpoints of ours


def averaged(*states):
    mean = {key: sum(s[key].double() for s in states) / len(states) for key in states[0]}
    return {key: item.float() for key, item in mean.items()}


def moving(state):
    """As a moving average in float32 leaves equal numbers: off by rounding."""
    kept = {key: item.float() for key, item in state.items()}
    for _ in range(50):
        kept = {key: 0.999 * item + 0.001 * state[key].float() for key, item in kept.items()}
    return kept


ARITHMETIC = {
    'averaged': (lambda s: averaged(s, s, s), 1e-6),
    'moving average': (moving, 1e-4),
    'float16': (lambda s: {k: v.half() for k, v in s.items()}, 1e-2),
    'bfloat16': (lambda s: {k: v.bfloat16() for k, v in s.items()}, 1e-2),
    'float64': (lambda s: {k: v.double() for k, v in s.items()}, 0.0),
}


@pytest.mark.parametrize('kind', ARITHMETIC)
def test_a_checkpoint_after_arithmetic_is_the_model(kind, tmp_path):
    change, limit = ARITHMETIC[kind]
    model = perturb(NaViT(WITH_CLASS, patch_size=16, position='factorised'), seed=1)
    state = change(model.state_dict())
    assert state[EXTRA].dtype != torch.uint8
    torch.save(
        {'state_dict': {f'backbone.vit.{k}': v for k, v in state.items()}}, tmp_path / 'a.pth'
    )
    weights = read_weights(tmp_path / 'a.pth')
    assert weights.arch == model.arch.to_dict()
    save_navit(tmp_path / 'a.safetensors', weights)
    for source in ('a.pth', 'a.safetensors'):
        other = build(read_weights(tmp_path / source))
        load_weights(other, tmp_path / source)
        same(model, other, limit)
    other = NaViT(WITH_CLASS, patch_size=16, position='factorised')
    other.load_state_dict(state)
    same(model, other, limit)


def test_an_average_of_models_that_differ_is_refused_by_name(tmp_path):
    one, two = navit(), navit(dict(WITH_CLASS, norm_eps=1e-3))
    assert len(one.state_dict()[EXTRA]) == len(two.state_dict()[EXTRA])
    state = averaged(one.state_dict(), two.state_dict())
    torch.save(state, tmp_path / 'soup.pth')
    with pytest.raises(ValueError, match=r'soup.pth: the architecture stored in it .*averaged'):
        read_weights(tmp_path / 'soup.pth')
    with pytest.raises(ValueError, match='the architecture stored in it'):
        one.load_state_dict(state)
    for value in (math.nan, -1.0, 256.0, 0.5):
        with pytest.raises(ValueError, match=r'x.pth: .*no whole numbers of 0 to 255'):
            read_architecture(torch.full((3,), value), 'x.pth')
    with pytest.raises(ValueError, match='x.pth: the architecture'):
        read_architecture(torch.tensor([49.0]), 'x.pth')  # '1', which is no description


# --------------------------------------------------------------------------------------------------
# NumPy's files of Flax: numbers held against a plain model on the arrays as they are named there


def flax(*, big=False, pooled=False, scale=0.2, width=24, hidden=40, patch=8, side=4):
    """Random arrays in Google's layout, vision_transformer's or big_vision's."""
    rng = np.random.default_rng(4)

    def draw(*shape):
        return rng.normal(0, scale, shape)

    def dense(name, *shape):
        return {f'{name}/kernel': draw(*shape), f'{name}/bias': draw(*shape[-1:])}

    def heads(name):
        state = dense(f'{name}/out', 3, width // 3, width)
        for part in ('query', 'key', 'value'):
            state[f'{name}/{part}/kernel'] = draw(width, 3, width // 3)
            state[f'{name}/{part}/bias'] = draw(3, width // 3)
        return state

    def norm(name):
        return {f'{name}/scale': 1 + draw(width), f'{name}/bias': draw(width)}

    state = dense('embedding', patch, patch, 3, width)
    if not pooled:
        state['cls'] = draw(1, 1, width)
    rows = side * side + (not big)
    state['pos_embedding' if big else 'Transformer/posembed_input/pos_embedding'] = draw(
        1, rows, width
    )
    attention, mlp, second = (0, 0, 1) if big else (1, 3, 2)
    for i in range(2):
        block = f'Transformer/encoderblock_{i}'
        state |= norm(f'{block}/LayerNorm_0') | norm(f'{block}/LayerNorm_{second}')
        state |= heads(f'{block}/MultiHeadDotProductAttention_{attention}')
        state |= dense(f'{block}/MlpBlock_{mlp}/Dense_0', width, hidden)
        state |= dense(f'{block}/MlpBlock_{mlp}/Dense_1', hidden, width)
    state |= norm('Transformer/encoder_norm')
    if pooled:
        state['MAPHead_0/probe'] = draw(1, 1, width)
        state |= heads('MAPHead_0/MultiHeadDotProductAttention_0') | norm('MAPHead_0/LayerNorm_0')
        state |= dense('MAPHead_0/MlpBlock_0/Dense_0', width, hidden)
        state |= dense('MAPHead_0/MlpBlock_0/Dense_1', hidden, width)
    return state


def flax_answer(state, image, *, big):
    """Tokens [n, D], class token and pooled vector of an image [3, h, w], by plain formulas."""
    w = {key: value.astype(np.float64) for key, value in state.items()}
    attention, mlp, second = (0, 0, 1) if big else (1, 3, 2)

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x * w[f'{name}/scale'] + w[f'{name}/bias']

    def dense(x, name):
        return x @ w[f'{name}/kernel'] + w[f'{name}/bias']

    def feed(x, name):
        x = dense(x, f'{name}/Dense_0')
        x = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return dense(x, f'{name}/Dense_1')

    def attend(x, memory, name):
        def part(values, which):
            kernel, bias = w[f'{name}/{which}/kernel'], w[f'{name}/{which}/bias']
            return np.einsum('nd,dhk->nhk', values, kernel) + bias

        q, k, v = part(x, 'query'), part(memory, 'key'), part(memory, 'value')
        scores = np.exp(np.einsum('nhk,mhk->hnm', q, k) / math.sqrt(q.shape[-1]))
        scores /= scores.sum(-1, keepdims=True)
        mixed = np.einsum('hnm,mhk->nhk', scores, v)
        return np.einsum('nhk,hkd->nd', mixed, w[f'{name}/out/kernel']) + w[f'{name}/out/bias']

    kernel = w['embedding/kernel']
    p = kernel.shape[0]
    cells = image.numpy().transpose(1, 2, 0)
    cells = cells.reshape(cells.shape[0] // p, p, cells.shape[1] // p, p, 3)
    x = np.einsum('ypxqc,pqcd->yxd', cells, kernel) + w['embedding/bias']
    x = x.reshape(-1, x.shape[-1])
    table = w['pos_embedding' if big else 'Transformer/posembed_input/pos_embedding'][0]
    if 'cls' not in w:
        x = x + table
    elif big:
        x = np.concatenate([w['cls'][0], x + table])
    else:
        x = np.concatenate([w['cls'][0], x]) + table
    for i in range(2):
        block = f'Transformer/encoderblock_{i}'
        inner = norm(x, f'{block}/LayerNorm_0')
        x = x + attend(inner, inner, f'{block}/MultiHeadDotProductAttention_{attention}')
        x = x + feed(norm(x, f'{block}/LayerNorm_{second}'), f'{block}/MlpBlock_{mlp}')
    x = norm(x, 'Transformer/encoder_norm')
    if 'cls' in w:
        return x[1:], x[0], None
    pooled = attend(w['MAPHead_0/probe'][0], x, 'MAPHead_0/MultiHeadDotProductAttention_0')
    pooled = pooled + feed(norm(pooled, 'MAPHead_0/LayerNorm_0'), 'MAPHead_0/MlpBlock_0')
    return x, None, pooled[0]


FLAX = {
    'vision_transformer': (dict(), ''),
    'vision_transformer, of an optimizer': (dict(), 'opt/target/'),
    'big_vision': (dict(big=True), 'params/'),
    'SigLIP': (dict(big=True, pooled=True), 'params/img/'),
}


@pytest.mark.parametrize('kind', FLAX)
def test_flax_weights_compute_what_they_compute_at_home(kind, tmp_path):
    options, prefix = FLAX[kind]
    state = flax(**options)
    file = tmp_path / 'model.npz'
    text = {'params/txt/Embed_0/embedding': np.ones((3, 2))} if 'img' in prefix else {}
    np.savez(file, **{f'{prefix}{key}': value for key, value in state.items()}, **text)
    weights = read_weights(file)
    assert weights.family == 'big-vision'
    assert weights.arch['num_heads'] == 3  # no width tells it, the kernels do
    assert (weights.input_mean, weights.input_std) == INCEPTION
    model = build(weights).double().eval()
    assert load_weights(model, weights).missing == ()
    (image,) = pictures([(32, 32)])
    tokens, cls, pooled = flax_answer(state, image, big=options.get('big', False))
    with torch.no_grad():
        output = model(pack([patchify(image, model.patch_shapes[0])]))
        np.testing.assert_allclose(output.tokens.numpy(), tokens, rtol=1e-9, atol=1e-9)
        if pooled is None:
            np.testing.assert_allclose(output.prefix[0, 0].numpy(), cls, rtol=1e-9, atol=1e-9)
        else:
            found = model.pooled(output)[0].numpy()
            np.testing.assert_allclose(found, pooled, rtol=1e-9, atol=1e-9)


def test_a_classifier_of_flax_is_taken_unless_a_layer_stood_before_it(tmp_path):
    state = flax()
    head = {'head/kernel': np.ones((24, 7), np.float32), 'head/bias': np.ones(7, np.float32)}
    np.savez(tmp_path / 'a.npz', **state, **head)
    assert read_weights(tmp_path / 'a.npz').arch['num_classes'] == 7
    before = {'pre_logits/kernel': np.ones((24, 24)), 'pre_logits/bias': np.ones(24)}
    np.savez(tmp_path / 'b.npz', **state, **head, **before)
    weights = read_weights(tmp_path / 'b.npz')
    assert 'num_classes' not in weights.arch
    assert 'pre_logits.kernel' in weights.left_over


def test_npz_files_run_nothing_and_keep_bfloat16(tmp_path):
    np.savez(tmp_path / 'a.npz', x=np.array([print], dtype=object))
    with pytest.raises(UnsafeWeightsError, match=r'a.npz holds arrays of Python objects'):
        read_checkpoint(tmp_path / 'a.npz')
    values = torch.tensor([[1.5, -2.0, 3.25]])
    raw = values.bfloat16().view(torch.int16).numpy().view('V2')
    np.savez(tmp_path / 'b.npz', **{'a/b': raw})
    assert torch.equal(read_checkpoint(tmp_path / 'b.npz')['a.b'], values.bfloat16())
    (tmp_path / 'c.npz').write_bytes((tmp_path / 'b.npz').read_bytes()[:60])
    with pytest.raises(ValueError, match=r'c.npz is truncated'):
        read_checkpoint(tmp_path / 'c.npz')


# --------------------------------------------------------------------------------------------------
# Names and wrappers


def test_the_content_of_a_file_decides_and_not_its_name(tmp_path):
    save_file(STATE, tmp_path / NAME)
    torch.save(STATE, tmp_path / 'vit_tiny_patch16.safetensors')
    torch.save(STATE, tmp_path / 'vit_tiny_patch16.pt', _use_new_zipfile_serialization=False)
    np.savez(tmp_path / 'vit_tiny_patch16.npz', **flax())
    (tmp_path / 'vit_tiny_patch16.npz').rename(tmp_path / 'vit_tiny_patch16.bin')
    for name in (NAME, 'vit_tiny_patch16.safetensors', 'vit_tiny_patch16.pt'):
        found = read_checkpoint(tmp_path / name)
        assert all(torch.equal(found[key], STATE[key]) for key in STATE), name
        assert read_weights(tmp_path / name).family == 'timm-vit'
        content = CheckpointLoader.load_checkpoint(str(tmp_path / name))
        content = content.get('state_dict', content)
        assert all(torch.equal(content[key], STATE[key]) for key in STATE), name
    assert read_weights(tmp_path / 'vit_tiny_patch16.bin').family == 'big-vision'
    save_navit(tmp_path / 'ours.safetensors', weights_of(navit()))
    (tmp_path / 'ours.safetensors').rename(tmp_path / 'ours.pth')
    assert told_by(tmp_path / 'ours.pth')['arch'] == navit().arch.to_dict()
    assert read_weights(tmp_path / 'ours.pth').told == 'told by its header'


WRAPPED = ['model_ema', 'ema', 'net', 'student', 'teacher', 'state_dict_ema', 'params', 'backbone']


@pytest.mark.parametrize('wrapper', WRAPPED)
@pytest.mark.parametrize('prefix', ['', 'module.', 'module._orig_mod.', '_orig_mod.backbone.'])
def test_wrappers_are_found(wrapper, prefix, tmp_path):
    state = {f'{prefix}{key}': item for key, item in STATE.items()}
    torch.save({wrapper: state, 'epoch': 3, 'optimizer': {'state': {0: STATE}}}, tmp_path / NAME)
    weights = read_weights(tmp_path / NAME)
    assert torch.equal(weights.tensors['norm.weight'], STATE['norm.weight'])
    assert set(weights.left_over) == {'epoch', 'optimizer'}


def test_parts_that_were_compiled_alone_are_found(tmp_path):
    state = {key.replace('blocks.1.', 'blocks.1._orig_mod.'): item for key, item in STATE.items()}
    torch.save(state, tmp_path / NAME)
    same(loaded(tmp_path / NAME), loaded_state(tmp_path, STATE))
    (tmp_path / 'whole.pth').write_bytes((tmp_path / NAME).read_bytes())
    content = CheckpointLoader.load_checkpoint(str(tmp_path / 'whole.pth'))
    assert set(content) == set(STATE)


def loaded_state(folder, state):
    torch.save(state, folder / 'vit_base_patch16.pth')
    return loaded(folder / 'vit_base_patch16.pth')


def other_than(state):
    return {key: item + 1 for key, item in state.items()}


def test_one_of_several_models_is_picked_by_prefix(tmp_path, monkeypatch, capsys):
    other = {f'module.{key}': item for key, item in other_than(STATE).items()}
    file = tmp_path / NAME
    torch.save({'model': STATE, 'model_ema': other, 'optimizer': {'state': {}}}, file)
    plain = read_weights(file)
    assert torch.equal(plain.tensors['norm.weight'], STATE['norm.weight'])
    assert 'model_ema holds other weights: --prefix model_ema takes those' in plain.notes
    for prefix in ('model_ema', 'model_ema.', 'model_ema.module', 'model_ema.module.'):
        weights = read_weights(file, prefix=prefix)
        assert torch.equal(weights.tensors['norm.weight'], STATE['norm.weight'] + 1), prefix
    out = tmp_path / 'out.safetensors'
    arguments = [file, out, '--num-heads', 3, '--prefix', 'model_ema']
    assert call(monkeypatch, convert_weights, *arguments) is None
    assert torch.equal(read_weights(out).tensors['norm.weight'], STATE['norm.weight'] + 1)
    with pytest.raises(ValueError, match=rf"{NAME}.* under the prefix 'ema' .it has"):
        read_weights(file, prefix='ema')


@pytest.mark.parametrize('flat', [False, True])
def test_several_models_without_a_usual_name_are_listed(flat, tmp_path):
    parts = {'student': STATE, 'momentum': other_than(STATE)}
    joined = {f'{name}.{k}': v for name, state in parts.items() for k, v in state.items()}
    torch.save(joined if flat else parts, tmp_path / NAME)
    with pytest.raises(
        ValueError, match=rf'{NAME} holds several models, under .*momentum.*student'
    ):
        read_weights(tmp_path / NAME)
    weights = read_weights(tmp_path / NAME, prefix='momentum')
    assert torch.equal(weights.tensors['norm.weight'], STATE['norm.weight'] + 1)


def test_the_beginning_of_a_prefix_is_enough_where_it_tells_one(tmp_path):
    names = ('student.encoder.', 'teacher.encoder.')
    torch.save({f'{n}{k}': v for n in names for k, v in STATE.items()}, tmp_path / NAME)
    assert 'norm.weight' in read_weights(tmp_path / NAME, prefix='teacher').tensors


def test_arguments_of_a_script_may_lie_beside_the_weights(tmp_path):
    torch.save({'model': STATE, 'args': argparse.Namespace(lr=1, data=None)}, tmp_path / NAME)
    assert read_weights(tmp_path / NAME).left_over == ('args',)


# --------------------------------------------------------------------------------------------------
# Refused in a sentence that names the source, the cause and the fix


def shard(folder):
    save_file(STATE, folder / 'model-00001-of-00003.safetensors')
    return folder / 'model-00001-of-00003.safetensors'


def of(content, name=NAME):
    def write(folder):
        (save_file if name.endswith('.safetensors') else torch.save)(content, folder / name)
        return folder / name

    return write


def raw(content, name):
    def write(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return write


def changed(change, keys='fc1.weight'):
    return {key: change(item) if keys in key else item for key, item in STATE.items()}


def quantised(item):
    return torch.quantize_per_tensor(item, 0.1, 0, torch.qint8)


LORA = {'base_model.model.blocks.0.attn.qkv.lora_A.weight': torch.ones(4, 24)}
VIDEO_MAE = STATE | {'blocks.0.attn.q_bias': torch.ones(24), 'blocks.0.attn.v_bias': torch.ones(24)}
REFUSALS = {
    'an adapter': (of(LORA, 'adapter_model.safetensors'), r'it is an adapter.*merge'),
    'an adapter beside its base': (of(STATE | LORA), r'an adapter .LoRA.*merge_and_unload'),
    'one shard': (shard, r'is shard 1 of 3.*give the folder with all of them'),
    'VideoMAE': (of(VIDEO_MAE), r'q_bias: it is VideoMAE, BEiT or EVA.*another family'),
    'a hybrid': (of({'conv_root.kernel': torch.ones(7, 7, 3, 64)}), r'hybrid.*take a plain ViT'),
    'scanned blocks': (
        of({'params.Transformer.encoderblock.LayerNorm_0.scale': torch.ones(2, 4)}),
        r'all blocks in one array .*encoderblock_0',
    ),
    'sparse': (of(changed(torch.Tensor.to_sparse)), r'a tensor that is sparse: .*dense'),
    'quantised': (of(changed(quantised)), r'fc1.weight, a tensor that is quantised: .*before'),
    '8 bits': (of(changed(lambda t: t.to(torch.float8_e4m3fn))), r'is quantised: .*before'),
    'no values': (of(changed(lambda t: t.to('meta'))), r'fc1.weight, .*on the meta device'),
    'gzip': (raw(gzip.compress(b'x' * 99), NAME), r'is a gzip archive.*unpack it'),
    'Keras': (raw(b'\x89HDF\r\n\x1a\n' + bytes(99), NAME), r'an HDF5 file.*PyTorch or safetensors'),
    'GGUF': (raw(b'GGUF' + bytes(99), NAME), r'is a GGUF file of quantised weights'),
    'positions of another width': (
        of(STATE | {'pos_embed': torch.ones(1, 26, 25)}),
        r'pos_embed has the shape \(1, 26, 25\).*24',
    ),
    'no patch embedding': (
        of({k: v for k, v in STATE.items() if 'patch_embed' not in k}), r'is of no known family',
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', REFUSALS)
def test_refused_by_source_cause_and_fix(case, tmp_path, monkeypatch):
    write, message = REFUSALS[case]
    path = write(tmp_path)
    with pytest.raises(ValueError, match='(?s)' + message) as caught:
        read_weights(path)
    assert str(caught.value).startswith(str(path))
    out = tmp_path / 'out.safetensors'
    told = call(monkeypatch, convert_weights, path, out)
    assert told == f'error: {caught.value}'
    assert not out.exists()


def test_refusals_while_writing_name_the_source(tmp_path, monkeypatch):
    state = {key: item for key, item in STATE.items() if not key.startswith('norm.')}
    torch.save(state, tmp_path / NAME)
    out = tmp_path / 'out.safetensors'
    told = call(monkeypatch, convert_weights, tmp_path / NAME, out, '--num-heads', 3)
    assert str(tmp_path / NAME) in told
    assert str(out) not in told
    torch.save(timm_state(dim=26), tmp_path / NAME)
    told = call(monkeypatch, convert_weights, tmp_path / NAME, out)
    assert re.search(rf'{NAME}: no tensor tells the number of heads, and width 26', told)


# --------------------------------------------------------------------------------------------------
# Read after all


def test_an_index_is_read_as_its_folder(tmp_path):
    keys = sorted(STATE)
    names = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    for name, part in zip(names, (keys[:9], keys[9:]), strict=True):
        save_file({key: STATE[key] for key in part}, tmp_path / name)
    listed = {key: names[i >= 9] for i, key in enumerate(keys)}
    index = tmp_path / 'model.safetensors.index.json'
    index.write_text(json.dumps({'weight_map': listed}))
    weights = read_weights(index, family='timm-vit')
    assert torch.equal(weights.tensors['norm.weight'], STATE['norm.weight'])
    assert len(weights.tensors) == len(read_weights(tmp_path, family='timm-vit').tensors)


@pytest.mark.parametrize('layout', [(1, 5, 5, 24), (1, 24, 5, 5)])
def test_positions_of_four_dimensions(layout, tmp_path):
    table = STATE['pos_embed'][:, 1:].reshape(1, 5, 5, 24)
    four = table if layout[1] == 5 else table.permute(0, 3, 1, 2)
    assert four.shape == layout
    torch.save(STATE | {'pos_embed': four}, tmp_path / NAME)
    flat = STATE | {'pos_embed': STATE['pos_embed'][:, 1:]}
    same(loaded(tmp_path / NAME), loaded_state(tmp_path, flat))


@pytest.mark.parametrize(
    ('name', 'family'), [('exported_last.pt', 'dinov2'), ('dinov2_vits14_pretrain.pth', 'auto')]
)
def test_dinov2_without_its_mask_token(name, family, tmp_path):
    case = foreign.dinov2()
    state = {key: item for key, item in case.state.items() if key != 'mask_token'}
    torch.save(state, tmp_path / name)
    weights = read_weights(tmp_path / name, family=family, num_heads=HEADS)
    assert weights.family == 'dinov2'
    model = build(weights).double().eval()
    load_weights(model, weights)
    (image,) = pictures([(3 * 14, 5 * 14)])
    expected = case.answer(image)
    tokens, prefix = answer(model, image)
    assert (tokens - expected.tokens).abs().max() < 1e-6
    assert (prefix[0] - expected.prefix).abs().max() < 1e-6
