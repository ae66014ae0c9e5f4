"""End a training after a whole step on SIGTERM, which schedulers send, and on Ctrl-C (SIGINT)."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size

_STEPS_BETWEEN_TALKS = 10  # of ranks about a signal: each of them waits for the slowest
_CTRL_C = (
    b'\nCtrl-C: training ends after this step and a checkpoint; Ctrl-C again ends it at once\n'
)


class StopRequest:
    """Request, by SIGTERM or SIGINT, to end a training; a second one of a kind ends it at once.

    Signal handlers belong to the whole process: `listen` installs them, `ignore` restores those
    before.
    """

    def __init__(self) -> None:
        self._received = self._agreed = 0  # the number of the signal, 0 for none
        self._talked_at = 0  # the step
        self._handlers_before: dict[int, Any] = {}

    def listen(self) -> None:
        """Handle both signals from now on, where this is the main thread.

        SIGINT stays ignored where it is, as in jobs that a shell script starts in the background.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(number)
            if isinstance(earlier := getattr(before, '__self__', None), StopRequest):
                earlier.ignore()  # of a training in this process that ended by an error
            if number == signal.SIGTERM or before is not signal.SIG_IGN:
                self._handlers_before[number] = signal.signal(number, self._note)

    def ignore(self) -> None:
        """Restore the handlers from before `listen`."""
        for number in list(self._handlers_before):
            self._restore(number)

    def _restore(self, number: int) -> None:
        signal.signal(number, self._handlers_before.pop(number))

    def _note(self, number: int, _: Any = None) -> None:
        self._received = number
        self._restore(number)
        if number == signal.SIGINT:
            os.write(2, _CTRL_C)  # print may not be called while a print is interrupted

    def agreed(self, step: int) -> int:
        """Return the signal to stop for after this step, 0 for none; the same on all ranks.

        Several ranks exchange it only now and then. With accumulated gradients not every step asks.
        """
        due = get_world_size() == 1 or step - self._talked_at >= _STEPS_BETWEEN_TALKS
        if due and not self._agreed:
            self._talked_at = step
            received = torch.tensor(self._received)
            all_reduce(received, 'max')
            self._agreed = int(received)
        return self._agreed


class HeedParentOnly:
    """A loader's `worker_init_fn` that lets only the main process end a worker.

    A scheduler sends SIGTERM to all processes of a job, and a terminal SIGINT to all of a command;
    without its workers the main process could not finish its step.
    """

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self.then = then

    def __call__(self, worker_id: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
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
