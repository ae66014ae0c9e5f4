"""Every segmentation config: it parses, builds, and takes a step on data in its own layout."""

import ast
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from navit_backbone.tasks.common.classes import follow_classes, override
from navit_backbone.tasks.segmentation.losses import NaViTCrossEntropyLoss

ROOT = Path(__file__).resolve().parents[1] / 'configs'
STOCK = ROOT / 'segmentation/upernet_vit-ti_20e_clothing_crops.py'  # mmseg's own ViT
OF_STOCK = STOCK.with_name('upernet_navit-ti_20e_clothing_crops.py')
CONFIGS = sorted(set((ROOT / 'segmentation').glob('*.py')) - {STOCK})
WIDTHS = dict(s=384, b=768, l=1024)
UNIVITAR = ('univitar-0.3b', 'univitar-0.6b', 'univitar-1b')
HEADS = ('linear', 'segmenter', 'upernet', 'mask2former')
NARROWER = dict(
    channels=24,
    feat_channels=32,
    out_channels=32,
    embed_dims=32,
    num_feats=16,
    feedforward_channels=32,
    num_queries=10,
    num_points=64,
)
every_config = pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)


def narrow(node):
    """Small widths and depths in the config of a head."""
    for key, value in node.items():
        if key in NARROWER and isinstance(value, int) and not (key == 'num_points' and value < 64):
            node[key] = NARROWER[key]
        elif key == 'in_channels' and isinstance(value, list):
            node[key] = [32] * len(value)
        elif key == 'num_layers' or key == 'num_heads':
            node[key] = 2
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, dict):
                narrow(item)


def tiny(cfg):
    """Two narrow blocks from random weights, narrow heads, at most 48 tokens, no workers."""
    backbone = cfg.model.backbone
    backbone.arch.update(num_layers=2, embed_dims=24, num_heads=2, feedforward_channels=48)
    backbone.init_cfg = None
    narrow(cfg.model.decode_head)
    if 'neck' in cfg.model:
        cfg.model.neck.update(in_channels=24, out_channels=32)
    else:
        cfg.model.decode_head.in_channels = 24
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        for transform in loader.dataset.pipeline:
            if 'max_tokens' in transform:
                transform.max_tokens = 48
            if 'min_tokens' in transform:
                transform.min_tokens = 16
            if 'random' in transform:
                transform.random.low_tokens = 24
    cfg.train_dataloader.batch_size = 3
    if 'batch_sampler' in cfg.train_dataloader:
        cfg.train_dataloader.batch_sampler.max_tokens = 144
    return cfg


def write_data_of(cfg, folder):
    """Pictures of several sizes and label maps where the config looks for them."""
    random = np.random.default_rng(0)
    for split in ('train', 'val'):
        data = cfg[f'{split}_dataloader'].dataset
        kind = DATASETS_OF.get(data.type, ('.jpg', '.png'))
        names = [f'{split}{number}' for number in range(3)]
        for name in names:
            size = random.integers(60, 140, size=2)
            city = 'ulm/' if 'Cityscapes' in data.type else ''
            picture = folder / data.data_prefix.img_path / f'{city}{name}{kind[0]}'
            labels = folder / data.data_prefix.seg_map_path / f'{city}{name}{kind[1]}'
            for file in (picture, labels):
                file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(picture), random.integers(256, size=(*size, 3)).astype(np.uint8))
            coarse = random.integers(4, size=(3, 3)).astype(np.uint8)
            wide = cv2.resize(coarse, size[::-1].tolist(), interpolation=cv2.INTER_NEAREST)
            wide[:5] = 255
            cv2.imwrite(str(labels), wide)
        if listed := data.get('ann_file'):
            (folder / listed).write_text('\n'.join(names))
    if not cfg.train_dataloader.dataset.get('metainfo'):
        (folder / 'classes.txt').write_text('a\nb\nc\nd\n')


DATASETS_OF = {'NaViTCityscapesDataset': ('_leftImg8bit.png', '_gtFine_labelTrainIds.png')}


@pytest.fixture
def make(tmp_path):
    """A config at tiny depth, on data of its layout."""

    def make(path, shrink=tiny):
        cfg = shrink(Config.fromfile(path))
        write_data_of(cfg, tmp_path / 'data')
        override(cfg, dict(data_root=str(tmp_path / 'data')))
        cfg.work_dir = str(tmp_path / 'work')
        init_default_scope('mmseg')
        return cfg

    return make


