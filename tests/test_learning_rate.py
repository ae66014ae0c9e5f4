"""Schedules end with a training whose length was changed on the command line."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader, TensorDataset

from navit_backbone.tasks.common.learning_rate import (
    WarmupCheckHook,
    follow_length,
    length_of,
)
from navit_backbone.tools.command_line import read_config

CONFIGS = Path(__file__).resolve().parents[1] / 'configs/detection'
SAMPLE = 'retinanet_navit-ti_20e_coco-format.py'
COCO = 'mask-rcnn_navit-b_100e_coco.py'


def schedules(config, **options):
    cfg = read_config(CONFIGS / config, {key.replace('__', '.'): v for key, v in options.items()})
    return cfg.param_scheduler


@pytest.mark.parametrize('epochs', [1, 7, 50])
def test_a_cosine_ends_with_the_training(epochs, capsys):
    warmup, cosine = schedules(SAMPLE, train_cfg__max_epochs=epochs)
    assert (warmup.end, cosine.end) == (1, epochs)
    assert f'note: param_scheduler.1.end: 20 -> {epochs}, ' in capsys.readouterr().err


def test_milestones_keep_their_share_of_the_steps():
    warmup, decay = schedules(COCO, train_cfg__max_epochs=50)
    assert warmup.end == 250
    assert decay.milestones == [81422, 88207]  # 8/9 and 26/27 of 50 x 1832
    longer = schedules(COCO, train_dataloader__batch_sampler__steps_per_epoch=3664)[1]
    assert longer.milestones == [2 * 162844, 2 * 176414]
    both = dict(train_cfg__max_epochs=50, train_dataloader__batch_sampler__steps_per_epoch=3664)
    assert schedules(COCO, **both)[1].milestones == [162844, 176414]


@pytest.mark.parametrize('options', [{}, dict(train_cfg__max_epochs=20)])
def test_nothing_changes_where_the_length_does_not(options, capsys):
    assert schedules(SAMPLE, **options)[1].end == 20
    assert 'note' not in capsys.readouterr().err


def test_what_the_user_sets_stays():
    _, cosine = schedules(SAMPLE, train_cfg__max_epochs=50, param_scheduler__1__end=30)
    assert cosine.end == 30


def test_other_forms_of_schedules_follow_too(tmp_path):
    (tmp_path / 'one.py').write_text(
        f"_base_ = '{CONFIGS / SAMPLE}'\n"
        "param_scheduler = [dict(type='CosineAnnealingLR', T_max=20),"
        " dict(type='MultiStepLR', by_epoch=False, milestones=[100, 3]),"
        " dict(type='LinearLR', by_epoch=False, end=20)]\n"
    )
    cosine, steps, warmup = schedules(tmp_path / 'one.py', train_cfg__max_epochs=5)
    assert (cosine.T_max, steps.milestones, warmup.end) == (5, [25, 1], 20)


def test_one_schedule_alone_follows_too():
    cosine = dict(type='CosineAnnealingLR', end=20)
    cfg = Config(dict(train_cfg=dict(max_epochs=20), param_scheduler=cosine))
    before = length_of(cfg)
    cfg.train_cfg.max_epochs = 3
    assert list(follow_length(cfg, before)) == ['param_scheduler.0.end: 20 -> 3']
    assert cfg.param_scheduler.end == 3
    by_iterations = Config(dict(train_cfg=dict(max_iters=100), param_scheduler=cosine))
    assert list(follow_length(by_iterations, before)) == []


class Toy(BaseModel):
    """A weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, *_, **__):
        return {'loss': self.weight.sum()}


@pytest.mark.parametrize(
    'warmup, steps',
    [
        (dict(by_epoch=False, end=7), 7),
        (dict(by_epoch=False, end=6), None),
        (dict(by_epoch=False, end=7, start_factor=1, end_factor=0.1), None),  # it falls
        (dict(end=1, convert_to_iter_based=True), None),
        (dict(end=2), 8),
        (dict(end=3, convert_to_iter_based=True), 12),
    ],
)
def test_a_training_that_only_warms_up_is_warned_of(warmup, steps, tmp_path):
    """Of 3 passes of 4 batches."""
    Runner(
        model=Toy(),
        work_dir=str(tmp_path),
        train_dataloader=DataLoader(TensorDataset(torch.zeros(4))),
        train_cfg=dict(by_epoch=True, max_epochs=3),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        param_scheduler=[dict(type='LinearLR', start_factor=0.1) | warmup],
        custom_hooks=[dict(type=WarmupCheckHook.__name__)],
        default_scope='mmengine',
        experiment_name=f'warm-up {warmup}',
    ).train()
    (log,) = tmp_path.glob('*/*.log')
    said = log.read_text()
    assert '12 steps in all, 4 in a pass of the loader' in said
    assert ('the learning rate warms up for' in said) == (steps is not None)
    if steps is not None:
        assert f'warms up for {steps} of the 12 steps' in said
        assert 'param_scheduler.0.end' in said
