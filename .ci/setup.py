"""Installs what the project needs into the environment that runs this file: `make setup`.

A step is passed over only if its stamp says that it was completed with the same versions and if
what it installed still works. What an interrupted pip left half installed is forgotten first, so
that pip installs it again.
"""

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
STAMPS = Path(sys.prefix) / 'setup'
TESTED_TORCH = 'torch==2.13.0'
WAY_OUT = f'after mending the cause run the same command again, or start afresh: rm -r {sys.prefix}'


@dataclass(frozen=True)
class Step:
    """One `pip install`, and the proof that it worked."""

    name: str
    duration: str
    pip: tuple[str, ...]  # arguments of `pip install`
    check: str  # Python that runs through once the step is done
    key: str  # what decides the outcome; a step with another key is outdated
    renew: tuple[str, ...] = ()  # arguments beside, where the step is outdated or its check fails

    @property
    def stamp(self) -> Path:
        return STAMPS / self.name

    @property
    def content(self) -> str:
        return f'{sys.version}\n{self.key}'

    def stamped(self) -> bool:
        return self.stamp.exists() and self.stamp.read_text() == self.content


def make_steps(torch: str) -> list[Step]:
    """The steps in their order: mmcv compiles against the torch that the first one installs."""
    pins = ('-c', 'requirements.txt')
    requirements = (ROOT / 'requirements.txt').read_text()
    tools = str(ROOT / 'tools')
    mmcv = next(line for line in requirements.splitlines() if line.startswith('onedl-mmcv=='))
    return [
        Step(
            'torch',
            'a minute; a CUDA build takes several GB and longer',
            pip=tuple(shlex.split(torch)),
            check='import torch',
            key=torch,
            renew=('--force-reinstall',),
        ),
        Step(
            'build tools',
            'seconds',
            pip=(*pins, 'setuptools>=77', 'wheel', 'ninja', 'packaging', 'numpy'),
            check='import ninja, numpy, packaging, setuptools, wheel',
            key=requirements,
        ),
        Step(
            'mmcv with compiled ops',
            f'about 8 minutes on 2 cores, {os.cpu_count()} are here; seconds where pip has it',
            pip=(*pins, '--no-build-isolation', mmcv),
            check='import torch, mmcv.ops as o; o.nms(torch.ones(1, 4), torch.ones(1), 0.5)',
            key=f'{mmcv} {torch}',
            # pip's cache may hold what was compiled against another torch
            renew=('--force-reinstall', '--no-deps', '--no-cache-dir'),
        ),
        Step(
            'everything else',
            'about a minute',
            pip=('-r', 'requirements.txt'),
            # mmengine's yapf writes a cache at its first import; two at once would spoil it
            check='import decord, hypothesis, mmdet, mmseg, onnxruntime\n'
            'import pycocotools, transformers, yapf',
            key=requirements,
        ),
        Step(
            'this project',
            'seconds',
            pip=('--no-deps', '--no-build-isolation', '-e', '.'),
            check=f'import navit_backbone.tools as t; assert t.__path__ == [{tools!r}], t.__path__',
            key=(ROOT / 'pyproject.toml').read_text(),
        ),
    ]


def choose_torch(wanted: str) -> str:
    """What is wanted, else what an earlier set-up took, else what is there, else the tested."""
    stamp = STAMPS / 'torch'
    if wanted or stamp.exists():
        return wanted or stamp.read_text().split('\n', 1)[1]
    found = [dist.version for dist in metadata.distributions(name='torch') if dist.files]
    return f'torch=={found[0]}' if found else TESTED_TORCH


def set_up(torch: str, lock: IO[str]) -> None:
    """Do every step that is not both stamped and working."""
    steps = make_steps(torch)
    if forget_half_installed():
        for step in steps:
            step.stamp.unlink(missing_ok=True)
    if all(step.stamped() for step in steps) and not fault('\n'.join(s.check for s in steps)):
        return
    for number, step in enumerate(steps, 1):
        if not step.stamped() or fault(step.check):
            print(f'[{number}/{len(steps)}] {step.name} ({step.duration})', flush=True)
            perform(step, lock)
    print(f'set-up complete; to use it: . {sys.prefix}/bin/activate', flush=True)


