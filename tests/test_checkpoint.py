"""What is in a file of weights is loaded exactly; our own format comes back exactly."""

import copy
import json

import pytest
import torch
from oracles import perturb, pictures
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from weights import ARCH, GRID, WITH_CLASS, layer, navit, save, timm_state

from navit_backbone import pack, patchify
from navit_backbone.checkpoint import (
    build,
    guard_loading,
    load_weights,
    read_checkpoint,
    read_weights,
    save_navit,
    tensors_of,
    weights_of,
)
from navit_backbone.conversion import convert
from navit_backbone.families import FAMILIES, IMAGENET, INCEPTION


def answer(model, sizes=((33, 70), (16, 48))):
    packed = pack([patchify(image, (1, 16, 16)) for image in pictures(sizes, torch.float32)])
    with torch.no_grad():
        return model.eval()(packed).tokens


@pytest.fixture
def source(tmp_path):
    return lambda state, name='vit_tiny_patch16.pth': save(tmp_path / name, state)


# --------------------------------------------------------------------------------------------------
# What is loaded


def test_every_tensor_arrives(source):
    state = timm_state()
    model = navit()
    report = load_weights(model, source(state))
    got = tensors_of(model)
    kernel = state['patch_embed.proj.weight']
    assert torch.equal(got['patch_embed.1x16x16.weight'], kernel.reshape(24, -1))
    assert torch.equal(got['prefix'][0], state['cls_token'][0, 0] + state['pos_embed'][0, 0])
    assert torch.equal(got['position.table'].flatten(0, 1), state['pos_embed'][0, 1:])
    for key in set(state) - {'cls_token', 'pos_embed'}:
        if not key.startswith('patch_embed'):
            assert torch.equal(got[key], state[key]), key
    assert report.share == 1
    assert report.missing == ()
    assert set(report.loaded) == set(got)


WRAPPERS = {
    'state_dict': lambda s: {'state_dict': s, 'meta': {'epoch': 3}},
    'model': lambda s: {'model': s, 'optimizer': {'state': {}, 'param_groups': []}},
    'module.': lambda s: {f'module.{k}': v for k, v in s.items()},
    'backbone.': lambda s: {f'backbone.{k}': v for k, v in s.items()} | {'neck.w': torch.ones(2)},
    'both': lambda s: {'model': {f'module.backbone.{k}': v for k, v in s.items()}},
}


@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_wrappers_are_taken_off(source, wrapper):
    state = timm_state()
    plain, wrapped = navit(), navit()
    load_weights(plain, source(state, 'plain_vit_tiny_patch16.pth'))
    load_weights(wrapped, source(WRAPPERS[wrapper](state)))
    assert torch.equal(answer(plain), answer(wrapped))


@pytest.mark.parametrize('name', ['w.pth', 'w.pt', 'w.safetensors'])
def test_every_kind_of_file_is_read(source, name):
    state = timm_state()
    got = read_checkpoint(source(state, name))
    assert got.keys() == state.keys()
    assert all(torch.equal(got[key], state[key]) for key in state)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast_to_the_model(source, dtype):
    state = {key: item.to(dtype) for key, item in timm_state().items()}
    model = navit()
    load_weights(model, source(state))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    key = 'blocks.1.mlp.fc1.weight'
    assert torch.equal(model.state_dict()[key], state[key].float())


def test_distilled_and_register_tokens_keep_their_order_and_positions(source):
    tokens = ('cls_token', 'dist_token')
    state = timm_state(tokens=tokens, **layer('head', torch.ones(4, 24), torch.ones(4)))
    weights = read_weights(source(state))
    rows = torch.cat([state[name][0] for name in tokens]) + state['pos_embed'][0, :2]
    assert torch.equal(weights.tensors['prefix'], rows)
    # two heads answer together on two tokens: ours would answer otherwise, so none is taken
    assert {'head.weight', 'head.bias'} <= set(weights.left_over)
    assert 'classifier.weight' not in weights.tensors


def test_tokens_without_a_position_row_are_taken_as_they_are(source):
    state = timm_state(tokens=('cls_token',))
    state['pos_embed'] = state['pos_embed'][:, 1:]
    registers = torch.randn(1, 3, 24)
    weights = read_weights(source(state | {'reg_token': registers}))
    assert torch.equal(weights.tensors['prefix'], torch.cat([state['cls_token'][0], registers[0]]))
    assert weights.tensors['position.table'].shape == (5, 5, 24)


