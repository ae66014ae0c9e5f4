"""What does not fit a model is refused by name: disagreements, unknown keys, broken files."""

import copy

import pytest
import torch
from weights import ARCH, WITH_CLASS, navit, save, timm_state

from navit_backbone.checkpoint import load_weights, read_checkpoint


@pytest.fixture
def source(tmp_path):
    return lambda state, name='weights.pth': save(tmp_path / name, state)


SCALES = {f'blocks.{i}.ls{k}.gamma': torch.ones(24) for i in range(2) for k in (1, 2)}
DISAGREEMENTS = {
    'class token': (timm_state(), dict(arch=ARCH), r'arch.prefix_tokens: 1 .*0.*prefix_tokens=1'),
    'no class token': (timm_state(tokens=()), {}, r'arch.prefix_tokens: 0 in the file, 1'),
    'registers': (timm_state(), dict(arch=dict(ARCH, prefix_tokens=5)), r'prefix_tokens: 1 .*5'),
    'LayerScale in the file': (timm_state(**SCALES), {}, r'arch.layer_scale: 1e-06 .*None'),
    'LayerScale in the model': (timm_state(), dict(arch=dict(WITH_CLASS, layer_scale=0.1)),
                                r'arch.layer_scale: None .*0.1.*layer_scale=None'),
    'RoPE': (timm_state(), dict(arch=dict(WITH_CLASS, rope={})), r'arch.rope: None in the file'),
    'activation': (timm_state(), dict(arch=dict(WITH_CLASS, mlp='swiglu')), r"arch.mlp: 'gelu'"),
    'norm': (timm_state(), dict(arch=dict(WITH_CLASS, norm='rms_norm')), r"norm: 'layer_norm'"),
    'eps': (timm_state(), dict(arch=dict(WITH_CLASS, norm_eps=1e-5)), r'norm_eps: 1e-06 .*1e-05'),
    'QK norm': (timm_state(), dict(arch=dict(WITH_CLASS, qk_norm=True)), r'qk_norm: False'),
    'QKV bias': (timm_state(), dict(arch=dict(WITH_CLASS, qkv_bias=False)), r'qkv_bias: True'),
    'depth': (timm_state(depth=3), {}, r'num_layers: 3 in the file, 2 in the model'),
    'width': (timm_state(dim=48), {}, r'embed_dims: 48 in the file, 24'),
    'MLP': (timm_state(hidden=48), {}, r'feedforward_channels: 48 in the file, 40'),
    'patch': (timm_state(patch=8), {}, r'\(1, 8, 8\).*\(1, 16, 16\).*patch_size'),
    'grid': (timm_state(grid=4), {}, r"'grid': \(4, 4\).*set position="),
    'position': (timm_state(), dict(position='factorised'), r"'learned_1d'.*'factorised'.*set pos"),
    'no position': (timm_state(), dict(position=None), r'the model None: set position='),
    'integers': ({k: v.byte() if 'fc1.w' in k else v for k, v in timm_state().items()}, {},
                 r'fc1.weight.*uint8.*quantised'),
}  # fmt: skip


@pytest.mark.parametrize('case', DISAGREEMENTS)
def test_disagreement_is_refused_by_name(source, case):
    state, options, message = DISAGREEMENTS[case]
    model = navit(**options)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match='(?s)weights.pth does not fit.*' + message):
        load_weights(model, source(state))
    # nothing was half loaded, and a low share does not make a disagreement acceptable
    assert all(torch.equal(before[key], item) for key, item in model.state_dict().items())
    with pytest.raises(ValueError, match='(?s)' + message):
        load_weights(model, source(state), min_share=0.0)


def test_number_of_heads_is_checked_where_the_width_tells_it(source):
    state = timm_state(dim=192, hidden=768)
    arch = dict(embed_dims=192, num_layers=2, feedforward_channels=768, prefix_tokens=1)
    load_weights(navit(dict(arch, num_heads=3)), source(state))
    with pytest.raises(ValueError, match=r'num_heads: 3 in the file, 6 in the model'):
        load_weights(navit(dict(arch, num_heads=6)), source(state))
    assert 'number of heads: the model has 3' in str(load_weights(navit(), source(timm_state())))


UNKNOWN_KEYS = [
    'norm_pre.weight',
    'blocks.0.attn.relative_position_bias_table',
    'blocks.0.mlp.norm.weight',
    'mask_token',
    'attn_pool.latent',
    'rope_embed.periods',
]


