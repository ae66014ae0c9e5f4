"""The options of docs/training.md do what is said of them, by the lines that stand there."""

import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from navit_backbone.checkpoint import read_checkpoint
from navit_backbone.tasks.common import learning_rate
from navit_backbone.tasks.common.learning_rate import take_base_batch_size
from navit_backbone.tasks.common.sample_set import write_sample_set
from navit_backbone.tools import train

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / 'configs/detection/retinanet_navit-ti_20e_sample.py'
LINES = re.findall(r'```python\n(.*?)\n```', (ROOT / 'docs/training.md').read_text(), re.DOTALL)
LAYER = 'bbox_head.retina_cls.weight'
MOMENTUM = 0.3  # 0.0002 would hardly show in a few steps
QUICK = """
model = dict(backbone=dict(arch=dict(num_layers=3)), test_cfg=dict(score_thr=0.0))
train_cfg = dict(max_epochs=2, val_interval=1)
default_hooks = dict(logger=dict(interval=1))
optim_wrapper = dict(optimizer=dict(lr=1.0))  # warming up leaves little of it
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = dict(num_workers=0, persistent_workers=False)
custom_hooks = [dict(type='ThroughputHook'), dict(type='WeightsSeen')]
"""


@HOOKS.register_module()
class WeightsSeen(Hook):
    """The weights of one layer after each training batch, and in each validation."""

    priority = 'LOWEST'
    trained: ClassVar[list] = []
    validated: ClassVar[list] = []

    def weights(self, runner):
        return runner.model.get_parameter(LAYER).detach().clone()

    def before_train(self, runner):
        self.trained.append([self.weights(runner)])

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.trained[-1].append(self.weights(runner))

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == 0:
            self.validated.append(self.weights(runner))


