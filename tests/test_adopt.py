"""docs/adopt.md: its diffs, applied to mmdet's own configs, give detectors that train."""

import re
import shutil

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from sweep.adopt_page import PAGE, diffs
from sweep.adoption import adopted
from sweep.one_step import one_step
from sweep.stock_configs import STOCK, pictures, shrink

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


def test_further_settings_build_too(apply):
    """The optimizer that the page proposes gives lower layers smaller rates."""
    cfg = apply(diffs()[0])
    cfg.model.backbone.arch = dict(preset='small', num_layers=2)
    text = re.search(r'```python\n(.*?)```', PAGE.read_text(), re.DOTALL)[1]
    options = Config.fromstring(re.sub(r'(?m)^  ', '', text), '.py').optim_wrapper
    assert options.pop('_delete_')  # of the stock settings, when merged
    model = MODELS.build(cfg.model)
    for kind in ('OptimWrapper', 'BFloat16OptimWrapper'):
        wrapper = build_optim_wrapper(model, {**options, 'type': kind})
        assert len({group['lr'] for group in wrapper.optimizer.param_groups}) == 4
