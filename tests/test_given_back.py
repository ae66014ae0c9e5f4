"""Weights that go out again: the same tensors, the same answers, in models that others load."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import foreign
import plain_models
import pytest
import torch
from commands import call
from foreign import GRID, HEADS, HIDDEN, PATCH, D
from oracles import perturb, pictures
from safetensors import safe_open
from safetensors.torch import load_file
from weights import layer, timm_state

from navit_backbone import NaViT, outbound, pack, patchify
from navit_backbone.checkpoint import build, load_weights, read_weights, save_navit, weights_of
from navit_backbone.conversion import convert
from navit_backbone.families import CLIP, FAMILIES, IMAGENET
from navit_backbone.outbound import write_for
from navit_backbone.position import Learned1DPosition
from navit_backbone.tools import convert_weights

PLAIN = dict(
    embed_dims=D, num_layers=2, num_heads=HEADS, feedforward_channels=HIDDEN, prefix_tokens=1
)
TABLE = dict(kind='learned_1d', grid=(GRID, GRID))
HF_TABLE = TABLE | dict(antialias=False)
DINO = PLAIN | dict(layer_scale=0.1, feedforward_channels=2 * D)
DINO3 = DINO | dict(norm_eps=1e-5, rope=dict(kind='normalised', theta=100.0))
REGISTERS = dict(prefix_tokens=5, registers=4)
CLIP_ARCH = PLAIN | dict(norm_eps=1e-5, pre_norm=True, mlp='quick_gelu')
SIGLIP = PLAIN | dict(prefix_tokens=0, mlp='gelu_tanh')
QK_NORM = dict(kind='head_layer_norm', bias=True)


class Case(NamedTuple):
    """A model of ours, and what it is elsewhere."""

    model: str
    family: str
    arch: dict[str, Any]
    position: Any = TABLE
    exact: bool = True  # float64 throughout there; else float32 inside


TIMM = {
    'plain': Case('VisionTransformer', 'timm-vit', PLAIN),
    'distilled': Case('VisionTransformerDistilled', 'timm-vit', PLAIN | dict(prefix_tokens=2)),
    'registers': Case('VisionTransformer', 'timm-vit', PLAIN | REGISTERS),
    'registers alone': Case(
        'VisionTransformer', 'timm-vit', PLAIN | dict(prefix_tokens=4, registers=4)
    ),
    'no token': Case('VisionTransformer', 'timm-vit', PLAIN | dict(prefix_tokens=0)),
    'layer scale': Case('VisionTransformer', 'timm-vit', PLAIN | dict(layer_scale=0.1)),
    'qk norm': Case('VisionTransformer', 'timm-vit', PLAIN | dict(qk_norm=QK_NORM)),
    'pre-norm': Case('VisionTransformer', 'timm-vit', PLAIN | dict(pre_norm=True)),
    'no qkv bias': Case('VisionTransformer', 'timm-vit', PLAIN | dict(qkv_bias=False)),
    'classifier': Case(
        'VisionTransformer', 'timm-vit', PLAIN | dict(pooling='token', num_classes=7)
    ),
    'mean': Case(
        'VisionTransformer',
        'timm-vit',
        PLAIN | dict(prefix_tokens=0, pooling='mean', num_classes=7),
    ),
}
HF = {
    'vit': Case('ViTModel', 'hf-vit', PLAIN | dict(norm_eps=1e-12), HF_TABLE),
    'vit without bias': Case(
        'ViTModel', 'hf-vit', PLAIN | dict(norm_eps=1e-12, qkv_bias=False), HF_TABLE
    ),
    'deit': Case('DeiTModel', 'hf-vit', PLAIN | dict(norm_eps=1e-12, prefix_tokens=2), HF_TABLE),
    'dinov2': Case('Dinov2Model', 'hf-dinov2', DINO, HF_TABLE),
    'dinov2 swiglu': Case(
        'Dinov2Model', 'hf-dinov2', DINO | dict(mlp='swiglu', feedforward_channels=88), HF_TABLE
    ),
    'dinov2 registers': Case('Dinov2WithRegistersModel', 'hf-dinov2-reg', DINO | REGISTERS),
    'dinov3': Case('DINOv3ViTModel', 'hf-dinov3', DINO3 | REGISTERS, None, False),
    'dinov3 swiglu': Case('DINOv3ViTModel', 'hf-dinov3', DINO3 | dict(mlp='swiglu'), None, False),
    'dinov3 without bias': Case(
        'DINOv3ViTModel', 'hf-dinov3', DINO3 | dict(qkv_bias=False), None, False
    ),
    'clip': Case('CLIPVisionModel', 'hf-clip', CLIP_ARCH, HF_TABLE),
    'siglip2': Case(
        'Siglip2VisionModel',
        'hf-siglip2',
        SIGLIP | dict(pooling='map'),
        TABLE | dict(interpolation='bilinear'),
        False,
    ),
    'siglip2 without head': Case(
        'Siglip2VisionModel', 'hf-siglip2', SIGLIP, TABLE | dict(interpolation='bilinear'), False
    ),
}
CASES = {f'timm {name}': ('timm', case) for name, case in TIMM.items()}
CASES |= {f'hf {name}': ('hf', case) for name, case in HF.items()}


def model_of(arch, position=TABLE, **options):
    torch.manual_seed(0)
    model = NaViT(arch, **{'patch_size': PATCH, 'position': position, **options})
    return perturb(model.double().eval(), seed=1, scale=0.2)


def known(model):
    return weights_of(model, input_mean=IMAGENET[0], input_std=IMAGENET[1])


def without_folds(model, case):
    """The model, with zeros where their model has no parameter."""
    with torch.no_grad():
        if case.arch.get('pre_norm'):
            model.patch_embed[f'1x{PATCH}x{PATCH}'].bias.zero_()
        if case.model == 'DINOv3ViTModel' and case.arch.get('qkv_bias', True):
            for block in model.blocks:
                block.attn.qkv.bias[D : 2 * D] = 0
    return model


def write(target, out, weights, **options):
    path = out / 'model.safetensors' if target == 'timm' else out / 'folder'
    written = write_for(target, path, weights, **options)
    return written, load_file(path if target == 'timm' else path / 'model.safetensors')


def answers(model, sizes=((GRID * PATCH, GRID * PATCH),)):
    images = pictures(sizes)
    packed = pack([patchify(image, (1, PATCH, PATCH)) for image in images])
    with torch.no_grad():
        out = model(packed)
        return images, out, model.pooled(out) if model.pool else None


def close(got, expected, limit):
    assert got.shape == expected.shape
    if expected.numel():
        error = (got - expected).abs().max() / expected.abs().max()
        assert error < limit, f'relative error {error:.1e}'


# --------------------------------------------------------------------------------------------------
# There and back


@pytest.mark.parametrize('name', CASES)
def test_ours_to_theirs_to_ours_is_exact(name, tmp_path):
    target, case = CASES[name]
    model = without_folds(model_of(case.arch, case.position), case)
    written, tensors = write(target, tmp_path, known(model))
    assert written.model.endswith(case.model)
    back = convert(tensors, family=case.family, num_heads=HEADS)
    own = known(model).tensors
    dropped = set(own) - set(back.tensors)
    assert dropped == set(written.left_out) == set()
    assert set(back.tensors) == set(own)
    for key, tensor in own.items():
        assert torch.equal(back.tensors[key], tensor), key
    again = build(back)
    load_weights(again, back)
    here, there = model.arch, again.arch
    assert replace(there, layer_scale=here.layer_scale) == here
    table = case.position and Learned1DPosition(D, **{k: v for k, v in case.position.items()
                                                      if k != 'kind'})  # fmt: skip
    if table:
        assert again.position.antialias == table.antialias
        assert again.position.interpolation == table.interpolation


@pytest.mark.parametrize('changes', [{}, dict(norm_eps=3e-6), dict(mlp='gelu_tanh')], ids=str)
@pytest.mark.parametrize('name', HF)
def test_a_folder_tells_its_whole_architecture(name, changes, tmp_path):
    case = HF[name]
    if 'swiglu' in name and 'mlp' in changes:
        pytest.skip('its activation is that of the gate')
    model = model_of(case.arch | changes, case.position)
    written, _ = write('hf', tmp_path, known(model))
    back = read_weights(written.path)
    again = build(back)
    assert replace(again.arch, layer_scale=model.arch.layer_scale) == model.arch
    assert (back.input_mean, back.input_std) == IMAGENET
    if case.position:
        assert again.position.grid == model.position.grid


MASK = {'embeddings.mask_token'}
CLASS = {'embeddings.cls_token', 'embeddings.position_embeddings'}
THEIRS = {  # and the tensors that are folded or not kept, as the report says
    'hf-vit': (foreign.hf_vit, CLASS | {'pooler.dense.weight', 'pooler.dense.bias'}),
    'hf-dinov2': (foreign.hf_dinov2, CLASS | MASK),
    'hf-dinov2 swiglu': (lambda folder: foreign.hf_dinov2(folder, swiglu=True), CLASS | MASK),
    'hf-dinov2-reg': (foreign.hf_dinov2_reg, CLASS | MASK),
    'hf-dinov3': (foreign.hf_dinov3, MASK),
    'hf-dinov3 swiglu': (lambda folder: foreign.hf_dinov3(folder, swiglu=True), MASK),
    'hf-clip': (
        foreign.hf_clip,
        {'embeddings.class_embedding', 'embeddings.position_embedding.weight'},
    ),
    'hf-siglip2': (foreign.hf_siglip2, set()),
    'timm': (lambda folder: of_timm(), {'cls_token', 'pos_embed'}),
    'timm distilled': (
        lambda folder: of_timm(tokens=('cls_token', 'dist_token')),
        {'cls_token', 'dist_token', 'pos_embed'},
    ),
    'timm classifier': (
        lambda folder: of_timm(**layer('head', torch.randn(7, D), torch.randn(7))),
        {'cls_token', 'pos_embed'},
    ),
    'timm layer scale': (lambda folder: foreign.deit3(), {'pos_embed'}),
    'timm registers': (lambda folder: foreign.deit3(registers=4), set()),
    'timm qk norm': (lambda folder: foreign.deit3(qk_norm=True), {'pos_embed'}),
}


def of_timm(**options):
    state = timm_state(dim=D, hidden=HIDDEN, patch=PATCH, grid=GRID, **options)
    return foreign.Foreign(state, None, dict(family='timm-vit'))


@pytest.mark.parametrize('name', THEIRS)
def test_theirs_to_ours_to_theirs_is_exact_but_for_what_the_report_names(name, tmp_path):
    if name.startswith('hf'):
        pytest.importorskip('transformers')
    make, folded = THEIRS[name]
    (tmp_path / 'theirs').mkdir()
    theirs = make(tmp_path / 'theirs')
    weights = convert(theirs.state, num_heads=HEADS, **theirs.options)
    written, tensors = write('timm' if name.startswith('timm') else 'hf', tmp_path, weights)
    assert set(tensors) - set(theirs.state) == set()
    differing = {
        key
        for key, item in theirs.state.items()
        if key not in tensors or not torch.equal(tensors[key], item)
    }
    assert differing == folded
    told = ' '.join([*written.notes, *weights.left_over])
    assert all(key in told for key in folded)
    tokens = {'embeddings.cls_token', 'cls_token', 'dist_token'}
    prefix = 'embeddings.' if name.startswith('hf') else ''
    if f'{prefix}cls_token' in folded:
        (table,) = (key for key in folded if 'pos' in key)
        count = len(folded & tokens)
        token = theirs.state[f'{prefix}cls_token'][0, 0] + theirs.state[table][0, 0]
        assert torch.equal(tensors[f'{prefix}cls_token'][0, 0], token)
        assert torch.equal(tensors[table][:, count:], theirs.state[table][:, count:])
        assert not tensors[table][:, :count].any()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize('name', ['timm plain', 'hf dinov2', 'hf siglip2'])
def test_precision_is_kept(name, dtype, tmp_path):
    target, case = CASES[name]
    model = model_of(case.arch, case.position).to(dtype)
    written, tensors = write(target, tmp_path, known(model))
    assert {item.dtype for item in tensors.values()} == {dtype}
    if target == 'hf':
        assert written.arguments['dtype'] == str(dtype).removeprefix('torch.')
    back = convert(tensors, family=case.family, num_heads=HEADS)
    for key, tensor in known(model).tensors.items():
        assert torch.equal(back.tensors[key], tensor), key


# --------------------------------------------------------------------------------------------------
# What the models of others make of it


def timm_answer(state, image, arguments):
    """timm's VisionTransformer at its own size, by plain maths and the arguments it is built by."""
    tensors = plain_models.State(state)
    patches, grid = plain_models.cut(image, arguments['patch_size'])
    assert grid == (arguments['img_size'] // arguments['patch_size'],) * 2
    x = torch.einsum('nchw,dchw->nd', patches, tensors['patch_embed.proj.weight'])
    assert (tensors.get('patch_embed.proj.bias') is None) == arguments['pre_norm']
    if not arguments['pre_norm']:
        x = x + tensors['patch_embed.proj.bias']
    tokens = [state[key][0] for key in ('cls_token', 'dist_token') if key in state]
    assert ('cls_token' in state) == arguments.get('class_token', True)
    registers = [state['reg_token'][0]] if arguments['reg_tokens'] else []
    if arguments.get('no_embed_class', False):
        x = torch.cat([*tokens, *registers, x + state['pos_embed'][0]])
    else:
        assert not (registers and tokens), 'rows of registers are not written'
        x = torch.cat([*tokens, *registers, x]) + state['pos_embed'][0]
    if arguments['pre_norm']:
        x = tensors.layer_norm('norm_pre', x, 1e-6)
    x = plain_models.timm_blocks(tensors, x, arguments['num_heads'])
    count = len(tokens) + arguments['reg_tokens']
    logits = None
    if arguments['num_classes']:
        assert arguments['fc_norm'] is False, 'None is a norm after the mean'
        pooled = x[0] if arguments['global_pool'] == 'token' else x[count:].mean(0)
        logits = tensors.linear('head', pooled)
    return x[count:], x[:count], logits


@pytest.mark.parametrize('name', TIMM)
def test_timm_computes_the_same(name, tmp_path):
    case = TIMM[name]
    model = model_of(case.arch, case.position)
    written, state = write('timm', tmp_path, known(model))
    (image,), out, _ = answers(model)
    tokens, prefix, logits = timm_answer(state, image, written.arguments)
    close(tokens, out.tokens, 1e-12)
    close(prefix, out.prefix[0], 1e-12)
    if logits is not None:
        close(logits, model.classify(out)[0].detach(), 1e-12)
    arguments = written.arguments
    assert int(arguments['embed_dim'] * arguments['mlp_ratio']) == HIDDEN
    with safe_open(written.path, 'pt') as file:
        assert json.loads(file.metadata()['timm']) == dict(arguments)


@pytest.mark.parametrize('name', HF)
def test_transformers_loads_and_computes_the_same(name, tmp_path):
    transformers = pytest.importorskip('transformers')
    case = HF[name]
    model = model_of(case.arch, case.position)  # CLIP with a patch bias, DINOv3 with one of keys
    written, _ = write('hf', tmp_path, known(model))
    options = dict(add_pooling_layer=False) if 'add_pooling_layer' in written.use else {}
    theirs, info = transformers.AutoModel.from_pretrained(
        written.path, output_loading_info=True, **options
    )
    assert not any(info.values()), info
    assert type(theirs).__name__ == case.model
    assert next(theirs.parameters()).dtype == torch.float64
    (image,), out, pooled = answers(model)
    limit = 1e-12 if case.exact else 1e-6  # RoPE, and SigLIP's table, are float32 inside there
    given = dict(pixel_values=image[None])
    if case.model == 'Siglip2VisionModel':
        patches, grid = plain_models.cut(image, PATCH)
        given = dict(
            pixel_values=patches.permute(0, 2, 3, 1).flatten(1)[None],
            pixel_attention_mask=torch.ones(1, len(patches), dtype=torch.int32),
            spatial_shapes=torch.tensor([grid]),
        )
    with torch.no_grad():
        answer = theirs.eval()(**given)
        hidden = answer.last_hidden_state[0]
        if case.model == 'CLIPVisionModel':
            hidden = theirs.post_layernorm(hidden)
    count = case.arch['prefix_tokens']
    close(hidden[count:], out.tokens, limit)
    close(hidden[:count], out.prefix[0], limit)
    if pooled is not None:
        close(answer.pooler_output, pooled, limit)


def test_a_width_that_no_quotient_gives_is_built_all_the_same(tmp_path):
    # 488 / 112 * 112 is less than 488 in floating point, and timm cuts to whole numbers
    arch = PLAIN | dict(embed_dims=112, feedforward_channels=488)
    written, _ = write('timm', tmp_path, known(model_of(arch)))
    assert int(112 * written.arguments['mlp_ratio']) == 488


def test_images_are_prepared_as_the_weights_know_it(tmp_path):
    transformers = pytest.importorskip('transformers')
    for name in ('vit', 'siglip2', 'dinov3'):
        case = HF[name]
        (tmp_path / name).mkdir()
        written, _ = write('hf', tmp_path / name, known(model_of(case.arch, case.position)))
        prepared = transformers.AutoImageProcessor.from_pretrained(written.path)
        assert list(prepared.image_mean) == list(IMAGENET[0])
        assert list(prepared.image_std) == list(IMAGENET[1])
    written, _ = write('hf', tmp_path, weights_of(model_of(PLAIN)))
    assert sorted(os.listdir(written.path)) == ['config.json', 'model.safetensors']
    assert 'nothing tells the mean and std' in str(written)


@pytest.mark.parametrize('name', ['timm pre-norm', 'hf clip'])
def test_patch_bias_is_folded_where_theirs_has_none(name, tmp_path):
    target, case = CASES[name]
    model = model_of(case.arch, case.position)
    written, tensors = write(target, tmp_path, known(model))
    assert f'patch_embed.1x{PATCH}x{PATCH}.bias' in ' '.join(written.notes)
    back = convert(tensors, family=case.family, num_heads=HEADS)
    again = build(back).double().eval()
    load_weights(again, back)
    sizes = [(h * PATCH, w * PATCH) for h, w in ((GRID, GRID), (3, 7), (1, 6), (9, 2))]
    close(answers(again, sizes)[1].tokens, answers(model, sizes)[1].tokens, 1e-12)


def test_bias_of_keys_is_written_where_it_was_trained(tmp_path):
    case = HF['dinov3']
    model = model_of(case.arch, None)
    written, tensors = write('hf', tmp_path, known(model))
    assert written.arguments['key_bias']
    back = convert(tensors, family='hf-dinov3', num_heads=HEADS)
    for key, tensor in known(model).tensors.items():
        assert torch.equal(back.tensors[key], tensor), key
    (tmp_path / 'zero').mkdir()
    written, tensors = write('hf', tmp_path / 'zero', known(without_folds(model, case)))
    assert not written.arguments['key_bias']
    assert not any('k_proj.bias' in key for key in tensors)


def test_another_rule_of_interpolation_is_told(tmp_path):
    for position, expected in ((TABLE, True), (HF_TABLE, False)):
        out = tmp_path / str(expected)
        out.mkdir()
        written, _ = write('hf', out, known(model_of(PLAIN, position)))
        assert (
            any('by antialias=False; these weights by antialias=True' in n for n in written.notes)
            == expected
        )
        told = f'the same at {GRID} x {GRID} patches only'
        assert (told in str(written)) == expected


def test_classifier_without_a_place_is_told(tmp_path):
    model = model_of(PLAIN | dict(pooling='token', num_classes=7), HF_TABLE)
    written, _ = write('hf', tmp_path, known(model))
    assert written.left_out == ('classifier.weight', 'classifier.bias')
    assert 'left out: classifier.weight' in str(written)


# --------------------------------------------------------------------------------------------------
# What is refused

UNIVITAR = dict(
    preset='univitar_0.3b', embed_dims=D, num_layers=2, num_heads=HEADS, feedforward_channels=HIDDEN
)
MOONVIT = SIGLIP | dict(rope=dict(kind='integer', layout='interleaved'), norm_eps=1e-5)
REFUSED = {
    'univitar': ('hf', UNIVITAR, None, {}, "arch.norm: 'rms_norm' here, 'layer_norm' there"),
    'moonvit': ('hf', MOONVIT, HF_TABLE, {}, "arch.rope: 'kind=integer, layout=interleaved"),
    'factorised': ('hf', PLAIN, 'factorised', {}, "position: 'factorised' here, 'learned_1d'"),
    'factorised, timm': ('timm', PLAIN, 'factorised', {}, "position: 'factorised' here"),
    'tubelets': ('hf', PLAIN, TABLE, dict(patch_size=(2, 14, 14)), 'patch_size: .*2, 14, 14'),
    'time': ('hf', PLAIN, TABLE, dict(temporal_position=dict(max_size=4)), 'temporal_position'),
    'wide table': ('timm', PLAIN, TABLE | dict(grid=(3, 5)), {}, "position.grid: '3 x 5' here"),
    'no class token': (
        'hf', SIGLIP | dict(layer_scale=0.1), TABLE, {}, "layer_scale: 'one' here, 'none' there",
    ),
    'width': (
        'hf', DINO | dict(feedforward_channels=50), TABLE, {}, 'feedforward_channels: 50 here',
    ),
    'eps': (
        'timm', PLAIN | dict(norm_eps=1e-12), TABLE, {}, r'norm_eps: 1e-12 here.*\n.*--to hf',
    ),
    'quick gelu': ('timm', CLIP_ARCH, TABLE, {}, 'write it for CLIPVisionModel .--to hf.'),
    'map': ('timm', SIGLIP | dict(mlp='gelu', pooling='map'), TABLE, {}, "arch.pooling: 'map'"),
    'registers': ('hf', PLAIN | REGISTERS, TABLE, {}, 'VisionTransformer .--to timm.'),
    'norm': ('hf', PLAIN | dict(final_norm=False), TABLE, {}, 'final_norm: False here, True'),
}  # fmt: skip


@pytest.mark.parametrize('name', REFUSED)
def test_what_no_model_there_computes_is_refused_by_name(name, tmp_path):
    target, arch, position, options, told = REFUSED[name]
    model = NaViT(arch, **{'patch_size': PATCH, 'position': position, **options})
    with pytest.raises(ValueError, match=f'(?s){told}'):
        write(target, tmp_path, known(model))
    assert not os.listdir(tmp_path)


@pytest.fixture
def weights():
    return known(model_of(PLAIN, HF_TABLE))


def test_what_is_there_is_left_alone(weights, tmp_path):
    for target in ('timm', 'hf'):
        _, first = write(target, tmp_path, weights)
        with pytest.raises(ValueError, match='exists: give another name, or overwrite it'):
            write(target, tmp_path, weights)
        _, again = write(target, tmp_path, weights, overwrite=True)
        assert all(torch.equal(first[key], again[key]) for key in first)
    assert sorted(os.listdir(tmp_path)) == ['folder', 'model.safetensors']
    (tmp_path / 'folder/notes.md').write_text('mine')
    with pytest.raises(ValueError, match='notes.md'):
        write('hf', tmp_path, weights, overwrite=True)
    assert (tmp_path / 'folder/notes.md').read_text() == 'mine'


def test_a_folder_is_written_whole_or_not_at_all(weights, tmp_path, monkeypatch):
    _, first = write('hf', tmp_path, weights)

    def full(*args, **options):
        raise OSError('no space left')

    monkeypatch.setattr(outbound, 'write_sealed', full)
    with pytest.raises(OSError, match='no space'):
        write_for('hf', tmp_path / 'folder', weights, overwrite=True)
    assert os.listdir(tmp_path) == ['folder']
    assert load_file(tmp_path / 'folder/model.safetensors').keys() == first.keys()


def test_the_old_folder_comes_back_where_the_new_one_cannot_take_its_place(
    weights, tmp_path, monkeypatch
):
    _, first = write('hf', tmp_path, weights)
    rename = Path.replace

    def failing(path, target):
        if path.name.endswith('.part') and path.is_dir():
            raise OSError('busy')
        return rename(path, target)

    monkeypatch.setattr(Path, 'replace', failing)
    with pytest.raises(OSError, match='busy'):
        write_for('hf', tmp_path / 'folder', weights, overwrite=True)
    assert os.listdir(tmp_path) == ['folder']
    assert load_file(tmp_path / 'folder/model.safetensors').keys() == first.keys()


@pytest.mark.parametrize(('target', 'name'), [('timm', 'out'), ('hf', 'out.safetensors')])
def test_a_name_says_what_is_written(target, name, weights, tmp_path):
    with pytest.raises(ValueError, match='takes a f'):
        write_for(target, tmp_path / name, weights)


# --------------------------------------------------------------------------------------------------
# The command


def test_a_trained_checkpoint_goes_out(tmp_path, monkeypatch, capsys):
    model = model_of(PLAIN, HF_TABLE)
    state = {f'backbone.vit.{key}': item for key, item in model.state_dict().items()}
    file = tmp_path / 'epoch_3.pth'
    torch.save({'state_dict': state | {'head.weight': torch.ones(3)}, 'meta': {}}, file)
    for target, out in (('timm', tmp_path / 'out.safetensors'), ('hf', tmp_path / 'out')):
        assert call(monkeypatch, convert_weights, file, out, '--to', target) is None
        told = capsys.readouterr().out
        assert str(out) in told
        assert 'patch_size=14' in told
        assert 'left over: head.weight' in told
        assert f'num_heads={HEADS}' in told or f'num_attention_heads={HEADS}' in told
        tensors = load_file(out / 'model.safetensors' if target == 'hf' else out)
        family = 'hf-vit' if target == 'hf' else 'timm-vit'
        back = convert(tensors, family=family, num_heads=HEADS)
        for key, tensor in known(model).tensors.items():
            assert torch.equal(back.tensors[key], tensor), key
    assert 'exists' in call(monkeypatch, convert_weights, file, tmp_path / 'out', '--to', 'hf')
    told = call(monkeypatch, convert_weights, file, tmp_path, '--to', 'hf', '--overwrite')
    assert 'holds the source' in told
    assert file.exists()


def test_a_file_of_ours_goes_out_with_its_input(tmp_path, monkeypatch):
    case = HF['clip']
    model = model_of(case.arch, case.position)
    save_navit(tmp_path / 'a.safetensors', weights_of(model, input_mean=CLIP[0], input_std=CLIP[1]))
    out = tmp_path / 'clip'
    assert call(monkeypatch, convert_weights, tmp_path / 'a.safetensors', out, '--to', 'hf') is None
    prepared = json.loads((out / 'preprocessor_config.json').read_text())
    assert prepared['image_mean'] == list(CLIP[0])
    assert read_weights(out / 'model.safetensors', family='hf-clip').input_mean == CLIP[0]


def test_every_home_is_tried():
    tried = {case.family for _, case in CASES.values()}
    homes = {home.family for homes in outbound.HOMES.values() for home in homes}
    assert homes == tried <= set(FAMILIES)
    models = {home.model.split('.')[-1] for homes in outbound.HOMES.values() for home in homes}
    assert models == {case.model for _, case in CASES.values()}
