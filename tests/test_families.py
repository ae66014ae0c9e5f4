"""Every family of public weights computes here what it computes at home."""

import foreign
import pytest
import torch
from foreign import GRID, HEADS, PATCH, D
from oracles import pictures

from navit_backbone import pack, patchify
from navit_backbone.checkpoint import build, load_weights, read_weights, save_navit
from navit_backbone.conversion import convert
from navit_backbone.families import CLIP, FAMILIES, IMAGENET, INCEPTION, SATELLITE
from navit_backbone.recognition import find_tensors

NEEDS_FOLDER = {  # those that transformers writes to files
    'hf-vit': foreign.hf_vit,
    'hf-mae': foreign.hf_mae,
    'hf-dinov2': foreign.hf_dinov2,
    'hf-dinov2 swiglu': lambda folder: foreign.hf_dinov2(folder, swiglu=True),
    'hf-dinov2-reg': foreign.hf_dinov2_reg,
    'hf-dinov3': foreign.hf_dinov3,
    'hf-dinov3 swiglu': lambda folder: foreign.hf_dinov3(folder, swiglu=True),
    'hf-clip': foreign.hf_clip,
    'hf-open-clip': lambda folder: foreign.hf_clip(folder, act='gelu'),
    'hf-siglip2': foreign.hf_siglip2,
    'dinov3': foreign.dinov3,
    'dinov3 swiglu': lambda folder: foreign.dinov3(folder, swiglu=True),
    'dinov3 mask never filled': lambda folder: foreign.dinov3(
        folder, mask=torch.full((3 * D,), torch.nan)
    ),
    'clip': foreign.clip,
    'open-clip': lambda folder: foreign.clip(folder, act='gelu'),
}
PLAIN = {
    'deit3': foreign.deit3,
    'timm-clip': foreign.timm_clip,
    'timm-clip-quickgelu': lambda: foreign.timm_clip(quick=True),
    'timm registers': lambda: foreign.deit3(registers=4),
    'timm qk norm': lambda: foreign.deit3(qk_norm=True),
    'naflexvit': foreign.naflexvit,
    'naflexvit tokens': lambda: foreign.naflexvit(tokens=True),
    'naflexvit-par': lambda: foreign.naflexvit('par'),
    'naflexvit-fac': lambda: foreign.naflexvit('fac'),
    'naflexvit-parfac': lambda: foreign.naflexvit('parfac'),
    'naflexvit-siglip': lambda: foreign.naflexvit('siglip'),
    'dino': foreign.dino,
    'dinov2': foreign.dinov2,
    'dinov2 swiglu': lambda: foreign.dinov2(swiglu=True),
    'dinov2 chunked': lambda: foreign.dinov2(chunked=True),
    'dinov2-reg': lambda: foreign.dinov2(registers=4),
    'univitar': foreign.univitar,
    'moonvit': foreign.moonvit,
    'mmpretrain': foreign.mmpretrain,
    'mmpretrain swiglu': lambda: foreign.mmpretrain(swiglu=True),
    'mmpretrain pre-norm': lambda: foreign.mmpretrain(pre_norm=True),
    'mmpretrain-clip': lambda: foreign.mmpretrain(pre_norm=True, quick=True),
    'mmseg': foreign.mmseg,
    'mmseg-setr': lambda: foreign.mmseg('bilinear'),
}
# its own size, one side of it, h != w, one row, one column, one patch, larger, prime sides
GRIDS = [(GRID, GRID), (GRID, 9), (3, 7), (1, 6), (5, 1), (1, 1), (11, 9)]


@pytest.fixture(scope='module', params=[*NEEDS_FOLDER, *PLAIN])
def case(request, tmp_path_factory):
    if request.param in NEEDS_FOLDER or request.param == 'moonvit':
        pytest.importorskip('transformers')
    if request.param.startswith('mmseg'):
        pytest.importorskip('mmseg')
    if request.param in PLAIN:
        return PLAIN[request.param]()
    return NEEDS_FOLDER[request.param](tmp_path_factory.mktemp('weights'))


