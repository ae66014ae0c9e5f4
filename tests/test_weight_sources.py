"""Files, folders, shards and names on the Hub give the same weights; what is wrong is named."""

import json
import os
import re
import sys

import foreign
import huggingface_hub
import pytest
import torch
from commands import call
from foreign import HEADS
from safetensors.torch import save_file
from test_hostile_weights import Runs
from weights import navit, save, timm_state

from navit_backbone.checkpoint import UnsafeWeightsError, build, load_weights, read_weights
from navit_backbone.conversion import convert
from navit_backbone.families import CLIP, IMAGENET, INCEPTION
from navit_backbone.tools import convert_weights
from navit_backbone.weight_sources import find_source

NAME = 'vit_tiny_patch16'


def shards_of(folder, state, suffix='.safetensors', count=3):
    """Write a state dict in shards, with the index that lists them."""
    folder.mkdir(exist_ok=True)
    stem = 'model' if suffix == '.safetensors' else 'pytorch_model'
    listed = {}
    for i in range(count):
        shard = f'{stem}-{i + 1:05}-of-{count:05}{suffix}'
        part = dict(list(state.items())[i::count])
        save(folder / shard, part)
        listed |= dict.fromkeys(part, shard)
    index = folder / f'{stem}{suffix}.index.json'
    index.write_text(json.dumps({'metadata': {}, 'weight_map': listed}))
    return index


def rewrite(path, **changes):
    """Change keys of a JSON file; None takes a key out."""
    content = json.loads(path.read_text()) | changes if path.is_file() else changes
    path.write_text(json.dumps({key: item for key, item in content.items() if item is not None}))


def same(weights, other):
    assert weights.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(item, other.tensors[key]) for key, item in weights.tensors.items())
    assert (weights.arch, weights.position) == (other.arch, other.position)


# --------------------------------------------------------------------------------------------------
# Where tensors come from

LAYOUTS = {
    'file of a folder': lambda folder, state: save(folder / 'model.safetensors', state),
    'pickle of a folder': lambda folder, state: save(folder / 'pytorch_model.bin', state),
    'shards': shards_of,
    'shards of pickles': lambda folder, state: shards_of(folder, state, '.bin'),
    'one shard': lambda folder, state: shards_of(folder, state, count=1),
    'one file of any name': lambda folder, state: save(folder / 'best.pt', state),
}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / NAME
    path.mkdir()
    return path


@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_layout_gives_the_same_weights(folder, tmp_path, layout):
    state = timm_state()
    LAYOUTS[layout](folder, state)
    (folder / 'README.md').write_text('# a model')
    weights = read_weights(str(folder))
    same(weights, read_weights(save(tmp_path / f'{NAME}.pth', state)))
    assert (weights.family, weights.told) == ('timm-vit', 'told by its name')
    model = navit()
    assert load_weights(model, folder).share == 1


def test_safetensors_come_before_pickles(folder):
    save(folder / 'model.safetensors', timm_state(1))
    (folder / 'pytorch_model.bin').write_bytes(b'never opened')
    same(read_weights(folder), convert(timm_state(1), family='timm-vit'))


def test_a_file_of_ours_is_read_from_a_folder_too(folder, tmp_path, monkeypatch):
    source = save(tmp_path / f'{NAME}.pth', timm_state())
    command = [source, folder / 'ours.safetensors', '--num-heads', 3]
    assert call(monkeypatch, convert_weights, *command) is None
    weights = read_weights(folder)
    assert (weights.family, weights.told) == ('timm-vit', 'told by its header')
    same(weights, read_weights(folder / 'ours.safetensors'))


class Hub:
    """Stands for `snapshot_download`: a repository of these files, which gives those asked for."""

    def __init__(self, folder, files):
        self.folder, self.files, self.asked = folder, files, []

    def __call__(self, repository, *, revision, allow_patterns, ignore_patterns):
        self.asked.append((repository, revision, allow_patterns[-1]))
        for name, content in self.files.items():
            if any(name.endswith(pattern.strip('*')) for pattern in allow_patterns):
                if isinstance(content, str):
                    (self.folder / name).write_text(content)
                else:
                    save(self.folder / name, content)
        return str(self.folder)


