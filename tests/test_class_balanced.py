"""Rare classes come oftener, and each repeat draws anew."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from mmengine.dataset import BaseDataset, ClassBalancedDataset
from mmengine.registry import DATASETS
from PIL import Image

from navit_backbone.tasks.common.class_balanced import SeededClassBalancedDataset
from navit_backbone.tasks.common.clip_data import NaViTClipDataset
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


def test_a_data_set_that_does_not_say_its_classes_is_named():
    class Silent(SeededSamples, BaseDataset):
        def load_data_list(self):
            return [dict(img_path='0')]

    with pytest.raises(ValueError, match=r'Silent does not say .* get_cat_ids'):
        SeededClassBalancedDataset(Silent(pipeline=[draw]), oversample_thr=0.5)


def test_a_rare_class_of_clips_is_repeated(tmp_path):
    for name in ('run/1.mp4', 'run/2.mp4', 'run/3.mp4', 'run/4.mp4', 'walk/1.mp4'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    clips = NaViTClipDataset(data_root=str(tmp_path), pipeline=[draw])
    data = SeededClassBalancedDataset(clips, oversample_thr=0.8)
    # walk is in a fifth of the clips: ceil(sqrt(0.8 / 0.2)) = 2 times
    assert data.repeat_indices == [0, 1, 2, 3, 4, 4]
    assert [data.get_cat_ids(i) for i in range(6)] == [[0], [0], [0], [0], [1], [1]]


def test_a_rare_class_of_label_maps_is_repeated(tmp_path):
    pytest.importorskip('mmseg')
    from navit_backbone.tasks.segmentation.data import LoadSegMap, NaViTSegDataset

    for folder in ('images', 'masks'):
        (tmp_path / folder).mkdir()
    (tmp_path / 'classes.txt').write_text('paper\nstar\nring\n')
    for i in range(8):
        Image.new('RGB', (6, 4)).save(tmp_path / f'images/{i}.png')
        labels = np.full((4, 6), 255, np.uint8)
        labels[0] = 0
        labels[1, :2] = 2 if i == 5 else 1 if i < 4 else 255
        Image.fromarray(labels).save(tmp_path / f'masks/{i}.png')
    (tmp_path / 'masks/7.png').write_bytes(b'broken')
    maps = NaViTSegDataset(
        data_root=str(tmp_path),
        data_prefix=dict(img_path='images', seg_map_path='masks'),
        pipeline=[LoadSegMap()],
    )
    data = SeededClassBalancedDataset(maps, oversample_thr=0.5)
    assert [maps.get_cat_ids(i) for i in (0, 4, 5, 7)] == [[0, 1], [0], [0, 2], []]
    # ring is in one of 8 maps: sqrt(0.5 / 0.125) = 2 times; star in a half of them: once
    assert data.repeat_indices == [0, 1, 2, 3, 4, 5, 5, 6, 7]
