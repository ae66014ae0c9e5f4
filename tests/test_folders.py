"""Searching folders: links, loops, hidden files and files of other suffixes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from navit_backbone.tasks.common.folders import find_folders, is_system_file, search, visible


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names(files: list[Path], root: Path) -> list[str]:
    return [str(file.relative_to(root)) for file in files]


def test_files_of_the_suffixes_are_found_and_all_others_are_counted(tmp_path: Path) -> None:
    make(tmp_path, 'b.JPG', 'a/img.v1.png', 'a.rf.1.jpg', 'a/x.HEIC', 'y.heic', 'README')
    make(tmp_path, '._b.jpg', '.DS_Store', 'a/Thumbs.db', '__MACOSX/a/._a.jpg', '.git/x/c.jpg')
    found = search(tmp_path, ('.jpg', '.png'))
    assert names(found.files, tmp_path) == ['a/img.v1.png', 'a.rf.1.jpg', 'b.JPG']
    assert {suffix: len(files) for suffix, files in found.others.items()} == {'.heic': 2, '': 1}
    assert found.num_system == 5
    assert found.left_out == (
        f'{tmp_path}: left out files of other suffixes: 2 .heic (x.HEIC), 1 without suffix '
        '(README); 5 hidden or system files (._*, .DS_Store, __MACOSX)'
    )
    assert names(visible(tmp_path), tmp_path) == ['README', 'a', 'a.rf.1.jpg', 'b.JPG', 'y.heic']


def test_nothing_is_said_where_nothing_is_left_out(tmp_path: Path) -> None:
    make(tmp_path, 'a.jpg')
    assert search(tmp_path, ('.jpg',)).left_out == ''


def test_named_pipes_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / 'pipe.jpg')
    (tmp_path / 'gone.jpg').symlink_to('nowhere')
    (tmp_path / 'a.jpg').touch()
    found = search(tmp_path, ['.jpg'])
    assert [file.name for file in found.files] == ['a.jpg', 'gone.jpg']
    assert found.num_system == 1


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    make(tmp_path, 'data/one/a.jpg', 'disk/two/b.jpg')
    (tmp_path / 'data/two').symlink_to(tmp_path / 'disk/two')
    (tmp_path / 'data/again').symlink_to(tmp_path / 'data/one')  # a second way to the same files
    (tmp_path / 'disk/two/up').symlink_to(tmp_path / 'data')
    (tmp_path / 'data/one/self').symlink_to(tmp_path / 'data/one')
    root = tmp_path / 'data'
    found = search(root, ('.jpg',))
    assert names(found.files, root) == ['again/a.jpg', 'one/a.jpg', 'two/b.jpg']
    assert names(sorted(found.loops), root) == ['again/self', 'one/self', 'two/up']
    assert names(find_folders(root), root) == ['.', 'again', 'one', 'two']


@pytest.mark.parametrize('name', ['._a.jpg', 'x/.DS_Store', 'Thumbs.db', '__MACOSX/a.jpg'])
def test_files_of_operating_systems_are_known_by_name(name: str) -> None:
    assert is_system_file(name)


@pytest.mark.parametrize('name', ['a.jpg', '.hidden.jpg', '_a.jpg', 'thumbs.jpg'])
def test_listed_files_of_users_are_not(name: str) -> None:
    assert not is_system_file(name)
