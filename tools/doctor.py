"""Say whether what the project needs is here and works, and how to mend what does not.

python tools/doctor.py               the machine and the packages
python tools/doctor.py CONFIG        and whether a config fits together: its data, model and weights
python tools/doctor.py --selftest    and attention against a dense oracle, and a training step

Stands on Python alone until the rest is found to be here. Exits with 1 where anything is wrong.
What is absent is wrong only for those who need it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

# import name, distribution, extra of this project, who needs it
PACKAGES = [
    ('mmengine', 'onedl-mmengine', 'det', 'every task'),
    ('mmcv', 'onedl-mmcv', 'det', 'detection, segmentation and video'),
    ('mmdet', 'onedl-mmdetection', 'det', 'detection'),
    ('mmseg', 'onedl-mmsegmentation', 'seg', 'segmentation'),
    ('av', 'av', 'video', 'video'),
]
# What installs the same files as one of our packages, and which
UPSTREAM = {
    'mmengine': 'onedl-mmengine',
    'mmengine-lite': 'onedl-mmengine',
    'mmcv': 'onedl-mmcv',
    'mmcv-full': 'onedl-mmcv',
    'mmcv-lite': 'onedl-mmcv',
    'mmdet': 'onedl-mmdetection',
    'mmsegmentation': 'onedl-mmsegmentation',
}
_NEED_OPERATORS = ('detection', 'segmentation')
PIP = f'{sys.executable} -m pip'
ENVIRONMENT = Path(__file__).resolve().parents[1] / '.venv'  # of a clone, after make setup
Versions = Mapping[str, str]  # distribution -> version


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at; `name` is a package, or the place in a config."""

    name: str
    found: str
    problem: str = ''
    fix: str = ''  # what mends the problem
    note: str = ''  # what to know of it where nothing is wrong
    tasks: tuple[str, ...] = ()  # that need it; every task where empty

    def __str__(self) -> str:
        state = 'WRONG' if self.problem else 'see' if self.note else 'ok'
        line = f'{state:<6}{self.name:<15} {self.found}'.rstrip()
        if not self.problem:
            return line + (f'\n      {self.note}' if self.note else '')
        return f'{line}\n      {self.problem}' + (
            f'\n      mend it: {self.fix}' if self.fix else ''
        )


def examine(installed: Versions, required: Versions) -> Iterator[Finding]:
    """Look at everything, from the ground up."""
    yield check_python(sys.version_info[:2])
    yield check_torch(installed)
    yield check_cuda(installed)
    yield from check_upstream(installed, required)
    yield from check_torchvision(installed)
    for module, dist, extra, users in PACKAGES:
        yield check_package(module, dist, extra, users, installed, required)
    ops = check_ops(installed, required)
    yield ops
    yield check_compiler(needed=bool(ops.problem))
    yield check_project(installed)


def check_python(version: tuple[int, int]) -> Finding:
    supported = (3, 10) <= version <= (3, 12)
    return Finding(
        name='Python',
        found=f'{platform.python_version()} ({sys.executable})',
        problem='' if supported else f'{version[0]}.{version[1]} is not one of 3.10, 3.11, 3.12',
        fix='rm -r .venv; make setup PYTHON=python3.11',
    )


def check_compiler(*, needed: bool) -> Finding:
    """What compiles the operators of mmcv; whoever has these can do without."""
    names = [os.environ.get('CXX', ''), 'c++', 'g++', 'clang++']
    path = next((path for name in names if name and (path := shutil.which(name))), None)
    if path is None:
        problem = 'the operators of mmcv cannot be compiled without one' if needed else ''
        fix = 'apt-get install g++ (or its like)'
        return Finding(
            name='compiler', found='none', problem=problem, fix=fix, tasks=_NEED_OPERATORS
        )
    said = subprocess.run([path, '--version'], capture_output=True, text=True, check=False).stdout
    return Finding(name='compiler', found=f'{path}: {said.splitlines()[0] if said else "silent"}')