def test_classifier_is_kept_where_the_model_has_one(source):
    state = timm_state(**layer('head', torch.randn(7, 24), torch.randn(7)))
    file = source(state)
    model = navit(dict(WITH_CLASS, pooling='token', num_classes=7))
    assert torch.equal(model.state_dict()['classifier.weight'], state['head.weight']) is False
    load_weights(model, file)
    assert torch.equal(model.state_dict()['classifier.weight'], state['head.weight'])
    for arch in (WITH_CLASS, dict(WITH_CLASS, pooling='token', num_classes=5)):
        report = load_weights(navit(arch), file)
        assert report.share == 1
        assert {'classifier.weight', 'classifier.bias'} <= set(report.left_over)


def test_optional_parts_that_the_file_lacks_are_reported_and_left_alone(source):
    model = navit(dict(WITH_CLASS, pooling='map', num_classes=4))
    before = {
        k: v.clone() for k, v in model.state_dict().items() if k.startswith(('pool', 'class'))
    }
    report = load_weights(model, source(timm_state()))
    assert set(before) <= set(report.missing)
    assert all(torch.equal(model.state_dict()[key], item) for key, item in before.items())


def test_backbone_of_a_whole_detector(source):
    trained = navit()
    state = {f'backbone.vit.{k}': v for k, v in trained.state_dict().items()}
    file = source({'state_dict': state | {'bbox_head.weight': torch.ones(3)}})
    for options in ({}, {'prefix': 'backbone.'}, {'prefix': 'backbone'}):
        model = perturb(navit(), seed=9)
        report = load_weights(model, file, **options)
        assert torch.equal(answer(model), answer(trained))
        assert report.left_over == ('bbox_head.weight',)


def test_several_models_in_one_file_need_a_choice(source):
    first, second = timm_state(1), timm_state(2)
    both = {f'a.{k}': v for k, v in first.items()} | {f'b.{k}': v for k, v in second.items()}
    file = source(both)
    with pytest.raises(ValueError, match=r"several models, under \['a.', 'b.'\].*prefix"):
        load_weights(navit(), file)
    model, reference = navit(), navit()
    load_weights(model, file, prefix='b')
    load_weights(reference, source(second, 'second_vit_tiny_patch16.pth'))
    assert torch.equal(answer(model), answer(reference))


@pytest.mark.parametrize(
    ('name', 'extra', 'family', 'statistics', 'antialias'),
    [
        ('vit_tiny_augreg.pth', {}, 'timm-augreg', INCEPTION, True),
        ('deit_tiny.pth', {}, 'timm-deit', IMAGENET, True),
        ('mae_pretrain_vit.pth', {}, 'mae', IMAGENET, False),
        ('x.pth', {'decoder_embed.bias': torch.ones(2), 'mask_token': torch.ones(1, 1, 2)}, 'mae',
         IMAGENET, False),
        ('vit_base_patch16_224.pth', {}, 'timm-vit', None, True),
        ('vit_base_patch16_224.augreg_in21k.pth', {}, 'timm-augreg', INCEPTION, True),
        ('vit_base_patch16_224.mae.pth', {}, 'mae', IMAGENET, False),
    ],
)  # fmt: skip
def test_family_is_told_by_keys_or_by_name(source, name, extra, family, statistics, antialias):
    weights = read_weights(source(timm_state(**extra), name))
    assert weights.family == family
    assert (weights.input_mean, weights.input_std) == (statistics or (None, None))
    assert weights.position['antialias'] is antialias
    assert set(weights.left_over) == set(extra)


def test_ambiguous_file_is_refused(source):
    with pytest.raises(ValueError, match=r'fits mae, .* alike.*--family'):
        read_weights(source(timm_state(), 'x.pth'))
    assert read_weights(source(timm_state(), 'x.pth'), family='deit').family == 'deit'


def test_a_name_that_tells_two_families_is_refused(source):
    with pytest.raises(ValueError, match='fits mae, timm-deit alike, and its name tells more than'):
        read_weights(source(timm_state(), 'mae_deit_tiny.pth'))


def test_stated_family_overrules_the_name_and_must_exist(source):
    file = source(timm_state(), 'deit_tiny.pth')
    assert read_weights(file, family='deit').position['antialias'] is False
    with pytest.raises(ValueError, match=r"family='dinov1' is not one of.*timm-deit"):
        read_weights(file, family='dinov1')
    with pytest.raises(ValueError, match=r'not of the family navit'):
        read_weights(file, family='navit')


# --------------------------------------------------------------------------------------------------
# Our own format