def perform(step: Step, lock: IO[str]) -> None:
    """Install, prove, and only then stamp."""
    outdated = step.stamp.exists() and not step.stamped()
    step.stamp.unlink(missing_ok=True)
    install(step, step.renew if outdated else (), lock)
    if step.renew and not outdated and fault(step.check):
        install(step, step.renew, lock)
    if message := fault(step.check):
        sys.exit(f'{message}\n{step.name}: installed, but does not work (see above); {WAY_OUT}')
    aside = step.stamp.with_suffix('.new')
    aside.write_text(step.content)
    aside.replace(step.stamp)


def install(step: Step, renew: tuple[str, ...], lock: IO[str]) -> None:
    """Run pip, tell how long it has been at it, and show the end of its log where it fails."""
    log = STAMPS / f'{step.name}.log'
    pip = [sys.executable, '-m', 'pip', 'install', '--no-input', '--disable-pip-version-check']
    with log.open('w') as output:
        process = subprocess.Popen(
            [*pip, *renew, *step.pip],
            cwd=ROOT,
            env={**os.environ, 'MMCV_WITH_OPS': '1'},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[lock.fileno()],  # an orphaned pip keeps the lock
        )
        try:
            wait(process)
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            sys.exit(f'{step.name}: stopped; the same command goes on from here')
    if process.returncode:
        end = '\n'.join(log.read_text().splitlines()[-30:])
        sys.exit(f'{end}\n{step.name}: pip failed, all it said is in {log}; {WAY_OUT}')


def wait(process: subprocess.Popen[bytes]) -> None:
    """Wait, telling the time every second on a terminal and every minute elsewhere."""
    start, terminal = time.monotonic(), sys.stdout.isatty()
    while True:
        try:
            process.wait(1 if terminal else 60)
            return
        except subprocess.TimeoutExpired:
            minutes, seconds = divmod(int(time.monotonic() - start), 60)
            print(f'  {minutes}:{seconds:02d} so far', end='\r' if terminal else '\n', flush=True)


def fault(check: str) -> str:
    """What went wrong in running `check` outside the clone; empty where nothing did."""
    command = [sys.executable, '-c', check]
    run = subprocess.run(command, cwd=STAMPS, capture_output=True, text=True, check=False)
    return run.stderr + f'exit status {run.returncode}' if run.returncode else ''


def forget_half_installed() -> bool:
    """Remove the record of packages that lack files, whereupon pip installs them again."""
    library = Path(sysconfig.get_path('purelib'))
    folders = {path: metadata.Distribution.at(path) for path in library.glob('*.dist-info')}
    owners = Counter(str(file.locate()) for dist in folders.values() for file in dist.files or [])
    broken = [path for path, dist in folders.items() if not is_whole(dist, owners)]
    for path in broken:
        print(f'{path.stem} is installed only in part: it will be installed again', flush=True)
        shutil.rmtree(path)
    return bool(broken)


def is_whole(dist: metadata.Distribution, owners: Counter[str]) -> bool:
    """Whether every file on record is there in its size; a file of two packages in any size."""
    for file in dist.files or []:
        path = Path(str(file.locate()))
        if not file.hash or path.suffix == '.pyc':
            continue
        if not path.exists() or (owners[str(path)] == 1 and path.stat().st_size != file.size):
            return False
    return bool(dist.files)


def main() -> None:
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        version = '.'.join(map(str, sys.version_info[:2]))
        sys.exit(
            f'{sys.prefix} has Python {version}, which is not one of 3.10, 3.11, 3.12: rm -r '
            f'{sys.prefix}, then make setup PYTHON=python3.11'
        )
    if sys.prefix == sys.base_prefix:
        sys.exit(f'{sys.executable} is no virtual environment: use `make setup`')
    STAMPS.mkdir(exist_ok=True)
    with (STAMPS / 'lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f'another set-up of {sys.prefix} is at work: waiting for its end', flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if fault('import pip'):
            subprocess.run([sys.executable, '-m', 'ensurepip', '--upgrade'], check=True)
        set_up(choose_torch(os.environ.get('TORCH', '')), lock)


if __name__ == '__main__':
    main()
