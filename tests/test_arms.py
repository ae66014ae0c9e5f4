"""The comparison of arms, for real but tiny: what is trained is kept, what was stopped goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from commands import NO_WORKERS, call
from mmengine.config import Config
from PIL import Image

from navit_backbone.tasks.common.paired import Interval
from navit_backbone.tasks.common.sample_set import write_sample_set
from navit_backbone.tasks.common.sheet import sheet
from navit_backbone.tools import arms, test, train
from navit_backbone.tools.arms_report import not_ahead, table
from navit_backbone.tools.arms_runs import Run, differences, seconds_left

ROOT = Path(__file__).resolve().parents[1]
CONFIG = next((ROOT / 'configs/detection').glob('retinanet_navit-ti_*_sample.py'))
QUICK = [
    'model.backbone.arch.num_layers=1',
    'model.test_cfg.score_thr=0.0',
    'train_dataloader.batch_size=4',
    'train_cfg.max_epochs=2',
    'train_cfg.val_interval=9',
    'default_hooks.checkpoint.save_best=None',
    *NO_WORKERS,
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two arms, one trained to the end beforehand, one stopped half way: then compared."""
    folder = tmp_path_factory.mktemp('arms')
    write_sample_set(folder / 'set', seed=0, num_pictures=dict(train=8, val=4))
    slow = 'optim_wrapper = dict(optimizer=dict(lr=7e-6))\n'
    (folder / 'slow.py').write_text(f"_base_ = '{CONFIG}'\n{slow}")
    with pytest.MonkeyPatch.context() as monkeypatch:
        for config, epochs in ((CONFIG, 2), (folder / 'slow.py', 1)):
            work = folder / 'out' / f'{config.stem}_seed5'
            stop = ['randomness.seed=5', f'train_cfg.max_epochs={epochs}']
            assert (
                call(monkeypatch, train, config, '--work-dir', work, *given(folder), *stop) is None
            )
        whole = (folder / 'out' / f'{CONFIG.stem}_seed5/epoch_2.pth').read_bytes()
        assert call(monkeypatch, arms, *command(folder)) is None
        assert (folder / 'out' / f'{CONFIG.stem}_seed5/epoch_2.pth').read_bytes() == whole
    return folder


def given(folder):
    return ['--cfg-options', f'data_root={folder / "set"}', *QUICK]


def command(folder, *more):
    arguments = [CONFIG, folder / 'slow.py', '--names', 'plain', 'slow', '--seeds', '5']
    arguments += ['--out', folder / 'out', '--eval-batches', '1', '--resamples', '200']
    return [*arguments, '--show-worst', '2', *more, *given(folder)]


def test_what_was_stopped_goes_on(folder):
    log = (folder / 'out/slow_seed5/log.txt').read_text()
    assert 'Epoch(train) [2]' in log and 'Epoch(train) [1]' not in log
    assert not (folder / f'out/{CONFIG.stem}_seed5/log.txt').exists()  # trained by hand


def test_sigterm_takes_the_training_along(folder, tmp_path):
    arguments = map(str, ['--out', tmp_path, *command(folder)[:5], *given(folder)])
    process = subprocess.Popen(
        [sys.executable, '-m', 'navit_backbone.tools.arms', *arguments],
        start_new_session=True,
    )
    while not list(tmp_path.glob('*/log.txt')):  # opened once the training runs
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_predictions_are_plain_and_say_what_they_are(folder):
    content = json.loads((folder / 'out/slow_seed5/evaluation/batch_1.json').read_text())
    assert (content['seed'], content['batch_size']) == (5, 1)
    assert content['checkpoint'] == 'epoch_2.pth'
    truth = json.loads(Path(content['annotations']).read_text())
    ids = {image['id'] for image in truth['images']}
    assert {item['image_id'] for item in content['predictions']} <= ids
    assert {'bbox', 'score', 'category_id'} <= content['predictions'][0].keys()