def ours(case, dtype=torch.float64, state=None):
    state = {key: item.to(dtype) for key, item in (state or case.state).items()}
    weights = convert(state, num_heads=HEADS, **case.options)
    model = build(weights).to(dtype).eval()
    report = load_weights(model, weights)
    assert report.share == 1
    assert not report.missing
    return model


def run(model, images):
    packed = pack([patchify(image, model.patch_shapes[0]) for image in images])
    output = model(packed)
    return output, model.pooled(output) if model.pool else None


def close(got, expected, limit):
    if expected.numel():
        error = (got.double() - expected.double()).abs().max() / expected.double().abs().max()
        assert error < limit, f'relative error {error:.1e}'
    else:
        assert not got.numel()


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32], ids=['float64', 'float32'])
@torch.no_grad()
def test_family_computes_what_it_computes_at_home(case, dtype):
    limit = 1e-5 if dtype == torch.float32 else 1e-9 if case.exact else 1e-6
    model = ours(case, dtype)
    images = pictures([(h * PATCH, w * PATCH) for h, w in GRIDS], dtype)
    expected = [case.answer(image) for image in images]
    for image, answer in zip(images, expected, strict=True):
        output, pooled = run(model, [image])
        close(output.tokens, answer.tokens, limit)
        close(output.prefix[0], answer.prefix, limit)
        if answer.pooled is not None:
            close(pooled[0], answer.pooled, limit)
    output, pooled = run(model, images)
    close(output.tokens, torch.cat([answer.tokens for answer in expected]), limit)
    close(output.prefix, torch.stack([answer.prefix for answer in expected]), limit)
    if pooled is not None:
        close(pooled, torch.stack([answer.pooled for answer in expected]), limit)


@torch.no_grad()
def test_names_in_memory_are_read_as_those_in_files(case):
    if case.others is None:
        pytest.skip('this family has one set of names')
    one, other = ours(case), ours(case, state=case.others())
    for key, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key]), key


@torch.no_grad()
def test_converted_file_is_the_model(case, tmp_path):
    weights = convert(case.state, num_heads=HEADS, **case.options)
    save_navit(tmp_path / 'model.safetensors', weights)
    back = read_weights(tmp_path / 'model.safetensors')
    assert back.family == weights.family
    model, other = build(weights), build(back)
    load_weights(model, weights)
    load_weights(other, back)
    image = pictures([(3 * PATCH, 2 * PATCH)], torch.float32)
    assert torch.equal(run(model, image)[0].tokens, run(other, image)[0].tokens)


def test_all_families_are_tried(request):
    tried = {name.split(' ')[0] for name in (*NEEDS_FOLDER, *PLAIN)}
    same = {'deit3': 'timm-vit', 'timm': 'timm-vit'}  # of a layout that is tried
    tried = {same.get(name, name) for name in tried}
    elsewhere = {'navit', 'deit', 'timm-deit', 'timm-augreg', 'mae'}  # test_deit, test_checkpoint
    elsewhere |= {'big-vision'}  # test_odd_weights
    assert set(FAMILIES) == tried | elsewhere


# --------------------------------------------------------------------------------------------------
# Where conversion fails silently elsewhere


def test_prefix_rows_are_not_guessed_where_both_readings_are_square():
    """Nine rows are a grid of 3 x 3, or one of 2 x 2 after five prefix tokens."""
    state = foreign.deit3(registers=4).state | {'pos_embed': torch.ones(1, 9, D)}
    with pytest.raises(ValueError, match=r'9 rows of pos_embed are a square grid with and without'):
        convert(state, family='timm-vit', num_heads=HEADS)


def test_the_teacher_is_taken_where_a_student_lies_beside():
    state, other = foreign.dinov2().state, foreign.dinov2().state
    content = {'teacher': {f'backbone.{k}': v for k, v in state.items()}, 'student': other}
    tensors, others = find_tensors(content, 'x.pth')
    weights = convert(tensors, num_heads=HEADS)
    assert others == ['student']
    assert torch.equal(weights.tensors['norm.weight'], state['norm.weight'])


