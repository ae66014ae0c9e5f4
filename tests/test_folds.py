"""Folds keep groups whole, and classes even."""

import csv
from collections import Counter

import pytest
from commands import call
from hypothesis import given
from hypothesis import strategies as st

from navit_backbone.tasks.common.folds import grouped_folds
from navit_backbone.tools import prepare_data

ROWS = st.lists(st.tuples(st.sampled_from('ab'), st.integers(0, 12)), min_size=20, max_size=80)


@given(ROWS, st.integers(2, 4))
def test_groups_stay_whole_and_every_fold_has_samples(rows, num):
    labels, groups = zip(*((label, str(group)) for label, group in rows), strict=True)
    if len(set(groups)) < num:
        with pytest.raises(ValueError, match=f'{num} folds of {len(set(groups))} groups'):
            grouped_folds(labels, groups, num)
        return
    folds = grouped_folds(labels, groups, num)
    assert set(folds) == set(range(num))
    assert len(set(zip(groups, folds, strict=True))) == len(set(groups))


@given(st.integers(2, 5), st.integers(1, 8))
def test_classes_are_even_where_groups_are_single(num, times):
    labels = ['a', 'b'] * (num * times)
    folds = grouped_folds(labels, list(map(str, range(len(labels)))), num)
    counts = Counter(zip(folds, labels, strict=True))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_the_command_adds_a_column(tmp_path, monkeypatch, capsys):
    rows = [f'{i}.mp4,{"ab"[i % 2]},{i // 3}\n' for i in range(30)]
    (tmp_path / 'list.csv').write_text('file,label,scene\n' + ''.join(rows))
    command = ['folds', tmp_path / 'list.csv', '--by', 'scene', '--out', tmp_path / 'folds.csv']
    assert call(monkeypatch, prepare_data, *command) is None
    assert 'fold 4: 3 a, 3 b' in capsys.readouterr().out
    with open(tmp_path / 'folds.csv', newline='') as content:
        found = list(csv.DictReader(content))
    assert len({(row['scene'], row['fold']) for row in found}) == 10
    assert 'nothing is overwritten' in call(monkeypatch, prepare_data, *command)
    command[3] = 'camera'
    assert 'columns label and camera' in call(monkeypatch, prepare_data, *command)
