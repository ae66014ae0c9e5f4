"""Measuring that gives a figure only where it can stand: interleaved rounds, quartiles, spread.

Arms that are compared run in turn, round by round, so that whatever else the machine does hits all
of them alike. Rounds differ in their work, which is known: times are taken per FLOP. The pace of an
arm is the lower quartile of that, as noise only ever adds, and its time is the pace at the FLOPs of
all rounds. The spread of a comparison is the interquartile range of its per-round ratios of pace,
over their median; beyond 20 % there is no figure, nor is there one from fewer than 15 rounds.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, quantiles
from typing import TypeVar

import torch

T = TypeVar('T')
SPREAD_LIMIT = 0.20
MIN_ROUNDS = 15


def lower_quartile(values: Sequence[float]) -> float:
    """A quarter of the values lie at or below it; between two values it is interpolated."""
    return quantiles(values, n=4, method='inclusive')[0]


def spread(values: Sequence[float]) -> float:
    """Interquartile range over median."""
    low, middle, high = quantiles(values, n=4, method='inclusive')
    return (high - low) / middle


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One side of a comparison: what stands at one index belongs to one round."""

    seconds: Sequence[float]
    flops: Sequence[float]

    @property
    def paces(self) -> list[float]:
        """Seconds per FLOP, round by round."""
        return [t / work for t, work in zip(self.seconds, self.flops, strict=True)]

    @property
    def pace(self) -> float:
        return lower_quartile(self.paces)

    @property
    def step(self) -> float:
        """Seconds of a mean step at the arm's pace."""
        return self.pace * fmean(self.flops)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two arms that were measured in the same rounds."""

    ours: Arm
    theirs: Arm

    @property
    def speedup(self) -> float:
        """Their time over ours, for all rounds."""
        return self.theirs.step / self.ours.step

    @property
    def flops(self) -> float:
        """Their FLOPs over ours, for all rounds."""
        return fmean(self.theirs.flops) / fmean(self.ours.flops)

    @property
    def per_flop(self) -> float:
        """Their time over ours, for equal FLOPs."""
        return self.theirs.pace / self.ours.pace

    @property
    def spread(self) -> float:
        return spread([b / a for a, b in zip(self.ours.paces, self.theirs.paces, strict=True)])


def figure_of(value: str, *, spread: float, rounds: int) -> str:
    """`value` with its spread, or why it is no figure."""
    if rounds < MIN_ROUNDS:
        return f'{rounds} rounds: no figure (smoke: {value}, spread {spread:.0%})'
    if spread > SPREAD_LIMIT:
        return f'spread {spread:.0%}: no figure'
    return f'{value} (spread {spread:.0%})'


@dataclass(frozen=True, kw_only=True)
class Result:
    """One line of the table."""

    what: str
    figure: str
    target: str = ''
    flops: str = ''  # theirs over ours
    detail: str = ''


def compared(what: str, ours: Arm, theirs: Arm, target: str) -> Result:
    """The line of two arms: how many times as fast ours is."""
    pair = Comparison(ours=ours, theirs=theirs)
    figure = figure_of(f'{pair.speedup:.2f}', spread=pair.spread, rounds=len(ours.seconds))
    steady = pair.spread <= SPREAD_LIMIT
    return Result(
        what=what,
        figure=figure,
        target=target,
        flops=f'{pair.flops:.2f}',
        detail=f'{ours.step:.3f} against {theirs.step:.3f} s a step' if steady else '',
    )


def interleaved(
    arms: Mapping[str, Callable[[int], object]],
    *,
    rounds: int,
    label: str = '',
    device: torch.device | None = None,
) -> dict[str, list[float]]:
    """Wall times of every arm for every round; an arm is called with the number of the round.

    Two rounds warm up unmeasured. The order of the arms turns by one each round.
    """
    names = list(arms)
    times: dict[str, list[float]] = {name: [] for name in names}
    started = time.monotonic()
    for step in range(-2, rounds):
        turn = step % len(names)
        for name in names[turn:] + names[:turn]:
            seconds = timed(arms[name], step % rounds, device)
            if step >= 0:
                times[name].append(seconds)
        show_progress(label, step + 3, rounds + 2, started)
    return times


def timed(arm: Callable[[int], object], number: int, device: torch.device | None) -> float:
    """Wall seconds of one call, the device's work included."""
    _wait_for(device)
    start = time.perf_counter()
    arm(number)
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device | None) -> None:
    if device is not None and device.type == 'cuda':
        torch.cuda.synchronize(device)


def show_progress(label: str, done: int, total: int, started: float) -> None:
    """One line on stderr that is overwritten: what runs, how far it is, what is left."""
    left = (time.monotonic() - started) / done * (total - done)
    line = f'{label}: {done}/{total}, about {left:.0f} s left'
    print(f'\r{line:<78}', end='\n' if done == total else '', file=sys.stderr, flush=True)


def machine(device: torch.device) -> dict[str, str]:
    """What a figure was measured on."""
    return {
        'machine': _device_name(device),
        'cores': str(os.cpu_count()),
        'threads': str(torch.get_num_threads()),
        'system': f'{platform.system()} {platform.machine()}',
        'python': platform.python_version(),
        'torch': torch.__version__,
    }


def _device_name(device: torch.device) -> str:
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or 'unknown CPU'


def in_new_process(function: Callable[..., T], *args: object) -> T:
    """What the function returns in a fresh process: its memory holds nothing of ours."""
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        return pool.submit(function, *args).result()


def resident_bytes(*, peak: bool) -> int:
    """Resident memory of this process, now or at its peak.

    Read from /proc: what `getrusage` calls the peak is inherited from the parent process.
    """
    field = 'VmHWM:' if peak else 'VmRSS:'
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f'/proc/self/status has no line {field}')


def give_back_free_memory() -> None:
    """Let malloc return what nobody holds: it keeps it, more the more sizes a run has seen."""
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # of glibc
    if trim is not None:
        trim(0)


def free_bytes(device: torch.device) -> int:
    """Memory that a new process could take on the device, without swapping."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    for line in Path('/proc/meminfo').read_text().splitlines():
        if line.startswith('MemAvailable:'):
            return int(line.split()[1]) * 1024
    raise RuntimeError('/proc/meminfo has no line MemAvailable:')