def test_report_has_the_figures_that_the_test_tool_prints(folder, monkeypatch, tmp_path):
    text = (folder / f'out/{CONFIG.stem}.md').read_text()
    checkpoint = folder / f'out/{CONFIG.stem}_seed5/epoch_2.pth'
    out, work = tmp_path / 'figures.json', ['--work-dir', tmp_path]
    assert call(monkeypatch, test, CONFIG, checkpoint, '--out', out, *work, *given(folder)) is None
    figures = json.loads(out.read_text())
    row = re.search(r'\| plain \| \*\*(.*?)\*\* .*? \*\*(.*?)\*\*', text)
    assert float(row[1]) == figures['coco/bbox_mAP'] > 0
    assert float(row[2]) == figures['coco/bbox_mAP_50']
    assert re.search(r'`optim_wrapper.optimizer.lr` \| `[\d.]+` \| `7e-06`', text)
    for part in (
        '4 photos',
        'photos: 4',
        '(too few)',
        'all photos',
        'x the short',
        "medium boxes (COCO's)",
        'min |',
    ):
        assert part in text
    for name in re.findall(r'!\[.*?\]\((.*?)\)', text):
        Image.open(folder / 'out' / name).load()


def test_second_call_does_nothing_but_the_report(folder, monkeypatch, capfd):
    report = folder / 'again.md'
    assert call(monkeypatch, arms, *command(folder, '--report', report)) is None
    printed = capfd.readouterr()
    assert 'training' not in printed.err and 'evaluation' not in printed.err
    first = (folder / f'out/{CONFIG.stem}.md').read_text()
    assert figures_of(report.read_text()) == figures_of(first)


def figures_of(text):
    return re.search(r'## Figures.*## Where the arms differ', text, re.DOTALL)[0]


def test_seeds_that_are_not_complete_are_left_out_or_missed(folder, monkeypatch, capfd):
    report = ['--no-train', '--report', folder / 'part.md', '--seeds', '5', '6']
    assert call(monkeypatch, arms, *command(folder, *report)) is None
    assert 'seeds 5;' in (folder / 'part.md').read_text()
    assert 'slow_seed6/epoch_2.pth' in capfd.readouterr().err
    told = call(monkeypatch, arms, *command(folder, *report[:-2], '6'))
    assert 'no seed is complete' in told and '_seed6/epoch_2.pth' in told


def test_checkpoint_that_is_not_named_yet_is_not_the_end(folder, tmp_path):
    run = Run(config=CONFIG, seed=0, out=tmp_path, options=QUICK)
    run.folder.mkdir()
    run.checkpoint.write_bytes(b'half of it')
    assert not run.is_complete
    (run.folder / 'last_checkpoint').write_text('/elsewhere/epoch_1.pth')
    assert not run.is_complete
    (run.folder / 'last_checkpoint').write_text(f'/elsewhere/{run.checkpoint.name}')
    assert run.is_complete


def test_predictions_older_than_the_checkpoint_do_not_count(folder):
    run = Run(config=CONFIG, seed=5, out=folder / 'out', options=QUICK)
    assert run.is_evaluated(1) and not run.is_evaluated(4)
    run.checkpoint.touch()
    assert not run.is_evaluated(1)
    run.evaluation(1).touch()


def test_change_of_the_config_since_its_training_is_told(folder):
    options = [f'data_root={folder / "set"}', *QUICK]
    run = Run(config=CONFIG, seed=5, out=folder / 'out', options=options)
    assert run.changes() == []
    other = [*options, 'optim_wrapper.optimizer.lr=3e-3']
    run = Run(config=CONFIG, seed=5, out=folder / 'out', options=other)
    assert run.changes() == ['optim_wrapper.optimizer.lr']


def test_what_training_fills_in_is_no_change(tmp_path):
    config = ROOT / 'configs/detection/retinanet_navit-ti_20e_raccoon.py'
    run = Run(config=config, seed=5, out=tmp_path)
    assert 'position' not in run.cfg.model.backbone
    run.folder.mkdir()
    stored = deepcopy(run.cfg)
    for position, changes in (('learned_1d', []), ('sinusoidal', ['model.backbone.position'])):
        stored.model.backbone.position = position
        stored.dump(run.folder / config.name)
        assert run.changes() == changes


def test_training_that_fails_is_told_with_its_last_line(tmp_path):
    run = Run(config=tmp_path / 'nowhere.py', seed=0, out=tmp_path)
    with pytest.raises(ValueError, match=r'tools/train.py ended with status 1: error: no config'):
        list(run.train())
    assert 'no config at' in (run.folder / 'log.txt').read_text()
    assert {'date', 'code', 'machine', 'torch'} <= run.begun.keys()


