"""The page on segmentation: its change of a stock config of mmseg gives a segmentor that trains."""

import re
from pathlib import Path

import mmseg
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from segmentors import batch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
STOCK = Path(mmseg.__file__).parent / '.mim/configs'


def test_a_stock_config_takes_the_backbone_by_the_lines_of_the_page(tmp_path):
    page = (ROOT / 'tasks/segmentation/README.md').read_text()
    (text,) = re.findall(r'```python\n(_base_ = .*?)```', page, re.DOTALL)
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
