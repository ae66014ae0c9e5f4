"""SIGTERM, by which schedulers announce the end of a job, as a wish that a training step grants."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size

_STEPS_BETWEEN_TALKS = 10  # of ranks about a signal: each of them waits for the slowest


class StopRequest:
    """Notes a SIGTERM for the training loop to see; a second one ends the process at once.

    Signal handlers belong to the whole process: `listen` takes SIGTERM, `ignore` gives it back.
    """

    def __init__(self) -> None:
        self._wanted = self._agreed = False
        self._talked_at = 0  # the step
        self._handler_before: Any = None

    def listen(self) -> None:
        """Take SIGTERM from now on, where this is the thread that may."""
        if threading.current_thread() is threading.main_thread():
            self._handler_before = signal.signal(signal.SIGTERM, self._note)

    def ignore(self) -> None:
        """Give SIGTERM back to whoever had it."""
        if self._handler_before is not None:
            signal.signal(signal.SIGTERM, self._handler_before)
            self._handler_before = None

    def _note(self, *_: Any) -> None:
        self._wanted = True
        self.ignore()

    def agreed(self, step: int) -> bool:
        """Whether to stop after this step, or soon after, which all ranks answer alike.

        Several talk about it only now and then. With accumulated gradients not every step asks.
        """
        due = get_world_size() == 1 or step - self._talked_at >= _STEPS_BETWEEN_TALKS
        if due and not self._agreed:
            self._talked_at = step
            wanted = torch.tensor(int(self._wanted))
            all_reduce(wanted, 'max')
            self._agreed = bool(wanted)
        return self._agreed


class HeedParentOnly:
    """A loader's `worker_init_fn` that lets only the main process end a worker by SIGTERM.

    A scheduler signals all processes of a job; without its workers the main process could not
    finish its step.
    """

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self.then = then

    def __call__(self, worker_id: int) -> None:
        if hasattr(signal, 'sigwaitinfo'):  # macOS has none, nor such schedulers
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=_wait_for_parent, daemon=True).start()
        if self.then is not None:
            self.then(worker_id)


def _wait_for_parent() -> None:
    parent = os.getppid()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
