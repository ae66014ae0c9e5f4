"""The doctor finds what does not fit together in the config of a classifier of clips."""

from pathlib import Path

import pytest
from clip_files import write_video
from mmengine.config import Config
from mmengine.registry import init_default_scope

import navit_backbone.tasks.video  # noqa: F401  registers
from navit_backbone.tasks.common.classes import override
from navit_backbone.tools.doctor_video import examine_clips

CONFIG = Path(__file__).resolve().parents[1] / 'configs/video/cls_navit-ti_20e_folder.py'
TUBELET = (4, 16, 16)


@pytest.fixture
def healthy(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    frames = 12
    for split in ('train', 'val'):
        for label in ('run', 'walk'):
            folder = tmp_path / 'set' / split / label
            folder.mkdir(parents=True)
            for number in range(2):
                write_video(folder / f'{number}.mp4', frames=frames)
                frames += 1  # no two clips are one
    cfg = Config.fromfile(CONFIG)
    override(cfg, {'data_root': str(tmp_path / 'set')})
    cfg.model.backbone.init_cfg = None
    cfg.model.backbone.arch.num_layers = 1
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].update(num_workers=0, persistent_workers=False)
    init_default_scope(cfg.default_scope)
    return cfg


def told(cfg):
    found = list(examine_clips(cfg))
    return {f.name: f.problem for f in found if f.problem}, {
        f.name: f.note for f in found if f.note
    }


def test_a_config_that_fits_has_no_problem(healthy):
    problems, notes = told(healthy)
    assert problems == {}
    assert notes == {}


@pytest.mark.parametrize(
    ('options', 'name', 'problem'),
    [
        (
            {'train_dataloader.collate_fn.patch_size': TUBELET},
            'train_dataloader.collate_fn.patch_size',
            r'[(4, 16, 16)], but the backbone embeds [(2, 16, 16)]',
        ),
        (
            {'val_dataloader.dataset.pipeline.1.patch_size': TUBELET},
            'val_dataloader.dataset.pipeline.1.patch_size',
            'but the backbone embeds',
        ),
        (
            {'model.backbone.temporal_position.max_size': 4},
            'model.backbone.temporal_position.max_size',
            '4 frames have positions, a clip may have 8',
        ),
        ({'model.backbone.arch.pooling': None}, 'model', 'needs arch.pooling'),
        ({'train_dataloader.dataset.data_prefix.clips': 'none'}, 'train_dataloader', 'no folder'),
        (
            {'val_dataloader.dataset.data_prefix.clips': 'train'},
            'val_dataloader: duplicates',
            '4 of 4 samples of val are in training too',
        ),
        (
            {'train_dataloader.batch_sampler.max_tokens': 100},
            'train_dataloader',
            'may have 784 tokens, but a batch at most 100',
        ),
    ],
)
def test_what_does_not_fit_is_named(healthy, options, name, problem):
    healthy.merge_from_dict(options)
    problems, _ = told(healthy)
    assert problem in problems[name]


def test_what_is_worth_knowing(healthy, tmp_path):
    (tmp_path / 'set/train/run/0.mp4').write_bytes(b'nothing')
    healthy.model.backbone.temporal_position = None
    _, notes = told(healthy)
    assert '1 cannot be read' in notes['train_dataloader.dataset']
    assert 'order of the frames is not seen' in notes['model.backbone.temporal_position']


def test_no_clip_that_can_be_read_is_a_problem(healthy, tmp_path):
    for file in (tmp_path / 'set/val').rglob('*.mp4'):
        file.write_bytes(b'nothing')
    problems, _ = told(healthy)
    assert 'not one clip can be read' in problems['val_dataloader.dataset']


def test_several_classes_a_clip_need_a_head_and_metrics_for_them(healthy):
    several = {
        f'{split}_dataloader.dataset.multi_class': True for split in ('train', 'val', 'test')
    }
    override(healthy, several)
    problem = told(healthy)[0]['multi_class']
    fields = [
        'model.head.multi_label=True',
        'val_evaluator.multi_label=True',
        'test_evaluator.multi_label=True',
        'default_hooks.checkpoint.save_best=mAP',
    ]
    assert problem.startswith('train_dataloader.dataset has multi_class=True')
    assert problem.endswith(f'Fix: set {" ".join(fields)}')
    for number, field in enumerate(fields):  # each is asked for as long as it is lacking
        key, value = field.split('=')
        override(healthy, {key: value if value == 'mAP' else True})
        left = told(healthy)[0].get('multi_class', '')
        assert left.endswith(' '.join(fields[number + 1 :]))
        assert field not in left
    assert not left
