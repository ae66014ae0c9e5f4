"""Rare classes come oftener, and each repeat draws anew."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from mmengine.dataset import BaseDataset, ClassBalancedDataset
from mmengine.registry import DATASETS

from navit_backbone.tasks.common.dataset import SeededSamples
from navit_backbone.tasks.common.sampling import SeededSampler

CLASSES = [[0], [0, 1], [0], [0, 2], [0], [], [0], [0], [2], [0]]


@DATASETS.register_module()
class Labels(SeededSamples, BaseDataset):
    """Samples that are only labels and a draw."""

    def load_data_list(self):
        return [dict(img_path=str(i), classes=classes) for i, classes in enumerate(CLASSES)]

    def get_cat_ids(self, index):
        return self.get_data_info(index)['classes']


def draw(results):
    return results | dict(draw=np.random.rand())


@pytest.fixture
def dataset():
    inner = dict(type='Labels', pipeline=[draw])
    config = dict(type='SeededClassBalancedDataset', dataset=inner, oversample_thr=0.5)
    return DATASETS.build(config)


def test_repeats_are_those_of_mmengine_and_each_draws_anew(dataset):
    stock = ClassBalancedDataset(Labels(pipeline=[draw]), oversample_thr=0.5)
    assert len(dataset) == len(stock) > len(CLASSES)
    sampler = SeededSampler(dataset, seed=1)
    seen = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        seen += [dataset[index] for index in sampler]
    times = Counter(sample['sample_idx'] for sample in seen)
    assert times == {i: 2 * n for i, n in Counter(stock.repeat_indices).items()}
    assert times[1] > times[0], 'the picture with a rare class'
    assert len({sample['draw'] for sample in seen}) == len(seen)
    assert [dataset[i]['draw'] for i in sampler] == [s['draw'] for s in seen[len(dataset) :]]


def test_plain_indices_still_work(dataset):
    assert dataset.get_data_info(1)['classes'] == CLASSES[dataset.repeat_indices[1]]
    with pytest.warns(UserWarning, match='SeededClassBalancedDataset'):
        dataset[1]
