"""The commands that a user types: train, test, predict, convert; and what they say to mistakes."""

import argparse
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import NO_WORKERS, call
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image

from navit_backbone.checkpoint import read_checkpoint, read_weights
from navit_backbone.tasks.common.loaded_weights import LoadedWeightsHook, check_fit
from navit_backbone.tasks.common.palette import palette
from navit_backbone.tasks.common.sample_set import write_sample_set
from navit_backbone.tasks.detection.inference import annotated
from navit_backbone.tools import browse, convert_weights, predict, test, train
from navit_backbone.tools.command_line import (
    OptionText,
    add_config_arguments,
    apply_options,
    check_options,
    override,
    read_config,
    typed_options,
)

ROOT = Path(__file__).resolve().parents[1]
CONFIG = next((ROOT / 'configs/detection').glob('retinanet_navit-ti_*_sample.py'))
QUICK = [
    'model.backbone.arch.num_layers=1',
    'model.test_cfg.score_thr=0.0',
    'train_cfg.max_epochs=1',
    'train_cfg.val_interval=1',
    *NO_WORKERS,
]


@pytest.fixture(scope='module')
def sample(tmp_path_factory):
    """A sample set of few drawings."""
    folder = tmp_path_factory.mktemp('sample') / 'set'
    write_sample_set(folder, seed=0, num_pictures=dict(train=8, val=3))
    return folder


