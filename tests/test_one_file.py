"""One converted file starts a detector, a segmentor and a classifier as the public file does."""

from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS

from navit_backbone.checkpoint import read_weights, save_navit
from navit_backbone.tools.command_line import enter_task, read_config

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
NAMES = {
    'detection/retinanet_navit-ti_20e_raccoon.py': 'mmdet',
    'segmentation/linear_navit-ti_20e_clothing.py': 'mmseg',
    'video/cls_navit-ti_10e_fight.py': 'mmcv',
}
LINE = 'model.backbone.init_cfg.checkpoint'


@pytest.fixture(scope='module')
def files(data_root, tmp_path_factory):
    public = data_root / 'weights/deit_tiny_patch16_224.pt'
    converted = tmp_path_factory.mktemp('weights') / 'deit.safetensors'
    save_navit(converted, read_weights(public))
    return public, converted


def started(config, file):
    """The model's tensors before its first step, by the config's own seed."""
    cfg = read_config(config, {LINE: str(file)})
    enter_task(cfg, config)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model.state_dict()


@pytest.mark.parametrize('name', NAMES)
def test_by_one_line_all_tasks_start_alike(files, name, monkeypatch, data_root):
    pytest.importorskip(NAMES[name])
    monkeypatch.setenv('NAVIT_DATA', str(data_root))
    one, other = (started(CONFIGS / name, file) for file in files)
    assert one.keys() == other.keys()
    for key, item in one.items():
        assert torch.equal(item, other[key]), key
    weights = read_weights(files[1]).tensors
    key = 'blocks.7.attn.qkv.weight'
    assert torch.equal(one[f'backbone.vit.{key}'], weights[key])
