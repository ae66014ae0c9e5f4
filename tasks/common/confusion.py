"""What is taken for what, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .fonts import drawn_names, font_families


def confusion_picture(
    confusion_RC: np.ndarray, classes: Sequence[str], file: Path, *, unit: str
) -> None:
    """A row for each class of the truth that occurs: the shares of it that are predicted as what.

    `confusion_RC`: counts of `unit`, truth by prediction, classes in order; columns beyond those of
    the truth are of what is never true, as 'not read'. `classes` names the columns. Columns are
    those that occur in truth or prediction, the most frequent in truth first.
    """
    from matplotlib.figure import Figure

    names = drawn_names(tuple(classes))
    style = dict(fontfamily=font_families(names), parse_math=False)  # a $ is a $
    truth_C = np.zeros(confusion_RC.shape[1], dtype=np.int64)
    truth_C[: len(confusion_RC)] = confusion_RC.sum(1)
    order = np.argsort(-truth_C, kind='stable')
    order = order[(truth_C + confusion_RC.sum(0))[order] > 0]
    rows = order[truth_C[order] > 0]
    shares = confusion_RC[np.ix_(rows, order)] / truth_C[rows, None]
    room = 0.1 * max(
        0, max(len(names[i]) for i in order) - 10
    )  # inches, of names beyond 10 letters
    size = (3.5 + room + 0.24 * len(order), 2.5 + room + 0.24 * len(rows))
    canvas = Figure(figsize=size, layout='constrained')
    axes = canvas.subplots()
    image = axes.imshow(100 * shares, vmin=0, vmax=100, cmap='viridis')
    axes.set_xticks(range(len(order)), [names[i] for i in order], rotation=90, **style)
    axes.set_yticks(range(len(rows)), [names[i] for i in rows], **style)
    axes.set_xlabel('prediction')
    axes.set_ylabel('truth')
    for y, row in enumerate(shares):
        for x, share in enumerate(row):
            if share >= 0.005:
                colour = 'black' if share > 0.6 else 'white'
                axes.text(
                    x, y, f'{100 * share:.0f}', ha='center', va='center', fontsize=6, color=colour
                )
    canvas.colorbar(image, ax=axes, label=f'% of the {unit} of the truth', shrink=0.6)
    canvas.savefig(file, dpi=110)
