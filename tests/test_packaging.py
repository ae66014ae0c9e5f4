"""The wheel is whole, and works outside the clone beside other people's modules."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest there

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())
SOURCES = PROJECT['tool']['setuptools']['package-dir']


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """Built without network from a copy, so that nothing is left in the clone."""
    clone, out = tmp_path_factory.mktemp('clone'), tmp_path_factory.mktemp('wheel')
    for folder in SOURCES.values():
        shutil.copytree(ROOT / folder, clone / folder, ignore=shutil.ignore_patterns('__pycache__'))
    for file in ('pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / file, clone)
    pip = [sys.executable, '-m', 'pip', 'wheel', '.', '--no-deps', '--no-build-isolation']
    run([*pip, '--no-index', '-w', str(out)], cwd=clone)
    (path,) = out.glob('navit_backbone-*.whl')
    return path


@pytest.fixture(scope='module')
def elsewhere(wheel, tmp_path_factory):
    """A folder with a `tasks.py` of its own; the wheel is unpacked beside, ahead of the clone."""
    folder = tmp_path_factory.mktemp('elsewhere')
    (folder / 'tasks.py').write_text('OWNER = "somebody else"\n')
    zipfile.ZipFile(wheel).extractall(folder / 'installed')
    return folder


def run(command, *, cwd, **environment):
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, 'OMP_NUM_THREADS': '1', **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python(folder, *arguments):
    """Run Python in `folder` with the unpacked wheel found first."""
    return run([sys.executable, *arguments], cwd=folder, PYTHONPATH=str(folder / 'installed'))


def without(*absent):
    """Script that makes modules look as if they were not installed."""
    return f'import sys; sys.modules.update(dict.fromkeys({absent!r}))\n'


def test_package_list_matches_the_disk():
    found = set(SOURCES)
    for package, folder in SOURCES.items():
        for path in (ROOT / folder).rglob('__init__.py'):
            found.add('.'.join([package, *path.parent.relative_to(ROOT / folder).parts]))
    assert set(PROJECT['tool']['setuptools']['packages']) == found


def test_every_module_stands_in_a_package():
    for folder in ('navit_backbone', 'tasks', 'tools'):
        for path in (ROOT / folder).rglob('*.py'):
            assert (path.parent / '__init__.py').exists(), f'{path.parent} lacks an __init__.py'


def test_wheel_holds_every_file_and_one_import_name(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for package, folder in SOURCES.items():
        for path in (ROOT / folder).rglob('*.py'):
            inside = Path(package.replace('.', '/')) / path.relative_to(ROOT / folder)
            assert inside.as_posix() in names
    tops = {name.split('/')[0] for name in names}
    assert {top for top in tops if not top.endswith('.dist-info')} == {'navit_backbone'}
    assert 'navit_backbone/py.typed' in names


def test_tasks_are_ours_beside_a_foreign_tasks_module(elsewhere):
    script = (
        'import navit_backbone, navit_backbone.tasks.common as ours, tasks as foreign\n'
        'print(navit_backbone.__file__, ours.__file__, foreign.OWNER, sep="\\n")'
    )
    library, ours, owner = python(elsewhere, '-c', script).splitlines()
    installed = elsewhere / 'installed' / 'navit_backbone'
    assert (Path(library), Path(ours)) == (
        installed / '__init__.py',
        installed / 'tasks' / 'common' / '__init__.py',
    )
    assert owner == 'somebody else'


def test_tools_and_configs_of_the_wheel_work(elsewhere):
    assert 'sample' in python(elsewhere, '-m', 'navit_backbone.tools.prepare_data', '--help')
    configs = elsewhere / 'installed' / 'navit_backbone' / 'configs'
    files = [str(path) for path in sorted(configs.glob('[!_]*/*.py'))]
    assert {Path(file).parent.name for file in files} == {'detection', 'segmentation', 'video'}
    script = 'import sys; from mmengine import Config; [Config.fromfile(f) for f in sys.argv[1:]]'
    python(elsewhere, '-c', script, *files)


@pytest.mark.parametrize(
    ('module', 'blocked'),
    [
        ('navit_backbone.backbone', 'mmdet mmseg transformers'),
        ('navit_backbone.tasks.common', 'mmdet mmseg mmcv.ops mmcv._ext transformers'),
        ('navit_backbone.tasks.detection', 'mmseg av transformers'),
        ('navit_backbone.tasks.video', 'mmdet mmseg mmcv.ops mmcv._ext transformers'),
        ('navit_backbone.tasks.segmentation', 'mmdet mmcv.ops mmcv._ext av transformers'),
    ],
)
def test_imports_without_what_others_need(elsewhere, module, blocked):
    script = f'import {module}, torch; print({module}.__name__, torch.cuda.is_initialized())'
    said = python(elsewhere, '-c', without(*blocked.split()) + script)
    assert said.splitlines()[-1] == f'{module} False'


def test_bare_library_runs_a_model(elsewhere):
    model = (
        'import torch, navit_backbone.checkpoint\n'
        'from navit_backbone import NaViT, pack, patchify\n'
        'assert not torch.cuda.is_initialized()\n'
        'pictures = [patchify(torch.rand(3, h, w), (1, 16, 16)) for h, w in [(33, 16), (48, 80)]]\n'
        'print(len(NaViT("tiny")(pack(pictures)).tokens))'
    )
    bare = without('mmengine', 'mmcv', 'mmdet', 'mmseg', 'transformers', 'numpy', 'cv2', 'PIL')
    assert python(elsewhere, '-c', bare + model).strip() == '18'


def test_extras_and_requirements_agree():
    """What an extra pins is what the tests ran with."""
    lines = (ROOT / 'requirements.txt').read_text().splitlines()
    tested = {line.split('#')[0].strip() for line in lines}
    extras = PROJECT['project']['optional-dependencies'].values()
    pinned = {requirement for extra in extras for requirement in extra if '==' in requirement}
    assert pinned
    assert pinned <= tested
