"""Every detection config: it parses, builds, and takes a step on data in its own layout."""

import ast
from pathlib import Path

import pytest
import torch
from coco_files import write_data_of
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from navit_backbone.tasks.detection.data import follow_classes, override

ROOT = Path(__file__).resolve().parents[1] / 'configs'
CONFIGS = sorted((ROOT / 'detection').glob('*.py'))
BACKBONES = sorted((ROOT / '_base_').glob('navit-*.py'))
NAMES = [path.stem for path in CONFIGS]


def tiny(cfg):
    """Two blocks from random weights, no workers."""
    arch = cfg.model.backbone.arch
    cfg.model.backbone.arch = {
        **({'preset': arch} if isinstance(arch, str) else arch),
        'num_layers': 2,
    }
    cfg.model.backbone.init_cfg = None
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].update(num_workers=0, persistent_workers=False)
    return cfg


@pytest.fixture
def make(tmp_path):
    """A config at tiny depth, on data of its layout with three classes."""

    def make(path, **data):
        cfg = tiny(Config.fromfile(path))
        write_data_of(cfg, tmp_path / 'data', **data)
        override(cfg, dict(data_root=str(tmp_path / 'data')))
        cfg.work_dir = str(tmp_path / 'work')
        init_default_scope('mmdet')
        return cfg

    return make


def test_there_are_configs():
    assert len(CONFIGS) >= 3
    assert len(BACKBONES) == 4


@pytest.mark.parametrize('path', CONFIGS, ids=NAMES)
def test_one_loss_and_one_predict_step(path, make):
    cfg = make(path)
    assert follow_classes(cfg) == ('a', 'b', 'c')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    wrapper = build_optim_wrapper(model.train(), cfg.optim_wrapper)
    start = [p.detach().clone() for p in model.parameters()]
    losses = model.train_step(
        next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0))), wrapper
    )
    assert all(value.isfinite().all() for value in losses.values())
    assert all((p != q).any() for p, q in zip(model.parameters(), start, strict=True))

    loader = Runner.build_dataloader(cfg.test_dataloader)
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    model.eval()
    with torch.no_grad():
        for data in loader:
            (found,) = results = model.test_step(data)
            height, width = found.ori_shape
            boxes = found.pred_instances.bboxes
            assert boxes.isfinite().all()
            assert (boxes >= 0).all()
            assert (boxes <= torch.tensor([width, height] * 2) + 1e-3).all()
            evaluator.process(data_batch=data, data_samples=results)
    assert -1 <= evaluator.evaluate(len(loader.dataset)).get('coco/bbox_mAP', 0) <= 1


@pytest.mark.parametrize('path', CONFIGS, ids=NAMES)
def test_pipelines_suit_stock_tools_and_native_sizes(path):
    cfg = Config.fromfile(path)
    for split in ('train', 'val', 'test'):
        pipeline = cfg[f'{split}_dataloader'].dataset.pipeline
        kinds = [transform['type'] for transform in pipeline]
        assert (kinds[0], kinds[-1]) == ('LoadImageFromFile', 'PackDetInputs')
        assert 'Pad' not in kinds
    assert cfg.default_scope == 'mmdet'
    coarsest = cfg.model.neck.strides[-1]
    assert cfg.model.data_preprocessor.pad_size_divisor == coarsest
    assert cfg.model.bbox_head.anchor_generator.strides == cfg.model.neck.strides


@pytest.mark.parametrize('path', CONFIGS, ids=NAMES)
def test_a_config_is_a_page_with_its_command(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 140
    docstring = ast.get_docstring(ast.parse(source))
    assert f'python tools/train.py configs/detection/{path.name}' in docstring
    assert 'custom_imports' not in source
    assert '::' not in source


def test_data_that_the_folder_of_real_sets_holds_is_where_configs_look(data_root, monkeypatch):
    monkeypatch.setenv('NAVIT_DATA', str(data_root))
    cfg = Config.fromfile(ROOT / 'detection/retinanet_navit-ti_20e_raccoon.py')
    assert Path(cfg.model.backbone.init_cfg.checkpoint).is_file()
    assert Path(cfg.val_evaluator.ann_file).is_file()
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        root = Path(loader.dataset.data_root)
        assert (root / loader.dataset.ann_file).is_file()
        assert (root / loader.dataset.data_prefix.img).is_dir()


@pytest.mark.parametrize('path', BACKBONES, ids=lambda path: path.stem)
def test_the_papers_block(path):
    cfg = Config.fromfile(path)
    cfg.model.backbone.arch.num_layers = 2
    with torch.device('meta'):  # of the width alone
        vit = MODELS.build(cfg.model.backbone).vit
    attention = vit.blocks[0].attn
    assert attention.qkv.bias is None
    assert attention.q_norm.weight.numel() == vit.arch.embed_dims // vit.arch.num_heads
    assert cfg.model.backbone.arch.pooling == 'map'  # which a backbone of maps leaves out
    assert type(vit.position).__name__ == 'FactorisedPosition'
    assert (
        path.stem.split('-')[1] == {192: 'ti', 384: 's', 768: 'b', 1024: 'l'}[vit.arch.embed_dims]
    )


def short(cfg, **options):
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.merge_from_dict(options)
    return cfg


def test_a_whole_run_by_mmengine_alone(make):
    """Hooks, schedules, checkpoints and evaluation, as under stock scripts."""
    path = next(path for path in CONFIGS if path.stem.endswith('_sample'))
    cfg = short(make(path, classes=tuple('abcde')), **{'model.test_cfg.score_thr': 0.0})
    runner = Runner.from_cfg(cfg)
    runner.train()
    work_dir = Path(cfg.work_dir)
    assert (work_dir / 'epoch_1.pth').is_file()
    assert 'val/coco/bbox_mAP' in runner.message_hub.log_scalars
    assert list(work_dir.glob('best_coco_bbox_mAP_epoch_1.pth'))
    meta = torch.load(work_dir / 'epoch_1.pth', weights_only=False)['meta']
    assert meta['dataset_meta']['classes'] == tuple('abcde')


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_classes_that_the_head_does_not_count_are_refused_with_both_numbers(make, split):
    cfg = short(make(CONFIGS[0], classes=tuple('abcdefg')), **{'model.bbox_head.num_classes': 4})
    cfg.load_from = None
    if split != 'train':
        for part in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler'):
            cfg[part] = None
    runner = Runner.from_cfg(cfg)
    with pytest.raises(ValueError, match=r'num_classes=4, but .*\.json has 7 classes: set model\.'):
        getattr(runner, split)()
