"""A published model: one file that predicts as its checkpoint did, and runs nothing."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call
from detectors import ARCH, MASK_RCNN, STOCK, STRIDES, narrow
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader
from oracles import perturb
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.torch import save_file

from navit_backbone.checkpoint import load_weights
from navit_backbone.sealed import write_sealed
from navit_backbone.tasks.common.classes import set_num_classes
from navit_backbone.tasks.common.published import (
    check_names,
    config_of,
    is_published,
    palette_in,
)
from navit_backbone.tasks.common.sample_set import write_sample_set
from navit_backbone.tools import predict, publish, test
from navit_backbone.vit import EXTRA, NaViT
from navit_backbone.weight_files import UnsafeWeightsError, read_header, read_safetensors

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / 'configs/detection').glob('*-ti_*.py'))  # sizes differ in widths alone
SAMPLE = next((ROOT / 'configs/detection').glob('retinanet_navit-ti_*_sample.py'))
CLASSES = ('circle', 'square', 'triangle')
SIZES = [(61, 113), (97, 64)]


def config(kind='retinanet'):
    """A tiny detector that finds something in everything."""
    cfg = Config.fromfile(SAMPLE)
    if kind == 'mask':
        preprocessor = cfg.model.data_preprocessor
        cfg.model = Config.fromfile(STOCK / MASK_RCNN).model
        narrow(cfg.model, 16)
        cfg.model.data_preprocessor = preprocessor
        cfg.model.neck = dict(
            type='SimpleFeaturePyramid', out_channels=16, strides=STRIDES[MASK_RCNN]
        )
        cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5, mask_thr_binary=0.01)
    else:
        cfg.model.test_cfg.score_thr = 0.0
    cfg.model.backbone = dict(type='NaViTBackbone', arch=ARCH, position='learned_1d')
    cfg.model.neck.in_channels = ARCH['embed_dims']
    set_num_classes(cfg.model, len(CLASSES))
    return cfg


def checkpoint_of(cfg, path, **more):
    """A checkpoint as mmengine saves it, of random weights."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    meta = dict(cfg=cfg.pretty_text, epoch=3, iter=60, dataset_meta=dict(classes=CLASSES))
    model = perturb(MODELS.build(cfg.model), scale=0.05)  # building adds to the config
    content = dict(meta=meta, state_dict=model.state_dict(), optimizer={'state': {}}, **more)
    torch.save(content, path)
    return path


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return checkpoint_of(config(), tmp_path_factory.mktemp('work') / 'epoch_3.pth')


@pytest.fixture(scope='module')
def published(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp('published')
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert call(monkeypatch, publish, checkpoint, folder / 'out.safetensors') is None
    (file,) = folder.glob('out-*.safetensors')
    return file


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / 'pictures'
    folder.mkdir()
    random = np.random.default_rng(0)
    for number, (h, w) in enumerate(SIZES):
        noise = random.integers(0, 256, (h, w, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f'{number}.png')
    return folder


def found(monkeypatch, out, *arguments):
    """What predict writes."""
    assert call(monkeypatch, predict, *arguments, '--out-dir', out, '--device', 'cpu') == 0
    return json.loads((out / 'predictions.json').read_text())


# --------------------------------------------------------------------------------------------------
# The file alone


def test_file_predicts_what_its_checkpoint_does(
    checkpoint, published, pictures, tmp_path, monkeypatch
):
    (tmp_path / 'config.json').write_text(json.dumps(config().to_dict()))
    arguments = [tmp_path / 'config.json', checkpoint, pictures]
    ours = found(monkeypatch, tmp_path / 'a', published, pictures)
    theirs = found(monkeypatch, tmp_path / 'b', *arguments)
    assert ours['annotations']
    assert ours['annotations'] == theirs['annotations']
    assert [item['name'] for item in ours['categories']] == list(CLASSES)


def test_file_says_what_it_is(checkpoint, published):
    header = read_header(published)
    assert published.stem == f'out-{header["sha256"][:8]}'
    assert config_of(published).to_dict() == {
        key: value
        for key, value in config().to_dict().items()
        if key not in ('load_from', 'resume')
    }
    assert json.loads(header['dataset_meta'])['classes'] == list(CLASSES)
    assert json.loads(header['notes']) == dict(epoch=3, iter=60, weights='as trained')
    mean = config().model.data_preprocessor.mean
    assert json.loads(header['input_mean']) == [value / 255 for value in mean]
    assert header['package'].startswith('navit-backbone ')
    state = torch.load(checkpoint, weights_only=False)['state_dict']
    tensors = read_safetensors(published)[0]
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[key], state[key]) for key in state)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_can_be_published(path):
    cfg = Config.fromfile(path)
    init_default_scope('mmdet')
    check_names(cfg)


