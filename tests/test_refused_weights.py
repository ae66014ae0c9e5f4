"""What does not fit a model is refused by name: disagreements, unknown keys, broken files."""

import copy
import re

import mmengine
import pytest
import torch
import yapf
from commands import NO_WORKERS
from mmdet.apis import DetInferencer
from mmengine.config import DictAction
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import CheckpointLoader
from test_tools import CONFIG, call
from weights import ARCH, WITH_CLASS, navit, save, timm_state

from navit_backbone.checkpoint import load_weights, read_checkpoint
from navit_backbone.tasks.common.sample_set import write_sample_set
from navit_backbone.tools import predict, train
from navit_backbone.tools import test as test_tool
from navit_backbone.tools.command_line import override, read_config


@pytest.fixture
def source(tmp_path):
    return lambda state, name='vit_tiny_patch16.pth': save(tmp_path / name, state)


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
    'QK norm': (timm_state(), dict(arch=dict(WITH_CLASS, qk_norm=True)), r'qk_norm: None'),
    'QKV bias': (timm_state(), dict(arch=dict(WITH_CLASS, qkv_bias=False)), r'qkv_bias: True'),
    'depth': (timm_state(depth=3), {}, r'num_layers: 3 in the file, 2 in the model'),
    'width': (timm_state(dim=48), {}, r'embed_dims: 48 in the file, 24'),
    'MLP': (timm_state(hidden=48), {}, r'feedforward_channels: 48 in the file, 40'),
    'patch': (timm_state(patch=8), {}, r'of 1x8x8 .*of 1x16x16: set patch_size=8 or leave it out'),
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
    with pytest.raises(ValueError, match='(?s)vit_tiny_patch16.pth does not fit.*' + message):
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
    'patch_embed.norm.weight',
    'blocks.0.attn.relative_position_bias_table',
    'blocks.0.mlp.norm.weight',
    'blocks.0.attn.gate.weight',
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
    assert load_weights(navit(dict(WITH_CLASS, final_norm=False)), source(state)).share == 1


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
    with pytest.raises(ValueError, match='(?s)vit_tiny_patch16.pth ' + '.*' + message):
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


# --------------------------------------------------------------------------------------------------
# Whole models, by every way in

RUNS = ('load_from', 'plain resume', 'test', 'predict')
# A stock Inferencer loads past our hooks: there only the backbone refuses what does not fit it.
ANYWHERE = (*RUNS, 'Inferencer')
DEFECTS = {
    'truncated': (ANYWHERE, r'is truncated, corrupt or no file of weights.*fetch it again'),
    'no dict': (('predict',), r'holds no dict of named tensors'),
    'without a block': (ANYWHERE, r'blocks.1.*(config that it was|config and the classes)'),
    'without a head': (('resume', *RUNS[1:]), r'does not fit this model: .*Missing: bbox_head'),
    'NaN in the backbone': (ANYWHERE, r'backbone.vit.norm.weight hold NaN.*an earlier checkpoint'),
    'NaN in the head': (RUNS, r'bbox_head.retina_cls.bias hold NaN.*an earlier checkpoint'),
    'of another model': (ANYWHERE, r'weights of a backbone alone go into'),
    'of another width': (('load_from', 'Inferencer'), r'\(12, 768\).*\(24, 768\).* the config'),
    'a backbone alone': (('test', 'Inferencer'), r'weights of a backbone alone go into'),
    'weights alone': (('resume', 'plain resume'), r'not how far training had come.*load_from'),
}


