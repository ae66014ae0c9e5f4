"""Data of several classes a clip is not trained on as if a clip had one."""

import json

import numpy as np
import pytest
from clip_files import write_video
from commands import NO_WORKERS, call
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.registry import METRICS, MODELS

import navit_backbone.tasks.video  # noqa: F401  registers
from navit_backbone.tasks.common.clip_data import NaViTClipDataset
from navit_backbone.tasks.video.label_check import check_multi_label
from navit_backbone.tools import train

CONFIG = train.__file__.rsplit('/tools/', 1)[0] + '/configs/video/cls_navit-ti_20e_list.py'
SEVERAL = [f'{split}_dataloader.dataset.multi_class=True' for split in ('train', 'val', 'test')]
FIELDS = [
    'model.head.multi_label=True',
    'val_evaluator.multi_label=True',
    'default_hooks.checkpoint.save_best=mAP',
]


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp('several')
    lines = ''
    for number, labels in enumerate(('0', '1 2', '0 2', '1')):
        frames = [np.full((32, 48, 3), 60 * number, np.uint8)] * 4
        write_video(folder / f'{number}.mp4', content=frames)
        lines += f'{number}.mp4 {labels}\n'
    for split in ('train', 'val'):
        (folder / f'{split}.txt').write_text(lines)
    return folder


def command(clips, tmp_path, *more):
    options = [
        f'data_root={clips}', 'model.backbone.init_cfg=None', 'model.backbone.arch.num_layers=1',
        'train_cfg.max_epochs=1', 'train_dataloader.batch_size=4', 'train_cfg.val_interval=1',
        'train_dataloader.batch_sampler.steps_per_epoch=1', *NO_WORKERS, *SEVERAL, *more,
    ]  # fmt: skip
    return [CONFIG, '--work-dir', tmp_path / 'work', '--cfg-options', *options]


def test_training_asks_for_the_fields_before_the_first_step(clips, monkeypatch, tmp_path):
    message = call(monkeypatch, train, *command(clips, tmp_path))
    assert 'train_dataloader.dataset has multi_class=True' in message
    assert message.endswith(f'Fix: set {" ".join(FIELDS)}')
    assert not list(tmp_path.rglob('*.pth'))


def test_with_these_fields_it_trains_and_keeps_the_best_by_map(clips, monkeypatch, tmp_path):
    fields = [*FIELDS, 'test_evaluator.multi_label=True']
    assert call(monkeypatch, train, *command(clips, tmp_path, *fields)) is None
    assert list(tmp_path.rglob('best_mAP_*.pth'))
    scalars = next(tmp_path.rglob('scalars.json')).read_text().splitlines()
    assert any('mAP' in json.loads(line) for line in scalars)


def head(**options):
    fields = dict(type='NaViTClipHead', num_classes=3, in_channels=4)
    model = MODELS.build(dict(type='VideoClassifier', head=dict(fields, **options), backbone=dict(
        type='NaViTClipBackbone', arch=dict(embed_dims=8, num_layers=1, num_heads=1,
        feedforward_channels=8, pooling='mean'), patch_size=16)))  # fmt: skip
    return model


def test_wrapped_data_and_lists_of_metrics_are_seen(clips):
    data = NaViTClipDataset('train.txt', data_root=str(clips), multi_class=True, pipeline=[])
    metrics = {
        'val_evaluator.0': METRICS.build(dict(type='NaViTClipMetric', multi_label=True)),
        'val_evaluator.1': METRICS.build(dict(type='NaViTClipMetric')),
    }
    model = head(multi_label=True)
    for wrapped in (RepeatDataset(data, 2), ConcatDataset([data])):
        with pytest.raises(ValueError, match=r'Fix: set val_evaluator.1.multi_label=True$'):
            check_multi_label({'train_dataloader': wrapped}, model, metrics, ['mAP'])
    single = NaViTClipDataset(
        data_root=str(clips), pipeline=[], ann_file='single.txt', lazy_init=True
    )
    check_multi_label({'train_dataloader': single}, head(), metrics, 'top1')  # one class a clip