@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        ([CONFIG], 'two configs or more'),
        ([CONFIG, CONFIG], 'configs must differ'),
        ([CONFIG, 'b.py', '--names', 'a'], 'one for each of the 2'),
        ([CONFIG, 'b.py', '--names', 'a', 'a'], '--names must differ'),
        ([CONFIG, 'b.py', '--seeds', '1', '1'], '--seeds must differ'),
        ([CONFIG, 'b.py', '--eval-batches', '0'], 'start from 1'),
        ([CONFIG, 'b.py', '--resamples', '0'], 'start from 1'),
        ([CONFIG, 'b.py', '--seeds', '-1'], '--seeds -1 and --show-worst 0 start from 0'),
        ([CONFIG, 'b.py', '--show-worst', '-2'], '--show-worst -2 start from 0'),
        ([CONFIG, 'b.py', '--folds', '-1'], '--folds -1: give two folds or more'),
        ([CONFIG, 'b.py', '--folds', '1'], '--folds 1: give two folds or more'),
        ([CONFIG, 'nowhere.py'], 'no config at nowhere.py'),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments, told, monkeypatch, tmp_path):
    assert told in call(monkeypatch, arms, *arguments, '--out', tmp_path)
    assert not list(tmp_path.iterdir())


def test_folds_of_a_task_without_them_are_refused(folder, monkeypatch):
    told = call(monkeypatch, arms, *command(folder, '--folds', '2'))
    assert f'--folds 2: {CONFIG} is of detection' in told and 'Fix' in told


def test_damaged_evaluation_is_named(tmp_path):
    run = Run(config=CONFIG, seed=0, out=tmp_path)
    run.evaluation(4).parent.mkdir(parents=True)
    run.evaluation(4).write_text('{"predictions": [')
    with pytest.raises(ValueError, match=r'batch_4\.json is not JSON.*Fix: remove it'):
        run.evaluated(4)


def test_too_few_examples_are_not_said_to_be_ahead():
    nan = float('nan')
    few, ahead, behind, nothing = (
        Interval(estimate=estimate, low=low, high=high)
        for estimate, low, high in ((3, nan, nan), (3, 1, 4), (-3, -4, -1), (nan, nan, nan))
    )
    parts = [
        SimpleNamespace(name=name, content='photos: 9', ahead=[[gain]])
        for name, gain in (('all', few), ('wide', ahead), ('tall', behind), ('none', nothing))
    ]
    results = SimpleNamespace(names=['one', 'two'], figures=['AP'], form='.1f', compared=parts)
    assert not_ahead(results).splitlines() == [
        '- all (photos: 9): not told apart from two, AP +3.0 (too few)',
        '- tall (photos: 9): behind two, AP -3.0 [-4.0, -1.0]',
        '- none (photos: 9): not told apart from two, AP -',
    ]


def test_arms_of_two_tasks_are_refused(monkeypatch, tmp_path):
    (tmp_path / 'other.py').write_text("default_scope = 'mmseg'\nrandomness = dict(seed=0)\n")
    told = call(monkeypatch, arms, CONFIG, tmp_path / 'other.py', '--out', tmp_path / 'out')
    assert 'of detection and segmentation' in told


def test_differences_name_every_key():
    first = Config(dict(model=dict(a=1, b=[dict(c=2), 3]), x=0))
    second = Config(dict(model=dict(a=1, b=[dict(c=4)], d='e'), x=1))
    assert differences([first, first], ['model', 'x']) == {}
    expected = {'model.b.0.c': [2, 4], 'model.b.1': [3, None], 'model.d': [None, 'e']}
    assert differences([first, second], ['model']) == expected


def test_time_left_is_read_from_the_log():
    line = 'INFO - Epoch(train)  [6][20/40]  lr: 1e-06  eta: {}  time: 1.9  loss: 0.4'
    assert seconds_left(line.format('0:17:10')) == 1030
    assert seconds_left(line.format('2 days, 1:00:01')) == 49 * 3600 + 1
    assert seconds_left('Epoch(val) [5][20/42]    eta: 0:00:05') is None


def test_bars_do_not_break_a_table():
    assert table(['a'], [['x | y']]).splitlines()[-1] == '| x &#124; y |'


def test_sheet_holds_every_picture_whole():
    colours, sizes = [(200, 0, 0), (0, 200, 0), (0, 0, 200)], [(90, 20), (7, 300), (50, 50)]
    row = [Image.new('RGB', size, c) for size, c in zip(sizes, colours, strict=True)]
    drawn = np.asarray(sheet([('one', row), ('two', row)], ['a', 'b', 'c'], cell=(60, 40)))
    for colour, (w, h) in zip(colours, [(60, 13), (1, 40), (40, 40)], strict=True):
        assert (drawn == colour).all(-1).sum() == 2 * w * h