def defective(defect, content, file):
    """Write a checkpoint of a whole detector with one defect."""
    state = content['state_dict']
    if defect == 'without a block':
        state = {k: t for k, t in state.items() if 'blocks.1.' not in k}
    elif defect.startswith('NaN'):
        key = 'backbone.vit.norm.weight' if 'backbone' in defect else 'bbox_head.retina_cls.bias'
        state = state | {key: torch.full_like(state[key], torch.nan)}
    elif defect == 'without a head':
        state = {k: t for k, t in state.items() if not k.startswith('bbox_head')}
    elif defect == 'of another model':
        state = {'backbone.conv1.weight': torch.ones(64, 3, 7, 7), 'fc.bias': torch.ones(9)}
    elif defect == 'of another width':
        state = {k: t[:12] if t.shape[:1] == (24,) else t for k, t in state.items()}
    elif defect == 'a backbone alone':
        name = 'backbone.vit.'
        state = {k.removeprefix(name): t for k, t in state.items() if k.startswith(name)}
    elif defect == 'no dict':
        state = [state]
    content = content | {'state_dict': state}
    torch.save({'state_dict': state} if defect == 'weights alone' else content, file)
    if defect == 'truncated':
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    """A config, as a file, with its data; and the content of a checkpoint that fits it."""
    folder = tmp_path_factory.mktemp('detector')
    write_sample_set(folder / 'set', seed=0, num_pictures=dict(train=2, val=2))
    options = DictAction._parse_int_float_bool  # values as on the command line
    settings = dict(setting.split('=') for setting in (*NO_WORKERS, 'train_cfg.max_epochs=1'))
    cfg = read_config(CONFIG, {key: options(value) for key, value in settings.items()})
    override(cfg, {'data_root': str(folder / 'set')})
    cfg.model.backbone.arch.update(ARCH)
    cfg.model.neck.in_channels = 24
    cfg.dump(folder / 'config.py')
    meta = dict(epoch=0, iter=0, dataset_meta=dict(classes=tuple('abcde')))
    state = dict(MODELS.build(cfg.model).state_dict())
    return folder, dict(state_dict=state, meta=meta, message_hub={})


@pytest.fixture
def quick(monkeypatch):
    """Without what takes a runner most of its time here: laying out configs, collecting garbage."""
    monkeypatch.setattr(yapf.yapflib.yapf_api, 'FormatCode', lambda text, **_: (text, True))
    monkeypatch.setattr(mmengine.dataset.base_dataset.gc, 'collect', lambda: 0)


def use(way, folder, file, work_dir, monkeypatch):
    """What a user is told who loads `file` into the config's model."""
    config, picture = folder / 'config.py', folder / 'set/val/00000.jpg'
    if way == 'Inferencer':
        with pytest.raises(ValueError, match=r'.') as caught:
            DetInferencer(str(config), str(file), device='cpu', show_progress=False)
        return str(caught.value)
    work = ['--work-dir', work_dir]
    if way == 'plain resume':
        (work_dir / 'last_checkpoint').write_text(str(file))
    tool, arguments = {
        'load_from': (train, [*work, '--cfg-options', f'load_from={file}']),
        'resume': (train, ['--resume', file, *work]),
        'plain resume': (train, [*work, '--resume']),
        'test': (test_tool, [file, *work]),
        'predict': (predict, [file, picture, '--out-dir', work_dir]),
    }[way]
    return str(call(monkeypatch, tool, config, *arguments))


@pytest.mark.parametrize(
    ('defect', 'way'), [(defect, way) for defect, (ways, _) in DEFECTS.items() for way in ways]
)
def test_checkpoint_that_does_not_fit_is_refused_by_its_file(
    defect, way, detector, tmp_path, quick, monkeypatch
):
    folder, content = detector
    file = tmp_path / 'w.pth'
    defective(defect, content, file)
    told = ' '.join(use(way, folder, file, tmp_path, monkeypatch).split())
    assert re.search(DEFECTS[defect][1], told), told
    assert str(file) in told


def test_state_dict_tells_its_file_and_stays_plain_when_saved(tmp_path):
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    torch.save(model.state_dict(), tmp_path / 'w.pth')
    state = CheckpointLoader.load_checkpoint(str(tmp_path / 'w.pth'))
    for same in (state, copy.deepcopy(state)):
        given = same._metadata.get('0')
        assert given == {'version': 2, 'file': str(tmp_path / 'w.pth')}
    model.load_state_dict(state)
    torch.save(state, tmp_path / 'again.pth')
    assert read_checkpoint(tmp_path / 'again.pth').keys() == state.keys()
    assert b'_Origin' not in (tmp_path / 'again.pth').read_bytes()
