"""Mosaics and mixup: every draw by the seed of the sample, the tokens of the result bounded."""

from __future__ import annotations

import random
from itertools import chain

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')

from coco_files import write_coco
from mmengine.registry import DATASETS, init_default_scope
from torch.utils.data import DataLoader

from navit_backbone.tasks import detection
from navit_backbone.tasks.common.batch_sampler import TokenBudgetBatchSampler
from navit_backbone.tasks.common.sample import SampleIndex
from navit_backbone.tasks.common.sampling import SeededSampler

assert detection, 'registers'


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    init_default_scope('mmdet')
    root = tmp_path_factory.mktemp('mosaic')
    write_coco(root, 'train.json', sizes=[(61, 113), (97, 64), (40, 53), (90, 70), (64, 64)])
    inner = dict(
        type='NaViTCocoDataset',
        data_root=str(root),
        ann_file='train.json',
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)],
    )
    joining = [
        dict(type='Mosaic', img_scale=(64, 64)),
        dict(type='MixUp', img_scale=(64, 64), ratio_range=(0.8, 1.6)),
        dict(type='ResizeToTokenBudget', max_tokens=20, random=dict(low_tokens=6)),
        dict(type='PhotoMetricDistortion'),
        dict(type='PackDetInputs'),
    ]
    config = dict(type='SeededMultiImageMixDataset', dataset=inner, pipeline=joining)
    return DATASETS.build(config)


def same(a, b):
    boxes = [sample['data_samples'].gt_instances.bboxes.tensor for sample in (a, b)]
    return torch.equal(a['inputs'], b['inputs']) and torch.equal(*boxes)


def test_a_sample_depends_on_its_seed_alone(dataset):
    index = SampleIndex(2, (7, 1, 2))
    first = dataset[index]
    dataset[SampleIndex(4, (7, 1, 4))]
    np.random.seed(1)
    random.seed(2)
    torch.manual_seed(3)
    states = np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()
    assert same(first, dataset[index])
    after = np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()
    assert after == states
    assert not same(first, dataset[SampleIndex(2, (7, 2, 2))])
    assert not same(first, dataset[SampleIndex(2, (8, 1, 2))])


def test_the_pictures_joined_to_a_sample_draw_anew_each_time(dataset, monkeypatch):
    seeds = []
    run = type(dataset.dataset)._run_pipeline

    def watched(self, index, seed, cap):
        seeds.append(seed)
        return run(self, index, seed, cap)

    monkeypatch.setattr(type(dataset.dataset), '_run_pipeline', watched)
    for epoch in range(3):
        dataset[SampleIndex(2, (7, epoch, 2))]
    assert len(seeds) >= 3 * (1 + 3 + 1), 'the sample, three for the mosaic, one to mix in'
    assert len(set(seeds)) == len(seeds)


def test_batches_by_tokens_keep_their_budget_whatever_the_workers(dataset):
    seen = []
    for num_workers in (0, 1):
        sampler = TokenBudgetBatchSampler(
            SeededSampler(dataset, seed=0), 4, max_tokens=45, steps_per_epoch=3
        )
        loader = DataLoader(
            dataset, batch_sampler=sampler, num_workers=num_workers, collate_fn=lambda batch: batch
        )
        batches = list(loader)
        for batch in batches:
            assert sum(s['inputs'].shape[1] * s['inputs'].shape[2] // 256 for s in batch) <= 45
        seen.append(list(chain(*batches)))
    assert len(seen[0]) >= 6
    assert all(same(a, b) for a, b in zip(*seen, strict=True))
