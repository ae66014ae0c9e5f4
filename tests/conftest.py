"""What every test may ask for: the folder of real data, and a CUDA device."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='session')
def data_root() -> Path:
    """The folder of real data sets, which the project has to do without."""
    path = ROOT / os.environ.get('NAVIT_DATA', '../shared/data')
    if not path.is_dir():
        pytest.skip(f'no real data at {path}: set NAVIT_DATA to its folder')
    return path.resolve()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker('cuda') and not torch.cuda.is_available():
        pytest.skip('torch finds no CUDA device')
