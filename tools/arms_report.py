"""The report of a comparison of arms: a page of Markdown, a plot, and a sheet of pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from navit_backbone.tasks.common.sheet import sheet
from navit_backbone.tools.arms_results import Arms, Results
from navit_backbone.tools.arms_runs import TEST, TRAINING, differences, provenance

LISTED = 10  # examples in the table of those on which the arms differ most


def write(results: Results, path: Path, *, command: str, num_drawn: int) -> None:
    """The page, and its pictures beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [path.with_suffix('.png')]
    plot(results, pictures[0])
    if numbers := results.most_different(num_drawn):
        pictures.append(path.with_name(f'{path.stem}_{results.evidence.examples}.jpg'))
        drawn(results, numbers).save(pictures[1], quality=88)
    path.write_text(page(results, command=command, pictures=pictures))


def page(results: Results, *, command: str, pictures: Sequence[Path]) -> str:
    """All of the report."""
    first = results.names[0]
    sections = {
        'Figures': figures_table(results),
        f'What {first} is ahead (bold: the interval leaves out 0)': ahead_tables(results),
        f'Where {first} is not ahead': not_ahead(results),
        'Paired tests': remarks(results),
        'At each evaluation batch': batches_table(results),
        'Where the arms differ most': examples_table(results),
        'What differs in the configs': configs_table(results.arms),
        'The trainings': runs_table(results.arms),
        'Pictures': '\n'.join(f'![{file.stem}]({file.name})' for file in pictures),
    }
    parts = [f'## {title}\n\n{text}' for title, text in sections.items() if text]
    return '\n\n'.join([introduction(results, command), *parts]) + '\n'


def introduction(results: Results, command: str) -> str:
    """What was compared, how, when, on what, and the command that repeats it."""
    names, made = results.names, provenance()
    examples, batch = results.evidence.examples, next(iter(results.batches))
    seeds = ', '.join(str(run.seed) for run in results.arms[names[0]])
    examples_in_groups = f'{results.evidence.num_examples} {examples}'
    num_groups = len(np.unique(results.evidence.groups))
    drawn = f'the {examples}'
    if num_groups < results.evidence.num_examples:
        examples_in_groups += f' in {num_groups} groups'
        drawn = f'groups of {examples}, each drawn whole,'
    made_on = f'{made["machine"]}, {made["threads"]} thread(s), torch {made["torch"]}'
    return f"""# {names[0]} against {', '.join(names[1:])}

{made['date']}, {made_on}, code {made['code'] or 'not under git'}.
{examples_in_groups}; seeds {seeds}; the last checkpoint of each training,
evaluated at batch {batch}.

Differences are of the means over the seeds, with 95 % intervals of a paired bootstrap:
{results.num_resamples:,} resamples of {drawn} and of the seeds, the same for all arms. With one
seed an interval says nothing about other trainings.

```bash
{command}
```"""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(c.replace("|", "&#124;") for c in line)} |' for line in lines)


def figures_table(results: Results) -> str:
    """The mean of the seeds, and each seed."""
    rows, form = [], results.form
    for name, values_SF in zip(results.names, results.compared[0].figures, strict=True):
        seeds = [', '.join(f'{value:{form}}' for value in column) for column in values_SF.T]
        means = [f'**{value:{form}}**' for value in values_SF.mean(0)]
        rows.append([name, *(f'{m} ({s})' for m, s in zip(means, seeds, strict=True))])
    return table(['arm', *(f'{figure}: mean (each seed)' for figure in results.figures)], rows)


def ahead_tables(results: Results) -> str:
    """For each other arm what the first is ahead of it, slice by slice."""
    first, form, parts = results.names[0], results.form, []
    for number, other in enumerate(results.names[1:]):
        header = ['on', '', *(f'{results.figures[0]} {name}' for name in (first, other))]
        rows = []
        for item in results.compared:
            ours_S, theirs_S = item.figures[0, :, 0], item.figures[number + 1, :, 0]
            values = [f'{ours_S.mean():{form}}', f'{theirs_S.mean():{form}}']
            gains = [
                f'**{i:+{form}}**' if i.is_significant else f'{i:+{form}}'
                for i in item.ahead[number]
            ]
            seeds = ', '.join(f'{gain:+{form}}' for gain in ours_S - theirs_S)
            rows.append([item.name, item.content, *values, *gains, seeds])
        header += [f'{figure} ahead' for figure in results.figures]
        header.append(f'{results.figures[0]} ahead, seed by seed')
        parts.append(f'### {first} against {other}\n\n{table(header, rows)}')
    return '\n\n'.join(parts)


