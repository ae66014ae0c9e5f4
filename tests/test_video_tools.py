"""The commands that a user types, for clips: train, test, predict, publish."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clip_files import frame_of, write_video
from commands import NO_WORKERS, call
from PIL import Image

from navit_backbone.tasks.common.video_reader import open_video
from navit_backbone.tools import browse, knn, predict, publish, test, train
from navit_backbone.tools.command_line import read_config
from navit_backbone.tools.predict import folders_of_frames

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'configs/video/cls_navit-ti_10e_fight.py'


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    """Bright clips and dark ones, of several sizes and lengths; one of each split is broken."""
    folder = tmp_path_factory.mktemp('clips')
    rows = 'fold,label,file,scene\n'
    for split, count in (('train', 6), ('val', 4)):
        for number in range(count):
            label = ('dark', 'bright')[number % 2]
            name = f'{split}{number}.mp4'
            level = 200 if label == 'bright' else 30
            size = (32 + 16 * (number % 3), 64)
            frame = np.full((*size, 3), level, np.uint8)
            write_video(folder / name, content=[frame] * (3 + 2 * number))
            rows += f'{int(split == "train")},{label},{name},{name}\n'
        (folder / f'{split}_broken.mp4').write_bytes(b'nothing')
        rows += f'{int(split == "train")},dark,{split}_broken.mp4,{split}_broken\n'
    (folder / 'manifest.csv').write_text(rows)
    return folder


@pytest.fixture(scope='module')
def options(clips):
    splits = ('train', 'val', 'test')
    pipelines = [f'{split}_dataloader.dataset.pipeline.1.max_tokens=64' for split in splits]
    pipelines += [f'{split}_dataloader.dataset.ann_file=manifest.csv' for split in splits]
    return [
        '--cfg-options', f'data_root={clips}', 'model.backbone.init_cfg=None',
        'model.backbone.arch.num_layers=1', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1',
        'train_dataloader.batch_sampler.max_tokens=192',
        'train_dataloader.batch_sampler.steps_per_epoch=3',
        'train_dataloader.dataset.pipeline.1.random.low_tokens=32', *pipelines, *NO_WORKERS,
    ]  # fmt: skip


@pytest.fixture(scope='module')
def trained(options, tmp_path_factory):
    """The checkpoint of a training that met a broken file, and what it said."""
    work = tmp_path_factory.mktemp('work')
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv('XDG_CACHE_HOME', str(work / 'cache'))
        assert call(monkeypatch, train, CONFIG, '--work-dir', work, *options) is None
    return work / 'epoch_1.pth', next(work.glob('2*/*.log')).read_text()


def test_a_training_with_a_broken_clip_ends_and_names_it(trained):
    _, log = trained
    assert '1 of 7 samples were bad and were replaced' in log
    assert 'train_broken.mp4' in log
    assert 'val_broken.mp4' in log
    assert '1 of 5 clips could not be read and count as wrong' in log


def test_figures_do_not_depend_on_the_batch(trained, options, monkeypatch, tmp_path):
    figures = []
    for size in (1, 4):
        out = tmp_path / f'{size}.json'
        arguments = ['--work-dir', tmp_path / 'work', '--out', out, *options]
        more = [
            f'test_dataloader.batch_size={size}',
            f'test_evaluator.output_dir={tmp_path}/{size}',
        ]
        assert call(monkeypatch, test, CONFIG, trained[0], *arguments, *more) is None
        figures.append(json.loads(out.read_text()))
    assert figures[0]['top1'] == figures[1]['top1'] <= 80
    scores = [
        json.loads((tmp_path / str(size) / 'predictions.json').read_text())['clips']
        for size in (1, 4)
    ]
    for one, other in zip(*scores, strict=True):
        assert one['file'] == other['file']
        if one['scores'] is not None:
            assert np.allclose(one['scores'], other['scores'], atol=1e-5)


def predicted(monkeypatch, out, *arguments):
    return call(monkeypatch, predict, *arguments, '--out-dir', out)


def test_predict_writes_labelled_videos_and_all_scores(
    trained, options, clips, monkeypatch, tmp_path, capsys
):
    photo = tmp_path / 'photo.png'
    Image.fromarray(frame_of(20, (40, 50))).save(photo)
    out = tmp_path / 'out'
    code = predicted(monkeypatch, out, CONFIG, trained[0], clips, photo, *options)
    assert code == 3
    told = json.loads((out / 'predictions.json').read_text())
    assert [Path(item['file_name']).name for item in told['skipped']] == [
        'train_broken.mp4', 'val_broken.mp4'
    ]  # fmt: skip
    assert len(told['clips']) == 11
    for entry in told['clips']:
        assert entry['class'] == max(entry['scores'], key=entry['scores'].get)
        assert sum(entry['scores'].values()) == pytest.approx(1, abs=1e-4)
    before, after = (open_video(str(folder / 'train3.mp4')) for folder in (clips, out))
    assert after.num_frames == before.num_frames
    assert np.allclose(after.times, before.times, atol=0.01)
    h, w = before.size
    shown = after.read([2])[0]
    assert shown.shape[0] > h
    assert np.abs(shown[:h, :w].astype(int) - before.read([2])[0]).mean() < 3
    assert shown[h:].std() > 10
    assert (out / 'photo.png').is_file()


def test_a_folder_of_frames_is_a_clip_where_the_data_says_so(
    trained, options, clips, monkeypatch, tmp_path
):
    """The same frames as a video and as a folder: the same scores, and both drawn as a video."""
    frames = open_video(str(clips / 'val3.mp4'))
    (tmp_path / 'in' / 'a').mkdir(parents=True)
    for number, frame in enumerate(frames.read(range(frames.num_frames))):
        Image.fromarray(frame).save(tmp_path / 'in' / 'a' / f'{number}.png')
    scores = []
    for kind, given in (('videos', clips / 'val3.mp4'), ('frames', tmp_path / 'in')):
        more = [*options, f'test_dataloader.dataset.kind={kind}']
        predicted(monkeypatch, tmp_path / kind, CONFIG, trained[0], given, *more)
        (entry,) = json.loads((tmp_path / kind / 'predictions.json').read_text())['clips']
        scores.append(entry['scores'])
    assert scores[0] == scores[1]
    assert folders_of_frames(tmp_path, tmp_path / 'in') == []  # what is drawn is no input
    drawn = open_video(str(tmp_path / 'frames/in/a.mp4'))
    assert drawn.num_frames == frames.num_frames


def test_accuracy_and_time_by_tokens(trained, options, monkeypatch, tmp_path):
    command = [CONFIG, trained[0], '--work-dir', tmp_path, '--tokens', '16,24,native', *options]
    assert call(monkeypatch, test, *command) is None
    rows = json.loads((tmp_path / 'token_curve.json').read_text())
    tokens = [row['tokens'] for row in rows]
    assert tokens[0] <= 16
    assert tokens[1] <= 24
    assert tokens[0] < tokens[1] < tokens[2]
    assert all(0 <= row['top1'] <= 100 for row in rows)


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (['--tta'], 'views of clips are those of ClipToTokenBudget'),
        (['--show-dir', 'shown'], 'tools/predict.py draws'),
    ],
)
def test_what_is_of_pictures_is_refused_with_the_way_out(
    trained, options, more, message, monkeypatch
):
    assert message in call(monkeypatch, test, CONFIG, trained[0], *more, *options)


def test_one_patch_size_reaches_the_backbone_and_all_that_plans_and_cuts():
    cfg = read_config(CONFIG, {'patch_size': (4, 16, 16)})
    loaders = [cfg[f'{split}_dataloader'] for split in ('train', 'val', 'test')]
    placed = [cfg.model.backbone.patch_size]
    placed += [loader.collate_fn.patch_size for loader in loaders]
    placed += [loader.dataset.pipeline[1].patch_size for loader in loaders]
    assert placed == [(4, 16, 16)] * 7


@pytest.mark.parametrize(
    ('option', 'value', 'message'),
    [
        ('budget.max_tokens', 400, 'set train_dataloader.dataset.pipeline.1.max_tokens, train_dat'),
        ('collate_fn.patch_size', 16, 'would change nothing'),
        ('test_pipeline.1.max_tokens', 400, 'would change nothing'),
        ('train_dataloader.batch_size', 4.5, 'the config has 8, and takes whole numbers'),
        ('train_dataloader.num_workers', 'two', 'the config has 2, and takes whole numbers'),
        ('optim_wrapper.optimizer.lr', 'small', 'the config has 0.0005, and takes numbers'),
    ],
)
def test_options_that_change_nothing_or_are_no_numbers_are_refused(option, value, message):
    with pytest.raises(ValueError, match=message):
        read_config(CONFIG, {option: value})


def test_keys_that_mmengine_reads_beside_its_runner_pass(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(f"_base_ = '{CONFIG}'\nmodel_wrapper_cfg = dict(type='A', find=False)\n")
    cfg = read_config(path, {'model_wrapper_cfg.type': 'B', 'find_unused_parameters': True})
    assert (cfg.model_wrapper_cfg.type, cfg.find_unused_parameters) == ('B', True)


def test_a_key_in_the_wrong_place_is_told_in_a_sentence(trained, options, monkeypatch):
    given = call(
        monkeypatch, test, CONFIG, trained[0], *options, 'test_dataloader.dataset.num_clips=2'
    )
    assert "unexpected keyword argument 'num_clips'; correct this key" in given


def test_a_published_model_gives_the_same_scores(trained, options, clips, monkeypatch, tmp_path):
    assert call(monkeypatch, publish, trained[0], tmp_path / 'model.safetensors') is None
    (model,) = tmp_path.glob('model-*.safetensors')
    scores = []
    for name, arguments in (('one', [CONFIG, trained[0]]), ('two', [model])):
        more = options if name == 'one' else []
        predicted(monkeypatch, tmp_path / name, *arguments, clips / 'val1.mp4', *more)
        told = json.loads((tmp_path / name / 'predictions.json').read_text())
        scores.append(told['clips'][0]['scores'])
    assert scores[0] == scores[1]


def test_browse_draws_contact_sheets(options, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    arguments = ['--out-dir', tmp_path / 'look', '--split', 'val', *options]
    assert call(monkeypatch, browse, CONFIG, *arguments) is None
    assert '5 clips in' in capsys.readouterr().out
    sheets = sorted((tmp_path / 'look').glob('*.png'))
    assert [sheet.name for sheet in sheets[:2]] == ['0000_val0.png', '0001_val1.png']
    assert np.asarray(Image.open(sheets[0])).std() > 5


def test_nearest_neighbours_tell_bright_clips_from_dark(
    trained, options, monkeypatch, tmp_path, capsys
):
    """By a trained model and by random weights; what cannot be read is wrong."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    for checkpoint in ([trained[0]], []):
        out = tmp_path / 'knn.json'
        arguments = [CONFIG, *checkpoint, '--k', 1, 3, '--out', out, *options]
        assert call(monkeypatch, knn, *arguments) is None
        told = json.loads(out.read_text())
        assert told['top1 of 1 neighbours'] == pytest.approx(80)
    assert 'from 1 to 6' in call(monkeypatch, knn, CONFIG, '--k', 99, *options)


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(['mmdet', 'mmseg', 'mmcv.ops', 'mmcv._ext']))
from navit_backbone.tools import {tool}
sys.argv = ['{tool}', *sys.argv[1:]]
{tool}.main()
"""


def test_everything_without_mmdet_mmseg_and_compiled_operators(trained, options, clips, tmp_path):
    checkpoint = trained[0]
    for tool, arguments in (
        ('train', [CONFIG, '--work-dir', tmp_path, *options]),
        ('test', [CONFIG, checkpoint, '--work-dir', tmp_path, *options]),
        (
            'predict',
            [CONFIG, checkpoint, clips / 'val1.mp4', '--out-dir', tmp_path / 'out', *options],
        ),
        ('check_videos', [clips, '--workers', 1]),
        ('doctor', [CONFIG, *options]),
    ):
        command = [sys.executable, '-c', WITHOUT.format(tool=tool), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        expected = 1 if tool in ('check_videos', 'doctor') else 0  # there are broken clips
        assert done.returncode == expected, done.stdout[-2000:] + done.stderr[-2000:]
    assert 'million parameters' in done.stdout, 'the doctor comes as far as the model'
