"""Vectorized COCOeval: equal to that of pycocotools, image by image."""

from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_average_precision import random_set

from navit_backbone.tasks.detection.coco_eval import VectorizedCOCOeval


def evaluated(kind, content, found, **parameters):
    with redirect_stdout(StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        evaluation = kind(truth, truth.loadRes([dict(item) for item in found]), 'bbox')
        for name, value in parameters.items():
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def crowded_set(seed):
    """One image of 40 boxes on a grid, many alike, and 90 detections of equal scores and IoUs."""
    random = np.random.default_rng(seed)
    places = random.integers(0, 6, (40, 2)) * 7
    boxes = [
        dict(id=i + 1, image_id=1, category_id=1, bbox=[*map(float, place), 10.0, 10.0], area=100.0)
        | dict(iscrowd=int(random.random() < 0.2))
        for i, place in enumerate(places)
    ]
    found = [
        dict(image_id=1, category_id=1, score=float(random.integers(5)))
        | dict(bbox=[*map(float, boxes[random.integers(40)]['bbox'][:2]), side, 10.0])
        for side in random.choice([10.0, 8.0, 60.0], 90)
    ]
    image = dict(id=1, height=60, width=60, file_name='x.jpg')
    return dict(images=[image], annotations=boxes, categories=[dict(id=1, name='a')]), found


@pytest.mark.parametrize('parameters', [{}, dict(useCats=0), dict(maxDets=[1, 3, 7])])
@pytest.mark.parametrize('make', [crowded_set, lambda s: random_set(np.random.default_rng(s))])
@pytest.mark.parametrize('seed', range(3))
def test_matches_are_those_of_pycocotools(seed, make, parameters):
    """Crowds, boxes out of range, equal overlaps and scores, a threshold of 1."""
    content, found = make(seed)
    parameters = dict(parameters, iouThrs=np.array([0.5, 0.55, 0.75, 0.95, 1.0]))
    ours, theirs = (
        evaluated(kind, content, found, **parameters) for kind in (VectorizedCOCOeval, COCOeval)
    )
    assert len(ours.evalImgs) == len(theirs.evalImgs)
    assert any(item and item['dtMatches'].any() for item in theirs.evalImgs)
    for one, other in zip(ours.evalImgs, theirs.evalImgs, strict=True):
        assert (one is None) == (other is None)
        for key in other or ():
            assert np.array_equal(one[key], other[key]), key
            assert np.shape(one[key]) == np.shape(other[key]), key
    for key in ('precision', 'recall', 'scores'):
        assert np.array_equal(ours.eval[key], theirs.eval[key])
