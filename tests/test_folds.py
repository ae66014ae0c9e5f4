"""Folds keep groups whole, and classes even."""

import csv
from collections import Counter

import pytest
from commands import call
from hypothesis import given
from hypothesis import strategies as st

from navit_backbone.tasks.common.folds import grouped_folds, hold_out
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


SAMPLES = st.lists(st.tuples(st.integers(0, 30), st.sets(st.sampled_from('abc'))), min_size=1)


@given(SAMPLES, st.floats(0.05, 0.95), st.integers(0, 9))
def test_groups_are_held_out_whole_and_both_sides_have_some(samples, share, seed):
    groups, classes = zip(*samples, strict=True)
    held = hold_out(groups, classes, share=share, seed=seed)
    assert held == hold_out(groups, classes, share=share, seed=seed)
    assert len(set(zip(groups, held, strict=True))) == len(set(groups))
    assert len(set(groups)) < 2 or set(held) == {True, False}


@given(st.lists(st.integers(1, 5), min_size=2, max_size=40), st.integers(0, 9))
def test_the_share_is_one_of_samples_not_of_groups(sizes, seed):
    """One group of most samples is not held out, however few groups there are."""
    sizes = [sum(sizes) * 9, *sizes]
    groups = [group for group, size in enumerate(sizes) for _ in range(size)]
    held = hold_out(groups, share=0.1, seed=seed)
    assert not held[0]
    assert 0 < sum(held) <= len(held) - sizes[0]
    if len(sizes) > 4:
        assert abs(sum(held) - 0.1 * len(held)) <= 5


def test_the_rarest_class_is_on_both_sides():
    groups = list(range(40))
    classes = [{'common'} | ({'rare'} if number in (7, 23) else set()) for number in groups]
    for seed in range(5):
        held = hold_out(groups, classes, share=0.2, seed=seed)
        assert held[7] != held[23] and sum(held) == 8


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
    message = call(monkeypatch, prepare_data, *command)
    assert 'no column camera' in message and 'file, label, scene' in message


def test_empty_groups_are_groups_of_their_own():
    folds = grouped_folds(['a', 'b'] * 6, ['', '', *'ccdd', *['', ''] * 3], 3)
    assert folds[2] == folds[3] and folds[4] == folds[5]
    assert Counter(folds) == {0: 4, 1: 4, 2: 4}  # 8 samples without a group fit in no fold


def test_a_list_that_has_folds_or_no_rows_is_refused(tmp_path, monkeypatch):
    file, out = tmp_path / 'list.csv', tmp_path / 'folds.csv'
    for content, words in (
        ('file,label,scene,fold\nx.mp4,a,1,0\ny.mp4,b,2,1\n', 'has a column fold already'),
        ('file,label,scene\n', 'no rows under its header'),
        ('', 'no column label and no column scene, it has none'),
    ):
        file.write_text(content)
        message = call(
            monkeypatch, prepare_data, 'folds', file, '--by', 'scene', '--folds', 2, '--out', out
        )
        assert str(file) in message and words in message
        assert not out.exists()
