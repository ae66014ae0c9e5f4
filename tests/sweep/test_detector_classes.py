"""One config of each class of mmdet's detectors: what docs/adopt.md says of it."""

import importlib.util

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.registry import MODELS, init_default_scope
from oracles import on_canvas, perturb, pictures
from sweep import stock_configs
from sweep.adopt_page import rows
from sweep.one_step import one_step

from navit_backbone.tools.doctor_heads import check_norms

LAYER_NORM = dict(type='LayerNorm2d', eps=1e-6)
SEE_NOTHING = [row.config for row in rows() if row.sees.startswith('nothing')]
every_class = pytest.mark.parametrize('row', rows(), ids=lambda row: row.detector)


@pytest.fixture(autouse=True)
def where_teachers_are(monkeypatch):
    monkeypatch.chdir(stock_configs.STOCK.parent)


def adopted(config):
    """A stock config, and its model with the lines of the page, small."""
    cfg = stock_configs.read(config)
    return cfg, stock_configs.shrink(stock_configs.adopt(config, cfg))


def with_norms(row):
    """The model with LayerNorm2d where the page says so."""
    cfg, model = adopted(row.config)
    for part in row.norms:
        node = model
        for key in part.split('.'):
            node = node[int(key) if key.isdecimal() else key]
        node['norm_cfg'] = LAYER_NORM
    return cfg, model


def sees(detector):
    """The letters that the parts of a detector stand for, but for g and q."""
    letters = set()
    for name, part in detector.named_modules():
        if name.startswith(('backbone', 'neck', 'teacher')):
            continue
        if type(part).__name__ == 'RoIAlign':
            letters.add('r')
        if hasattr(part, 'prior_generator'):
            letters.add('a')
        spatial = getattr(part, 'kernel_size', 1) not in (1, (1, 1))
        if 'Conv' in type(part).__name__ and spatial and not name.startswith('roi_head'):
            letters.add('c')
    return letters


def test_each_class_has_one_row():
    assert len({row.detector for row in rows()}) == len(rows()) > 40


@every_class
def test_a_step_with_the_norms_of_the_page(row):
    if row.needs and importlib.util.find_spec(row.needs) is None:
        pytest.skip(f'{row.config} needs {row.needs}')
    cfg, model = with_norms(row)
    assert str(cfg.model.type).startswith(row.detector)
    detector = one_step(model, stock_configs.pictures(cfg))
    left = [finding.name for finding in check_norms(detector, cfg) if finding.problem]
    assert bool(left) == row.keeps, left
    assert sees(detector) == {'c', 'a', 'r'} & set(row.sees.split(';')[0].split())


@pytest.mark.parametrize('config', SEE_NOTHING, ids=lambda config: config.split('/')[0])
def test_detrs_give_the_same_on_any_canvas(config):
    _, model = adopted(config)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    detector = MODELS.build(model)
    detector.init_weights()  # before it, some level embeddings are whatever the memory held
    detector = perturb(detector, scale=0.05).eval()
    images, outputs = pictures([(64, 50)]), []
    for side in (64, 128):
        canvas = on_canvas(images, height=side, width=side)
        inputs = canvas.float()  # which some of them compute positions in
        inputs.image_sizes = canvas.image_sizes
        info = dict(img_shape=(64, 50), batch_input_shape=(side, side))
        with torch.no_grad():
            outputs.append(detector(inputs, [DetDataSample(metainfo=info)]))
    for alone, larger in zip(*outputs, strict=True):
        assert alone.std() > 0.01
        torch.testing.assert_close(alone, larger, rtol=0, atol=1e-4)