MODELS = {
    'timm': dict(arch=WITH_CLASS),
    'paper': dict(arch=dict(ARCH, qk_norm=True, qkv_bias=False, pooling='map', num_classes=3),
                  position=dict(kind='factorised', combine='stack', max_size=32)),
    'rope': dict(arch=dict(ARCH, rope=dict(theta=50.0), norm='rms_norm', norm_eps=1e-5,
                           mlp='swiglu_norm', layer_scale=0.1, final_norm=False), position=None),
    'wide norms': dict(arch=dict(ARCH, qk_norm=dict(kind='wide_rms_norm', after_rope=True),
                                 rope=dict(kind='normalised', layout='interleaved'))),
    'several patch sizes': dict(arch=ARCH, patch_size=[16, (2, 8, 8)], position='sinusoidal'),
    'table': dict(arch=ARCH, position=dict(kind='learned_1d', grid=(3, 7), antialias=False)),
}  # fmt: skip


@pytest.mark.parametrize('case', MODELS)
def test_own_format_comes_back_exactly(tmp_path, case):
    model = navit(**MODELS[case])
    written = weights_of(model, input_mean=(0.1, 0.2, 0.3), input_std=(0.4, 0.5, 0.6))
    save_navit(tmp_path / 'w.safetensors', written)
    read = read_weights(tmp_path / 'w.safetensors')
    assert written.arch == read.arch
    assert (written.position, written.input_mean, written.input_std, written.patch_shapes) == (
        read.position, read.input_mean, read.input_std, read.patch_shapes
    )  # fmt: skip
    assert written.tensors.keys() == read.tensors.keys()
    assert all(torch.equal(written.tensors[key], read.tensors[key]) for key in read.tensors)
    again = build(read)
    assert load_weights(again, tmp_path / 'w.safetensors').missing == ()
    assert torch.equal(answer(again), answer(model))


def test_header_states_all_that_builds_the_model(source, tmp_path):
    save_navit(tmp_path / 'w.safetensors', read_weights(source(timm_state()), num_heads=3))
    with safe_open(tmp_path / 'w.safetensors', framework='pt') as file:
        header = file.metadata()
    assert (header['format'], header['version']) == ('navit-backbone', '1')
    arch = json.loads(header['arch'])
    assert (arch['embed_dims'], arch['num_heads'], arch['norm_eps']) == (24, 3, 1e-6)
    assert json.loads(header['position'])['antialias'] is True


def test_own_format_holds_the_model_to_its_rule_of_interpolation(source, tmp_path):
    file = tmp_path / 'w.safetensors'
    save_navit(file, read_weights(source(timm_state()), family='deit', num_heads=3))
    with pytest.raises(ValueError, match=r"antialias': False.*antialias': True.*set position="):
        load_weights(navit(), file)
    load_weights(navit(position=dict(GRID, antialias=False)), file)


def test_weights_that_are_not_whole_are_not_saved(source, tmp_path):
    out = tmp_path / 'w.safetensors'
    weights = read_weights(source(timm_state()))
    with pytest.raises(ValueError, match=r'tells the number of heads, .*--num-heads N'):
        save_navit(out, weights)
    file = source({f'vit.{k}': v for k, v in tensors_of(navit()).items()}, 'trained.pth')
    with pytest.raises(
        ValueError, match=r'tells num_heads, norm, norm_eps, mlp, rope, position: .*weights_of'
    ):
        save_navit(out, read_weights(file))
    state = timm_state()
    del state['blocks.0.norm2.bias']
    with pytest.raises(ValueError, match=r'missing: blocks.0.norm2.bias'):
        save_navit(out, read_weights(source(state), num_heads=3))
    assert not list(tmp_path.glob('*.safetensors*'))


def test_a_checkpoint_of_training_tells_its_architecture(source, tmp_path):
    arch = dict(WITH_CLASS, rope=dict(theta=50.0), norm_eps=1e-5, qk_norm=True, mlp='quick_gelu')
    model = navit(arch, temporal_position=dict(max_size=8))
    state = {f'backbone.vit.{key}': item for key, item in model.state_dict().items()}
    weights = read_weights(source({'state_dict': state, 'meta': {}}, 'epoch_1.pth'))
    save_navit(tmp_path / 'w.safetensors', weights)
    again = build(read_weights(tmp_path / 'w.safetensors'))
    assert again.architecture() == model.architecture()
    load_weights(again, tmp_path / 'w.safetensors')
    assert torch.equal(answer(again), answer(model))


