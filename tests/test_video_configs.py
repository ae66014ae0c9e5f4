"""Every config of tasks/video: it parses, builds, and takes a step on files in its own layout."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_files import write_video
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from PIL import Image

from navit_backbone.tasks.common.classes import follow_classes, override
from navit_backbone.tasks.video.motions import MOTIONS

ROOT = Path(__file__).resolve().parents[1] / 'configs'
CONFIGS = sorted((ROOT / 'video').glob('*.py'))
every_config = pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def tiny(cfg):
    """Two narrow blocks from random weights, at most 48 tokens, no workers."""
    backbone = cfg.model.backbone
    backbone.arch.update(num_layers=2, embed_dims=24, num_heads=2, feedforward_channels=48)
    backbone.init_cfg = None
    if backbone.get('frozen_stages', -1) > 0:
        backbone.frozen_stages = 2
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False, batch_size=3)
        for transform in loader.dataset.pipeline:
            if 'max_tokens' in transform:
                transform.max_tokens = 48
            if 'min_tokens' in transform:
                transform.min_tokens = 16
            if 'random' in transform:
                transform.random.low_tokens = 24
    cfg.train_dataloader.batch_sampler.max_tokens = 144
    return cfg


def write_data_of(cfg, folder):
    """Clips of several sizes where the config looks for them, two of each class."""
    random = np.random.default_rng(0)
    rows = 'fold,scene,label,file,width,height,frames,fps\n'
    for split in ('train', 'val'):
        data = cfg[f'{split}_dataloader'].dataset
        place = folder / data.get('data_prefix', {}).get('clips', '')
        lines = ''
        for number in range(4):
            label = number % 2
            size = (random.integers(24, 70, size=2) * 2).tolist()
            pictures = data.get('kind') == 'pictures'
            name = f'{"ab"[label]}/{split}{number}.{"png" if pictures else "mp4"}'
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            if pictures:
                pixels = random.integers(256, size=(*size, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(place / name)
            else:
                write_video(place / name, frames=4 + 7 * number, size=tuple(size))
            lines += f'{name} {label}\n'
            sizes = f'{size[1]},{size[0]},{4 + 7 * number},10.0'
            rows += f'{int(split == "train")},{split},{"ab"[label]},{name},{sizes}\n'
        if (listed := data.get('ann_file', '')).endswith('.txt'):
            (folder / listed).write_text(lines)
    (folder / 'manifest.csv').write_text(rows)
    if moves(cfg):
        (folder / 'classes.txt').write_text('\n'.join(MOTIONS))


def moves(cfg):
    return 'motions' in cfg.train_dataloader.dataset.data_root


@pytest.fixture
def make(tmp_path):
    """A config at tiny depth, on data of its layout."""

    def make(path):
        cfg = tiny(Config.fromfile(path))
        (tmp_path / 'data').mkdir()
        write_data_of(cfg, tmp_path / 'data')
        override(cfg, dict(data_root=str(tmp_path / 'data')))
        for split in ('train', 'val', 'test'):
            data = cfg[f'{split}_dataloader'].dataset
            if data.get('ann_file', '').endswith('.csv'):
                data.ann_file = 'manifest.csv'
        cfg.work_dir = str(tmp_path / 'work')
        init_default_scope(cfg.default_scope)
        return cfg

    return make


@every_config
def test_one_loss_and_one_predict_step(path, make):
    cfg = make(path)
    assert len(follow_classes(cfg)) == (8 if 'left' in str(cfg.train_pipeline) else 2)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    if '-s_' in path.stem:  # one size as under --amp
        cfg.optim_wrapper.type = 'BFloat16OptimWrapper'
    wrapper = build_optim_wrapper(model.train(), cfg.optim_wrapper)
    data = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
    assert sum(len(p.patches) for p in data['inputs']) <= 144
    before = model.head.fc.weight.detach().clone()
    losses = model.train_step(data, wrapper)
    assert torch.isfinite(losses['loss'])
    assert losses['loss'] > 0
    assert not torch.equal(model.head.fc.weight, before)

    loader = Runner.build_dataloader(cfg.val_dataloader, seed=0)
    evaluator = Evaluator(cfg.val_evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    for batch in loader:
        evaluator.process(data_samples=model.eval().val_step(batch), data_batch=batch)
    figures = evaluator.evaluate(len(loader.dataset))
    assert 0 <= figures['top1'] <= 100
    assert figures['bad'] == 0


@every_config
def test_what_a_config_says_of_itself(path):
    text = path.read_text()
    document = ast.get_docstring(ast.parse(text))
    assert 'not measured yet' in document or 'python tools/train.py' in document
    assert path.name in document or '_squashed' in document


def test_every_size_is_there():
    names = {path.stem for path in CONFIGS}
    for size in 'sbl':
        assert {f'cls_navit-{size}_30e_kinetics400', f'cls_navit-{size}_40e_sthv2'} <= names
    for size in ('0.3b', '0.6b', '1b'):
        assert f'cls_univitar-{size}_30e_kinetics400' in names


@pytest.mark.parametrize('name', ['cls_navit-ti_10e_fight', 'cls_navit-ti_20e_hymenoptera'])
def test_a_squashed_arm_differs_in_the_shape_alone(name):
    arm, control = (
        Config.fromfile(ROOT / f'video/{name}{suffix}.py').to_dict() for suffix in ('', '_squashed')
    )

    def without_square(node):
        if isinstance(node, dict):
            return {k: without_square(v) for k, v in node.items() if k != 'square'}
        return [without_square(v) for v in node] if isinstance(node, list) else node

    for key in ('budget', 'train_pipeline', 'test_pipeline', 'train_dataloader', 'val_dataloader',
                'test_dataloader'):  # fmt: skip
        assert arm[key] != control[key]
        assert arm[key] == without_square(control[key]), key
    rest = set(arm) - {'budget', 'train_pipeline', 'test_pipeline'}
    assert {k: arm[k] for k in rest if 'dataloader' not in k} == {
        k: control[k] for k in rest if 'dataloader' not in k
    }
