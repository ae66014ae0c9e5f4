"""The report of tools/check_images.py: a page of Markdown, the figures as JSON, and a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from navit_backbone.tasks.common.paired import MIN_GROUPS, Interval, resamples, thirds
from navit_backbone.tools.arms_report import table
from navit_backbone.tools.arms_runs import provenance
from navit_backbone.tools.check_images import FIGURES, Records, shown

NUM_RESAMPLES = 10_000
LIKELIHOOD = FIGURES.index('log-likelihood')
_FORMS = ('.1f', '.1f', '.3f')  # of FIGURES


@dataclass(frozen=True, kw_only=True)
class Part:
    """The figures of some of the pictures."""

    name: str
    num_pictures: int
    figures: Sequence[Sequence[Sequence[Interval]]]  # [way][budget][figure]
    ahead: Sequence[Sequence[Sequence[Interval]]]  # native less [other way][budget][figure]


def write(records: Records, folder: Path, weights_file: Path) -> str:
    """Write all three into `folder`; the page."""
    parts = measured(records)
    text = page(records, parts, weights_file)
    (folder / 'table.md').write_text(text)
    (folder / 'figures.json').write_text(json.dumps(content(records, parts), indent=1) + '\n')
    plot(records, parts, folder / 'plot.png')
    return text


def measured(records: Records) -> list[Part]:
    """All pictures, and a third of them each by |log aspect|; all meet the same resamples."""
    num = len(records.aspects)
    inside = [('all', np.ones(num, dtype=bool))]
    for low, high in thirds(records.aspects):
        third_N = (low <= records.aspects) & (records.aspects < high)
        if third_N.any():
            of_third = np.exp(records.aspects[third_N])
            inside.append((f'{of_third.min():.2f} to {of_third.max():.2f}', third_N))
    samples: list[list[np.ndarray]] = [[] for _ in inside]
    for counts_RN in resamples(records.groups, num=NUM_RESAMPLES, seed=0):
        for (_, mask_N), drawn in zip(inside, samples, strict=True):
            drawn.append(_means(counts_RN[:, mask_N], records.found[:, :, mask_N]))
    return [
        _part(name, mask_N, records, np.concatenate(drawn))
        for (name, mask_N), drawn in zip(inside, samples, strict=True)
    ]


def _means(counts_RN: np.ndarray, found_WBNF: np.ndarray) -> np.ndarray:
    """[R, W, B, F] of each resample; NaN where none of the pictures is drawn."""
    with np.errstate(invalid='ignore'):
        shares_RN = counts_RN / counts_RN.sum(1, keepdims=True)
    return np.einsum('rn,wbnf->rwbf', shares_RN, found_WBNF, optimize=True)


def _part(name: str, mask_N: np.ndarray, records: Records, samples_RWBF: np.ndarray) -> Part:
    means_WBF = records.found[:, :, mask_N].mean(2)
    if len(np.unique(records.groups[mask_N])) < MIN_GROUPS:
        samples_RWBF = samples_RWBF[:0]
    ahead_WBF, of_ahead = means_WBF[:1] - means_WBF[1:], samples_RWBF[:, :1] - samples_RWBF[:, 1:]
    return Part(
        name=name,
        num_pictures=int(mask_N.sum()),
        figures=_intervals(means_WBF, samples_RWBF),
        ahead=_intervals(ahead_WBF, of_ahead),
    )


def _intervals(means_WBF: np.ndarray, samples_RWBF: np.ndarray) -> list[list[list[Interval]]]:
    ways, budgets, figures = means_WBF.shape
    return [
        [
            [
                Interval.of(float(means_WBF[w, b, f]), samples_RWBF[:, w, b, f])
                for f in range(figures)
            ]
            for b in range(budgets)
        ]
        for w in range(ways)
    ]


# --------------------------------------------------------------------------------------------------
# The page


def page(records: Records, parts: Sequence[Part], weights_file: Path) -> str:
    """All of the report."""
    sections = {
        'Figures': figures_table(records, parts[0]),
        'What native is ahead (bold: the interval leaves out 0)': ahead_table(records, parts[0]),
        'The same in short': verdicts(records, parts[0]),
        'Log-likelihood that native is ahead, by aspect (long side by short)': aspect_table(
            records, parts
        ),
        'Plot': '![figures by tokens](plot.png)',
    }
    texts = [f'## {title}\n\n{text}' for title, text in sections.items()]
    return '\n\n'.join([introduction(records, weights_file), *texts]) + '\n'


def introduction(records: Records, weights_file: Path) -> str:
    """What was asked, of what, in which ways, and what the figures are."""
    made, num = provenance(), len(records.aspects)
    pictures = ', '.join(f'{number} {name}' for name, number in sorted(records.content.items()))
    left_out = (
        f'{len(records.faults)} could not be read and are left out:\n\n'
        + '\n'.join(f'- {fault}' for fault in records.faults)
        if records.faults
        else 'All could be read.'
    )
    num_groups = len(np.unique(records.groups))
    drawn = 'the pictures' if num_groups == num else f'{num_groups} groups of pictures, drawn whole'
    return f"""# {weights_file.name} on {num} pictures, untrained

