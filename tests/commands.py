"""A tool run as a user types it."""

import sys

import pytest


def call(monkeypatch, tool, *arguments):
    """Its exit status, or a sentence where what was typed is a mistake."""
    monkeypatch.setattr(sys, 'argv', [tool.__name__, *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        tool.main()
    return caught.value.code


# The overrides that let a config load its data in the process itself.
NO_WORKERS = [f'{split}_dataloader.num_workers=0' for split in ('train', 'val', 'test')]
# scripts of mmdet and mmseg hand all options to torch, which allows none of workers without any
NO_STOCK_WORKERS = [
    *NO_WORKERS,
    *[f'{split}_dataloader.persistent_workers=False' for split in ('train', 'val', 'test')],
]
