"""What `benchmark.py` measures of detection: whole training steps, the data, a run's memory.

Everything runs on coco128's photos and boxes. They have no outlines, so the masks that Mask R-CNN
trains on are the boxes filled; what a step costs does not depend on it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch.utils.data import DataLoader, Dataset

from navit_backbone.tools.benchmark_arms import (
    PATCH_SIZE,
    Setting,
    autocast,
    forward_flops,
    num_tokens,
)
from navit_backbone.tools.command_line import read_config
from navit_backbone.tools.measure import (
    Arm,
    Result,
    compared,
    in_new_process,
    interleaved,
)
from navit_backbone.tools.run_record import RunRecord, record_of, waiting
from navit_backbone.vit import ARCHS

CONFIGS = Path(__file__).resolve().parents[1] / 'configs/detection'
HEADS = {
    'RetinaNet': 'retinanet_navit-ti_20e_coco-format.py',
    'Mask R-CNN': 'mask-rcnn_navit-ti_20e_coco-format.py',
}
TRAIN = 'annotations/instances_train2017.json'

T = TypeVar('T')


def config_of(head: str, data: Path) -> Config:
    """The config of a head, on coco128, from random weights."""
    cfg = read_config(CONFIGS / HEADS[head], {'data_root': str(data / 'coco128')})
    cfg.train_dataloader.dataset.ann_file = TRAIN
    cfg.train_dataloader.dataset.data_prefix.img = 'images/train2017/'
    cfg.model.backbone.init_cfg = None
    return cfg


def dataset_of(cfg: Config, pipeline: Sequence[dict[str, Any]]) -> Any:
    """The training set of a config with another pipeline."""
    MMLogger.get_current_instance().setLevel('WARNING')  # the table is what is read here
    init_default_scope('mmdet')
    return DATASETS.build({**cfg.train_dataloader.dataset, 'pipeline': list(pipeline)})


def step_rows(setting: Setting, name: str) -> list[Result]:
    """A training step, optimizer included, behind our preprocessor and behind mmdet's.

    Behind mmdet's all of the canvas is picture to the same backbone.
    """
    return [row for head in HEADS for row in _step_rows(setting, name, head)]


def _step_rows(setting: Setting, name: str, head: str) -> list[Result]:
    cfg = config_of(head, setting.data)
    cfg.model.backbone.arch.preset = name
    cfg.model.neck.in_channels = ARCHS[name].embed_dims
    batches = [filled_boxes(batch) for batch in _batches(setting, cfg)]
    torch.manual_seed(0)
    packed = MODELS.build(cfg.model).to(setting.device).train()
    padded = deepcopy(packed)
    stock = {**cfg.model.data_preprocessor, 'type': 'DetDataPreprocessor'}
    padded.data_preprocessor = MODELS.build(stock).to(setting.device)
    wrap = cfg.optim_wrapper
    optimizers = {id(m): build_optim_wrapper(m, wrap) for m in (packed, padded)}

    def step(model: Any, i: int) -> None:
        with autocast(setting.device):
            losses = model.train_step(deepcopy(batches[i]), optimizers[id(model)])
        assert torch.isfinite(losses['loss']), f'{head} diverged in the benchmark: {losses}'

    def backbone(i: int) -> None:
        data = packed.data_preprocessor(deepcopy(batches[i]), True)
        with autocast(setting.device):
            sum(level.float().sum() for level in packed.backbone(data['inputs'])).backward()
        packed.zero_grad(set_to_none=True)

    seconds = interleaved(
        {'packed': lambda i: step(packed, i), 'padded': lambda i: step(padded, i), 'own': backbone},
        rounds=setting.rounds,
        label=f'steps, {head}, {name}',
        device=setting.device,
    )
    real = [[num_tokens(size) for size in _sizes(batch)] for batch in batches]
    whole = [[_canvas_tokens(cfg, batch)] * len(batch['inputs']) for batch in batches]
    work = [3 * forward_flops(lengths, ARCHS[name]) for lengths in real]
    arms = {arm: Arm(seconds=times, flops=work) for arm, times in seconds.items()}
    row = compared(
        f'{head}: a training step, packed against padded, {name}',
        arms['packed'],
        arms['padded'],
        'reported',
    )
    share = 1 - arms['own'].step / arms['packed'].step
    theirs = [3 * forward_flops(lengths, ARCHS[name]) for lengths in whole]
    detail = f'{row.detail}; neck, head and losses are {share:.0%} of ours'
    return [
        Result(
            what=row.what,
            figure=row.figure,
            target=row.target,
            flops=f'{sum(theirs) / sum(work):.2f} (backbone)',
            detail=detail.removeprefix('; '),
        )
    ]


def _batches(setting: Setting, cfg: Config) -> list[dict[str, Any]]:
    """One random batch of photos per round, read beforehand, the same in every run."""
    scale = dict(type='Resize', scale_factor=setting.scale, keep_ratio=True)
    load, boxes = dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)
    dataset = dataset_of(cfg, [load, boxes, scale, dict(type='PackDetInputs')])
    rng = random.Random(0)
    drawn = [rng.sample(range(len(dataset)), setting.batch_size) for _ in range(setting.rounds)]
    samples = [[dataset[_seeded(i)] for i in numbers] for numbers in drawn]
    return [{key: [s[key] for s in batch] for key in batch[0]} for batch in samples]


def filled_boxes(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch, with each box filled as the mask of its object."""
    from mmdet.structures.mask import BitmapMasks

    for sample in batch['data_samples']:
        (h, w), objects = sample.img_shape, sample.gt_instances
        masks = np.zeros((len(objects), h, w), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, objects.bboxes.tensor.tolist(), strict=True):
            mask[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1] = 1
        objects.masks = BitmapMasks(masks, h, w)
    return batch