def check_torch(installed: Versions) -> Finding:
    version = installed.get('torch')
    fix = f"make setup, or {PIP} install 'torch>=2.10'"
    if version is None:
        if ENVIRONMENT.is_dir() and Path(sys.prefix) != ENVIRONMENT:  # make setup was here
            fix = f'. {ENVIRONMENT}/bin/activate'
        return Finding(name='torch', found='absent', problem='nothing works without', fix=fix)
    old = tuple(int(part) for part in version.split('.')[:2]) < (2, 10)
    problem = f'{version} is older than 2.10' if old else _import_error('torch')
    return Finding(name='torch', found=version, problem=problem, fix=fix)


def check_cuda(installed: Versions) -> Finding:
    """The GPU, if torch can use one; a machine without is not wrong."""
    if 'torch' not in installed or _import_error('torch'):
        return Finding(name='CUDA', found='unknown without torch')
    import torch

    if torch.version.cuda is None:
        hint = ', though nvidia-smi is here: make setup TORCH=torch' if _has_gpu() else ''
        return Finding(name='CUDA', found=f'none: torch is a build without{hint}')
    if not torch.cuda.is_available():
        return Finding(name='CUDA', found=f'{torch.version.cuda}, but torch finds no device')
    capability = '{}{}'.format(*torch.cuda.get_device_capability())
    return Finding(
        name='CUDA', found=f'{torch.version.cuda}: {torch.cuda.get_device_name()}, sm{capability}'
    )


def _has_gpu() -> bool:
    return shutil.which('nvidia-smi') is not None


def check_upstream(installed: Versions, required: Versions) -> Iterator[Finding]:
    """Refuse what overwrites files of the packages in use here."""
    for dist in sorted(UPSTREAM.keys() & installed.keys()):
        ours = UPSTREAM[dist]
        yield Finding(
            name=dist,
            found=installed[dist],
            problem=f'it installs the same files as {ours}, which is in use here',
            fix=f'{PIP} uninstall -y {dist} && {install(ours, required)}',
        )


def check_torchvision(installed: Versions) -> Iterator[Finding]:
    """Nothing here needs it, but transformers and others import it where it is."""
    version = installed.get('torchvision')
    if version is not None and (problem := _import_error('torchvision')):
        fix = f'{PIP} uninstall -y torchvision'
        yield Finding(name='torchvision', found=version, problem=problem, fix=fix)


def check_package(
    module: str, dist: str, extra: str, users: str, installed: Versions, required: Versions
) -> Finding:
    version, wanted = installed.get(dist), required.get(dist, '')
    fix = install(dist, required)
    if version is None:
        hint = f'make setup, or {PIP} install "navit-backbone[{extra}]"'
        return Finding(name=module, found=f'absent; {users} would need it: {hint}')
    problem = f'{version} is not {wanted}' if wanted not in ('', version) else _import_error(module)
    tasks = (users,) if users in ('detection', 'segmentation', 'video') else ()
    return Finding(name=module, found=f'{dist} {version}', problem=problem, fix=fix, tasks=tasks)


def check_ops(installed: Versions, required: Versions) -> Finding:
    """Check that mmcv has its compiled operators, for the device in use; video needs none."""
    if 'onedl-mmcv' not in installed:
        return Finding(name='mmcv ops', found='absent with mmcv')
    fix, problem = install('onedl-mmcv', required), _import_error('mmcv.ops')
    if problem and not {'onedl-mmdetection', 'onedl-mmsegmentation'} & installed.keys():
        note = f'{" and ".join(_NEED_OPERATORS)} would need them: {fix}'
        return Finding(name='mmcv ops', found='none', note=note)
    if problem:
        return Finding(
            name='mmcv ops', found='none', problem=problem, fix=fix, tasks=_NEED_OPERATORS
        )
    import torch
    from mmcv.ops import get_compiling_cuda_version, nms

    nms(torch.ones(1, 4), torch.ones(1), 0.5)
    cuda = get_compiling_cuda_version()
    lacks = torch.cuda.is_available() and cuda == 'not available'
    problem = 'compiled without CUDA, and torch has a GPU here' if lacks else ''
    return Finding(
        name='mmcv ops',
        found=f'compiled, CUDA {cuda}',
        problem=problem,
        fix=f'FORCE_CUDA=1 {fix}',
        tasks=_NEED_OPERATORS,
    )


def check_project(installed: Versions) -> Finding:
    version = installed.get('navit-backbone')
    problem = '' if version else 'tools and configs find their parts by an installation only'
    fix = f'{PIP} install -e . --no-deps --no-build-isolation'
    return Finding(name='navit-backbone', found=version or 'absent', problem=problem, fix=fix)


