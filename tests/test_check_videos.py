"""tools/check_videos.py names what cannot be read, whatever it does to the process reading it."""

import os

import pytest
from clip_files import write_video
from commands import call
from test_video_reader import damaged

from navit_backbone.tools import check_videos

CONFIG = """
custom_imports = dict(imports=['navit_backbone.tasks.video'])
default_scope = 'mmengine'
train_dataloader = dict(dataset=dict(type='NaViTClipDataset', data_root='{root}'))
"""


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / 'clips' / 'run'
    folder.mkdir(parents=True)
    for name in ('a.mp4', 'b.mp4'):
        write_video(folder / name, frames=5)
    (folder / 'c.mp4').write_bytes(b'nothing')
    return tmp_path / 'clips'


def test_broken_clips_are_named_and_listed(clips, monkeypatch, capsys, tmp_path):
    out = tmp_path / 'broken.txt'
    code = call(monkeypatch, check_videos, clips, '--workers', 2, '--out', out)
    assert code == 1
    told = capsys.readouterr().out
    assert f'{clips / "run/c.mp4"}: ' in told
    assert '3 clips, by header and packets: 1 cannot be read' in told
    assert out.read_text().splitlines() == [str(clips / 'run/c.mp4')]


def test_decoding_finds_what_headers_hide(clips, monkeypatch, capsys):
    (clips / 'run/c.mp4').unlink()
    damaged(clips / 'run/d.mp4')
    assert not call(monkeypatch, check_videos, clips, '--workers', 1)
    assert call(monkeypatch, check_videos, clips, '--workers', 1, '--decode') == 1
    assert 'd.mp4' in capsys.readouterr().out


def test_the_clips_of_a_config(clips, monkeypatch, capsys, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(CONFIG.format(root=clips))
    assert call(monkeypatch, check_videos, config, '--workers', 1) == 1
    assert '3 clips' in capsys.readouterr().out


def dies_at_b(clip):
    if clip[1] == 'b':
        os._exit(9)
    return ''


def test_a_clip_that_takes_its_process_down_is_named():
    clips = [('videos', name) for name in 'zyxbacdefghijklm']
    found = list(check_videos.faults_of(clips, dies_at_b, 2))
    assert [clip[1] for clip, fault in zip(clips, found, strict=True) if fault] == ['b']


def test_mistakes_are_told(monkeypatch, tmp_path):
    assert 'no file or folder at' in call(monkeypatch, check_videos, tmp_path / 'none')
    (tmp_path / 'empty').mkdir()
    assert 'no videos in' in call(monkeypatch, check_videos, tmp_path / 'empty')
