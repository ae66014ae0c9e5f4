"""Lines of clip lists: blanks in paths and class names, TABs, and lines that are ambiguous."""

from __future__ import annotations

from pathlib import Path

import pytest

from navit_backbone.tasks.common.clip_lists import LineParser

SUFFIXES = ('.mp4', '.avi', '.jpg')


def parse(line, folder='/nowhere', **options):
    found = LineParser(Path(folder), SUFFIXES, **options).parse(line, 'list.txt, line 7')
    return tuple(found.values())


@pytest.mark.parametrize(
    ('line', 'path', 'label'),
    [
        ('a.mp4 playing guitar', 'a.mp4', 'playing guitar'),
        ('take  2.mp4 0', 'take  2.mp4', '0'),
        (' my clips/take  2.MP4   playing  guitar ', 'my clips/take  2.MP4', 'playing  guitar'),
        ('a b.rf.12.jpg 3', 'a b.rf.12.jpg', '3'),
        ('v1.avi.mp4 1', 'v1.avi.mp4', '1'),
        ('take 2\t3 4', 'take 2', '3 4'),
        ('a.mp4 b.mp4\trun.mp4', 'a.mp4 b.mp4', 'run.mp4'),
        ('clip 5', 'clip', '5'),
        ('my clip 5', 'my clip', '5'),  # no suffix: a number is the label alone
    ],
)
def test_the_path_ends_with_its_suffix_or_at_a_tab(line, path, label):
    assert parse(line) == (path, [label])


@pytest.mark.parametrize(
    ('line', 'folder', 'frames', 'label'),
    [
        ('one/x 3 0', 'one/x', '3', '0'),
        ('my clip 30 playing guitar', 'my clip', '30', 'playing guitar'),
        ('take 2 30 1', 'take 2', '30', '1'),
        ('take 2\t30\tgear 1', 'take 2', '30', 'gear 1'),
    ],
)
def test_folders_of_frames(line, folder, frames, label):
    assert parse(line, frames=True) == (folder, [label], frames)


@pytest.mark.parametrize(
    ('line', 'labels'),
    [('a 2.mp4 1 0', ['1', '0']), ('a 2.mp4\tplaying guitar\trun', ['playing guitar', 'run'])],
)
def test_several_labels(line, labels):
    assert parse(line, multi_class=True) == ('a 2.mp4', labels)
    assert parse('x 3 0 2', frames=True, multi_class=True) == ('x', ['0', '2'], '3')


def test_the_path_that_exists_decides(tmp_path):
    line = 'a.mp4 and b.mp4 run'
    with pytest.raises(
        ValueError, match=r"list\.txt, line 7: .* several ways: .*'a\.mp4' or 'a\.mp4 "
    ):
        parse(line, tmp_path)
    (tmp_path / 'a.mp4 and b.mp4').touch()
    assert parse(line, tmp_path) == ('a.mp4 and b.mp4', ['run'])
    (tmp_path / 'a.mp4').touch()
    with pytest.raises(ValueError, match=r'line 7: .* several ways: .* Fix: write a TAB'):
        parse(line, tmp_path)
    (tmp_path / 'clip').touch()  # no suffix, and a label of two words
    assert parse('clip playing guitar', tmp_path) == ('clip', ['playing guitar'])
    (tmp_path / 'take 2').mkdir()
    assert parse('take 2 30 gear 1', tmp_path, frames=True) == ('take 2', ['gear 1'], '30')


@pytest.mark.parametrize(
    ('line', 'options'),
    [
        ('a.mp4', {}),
        ('my clip.mp4', {}),  # no label
        ('3', {}),
        ('no suffix playing guitar', {}),
        ('a.mp4 run', dict(multi_class=True)),
        ('a.mp4\t', {}),
        ('a.mp4\t\trun', {}),
        ('a.mp4\trun\twalk', {}),
        ('one/x many 0', dict(frames=True)),
        ('one/x\tmany\t0', dict(frames=True)),
        ('take 2 30 gear', dict(frames=True)),  # 2 frames of "30 gear"?
    ],
)
def test_other_lines_are_refused_by_file_and_line(line, options):
    with pytest.raises(ValueError, match=r'^list\.txt, line 7: '):
        parse(line, **options)
