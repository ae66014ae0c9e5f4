"""The doctor finds what is wrong and names the command that mends it."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from navit_backbone.tools import doctor, selftest

ROOT = Path(__file__).resolve().parents[1]
REQUIRED = {
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmdetection': '3.5.1',
    'onedl-mmsegmentation': '1.4.2',
}
HEALTHY = {**REQUIRED, 'torch': '2.13.0+cpu', 'navit-backbone': '0.1.0'}


def problems(installed, required=REQUIRED):
    return {found.name: found for found in doctor.examine(installed, required) if found.problem}


@pytest.fixture
def broken(monkeypatch):
    """Makes the import of a module fail."""
    real = importlib.import_module

    def spoil(module, error):
        def import_module(name):
            if name == module:
                raise error
            return real(name)

        monkeypatch.setattr(doctor.importlib, 'import_module', import_module)

    return spoil


def test_this_environment_is_healthy():
    done = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'doctor.py'], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'WRONG' not in done.stdout
    assert torch.__version__ in done.stdout


def test_nothing_wrong_is_found_in_what_is_healthy():
    assert problems(HEALTHY) == {}


@pytest.mark.parametrize('upstream', doctor.UPSTREAM)
def test_upstream_beside_a_fork_is_refused(upstream):
    found = problems({**HEALTHY, upstream: '2.1.0'})
    assert list(found) == [upstream]
    fork = doctor.UPSTREAM[upstream]
    assert f'pip uninstall -y {upstream} && ' in found[upstream].fix
    # what was overwritten is gone with the upstream package, so the fork is installed again
    again = found[upstream].fix.split('&&')[1]
    assert '--force-reinstall' in again
    assert fork in again
    assert ('MMCV_WITH_OPS=1' in again) == (fork == 'onedl-mmcv')


def test_another_version_than_the_pinned_one():
    found = problems({**HEALTHY, 'onedl-mmdetection': '3.4.0'})
    assert list(found) == ['mmdet']
    assert '3.4.0 is not 3.5.1' in found['mmdet'].problem
    assert found['mmdet'].fix.endswith('onedl-mmdetection==3.5.1')


def test_what_is_absent_is_wrong_for_nobody_but_its_users():
    bare = {'torch': '2.10.0', 'navit-backbone': '0.1.0'}
    lines = {found.name: str(found) for found in doctor.examine(bare, REQUIRED)}
    assert problems(bare) == {}
    assert '"navit-backbone[seg]"' in lines['mmseg']


@pytest.mark.parametrize(('version', 'wrong'), [('2.9.1', True), ('2.10.0', False), ('3.0', False)])
def test_oldest_torch(version, wrong):
    assert ('torch' in problems({**HEALTHY, 'torch': version})) == wrong


def test_without_torch_and_project():
    found = problems({})
    assert set(found) == {'torch', 'navit-backbone'}
    assert 'pip install -e .' in found['navit-backbone'].fix


def test_the_environment_that_was_set_up_is_pointed_to(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, 'ENVIRONMENT', tmp_path)
    assert problems({})['torch'].fix == f'. {tmp_path}/bin/activate'
    monkeypatch.setattr(sys, 'prefix', str(tmp_path))
    assert problems({})['torch'].fix.startswith('make setup')


@pytest.mark.parametrize(
    ('version', 'wrong'), [((3, 9), True), ((3, 10), False), ((3, 12), False), ((3, 13), True)]
)
def test_python_version(version, wrong):
    assert bool(doctor.check_python(version).problem) == wrong


def test_mmcv_without_operators(broken):
    broken('mmcv.ops', ModuleNotFoundError("No module named 'mmcv._ext'"))
    found = problems(HEALTHY)
    assert list(found) == ['mmcv ops']
    assert 'mmcv._ext' in found['mmcv ops'].problem
    for part in ('MMCV_WITH_OPS=1', '--no-build-isolation', '--no-cache-dir', 'onedl-mmcv==2.3.6'):
        assert part in found['mmcv ops'].fix


def test_video_does_without_operators_and_detection_does_not(broken, monkeypatch):
    monkeypatch.setattr(doctor.shutil, 'which', lambda name: None)
    broken('mmcv.ops', ImportError("No module named 'mmcv._ext'"))
    found = list(doctor.examine(HEALTHY, REQUIRED))
    for_video = {item.name: item for item in doctor.for_task(found, 'video')}
    assert not [item for item in for_video.values() if item.problem]
    assert 'mmcv._ext' in for_video['mmcv ops'].note
    assert for_video['mmcv ops'].note.endswith('video does not need it')
    for task in ('detection', 'segmentation', ''):
        wrong = [item.name for item in doctor.for_task(found, task) if item.problem]
        assert wrong == ['mmcv ops', 'compiler']
    alone = {
        k: v for k, v in HEALTHY.items() if k not in ('onedl-mmdetection', 'onedl-mmsegmentation')
    }
    assert problems(alone) == {}


@pytest.mark.parametrize('task', ['detection', 'segmentation', 'video'])
def test_the_task_of_a_config_is_read_without_importing_it(task):
    config = next((ROOT / 'configs' / task).glob('*.py'))
    assert doctor.task_of_config(config) == task
    assert doctor.task_of_config(ROOT / 'no.py') == ''


def test_compiler_is_missed_only_where_one_is_needed(monkeypatch, broken):
    monkeypatch.setattr(doctor.shutil, 'which', lambda name: None)
    assert problems(HEALTHY) == {}
    broken('mmcv.ops', ImportError('undefined symbol'))
    assert set(problems(HEALTHY)) == {'mmcv ops', 'compiler'}


def test_torchvision_that_does_not_fit(broken):
    broken('torchvision', RuntimeError('operator torchvision::nms does not exist'))
    found = problems({**HEALTHY, 'torchvision': '0.20.0'})
    assert list(found) == ['torchvision']
    assert 'pip uninstall -y torchvision' in found['torchvision'].fix


def test_a_problem_ends_in_status_1(monkeypatch, capsys):
    monkeypatch.setattr(doctor, 'installed_versions', lambda: {**HEALTHY, 'mmdet': '3.3.0'})
    monkeypatch.setattr(sys, 'argv', ['doctor.py'])
    with pytest.raises(SystemExit) as stopped:
        doctor.main()
    assert stopped.value.code == '1 thing to mend'
    assert 'mend it: ' in capsys.readouterr().out


def test_versions_are_read_from_what_is_installed():
    assert doctor.installed_versions()['onedl-mmcv'] == doctor.required_versions()['onedl-mmcv']


def test_selftest_accepts_this_machine(capsys):
    selftest.selftest()
    said = capsys.readouterr().out
    assert {'segmented', 'batched'} <= {word.strip(',') for word in said.split()}
    assert 'tokens/s' in said
    assert 'MiB' in said


def test_selftest_finds_a_wrong_gradient(monkeypatch):
    right = selftest.attention

    def with_a_wrong_gradient(q, k, v, segments, policy):
        out = right(q, k, v, segments, policy)
        return out.detach() + 1.01 * (out - out.detach())

    monkeypatch.setattr(selftest, 'attention', with_a_wrong_gradient)
    assert not selftest.check_attention()


def test_selftest_finds_a_mask_that_leaks(monkeypatch):
    def across_segments(q, k, v, segments, policy):
        whole = selftest.Segments.alike(1, len(q), q.device)
        return right(q, k, v, whole, policy)

    right = selftest.attention
    monkeypatch.setattr(selftest, 'attention', across_segments)
    assert not selftest.check_attention()
