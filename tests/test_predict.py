"""predict keeps what it found, whatever happens to one input or to the run."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from commands import call
from PIL import Image
from test_bad_pictures import CONFIG, OPTIONS, TINY, write_model

from navit_backbone.tasks.common.picture_sizes import PICTURE_SUFFIXES
from navit_backbone.tasks.common.sample import UnreadableVideoError
from navit_backbone.tasks.detection.inference import Detector
from navit_backbone.tools import predict, predict_output
from navit_backbone.tools.predict import SkippedError, existing_input, find_inputs, look

ROOT = Path(__file__).resolve().parents[1]
NUM = 6


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp('model') / 'random.pth', TINY)


@pytest.fixture
def source(tmp_path):
    """A folder of NUM images."""
    folder = tmp_path / 'in'
    folder.mkdir()
    for number in range(NUM):
        image = np.random.default_rng(number).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f'{number}.jpg')
    return folder


@pytest.fixture
def run(checkpoint, source, monkeypatch, tmp_path):
    """Run predict on `source`; return its status and predictions.json."""

    def work(*more):
        arguments = [CONFIG, checkpoint, source, '--out-dir', tmp_path / 'out', *more, *OPTIONS]
        code = call(monkeypatch, predict, *arguments)
        file = tmp_path / 'out/predictions.json'
        return code, json.loads(file.read_text()) if file.exists() else None

    return work


def names(items):
    return [Path(item['file_name']).name for item in items]


def files(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob('*') if file.is_file())


def fail_on(monkeypatch, owner, method, number, error):
    """Let a method raise, or call, `error` on its call of this number, counted from 0."""
    real, calls = getattr(owner, method), []

    def changed(*args, **kwargs):
        calls.append(args)
        if len(calls) == number + 1:
            if callable(error):
                error()
            else:
                raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, method, changed)


# --------------------------------------------------------------------------------------------------
# One input fails


@pytest.mark.parametrize(
    ('method', 'error', 'reason'),
    [
        ('read', OSError('truncated'), 'cannot be read (truncated)'),
        ('read', KeyError('img'), "cannot be read (KeyError: 'img')"),
        ('read', MemoryError(), 'cannot be read (MemoryError)'),
        ('find', MemoryError('of 9 GB'), 'does not fit the model (no memory left of 9 GB)'),
        ('find', RuntimeError('a fault'), 'cannot be predicted (RuntimeError: a fault)'),
    ],
)
def test_an_input_that_fails_costs_itself_alone(method, error, reason, run, monkeypatch, capsys):
    fail_on(monkeypatch, Detector, method, 2, error)
    code, content = run()
    said = capsys.readouterr().err
    assert code == 3
    assert names(content['images']) == [f'{n}.jpg' for n in (0, 1, 3, 4, 5)]
    assert [item['id'] for item in content['images']] == [1, 2, 3, 4, 5]
    assert {item['image_id'] for item in content['annotations']} == {1, 2, 3, 4, 5}
    ids = [item['id'] for item in content['annotations']]
    assert ids == list(range(1, len(ids) + 1))
    assert [item['reason'] for item in content['skipped']] == [reason]
    assert f'skipped: {content["skipped"][0]["file_name"]} {reason}' in said
    assert content['inputs'] == NUM
    assert ('Traceback' in said) == isinstance(error, (KeyError, RuntimeError))


def test_the_traceback_of_a_fault_is_shown_once(run, monkeypatch, capsys):
    for number in (1, 2, 4):
        fail_on(monkeypatch, Detector, 'find', number, RuntimeError('a fault'))
    _, content = run()
    assert len(content['skipped']) == 3
    assert capsys.readouterr().err.count('Traceback') == 1


def test_what_cannot_be_drawn_keeps_its_result(run, monkeypatch, tmp_path, capsys):
    fail_on(monkeypatch, Image.Image, 'save', 3, OSError(28, 'No space left on device'))
    code, content = run()
    assert code == 3
    assert len(content['images']) == NUM
    assert names(content['not_drawn']) == ['3.jpg']
    assert 'No space left on device' in content['not_drawn'][0]['reason']
    assert 'not drawn: ' in capsys.readouterr().err
    drawn = [f'{n}.jpg' for n in range(NUM) if n != 3]
    assert files(tmp_path / 'out') == [*drawn, 'predictions.json']


def test_a_file_system_that_takes_small_files_only(run, source, tmp_path):
    """A limit of the kernel, as a full disk: a part is written, then EFBIG."""
    noise = np.random.default_rng(0).integers(0, 256, (500, 600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(source / '2.jpg', quality=95)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        code, content = run('--score-thr', 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 3
    assert names(content['not_drawn']) == ['2.jpg']
    assert len(content['images']) == NUM
    assert '2.jpg' not in files(tmp_path / 'out')
    for name in files(tmp_path / 'out'):
        if name.endswith('.jpg'):
            Image.open(tmp_path / 'out' / name).load()


def test_a_label_map_that_cannot_be_written_costs_its_input(source, tmp_path, monkeypatch):
    """Of a segmentor the map is the result: without it nothing is listed as found."""
    predictor = type('P', (), dict(classes=('a', 'b'), palette=[(9, 9, 9), (90, 90, 90)]))
    output = predict_output.Regions(tmp_path / 'out', predictor, 0.3)
    results = predict.Results(tmp_path / 'out', {'inputs': NUM}, ('images',))
    found = (
        {'height': 60, 'width': 80},
        np.zeros((60, 80, 3), np.uint8),
        np.eye(60, 80, dtype=int),
    )
    monkeypatch.setattr(predict, 'look', lambda *_: found)
    fail_on(monkeypatch, Image.Image, 'save', 2, OSError(28, 'No space left'))
    for number in range(3):  # each saves a map and a drawing
        predict.predict_one(
            predictor, output, results, Path(f'{number}.jpg'), Path(f'{number}.jpg')
        )
    results.finish()
    content = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert names(content['images']) == ['0.jpg', '2.jpg']
    assert names(content['skipped']) == ['1.jpg']
    written = files(tmp_path / 'out')
    assert written == ['0.jpg', '2.jpg', 'labels/0.jpg.png', 'labels/2.jpg.png', 'predictions.json']


@pytest.fixture
def results(tmp_path):
    found = predict.Results(tmp_path / 'out', {'config': 'c'}, ('images', 'annotations'))
    found.add({'file_name': 'ü.jpg'}, [{'score': 0.5}, {'score': 0.25}])
    return found


class FullDisk:
    """A file that takes `room` bytes more."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        if not self.room:
            raise OSError(28, 'No space left on device')
        written = self.file.write(data[: self.room])
        self.room -= written
        return written

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_a_line_that_does_not_fit_leaves_no_part_of_it(results):
    results._file = FullDisk(results._file, room=10)
    with pytest.raises(OSError, match='No space left'):
        results.add({'file_name': 'b.jpg'})
    results.fail('skipped', Path('b.jpg'), 'has a result that cannot be written')
    results._file = results._file.file  # somebody made room
    results.add({'file_name': 'c.jpg'}, [{'score': 0.1}])
    for line in results.lines.read_text().splitlines():
        json.loads(line)
    results.finish()
    assert json.loads(results.whole.read_text()) == {
        'config': 'c',
        'images': [{'id': 1, 'file_name': 'ü.jpg'}, {'id': 2, 'file_name': 'c.jpg'}],
        'annotations': [
            {'id': 1, 'image_id': 1, 'score': 0.5},
            {'id': 2, 'image_id': 1, 'score': 0.25},
            {'id': 3, 'image_id': 2, 'score': 0.1},
        ],
        'skipped': [{'file_name': 'b.jpg', 'reason': 'has a result that cannot be written'}],
        'not_drawn': [],
    }
    assert not results.lines.exists()


