"""Two processes train and test as one does; the scripts that start many."""

import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from faults.two_processes import HEADS, compare

from navit_backbone.checkpoint import read_checkpoint
from navit_backbone.tasks.common.sample_set import write_sample_set

ROOT = Path(__file__).resolve().parents[1]
# FCOS, whose losses are divided by the counts of all processes, and one canvas for all pictures
CONFIG = f"""
_base_ = '{ROOT}/configs/detection/retinanet_navit-ti_20e_sample.py'
strides = [16, 32]
model = dict(
    type='FCOS',
    data_preprocessor=dict(pad_size_divisor=448),
    backbone=dict(with_cp=True, arch=dict(num_layers=1)),
    bbox_head=dict(
        _delete_=True,
        type='FCOSHead',
        num_classes=5,
        in_channels=96,
        feat_channels=32,
        stacked_convs=1,
        strides=strides,
        regress_ranges=((-1, 64), (64, 1e8)),
        norm_cfg=dict(type='LayerNorm2d', eps=1e-6),
    ),
    train_cfg=dict(_delete_=True),
    test_cfg=dict(score_thr=0.0),
)
optim_wrapper = dict(
    _delete_=True, type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01)
)
param_scheduler = []
train_cfg = dict(max_epochs=1, val_interval=2)
default_hooks = dict(logger=dict(interval=1))
train_dataloader = dict(num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = dict(num_workers=0, persistent_workers=False)
"""


def test_gradients_are_those_of_one_process_or_the_mean_of_the_shares():
    result = compare(['backbone and pyramid', 'FCOS', 'RetinaNet'], ['1 + 3'])
    assert all(item.holds for item in result.values()), result
    assert [name for name in result if not HEADS[name].synced] == ['RetinaNet']


# --------------------------------------------------------------------------------------------------
# The tools, from end to end


def run_script(name, *arguments):
    """Run a shell script of tools/, on CPUs."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    environment = dict(CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1', PYTHON=sys.executable)
    done = subprocess.run(
        [ROOT / 'tools' / name, *map(str, arguments)],
        env={**os.environ, **environment, 'PORT': port},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-9000:]


def run_here(tool, *arguments):
    """Run a tool in one process of its own: mmengine's visualizer and logger are one a process."""
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1')
    command = [sys.executable, ROOT / 'tools' / tool, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-9000:]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Trained and tested: in `two` by two processes at batch 2, in `one` by one at batch 4."""
    folder = tmp_path_factory.mktemp('distributed')
    write_sample_set(folder / 'set', seed=0, num_pictures=dict(train=8, val=3))
    one, two, weights = folder / 'one', folder / 'two', folder / 'two/epoch_1.pth'
    options = ['--cfg-options', f'data_root={folder / "set"}']
    for out, size in ((one, 4), (two, 2)):
        out.with_suffix('.py').write_text(f'{CONFIG}train_dataloader["batch_size"] = {size}\n')
    run_script('dist_train.sh', f'{two}.py', 2, '--work-dir', two, *options)
    run_here('train.py', f'{one}.py', '--work-dir', one, *options)
    out = ['--work-dir', folder, '--out']
    run_script('dist_test.sh', f'{two}.py', weights, 2, *out, f'{two}.pkl', *options)
    run_here('test.py', f'{one}.py', weights, *out, f'{one}.pkl', *options)
    return folder


def test_weights_are_those_of_one_process_with_as_large_a_batch(folder):
    one, two = (read_checkpoint(folder / name / 'epoch_1.pth') for name in ('one', 'two'))
    assert one['meta']['iter'] == two['meta']['iter'] == 2
    for key, weight in one['state_dict'].items():
        torch.testing.assert_close(two['state_dict'][key], weight, rtol=1e-6, atol=1e-7)


def scalars(folder, name):
    (file,) = folder.glob(f'{name}/*/vis_data/scalars.json')  # one rank alone writes
    lines = map(json.loads, file.read_text().splitlines())
    return [line for line in lines if 'loss' in line]


def test_the_log_adds_the_ranks_up(folder):
    one, two = scalars(folder, 'one'), scalars(folder, 'two')
    assert len(one) == len(two) == 2
    for ours, theirs in zip(two, one, strict=True):
        assert ours['images'] == theirs['images'] == 4
        for key in ('tokens', 'padded_tokens'):
            assert ours[key] == theirs[key]
        assert ours['padded_tokens'] == 4 * 28**2  # the canvas that all have in common


def test_every_picture_is_evaluated_once_and_alike(folder):
    one, two = (pickle.loads((folder / f'{n}.pkl').read_bytes()) for n in ('one', 'two'))
    assert [item['img_path'] for item in one] == [item['img_path'] for item in two]
    assert len(two) == 3
    for ours, theirs in zip(two, one, strict=True):
        assert len(ours['pred_instances']['scores']) > 10
        for key, value in theirs['pred_instances'].items():
            np.testing.assert_allclose(ours['pred_instances'][key], value, rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------------------------------
# The scripts


def words(script, *arguments, folder, **environment):
    """The command that a script would run, word by word."""
    for name in ('python', 'srun'):
        (folder / name).write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
        (folder / name).chmod(0o755)
    path = f'{folder}:{os.environ["PATH"]}'
    command = [ROOT / 'tools' / script, *arguments]
    environment = {**os.environ, 'PATH': path, **environment}
    environment.pop('PYTHON', None)
    return subprocess.check_output(command, env=environment, text=True).splitlines()


@pytest.mark.parametrize(
    ('script', 'arguments', 'start', 'end'),
    [
        ('dist_train.sh', ['c.py', '4'], [], ['train.py', 'c.py', '--launcher', 'pytorch']),
        ('dist_test.sh', ['c.py', 'w', '4'], [], ['test.py', 'c.py', 'w', '--launcher', 'pytorch']),
        (
            'slurm_train.sh',
            ['part', 'job', 'c.py', 'work'],
            ['--partition', 'part', '--job-name', 'job', '--gres', 'gpu:2', '--ntasks', '4'],
            ['train.py', 'c.py', '--work-dir', 'work', '--launcher', 'slurm'],
        ),
        (
            'slurm_test.sh',
            ['part', 'job', 'c.py', 'w'],
            ['--partition', 'part', '--job-name', 'job', '--gres', 'gpu:2', '--ntasks', '4'],
            ['test.py', 'c.py', 'w', '--launcher', 'slurm'],
        ),
    ],
)
def test_scripts_pass_on_what_they_are_given(script, arguments, start, end, tmp_path):
    rest = ['--cfg-options', 'a=[1, 2]', 'b=x y']  # words with spaces stay words
    options = dict(GPUS='4', GPUS_PER_NODE='2', SRUN_ARGS='--time 1 --mem 2', PORT='1234')
    found = words(script, *arguments, *rest, folder=tmp_path, **options)
    assert found[: len(start)] == start
    assert [Path(word).name for word in found][-len(end) - 3 : -3] == end
    assert found[-3:] == rest
    if script.startswith('dist'):
        assert found[found.index('--nproc_per_node') + 1] == '4'
        assert found[found.index('--master_port') + 1] == '1234'
    else:
        place = found.index('--time')
        assert found[place : place + 4] == ['--time', '1', '--mem', '2']


@pytest.mark.parametrize('script', sorted(path.name for path in ROOT.glob('tools/*.sh')))
def test_scripts_say_what_they_want(script):
    done = subprocess.run(
        [ROOT / 'tools' / script, 'x'], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f'tools/{script} ' in done.stderr
