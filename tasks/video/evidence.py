"""What compares classifiers of clips: figures, parts of the test, paired tests, and pictures.

tools/arms.py runs the comparison; this is all that it needs to know of clips.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import Image, ImageDraw

from ..common.clip_data import open_clip
from ..common.fonts import TextLine, drawn_names
from ..common.groups import group_numbers, split_groups
from ..common.paired import Slice, Statistic, permutation_p_value, smallest_difference, thirds
from ..common.resampling import resize_image
from ..common.text_files import Table
from ..common.wording import few
from .metric import pairs_and_directions
from .motions import MOTIONS

Content = Mapping[str, Any]  # what `predictions` gives
_SHOWN = 256  # pixels, the long side of a frame in a picture


def evaluation_options(folder: Path) -> list[str]:
    """Overrides that let an evaluation leave its scores in `folder`."""
    return [f'test_evaluator.output_dir={folder.absolute() / "found"}']


def fold_options(fold: int) -> list[str]:
    """Overrides that hold out a fold: the rows of the list with this number in column `fold`."""
    held_out = [f'{split}_dataloader.dataset.where.fold={fold}' for split in ('val', 'test')]
    return [f'train_dataloader.dataset.where_not.fold={fold}', *held_out]


def refuse_other_folds(cfg: Config, count: int) -> None:
    """Raise ValueError where the column `fold` of the list has other numbers than 0 to count - 1.

    Rows without a number are trained on in every fold.
    """
    data = cfg.test_dataloader.dataset
    file = Path(data.get('data_root') or '') / (data.get('ann_file') or '')
    if not file.is_file() or file.suffix != '.csv':
        return  # the data set itself names what is wrong
    there = {row['fold'] for _, row in Table(file) if row.get('fold')}
    if there and there != set(map(str, range(count))):
        raise ValueError(
            f'--folds {count}: the column fold of {file} has {few(sorted(there))}. Fix: give the '
            'number of its folds, which are counted from 0'
        )


def predictions(cfg: Config, folder: Path) -> dict[str, Any]:
    """What an evaluation left."""
    content: dict[str, Any] = json.loads((folder / 'found/predictions.json').read_text())
    return dict(kind=cfg.test_dataloader.dataset.get('kind', 'videos'), **content)


def pooled(folds: Sequence[Content]) -> dict[str, Any]:
    """Join the evaluations of all folds; each clip gets the `fold` that it was held out in.

    Raises:
        ValueError: a group has clips in several folds, so that a model was trained on clips that
            depend on those it was tested on.
    """
    clips = [dict(clip, fold=k) for k, fold in enumerate(folds) for clip in fold['clips']]
    split = split_groups([c['fold'] for c in clips], [c.get('group') for c in clips])
    if split:
        raise ValueError(
            f'{len(split)} groups have clips in more than one fold: {few(split)}. Fix: give all '
            'clips of a group one number in the column `fold`, and train again'
        )
    return {**folds[0], 'clips': sorted(clips, key=lambda clip: str(clip['file']))}


class Evidence:
    """Scores of several runs on the same clips, each as `predictions` gives it."""

    figures = ('top1', 'mean class')
    examples = 'clips'
    digits = 1  # of percent

    def __init__(self, runs: Sequence[Content]) -> None:
        first = runs[0]
        self.classes: list[str] = first['classes']
        self.kind, self.clips = first['kind'], list(first['clips'])
        listed = [(clip['file'], clip['labels']) for clip in self.clips]
        for run in runs:
            same = [(clip['file'], clip['labels']) for clip in run['clips']] == listed
            if run['classes'] != self.classes or not same:
                raise ValueError(
                    'arms are compared on one test set, but theirs have other clips, classes, or '
                    'another order of them: give the configs one test_dataloader'
                )
        self.num_examples = len(self.clips)
        self.groups = group_numbers([clip.get('group') for clip in self.clips])
        self.labels = np.array([clip['labels'][0] for clip in self.clips])

    def right(self, run: Content) -> np.ndarray:
        """Which clips a run has right: [N]. One that it could not read it has not."""
        found = [clip['scores'] for clip in run['clips']]
        best = np.array([-1 if scores is None else int(np.argmax(scores)) for scores in found])
        return best == self.labels

    def statistic(self, run: Content) -> Statistic:
        """The figures of a run on all clips, in percent."""
        return self._figures(run, np.ones(self.num_examples, dtype=bool))

    def slices(self, arms: Sequence[Sequence[Content]]) -> list[Slice]:
        """All clips, and by their aspect and number of frames."""
        everything = np.ones(self.num_examples, dtype=bool)
        parts = {'all clips': everything}
        if all(clip.get('measured') for clip in self.clips):
            sides = np.array([clip['measured'][:2] for clip in self.clips], dtype=float)
            parts |= _by('long side over the short', sides.max(1) / sides.min(1), '.2f')
            frames = np.array([clip['measured'][2] for clip in self.clips], dtype=float)
            parts |= _by('frames', frames, '.0f')
        return [
            Slice(
                name=name,
                content=f'clips: {int(chosen.sum())}',
                num_groups=len(np.unique(self.groups[chosen])),
                arms=[[self._figures(run, chosen) for run in arm] for arm in arms],
            )
            for name, chosen in parts.items()
        ]

    def _figures(self, run: Content, chosen: np.ndarray) -> Statistic:
        right_N, labels_N = self.right(run), self.labels
        members_NC = labels_N[:, None] == np.arange(len(self.classes))

        def figures(counts_BN: np.ndarray) -> np.ndarray:
            weights = counts_BN * chosen
            with np.errstate(invalid='ignore', divide='ignore'):
                whole = weights @ right_N / weights.sum(1)
                by_class = (weights @ (members_NC & right_N[:, None])) / (weights @ members_NC)
                known = ~np.isnan(by_class)
                mean = np.where(known, by_class, 0).sum(1) / known.sum(1)
            return 100 * np.stack([whole, mean], 1)

        return figures

    def remarks(self, arms: Mapping[str, Sequence[Content]]) -> str:
        """Paired tests of the first arm against each other one, and against the sizes alone."""
        (first, ours), *others = arms.items()
        lines = []
        for name, theirs in others:
            for seed, (one, other) in enumerate(zip(ours, theirs, strict=True)):
                told = paired_test(self.right(one), self.right(other), self.groups)
                lines.append(f'- {first} against {name}, seed {seed}: {told}')
        if all('fold' in clip and clip.get('measured') for clip in self.clips):
            baseline = self.sizes_alone()
            share = 100 * baseline.mean()
            lines.append(
                f'- A model that sees nothing but height, width, frames and rate of a clip (its '
                f'nearest neighbours in these, in the other folds) has {share:.1f} % right.'
            )
            for seed, one in enumerate(ours):
                told = paired_test(self.right(one), baseline, self.groups)
                lines.append(f'- {first} against the sizes alone, seed {seed}: {told}')
        if tuple(self.classes) == MOTIONS:
            lines += [
                f'- {name}, seed {seed}: {self.directions(run)}'
                for name, arm in arms.items()
                for seed, run in enumerate(arm)
            ]
        return '\n'.join(lines)

    def sizes_alone(self, neighbours: int = 5) -> np.ndarray:
        """Which clips are told by the classes of those most alike in size, length and rate: [N]."""
        sizes = np.log(np.array([clip['measured'] for clip in self.clips], dtype=float))
        spread = sizes.std(0)
        sizes = (sizes - sizes.mean(0)) / np.where(spread > 0, spread, 1)
        folds = np.array([clip['fold'] for clip in self.clips])
        right = np.zeros(self.num_examples, dtype=bool)
        for number in range(self.num_examples):
            others = np.flatnonzero(folds != folds[number])
            gaps = np.linalg.norm(sizes[others] - sizes[number], axis=1)
            near = others[gaps <= np.sort(gaps)[min(neighbours, len(gaps)) - 1]]  # ties count too
            votes = np.bincount(self.labels[near], minlength=len(self.classes))
            right[number] = int(votes.argmax()) == self.labels[number]
        return right

    def directions(self, run: Content) -> str:
        """How often the pair of motions is found, and within the true pair the direction."""
        nothing = [math.nan] * len(self.classes)
        scores_NC = np.array([clip['scores'] or nothing for clip in run['clips']])
        found = pairs_and_directions(scores_NC, self.labels)
        sizes = np.bincount(self.groups)  # at most: all clips of a group are right, or all wrong
        chance = 3 * 50 * math.sqrt(float((sizes**2).sum())) / self.num_examples
        return (
            f'pair {found["pair"]:.1f} % (chance 25), direction within the true pair '
            f'{found["direction"]:.1f} % (chance 50, three standard deviations at most '
            f'{chance:.1f})'
        )

    # What a person looks at

    def name(self, number: int) -> str:
        """A clip in a line of a table."""
        clip = self.clips[number]
        return f'{Path(clip["file"]).name} ({self.classes[self.labels[number]]})'

    def drawn(self, number: int, run: Content | None) -> Image.Image:
        """The middle frame of a clip, and under it what a run says, or the truth."""
        clip = self.clips[number]
        reader = open_clip(self.kind, clip['file'])
        pixels = reader.read([reader.num_frames // 2])[0]
        h, w = (max(1, round(side * _SHOWN / max(pixels.shape[:2]))) for side in pixels.shape[:2])
        frame = Image.fromarray(resize_image(pixels, (h, w)))
        names = drawn_names(tuple(self.classes))
        text = names[self.labels[number]]
        if run is not None:
            scores = run['clips'][number]['scores']
            best = None if scores is None else int(np.argmax(scores))
            text = 'not read' if best is None else f'{names[best]} {100 * scores[best]:.0f} %'
        sheet = Image.new('RGB', (frame.width, frame.height + 24), (250, 250, 248))
        sheet.paste(frame, (0, 0))
        TextLine(text, 15).draw(ImageDraw.Draw(sheet), (4, frame.height + 3), (30, 30, 34))
        return sheet


def paired_test(one: np.ndarray, other: np.ndarray, groups: np.ndarray) -> str:
    """Describe the exact paired test of two models on the same examples, groups swapped whole.

    `one` and `other` [N] hold whether each model is right, `groups` [N] the number of the group.
    """
    gains = one.astype(int) - other.astype(int)
    num_groups = len(np.unique(groups))
    test, count = 'McNemar, exact', f'{len(gains)} such examples'
    if num_groups < len(gains):
        test = f'exact permutation test, {num_groups} groups swapped whole'
        count += f' in {num_groups} groups'
    return (
        f'right where the other is wrong {(gains > 0).sum()}, wrong where it is right '
        f'{(gains < 0).sum()}: p = {permutation_p_value(gains, groups):.3f} ({test}); the smallest '
        f'difference that {count} can show: {100 * smallest_difference(gains, groups):.1f} points'
    )


def _by(what: str, values_N: np.ndarray, form: str) -> dict[str, np.ndarray]:
    """Thirds of the examples by a value."""
    parts = {}
    for low, high in thirds(values_N):
        chosen = (low <= values_N) & (values_N < high)
        if 0 < chosen.sum() < len(values_N):
            shown = values_N[chosen]
            parts[f'{what} {shown.min():{form}} to {shown.max():{form}}'] = chosen
    return parts
