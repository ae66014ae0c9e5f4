"""The page on segmentation: its change of a stock config of mmseg gives a segmentor that trains."""

import re
from pathlib import Path

import cv2
import mmseg
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope
from segmentors import batch
from torch import nn

from navit_backbone.tasks.common.sample import SampleIndex

ROOT = Path(__file__).resolve().parents[1]
STOCK = Path(mmseg.__file__).parent / '.mim/configs'


def examples():
    """The configs that the page writes out."""
    page = (ROOT / 'tasks/segmentation/README.md').read_text()
    return re.findall(r'```python\n(_base_ = .*?)```', page, re.DOTALL)


def test_a_stock_config_takes_the_backbone_by_the_lines_of_the_page(tmp_path):
    (text,) = [text for text in examples() if text.startswith("_base_ = 'upernet/")]
    (tmp_path / 'mine.py').write_text(text.replace("_base_ = '", f"_base_ = '{STOCK}/"))
    cfg = Config.fromfile(tmp_path / 'mine.py')
    assert [hook.type for hook in cfg.custom_hooks] == ['MixedSizesHook']
    assert cfg.model.data_preprocessor.mean == [123.675, 116.28, 103.53]
    init_default_scope('mmseg')
    torch.manual_seed(0)
    cfg.model.backbone.arch = dict(preset='small', num_layers=1)
    model = MODELS.build(cfg.model)
    norms = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
    assert not [name for name, module in model.named_modules() if isinstance(module, norms)]
    sizes = [(64, 80), (33, 47)]
    losses = model.train().train_step(batch(sizes), build_optim_wrapper(model, cfg.optim_wrapper))
    assert {'decode.loss_ce', 'aux.loss_ce'} <= set(losses)
    assert losses['loss'].isfinite()
    with torch.no_grad():
        found = model.eval().test_step(batch(sizes))
    assert [sample.pred_sem_seg.shape for sample in found] == sizes


@pytest.mark.parametrize(('kind', 'classes'), [('PascalContext', 60), ('COCOStuff', 171)])
def test_public_sets_without_a_config_are_read_by_the_lines_of_the_page(kind, classes, tmp_path):
    (text,) = [text for text in examples() if f"'NaViT{kind}Dataset'" in text]
    (tmp_path / 'mine.py').write_text(text.replace("'./", f"'{ROOT}/configs/segmentation/"))
    cfg = Config.fromfile(tmp_path / 'mine.py')
    init_default_scope('mmseg')
    for split in ('train', 'val'):
        data = cfg[f'{split}_dataloader'].dataset
        data.data_root = str(tmp_path / 'data')
        suffix = '_labelTrainIds.png' if kind == 'COCOStuff' else '.png'
        pairs = ((data.data_prefix.img_path, '.jpg', 3), (data.data_prefix.seg_map_path, suffix, 1))
        for folder, ending, channels in pairs:
            file = tmp_path / 'data' / folder / f'{split}{ending}'
            file.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(file), np.full((40, 56, channels), 7, dtype=np.uint8))
        if data.get('ann_file'):
            listed = tmp_path / 'data' / data.ann_file
            listed.parent.mkdir(parents=True, exist_ok=True)
            listed.write_text(f'{split}\n')
        found = DATASETS.build(data)
        assert len(found) == 1
        assert len(found.metainfo['classes']) == classes
        index = SampleIndex(0, (0, 0, 0))
        assert (found[index]['data_samples'].gt_sem_seg.data == 7).all()
