"""The doctor finds what does not fit together in the config of a segmentor."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from navit_backbone.tasks.common.classes import follow_classes, override
from navit_backbone.tasks.common.sample_set import write_sample_set
from navit_backbone.tools.doctor_config import examine_config
from navit_backbone.tools.doctor_model import examine_model

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / 'configs/segmentation/segmenter_navit-ti_20e_sample.py'
ARCH = dict(embed_dims=24, num_layers=1, num_heads=2, feedforward_channels=32)

ONE, TWO = dict(classes=['paper']), dict(classes=['paper', 'ring'])
WITHOUT = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]


@pytest.fixture(scope='module')
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sample') / 'set'
    write_sample_set(folder, seed=0, num_pictures=dict(train=3, val=2))
    return folder


@pytest.fixture
def healthy(sample):
    """A config that fits, and its data."""
    cfg = Config.fromfile(SAMPLE)
    override(cfg, {'data_root': str(sample)})
    cfg.model.backbone = dict(type='NaViTBackbone', arch=ARCH, position='learned_1d')
    cfg.model.decode_head.update(in_channels=24, channels=16, num_heads=2)
    init_default_scope('mmseg')
    follow_classes(cfg)
    return cfg


def findings(cfg):
    """All that the doctor says of a config."""

    def examine():
        data = yield from examine_config(cfg)
        yield from examine_model(cfg, data)

    return list(examine())


def problems(cfg):
    return {item.name: item.problem for item in findings(cfg) if item.problem}


def test_masks_of_0_and_255_are_known(healthy, sample, tmp_path):
    shutil.copytree(sample, tmp_path / 'set')
    for file in (tmp_path / 'set').rglob('*.png'):
        labels = np.array(Image.open(file))
        if labels.ndim == 2:
            Image.fromarray(np.where(labels > 0, 255, 0).astype(np.uint8)).save(file)
    override(healthy, {'data_root': str(tmp_path / 'set')})
    told = problems(healthy)['train_dataloader: label maps']
    assert "only 'paper' has pixels" in told
    assert "--colours '0 0 0 paper' '255 255 255 circle'" in told


def test_pictures_of_training_in_the_evaluation_are_named(healthy):
    train = healthy.train_dataloader.dataset
    healthy.val_dataloader.dataset.update(
        data_prefix=train.data_prefix, ann_file=train.get('ann_file', '')
    )
    assert (
        '3 of 3 samples of val are in training too'
        in problems(healthy)['val_dataloader: duplicates']
    )


def test_a_config_that_fits_has_no_problem(healthy):
    found = findings(healthy)
    assert not [item for item in found if item.problem]
    read = {item.name: item.found for item in found if 'label maps' in item.name}
    assert '3 of 3 read' in read['train_dataloader: label maps']
    assert '2 of 2 read' in read['val_dataloader: label maps']


@pytest.mark.parametrize(
    ('options', 'name', 'told'),
    [
        ({'model.decode_head.in_channels': 32}, 'model.decode_head.in_channels', '32, but'),
        ({'model.decode_head.in_index': 3}, 'model.decode_head.in_index', r'[3] of the 1 maps'),
        ({'model.decode_head.in_stride': 32}, 'model.decode_head.in_stride', '32, but'),
        ({'model.data_preprocessor.seg_pad_val': 0}, 'ignore_index', 'padded with 0'),
        (
            {'model.decode_head.loss_decode.type': 'CrossEntropyLoss'},
            'model.decode_head.loss_decode',
            'over ignored pixels too',
        ),
        ({'train_dataloader.dataset.metainfo': TWO}, 'classes', 'classes differ'),
        ({'val_dataloader.dataset.metainfo': TWO}, 'val_dataloader: label maps', 'are 2 labels'),
        ({'val_dataloader.dataset.metainfo': ONE}, 'val_dataloader', 'one class alone'),
        ({'train_dataloader.dataset.pipeline': WITHOUT}, 'pipeline', 'no transform loads label'),
    ],
)
def test_what_does_not_fit_is_named(healthy, options, name, told):
    healthy.merge_from_dict(options)
    wrong = [item for item in findings(healthy) if item.problem]
    assert [item for item in wrong if name in item.name and told in item.problem], wrong


def test_windows_of_several_pictures_are_remarked_on(healthy):
    healthy.model.test_cfg = dict(mode='slide', crop_size=(64, 64), stride=(32, 32))
    healthy.test_dataloader.batch_size = 2
    notes = {item.name: item.note for item in findings(healthy)}
    assert 'batches of one size alone' in notes['model.test_cfg.mode']
    assert 'model.test_cfg.crop_size' not in notes
    healthy.model.test_cfg.crop_size = (60, 64)
    problems = {item.name: item.problem for item in findings(healthy)}
    assert 'set crop_size=(64, 64)' in problems['model.test_cfg.crop_size']


@pytest.mark.parametrize('split', ['train', 'val'])
def test_another_ignored_label_is_a_problem_as_in_training(healthy, split):
    assert not any('ignore_index' in name for name in problems(healthy))
    healthy[f'{split}_dataloader'].dataset.ignore_index = 254
    user = 'model.decode_head' if split == 'train' else 'the metric '
    found = problems(healthy)[f'{split}: ignore_index']
    assert 'has ignore_index=254' in found
    assert user in found
    assert 'has ignore_index=255. Fix: set both to the same number' in found