def test_every_head_has_every_size():
    wanted = {(head, size, 'ade20k') for head in HEADS for size in WIDTHS}
    wanted |= {(head, size, 'cityscapes') for head in ('linear', 'upernet') for size in WIDTHS}
    wanted |= {('linear', size, 'ade20k') for size in UNIVITAR}
    parts = [path.stem.split('_') for path in CONFIGS]
    found = {(part[0], part[1].removeprefix('navit-'), part[-1]) for part in parts}
    assert wanted <= found


@every_config
def test_one_loss_and_one_predict_step(path, make):
    cfg = make(path)
    classes = follow_classes(cfg)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    if '-s_' in path.stem:  # one size of each head as under --amp
        cfg.optim_wrapper.type = 'BFloat16OptimWrapper'
    wrapper = build_optim_wrapper(model.train(), cfg.optim_wrapper)
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    data = next(iter(loader))
    check_step(model, data, wrapper)

    cfg.test_dataloader.batch_size = 3
    loader = Runner.build_dataloader(cfg.test_dataloader)
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    model.eval()
    with torch.no_grad():
        for data in loader:
            results = model.test_step(data)
            sizes = {item.img_shape for item in results}
            assert len(sizes) > 1 or 'squashed' in path.stem, 'a batch of several sizes'
            for item in results:
                assert item.pred_sem_seg.shape == item.ori_shape
                assert item.pred_sem_seg.data.max() < len(classes)
            evaluator.process(data_batch=data, data_samples=results)
    figures = evaluator.evaluate(len(loader.dataset))
    assert cfg.default_hooks.checkpoint.save_best in figures
    assert all(0 <= value <= 100 for value in figures.values())


def check_step(model, data, wrapper):
    """Finite losses, and a gradient for every parameter."""
    reached = set()
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for name, parameter in parameters.items():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: reached.add(name))
    losses = model.train_step(data, wrapper)
    assert all(value.isfinite().all() for value in losses.values())
    assert set(parameters) == reached


@every_config
def test_norms_and_losses_do_not_see_padding(path):
    cfg = Config.fromfile(path)
    cfg.model.backbone.init_cfg = None
    init_default_scope('mmseg')
    narrow(cfg.model.decode_head)
    cfg.model.backbone.arch.num_layers = 1
    model = MODELS.build(cfg.model)
    wrong = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
    assert not [name for name, module in model.named_modules() if isinstance(module, wrong)]
    if path.stem.startswith('mask2former'):
        return  # its loss is of classes of queries and of points within masks
    assert isinstance(model.decode_head.loss_decode, NaViTCrossEntropyLoss)
    assert model.data_preprocessor.seg_pad_val == model.decode_head.ignore_index


@every_config
def test_config_is_a_page_with_its_price(path):
    text = path.read_text()
    doc = ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 140
    assert path.stem in doc
    assert 'Cost' in ' '.join(doc.split()) or 'Control arm' in doc
    assert 'shared' not in text.replace('NAVIT_DATA:../shared/data', '').replace(
        'unset: ../shared/data', ''
    )


def test_the_stock_arm_differs_from_ours_in_the_model_alone():
    stock, ours = (Config.fromfile(path) for path in (STOCK, OF_STOCK))
    assert {key for key in ours if ours[key] != stock[key]} == {'model', 'optim_wrapper'}
    rates = []
    for cfg, vit, blocks in ((stock, 'backbone', 'layers'), (ours, 'backbone.vit', 'blocks')):
        cfg.model.pop('pretrained', None)
        cfg.model.backbone.init_cfg = None
        init_default_scope('mmseg')
        model = MODELS.build(cfg.model)
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        found = {names[id(p)]: g['lr'] for g in optimizer.param_groups for p in g['params']}
        assert set(found) == set(names.values())
        layers = [f'{vit}.{blocks}.{i}.' for i in range(12)]
        parts = [f'{vit}.patch_embed.', *layers, 'decode_head.']
        rates.append([{round(found[n], 9) for n in found if n.startswith(part)} for part in parts])
        if cfg is stock:
            modules = {type(module).__module__ for module in model.modules()}
            assert not [name for name in modules if name.startswith('navit_backbone')]
    assert rates[0] == rates[1]
    assert all(len(rate) == 1 for rate in rates[0])


def test_the_stock_arm_takes_a_step(make):
    cfg = make(STOCK, shrink=lambda cfg: cfg)
    cfg.model.pretrained = None
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.batch_size = 2
    follow_classes(cfg)
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model.train(), cfg.optim_wrapper)
    check_step(model, next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0))), wrapper)
    data = next(iter(Runner.build_dataloader(cfg.test_dataloader)))
    with torch.no_grad():
        (item,) = model.eval().test_step(data)
    assert item.pred_sem_seg.shape == item.ori_shape