@pytest.mark.parametrize('name', ['model.safetensors', 'pytorch_model.bin'])
def test_models_of_the_hub(tmp_path, monkeypatch, name):
    cache = tmp_path / 'snapshots'
    cache.mkdir()
    hub = Hub(cache, {name: timm_state(), 'config.json': '{"architecture": "x"}'})
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', hub)
    # as timm names its models: with a dot, and what tells the family after it
    weights = read_weights('hf://timm/vit_tiny_patch16_224.augreg_in21k@v1.0')
    assert hub.asked[0] == ('timm/vit_tiny_patch16_224.augreg_in21k', 'v1.0', '*.safetensors')
    assert [pattern for *_, pattern in hub.asked[1:]] == ['*.bin'] * name.endswith('.bin')
    assert (weights.family, weights.told) == ('timm-augreg', 'told by its name')
    same(weights, convert(timm_state(), family='timm-augreg'))


def test_what_the_hub_does_not_give_is_told(tmp_path, monkeypatch):
    def gone(*args, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError('no connection\nat all')

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', gone)
    out = tmp_path / 'out.safetensors'
    told = call(monkeypatch, convert_weights, 'hf://facebook/dinov3', out)
    assert re.search(r'hf://facebook/dinov3 could not be fetched \(no connection\): .*login', told)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda *_, **__: str(tmp_path))
    told = call(monkeypatch, convert_weights, 'hf://facebook/empty', out)
    assert re.search(r'hf://facebook/empty is a folder with none of model.safetensors', told)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    told = call(monkeypatch, convert_weights, 'hf://facebook/dinov3', out)
    assert "pip install 'navit-backbone[hub]'" in told
    for name in ('hf://dinov3', 'hf://a/b/c', 'hf://a/b@', 'hf://a b/c', 'hf://../b@c d'):
        with pytest.raises(ValueError, match=r'hf://owner/name or hf://owner/name@revision'):
            read_weights(name)
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------
# What a config.json tells

transformers = pytest.importorskip('transformers')
HF = {  # the family that its model_type tells, and what the config changes
    'vit': (foreign.hf_vit, 'hf-vit'),
    'vit_mae': (foreign.hf_mae, 'hf-mae'),
    'dinov2': (foreign.hf_dinov2, 'hf-dinov2'),
    'dinov2 gated': (lambda folder: foreign.hf_dinov2(folder, swiglu=True), 'hf-dinov2'),
    'dinov2_with_registers': (foreign.hf_dinov2_reg, 'hf-dinov2-reg'),
    'dinov3_vit': (foreign.hf_dinov3, 'hf-dinov3'),
    'dinov3_vit gated': (lambda folder: foreign.hf_dinov3(folder, swiglu=True), 'hf-dinov3'),
    'clip_vision_model': (foreign.hf_clip, 'hf-clip'),
    'clip_vision_model gelu': (lambda folder: foreign.hf_clip(folder, act='gelu'), 'hf-clip'),
    'siglip2_vision_model': (foreign.hf_siglip2, 'hf-siglip2'),
}


@pytest.mark.parametrize('case', HF)
def test_what_transformers_writes_says_all(folder, case):
    make, family = HF[case]
    found = make(folder)
    weights = read_weights(folder)
    assert weights.family == family
    assert weights.told == f"told by its config.json, model_type '{case.split(' ')[0]}'"
    assert weights.arch['num_heads'] == HEADS
    same(weights, convert(found.state, num_heads=HEADS, **found.options))
    build(weights)


