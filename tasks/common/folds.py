"""Folds and splits of a data set: whole groups are held out, classes spread evenly."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Sequence

import numpy as np


def hold_out(
    groups: Sequence[Hashable],
    classes: Sequence[Collection[Hashable]] | None = None,
    *,
    share: float,
    seed: int,
) -> list[bool]:
    """Return for each sample whether it is held out, the same for all samples of a group.

    `groups` and `classes` are those of each sample. About `share` of the samples is held out, and
    of those of each class too, as far as groups allow: the rarest class comes first, with one group
    at least on each side where it has two. The same seed splits the same way.
    """
    order = list(dict.fromkeys(groups))
    place = np.random.default_rng(seed).permutation(len(order)).argsort().tolist()
    rank = dict(zip(order, place, strict=True))
    of_class: defaultdict[Hashable, Counter[Hashable]] = defaultdict(Counter)
    for group, names in zip(groups, classes or [()] * len(groups), strict=True):
        for name in set(names):
            of_class[name][group] += 1
    rarest_first = sorted(of_class.items(), key=lambda item: (len(item[1]), str(item[0])))
    held: set[Hashable] = set()
    assigned: set[Hashable] = set()
    # all samples come last: those without a class, and what the total still lacks
    for sizes in [*(sizes for _, sizes in rarest_first), Counter(groups)]:
        num_held = sum(group in held for group in sizes)
        lacking = round(share * sizes.total()) - sum(
            sizes[group] for group in sizes if group in held
        )
        free = sorted(sizes.keys() - assigned, key=rank.__getitem__)
        for group in free:
            # a group that is too large by less than what is lacking without it
            if sizes[group] <= 2 * lacking and num_held < len(sizes) - 1:
                held.add(group)
                num_held += 1
                lacking -= sizes[group]
        if free and not num_held and len(sizes) > 1:
            held.add(min(free, key=sizes.__getitem__))
        assigned.update(free)
    if not held and len(rank) > 1:  # where each class has one group alone
        held.add(min(rank, key=rank.__getitem__))
    return [group in held for group in groups]


def grouped_folds(labels: Sequence[str], groups: Sequence[str], num_folds: int) -> list[int]:
    """The fold of each sample: those of one group in one fold, classes spread as evenly as can be.

    The largest groups come first, each into the fold where it leaves the classes most even; so the
    same lists always give the same folds. A sample whose group is '' is a group of its own.
    """
    members: dict[tuple[str, int], list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault((group, 0 if group else number), []).append(number)
    if not 2 <= num_folds <= len(members):
        raise ValueError(
            f'{num_folds} folds of {len(members)} groups: give from 2 folds to as many as groups'
        )
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
