"""What every test may ask for: the folder of real data, and a CUDA device."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

settings.register_profile('busy', deadline=None)  # a slow machine is no fault of the code
settings.load_profile('busy')


@pytest.fixture(scope='session')
def data_root() -> Path:
    """The folder of real data sets, which the project has to do without."""
    path = ROOT / os.environ.get('NAVIT_DATA', '../shared/data')
    if not path.is_dir():
        pytest.skip(f'no real data at {path}: set NAVIT_DATA to its folder')
    return path.resolve()


@pytest.fixture(autouse=True)
def _own_visualizer() -> None:
    """mmengine keeps one visualizer a process, whichever task made it first."""
    if 'mmengine.visualization' in sys.modules:
        sys.modules['mmengine.visualization'].Visualizer._instance_dict.clear()


def pytest_configure() -> None:
    """Let Ctrl-C be tested where a shell ignores it: in jobs that it starts in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker('cuda') and not torch.cuda.is_available():
        pytest.skip('torch finds no CUDA device')