{made['date']}, {made['machine']}, {made['threads']} thread(s), torch {made['torch']}, code \
{made['code'] or 'not under git'}.
Classes {shown(records.classes)}; pictures read: {pictures}. {left_out}

{FIGURES[0]}: % of the pictures whose class is the first of all classes. {FIGURES[1]}: % whose class
is the first of those asked. {FIGURES[2]}: mean log of the share that the softmax over all classes
gives to the right one, in nats. native is the largest grid of the picture's own aspect within the
budget; the three others fill the largest square within it. The tokens of the padding are computed.
All are resized by the antialiased filter `{records.interpolation}`, but where a way names another.
In brackets 95 % intervals of the bootstrap over {drawn}, {NUM_RESAMPLES:,} resamples, the same
for all ways and budgets; differences are paired. No correction for their number is made."""


def figures_table(records: Records, part: Part) -> str:
    """A row for each way at each budget."""
    rows = []
    for b, budget in enumerate(records.budgets):
        for w, way in enumerate(records.ways):
            cells = [f'{i:{form}}' for i, form in zip(part.figures[w][b], _FORMS, strict=True)]
            rows.append([str(budget), way, f'{records.tokens[w, b].mean():.1f}', *cells])
    return table(['budget', 'way', 'tokens, mean', *FIGURES], rows)


def ahead_table(records: Records, part: Part) -> str:
    """A row for each other way at each budget."""
    rows = []
    for b, budget in enumerate(records.budgets):
        for other, way in enumerate(records.ways[1:]):
            cells = map(told, part.ahead[other][b], _FORMS)
            rows.append([str(budget), way, *cells])
    return table(['budget', 'native less', *FIGURES], rows)


def aspect_table(records: Records, parts: Sequence[Part]) -> str:
    """A column for each third of the pictures."""
    rows, form = [], _FORMS[LIKELIHOOD]
    for b, budget in enumerate(records.budgets):
        for other, way in enumerate(records.ways[1:]):
            cells = [told(part.ahead[other][b][LIKELIHOOD], form) for part in parts]
            rows.append([str(budget), way, *cells])
    heads = [f'{part.name} ({part.num_pictures} pictures)' for part in parts]
    return table(['budget', 'native less', *heads], rows)


def told(gain: Interval, form: str) -> str:
    """A difference, bold where its interval leaves out 0."""
    return f'**{gain:+{form}}**' if gain.is_significant else f'{gain:+{form}}'


def verdicts(records: Records, part: Part) -> str:
    """For each figure and other way: at which budgets native is ahead, behind, or neither."""
    lines = []
    for f, figure in enumerate(FIGURES):
        for other, way in enumerate(records.ways[1:]):
            found: dict[str, list[int]] = {'ahead': [], 'behind': [], 'not told apart': []}
            for b, budget in enumerate(records.budgets):
                gain = part.ahead[other][b][f]
                side = 'ahead' if gain.low > 0 else 'behind' if gain.high < 0 else 'not told apart'
                found[side].append(budget)
            text = '; '.join(f'{s} at {", ".join(map(str, at))}' for s, at in found.items() if at)
            lines.append(f'- {figure}, native against {way}: {text}')
    return '\n'.join(lines)


# --------------------------------------------------------------------------------------------------
# Figures and plot


def content(records: Records, parts: Sequence[Part]) -> dict[str, Any]:
    """Every figure, as [estimate, low, high] of each of FIGURES."""
    return {
        'figures': list(FIGURES),
        'classes': dict(records.classes),
        'pictures': dict(records.content),
        'left out': list(records.faults),
        'parts': [
            {
                'aspect': part.name,
                'pictures': part.num_pictures,
                'rows': [
                    {
                        'budget': budget,
                        'way': way,
                        'tokens': float(records.tokens[w, b].mean()),
                        'figures': [_triple(i) for i in part.figures[w][b]],
                        'native less this': [_triple(i) for i in part.ahead[w - 1][b]]
                        if w
                        else None,
                    }
                    for b, budget in enumerate(records.budgets)
                    for w, way in enumerate(records.ways)
                ],
            }
            for part in parts
        ],
    }


def _triple(interval: Interval) -> list[float | None]:
    values = (interval.estimate, interval.low, interval.high)
    return [None if math.isnan(value) else round(value, 5) for value in values]


def plot(records: Records, parts: Sequence[Part], file: Path) -> None:
    """Above the figures of each way by the tokens it took; below what native is ahead of it."""
    from matplotlib.figure import Figure

    columns = max(len(FIGURES), len(parts) - 1)
    canvas = Figure(figsize=(4.6 * columns, 8), layout='constrained')
    above, below = canvas.subplots(2, columns, squeeze=False)
    for f, (axes, figure) in enumerate(zip(above, FIGURES, strict=False)):
        for w, way in enumerate(records.ways):
            values = [row[f] for row in parts[0].figures[w]]
            _line(axes, records.tokens[w].mean(1), values, w, way)
        axes.set_title(f'{figure}, all pictures (shaded: 95 % of native)', fontsize=10)
        axes.set_ylabel('nats' if f == LIKELIHOOD else '%')
        axes.set_xlabel('tokens a picture, mean')
    for axes, part in zip(below, parts[1:], strict=False):
        for other, way in enumerate(records.ways[1:], start=1):
            gains = [row[LIKELIHOOD] for row in part.ahead[other - 1]]
            _gains(axes, np.array(records.budgets), gains, other, way)
        axes.axhline(0, color='black', linewidth=1)
        axes.set_title(f'aspect {part.name} ({part.num_pictures} pictures)', fontsize=10)
        axes.set_ylabel('log-likelihood that native is ahead')
        axes.set_xlabel('budget of tokens')
    lows, highs = zip(*(axes.get_ylim() for axes in below if axes.has_data()), strict=True)
    for axes in below:
        axes.set_ylim(min(lows), max(highs))  # one range, to compare at a glance
    for axes in (*above, *below):
        axes.set_visible(axes.has_data())
        axes.set_xscale('log')
        axes.set_xticks(records.budgets, [str(budget) for budget in records.budgets], fontsize=8)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    above[0].legend(loc='lower right')
    below[0].legend(loc='lower right', title='native less')
    canvas.savefig(file, dpi=110)


def _line(axes: Any, x: np.ndarray, values: Sequence[Interval], number: int, label: str) -> None:
    """A way; native thicker than the others, with its intervals as a band."""
    y, width = [value.estimate for value in values], 1.2 if number else 2.2
    axes.plot(x, y, color=f'C{number}', marker='o', markersize=4, linewidth=width, label=label)
    if not number:
        lows, highs = [value.low for value in values], [value.high for value in values]
        axes.fill_between(x, lows, highs, color='C0', alpha=0.15, linewidth=0)


def _gains(axes: Any, x: np.ndarray, values: Sequence[Interval], number: int, label: str) -> None:
    """Differences with their intervals, moved aside a little so that all ways can be seen."""
    error = [[v.estimate - v.low for v in values], [v.high - v.estimate for v in values]]
    axes.errorbar(
        x * 1.015 ** (number - 2),
        [value.estimate for value in values],
        yerr=np.abs(error),
        label=label,
        color=f'C{number}',
        marker='o',
        markersize=4,
        linewidth=1.2,
        elinewidth=0.8,
        capsize=2,
    )