def test_overrides_reach_the_config_inside(published, pictures, tmp_path, monkeypatch):
    option = ['--cfg-options', 'model.test_cfg.max_per_img=2']
    content = found(monkeypatch, tmp_path / 'a', published, pictures, *option)
    assert len(content['annotations']) == 2 * len(SIZES)


# --------------------------------------------------------------------------------------------------
# As weights


def test_file_serves_as_weights_of_a_backbone(checkpoint, published):
    vit = NaViT(ARCH, position='learned_1d')
    report = load_weights(vit, published)
    state = torch.load(checkpoint, weights_only=False)['state_dict']
    assert all(torch.equal(state[f'backbone.vit.{k}'], t) for k, t in vit.state_dict().items())
    assert report.share == 1
    assert any(key.startswith('bbox_head.') for key in report.left_over)
    with pytest.raises(ValueError, match=r'arch.num_heads: 2 in the file, 3 in the model'):
        load_weights(NaViT({**ARCH, 'num_heads': 3}), published)


def test_file_is_tested_like_its_checkpoint(checkpoint, published, tmp_path, monkeypatch):
    write_sample_set(tmp_path / 'set', seed=0, num_pictures=dict(train=2, val=2))
    cfg = config()
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.test_dataloader.dataset.metainfo = dict(classes=CLASSES)
    (tmp_path / 'config.json').write_text(json.dumps(cfg.to_dict()))
    figures = []
    for number, weights in enumerate((checkpoint, published)):
        out = tmp_path / f'{number}.json'
        options = ['--cfg-options', f'data_root={tmp_path / "set"}']
        options += ['--work-dir', tmp_path / 'work', '--out', out]
        assert call(monkeypatch, test, tmp_path / 'config.json', weights, *options) is None
        figures.append({**json.loads(out.read_text()), 'checkpoint': ''})
    assert figures[0] == figures[1]


def test_loader_of_mmengine_finds_the_class_names(published):
    content = CheckpointLoader.load_checkpoint(str(published), map_location='cpu')
    assert content['meta']['dataset_meta']['classes'] == list(CLASSES)


# --------------------------------------------------------------------------------------------------
# Which weights, and their figures


def test_average_is_published_unless_the_raw_weights_are_asked_for(tmp_path, monkeypatch):
    path = checkpoint_of(config(), tmp_path / 'w.pth')
    content = torch.load(path, weights_only=False)
    # EMAHook saves its average as state_dict, and what it averaged here
    raw = {
        f'module.{key}': item if key.endswith(EXTRA) else item + 1
        for key, item in content['state_dict'].items()
    }
    torch.save(content | {'ema_state_dict': {**raw, 'steps': torch.tensor(3)}}, path)
    key = 'backbone.vit.norm.weight'
    for name, options, shift in (('ema', [], 0), ('raw', ['--raw'], 1)):
        assert call(monkeypatch, publish, path, tmp_path / f'{name}.safetensors', *options) is None
        (file,) = tmp_path.glob(f'{name}-*.safetensors')
        tensors, header = read_safetensors(file)
        assert torch.equal(tensors[key], content['state_dict'][key] + shift)
        assert json.loads(header['notes'])['weights'] == (
            'as trained, not averaged' if shift else 'the moving average of training'
        )


def test_figures_are_those_of_the_very_checkpoint(checkpoint, tmp_path, monkeypatch):
    figures = {'config': 'c.py', 'checkpoint': str(checkpoint), 'coco/bbox_mAP': 0.5}
    (tmp_path / 'f.json').write_text(json.dumps(figures))
    out = tmp_path / 'w.safetensors'
    arguments = [checkpoint, out, '--figures', tmp_path / 'f.json']
    assert call(monkeypatch, publish, *arguments) is None
    (file,) = tmp_path.glob('w-*.safetensors')
    notes = json.loads(read_header(file)['notes'])
    assert notes['figures'] == {'config': 'c.py', 'coco/bbox_mAP': 0.5}
    (tmp_path / 'f.json').write_text(json.dumps(figures | {'checkpoint': 'other.pth'}))
    assert 'has the figures of other.pth, not of' in call(monkeypatch, publish, *arguments)
    for text in ('{', '[1, 2]', '"AP"', '3'):
        (tmp_path / 'f.json').write_text(text)
        told = call(monkeypatch, publish, *arguments)
        assert 'f.json is not what tools/test.py --out FILE.json writes' in told


