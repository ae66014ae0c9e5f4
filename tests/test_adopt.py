"""docs/adopt.md: its five lines, applied to mmdet's own config, give a detector that trains."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from detectors import RETINANET, STOCK, batch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

DOC = Path(__file__).resolve().parents[1] / 'docs/adopt.md'


def documented_diff():
    """The lines of the document's diff, without its header."""
    text = re.search(r'```diff\n@@[^\n]*\n(.*?)```', DOC.read_text(), re.DOTALL)[1]
    return text.splitlines()


def apply(diff, source):
    """`source` with a unified diff of one hunk applied; its context must stand there once."""
    before = '\n'.join(line[1:] for line in diff if line[0] in ' -')
    after = '\n'.join(line[1:] for line in diff if line[0] in ' +')
    assert source.count(before) == 1, f'the context of the diff is not in {RETINANET}'
    return source.replace(before, after)


@pytest.fixture
def cfg(tmp_path):
    """mmdet's config with the diff applied, at tiny depth."""
    shutil.copytree(STOCK / '_base_', tmp_path / '_base_')
    shutil.copytree(STOCK / 'retinanet', tmp_path / 'retinanet')
    path = tmp_path / RETINANET
    path.write_text(apply(documented_diff(), path.read_text()))
    cfg = Config.fromfile(path)
    init_default_scope('mmdet')
    cfg.model.backbone.arch = dict(preset=cfg.model.backbone.arch, num_layers=2)
    cfg.model.backbone.init_cfg = None
    return cfg


def test_the_diff_adds_five_lines_and_takes_none():
    assert [line[0] for line in documented_diff()] == [' '] * 3 + ['+'] * 5


def test_a_loss_and_a_predict_step(cfg):
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    wrapper = build_optim_wrapper(model.train(), cfg.optim_wrapper)
    seen = []
    model.neck.register_forward_hook(lambda *parts: seen.append(parts[2][0].image_sizes))
    losses = model.train_step(batch([(96, 70), (61, 113)]), wrapper)
    assert all(value.isfinite() for value in losses.values())
    with torch.no_grad():
        results = model.eval().test_step(batch([(96, 70), (61, 113)]))
    assert seen == [[(96, 70), (61, 113)]] * 2
    assert all(result.pred_instances.bboxes.isfinite().all() for result in results)


def test_what_the_document_names_is_there(cfg):
    """Its further settings build too; strides and divisor are those of the stock head."""
    strides = cfg.model.bbox_head.anchor_generator.strides
    assert cfg.model.neck.strides == strides
    assert cfg.model.data_preprocessor.pad_size_divisor == strides[-1]
    text = re.search(r'```python\n(.*?)```', DOC.read_text(), re.DOTALL)[1]
    options = Config.fromstring(re.sub(r'(?m)^  ', '', text), '.py').optim_wrapper
    assert options.pop('_delete_')  # of the stock settings, when merged
    model = MODELS.build(cfg.model)
    for kind in ('OptimWrapper', 'BFloat16OptimWrapper'):
        wrapper = build_optim_wrapper(model, {**options, 'type': kind})
        assert len({group['lr'] for group in wrapper.optimizer.param_groups}) == 4
