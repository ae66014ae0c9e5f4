"""Folds of a small data set: whole groups held out in turn, classes spread evenly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def grouped_folds(labels: Sequence[str], groups: Sequence[str], num_folds: int) -> list[int]:
    """The fold of each sample: those of one group in one fold, classes spread as evenly as can be.

    The largest groups come first, each into the fold where it leaves the classes most even; so the
    same lists always give the same folds.
    """
    members: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    if not 2 <= num_folds <= len(members):
        raise ValueError(f'{num_folds} folds of {len(members)} groups: from 2 to that many')
    names = sorted(set(labels))
    counts = np.zeros((num_folds, len(names) + 1))
    fold_of = [0] * len(labels)
    for group in sorted(members, key=lambda name: (-len(members[name]), name)):
        own = np.zeros(len(names) + 1)
        for number in members[group]:
            own[names.index(labels[number])] += 1
        own[-1] = len(members[group])  # samples of all classes: an empty fold costs least
        cost = [float(((counts[k] + own) ** 2 - counts[k] ** 2).sum()) for k in range(num_folds)]
        chosen = int(np.argmin(cost))
        counts[chosen] += own
        for number in members[group]:
            fold_of[number] = chosen
    return fold_of
