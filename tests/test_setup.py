"""`make setup` trusts a step only if it was completed with the same versions and still works."""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

PATH = Path(__file__).resolve().parents[1] / '.ci' / 'setup.py'
spec = importlib.util.spec_from_file_location('setup_of_the_project', PATH)
setup = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(setup)


class Machine:
    """Two steps, a record of what pip was asked for, and checks that can be made to fail."""

    def __init__(self, folder):
        self.installed, self.faulty, self.stop = [], set(), None
        self.steps = [
            setup.Step('one', 'seconds', pip=('one',), check='one', key='1', renew=('--renew',)),
            setup.Step('two', 'seconds', pip=('two',), check='two', key='2'),
        ]

    def install(self, step, renew, lock):
        if step.name == self.stop:
            raise KeyboardInterrupt
        self.installed.append((step.name, *renew))
        if renew:
            self.faulty.discard(step.name)

    def fault(self, check):
        return ' '.join(self.faulty & set(check.split()))

    def run(self):
        """What pip was asked for this time."""
        self.installed = []
        setup.set_up('torch', None)
        return self.installed


@pytest.fixture
def machine(tmp_path, monkeypatch):
    machine = Machine(tmp_path)
    monkeypatch.setattr(setup, 'STAMPS', tmp_path)
    monkeypatch.setattr(setup, 'make_steps', lambda torch: machine.steps)
    monkeypatch.setattr(setup, 'install', machine.install)
    monkeypatch.setattr(setup, 'fault', machine.fault)
    monkeypatch.setattr(setup, 'forget_half_installed', lambda: False)
    return machine


def test_the_second_run_has_nothing_to_do(machine):
    assert machine.run() == [('one',), ('two',)]
    assert machine.run() == []


def test_an_interrupted_step_is_done_again(machine):
    machine.stop = 'two'
    with pytest.raises(KeyboardInterrupt):
        machine.run()
    machine.stop = None
    assert machine.run() == [('two',)]


def test_a_stamp_is_not_believed_where_the_check_fails(machine):
    machine.run()
    machine.faulty = {'one'}
    assert machine.run() == [('one',), ('one', '--renew')]
    assert machine.run() == []


def test_what_does_not_work_is_never_stamped(machine):
    machine.faulty = {'two'}
    for _ in range(2):
        with pytest.raises(SystemExit, match='two: installed, but does not work'):
            machine.run()
        assert machine.installed[-1] == ('two',)


def test_other_versions_renew_a_step(machine):
    machine.run()
    machine.steps[0] = replace(machine.steps[0], key='another')
    assert machine.run() == [('one', '--renew')]


def test_after_half_an_installation_every_step_is_asked_again(machine, monkeypatch):
    machine.run()
    monkeypatch.setattr(setup, 'forget_half_installed', lambda: True)
    assert machine.run() == [('one',), ('two',)]


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Two packages on record, which both claim `shared.py`."""
    monkeypatch.setattr(setup.sysconfig, 'get_path', lambda name: str(tmp_path))
    for name in ('first', 'second'):
        record = tmp_path / f'{name}-1.0.dist-info'
        record.mkdir()
        (record / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n')
        (tmp_path / f'{name}.py').write_text('x = 1\n')
        (record / 'RECORD').write_text(
            f'{name}.py,sha256=abc,6\nshared.py,sha256=abc,6\n__pycache__/{name}.pyc,,\n'
        )
    (tmp_path / 'shared.py').write_text('another size\n')
    return tmp_path


def records(library):
    return {path.name.split('-')[0] for path in library.glob('*.dist-info')}


def test_whole_packages_are_kept(library):
    assert not setup.forget_half_installed()
    assert records(library) == {'first', 'second'}


@pytest.mark.parametrize(
    'damage',
    [
        lambda library: (library / 'first.py').unlink(),
        lambda library: (library / 'first.py').write_text('x'),
        lambda library: (library / 'first-1.0.dist-info' / 'RECORD').unlink(),
    ],
    ids=['file gone', 'file cut', 'record not yet written'],
)
def test_half_installed_packages_are_forgotten(library, damage):
    damage(library)
    assert setup.forget_half_installed()
    assert 'first' not in records(library)


def test_the_steps_install_what_requirements_pin():
    steps = {step.name: step for step in setup.make_steps('torch==2.13.0 --index-url there')}
    assert steps['torch'].pip == ('torch==2.13.0', '--index-url', 'there')
    assert list(steps)[:3] == ['torch', 'build tools', 'mmcv with compiled ops']
    assert 'onedl-mmcv==2.3.6' in steps['mmcv with compiled ops'].pip
    other = {step.name: step for step in setup.make_steps('torch==2.12.0')}
    changed = {name for name in steps if steps[name].content != other[name].content}
    assert changed == {'torch', 'mmcv with compiled ops'}


def test_torch_stays_what_it_was_chosen_to_be(machine, monkeypatch):
    present = [SimpleNamespace(version='2.14.0+cu130', files=['torch.py'])]
    monkeypatch.setattr(setup.metadata, 'distributions', lambda name: present)
    assert setup.choose_torch('') == 'torch==2.14.0+cu130'
    step = replace(machine.steps[0], name='torch', key='torch==2.14.0 --index-url there')
    setup.perform(step, None)
    assert setup.choose_torch('') == 'torch==2.14.0 --index-url there'
    assert setup.choose_torch('torch==2.12.0') == 'torch==2.12.0'
    step.stamp.unlink()
    present.clear()
    assert setup.choose_torch('') == 'torch==2.13.0'


def test_it_refuses_to_install_outside_an_environment():
    python = Path(sys.base_prefix) / 'bin' / f'python3.{sys.version_info.minor}'
    done = subprocess.run([python, PATH], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'make setup' in done.stderr


def test_the_demo_names_files_that_exist():
    said = subprocess.run(
        ['make', '-n', 'demo'], cwd=PATH.parents[1], capture_output=True, text=True
    )
    words = said.stdout.split()
    files = {word for word in words if word.startswith(('tools/', 'configs/'))}
    assert len(files) >= 5
    assert [file for file in files if not (PATH.parents[1] / file).exists()] == []