@pytest.fixture(scope='module')
def trained(sample, tmp_path_factory):
    """A work dir after one epoch."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        work_dir = tmp_path_factory.mktemp('work')
        options = ['--cfg-options', f'data_root={sample}', *QUICK]
        # a config that counts two classes: the data has five, and the model follows
        options.append('model.bbox_head.num_classes=2')
        assert call(monkeypatch, train, CONFIG, '--work-dir', work_dir, *options) is None
    return work_dir


@pytest.fixture
def options(sample):
    return ['--cfg-options', f'data_root={sample}', *QUICK]


def test_model_counts_the_classes_of_its_data(trained):
    state = read_checkpoint(trained / 'epoch_1.pth')['state_dict']
    assert len(state['bbox_head.retina_cls.bias']) == 9 * 5
    assert Config.fromfile(trained / f'{CONFIG.stem}.py').model.bbox_head.num_classes == 5


def test_resume_goes_on_where_training_stopped(trained, options, monkeypatch, tmp_path):
    for number, resume in enumerate((trained / 'epoch_1.pth', trained)):
        work_dir = tmp_path / str(number)
        arguments = ['--work-dir', work_dir, '--resume', resume, '--amp', *options]
        assert call(monkeypatch, train, CONFIG, *arguments, 'train_cfg.max_epochs=2') is None
        assert not (work_dir / 'epoch_1.pth').exists()
        meta = read_checkpoint(work_dir / 'epoch_2.pth')['meta']
        assert (meta['epoch'], meta['iter']) == (2, 2)
        config = Config.fromfile(work_dir / f'{CONFIG.stem}.py')
        assert config.optim_wrapper.type == 'BFloat16OptimWrapper'


def test_figures_and_drawings_are_written(trained, options, monkeypatch, tmp_path):
    out, show, work_dir = tmp_path / 'a' / 'figures.json', tmp_path / 'show', tmp_path / 'work'
    arguments = ['--out', out, '--show-dir', show, '--work-dir', work_dir, *options]
    assert call(monkeypatch, test, CONFIG, trained / 'epoch_1.pth', *arguments) is None
    figures = json.loads(out.read_text())
    assert 0 <= figures['coco/bbox_mAP'] <= 1
    assert figures['checkpoint'] == str(trained / 'epoch_1.pth')
    assert len(list(show.glob('*.jpg'))) == 3


def test_flips_are_averaged(trained, options, monkeypatch, tmp_path):
    figures = []
    for name, flips in (('plain', []), ('flipped', ['--tta'])):
        out = tmp_path / f'{name}.json'
        arguments = ['--out', out, '--work-dir', tmp_path, *flips, *options]
        assert call(monkeypatch, test, CONFIG, trained / 'epoch_1.pth', *arguments) is None
        figures.append(json.loads(out.read_text()))
    assert figures[0].keys() == figures[1].keys()
    assert figures[0] != figures[1]


# --------------------------------------------------------------------------------------------------
# predict


def test_folder_is_predicted_and_bad_pictures_are_named(
    trained, sample, options, monkeypatch, tmp_path, capsys
):
    source, out = tmp_path / 'in', tmp_path / 'in' / 'out'
    (source / 'deeper').mkdir(parents=True)
    good = sorted((sample / 'val').glob('*.jpg'))
    for folder, file in ((source, good[0]), (source, good[1]), (source / 'deeper', good[0])):
        (folder / file.name).write_bytes(file.read_bytes())
    (source / 'text.png').write_text('no picture')
    (source / 'cut.jpg').write_bytes(good[0].read_bytes()[:200])
    (source / 'notes.txt').write_text('not looked at')
    # outside the folder, with a name that is taken
    extra = sample / 'val' / good[0].name
    for threshold in (1, 0):  # the second time the folder holds the drawings of the first
        arguments = [source, extra, '--out-dir', out, '--score-thr', threshold, *options]
        code = call(monkeypatch, predict, CONFIG, trained / 'epoch_1.pth', *arguments)
    assert code == 3
    content = json.loads((out / 'predictions.json').read_text())
    said, best = capsys.readouterr(), max(item['score'] for item in content['annotations'])
    assert f'none has a score of 1 or more, the best has {best:.2g}.' in said.out
    assert f'{len(content["annotations"])} objects drawn, those of score 0 or more' in said.out
    assert len(content['images']) == 4
    assert sorted(Path(item['file_name']).name for item in content['skipped']) == [
        'cut.jpg',
        'text.png',
    ]
    assert 'text.png cannot be read' in said.err
    drawn = sorted(str(file.relative_to(out)) for file in out.rglob('*.jpg'))
    stem = good[0].stem
    assert drawn == sorted([good[0].name, good[1].name, f'deeper/{good[0].name}', f'{stem}_2.jpg'])
    names = {item['id']: item['name'] for item in content['categories']}
    sizes = {item['id']: item for item in content['images']}
    assert content['annotations']
    for item in content['annotations']:
        x, y, w, h = item['bbox']
        size = sizes[item['image_id']]
        assert item['category_name'] == names[item['category_id']]
        assert 0 <= x <= x + w <= size['width'] + 1e-3
        assert 0 <= y <= y + h <= size['height'] + 1e-3
        assert 0 < item['score'] <= 1
    assert len({item['id'] for item in content['annotations']}) == len(content['annotations'])
    for size in sizes.values():
        with Image.open(size['file_name']) as image:
            assert image.size == (size['width'], size['height'])


def test_prediction_needs_no_data_set(trained, sample, monkeypatch, tmp_path):
    picture = next((sample / 'val').glob('*.jpg'))
    arguments = [picture, '--out-dir', tmp_path, '--cfg-options', 'data_root=nowhere', *QUICK]
    assert call(monkeypatch, predict, CONFIG, trained / 'epoch_1.pth', *arguments) == 0


@pytest.mark.parametrize('size', [(40, 30), (300, 200), (37, 900)])
def test_drawing_keeps_the_size_and_marks_the_box(size):
    image = np.full((*size, 3), 255, dtype=np.uint8)
    box = [size[1] * 0.5, size[0] * 0.5, size[1] * 0.4, size[0] * 0.4]
    item = {'bbox': box, 'category_id': 1, 'category_name': 'a long class name', 'score': 0.5}
    drawn = np.asarray(annotated(image, [item], palette(3)))
    assert drawn.shape == image.shape
    changed = (drawn != 255).any(-1)
    assert changed[round(box[1] + box[3]) - 1, round(box[0] + box[2] / 2)]  # the lower edge
    assert not changed[round(box[1] + box[3] * 0.75), round(box[0] + box[2] * 0.5)]  # inside
    assert np.array_equal(np.asarray(annotated(image, [], palette(3))), image)


def test_boxes_far_beyond_the_image_or_without_size_are_drawn():
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    far = dict(category_id=0, category_name='', bbox=[30, -1e9, 1e9, 2e9])
    drawn = np.asarray(annotated(image, [far], [(255, 0, 0)]))
    assert (drawn[20:, 30:32] == (255, 0, 0)).all()  # the left edge, below the label
    assert not drawn[20:, 33:].any()
    assert np.asarray(annotated(image, [far | dict(bbox=[30, 20, -5, -5])], [(255, 0, 0)])).any()


# --------------------------------------------------------------------------------------------------
# convert


def test_convert_writes_a_file_that_says_how_to_use_it(data_root, monkeypatch, tmp_path, capsys):
    source, out = data_root / 'weights/deit_tiny_patch16_224.pt', tmp_path / 'deit.safetensors'
    assert call(monkeypatch, convert_weights, source, out) is None
    printed = capsys.readouterr().out
    assert '152 tensors loaded, 100.0% of the backbone' in printed
    assert 'maps of 192 channels, patches of 1x16x16' in printed
    weights = read_weights(out)
    assert (weights.family, weights.input_mean) == ('timm-deit', (0.485, 0.456, 0.406))
    # the printed lines build the backbone and load the file
    model = eval(f'dict({printed.split("model=dict(...):")[1]})')
    assert model['data_preprocessor']['mean'] == [123.675, 116.28, 103.53]
    backbone = MODELS.build(model['backbone'])
    backbone.init_weights()
    key = 'blocks.3.mlp.fc1.weight'
    assert torch.equal(backbone.vit.state_dict()[key], weights.tensors[key])
    assert 'exists' in call(monkeypatch, convert_weights, source, out)
    assert (
        call(monkeypatch, convert_weights, source, out, '--family', 'deit', '--overwrite') is None
    )
    assert read_weights(out).position['antialias'] is False
    assert 'is the source itself' in call(monkeypatch, convert_weights, out, out)


# --------------------------------------------------------------------------------------------------
# Mistakes

MISTAKES = {
    'no config': (['nowhere.py'], {}, r'no config at nowhere.py: see configs/'),
    'a slip of a key': ([], {'train_dataloader.batch_sise': 2}, 'did you mean batch_size'),
    'a slip at the top': ([], {'optim_wraper.type': 'x'}, 'did you mean optim_wrapper'),
    'a slip of a part': ([], {'model.bakbone.x': 1}, "'model' has no 'bakbone'.* mean backbone"),
    'an unknown part': ([], {'train_cfg.flux.x': 1}, "unexpected keyword argument 'flux'"),
    'a part of none': ([], {'test_pipeline.0.x.y': 1, 'env_cfg.x.y': 1}, "'env_cfg' has no 'x'"),
    'a place beyond a list': ([], {'param_scheduler.9.end': 1}, "'param_scheduler' has no '9'"),
    'an unknown argument': ([], {'model.backbone.flux': 1}, "NaViTBackbone.* unexpected .*'flux'"),
    'an unknown type': ([], {'model.backbone.type': 'Flux'}, 'Flux is not in the .*registry'),
    'an unknown field': ([], {'model.backbone.arch.flux': 1}, r"no field \['flux'\]: allowed are"),
    'a preset': ([], {'model.backbone.arch.preset': 'huge'}, "arch 'huge' is not one of"),
    'no data': ([], {'data_root': '/nowhere'}, 'no annotation file at /nowhere/annotations'),
    'no weights': ([], {'model.backbone.init_cfg.type': 'Pretrained',
                        'model.backbone.init_cfg.checkpoint': 'gone.pth'},
                   'no weights at gone.pth: set model.backbone.init_cfg.checkpoint=FILE'),
    'a slip in init_cfg': ([], {'model.backbone.init_cfg.type': 'Pretrained',
                                'model.backbone.init_cfg.map': 'x'}, "init_cfg got .*'map'; it"),
    'nothing to resume': (['--resume', 'gone.pth'], {}, 'gone.pth does not exist: give the path'),
    'no image a step': ([], {'train_dataloader.batch_size': 0}, 'batch_size=0 must be 1 or more'),
    'no epoch': ([], {'train_cfg.max_epochs': 0}, 'train_cfg.max_epochs=0 must be 1 or more'),
    'no interval': ([], {'train_cfg.val_interval': 0}, 'val_interval=0 must be 1 or more'),
    'no steps': ([], {'optim_wrapper.accumulative_counts': 0}, 'counts=0 must be 1 or more'),
    'less than no worker': ([], {'val_dataloader.num_workers': -1}, 'num_workers=-1 must be 0 or'),
    'a seed below 0': ([], {'randomness.seed': -1}, 'randomness.seed=-1 must be 0 or more'),
    'a rate of NaN': ([], {'optim_wrapper.optimizer.lr': 'nan'}, 'lr=nan must be 0 or more'),
    'a rate below 0': ([], {'optim_wrapper.optimizer.lr': -1}, 'optimizer.lr=-1 must be 0 or more'),
    'an empty folder': (['--resume', str(ROOT / 'docs')], {}, 'holds no checkpoint'),
    'slurm without CUDA': (['--launcher', 'slurm'], {}, 'needs CUDA.*torchrun'),
    'one process': (['--launcher', 'pytorch'], {}, 'torchrun --nproc_per_node'),
}  # fmt: skip


@pytest.mark.parametrize('case', MISTAKES)
def test_mistake_in_training_is_told_in_a_sentence(case, sample, monkeypatch, tmp_path):
    arguments, changes, message = MISTAKES[case]
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.delenv('RANK', raising=False)
    (tmp_path / 'docs').mkdir()
    arguments = [str(tmp_path / 'docs') if 'docs' in a else a for a in arguments]
    config = [] if case == 'no config' else [CONFIG]
    changes = {'data_root': sample, **changes}
    if case == 'no config':
        changes = {}
    options = [f'{key}={value}' for key, value in changes.items()]
    arguments = [*config, *arguments, '--work-dir', tmp_path]
    if options:
        arguments += ['--cfg-options', *QUICK, *options]
    code = call(monkeypatch, train, *arguments)
    assert isinstance(code, str)
    assert code.startswith('error: ')
    assert re.search(message, code), code


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('x = (1,', r'broken.py, line 1: .*never closed'),
        ("_base_ = ['gone.py']", r'gone.py'),
        ('x = y', r"NameError: name 'y' is not defined"),
        ("custom_imports = dict(imports=['no_such_module'])", r'no_such_module.*doctor'),
    ],
)
def test_broken_config_is_told_with_its_file(text, message, tmp_path, monkeypatch):
    (tmp_path / 'broken.py').write_text(text)
    code = call(monkeypatch, train, tmp_path / 'broken.py')
    assert isinstance(code, str)
    assert re.search(message, code), code


def test_options_that_are_no_assignments_are_refused(monkeypatch, capsys):
    assert call(monkeypatch, train, CONFIG, '--cfg-options', 'flux') == 2
    assert "'flux' is not KEY=VALUE" in capsys.readouterr().err


# What a config holds, as `a`; what is typed behind `a=`; and what the option becomes.
@pytest.mark.parametrize(
    ('held', 'typed', 'value'),
    [
        # a text stays the text that was typed
        ('data/x', '/a,b/c', '/a,b/c'),
        ('data/x', '2024', '2024'),
        ('data/x', "it's", "it's"),
        ('data/x', '/data/my pictures', '/data/my pictures'),
        ('data/x', 'a=b', 'a=b'),
        ('data/x', '"quoted, text"', 'quoted, text'),
        ('bbox', '[bbox,segm]', ['bbox', 'segm']),
        ('bbox', 'None', None),
        # of a list of texts each part stays one
        (('cat', 'dog'), '0,01,2', ['0', '01', '2']),
        (['cat'], 'traffic light', ['traffic light']),
        (['cat'], "['road', 'traffic light']", ['road', 'traffic light']),
        (['cat'], '(road,traffic light)', ['road', 'traffic light']),
        (['cat'], '"a, b",True', ['a, b', 'True']),
        # anything else is read as Python would
        (1, '1e-4', 1e-4),
        ((1, 2), '(0.9, 0.999)', (0.9, 0.999)),
        (16, '[2, 16, 16]', [2, 16, 16]),
        (True, 'false', False),
        (None, '3', 3),
        (dict(b=1), 'None', None),
        (None, '[(1, 2), [a b]]', [(1, 2), ['a b']]),
    ],
)
def test_options_take_the_type_that_the_config_holds(held, typed, value):
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    args = parser.parse_args(['config.py', '--cfg-options', f'a={typed}', '--cfg-options', 'c=1'])
    assert typed_options(Config(dict(a=held)), args.cfg_options) == {'a': value, 'c': 1}


def test_a_loss_scale_may_be_a_word_or_a_number():
    """mmengine's AmpOptimWrapper takes 'dynamic' or a float, and refuses '512' and 512."""
    cfg = Config(dict(optim_wrapper=dict(loss_scale='dynamic'), work_dir='w'))
    key = 'optim_wrapper.loss_scale'
    for text, value in (('512', 512.0), ('1e4', 1e4), ('dynamic', 'dynamic')):
        typed = typed_options(cfg, {key: OptionText(text), 'work_dir': OptionText('512')})
        assert typed == {key: value, 'work_dir': '512'}
        assert type(typed[key]) is type(value)