def call(tool, *arguments):
    DetLocalVisualizer._instance_dict.clear()  # else it is that of the run before, with its folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [tool.__name__, *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            tool.main()
    return caught.value.code


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A sample set, and configs that build on each other: one for each line of the page."""
    folder = tmp_path_factory.mktemp('options')
    write_sample_set(folder / 'set', seed=0, num_pictures=dict(train=8, val=1))
    texts = [QUICK, *LINES, f'default_hooks = dict(ema=dict(momentum={MOMENTUM}))']
    for number, text in enumerate(texts):
        base = folder / f'{number - 1}.py' if number else SAMPLE
        (folder / f'{number}.py').write_text(f"_base_ = '{base}'\n{text}\n")
    (folder / 'config.py').write_text(f"_base_ = '{folder}/{len(texts) - 1}.py'\n")
    return folder


@pytest.fixture(scope='module')
def trained(folder):
    """Two epochs of four batches with all of the lines."""
    options = ['--cfg-options', f'data_root={folder / "set"}']
    arguments = ['--work-dir', folder / 'work', '--auto-scale-lr', *options]
    assert call(train, folder / 'config.py', *arguments) is None
    return folder / 'work'


@pytest.fixture(scope='module')
def averages(trained):
    """The moving average of the recorded layer after each of the eight batches."""
    first, *rest = WeightsSeen.trained[0][1:]
    found = [first]
    for weight in rest:
        found.append(torch.lerp(found[-1], weight, MOMENTUM))
    return found


def test_each_is_one_line():
    assert len(LINES) == 6
    assert not any('\n' in line for line in LINES)


def test_average_is_what_is_evaluated_and_saved(trained, averages):
    assert len(averages) == 8
    for epoch, batches in ((1, 4), (2, 8)):
        content = read_checkpoint(trained / f'epoch_{epoch}.pth')
        online = WeightsSeen.trained[0][batches]
        average = averages[batches - 1]
        assert (average - online).abs().max() > 1e-5
        torch.testing.assert_close(WeightsSeen.validated[epoch - 1], average)
        torch.testing.assert_close(content['state_dict'][LAYER], average)
        torch.testing.assert_close(content['ema_state_dict'][f'module.{LAYER}'], online)


def test_average_goes_on_after_a_resume(trained, folder):
    options = ['--cfg-options', f'data_root={folder / "set"}']
    arguments = ['--resume', trained / 'epoch_1.pth', '--work-dir', folder / 'resumed', *options]
    assert call(train, folder / 'config.py', *arguments) is None
    contents = [read_checkpoint(path / 'epoch_2.pth') for path in (trained, folder / 'resumed')]
    for part in ('state_dict', 'ema_state_dict'):
        one, other = (content[part] for content in contents)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_weights_change_once_in_two_batches(trained):
    weights = WeightsSeen.trained[0]
    moved = [not torch.equal(a, b) for a, b in pairwise(weights)]
    assert moved == [False, True] * 4


def test_best_checkpoint_is_kept(trained):
    (best,) = trained.glob('best_*.pth')
    assert re.fullmatch(r'best_coco_bbox_mAP_50_epoch_\d.pth', best.name)


def test_tensorboard_and_json_hold_the_log(trained):
    (events,) = trained.glob('*/vis_data/events.*')
    board = EventAccumulator(str(events)).Reload()
    (lines,) = trained.glob('*/vis_data/scalars.json')
    first = json.loads(lines.read_text().splitlines()[0])
    for name in ('loss', 'tokens', 'padded_tokens', 'images', 'tokens_per_s', 'data_wait'):
        (point, *_) = board.Scalars(name)
        assert point.value == pytest.approx(first[name])
    assert 'coco/bbox_mAP_50' in board.Tags()['scalars']


def test_missing_tensorboard_is_told_in_a_sentence(folder, monkeypatch):
    monkeypatch.delitem(sys.modules, 'torch.utils.tensorboard', raising=False)
    monkeypatch.setitem(sys.modules, 'tensorboard', None)
    options = ['--cfg-options', f'data_root={folder / "set"}']
    code = call(train, folder / 'config.py', '--work-dir', folder / 'none', *options)
    assert re.search(r'^error: .*config.py: vis_backends: .*tensorboard.*; install it, or', code), (
        code
    )


def test_frozen_blocks_stay_and_others_move(trained):
    one, two = (read_checkpoint(trained / f'epoch_{e}.pth')['ema_state_dict'] for e in (1, 2))
    moved = {key for key in one if not torch.equal(one[key], two[key])}
    frozen = ('patch_embed', 'position', 'blocks.0.', 'blocks.1.')
    assert not [
        key for key in moved if key.startswith(tuple(f'module.backbone.vit.{k}' for k in frozen))
    ]
    assert any(key.startswith('module.backbone.vit.blocks.2.') for key in moved)
    assert Config.fromfile(trained / 'config.py').model.backbone.with_cp


# --------------------------------------------------------------------------------------------------
# --auto-scale-lr


def test_rate_follows_the_images_of_a_step(trained):
    (log,) = trained.glob('*/*.log')
    said = 'learning rate x 0.0625: 4 images a step (batches of 2 x 1 ranks x 2 accumulated), and'
    assert said in log.read_text()
    (lines,) = trained.glob('*/vis_data/scalars.json')
    first = json.loads(lines.read_text().splitlines()[0])
    assert first['lr'] == pytest.approx(1.0 * 0.01 * 4 / 64)  # the config's, warming up


@pytest.mark.parametrize(
    ('settings', 'wanted', 'expected'),
    [
        (None, False, None),
        (dict(base_batch_size=16), False, None),
        (dict(base_batch_size=16), True, 16),
        (dict(base_batch_size=16, enable=True), False, 16),  # mmengine's own switch
        (dict(base_batch_size=16, enable=False), True, 16),
    ],
)
def test_base_is_the_configs_and_mmengine_does_not_scale_again(settings, wanted, expected):
    cfg = Config(dict(auto_scale_lr=settings))
    assert take_base_batch_size(cfg, wanted=wanted) == expected
    assert not (cfg.auto_scale_lr or {}).get('enable')


@pytest.mark.parametrize('settings', [None, {}, dict(base_batch_size=0), dict(enable=True)])
def test_missing_base_is_told_in_a_sentence(settings):
    with pytest.raises(ValueError, match=r'base_batch_size, which is .*: add auto_scale_lr = dict'):
        take_base_batch_size(Config(dict(auto_scale_lr=settings)), wanted=True)


def test_batches_by_tokens_count_their_mean(monkeypatch):
    monkeypatch.setattr(learning_rate, 'get_world_size', lambda: 4)
    groups = [dict(lr=0.5), dict(lr=0.25)]
    wrapper = SimpleNamespace(
        _accumulative_counts=3, optimizer=SimpleNamespace(param_groups=groups)
    )
    sampler = SimpleNamespace(batch_size=64, mean_batch_size=2.5)
    said = []
    runner = SimpleNamespace(
        optim_wrapper=wrapper,
        build_optim_wrapper=lambda built: built,
        train_dataloader=SimpleNamespace(batch_sampler=sampler),
        logger=SimpleNamespace(info=said.append),
    )
    learning_rate.scale_learning_rate(runner, 60)
    assert [group['lr'] for group in groups] == [0.25, 0.125]  # 2.5 x 4 x 3 = 30 images of 60
    assert said[0].startswith('learning rate x 0.5: 30 images a step (batches of 2.5 x 4 ranks x 3')