def not_ahead(results: Results) -> str:
    """Where the first arm is not ahead by more than the interval.

    Every figure of the whole, and the first figure of each part.
    """
    lines = []
    for number, other in enumerate(results.names[1:]):
        for item in results.compared:
            named = list(zip(results.figures, item.ahead[number], strict=True))
            for figure, gain in named if item is results.compared[0] else named[:1]:
                if not gain.low > 0:  # nor where too few examples give no interval
                    verdict = 'behind' if gain.high < 0 else 'not told apart from'
                    what = f'{figure} {gain:+{results.form}}'
                    lines.append(f'- {item.name} ({item.content}): {verdict} {other}, {what}')
    return '\n'.join(lines) if lines else 'It is ahead in all of them.'


def remarks(results: Results) -> str:
    """What the task has to add; empty where it has nothing."""
    told = getattr(results.evidence, 'remarks', None)
    return '' if told is None else str(told(results.contents))


def batches_table(results: Results) -> str:
    """The means of the seeds at each evaluation batch."""
    form = results.form
    rows = [
        [name, *(' / '.join(f'{v:{form}}' for v in m[arm]) for m in results.batches.values())]
        for arm, name in enumerate(results.names)
    ]
    figures = ' / '.join(results.figures)
    return table([figures, *(f'batch {size}' for size in results.batches)], rows)


def examples_table(results: Results) -> str:
    """The examples on which the arms differ most, each alone."""
    rows = [
        [results.evidence.name(number), *(f'{v:{results.form}}' for v in results.alone[:, number])]
        for number in results.most_different(LISTED)
    ]
    names = [f'{results.figures[0]} of {name}, mean of the seeds' for name in results.names]
    return table([f'one of the {results.evidence.examples}', *names], rows)


def configs_table(arms: Arms) -> str:
    """Every key in which the arms' configs differ."""
    found = differences([runs[0].cfg for runs in arms.values()], [*TRAINING, *TEST])
    rows = [
        [f'`{key}`', *('-' if v is None else f'`{v}`' for v in row)] for key, row in found.items()
    ]
    return table(['key', *arms], rows) if rows else 'Nothing: the arms are one and the same.'


def runs_table(arms: Arms) -> str:
    """What each training took, on what it ran, and whether its config has changed since."""
    rows = []
    for name, runs in arms.items():
        for run in runs:
            minutes = run.wall_time.total_seconds() / 60
            took = f'{minutes:.0f} min' if minutes else 'not recorded'
            made = [run.begun.get(key) or 'not recorded' for key in ('date', 'machine', 'code')]
            changes = ', '.join(f'`{key}`' for key in run.changes()) or 'nothing'
            rows.append([name, str(run.seed), took, *made, changes])
    return table(['arm', 'seed', 'wall time', 'begun', 'machine', 'code', 'changed since'], rows)


def plot(results: Results, file: Path) -> None:
    """What the first arm is ahead of each other one in the first figure, with the intervals."""
    from matplotlib.figure import Figure

    others, rows = results.names[1:], results.compared
    canvas = Figure(figsize=(8, 1.5 + 0.25 * (len(others) + 1) * len(rows)), layout='constrained')
    axes = canvas.subplots()
    for number, other in enumerate(others):
        gains = [item.ahead[number][0] for item in rows]
        y = np.arange(len(rows)) + (number - (len(others) - 1) / 2) * 0.6 / len(others)
        x = [gain.estimate for gain in gains]
        error = [[g.estimate - g.low for g in gains], [g.high - g.estimate for g in gains]]
        axes.errorbar(x, y, xerr=np.abs(error), fmt='o', capsize=3, label=f'against {other}')
    axes.axvline(0, color='grey', linewidth=1)
    axes.set_yticks(range(len(rows)), [f'{item.name}\n{item.content}' for item in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f'{results.figures[0]} that {results.names[0]} is ahead')
    axes.legend(loc='best')
    canvas.savefig(file, dpi=110)


def drawn(results: Results, numbers: Sequence[int]) -> Image.Image:
    """The truth, and what each arm's first seed found."""
    rows = []
    for number in numbers:
        runs = [None, *(seeds[0] for seeds in results.contents.values())]
        values = [
            f'{name} {v:{results.form}}'
            for name, v in zip(results.names, results.alone[:, number], strict=True)
        ]
        text = f'{results.evidence.name(number)}: {results.figures[0]} {", ".join(values)}'
        rows.append((text, [results.evidence.drawn(number, run) for run in runs]))
    return sheet(rows, ['truth', *results.names])