def install(dist: str, required: Versions) -> str:
    """The command that puts a package right; mmcv is compiled against the torch that is there."""
    pinned = f'{dist}=={required[dist]}' if required.get(dist) else dist
    command = f'{PIP} install --force-reinstall --no-deps'
    if dist == 'onedl-mmcv':
        command = f'MMCV_WITH_OPS=1 {command} --no-cache-dir --no-build-isolation'
    return f'{command} {pinned}'


def _import_error(module: str) -> str:
    """Why a module cannot be imported; empty where it can."""
    try:
        importlib.import_module(module)
    except (ImportError, AssertionError, OSError, RuntimeError) as error:
        return f'import {module} fails: {error}'
    return ''


def installed_versions() -> dict[str, str]:
    """Every distribution that this Python sees."""
    found = {dist.metadata['Name']: dist.version for dist in metadata.distributions()}
    return {name.lower().replace('_', '-'): version for name, version in found.items() if name}


def required_versions() -> dict[str, str]:
    """The versions that this project pins; none where it is not installed."""
    try:
        lines = metadata.requires('navit-backbone') or []
    except metadata.PackageNotFoundError:
        return {}
    pinned = (line.split(';')[0].split('==') for line in lines if '==' in line.split(';')[0])
    return {name.strip(): version.strip() for name, version in pinned}


def config_findings(path: Path, assignments: Sequence[str]) -> Iterator[Finding]:
    """What a config says, what lies where it points, and what its model does."""
    from navit_backbone.tools.command_line import (
        add_config_arguments,
        enter_task,
        read_config,
        task_of,
    )

    parser = argparse.ArgumentParser(prog='doctor.py')
    add_config_arguments(parser)  # not at the top: it needs what may be missing
    options = ['--cfg-options', *assignments] if assignments else []
    args = parser.parse_args([str(path), *options])
    cfg = read_config(args.config, args.cfg_options)
    enter_task(cfg, path)
    if 'backbone' not in cfg.get('model', {}):
        raise ValueError(f'{path}: the model has no backbone, and no other is examined')
    if task_of(cfg, path) == 'video':
        from navit_backbone.tools.doctor_video import examine_clips

        yield from examine_clips(cfg)
        return
    from navit_backbone.tools.doctor_config import examine_config
    from navit_backbone.tools.doctor_model import examine_model

    data = yield from examine_config(cfg)
    yield from examine_model(cfg, data)


def task_of_config(path: Path) -> str:
    """Return the task of a config; empty where it, or what reads it, has a fault of its own."""
    try:
        from mmengine.config import Config

        from navit_backbone.tools.command_line import task_of

        return task_of(Config.fromfile(path, import_custom_modules=False), path)
    except (ImportError, OSError, ValueError, SyntaxError, NameError, LookupError, TypeError):
        return ''


def for_task(findings: Iterable[Finding], task: str) -> Iterator[Finding]:
    """Yield findings; a problem of what this task does not need becomes a note."""
    for item in findings:
        if item.problem and task and item.tasks and task not in item.tasks:
            item = replace(item, problem='', note=f'{item.problem}; {task} does not need it')
        yield item


def report(findings: Iterable[Finding]) -> int:
    """Print them as they come; the number of problems."""
    problems = 0
    for finding in findings:
        problems += bool(finding.problem)
        print(finding, flush=True)
    return problems


def stop_at(problems: int) -> None:
    """Exit with status 1 where there are problems."""
    if problems:
        sys.exit(f'{problems} thing{"s" * (problems > 1)} to mend')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', type=Path, nargs='?', help='what to look through')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    parser.add_argument('--selftest', action='store_true', help='attention, and a training step')
    args = parser.parse_args()
    args.config = args.config and args.config.expanduser()
    found = examine(installed_versions(), required_versions())
    stop_at(report(for_task(found, task_of_config(args.config) if args.config else '')))
    if args.selftest:
        from navit_backbone.tools.selftest import selftest

        selftest()
    if args.config:
        from navit_backbone.tools.command_line import run

        run(lambda: stop_at(report(config_findings(args.config, args.cfg_options))), args.config)


if __name__ == '__main__':
    main()
