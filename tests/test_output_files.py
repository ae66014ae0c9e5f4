"""Output files: whole or not at all, and none in the place of another."""

import argparse
import os
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call
from mmengine.config import Config
from PIL import Image

from navit_backbone.file_writing import check_output, written_whole
from navit_backbone.sealed import write_sealed
from navit_backbone.tasks.common.output_files import OutputNames
from navit_backbone.tasks.segmentation.conversion import coloured
from navit_backbone.tools.command_line import output_file, output_folder, set_work_dir


def test_no_two_inputs_share_an_output():
    names = OutputNames(clips=True)
    inputs = ['a.jpg', 'a.png', 'x/a.jpg', 'a.webp', 'a.webp.png', 'A.JPG', 'a.jpg', 'clip.avi']
    assert [str(names.assign(Path(name))) for name in inputs] == [
        'a.jpg',
        'a.png',
        'x/a.jpg',
        'a.webp.png',
        'a.webp_2.png',
        'A_2.JPG',
        'a_3.jpg',
        'clip.avi.mp4',
    ]


def test_images_of_any_suffix_are_drawn_as_images():
    names = OutputNames()
    inputs = ['a.gif', 'a.avif', 'scan', 'a.PNG', 'IMG.dcm.mp4']
    assert [str(names.assign(Path(name))) for name in inputs] == [
        'a.gif.png',
        'a.avif.png',
        'scan.png',
        'a.PNG',
        'IMG.dcm.mp4.png',
    ]


def test_a_file_beside_the_drawing_is_reserved_with_it():
    names = OutputNames(also=lambda target: Path('labels', f'{target}.png'))
    assert names.assign(Path('x.jpg')) == Path('x.jpg')
    assert names.assign(Path('labels/x.jpg.png')) == Path('labels/x.jpg_2.png')


@pytest.mark.parametrize(
    ('name', 'folder', 'problem'),
    [
        ('dir', False, 'is a folder, and a file is wanted'),
        ('file', True, 'is a file, and a folder is wanted'),
        ('file/x.json', False, 'file is a file'),
        ('file/deep/er', True, 'file is a file'),
        ('new/' + 'n' * 300, True, 'File name too long'),
        ('n' * 300 + '/x.json', False, 'File name too long'),
        ('/proc/navit/x.json', False, 'No such file or directory'),
    ],
)
def test_paths_that_cannot_be_written_to_are_named(name, folder, problem, tmp_path):
    (tmp_path / 'dir').mkdir()
    (tmp_path / 'file').write_text('kept')
    before = sorted(tmp_path.rglob('*'))
    path = tmp_path / name
    with pytest.raises(ValueError, match='Fix: give a ') as caught:
        check_output(path, folder=folder)
    assert str(caught.value).startswith(f'{path}: ')
    assert problem in str(caught.value)
    assert sorted(tmp_path.rglob('*')) == before
    assert (tmp_path / 'file').read_text() == 'kept'


@pytest.mark.skipif(os.name != 'posix' or os.geteuid() == 0, reason='root may write anywhere')
def test_write_protected_places_are_refused(tmp_path):
    file = tmp_path / 'dir/x.json'
    file.parent.mkdir()
    file.touch(mode=0o444)
    with pytest.raises(ValueError, match='write-protected'):
        check_output(file)
    file.parent.chmod(0o555)
    with pytest.raises(ValueError, match='Permission denied'):
        check_output(file.parent / 'new/y.json')


def test_paths_that_can_be_written_to_are_left_as_they_are(tmp_path):
    (tmp_path / 'dir').mkdir()
    (tmp_path / 'file').write_text('kept')
    before = sorted(tmp_path.rglob('*'))
    for name in ('file', 'new', 'dir/a/b/c.json', '../' + tmp_path.name + '/x'):
        check_output(tmp_path / name)
    for name in ('dir', 'new', 'dir/a/b'):
        check_output(tmp_path / name, folder=True)
    check_output(Path(os.devnull))
    assert sorted(tmp_path.rglob('*')) == before
    assert (tmp_path / 'file').read_text() == 'kept'