def test_without_room_for_the_json_the_lines_stay(run, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(predict.Results, 'finish', full)
    code, content = run()
    assert content is None
    assert code.startswith(f'error: {tmp_path}/out/predictions.json cannot be written')
    assert f'{NUM} of {NUM} inputs is in {tmp_path}/out/predictions.jsonl' in code
    header, *lines = map(json.loads, (tmp_path / 'out/predictions.jsonl').read_text().splitlines())
    assert header['inputs'] == len(lines) == NUM


def test_lines_of_killed_runs_are_kept(results, tmp_path):
    """Each run into the folder of a killed one keeps its lines under a name of their own."""
    earlier = [results.lines.read_bytes()]
    again = predict.Results(tmp_path / 'out', {'config': 'd'}, ('images', 'annotations'))
    again.add({'file_name': 'b.jpg'})
    earlier.append(again.lines.read_bytes())
    last = predict.Results(tmp_path / 'out', {'config': 'e'}, ('images', 'annotations'))
    kept = [tmp_path / f'out/predictions_killed_{number}.jsonl' for number in (1, 2)]
    assert (results.kept, again.kept, last.kept) == (None, *kept)
    assert [file.read_bytes() for file in kept] == earlier
    last = predict.Results(tmp_path / 'out', {'config': 'f'}, ('images', 'annotations'))
    assert last.kept is None  # a header alone holds no result
    last.finish()
    assert [file.read_bytes() for file in kept] == earlier
    assert json.loads(last.whole.read_text())['config'] == 'f'


def test_a_rerun_names_the_lines_of_a_killed_run(run, tmp_path, capsys):
    lines = b'{"inputs": 9}\n{"images": {"id": 1}, "annotations": []}\n{"half a li'
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/predictions.jsonl').write_bytes(lines)
    code, content = run()
    assert (code, len(content['images'])) == (0, NUM)
    kept = tmp_path / 'out/predictions_killed_1.jsonl'
    assert kept.read_bytes() == lines
    assert f'killed are kept in {kept}' in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------
# The run is stopped


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(('owner', 'method'), [(Detector, 'find'), (Image.Image, 'save')])
def test_a_stopped_run_keeps_what_it_found(
    owner, method, number, run, monkeypatch, tmp_path, capsys
):
    fail_on(monkeypatch, owner, method, 3, lambda: os.kill(os.getpid(), number))
    code, content = run()
    assert code == 128 + number
    found = 3 if method == 'find' else 4  # what is drawn is kept first
    assert names(content['images']) == [f'{n}.jpg' for n in range(found)]
    assert (content['skipped'], content['not_drawn'], content['inputs']) == ([], [], NUM)
    assert f'stopped by {number.name}: {NUM - found} inputs' in capsys.readouterr().err
    assert files(tmp_path / 'out') == ['0.jpg', '1.jpg', '2.jpg', 'predictions.json']


def test_a_killed_run_leaves_whole_lines(checkpoint, source, tmp_path):
    for number in range(NUM, 200):
        (source / f'{number}.jpg').symlink_to(source / '0.jpg')
    lines = tmp_path / 'out/predictions.jsonl'
    command = [sys.executable, ROOT / 'tools/predict.py', CONFIG, checkpoint, source]
    command += ['--out-dir', tmp_path / 'out', *OPTIONS]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if lines.exists() and lines.read_bytes().count(b'\n') > 5:
                process.kill()
            time.sleep(0.02)
    assert process.returncode == -signal.SIGKILL
    header, *found = map(json.loads, lines.read_text().splitlines())
    assert header['inputs'] == 200
    assert 5 <= len(found) < 200
    assert [item['images']['id'] for item in found] == list(range(1, len(found) + 1))
    assert all(len(item['annotations']) == 5 for item in found)
    for item in found[:-1]:  # each was drawn before the next was begun
        name = Path(item['images']['file_name']).name
        Image.open(tmp_path / 'out' / name).load()


# --------------------------------------------------------------------------------------------------
# What is given


def test_what_is_no_input_is_answered_with_the_fix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('clip.mp4', 'list.json', 'a.jpg', 'b.jpg'):
        (tmp_path / name).write_bytes(b'')
    answers = {
        'clip.mp4': r'clip.mp4 is a video, and this model takes images \(.jpg.*ffmpeg -i clip.mp4',
        'list.json': 'list.json is a list or an annotation file: give the images',
        'https://example.org/a.jpg': r'a.jpg is a URL.*`curl -O https://example.org/a.jpg`',
        'rtsp://10.0.0.1/x': 'rtsp://10.0.0.1/x is a URL',
        '0': 'no file or folder at 0; .*a camera.*ffmpeg',
        '*.jpg': r'\*.jpg is a pattern.*leave its quotes away.*the 2 files',
        'gone': '^no file or folder at gone$',
    }
    for text, answer in answers.items():
        with pytest.raises(ValueError, match=answer):
            existing_input(text, PICTURE_SUFFIXES)
    assert existing_input('clip.mp4', ('.mp4',)) == Path('clip.mp4')
    assert existing_input('a.jpg', PICTURE_SUFFIXES) == Path('a.jpg')
    (tmp_path / 'clips').mkdir()
    (tmp_path / 'clips/x.avi').touch()
    with pytest.raises(ValueError, match='its 1 videos need a classifier'):
        find_inputs(['clips'], tmp_path / 'out', PICTURE_SUFFIXES)


def test_the_same_name_in_several_folders_is_drawn_in_each(tmp_path):
    listed = ['a.jpg', 'a.png', 'x/a.jpg', 'x/y/a.jpg', 'a.webp', 'labels/a.jpg.png']
    for name in listed:
        (tmp_path / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'in' / name).touch()
    found = find_inputs([str(tmp_path / 'in')], tmp_path / 'out', PICTURE_SUFFIXES)
    targets = {str(file.relative_to(tmp_path / 'in')): str(to) for file, to in found.items()}
    same = {name: name for name in listed}
    assert targets == {**same, 'a.webp': 'a.webp.png', 'labels/a.jpg.png': 'labels/a.jpg_2.png'}
    maps = {str(predict_output.label_map_of(Path(target))) for target in targets.values()}
    assert len(maps | set(targets.values())) == 2 * len(listed)


def test_the_home_folder_is_found_in_inputs(checkpoint, source, monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    arguments = ['~/in/0.jpg', '--out-dir=~/found', *OPTIONS]
    assert call(monkeypatch, predict, CONFIG, checkpoint, *arguments) == 0
    assert files(tmp_path / 'found') == ['0.jpg', 'predictions.json']


def test_a_link_to_itself_is_skipped_as_an_unreadable_image(tmp_path):
    folder = tmp_path / 'in'
    folder.mkdir()
    (folder / 'a.jpg').touch()
    (folder / 'self.jpg').symlink_to('self.jpg')
    found = find_inputs([str(folder)], tmp_path / 'out', PICTURE_SUFFIXES)
    assert [file.name for file in found] == ['a.jpg', 'self.jpg']


def test_spellings_of_one_file_are_one_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('in/a.jpg', 'in/b.jpg', 'away/deep/c.jpg'):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path('in/link.jpg').symlink_to('a.jpg')
    Path('to_in').symlink_to('in')
    Path('to_deep').symlink_to('away/deep')
    Path('away/a.jpg').touch()

    def found(*inputs):
        return list(map(str, find_inputs(list(inputs), Path('out'), PICTURE_SUFFIXES)))

    spellings = ['in/a.jpg', './in/a.jpg', str(tmp_path / 'in/a.jpg'), 'in/../in/a.jpg']
    assert found(*spellings, 'to_in/a.jpg') == ['in/a.jpg']
    assert found('in/b.jpg', './in', 'in/a.jpg') == ['in/b.jpg', 'in/a.jpg', 'in/link.jpg']
    assert found('in/b.jpg', 'away/a.jpg', 'to_deep/../a.jpg') == ['in/b.jpg', 'away/a.jpg']


@pytest.mark.parametrize('score', ['nan', '30', '-0.1', 'high', 'inf'])
def test_a_threshold_that_is_no_score_is_refused(score, monkeypatch, capsys):
    arguments = ['c.py', 'c.pth', 'a.jpg', '--out-dir', 'out', f'--score-thr={score}']
    assert call(monkeypatch, predict, *arguments) == 2
    assert f"'{score}' is not a score: give a number from 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize('out', ['in', '.'])
def test_an_out_dir_around_the_images_is_named(out, tmp_path):
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in/a.jpg').touch()
    with pytest.raises(ValueError, match='--out-dir .*set another folder'):
        find_inputs([str(tmp_path / 'in')], tmp_path / out, PICTURE_SUFFIXES)


def test_an_image_of_an_unusual_suffix_is_drawn_as_png(tmp_path):
    files = [tmp_path / name for name in ('a.gif', 'scan')]
    for file in files:
        file.write_bytes(b'')
    found = find_inputs([*map(str, files)], tmp_path / 'out', PICTURE_SUFFIXES)
    assert [str(target) for target in found.values()] == ['a.gif.png', 'scan.png']


@pytest.mark.parametrize(
    ('error', 'reason'),
    [
        (UnreadableVideoError('a.mp4: frame 7 of 9'), 'cannot be read (a.mp4: frame 7 of 9)'),
        (SkippedError('4,000 tokens are too many'), 'does not fit the model (4,000 tokens'),
    ],
)
def test_a_video_damaged_behind_its_first_frame_is_no_fault_of_the_model(error, reason):
    def find(_):
        raise error

    predictor = SimpleNamespace(read=lambda _: {}, describe=dict, shown=dict, find=find)
    with pytest.raises(SkippedError) as caught:
        look(predictor, Path('a.mp4'))
    assert str(caught.value).startswith(reason)
