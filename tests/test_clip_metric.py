"""Accuracy of clips against loops in plain Python."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from navit_backbone.tasks.common.clip_sample import ClipDataSample
from navit_backbone.tasks.video.metric import (
    NaViTClipMetric,
    accuracies,
    confusion,
    mean_average_precision,
    pairs_and_directions,
)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 10**6), st.integers(0, 5))
def test_accuracies_are_those_of_a_loop(num, classes, seed, unread):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (num, classes)) / 4  # with ties
    labels = rng.integers(0, classes, num)
    scores[:unread] = np.nan
    found = accuracies(scores, labels, (1, 5))
    right = {1: [], 5: []}
    by_class = {}
    for row, label in zip(scores, labels, strict=True):
        order = [] if np.isnan(row).any() else sorted(range(classes), key=lambda c: (-row[c], c))
        for k in right:
            right[k].append(label in order[:k])
        by_class.setdefault(label, []).append(right[1][-1])
    assert found['top1'] == pytest.approx(100 * np.mean(right[1]))
    assert found['top5'] == pytest.approx(100 * np.mean(right[5]))
    means = [np.mean(values) for values in by_class.values()]
    assert found['mean_class'] == pytest.approx(100 * np.mean(means))
    table = confusion(scores, labels, classes)
    assert table.sum() == num
    assert table[:, classes].sum() == min(unread, num)
    assert 100 * np.trace(table) / num == pytest.approx(found['top1'])


@given(st.integers(1, 20), st.integers(1, 5), st.integers(0, 10**6))
def test_mean_average_precision_is_that_of_a_loop(num, classes, seed):
    rng = np.random.default_rng(seed)
    scores = rng.permutation(num * classes).reshape(num, classes) / 7  # no ties
    labels = [sorted(set(rng.integers(0, classes, 2).tolist())) for _ in range(num)]
    found = mean_average_precision(scores, [{'labels': item} for item in labels], classes)
    means = []
    for c in range(classes):
        order = sorted(range(num), key=lambda i: -scores[i, c])
        hits = [c in labels[i] for i in order]
        precisions = [sum(hits[: k + 1]) / (k + 1) for k in range(num) if hits[k]]
        if precisions:
            means.append(sum(precisions) / len(precisions))
    assert found == pytest.approx(sum(means) / len(means))


def sample(label, scores, *, bad=False, file='a.mp4'):
    meta = dict(video_path=file, **({'bad': True} if bad else {}))
    item = ClipDataSample(metainfo=meta)
    item.gt_label, item.pred_score = torch.tensor([label]), torch.tensor(scores)
    return item.to_dict()


def test_a_clip_that_could_not_be_read_is_wrong_and_listed(tmp_path, caplog):
    metric = NaViTClipMetric(topk=(1,), output_dir=str(tmp_path))
    metric.dataset_meta = dict(classes=('a', 'b'))
    metric.process(
        None, [sample(0, [0.9, 0.1]), sample(0, [1.0, 0.0], bad=True, file='broken.mp4')]
    )
    assert metric.evaluate(2) == dict(top1=50.0, mean_class=50.0, bad=1.0)
    written = json.loads((tmp_path / 'predictions.json').read_text())
    assert [clip['scores'] is None for clip in written['clips']] == [False, True]
    assert (tmp_path / 'confusion.png').is_file()
    table = json.loads((tmp_path / 'confusion.json').read_text())['truth_by_found']
    assert table == [[1, 0, 1], [0, 0, 0]]


def test_pairs_and_directions_within_them():
    scores = np.eye(4)[[0, 1, 2, 3, 0]] + np.array([0.0, 0.1, 0.2, 0.3])
    scores[4] = np.nan
    labels = np.array([0, 0, 2, 3, 0])  # right, the other of its pair, right, right, not read
    assert pairs_and_directions(scores, labels) == dict(pair=80.0, direction=60.0)
    assert pairs_and_directions(scores[:1], np.array([3])) == dict(pair=0.0, direction=100.0)


def test_a_clip_without_its_class_is_named():
    metric = NaViTClipMetric()
    with pytest.raises(ValueError, match=r'b\.mp4 came without its class'):
        metric.process(None, [dict(video_path='b.mp4')])