def test_periods_of_rope_are_held_against_those_that_are_computed(tmp_path):
    pytest.importorskip('transformers')
    state = foreign.dinov3(tmp_path).state
    rounded = state | {'rope_embed.periods': state['rope_embed.periods'].bfloat16()}
    assert convert(rounded, num_heads=HEADS).arch['rope']['theta'] == 100.0
    other = state | {'rope_embed.periods': torch.tensor([1.0, 50.0])}
    with pytest.raises(ValueError, match=r'RoPE has periods from 1 to .* theta=100'):
        convert(other, num_heads=HEADS)


def test_the_raw_bias_of_keys_does_not_leak(tmp_path):
    pytest.importorskip('transformers')
    weights = convert(foreign.dinov3(tmp_path).state, num_heads=HEADS)
    for i in range(foreign.DEPTH):
        query, key, value = weights.tensors[f'blocks.{i}.attn.qkv.bias'].chunk(3)
        assert not key.any()
        assert query.any()
        assert value.any()


@pytest.mark.parametrize('prefix', ['', 'visual.', 'model.visual.'])
def test_qwen_is_refused_by_name(prefix):
    state = {f'{prefix}{key}': torch.ones(2) for key in ('merger.ln_q.weight', 'blocks.0.norm1')}
    with pytest.raises(ValueError, match=r'Qwen2.5-VL.*windows of 112 pixels.*another family'):
        convert(state)


def test_a_text_tower_beside_is_left_over(tmp_path):
    pytest.importorskip('transformers')
    weights = convert(foreign.clip(tmp_path).state, family='clip', num_heads=HEADS)
    assert {'visual.proj', 'ln_final.weight'} <= {*weights.left_over, 'visual.proj'}
    assert 'proj' in weights.left_over


def test_a_class_token_takes_its_position_with_it():
    state = foreign.dinov2(registers=4).state
    weights = convert(state, num_heads=HEADS)
    prefix = weights.tensors['prefix']
    assert torch.equal(prefix[0], state['cls_token'][0, 0] + state['pos_embed'][0, 0])
    assert torch.equal(prefix[1:], state['register_tokens'][0])
    assert (weights.arch['prefix_tokens'], weights.arch['registers']) == (5, 4)


@pytest.mark.parametrize('family', ['timm-clip', 'dinov2-reg'])
def test_a_stated_family_has_to_have_what_tells_it(family):
    with pytest.raises(ValueError, match=rf'is not of the family {family}, which has \w+'):
        convert(foreign.deit3().state, family=family, num_heads=HEADS)


@pytest.mark.parametrize(
    ('name', 'kind'),
    [
        ('naflexvit_base_patch16_gap.e300_s576_in1k', ''),
        ('naflexvit_base_patch16_map', ''),
        ('naflexvit_base_patch16_par_gap.e300_s576_in1k', 'par'),
        ('naflexvit_base_patch16_fac_gap', 'fac'),
        ('naflexvit_base_patch16_parfac_gap.e300_s576_in1k', 'parfac'),
        ('naflexvit_so400m_patch16_siglip.v2_webli', 'siglip'),
    ],
)
def test_the_names_of_naflexvit_tell_which_rule_it_has(name, kind):
    made = foreign.naflexvit(kind)
    weights = convert(made.state, name=f'hf://timm/{name}', num_heads=HEADS)
    assert (weights.family, weights.told) == (made.options['family'], 'told by its name')
    assert weights.position['keep_aspect'] == ('par' in kind)


@pytest.mark.parametrize(
    ('name', 'family', 'mean'),
    [
        ('timm/vit_base_patch16_clip_224.openai', 'timm-clip-quickgelu', CLIP[0]),
        ('timm/vit_base_patch16_clip_quickgelu_224.openai', 'timm-clip-quickgelu', CLIP[0]),
        ('timm/vit_base_patch16_clip_224.openai_ft_in1k', 'timm-clip', CLIP[0]),
        ('timm/vit_base_patch32_clip_224.laion400m_e32', 'timm-clip-quickgelu', CLIP[0]),
        ('timm/vit_base_patch16_clip_224.laion400m_e32', 'timm-clip', CLIP[0]),
        ('timm/vit_large_patch14_clip_224.dfn2b', 'timm-clip-quickgelu', CLIP[0]),
        ('timm/vit_large_patch14_clip_224.dfn2b_s39b', 'timm-clip', CLIP[0]),
        ('timm/vit_huge_patch14_clip_224.metaclip_altogether', 'timm-clip', CLIP[0]),
        ('timm/vit_large_patch14_clip_336.laion2b_ft_in1k', 'timm-clip', INCEPTION[0]),
    ],
)
def test_the_names_of_timm_s_clip_tell_what_they_were_trained_with(name, family, mean):
    weights = convert(foreign.timm_clip().state, name=f'hf://{name}', num_heads=HEADS)
    assert (weights.family, weights.input_mean) == (family, mean)