TOOLS = [
    ('test', ['c.py', 'c.pth'], '--out', 'x.json'),
    ('test', ['c.py', 'c.pth'], '--work-dir', ''),
    ('test', ['c.py', 'c.pth'], '--show-dir', ''),
    ('check_videos', ['clips'], '--out', 'x.txt'),
    ('browse', ['c.py'], '--out-dir', ''),
    ('predict', ['c.py', 'c.pth', 'a.jpg'], '--out-dir', ''),
    ('train', ['c.py'], '--work-dir', ''),
    ('get_flops', ['c.py'], '--out', 'x.json'),
    ('knn', ['c.py'], '--out', 'x.json'),
    ('arms', ['c.py'], '--out', ''),
    ('arms', ['c.py'], '--report', 'x.md'),
    ('publish', ['c.pth'], 'out', 'x.safetensors'),
    ('convert_weights', ['w.pth'], 'OUT', 'x.safetensors'),
    ('convert_weights', ['w.pth', '--to', 'hf'], 'OUT', 'model'),
    ('convert_weights', ['w.pth', '--check-images', 'd'], '--report', ''),
    ('benchmark', [], '--out', 'x.md'),
    ('prepare_data', ['sample'], '--out', ''),
    ('prepare_data', ['split', 'a.json'], '--out', ''),
    ('prepare_data', ['masks', 'd', '--colours', '0 0 0 a'], '--out', ''),
    ('prepare_data', ['depth', 'd'], '--out', ''),
    ('prepare_data', ['motions'], '--out', ''),
    ('prepare_data', ['folds', 'l.csv', '--by', 'g'], '--out', 'x.csv'),
]


@pytest.mark.parametrize(('tool', 'arguments', 'option', 'name'), TOOLS)
def test_tools_check_where_they_write_first(
    tool, arguments, option, name, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').touch()
    path = tmp_path / 'file' / name
    given = [option, path] if option.startswith('--') else [path]
    module = import_module(f'navit_backbone.tools.{tool}')
    assert call(monkeypatch, module, *arguments[:1], *given, *arguments[1:]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert f'{option}: {path}: ' in told or f'{option} {path}: ' in told
    assert 'file is a file' in told or 'is a file, and a folder is wanted' in told
    assert [file.name for file in tmp_path.iterdir()] == ['file']


@pytest.mark.parametrize(
    ('text', 'type_'), [('', output_file), (' ', output_folder), ('a/', output_file)]
)
def test_texts_that_name_no_output_are_refused(text, type_):
    with pytest.raises(argparse.ArgumentTypeError, match='Fix: give'):
        type_(text)


def test_the_work_dir_of_a_config_is_checked_too(tmp_path):
    (tmp_path / 'file').touch()
    cfg = Config({'work_dir': str(tmp_path / 'file/run')})
    with pytest.raises(ValueError, match='work_dir=.*file/run: .*file is a file.*--work-dir'):
        set_work_dir(cfg, Path('c.py'), None)
    set_work_dir(cfg, Path('c.py'), tmp_path / 'run')
    assert cfg.work_dir == str(tmp_path / 'run')


def test_a_full_disk_is_named_with_the_file(tmp_path):
    resource = pytest.importorskip('resource')
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    out = tmp_path / 'model.safetensors'
    out.write_text('kept')
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(OSError, match='Fix: make room') as caught:
            write_sealed(out, {'a': torch.zeros(4096)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert str(caught.value).startswith(f'{out} cannot be written: ')
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(out.name, 'kept')]


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='a device of Linux')
def test_a_device_is_written_to_and_stays():
    named = '^/dev/full cannot be written: No space left on device'
    with pytest.raises(OSError, match=named), written_whole(Path('/dev/full')) as out:
        out.write_text('x')
    assert Path('/dev/full').is_char_device()


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), KeyboardInterrupt()])
def test_a_failed_write_leaves_what_was_there(error, tmp_path):
    def write(text, *, then=None):
        with written_whole(out) as aside:
            aside.write_text(text)
            if then is not None:
                raise then

    out = tmp_path / 'deeper' / 'a.txt'
    write('first')
    with pytest.raises(type(error)):
        write('sec', then=error)
    assert out.read_text() == 'first'
    assert [file.name for file in out.parent.iterdir()] == ['a.txt']


@pytest.mark.parametrize('kind', ['cut', 'huge'])
def test_label_maps_that_cannot_be_read_are_named(kind, tmp_path, monkeypatch):
    (tmp_path / 'in').mkdir()
    for name in ('good', 'bad'):
        map_ = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (40, 60, 1))
        Image.fromarray(map_.repeat(3, 2)).save(tmp_path / f'in/{name}.png')
    file = tmp_path / 'in/bad.png'
    if kind == 'cut':
        file.write_bytes(file.read_bytes()[:100])
    else:
        Image.fromarray(np.zeros((200, 300, 3), np.uint8)).save(file)
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10_000)  # twice as many are refused
    colours = {(0, 0, 0): 0, (255, 255, 255): 1}
    with pytest.raises(ValueError, match=r'in/bad\.png: cannot be read, replace or remove it'):
        coloured(tmp_path / 'in', tmp_path / 'out', colours)
    assert all(file.name == 'good.png' for file in (tmp_path / 'out').rglob('*.png'))