@pytest.mark.parametrize('key', UNKNOWN_KEYS)
def test_key_without_a_place_is_refused(source, key):
    with pytest.raises(ValueError, match=f'no place in NaViT for {key}'):
        load_weights(navit(), source(timm_state(**{key: torch.ones(24)})))


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_values_that_are_not_finite_are_refused_by_key(source, value):
    state = timm_state()
    state['blocks.1.attn.proj.bias'][3] = value
    with pytest.raises(ValueError, match=r'blocks.1.attn.proj.bias hold NaN'):
        load_weights(navit(), source(state))


def test_missing_tensors_are_refused_below_the_share_and_named(source):
    state = timm_state()
    del state['norm.weight'], state['norm.bias']
    model = navit()
    with pytest.raises(ValueError, match=r'(?s)missing: norm.weight, norm.bias.*min_share'):
        load_weights(model, source(state))
    report = load_weights(model, source(state), min_share=0.9)
    assert report.missing == ('norm.weight', 'norm.bias')
    total = sum(p.numel() for p in model.parameters())
    assert report.share == pytest.approx(1 - 48 / total)
    assert load_weights(navit(final_norm=False), source(state)).share == 1


def test_missing_block_and_misshapen_tensor_are_named(source):
    state = timm_state(depth=3)
    gap = {key: item for key, item in state.items() if not key.startswith('blocks.1.')}
    with pytest.raises(ValueError, match=r'lacks blocks: it holds the numbers \[0, 2\]'):
        load_weights(navit(), source(gap))
    bent = timm_state() | {'blocks.1.mlp.fc1.weight': torch.zeros(40, 25)}
    with pytest.raises(ValueError, match=r'blocks.1.mlp.fc1.weight: the file has \(40, 25\)'):
        load_weights(navit(), source(bent))
    odd = timm_state() | {'pos_embed': torch.zeros(1, 24, 24)}
    with pytest.raises(ValueError, match=r'pos_embed has 24 rows.*square grid'):
        load_weights(navit(), source(odd))
    clip = timm_state() | {'patch_embed.proj.weight': torch.zeros(24, 3, 2, 16, 16)}
    with pytest.raises(ValueError, match=r'patch_embed.proj.weight has 5 dimensions'):
        load_weights(navit(), source(clip))


CONTENTS = {
    'optimizer': ({'state': {}, 'param_groups': [{'lr': 0.1}]}, r'optimizer.*no weights'),
    'nothing': ({}, r'no tensors, only nothing'),
    'numbers': ({'epoch': 3, 'loss': 0.5}, r'no tensors, only epoch, loss'),
    'other model': ({'conv1.weight': torch.ones(3)}, r'no known family.*timm-deit.*conv1.weight'),
    'a list': ([torch.ones(3)], r'holds a list, not a dict of tensors'),
}


@pytest.mark.parametrize('case', CONTENTS)
def test_file_without_a_model_is_refused(source, case):
    content, message = CONTENTS[case]
    with pytest.raises(ValueError, match='(?s)weights.pth ' + '.*' + message):
        load_weights(navit(), source(content))


@pytest.mark.parametrize('name', ['w.pth', 'w.safetensors'])
@pytest.mark.parametrize('share', [0.0, 0.02, 0.5, 0.99])
def test_truncated_file_is_refused(source, name, share):
    file = source(timm_state(), name)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=rf'{name} is (truncated|empty).*fetch it again'):
        load_weights(navit(), file)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('\n<!DOCTYPE html><html>Not found</html>', 'a web page'),
        ('<html lang="en">', 'a web page'),
        ('version https://git-lfs.github.com/spec/v1\noid sha256:0', 'a Git LFS pointer'),
        ('{"error": "not found"}', 'a JSON file'),
        ('hello', 'truncated, corrupt or no file of weights'),
    ],
)
@pytest.mark.parametrize('name', ['w.pth', 'w.pt', 'w.safetensors'])
def test_text_saved_as_weights_is_recognised(tmp_path, text, message, name):
    (tmp_path / name).write_text(text)
    expected = message if not (text == 'hello' and name.endswith('safetensors')) else 'truncated'
    with pytest.raises(ValueError, match=f'{name} is {expected}'):
        read_checkpoint(tmp_path / name)


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nowhere.pth does not exist: give the path'):
        load_weights(navit(), tmp_path / 'nowhere.pth')
    with pytest.raises(FileNotFoundError, match=r'is a folder'):
        load_weights(navit(), tmp_path)