def _sizes(batch: dict[str, Any]) -> list[tuple[int, int]]:
    return [tuple(image.shape[-2:]) for image in batch['inputs']]


def _canvas_tokens(cfg: Config, batch: dict[str, Any]) -> int:
    """Tokens of the canvas that all pictures of a batch share."""
    step = cfg.model.data_preprocessor.pad_size_divisor
    height, width = (-(-max(axis) // step) * step for axis in zip(*_sizes(batch), strict=True))
    return num_tokens((height, width))


def pipeline_rows(setting: Setting) -> list[Result]:
    """Photos through the training pipeline, and through stock mmdet's with as many pixels."""
    cfg = config_of('RetinaNet', setting.data)
    load, boxes = dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)
    rest = [dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')]
    tokens = 100 if setting.smoke else 784
    resize = dict(type='ResizeToTokenBudget', max_tokens=tokens, patch_size=PATCH_SIZE)
    ours = dataset_of(cfg, [load, boxes, resize, *rest])
    short = _short_side(ours, ours.pipeline.transforms[2])
    keep = dict(type='Resize', scale=(round(short * 1333 / 800), round(short)), keep_ratio=True)
    stock_cfg = {**cfg.train_dataloader.dataset, 'type': 'CocoDataset', 'metainfo': ours.metainfo}
    stock_cfg['pipeline'] = [load, boxes, keep, *rest]
    stock = DATASETS.build(stock_cfg)
    count = min(setting.batch_size, len(ours))
    rng = random.Random(0)
    drawn = [rng.sample(range(len(ours)), count) for _ in range(setting.rounds)]

    def pixels(dataset: Any) -> list[int]:
        return [sum(dataset[_seeded(i)]['inputs'][0].numel() for i in numbers) for numbers in drawn]

    with one_thread():
        seconds = in_worker(
            lambda: interleaved(
                {
                    # another epoch each round: flips cost time, and are to even out as in `stock`
                    'ours': lambda r: [ours[_seeded(i, epoch=r)] for i in drawn[r]],
                    'stock': lambda r: [stock[i] for i in drawn[r]],
                },
                rounds=setting.rounds,
                label='pipeline',
            )
        )
        work = {'ours': pixels(ours), 'stock': pixels(stock)}
    arms = {k: Arm(seconds=v, flops=[float(count)] * setting.rounds) for k, v in seconds.items()}
    row = compared('data pipeline against stock Resize(keep_ratio)', *arms.values(), 'at least 1')
    ratio = sum(work['stock']) / sum(work['ours'])
    detail = f'{arms["ours"].step / count * 1000:.1f} ms a photo; theirs has {ratio:.2f} the pixels'
    return [Result(what=row.what, figure=row.figure, target=row.target, detail=detail)]


def _short_side(dataset: Any, resize: Any) -> float:
    """The short side for Resize(keep_ratio) at which photos have as many pixels as by `resize`."""
    sizes = [
        (info['height'], info['width']) for info in map(dataset.get_data_info, range(len(dataset)))
    ]
    ours = sum(math.prod(resize.target_size(*size)) for size in sizes)
    scales = [min(1333 / 800 / max(size), 1 / min(size)) for size in sizes]  # of a short side of 1
    return math.sqrt(ours / sum(h * w * k * k for (h, w), k in zip(sizes, scales, strict=True)))


def _seeded(index: int, epoch: int = 0) -> int:
    from navit_backbone.tasks.common.sample import SampleIndex

    return SampleIndex(index, (0, epoch, index))


class _Once(Dataset[Any]):
    """A data set whose one item is what `work` gives, wherever it is asked for."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        return self.work()


def in_worker(work: Callable[[], T]) -> T:
    """What `work` gives in a worker of a loader, where the pipelines of a training run."""
    options = dict(batch_size=None, num_workers=1, multiprocessing_context='fork')
    (found,) = DataLoader(_Once(work), collate_fn=lambda item: item, **options)
    return found  # type: ignore[no-any-return]


@contextmanager
def one_thread() -> Iterator[None]:
    """OpenCV as in a worker of a loader, which has one thread."""
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def sampler_rows(setting: Setting) -> list[Result]:
    """Tokens that batches of the photos stay below their budget, over ten passes."""
    from navit_backbone.tasks.common.batch_sampler import TokenBudgetBatchSampler
    from navit_backbone.tasks.common.sampling import SeededSampler

    cfg = config_of('RetinaNet', setting.data)
    dataset = dataset_of(cfg, cfg.train_dataloader.dataset.pipeline)
    resize = dataset.pipeline.transforms[2]
    budget = 8 * resize.max_tokens
    batches = TokenBudgetBatchSampler(
        SeededSampler(dataset, seed=0), batch_size=32, max_tokens=budget
    )
    full = []
    for epoch in range(10):
        batches.set_epoch(epoch)
        for batch in batches:
            infos = [dataset.get_data_info(i) for i in batch]
            full += [
                sum(
                    resize.num_tokens(info['height'], info['width'], sample_seed=i.sample_seed)
                    for info, i in zip(infos, batch, strict=True)
                )
            ]
    return [
        Result(
            what=f'TokenBudgetBatchSampler: batches below their budget of {budget} tokens',
            figure=f'{1 - sum(full) / len(full) / budget:.3%} on average, at most '
            f'{1 - min(full) / budget:.2%}',
            target='at most 2 %',
            detail=f'{len(full)} batches of {len(dataset)} photos, 400 to 784 tokens each',
        )
    ]


def run_rows(setting: Setting) -> list[Result]:
    """A training run with two workers: what it waits for data, and whether its memory grows."""
    steps = 20 if setting.smoke else 1000
    seen = in_new_process(training_run, str(setting.data), steps, torch.get_num_threads())
    few = '' if steps == 1000 else 'smoke: '
    tenth = len(seen.bytes) // 10
    growth = median(seen.bytes[-tenth:]) / median(seen.bytes[tenth : 2 * tenth])
    what = f'a training run of {steps} steps, batch 4, 2 workers'
    return [
        waiting(what, seen, few=few),
        Result(
            what=f'{what}: memory of its last tenth over that of its second',
            figure=f'{few}{growth:.3f}',
            target='flat: at most 1.05',
            detail=f'{seen.bytes[-1] / 2**20:,.0f} MiB with its workers, without what malloc keeps '
            'for later',
        ),
    ]


def training_run(data: str, steps: int, threads: int) -> RunRecord:
    """Trains RetinaNet on small photos for so many steps, and says how it went."""
    torch.set_num_threads(threads)
    cfg = config_of('RetinaNet', Path(data))
    cfg.train_dataloader.dataset.pipeline[2] = dict(
        type='ResizeToTokenBudget',
        max_tokens=144,
        patch_size=PATCH_SIZE,
        random=dict(low_tokens=64),
    )
    cfg.train_cfg = dict(by_epoch=True, max_epochs=-(-steps // 32))
    return record_of(cfg, steps)