def test_a_checkpoint_of_another_architecture_is_refused():
    """Where all tensors fit, and the model would compute something else."""
    for change in (dict(norm_eps=1e-5), dict(mlp='gelu_tanh'), dict(rope=dict(theta=50.0))):
        with pytest.raises(
            ValueError, match=rf'another architecture.*\n  arch.{next(iter(change))}'
        ):
            navit(dict(WITH_CLASS, **change)).load_state_dict(navit().state_dict())
    with pytest.raises(ValueError, match=r'another architecture.*\n  position: .*antialias'):
        navit(position=dict(GRID, antialias=False)).load_state_dict(navit().state_dict())
    navit(dict(WITH_CLASS, pooling='token')).load_state_dict(navit().state_dict())


def test_file_is_overwritten_only_when_asked(source, tmp_path):
    out, weights = tmp_path / 'w.safetensors', weights_of(navit())
    save_navit(out, weights)
    before = out.read_bytes()
    with pytest.raises(ValueError, match=r'w.safetensors exists'):
        save_navit(out, weights_of(perturb(navit())))
    assert out.read_bytes() == before
    save_navit(out, weights_of(perturb(navit())), overwrite=True)
    assert out.read_bytes() != before
    with pytest.raises(ValueError, match=r'ends in .safetensors'):
        save_navit(tmp_path / 'w.pth', weights)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'version': '2'}, r'is of version 2, this installation reads up to 1'),
        ({'arch': '{'}, r'header is damaged'),
        ({'arch': '{"flux": 1}'}, r"header names \['flux'\]"),
    ],
)
def test_damaged_or_newer_header_is_refused(tmp_path, change, message):
    file = tmp_path / 'w.safetensors'
    save_navit(file, weights_of(navit()))
    with safe_open(file, framework='pt') as opened:
        header = opened.metadata()
    del header['sha256']
    save_file(read_checkpoint(file), file, metadata=header | change)
    with pytest.raises(ValueError, match=message):
        load_weights(navit(), file)


# --------------------------------------------------------------------------------------------------
# Loading by state dict, as mmengine does it


class Whole(nn.Module):
    """Stands for a detector: a backbone that holds the ViT, and a head."""

    def __init__(self):
        super().__init__()
        self.vit = navit()
        self.head = nn.Linear(24, 2)
        guard_loading(self.vit)


def test_guard_lets_whole_checkpoints_pass_and_names_what_is_wrong():
    model, state = Whole(), Whole().state_dict()
    model.load_state_dict(state)
    copy.deepcopy(model).load_state_dict(state)
    head = {'head.weight': state['head.weight'], 'head.bias': state['head.bias']}
    with pytest.raises(ValueError, match=r'nothing for vit:.*init_cfg'):
        model.load_state_dict(head)
    half = {key: item for key, item in state.items() if 'blocks.1' not in key}
    with pytest.raises(ValueError, match=r'no blocks.1.norm1.weight \(\+ 11 of blocks'):
        model.load_state_dict(half)
    with pytest.raises(ValueError, match=r'vit.prefix: the checkpoint has \(2, 24\)'):
        model.load_state_dict(state | {'vit.prefix': torch.zeros(2, 24)})
    with pytest.raises(ValueError, match=r'vit.norm.bias hold NaN'):
        model.load_state_dict(state | {'vit.norm.bias': torch.full((24,), torch.nan)})


def test_report_reads_well(source):
    extra = {f'decoder_blocks.{i}.norm.weight': torch.ones(2) for i in range(3)}
    state = timm_state(**extra, mask_token=torch.ones(1, 1, 2))
    text = str(load_weights(navit(), source(state, 'mae_base.pth')))
    assert 'mae_base.pth (mae): 30 tensors loaded, 100.0% of the backbone' in text
    assert 'interpolated to each picture: position.table' in text
    assert 'left over: decoder_blocks.0.norm.weight (+ 2 of decoder_blocks.*), mask_token' in text
    assert 'missing: none' in text
    assert 'positions are interpolated as' in text  # by the model's own rule, which differs


def test_every_family_tells_what_tensors_cannot():
    for name, family in FAMILIES.items():
        if name != 'navit':
            assert {'norm', 'norm_eps'} <= set(family.arch), name
            told = any('mlp.fc3' in ours for rule in family.rules for ours in rule.ours)
            assert told or 'mlp' in family.arch, name


def test_plain_tensors_convert_without_a_file():
    weights = convert(timm_state(), family='timm-vit', num_heads=3)
    model = build(weights)
    assert load_weights(model, weights).share == 1