@pytest.mark.parametrize(
    'name',
    [
        'timm/vit_base_patch16_rpn_224.sw_in1k',
        'timm/vit_base_patch16_siglip_gap_224.v2_webli',
        'timm/vit_small_patch16_rope_ape_224.naver_in1k',
        'timm/vit_pe_spatial_base_patch16_512.fb',
        'timm/vit_base_patch16_radio_v3.c_radio',
    ],
)
def test_what_only_looks_like_a_family_is_refused_by_its_name(name):
    with pytest.raises(ValueError, match=rf'{name} is .*if its name misleads, state the family'):
        convert(foreign.deit3().state, name=f'hf://{name}', num_heads=HEADS)
    stated = convert(foreign.deit3().state, name=name, family='timm-vit', num_heads=HEADS)
    assert stated.family == 'timm-vit'
    of_doctors = convert(foreign.deit3().state, name='radiology/deit.pth', num_heads=HEADS)
    assert of_doctors.family == 'timm-deit'


def test_keys_that_tell_a_family_are_believed_whatever_the_folder_is_called():
    weights = convert(foreign.dinov2().state, name='siglip_or_dinov2/x.pth', num_heads=HEADS)
    assert (weights.family, weights.told) == ('dinov2', 'told by its keys')


def test_satellite_weights_have_an_input_of_their_own(tmp_path):
    state = foreign.dinov3(tmp_path).state
    for name, mean in (('dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth', IMAGENET[0]),
                       ('dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth', SATELLITE[0])):  # fmt: skip
        weights = convert(state, name=name, num_heads=HEADS)
        assert (weights.family, weights.input_mean) == ('dinov3', mean)


def test_the_first_files_of_deit_3_have_other_names_for_layer_scale():
    state = foreign.deit3().state
    first = {key.replace('ls1.gamma', 'gamma_1').replace('ls2.gamma', 'gamma_2'): item
             for key, item in state.items()}  # fmt: skip
    assert len({*state} - {*first}) == 4
    weights = convert(first, name='deit_3_small_224_1k.pth', num_heads=HEADS)
    assert weights.family == 'timm-deit'
    for key in ('blocks.0.ls1.gamma', 'blocks.1.ls2.gamma'):
        assert torch.equal(weights.tensors[key], state[key])


def test_a_gated_mlp_in_one_matrix_is_refused():
    state = foreign.deit3().state
    wide = {k: torch.cat([t, t]) if '.fc1.' in k else t for k, t in state.items()}
    with pytest.raises(ValueError, match=r'fc1.weight has 96 rows for 48 hidden .*gated'):
        convert(wide, name='vit_giant_patch14_dinov2.pth', num_heads=HEADS)


@pytest.mark.parametrize(('tokens', 'pooling'), [('cls_token', 'token'), ('reg_token', 'mean')])
def test_a_classifier_without_a_class_token_reads_the_mean(tokens, pooling):
    state = foreign.deit3(registers=4).state | foreign.dense('head', 7, D)
    state = {k: t for k, t in state.items() if k == tokens or not k.endswith('_token')}
    assert convert(state, name='deit.pth', num_heads=HEADS).arch['pooling'] == pooling


def test_the_choice_among_siblings_says_how_they_differ():
    with pytest.raises(ValueError, match=r'(?s)--family timm-vit.*timm-augreg: eps 1e-06, gelu, '):
        convert(foreign.deit3().state | {'blocks.0.ls1.gamma': torch.ones(D)}, name='x.pth')
