"""Each family of detector on a few real photos: does it fit them, and does its loss stay calm?

    python tests/faults/fit_few_photos.py [FAMILY ...] [--steps 400] [--out work_dirs/few_photos]

Families: faster-rcnn, mask-rcnn, cascade-mask-rcnn, retinanet, fcos, dino; without any, all. Each
is its config at size Ti, its head of half the width, from DeiT's weights, with at most 256 tokens a
photo. It is trained twice on coco128 (NAVIT_DATA, unset: ../shared/data):

- on the first 4 photos, to an AP50 above 0.9 on these, within STEPS steps;
- for 200 steps on all photos at mixed sizes, without a loss above 3 times the median of the 50
  losses before, from step 50 on.

coco128 has boxes alone: to Mask R-CNN's heads the masks are the boxes. What is finished is kept in
OUT and not repeated. The exit status is 1 where a family fails. About 15 minutes a family.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from rich.progress import track
from torch import nn
from torch.utils.data import DataLoader

from navit_backbone.tasks.common.sample import SampleIndex

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ('faster-rcnn', 'mask-rcnn', 'cascade-mask-rcnn', 'retinanet', 'fcos', 'dino')
NARROWER = {256: 128, 1024: 512, 2048: 512, 128: 64}  # widths of the heads
FEWER = dict(num_layers=3, num_queries=100, num_dn_queries=20, num=128)
MAX_TOKENS, BATCH, WARMUP = 256, 4, 50
AP50, SPIKE = 0.9, 3.0
RECIPE = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.75),
)


def data_folder() -> Path:
    """The folder that holds coco128/ and weights/."""
    return ROOT / os.environ.get('NAVIT_DATA', '../shared/data')


def write_photos(file: Path, count: int | None) -> None:
    """The annotations of the first photos that have any; a mask for each box."""
    content = json.loads(
        (data_folder() / 'coco128/annotations/instances_train2017.json').read_text()
    )
    for item in content['annotations']:
        x, y, w, h = item['bbox']
        item['segmentation'] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    marked = {item['image_id'] for item in content['annotations']}
    content['images'] = [item for item in content['images'] if item['id'] in marked][:count]
    kept = {item['id'] for item in content['images']}
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] in kept]
    file.write_text(json.dumps(content))


def config_of(family: str) -> Config:
    """The family's config at size Ti with a narrower head, on DeiT's weights."""
    (path,) = (ROOT / 'configs/detection').glob(f'{family}_navit-ti_*_coco.py')
    cfg = Config.fromfile(path)
    backbone = cfg.model.pop('backbone')
    backbone.init_cfg.checkpoint = str(data_folder() / 'weights/deit_tiny_patch16_224.pt')
    narrow(cfg.model)
    if family == 'dino':  # a width that has a default
        cfg.model.bbox_head.embed_dims = 128
    cfg.model.backbone = backbone
    init_default_scope(cfg.default_scope)
    return cfg


def narrow(node: dict[str, Any]) -> None:
    """Halve the widths below `node`, and set the numbers of layers, regions and queries."""
    for key, value in node.items():
        if key.endswith('_channels') or key in ('embed_dims', 'num_feats'):
            node[key] = NARROWER.get(value, value)
        elif key in FEWER:
            node[key] = FEWER[key]
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, dict):
                narrow(item)


def loader_of(cfg: Config, file: Path, *, mixed: bool) -> DataLoader:
    """Batches of photos, at their largest size or at mixed ones."""
    resize = dict(type='ResizeToTokenBudget', max_tokens=MAX_TOKENS, patch_size=16)
    dataset = dict(
        type='NaViTCocoDataset',
        ann_file=str(file),
        data_prefix=dict(img=str(data_folder() / 'coco128/images/train2017')),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask='mask' in file.stem),
            {**resize, 'random': dict(low_tokens=MAX_TOKENS // 4)} if mixed else resize,
            dict(type='PackDetInputs'),
        ],
    )
    sampler = dict(type='SeededSampler', shuffle=mixed)
    loader = dict(batch_size=BATCH, num_workers=0, sampler=sampler, dataset=dataset)
    return Runner.build_dataloader(loader, seed=0)


def losses_of(model: nn.Module, loader: DataLoader, steps: int, what: str) -> Iterator[float]:
    """Train, and give the loss of each step."""
    wrapper = build_optim_wrapper(model.train(), RECIPE)
    warmup = torch.optim.lr_scheduler.LinearLR(wrapper.optimizer, 0.01, total_iters=WARMUP)
    for _, batch in zip(track(range(steps), what), endless(loader), strict=False):
        yield model.train_step(batch, wrapper)['loss'].item()
        warmup.step()


def endless(loader: DataLoader) -> Iterator[Any]:
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)
        yield from loader


@torch.no_grad()
def ap50_of(model: nn.Module, loader: DataLoader) -> float:
    """On the photos of `loader`, one by one."""
    dataset = loader.dataset
    evaluator = Evaluator(dict(type='NaViTCocoMetric', ann_file=dataset.ann_file))
    evaluator.dataset_meta = dataset.metainfo
    model.eval()
    for index in range(len(dataset)):
        data = pseudo_collate([dataset[SampleIndex(index, (0, 0, index))]])
        evaluator.process(data_batch=data, data_samples=model.test_step(data))
    model.train()
    return float(evaluator.evaluate(len(dataset))['coco/bbox_mAP_50'])


def fit(family: str, file: Path, steps: int) -> dict[str, float]:
    """The AP50 that a new model reaches on the photos, looked at every 50 steps, and when."""
    cfg = config_of(family)
    model, loader = new_model(cfg), loader_of(cfg, file, mixed=False)
    best = 0.0
    for step, _ in enumerate(losses_of(model, loader, steps, f'{family}: 4 photos'), start=1):
        if step % 50 == 0 and (best := max(best, ap50_of(model, loader))) > AP50:
            break
    return dict(ap50=best, steps=step)


def calm(family: str, file: Path) -> dict[str, float]:
    """The highest loss of 200 steps, as a multiple of the median of the 50 before it."""
    cfg = config_of(family)
    model, loader = new_model(cfg), loader_of(cfg, file, mixed=True)
    losses = list(losses_of(model, loader, 200, f'{family}: mixed sizes'))
    ratios = [loss / median(losses[i - 50 : i]) for i, loss in enumerate(losses) if i >= 50]
    finite = all(math.isfinite(loss) for loss in losses)
    return dict(worst=max(ratios) if finite else math.inf, last=losses[-1])


def new_model(cfg: Config) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = MODELS.build(cfg.model)
    model.init_weights()
    return model


def run(family: str, out: Path, steps: int) -> dict[str, float]:
    """Both, or what was found before."""
    result = out / f'{family}_{steps}_steps.json'
    if not result.is_file():
        start, masks = time.monotonic(), '_masks' if 'mask' in family else ''
        few, all_photos = out / f'few{masks}.json', out / f'all{masks}.json'
        write_photos(few, BATCH)
        write_photos(all_photos, None)
        found = {**fit(family, few, steps), **calm(family, all_photos)}
        found['minutes'] = (time.monotonic() - start) / 60
        result.write_text(json.dumps(found))
    found = json.loads(result.read_text())
    found['passed'] = found['ap50'] > AP50 and found['worst'] <= SPIKE
    return found


def main() -> None:
    """Run the families, print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('families', nargs='*', metavar='FAMILY', help='of those above (all)')
    parser.add_argument('--steps', type=int, default=400, help='the most for the 4 photos')
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs/few_photos')
    args = parser.parse_args()
    if unknown := set(args.families) - set(FAMILIES):
        parser.error(f'no family {sorted(unknown)}: choose from {", ".join(FAMILIES)}')
    args.out.mkdir(parents=True, exist_ok=True)
    MMLogger.get_instance('few_photos', log_level='WARNING')
    passed = True
    for family in args.families or FAMILIES:
        found = run(family, args.out, args.steps)
        passed &= found['passed']
        print(
            f'{family:18} AP50 {found["ap50"]:.3f} after {found["steps"]} steps, highest loss '
            f'{found["worst"]:.2f} x the median, {found["minutes"]:.0f} minutes: '
            f'{"passed" if found["passed"] else "FAILED"}',
            flush=True,
        )
    sys.exit(not passed)


if __name__ == '__main__':
    main()
