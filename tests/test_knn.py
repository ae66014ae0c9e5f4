"""Nearest neighbours against loops in plain Python."""

import math
from pathlib import Path

import pytest
import torch
from commands import NO_WORKERS, call
from hypothesis import given, settings
from hypothesis import strategies as st

from navit_backbone.tasks.common.knn import knn_scores
from navit_backbone.tools import knn
from navit_backbone.tools.knn import neighbours_of

CONFIG = Path(__file__).parents[1] / 'configs/video/cls_navit-ti_20e_list.py'


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 5), st.integers(0, 10**6))
def test_scores_are_those_of_a_loop(bank, queries, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(bank, 6, generator=generator)
    labels = torch.randint(classes, (bank,), generator=generator)
    asked = torch.randn(queries, 6, generator=generator)
    k = min(bank, 5)
    found = knn_scores(vectors, labels, asked, num_classes=classes, k=k, temperature=0.2)
    for row, query in zip(found, asked, strict=True):
        alike = [torch.cosine_similarity(query, v, dim=0).item() for v in vectors]
        near = sorted(range(bank), key=lambda i: -alike[i])[:k]
        weights = [math.exp(alike[i] / 0.2) for i in near]
        expected = [0.0] * classes
        for i, weight in zip(near, weights, strict=True):
            expected[labels[i]] += weight / sum(weights)
        assert row.tolist() == pytest.approx(expected, abs=1e-4)


def test_more_neighbours_than_examples_are_refused():
    with pytest.raises(ValueError, match='k=3 neighbours of 2 examples'):
        knn_scores(torch.randn(2, 4), torch.tensor([0, 1]), torch.randn(1, 4), num_classes=2, k=3)


@pytest.mark.parametrize(('clips', 'measured'), [(3, [3]), (12, [5, 10]), (20, [5, 10, 20])])
def test_no_more_neighbours_than_clips_are_measured(clips, measured):
    assert neighbours_of(clips) == measured


@pytest.mark.parametrize(
    ('option', 'value', 'told'),
    [
        ('--temperature', 'nan', '--temperature nan above 0'),
        ('--temperature', 'inf', '--temperature inf above 0'),
        ('--device', 'gpu7', "'gpu7' cannot be used here"),
    ],
)
def test_settings_that_mean_nothing_are_refused(monkeypatch, capsys, option, value, told):
    assert call(monkeypatch, knn, 'config.py', option, value) == 2
    assert told in capsys.readouterr().err


def test_a_training_set_of_broken_clips_is_named(tmp_path, monkeypatch):
    for name in ('one', 'two'):
        (tmp_path / f'{name}.mp4').write_bytes(name.encode())
    (tmp_path / 'train.txt').write_text('one.mp4 a\ntwo.mp4 b\n')
    (tmp_path / 'val.txt').write_text('one.mp4 a\ntwo.mp4 b\n')
    options = [f'data_root={tmp_path}', 'model.backbone.init_cfg=None', *NO_WORKERS]
    told = call(monkeypatch, knn, CONFIG, '--cfg-options', *options)
    assert 'none of the 2 clips of the training set can be read' in told