def test_paths_and_class_names_are_texts_where_the_config_holds_none():
    typed = {key: OptionText('2024') for key in ('work_dir', 'classes', 'n')}
    assert typed_options(Config(dict(n=None)), typed) == dict(
        work_dir='2024', classes=['2024'], n=2024
    )


def test_classes_may_be_the_path_of_a_list(monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    typed = typed_options(Config({}), {'classes': OptionText('~/my classes.txt')})
    assert typed == {'classes': '/home/me/my classes.txt'}
    cfg = Config(dict(train_dataloader=dict(dataset=dict(type='NaViTCocoDataset'))))
    override(cfg, typed)
    assert cfg.train_dataloader.dataset.metainfo.classes == '/home/me/my classes.txt'


@pytest.mark.parametrize(
    ('held', 'typed', 'words'),
    [
        (20, '1,000', r'a=1,000: the config has 20, and .* Fix: for a list write a=\[1,000\]'),
        (1e-4, '0,0005', 'a=0,0005: the config has 0.0001, and numbers are written without commas'),
        (True, 'no', 'a=no: the config has True, and takes True or False'),
        (dict(img='x'), "{'img': 'y'}", 'a dict cannot be given. Fix: .* as a.img=...'),
        (dict(b=1), 'dict(b=1,c=2)', r'a=dict\(b=1,c=2\): a dict cannot .* as a.b=...'),
        (None, "dict(type='X', b=1)", 'a dict cannot be given. Fix: write it into a config'),
        ([1], "[dict(type='X', b=1)]", 'a dict cannot be given. Fix: write it into a config'),
        (1, '{b:1,c:2}', 'a dict cannot be given'),
        (None, '[1,2', r'a=\[1,2: brackets are opened 1 times and closed 0 times'),
        ((0.9, 1), '(0.9', 'brackets are opened 1 times and closed 0 times'),
        ([1], '1,2]', r'closed 1 times.* Fix: write a list as a=\[1,2\]'),
        ([1], '[1,2)', 'or by the other kind'),
        (True, '1,0', 'a=.*: the config has True, and takes True or False'),
    ],
)
def test_values_of_another_kind_are_refused(held, typed, words):
    with pytest.raises(ValueError, match=f'--cfg-options .*{words}'):
        apply_options(Config(dict(a=held, type='any')), {'a': OptionText(typed)})


def test_the_home_folder_is_found_in_options_config_and_arguments(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'c.py').write_text(
        "data_root = 'data/x/'\n"
        "dataset = dict(data_root=data_root, ann_file='~/a.json', kind='a~/b')\n"
        'val_dataloader = dict(dataset=dataset)\n'
    )
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    args = parser.parse_args(['~/c.py', '--cfg-options', 'data_root=~/my set'])
    cfg = read_config(args.config, args.cfg_options)
    assert cfg.data_root == cfg.val_dataloader.dataset.data_root == f'{tmp_path}/my set'
    assert cfg.val_dataloader.dataset.ann_file == f'{tmp_path}/a.json'
    assert cfg.val_dataloader.dataset.kind == 'a~/b'


@pytest.mark.parametrize('folder', ['Fotos, 2024', '2024', '[x]', "it's", 'a=b', '{{x}}', '~x'])
def test_the_data_may_lie_in_a_folder_of_any_name(folder, sample, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).symlink_to(sample)
    out = tmp_path / 'look'
    arguments = ['--num', 1, '--out-dir', out, '--cfg-options', f'data_root={folder}']
    assert call(monkeypatch, browse, CONFIG, *arguments) is None
    assert (out / 'batch.png').is_file()


def test_without_workers_no_loader_keeps_what_is_of_workers(tmp_path):
    of_workers = dict(persistent_workers=True, prefetch_factor=4, timeout=60)
    loaders = {
        f'{split}_dataloader': dict(num_workers=2, pin_memory=False, **of_workers)
        for split in ('train', 'val', 'test')
    }
    Config(loaders).dump(tmp_path / 'c.py')
    options = {'val_dataloader.num_workers': 0}
    cfg = read_config(tmp_path / 'c.py', options)
    assert cfg.val_dataloader == dict(num_workers=0, pin_memory=False)
    assert cfg.train_dataloader == cfg.test_dataloader == loaders['train_dataloader']


def test_options_for_parts_that_are_judged_elsewhere_pass(capsys):
    cfg = Config(
        dict(
            model=dict(type='A', backbone=dict(type='B', arch=dict(preset='tiny'), init_cfg=None)),
            train_dataloader=dict(batch_size=2),
            pipeline=[dict(type='C')],
        )
    )
    options = {
        'model.backbone.drop_path_rate': 0.1,
        'model.backbone.init_cfg.checkpoint': 'x',
        'model.backbone.arch.prefix_tokens': 1,
        'train_dataloader.prefetch_factor': 4,
        'pipeline.0.prob': 1,
        'load_from': 'x',
    }
    check_options(cfg, options)
    printed = capsys.readouterr().err
    assert 'train_dataloader.prefetch_factor adds' in printed
    assert 'drop_path_rate' not in printed


def test_faults_of_the_program_keep_their_traceback(monkeypatch, tmp_path):
    def fail(*_):
        torch.zeros(2).reshape(3)

    monkeypatch.setattr(train, 'read_config', fail)
    monkeypatch.setattr(sys, 'argv', ['train', str(CONFIG)])
    with pytest.raises(RuntimeError, match='shape'):
        train.main()
    monkeypatch.setattr(train, 'read_config', lambda *_: int('x'))
    with pytest.raises(ValueError, match='literal'):  # not one of our sentences
        train.main()


@pytest.mark.parametrize(
    ('tool', 'line'),
    [
        (train, 'model = None'),
        (train, "model = 'vit'"),
        (train, 'optim_wrapper = None'),
        (test, 'test_evaluator = []'),
        (test, 'model = None'),
        (predict, 'model = None'),
        (browse, 'model = None'),
    ],
)
def test_a_part_that_is_no_dict_is_named(tool, line, monkeypatch, tmp_path):
    config, file = tmp_path / 'c.py', tmp_path / 'w.pth'
    config.write_text(f"_base_ = ['{CONFIG}']\n{line}\n")
    file.touch()
    part, value = line.split(' = ')
    out = ['--out-dir', tmp_path / 'o']
    arguments = {test: [file], predict: [file, file, *out], browse: out}.get(tool, [])
    code = call(monkeypatch, tool, config, *arguments)
    assert code == (
        f'error: {config} has {part}={value}. Fix: {part} must be a dict of its settings, as '
        f'{part} = dict(...) in configs/'
    )


@pytest.mark.parametrize('saved', [True, False])
def test_ctrl_c_exits_with_130_and_names_the_checkpoint(saved, monkeypatch, tmp_path, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    if saved:
        (tmp_path / 'epoch_3.pth').touch()
        (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_3.pth'))
    monkeypatch.setattr(train, 'check_start', interrupt)
    assert call(monkeypatch, train, CONFIG, '--work-dir', tmp_path) == 130
    expected = f'goes on from {tmp_path}/epoch_3.pth' if saved else f'{tmp_path} has no checkpoint'
    assert expected in capsys.readouterr().err


def test_test_and_predict_name_what_is_missing(trained, sample, options, monkeypatch, tmp_path):
    picture = next((sample / 'val').glob('*.jpg'))
    out = ['--out-dir', tmp_path, *options]
    file = trained / 'epoch_1.pth'
    (tmp_path / 'empty').mkdir()
    code = call(monkeypatch, test, CONFIG, 'gone.pth', *options)
    assert code == 'error: no checkpoint at gone.pth: give a file of a work dir'
    code = call(monkeypatch, predict, CONFIG, 'gone.pth', picture, *out)
    assert code == 'error: no checkpoint at gone.pth: give a file of a work dir'
    code = call(monkeypatch, predict, CONFIG, file, 'gone', *out)
    assert code == 'error: no file or folder at gone'
    code = call(monkeypatch, predict, CONFIG, file, tmp_path / 'empty', *out)
    assert 'no pictures in' in code
    assert call(monkeypatch, test, CONFIG, file, '--out', 'figures.txt') == 2


def test_half_matching_checkpoint_is_refused_head_included(
    trained, sample, options, monkeypatch, tmp_path
):
    content = torch.load(trained / 'epoch_1.pth', weights_only=False)
    content['state_dict']['bbox_head.retina_cls.bias'] = torch.zeros(9)
    torch.save(content, tmp_path / 'other.pth')
    picture = next((sample / 'val').glob('*.jpg'))
    message = r'other.pth does not fit this model: it lacks .*retina_cls.bias \(9,\)'
    for tool, arguments in ((test, []), (predict, [picture, '--out-dir', tmp_path])):
        work_dir = ['--work-dir', tmp_path] if tool is test else []
        code = call(
            monkeypatch, tool, CONFIG, tmp_path / 'other.pth', *arguments, *work_dir, *options
        )
        assert re.search(message, str(code)), code
    arguments = ['--work-dir', tmp_path, '--resume', tmp_path / 'other.pth', *options]
    code = call(monkeypatch, train, CONFIG, *arguments, 'train_cfg.max_epochs=2')
    assert re.search(message, str(code)), code


def test_new_head_may_start_from_other_weights():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
    state = model.state_dict()
    other = state | {'1.weight': torch.zeros(3, 8), '1.bias': torch.zeros(3)}
    check_fit(model, other, 'w.pth', min_share=0.5)
    check_fit(model, {f'module.{key}': item for key, item in state.items()}, 'w.pth')
    with pytest.raises(ValueError, match=r'it lacks 18 of 90 values, and all are needed'):
        check_fit(model, other, 'w.pth')
    with pytest.raises(ValueError, match=r'it lacks 72 of 90 values, and 50%.*Missing: 0.weight'):
        check_fit(model, {k: t for k, t in state.items() if k[0] == '1'}, 'w.pth', min_share=0.5)


def test_a_file_of_other_names_is_refused_by_what_it_holds():
    model = torch.nn.Linear(8, 2)
    wrapped = {f'model.{key}': item for key, item in model.state_dict().items()}
    contents = {
        r'holds model.weight, model.bias instead.*own names': wrapped,
        r'holds model_ema, epoch instead': dict(model_ema=model.state_dict(), epoch=3),
        r'holds nothing instead': {},
    }
    for message, state in contents.items():
        with pytest.raises(ValueError, match=message):
            check_fit(model, state, 'w.pth')
    array = model.state_dict() | {'bias': np.zeros(2)}
    with pytest.raises(ValueError, match=r'bias \(ndarray\) instead of \(2,\)'):
        check_fit(model, array, 'w.pth')


def test_plain_resume_names_the_latest_file_whatever_read_it(tmp_path):
    (tmp_path / 'last_checkpoint').write_text('epoch_7.pth')
    runner = SimpleNamespace(model=torch.nn.Linear(2, 2), work_dir=str(tmp_path), _train_loop={})
    runner._resume, runner._load_from = True, None
    with pytest.raises(ValueError, match=r'^epoch_7.pth does not fit this model'):
        LoadedWeightsHook().after_load_checkpoint(runner, {'state_dict': {}})


def test_config_always_checks_what_is_loaded():
    hooks = [hook['type'] for hook in read_config(CONFIG, {}).custom_hooks]
    assert hooks.count('LoadedWeightsHook') == 1