def test_config_overrules_what_a_family_usually_has(folder):
    foreign.hf_dinov3(folder)
    rewrite(folder / 'config.json', layer_norm_eps=3e-6, hidden_act='gelu_pytorch_tanh')
    rewrite(folder / 'config.json', rope_theta=None, rope_parameters={'rope_theta': 50.0})
    rewrite(folder / 'preprocessor_config.json', image_mean=[0.1, 0.2, 0.3], image_std=[1, 2, 3])
    weights = read_weights(folder)
    assert (weights.arch['norm_eps'], weights.arch['mlp']) == (3e-6, 'gelu_tanh')
    assert weights.arch['rope'] == {'kind': 'normalised', 'theta': 50.0}
    assert (weights.input_mean, weights.input_std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    rewrite(folder / 'config.json', rope_parameters=None, rope_theta=7)
    assert read_weights(folder).arch['rope']['theta'] == 7


@pytest.mark.parametrize('outer', ['clip', 'siglip2'])
def test_models_with_two_towers_say_it_of_one(folder, outer):
    """As openai/clip-* and google/siglip2-*-naflex are published."""
    found = foreign.hf_clip(folder) if outer == 'clip' else foreign.hf_siglip2(folder)
    tower = json.loads((folder / 'config.json').read_text()) | {'layer_norm_eps': 2e-5}
    text = {'model_type': f'{outer}_text_model', 'hidden_size': 7, 'num_attention_heads': 1}
    content = {'model_type': outer, 'text_config': text, 'vision_config': tower}
    (folder / 'config.json').write_text(json.dumps(content))
    state = {f'vision_model.{k.removeprefix("vision_model.")}': t for k, t in found.state.items()}
    save_file(state | {'text_model.final.weight': torch.ones(7)}, folder / 'model.safetensors')
    weights = read_weights(folder)
    assert weights.told == f"told by its config.json, model_type '{outer}'"
    assert weights.arch['norm_eps'] == 2e-5
    assert (weights.arch['num_heads'], weights.left_over[-1:]) == (
        HEADS,
        ('text_model.final.weight',),
    )
    assert (weights.input_mean, weights.input_std) == (CLIP if outer == 'clip' else INCEPTION)


def test_config_beside_a_file_is_read(folder):
    foreign.hf_vit(folder)
    weights = read_weights(folder / 'model.safetensors')
    assert (weights.family, weights.arch['num_heads']) == ('hf-vit', HEADS)
    assert 'model_type' in weights.told
    assert weights.input_mean is None


@pytest.mark.parametrize(
    'text', ['{}', '[]', '{"model_type": "bert", "layer_norm_eps": "x"}', '{"model_type": [1]}']
)
def test_config_of_another_kind_is_ignored(tmp_path, text):
    file = save(tmp_path / f'{NAME}.pth', timm_state())
    (tmp_path / 'config.json').write_text(text)
    (tmp_path / 'preprocessor_config.json').write_text('{"image_mean": [0, 0, 0]}')
    weights = read_weights(file)
    assert (weights.family, weights.told) == ('timm-vit', 'told by its name')
    assert weights.input_mean is None


def test_config_of_timm_tells_the_input(folder):
    save(folder / 'model.safetensors', timm_state())
    mean, std = (list(item) for item in IMAGENET)
    content = {'architecture': NAME, 'pretrained_cfg': {'mean': mean, 'std': std}}
    rewrite(folder / 'config.json', **content)
    assert (read_weights(folder).input_mean, read_weights(folder).input_std) == IMAGENET


def test_stated_family_leaves_another_config_aside(folder, tmp_path):
    file = save(folder / f'{NAME}.pth', timm_state())
    rewrite(folder / 'config.json', model_type='dinov2', layer_norm_eps=1e-3)
    with pytest.raises(
        ValueError,
        match=r"not of the family hf-dinov2 \(told by its config.json.*'dinov2'\).*--fam",
    ):
        read_weights(file)
    weights = read_weights(file, family='timm-vit')
    assert weights.told == 'stated'
    assert weights.arch['norm_eps'] == 1e-6
    assert any("model_type 'dinov2', and was not used" in note for note in weights.notes)


def test_stated_sibling_keeps_the_sizes_of_the_config(folder):
    foreign.hf_clip(folder)
    weights = read_weights(folder, family='hf-open-clip')
    assert (weights.family, weights.arch['num_heads'], weights.arch['mlp']) == (
        'hf-open-clip', HEADS, 'gelu',
    )  # fmt: skip
    assert any('was used for' in n and 'num_attention_heads' in n for n in weights.notes)


@pytest.mark.parametrize('quick', [False, True])
def test_open_clip_s_own_config_is_read(tmp_path, quick):
    home, folder = tmp_path / 'home', tmp_path / 'models/of-somebody'
    home.mkdir()
    folder.mkdir(parents=True)
    state = foreign.clip(home).state  # GELU or QuickGELU: no tensor tells
    save(folder / 'open_clip_pytorch_model.bin', state)
    (folder / 'config.json').write_text('{"model_type": "clip"}')  # of other files in the folder
    content = {
        'model_cfg': {
            'quick_gelu': quick,
            'vision_cfg': {'width': foreign.D, 'layers': 2, 'head_width': 8, 'patch_size': 14},
        },
        'preprocess_cfg': {'mean': [0.5] * 3, 'std': [0.25] * 3},
    }
    (folder / 'open_clip_config.json').write_text(json.dumps(content))
    weights = read_weights(folder)
    assert weights.family == ('clip' if quick else 'open-clip')
    assert weights.told.startswith('told by its open_clip_config.json')
    assert weights.arch['mlp'] == ('quick_gelu' if quick else 'gelu')
    assert weights.arch['num_heads'] == foreign.D // 8
    assert (weights.input_mean, weights.input_std) == ((0.5,) * 3, (0.25,) * 3)
    content['model_cfg']['vision_cfg']['layers'] = 3
    (folder / 'open_clip_config.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match='open_clip_config.json says num_hidden_layers 3, its ten'):
        read_weights(folder)
    content['model_cfg']['vision_cfg'].update(layers=2, head_width=0)
    (folder / 'open_clip_config.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r'open_clip_config.json: head_width is 0, not a number'):
        read_weights(folder)
    (folder / 'open_clip_config.json').write_text('{"model_cfg": ["nothing"]}')
    with pytest.raises(ValueError, match='fits clip, open-clip alike'):
        read_weights(folder)


def test_heads_that_nothing_tells_are_asked_for(folder):
    file = save(folder / f'{NAME}.pth', timm_state())
    with pytest.raises(ValueError, match=r'width 24 has no usual one: state it by .*--num-heads N'):
        build(read_weights(file))


# --------------------------------------------------------------------------------------------------
# What is refused


def hf_vit(folder):
    foreign.hf_vit(folder)
    return folder / 'config.json'


DISAGREEMENTS = {
    'width': (dict(hidden_size=48), r'hidden_size 48, its tensors 32: they are of two models'),
    'depth': (dict(num_hidden_layers=3), r'num_hidden_layers 3, its tensors 2'),
    'MLP': (dict(intermediate_size=64), r'intermediate_size 64, its tensors 48'),
    'patch': (dict(patch_size=16), r'patch_size 16, its tensors 14'),
    'heads': (dict(num_attention_heads=5), r'num_attention_heads 5, .*divide .*tensors, 32'),
    'activation': (dict(hidden_act='relu'), r"hidden_act 'relu', and NaViT has gelu.*quick_gelu"),
    'silu without gate': (dict(hidden_act='silu'), r"hidden_act 'silu'"),
    'word': (dict(layer_norm_eps='tiny'), r"config.json: layer_norm_eps is 'tiny', not a number"),
    'zero': (dict(num_attention_heads=0), r'num_attention_heads is 0'),
    'truth': (dict(hidden_size=True), r'hidden_size is True'),
    'NaN': (dict(layer_norm_eps=float('nan')), r'layer_norm_eps is nan'),
    'Qwen': (dict(model_type='qwen2_5_vl'), r"model_type 'qwen2_5_vl': it is Qwen2.5-VL.*windows"),
    'Qwen inside': (
        dict(model_type='x', vision_config={'model_type': 'qwen2_5_vl'}), r'within windows'
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', DISAGREEMENTS)
def test_config_that_disagrees_is_refused(folder, case):
    changes, message = DISAGREEMENTS[case]
    rewrite(hf_vit(folder), **changes)
    with pytest.raises(ValueError, match=f'(?s){NAME}.*{message}'):
        read_weights(folder)


def test_another_gate_than_silu_is_refused(folder):
    foreign.hf_dinov3(folder, swiglu=True)
    rewrite(folder / 'config.json', hidden_act='gelu')
    with pytest.raises(ValueError, match=r"gates by 'gelu', and NaViT by silu alone"):
        read_weights(folder)


@pytest.mark.parametrize('values', [[0.5, 0.5], 'mean', [0.5, 0.5, 'x'], [True] * 3])
def test_statistics_are_three_numbers(folder, values):
    hf_vit(folder)
    rewrite(folder / 'preprocessor_config.json', image_mean=values, image_std=[1, 1, 1])
    with pytest.raises(
        ValueError, match=r'preprocessor_config.json: image_mean is .*three numbers'
    ):
        read_weights(folder)


def damaged(change):
    """A folder of shards, and something done to it."""

    def make(folder):
        index = shards_of(folder, timm_state())
        shards = sorted(folder.glob('*.safetensors'))
        change(folder, index, shards)
        return folder

    return make


def moved(key):
    def change(folder, index, shards):
        listed = json.loads(index.read_text())['weight_map']
        rewrite(index, weight_map=listed | {'norm.weight': key})

    return change


def without_a_tensor(folder, index, shards):
    part = dict(list(timm_state().items())[1::3])
    part.pop(next(iter(part)))
    save_file(part, shards[1])


def twice(folder, index, shards):
    part = dict(list(timm_state().items())[1::3]) | dict(list(timm_state().items())[:1])
    save_file(part, shards[1])


def text(name, words):
    def make(folder):
        (folder / name).write_text(words)
        return folder

    return make


def of_state(change, name=f'{NAME}.pth'):
    return lambda folder: save(folder / name, change(timm_state()))


def cut(name):
    def make(folder):
        file = save(folder / name, timm_state())
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        return folder

    return make


def first_half(folder, index, shards):
    shards[2].write_bytes(shards[2].read_bytes()[:1000])


def script(folder):
    module = torch.jit.script(torch.nn.Linear(2, 2))
    torch.jit.save(module, folder / 'ViT-B-32.pt')
    return folder / 'ViT-B-32.pt'


def siglip(folder):
    """Of the first SigLIP, whose kernel is that of a convolution."""
    state = foreign.hf_siglip2(folder / 'naflex').state
    key = next(key for key in state if key.endswith('patch_embedding.weight'))
    return save(folder / 'siglip.pth', state | {key: torch.ones(32, 3, 14, 14)})


def two_families(state):
    other = foreign.dinov2().state
    return {f'a.{k}': t for k, t in state.items()} | {f'b.{k}': t for k, t in other.items()}


BAD = {
    'no shard': (damaged(lambda folder, index, shards: shards[1].unlink()),
                 r'lacks model-00002-of-00003.safetensors: model.safetensors.index.json lists 3'),
    'cut shard': (damaged(first_half), r'model-00003-of-00003.safetensors is truncated'),
    'page as shard': (damaged(lambda f, i, shards: shards[0].write_text('<!doctype html>')),
                      r'model-00001-of-00003.safetensors is a web page'),
    'shard without a tensor': (damaged(without_a_tensor),
                               r'00002-of-00003.safetensors lacks \S+, which .*json promises'),
    'tensor twice': (damaged(twice), r'00002-of-00003.safetensors: cls_token is in another file'),
    'outside, above': (damaged(moved('../w.safetensors')), r"index.json: norm.weight .*'../w"),
    'outside, below': (damaged(moved('a/../../w.safetensors')), r"norm.weight .*'a/../../w"),
    'outside, absolute': (damaged(moved('/etc/passwd')), r"norm.weight .*'/etc/passwd'.*no file"),
    'outside, Windows': (damaged(moved('..\\w.safetensors')), r'norm.weight .*no file of this'),
    'outside, drive': (damaged(moved('C:w.safetensors')), r'norm.weight .*no file of this'),
    'shard of no name': (damaged(moved('')), r"norm.weight is said to be in ''"),
    'shard that is a number': (damaged(moved(3)), r'norm.weight is said to be in 3'),
    'index without map': (damaged(lambda f, index, s: rewrite(index, weight_map=None)),
                          r'index.json has no weight_map'),
    'index that is no JSON': (damaged(lambda f, index, s: index.write_text('{"weight')),
                              r'index.json is no JSON'),
    'config that is no JSON': (damaged(lambda f, i, s: (f / 'config.json').write_text('<html>')),
                               r'config.json is no JSON .*--family'),
    'config too deep': (damaged(lambda f, i, s: (f / 'config.json').write_text('[' * 10**5)),
                        r'config.json is no JSON'),
    'config of bytes': (damaged(lambda f, i, s: (f / 'config.json').write_bytes(b'\xff\xfe{')),
                        r'config.json is no JSON'),
    'empty folder': (lambda folder: folder, r'is a folder with none of model.safetensors, '),
    'two files': (lambda folder: save(save(folder / 'a.pth', {}).with_name('b.pt'), {}).parent,
                  r'only a.pth, b.pt: give the path'),
    'page in a folder': (text('model.safetensors', '<html>'), r'model.safetensors is a web page'),
    'page as pickle': (text('pytorch_model.bin', '<!DOCTYPE html>'), r'model.bin is a web page'),
    'pointer': (text('model.safetensors', 'version https://git-lfs.github.com/spec/v1'),
                r'is a Git LFS pointer'),
    'cut file': (cut('model.safetensors'), r'model.safetensors is truncated'),
    'cut pickle': (cut('pytorch_model.bin'), r'pytorch_model.bin is truncated'),
    'TorchScript': (script, r'ViT-B-32.pt is a TorchScript.*safetensors of openai/clip-vit'),
    'NaN': (of_state(lambda s: s | {'norm.bias': torch.full((24,), torch.nan)}),
            r'norm.bias hold NaN or infinity'),
    'wrong shape': (of_state(lambda s: s | {'blocks.1.mlp.fc1.bias': torch.zeros(41)}),
                    r'blocks.1.mlp.fc1.bias: the file has \(41,\)'),
    'bytes': (of_state(lambda s: s | {'norm.bias': torch.zeros(24).to(torch.float8_e4m3fn)}),
              r'holds norm.bias, a tensor that is quantised: take'),
    'two models': (of_state(two_families), r"several models, under \['a.', 'b.'\].*--prefix"),
    'two wrappers': (of_state(lambda s: {'model': s, 'teacher': s}),
                     r"several models, under \['model.', 'teacher.'\].*--prefix"),
    'SigLIP': (siglip, r'patch_embedding.weight has \(32, 3, 14, 14\), not \(width, 3'),
    'only an optimizer': (of_state(lambda s: {'state': {0: s}, 'param_groups': []}),
                          r'holds an optimizer .* and no weights'),
    'no file': (lambda folder: folder / 'w.safetensors', r'w.safetensors does not exist'),
}  # fmt: skip


@pytest.mark.parametrize('case', BAD)
def test_bad_source_is_named_and_nothing_is_left(folder, tmp_path, monkeypatch, case):
    make, message = BAD[case]
    source = make(folder)
    before = sorted(tmp_path.rglob('*'))
    out = tmp_path / 'new' / 'out.safetensors'
    told = call(monkeypatch, convert_weights, source, out, '--num-heads', 3)
    assert re.search(message, told), told
    assert told.startswith('error: ')
    assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('layout', ['pickle of a folder', 'shards of pickles'])
def test_pickled_code_in_a_folder_does_not_run(folder, tmp_path, layout):
    marker = tmp_path / 'it_ran'
    state = timm_state() | {'x': Runs(os.system, f'touch {marker}')}
    LAYOUTS[layout](folder, state)
    with pytest.raises(
        UnsafeWeightsError, match=r'pytorch_model.*bin asks to run.*nothing was run'
    ):
        read_weights(folder)
    assert not marker.exists()


def test_a_link_out_of_the_folder_is_what_the_hub_has(folder, tmp_path):
    """Its cache holds files once and links to them: only names that lead out are refused."""
    shards_of(tmp_path / 'blobs', timm_state())
    for path in (tmp_path / 'blobs').iterdir():
        (folder / path.name).symlink_to(path)
    same(read_weights(folder), convert(timm_state(), family='timm-vit'))


# --------------------------------------------------------------------------------------------------
# What is said


def converted(source, tmp_path, monkeypatch, capsys, *options):
    out = tmp_path / 'out.safetensors'
    assert call(monkeypatch, convert_weights, source, out, '--num-heads', 3, *options) is None
    return ' '.join(capsys.readouterr().out.split()), read_weights(out)


def test_training_checkpoint_gives_its_model_and_lists_the_rest(tmp_path, monkeypatch, capsys):
    state = timm_state()
    optimizer = {'state': {0: {'exp_avg': torch.ones(3)}}, 'param_groups': [{'lr': 0.1}]}
    content = {'epoch': 3, 'model': state, 'optimizer': optimizer, 'model_ema': state, 'args': {}}
    file = tmp_path / f'{NAME}.pth'
    torch.save(content, file)
    text, weights = converted(file, tmp_path, monkeypatch, capsys)
    assert 'left over: epoch, optimizer, model_ema, args' in text
    same(weights, convert(state, family='timm-vit', num_heads=3))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_half_precision_stays_and_is_said(tmp_path, monkeypatch, capsys, dtype, suffix):
    state = {key: item.to(dtype) for key, item in timm_state().items()}
    file = save(tmp_path / f'{NAME}{suffix}', state)
    text, weights = converted(file, tmp_path, monkeypatch, capsys)
    name = str(dtype).removeprefix('torch.')
    assert f'note: values are {name} ({len(weights.tensors)} tensors): kept so' in text
    assert {item.dtype for item in weights.tensors.values()} == {dtype}
    key = 'blocks.1.mlp.fc1.weight'
    assert torch.equal(weights.tensors[key], state[key])
    load_weights(build(weights), weights)


@pytest.mark.parametrize(
    ('name', 'extra', 'options', 'told'),
    [
        ('deit_tiny.pth', {}, (), 'of the family timm-deit, told by its name'),
        ('x.pth', {'decoder_embed.bias': torch.ones(2)}, (), 'of the family mae, told by its keys'),
        ('x.pth', {}, ('--family', 'deit'), 'of the family deit, stated'),
    ],
)
def test_the_family_and_what_told_it_are_said(
    tmp_path, monkeypatch, capsys, name, extra, options, told
):
    file = save(tmp_path / name, timm_state(**extra))
    assert told in converted(file, tmp_path, monkeypatch, capsys, *options)[0]


@pytest.mark.parametrize(
    ('make', 'family'),
    [
        (lambda folder: foreign.dinov2(), 'dinov2'),
        (lambda folder: foreign.dinov2(registers=4), 'dinov2-reg'),
        (foreign.dinov3, 'dinov3'),
        (foreign.hf_mae, 'hf-mae'),
        (foreign.hf_dinov2, 'hf-dinov2'),
        (foreign.hf_siglip2, 'hf-siglip2'),
        (lambda folder: foreign.univitar(), 'univitar'),
        (lambda folder: foreign.mmpretrain(), 'mmpretrain'),
    ],
)
def test_keys_alone_tell_most_families(tmp_path, make, family):
    file = save(tmp_path / 'x.pth', make(tmp_path / 'made').state)
    weights = read_weights(file)
    assert (weights.family, weights.told) == (family, 'told by its keys')


def test_a_name_without_a_folder_tells_no_more(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / 'x.pth', timm_state())
    save(tmp_path / 'vit_base_patch16_224.pth', timm_state())
    with pytest.raises(ValueError, match=r'x.pth fits mae, .* alike'):
        read_weights('x.pth')
    assert read_weights('vit_base_patch16_224.pth').family == 'timm-vit'


def test_progress_is_shown_where_it_takes_long(tmp_path, monkeypatch, capsys):
    file = save(tmp_path / f'{NAME}.safetensors', timm_state())
    command = [file, tmp_path / 'out.safetensors', '--num-heads', 3, '--overwrite']
    assert call(monkeypatch, convert_weights, *command) is None
    assert capsys.readouterr().err == ''
    monkeypatch.setattr(convert_weights, 'LONG', 1)
    assert call(monkeypatch, convert_weights, *command) is None
    shown = [line.split(':')[0] for line in re.split(r'[\r\n]+', capsys.readouterr().err.strip())]
    assert list(dict.fromkeys(shown)) == ['reading', 'checking', 'checksum', 'writing']


@pytest.mark.parametrize('name', ['model.safetensors', 'pytorch_model.bin'])
def test_the_source_is_never_overwritten(folder, monkeypatch, name):
    file = save(folder / name, timm_state())
    target = file if name.endswith('safetensors') else file.with_name('model.safetensors')
    if target != file:
        target.symlink_to(file)
    before = file.read_bytes()
    for source in (folder, file):
        told = call(monkeypatch, convert_weights, source, target, '--overwrite')
        assert 'is the source itself' in told
    assert file.read_bytes() == before


def test_an_existing_file_is_told_before_anything_is_fetched(tmp_path, monkeypatch):
    (tmp_path / 'out.safetensors').touch()
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', None)
    told = call(monkeypatch, convert_weights, 'hf://a/b', tmp_path / 'out.safetensors')
    assert 'out.safetensors exists' in told


def test_names_keep_what_was_given(folder):
    save(folder / 'model.safetensors', timm_state())
    assert find_source(folder).name == str(folder)
    assert find_source(folder / 'model.safetensors').name == str(folder / 'model.safetensors')


def test_univitar_s_config_tells_the_heads(tmp_path):
    """It names no model_type, and its SwiGLU is narrower than intermediate_size by a third."""
    state = foreign.univitar().state
    torch.save(state, tmp_path / 'pytorch_model.bin')
    config = dict(
        pe_type='rope2d', rope_theta=500.0, hidden_size=foreign.D, num_attention_heads=8,
        num_hidden_layers=foreign.DEPTH, intermediate_size=foreign.HIDDEN * 3 // 2,
        patch_size=foreign.PATCH, hidden_act='SwiGLU', layer_norm_eps=1e-6,
    )  # fmt: skip
    (tmp_path / 'config.json').write_text(json.dumps(config))
    weights = read_weights(tmp_path)
    assert (weights.family, weights.arch['num_heads']) == ('univitar', 8)
    assert weights.arch['rope']['theta'] == 500.0
    assert weights.arch['mlp'] == 'swiglu_norm'
    (tmp_path / 'config.json').write_text(json.dumps(config | {'intermediate_size': 96}))
    with pytest.raises(ValueError, match=r'intermediate_size 64, its tensors 48'):
        read_weights(tmp_path)