def test_a_wrong_argument_is_told_in_a_sentence(checkpoint, tmp_path, monkeypatch, capsys):
    out = [tmp_path / 'w.safetensors', '--config', SAMPLE, '--cfg-options', 'data_root']
    assert call(monkeypatch, publish, checkpoint, *out) == 2
    assert "'data_root' is not KEY=VALUE" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    for device, told in {'warp': 'Expected one of cpu', 'cuda:99': r'cuda:99.* cannot be'}.items():
        arguments = [checkpoint, '.', '--out-dir', tmp_path / 'out', '--device', device]
        assert call(monkeypatch, predict, SAMPLE, *arguments) == 2
        assert re.search(rf'{told}.*leave it out', capsys.readouterr().err)


def test_weights_that_do_not_fit_are_refused_by_the_name_of_the_checkpoint(
    checkpoint, tmp_path, monkeypatch
):
    content = torch.load(checkpoint, weights_only=False)
    content['state_dict']['bbox_head.retina_cls.bias'][0] = float('nan')
    torch.save(content, tmp_path / 'broken.pth')
    code = call(monkeypatch, publish, tmp_path / 'broken.pth', tmp_path / 'w.safetensors')
    assert re.search('^error: .*broken.pth: bbox_head.retina_cls.bias hold NaN', str(code)), code
    assert [file.name for file in tmp_path.iterdir()] == ['broken.pth']


# --------------------------------------------------------------------------------------------------
# Masks


def test_masks_are_written_and_drawn(pictures, tmp_path, monkeypatch):
    path = checkpoint_of(config('mask'), tmp_path / 'mask.pth')
    assert call(monkeypatch, publish, path, tmp_path / 'mask.safetensors') is None
    (file,) = tmp_path.glob('mask-*.safetensors')
    arguments = [file, pictures, '--score-thr', '0']
    content = found(monkeypatch, tmp_path / 'a', *arguments)
    sizes = {item['id']: (item['height'], item['width']) for item in content['images']}
    assert content['annotations']
    for item in content['annotations']:
        mask = coco_mask.decode(item['segmentation'])
        assert mask.shape == sizes[item['image_id']]
    drawn = [np.asarray(Image.open(path)) for path in sorted((tmp_path / 'a').glob('*.png'))]
    plain = [np.asarray(Image.open(path)) for path in sorted(pictures.glob('*.png'))]
    for number, (new, old) in enumerate(zip(drawn, plain, strict=True)):
        own = [i for i in content['annotations'] if i['image_id'] == number + 1]
        inside = np.any([coco_mask.decode(i['segmentation']) for i in own], axis=0)
        assert new.shape == old.shape
        assert (new != old).any(-1)[inside].mean() > 0.95


# --------------------------------------------------------------------------------------------------
# Nothing is run


def test_a_file_that_was_changed_is_refused(published, pictures, tmp_path, monkeypatch):
    tensors, header = read_safetensors(published)
    forged = tmp_path / 'forged.safetensors'
    arguments = [forged, pictures, '--out-dir', tmp_path / 'a', '--device', 'cpu']
    key = 'backbone.vit.norm.weight'
    save_file({**tensors, key: tensors[key] + 1e-3}, forged, metadata=header)
    assert 'was changed or damaged' in call(monkeypatch, predict, *arguments)
    text = header['config'].replace('"max_per_img": 100', '"max_per_img": 101')
    assert text != header['config']
    save_file(tensors, forged, metadata=header | {'config': text})
    assert 'was changed or damaged' in call(monkeypatch, predict, *arguments)
    del header['sha256']
    save_file(tensors, forged, metadata=header)
    assert 'is no published model' in call(monkeypatch, predict, *arguments)


def call_of(marker):
    return f"__import__('pathlib').Path({str(marker)!r}).touch()"


def set_at(cfg, place, value):
    *parents, last = place.split('.')
    for part in parents:
        cfg = cfg[int(part) if isinstance(cfg, list) else part]
    cfg[last] = value


