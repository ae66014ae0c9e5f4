"""docs/adopt.md: its diffs, applied to mmdet's own configs, give detectors that train."""

import copy
import re
import shutil

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS, init_default_scope
from mmengine.runner import Runner
from sweep.adopt_page import PAGE, diffs
from sweep.adoption import adopted
from sweep.one_step import one_step
from sweep.stock_configs import STOCK, pictures, shrink

from navit_backbone.tasks.common.dataset import BadSampleHook
from navit_backbone.tasks.common.resume import ExactCheckpointHook
from navit_backbone.tasks.common.sample_set import write_sample_set

every_diff = pytest.mark.parametrize('diff', diffs(), ids=lambda diff: diff.config.split('/')[0])
OURS = ('data_preprocessor', 'backbone', 'neck')


@pytest.fixture
def apply(tmp_path):
    """mmdet's config with a diff, beside those that it is based on."""

    def apply(diff):
        folder = diff.config.split('/')[0]
        for name in {'_base_', 'faster_rcnn', 'retinanet', folder}:
            shutil.copytree(STOCK / name, tmp_path / name)
        path = tmp_path / diff.config
        path.write_text(diff.applied())
        init_default_scope('mmdet')
        return Config.fromfile(path)

    return apply


def test_one_stage_two_stages_and_detr_need_five_lines():
    """Each in front of the page, nothing taken away."""
    first = [[line[0] for line in diff.lines] for diff in diffs()[:3]]
    assert first == [[' '] * 3 + ['+'] * 5] * 3
    names = [diff.config.split('/')[0] for diff in diffs()]
    assert names == ['retinanet', 'mask_rcnn', 'dino', 'pafpn', 'mask2former', 'fcos']


@every_diff
def test_the_sweep_applies_what_the_page_says(diff, apply):
    """And nothing else of the model changes, but for norms."""
    stock = Config.fromfile(STOCK / diff.config)
    text = adopted(stock.model.to_dict(), arch='small', width=384, imports=[])
    swept = Config.fromstring(f'_base_ = {str(STOCK / diff.config)!r}\n{text}', '.py').model
    model = apply(diff).model
    if diff.config.startswith('fcos'):
        assert model.bbox_head.pop('norm_cfg').type == 'LayerNorm2d'
    assert model.to_dict() == swept.to_dict()
    assert {key for key in model if model[key] != stock.model.get(key)} <= {*OURS, 'panoptic_head'}


@every_diff
def test_a_training_step_and_a_prediction(diff, apply):
    cfg = apply(diff)
    cfg.model.backbone.arch = dict(preset=cfg.model.backbone.arch, num_layers=2)
    one_step(shrink(cfg.model), pictures(cfg))


def settings(number):
    """The page's further settings as a config."""
    text = re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.DOTALL)[number]
    return Config.fromstring(re.sub(r'(?m)^  ', '', text), '.py')


def test_proposed_optimizer_gives_lower_layers_smaller_rates(apply):
    cfg = apply(diffs()[0])
    cfg.model.backbone.arch = dict(preset='small', num_layers=2)
    options = settings(0).optim_wrapper
    assert options.pop('_delete_')  # of the stock settings, when merged
    model = MODELS.build(cfg.model)
    for kind in ('OptimWrapper', 'BFloat16OptimWrapper'):
        wrapper = build_optim_wrapper(model, {**options, 'type': kind})
        assert len({group['lr'] for group in wrapper.optimizer.param_groups}) == 4


def test_proposed_data_outlives_a_broken_photo_and_repeats(apply, tmp_path):
    write_sample_set(tmp_path / 'set', seed=0, num_pictures=dict(train=4, val=1))
    (tmp_path / 'set/train/00001.jpg').write_bytes(b'no photo')
    cfg = apply(diffs()[0])
    cfg.merge_from_dict(settings(1).to_dict())
    assert {HOOKS.get(hook.type) for hook in cfg.custom_hooks} == {BadSampleHook}
    assert HOOKS.get(cfg.default_hooks.checkpoint.type) is ExactCheckpointHook
    files = dict(ann_file='annotations/instances_train.json', data_prefix=dict(img='train'))
    cfg.train_dataloader.dataset.update(files, data_root=str(tmp_path / 'set'))
    loader = dict(cfg.train_dataloader, num_workers=0, persistent_workers=False)

    def epoch():
        torch.rand(1), np.random.rand()  # what was drawn before is of no weight
        data = Runner.build_dataloader(copy.deepcopy(loader), seed=0)
        return [picture for batch in data for picture in batch['inputs']]

    once, again = epoch(), epoch()
    assert len(once) == len(again) == 4
    assert all(map(torch.equal, once, again))
