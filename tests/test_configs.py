"""Every detection config: it parses, builds, and takes a step on data in its own layout."""

import ast
from pathlib import Path

import pytest
import torch
from coco_files import write_data_of
from detectors import batch, narrow
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from navit_backbone.tasks.common.classes import follow_classes, override

ROOT = Path(__file__).resolve().parents[1] / 'configs'
CONFIGS = sorted((ROOT / 'detection').glob('*.py'))
BACKBONES = sorted((ROOT / '_base_').glob('navit-*.py'))
WIDTHS = dict(ti=192, s=384, b=768, l=1024)
UNIVITAR = {'univitar-0.3b': 1024, 'univitar-0.6b': 1280, 'univitar-1b': 1920}
HEADS = ['faster-rcnn', 'mask-rcnn', 'cascade-mask-rcnn', 'retinanet', 'fcos', 'dino']
every_config = pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)


def named(stem):
    return next(path for path in CONFIGS if path.stem == stem)


def entries(node, key):
    """Every value of `key` below `node`."""
    for name, value in node.items():
        if name == key:
            yield value
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, dict):
                yield from entries(item, key)


def tiny(cfg):
    """Two narrow blocks from random weights, narrow heads, at most 48 tokens, no workers."""
    narrow(cfg.model, 32)
    backbone = cfg.model.backbone
    backbone.arch.update(num_layers=2, embed_dims=24, num_heads=2, feedforward_channels=48)
    backbone.init_cfg, cfg.model.neck.in_channels = None, 24
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        for pipeline in entries(loader, 'pipeline'):
            for transform in pipeline:
                if 'max_tokens' in transform:
                    transform.max_tokens = 48
                if 'random' in transform:
                    transform.random.low_tokens = 24
    cfg.train_dataloader.batch_size = 3
    if 'batch_sampler' in cfg.train_dataloader:
        cfg.train_dataloader.batch_sampler.max_tokens = 144
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


def test_every_head_has_every_size():
    wanted = {(head, size, 'coco') for head in HEADS for size in WIDTHS}
    wanted |= {('mask-rcnn', size, 'lvis-v1') for size in WIDTHS}
    wanted |= {('mask-rcnn', size, 'coco') for size in UNIVITAR}
    parts = [path.stem.split('_') for path in CONFIGS]
    found = {(part[0], part[1].removeprefix('navit-'), part[-1]) for part in parts}
    assert wanted <= found


@every_config
def test_the_best_checkpoint_is_that_of_masks_where_there_are_masks(path):
    cfg = Config.fromfile(path)
    masks = 'segm' in cfg.val_evaluator.metric
    assert masks == ('mask-rcnn' in path.stem)
    of_lvis, of_coco = ('lvis/{}_AP', 'coco/{}_mAP')
    figure = of_lvis if cfg.val_evaluator.type == 'NaViTLVISMetric' else of_coco
    assert cfg.default_hooks.checkpoint.save_best == figure.format('segm' if masks else 'bbox')


@every_config
def test_one_loss_and_one_predict_step(path, make):
    cfg = make(path)
    assert follow_classes(cfg) == ('a', 'b', 'c')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    if '-s_' in path.stem:  # one size of each head as under --amp
        cfg.optim_wrapper.type = 'BFloat16OptimWrapper'
    wrapper = build_optim_wrapper(model.train(), cfg.optim_wrapper)
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    check_step(model, next(iter(loader)), wrapper)

    loader = Runner.build_dataloader(cfg.test_dataloader)
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    model.eval()
    with torch.no_grad():
        for data in loader:
            (found,) = results = model.test_step(data)
            check_prediction(found)
            evaluator.process(data_batch=data, data_samples=results)
    figures = evaluator.evaluate(len(loader.dataset))
    assert cfg.default_hooks.checkpoint.save_best in figures
    assert all(-1 <= value <= 1 for value in figures.values())


def check_step(model, data, wrapper):
    """Finite losses; a gradient for every parameter, and a change in every part of the model."""
    parameters, reached = dict(model.named_parameters()), set()
    for name, parameter in parameters.items():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: reached.add(name))
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    losses = model.train_step(data, wrapper)
    assert all(value.isfinite().all() for value in losses.values())
    assert set(parameters) == reached
    moved = {name for name, parameter in parameters.items() if (parameter != before[name]).any()}
    parts = {name.split('.')[0] for name in parameters if not name.startswith('level_embed')}
    assert parts <= {name.split('.')[0] for name in moved}  # level_embed: later, by zero weights


def check_prediction(found):
    """Boxes within the picture, and masks as large as it is."""
    (height, width), objects = found.ori_shape, found.pred_instances
    assert objects.bboxes.isfinite().all()
    assert (objects.bboxes >= 0).all()
    assert (objects.bboxes <= torch.tensor([width, height] * 2) + 1e-3).all()
    if 'masks' in objects:
        assert objects.masks.shape == (len(objects), height, width)


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('share', ['one', 'all'])
def test_pictures_without_boxes_train_too(head, share, make):
    (path,) = (path for path in CONFIGS if path.match(f'{head}_navit-ti_*_coco.py'))
    model = MODELS.build(make(path).model).train()
    model.init_weights()
    data = batch([(96, 70), (61, 113)])
    for sample in data['data_samples'][: None if share == 'all' else 1]:
        sample.gt_instances = sample.gt_instances[:0]
    loss, _ = model.parse_losses(model(**model.data_preprocessor(data, True), mode='loss'))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every_config