HOSTILE = {  # what is set where; each of these mmengine, mmcv or mmdet would run
    'nms that is evaluated': {'model.test_cfg.nms.type': '{call}'},
    'a function as a type': {
        'model.bbox_head.loss_cls': dict(type='builtins.open', file='{marker}', mode='w')},
    'module that a type imports': {'model.neck.type': 'evil.Neck'},
    'module that a bare type imports': {'model.neck.type': 'evil'},
    'module that a scope imports': {'model.neck._scope_': 'evil'},
    'scope of the whole': {'default_scope': 'evil'},
    'class that evaluates': {
        'model.bbox_head.bbox_coder': dict(type='CameraMotionCompensation', warp_mode='{call}')},
    'detector that runs a config': {
        'model.type': 'KnowledgeDistillationSingleStageDetector',
        'model.teacher_config': '{folder}/evil/utils.py'},
    'transform': {'test_dataloader.dataset.pipeline.0.type': 'evil.Load'},
    'transform of a wrong kind': {'test_dataloader.dataset.pipeline.0.type': ['evil']},
}  # fmt: skip


@pytest.mark.parametrize('case', HOSTILE)
def test_config_inside_runs_nothing(case, published, pictures, tmp_path, monkeypatch):
    marker = tmp_path / 'marker'
    (tmp_path / 'evil').mkdir()
    for name in ('__init__', 'registry', 'utils'):
        (tmp_path / 'evil' / f'{name}.py').write_text(call_of(marker))
        monkeypatch.delitem(sys.modules, f'evil.{name}', raising=False)
    monkeypatch.delitem(sys.modules, 'evil', raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    texts = {'{call}': call_of(marker), '{marker}': str(marker), '{folder}': str(tmp_path)}
    cfg = config_of(published)
    for place, value in HOSTILE[case].items():
        text = json.dumps(value)
        for name, meant in texts.items():
            text = text.replace(name, meant)
        set_at(cfg, place, json.loads(text))
    forged = tmp_path / 'forged.safetensors'  # sealed anew: whoever forges can do that
    tensors, header = read_safetensors(published)
    write_sealed(forged, tensors, header | {'config': json.dumps(cfg.to_dict())})
    arguments = [forged, pictures, '--out-dir', tmp_path / 'a', '--device', 'cpu']
    code = call(monkeypatch, predict, *arguments)
    assert isinstance(code, str)
    assert code.startswith('error: ')
    assert not marker.exists()


@pytest.mark.parametrize('meta', [{}, {'classes': CLASSES, 'CLASSES': []}, {'classes': ''}, []])
@pytest.mark.parametrize('kind', ['evil.Data', 'mmdet.CrowdHumanDataset'])
def test_no_data_set_is_built_to_name_the_classes(
    kind, meta, published, pictures, tmp_path, monkeypatch
):
    marker = tmp_path / 'marker'
    (tmp_path / 'evil.py').write_text(call_of(marker))
    (tmp_path / 'sizes.pkl').write_bytes(
        b'cbuiltins\nexec\n(V' + call_of(marker).encode() + b'\ntR.'
    )
    monkeypatch.delitem(sys.modules, 'evil', raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    cfg = config_of(published)
    cfg.test_dataloader.dataset = dict(
        type=kind,
        data_root=str(tmp_path),
        ann_file='val.json',
        extra_ann_file=str(tmp_path / 'sizes.pkl'),
        pipeline=cfg.test_dataloader.dataset.pipeline,
    )
    forged = tmp_path / 'forged.safetensors'
    tensors, header = read_safetensors(published)
    texts = {'config': json.dumps(cfg.to_dict()), 'dataset_meta': json.dumps(meta)}
    write_sealed(forged, tensors, header | texts)
    arguments = [forged, pictures, '--out-dir', tmp_path / 'a', '--device', 'cpu']
    code = call(monkeypatch, predict, *arguments)
    assert not marker.exists()
    assert 'holds no class names' in code


def test_imports_that_a_config_asks_for_are_not_made(published, pictures, tmp_path, monkeypatch):
    (tmp_path / 'evil.py').write_text(call_of(tmp_path / 'marker'))
    monkeypatch.delitem(sys.modules, 'evil', raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    tensors, header = read_safetensors(published)
    cfg = config_of(published)
    cfg.custom_imports = dict(imports=['evil'], allow_failed_imports=False)
    forged = tmp_path / 'forged.safetensors'
    write_sealed(forged, tensors, header | {'config': json.dumps(cfg.to_dict())})
    found(monkeypatch, tmp_path / 'a', forged, pictures)
    assert not (tmp_path / 'marker').exists()


# --------------------------------------------------------------------------------------------------
# Mistakes


def test_mistakes_are_told_in_a_sentence(checkpoint, pictures, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'out.safetensors'
    assert 'ends in .safetensors' in call(monkeypatch, publish, checkpoint, tmp_path / 'out.pth')
    assert '--raw: training kept no' in call(monkeypatch, publish, checkpoint, out, '--raw')
    content = torch.load(checkpoint, weights_only=False)
    bare = tmp_path / 'bare.pth'
    torch.save({'state_dict': content['state_dict']}, bare)
    assert 'holds no config of values alone: give --config' in call(monkeypatch, publish, bare, out)
    arguments = [bare, out, '--config', SAMPLE]
    assert 'holds no class names: tools/train.py' in call(monkeypatch, publish, *arguments)
    assert 'does not fit' in call(monkeypatch, publish, checkpoint, out, '--config', SAMPLE)
    assert call(monkeypatch, predict, SAMPLE, pictures, '--out-dir', tmp_path / 'found') == 2
    assert 'no INPUT' in capsys.readouterr().err
    foreign = tmp_path / 'foreign.safetensors'
    save_file({'a': torch.zeros(2)}, foreign)
    arguments = [foreign, pictures, '--out-dir', tmp_path / 'found']
    assert 'is no published model' in call(monkeypatch, predict, *arguments)
    assert not list(tmp_path.glob('out*'))


def test_colours_are_colours_or_none():
    assert palette_in({'palette': [[0, 1, 255], (2, 3, 4)]}) == [(0, 1, 255), (2, 3, 4)]
    for given in (None, 'red', [[1, 2]], [[1, 2, 256]], [[1, 2, -1]], [[1, 2, 0.5]], [1, 2, 3], 7):
        assert palette_in({'palette': given}) == []
    assert palette_in(None) == palette_in({}) == palette_in('palette') == []


def test_an_average_of_checkpoints_is_published_and_opens(checkpoint, monkeypatch, tmp_path):
    """Averaging makes floats of the bytes that hold the architecture."""
    content = torch.load(checkpoint, weights_only=False)
    content['state_dict'] = {
        k: (v.double() * 2 / 2).float() for k, v in content['state_dict'].items()
    }
    torch.save(content, tmp_path / 'mean.pth')
    assert call(monkeypatch, publish, tmp_path / 'mean.pth', tmp_path / 'out.safetensors') is None
    (file,) = tmp_path.glob('out-*.safetensors')
    tensors, _ = read_safetensors(file)
    assert tensors[f'backbone.vit.{EXTRA}'].dtype == torch.uint8
    Image.fromarray(np.full((64, 96, 3), 90, np.uint8)).save(tmp_path / 'a.png')
    out = tmp_path / 'found'
    assert call(monkeypatch, predict, file, tmp_path / 'a.png', '--out-dir', out) == 0
    assert len(json.loads((out / 'predictions.json').read_text())['images']) == 1


def test_a_file_that_cannot_be_opened_again_is_not_left(checkpoint, monkeypatch, tmp_path):
    content = torch.load(checkpoint, weights_only=False)
    content['state_dict'][f'backbone.vit.{EXTRA}'] = torch.full((9,), 0.5)
    torch.save(content, tmp_path / 'soup.pth')
    told = call(monkeypatch, publish, tmp_path / 'soup.pth', tmp_path / 'out.safetensors')
    assert re.search('the architecture stored in it .* cannot be read', told)

    def refuse(*_):
        raise UnsafeWeightsError('as predict would refuse it')

    monkeypatch.setattr('navit_backbone.tasks.common.published.load_model', refuse)
    told = call(monkeypatch, publish, checkpoint, tmp_path / 'out.safetensors')
    assert 'as predict would refuse it' in told
    assert [file.name for file in tmp_path.iterdir()] == ['soup.pth']


def test_a_published_model_is_known_by_its_content_too(tmp_path):
    save_file({'a': torch.zeros(2)}, tmp_path / 'model.safetensors')
    content = (tmp_path / 'model.safetensors').read_bytes()
    for name in ('model', 'model.bin', 'model.safetensors.download'):
        (tmp_path / name).write_bytes(content)
        assert is_published(tmp_path / name)
    (tmp_path / 'config.py').write_text('{"a": 1}  # a config')
    torch.save({'a': torch.zeros(2)}, tmp_path / 'a.pth')
    assert not any(is_published(tmp_path / name) for name in ('config.py', 'a.pth', 'none', '.'))
    assert is_published(tmp_path / 'none.safetensors')
