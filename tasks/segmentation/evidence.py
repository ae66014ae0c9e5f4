"""What compares the label maps of several arms: figures, parts of the test, and pictures.

tools/arms.py runs the comparison; this is all that it needs to know of segmentation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.config import Config
from PIL import Image

from ..common.groups import GroupFile, group_numbers
from ..common.overlay import labelled
from ..common.paired import Slice, Statistic, thirds
from .metric import Counts, by_picture

Content = Mapping[str, Any]  # what `predictions` gives


def evaluation_options(folder: Path) -> list[str]:
    """Overrides that let an evaluation leave its counts and label maps in `folder`."""
    return [f'test_evaluator.output_dir={folder.absolute() / "found"}']


def predictions(cfg: Config, folder: Path) -> dict[str, Any]:
    """What an evaluation left."""
    content: dict[str, Any] = json.loads((folder / 'found/pictures.json').read_text())
    root = str(cfg.test_dataloader.dataset.get('data_root') or '') if cfg is not None else ''
    return dict(labels=str(folder.absolute() / 'found/labels'), data_root=root, **content)


class Evidence:
    """Label maps of several runs on one test set, each as `predictions` gives it."""

    figures = ('mIoU', 'mAcc', 'aAcc', 'mBIoU')
    examples = 'photos'
    digits = 2  # of percent, as mmseg has them

    def __init__(self, runs: Sequence[Content]) -> None:
        first = runs[0]
        for key in ('classes', 'ignore_index'):
            if any(run[key] != first[key] for run in runs):
                raise ValueError(
                    f'arms are compared on one test set, but their {key} differ: give the configs '
                    'one test_dataloader and test_evaluator, and remove the evaluation/ folders '
                    'made with another'
                )
        self.classes: list[str] = first['classes']
        self.palette = [tuple(colour) for colour in first['palette']]
        self.truth = Path(first['labels']).with_name('truth')
        self.pictures: list[dict[str, Any]] = first['pictures']
        files = [picture['file'] for picture in self.pictures]
        for run in runs:
            if [picture['file'] for picture in run['pictures']] != files:
                raise ValueError(
                    'arms are compared on one test set, but theirs have other pictures, or another '
                    'order of them: give the configs one test_dataloader'
                )
        self.num_examples = len(files)
        by_file = GroupFile(first.get('data_root') or '.')
        self.groups = group_numbers([by_file[file] for file in files])

    def statistic(self, run: Content) -> Statistic:
        """The figures of a run on all photos, in percent."""
        return self._figures(run, np.ones(self.num_examples, dtype=bool))

    def slices(self, arms: Sequence[Sequence[Content]]) -> list[Slice]:
        """All photos, and by their aspect."""
        sides = [sorted(picture['size']) for picture in self.pictures]
        aspect_N = np.array([long / short for short, long in sides])
        parts = {'all photos': np.ones(self.num_examples, dtype=bool)}
        for low, high in thirds(aspect_N):
            chosen = (low <= aspect_N) & (aspect_N < high)
            shown = aspect_N[chosen]
            if 0 < len(shown) < self.num_examples:
                name = f'long side {shown.min():.2f} to {shown.max():.2f} x the short'
                parts[name] = chosen
        return [
            Slice(
                name=name,
                content=f'photos: {int(chosen.sum())}',
                num_groups=len(np.unique(self.groups[chosen])),
                arms=[[self._figures(run, chosen) for run in arm] for arm in arms],
            )
            for name, chosen in parts.items()
        ]

    def _figures(self, run: Content, chosen: np.ndarray) -> Statistic:
        counts = [Counts(*map(_rows, (p['confusion'], p['boundary']))) for p in run['pictures']]
        both, truth, found, inner, outer = by_picture(counts, len(self.classes))  # each [N, C]

        def figures(counts_BN: np.ndarray) -> np.ndarray:
            weights = counts_BN * chosen
            b, t, f, i, o = (weights @ table for table in (both, truth, found, inner, outer))
            with np.errstate(invalid='ignore', divide='ignore'):
                means = [_mean(b / (t + f - b)), _mean(b / t), b.sum(1) / t.sum(1), _mean(i / o)]
            return 100 * np.stack(means, 1)

        return figures

    # What a person looks at

    def name(self, number: int) -> str:
        """A photo in a line of a table."""
        picture = self.pictures[number]
        height, width = picture['size']
        return f'{Path(picture["file"]).name} ({width} x {height})'

    def drawn(self, number: int, run: Content | None) -> Image.Image:
        """A photo under the label map of a run, or under the truth."""
        picture = self.pictures[number]
        pixels = mmcv.imread(picture['file'], channel_order='rgb')
        folder = self.truth if run is None else Path(run['labels'])
        labels = np.array(Image.open(folder / picture['labels']))
        return labelled(pixels, [labels], self.classes, self.palette)


def _rows(listed: Sequence[Sequence[int]]) -> np.ndarray:
    return np.array(listed, dtype=np.int64).reshape(-1, 3)


def _mean(values_BC: np.ndarray) -> np.ndarray:
    """Over the classes that there are; NaN where there is none."""
    known = ~np.isnan(values_BC)
    with np.errstate(invalid='ignore'):
        total: np.ndarray = np.where(known, values_BC, 0).sum(1) / known.sum(1)
    return total