def test_the_model_as_it_is_written(path):
    """At its real widths, on no device: the parts fit, the name is right, no norm sees padding."""
    cfg = Config.fromfile(path)
    name = path.stem.split('_')[1]
    width = {**{f'navit-{size}': width for size, width in WIDTHS.items()}, **UNIVITAR}[name]
    assert cfg.model.neck.in_channels == width
    cfg.model.backbone.arch.num_layers = 2
    init_default_scope('mmdet')
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert model.backbone.vit.arch.embed_dims == width
    assert cfg.model.neck.get('in_stride', 16) == model.backbone.patch_size
    norms = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
    assert not [name for name, module in model.named_modules() if isinstance(module, norms)]

    strides = list(cfg.model.neck.strides)
    assert cfg.model.data_preprocessor.pad_size_divisor == strides[-1]
    for generator in entries(cfg.model, 'anchor_generator'):
        assert generator.strides == strides
    for taken in entries(cfg.model, 'featmap_strides'):
        assert taken == strides[: len(taken)]
    for levels in entries(cfg.model, 'num_levels'):
        assert levels == len(strides)


@every_config
def test_pipelines_suit_stock_tools_and_native_sizes(path):
    cfg = Config.fromfile(path)
    for split in ('train', 'val', 'test'):
        for pipeline in entries(cfg[f'{split}_dataloader'], 'pipeline'):
            kinds = [transform['type'] for transform in pipeline]
            assert (kinds[0], kinds[-1]) == ('LoadImageFromFile', 'PackDetInputs')
            assert 'Pad' not in kinds
            check_tokens(cfg, pipeline)
    assert cfg.default_scope == 'mmdet'


def check_tokens(cfg, pipeline):
    """One transform decides sizes; any picture of its budget, a strip too, has a position."""
    (planner,) = [transform for transform in pipeline if 'max_tokens' in transform]
    assert planner.get('patch_size', 16) == cfg.model.backbone.get('patch_size', 16)
    limit = planner.max_tokens
    position = cfg.model.backbone.get('position') or {}
    assert position.get('max_size', limit) >= limit
    batches = cfg.train_dataloader.get('batch_sampler', {})
    assert batches.get('max_tokens', limit) >= limit


@every_config
def test_schedules_end_with_the_training(path):
    cfg = Config.fromfile(path)
    if 'batch_sampler' not in cfg.train_dataloader:
        return  # by epoch: nothing to add up
    steps = cfg.train_cfg.max_epochs * cfg.train_dataloader.batch_sampler.steps_per_epoch
    warmup, decay = cfg.param_scheduler
    assert not warmup.by_epoch
    assert not decay.by_epoch
    assert warmup.end < decay.milestones[0] < decay.milestones[-1] + 1 <= steps
    assert decay.milestones[0] > 0.75 * steps


@every_config
def test_a_config_is_a_page_with_its_command(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 140
    docstring = ast.get_docstring(ast.parse(source))
    assert f'python tools/train.py configs/detection/{path.name}' in docstring
    assert 'custom_imports' not in source
    assert '::' not in source


def test_data_that_the_folder_of_real_sets_holds_is_where_configs_look(data_root, monkeypatch):
    monkeypatch.setenv('NAVIT_DATA', str(data_root))
    cfg = Config.fromfile(named('retinanet_navit-ti_20e_raccoon'))
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
    assert vit.arch.embed_dims == WIDTHS[path.stem.removeprefix('navit-')]


def short(cfg, **options):
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.merge_from_dict(options)
    return cfg


@pytest.mark.parametrize(
    'stem',
    [
        'retinanet_navit-ti_20e_sample',
        'mask-rcnn_navit-ti_100e_coco',
        'mask-rcnn_navit-ti_100e_lvis-v1',
    ],
)
def test_a_whole_run_by_mmengine_alone(stem, make):
    """Hooks, schedules, checkpoints and evaluation, as under stock scripts."""
    cfg = short(make(named(stem), classes=tuple('abcde')))
    follow_classes(cfg)
    for test_cfg in (cfg.model.test_cfg, cfg.model.test_cfg.get('rcnn', {})):
        test_cfg.update(score_thr=0.0)
    if 'batch_sampler' in cfg.train_dataloader:
        cfg.train_dataloader.batch_sampler.steps_per_epoch = 2
    runner = Runner.from_cfg(cfg)
    runner.train()
    figure, work_dir = cfg.default_hooks.checkpoint.save_best, Path(cfg.work_dir)
    assert (work_dir / 'epoch_1.pth').is_file()
    assert f'val/{figure}' in runner.message_hub.log_scalars
    assert list(work_dir.glob(f'best_{figure.replace("/", "_")}_epoch_1.pth'))
    meta = torch.load(work_dir / 'epoch_1.pth', weights_only=False)['meta']
    assert meta['dataset_meta']['classes'] == tuple('abcde')


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_classes_that_the_head_does_not_count_are_refused_with_both_numbers(make, split):
    path = named('retinanet_navit-ti_20e_raccoon')
    cfg = short(make(path, classes=tuple('abcdefg')), **{'model.bbox_head.num_classes': 4})
    cfg.load_from = None
    if split != 'train':
        for part in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler'):
            cfg[part] = None
    runner = Runner.from_cfg(cfg)
    with pytest.raises(ValueError, match=r'num_classes=4, but .*\.json has 7 classes: set model\.'):
        getattr(runner, split)()
