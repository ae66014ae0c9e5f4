"""What compares segmentors: figures of the metric, on any resample of the pictures; drawings."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from navit_backbone.tasks.common.palette import palette
from navit_backbone.tasks.segmentation.evidence import Evidence, evaluation_options, predictions
from navit_backbone.tasks.segmentation.metric import NaViTIoUMetric

CLASSES = ('sky', 'grass', 'cow', 'unicorn')
SIZES = [(30, 40), (61, 17), (9, 80), (33, 33)]


def pictures(seed):
    """(file, prediction, truth) of noise, a fifth of it ignored."""
    random = np.random.default_rng(seed)
    for number, size in enumerate(SIZES):
        truth = random.integers(3, size=size)
        found = np.where(random.random(size) < 0.6, truth, random.integers(3, size=size))
        truth[random.random(size) < 0.2] = 255
        yield f'{number}.jpg', found, truth


def evaluated(items, output_dir=None):
    metric = NaViTIoUMetric(output_dir=output_dir)
    metric.dataset_meta = dict(classes=CLASSES, palette=palette(len(CLASSES)))
    for file, found, truth in items:
        sample = SegDataSample(metainfo=dict(img_path=file))
        sample.pred_sem_seg = PixelData(data=torch.as_tensor(found)[None])
        sample.gt_sem_seg = PixelData(data=torch.as_tensor(truth)[None])
        metric.process({}, [sample.to_dict()])
    return metric.evaluate(len(metric.results))


@pytest.fixture
def run(tmp_path):
    """What an evaluation leaves of the pictures, which lie beside it."""
    (option,) = evaluation_options(tmp_path)
    items = []
    for file, found, truth in pictures(0):
        cv2.imwrite(str(tmp_path / file), np.full((*truth.shape, 3), 90, dtype=np.uint8))
        items.append((str(tmp_path / file), found, truth))
    evaluated(items, option.split('=', 1)[1])
    return predictions(None, tmp_path)


@pytest.mark.parametrize('counts', [[1, 1, 1, 1], [2, 0, 1, 3], [0, 1, 0, 0]])
def test_a_resample_has_the_figures_of_its_pictures(run, counts):
    items = [item for item, count in zip(pictures(0), counts, strict=True) for _ in range(count)]
    expected = evaluated(items)
    evidence = Evidence([run])
    (figures,) = evidence.statistic(run)(np.array([counts]))
    assert evidence.num_examples == len(SIZES)
    for name, value in zip(evidence.figures, figures, strict=True):
        assert value == pytest.approx(expected[name], abs=0.0051), name


def test_parts_by_aspect_hold_each_picture_once(run):
    whole, *parts = Evidence([run]).slices([[run]])
    assert whole.num_groups == len(SIZES)
    assert sum(part.num_groups for part in parts) == len(SIZES)


def test_a_drawing_of_the_truth_and_of_a_run_differ(run):
    evidence = Evidence([run])
    truth, found = (np.asarray(evidence.drawn(1, item)) for item in (None, run))
    height, width = SIZES[1]
    assert truth.shape[0] >= height and truth.shape[1] >= width
    assert (truth[:height, :width] != found[:height, :width]).any()
    assert '(17 x 61)' in evidence.name(1)


def test_runs_of_other_pictures_are_refused(run):
    other = {**run, 'pictures': run['pictures'][::-1]}
    with pytest.raises(ValueError, match='theirs have other pictures'):
        Evidence([run, other])
    with pytest.raises(ValueError, match='classes differ'):
        Evidence([run, {**run, 'classes': ['a']}])
