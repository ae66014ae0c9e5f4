"""Speed and memory of the packed backbone, each beside what it replaces.

    python tools/benchmark.py [--only ROW...] [--out FILE.md|.json]

padded    packed against one padded canvas: with a key mask, without, and by orientation
uniform   a batch of mixed sizes against one of equal sizes at the same FLOPs
siglip2   against Hugging Face's Siglip2VisionModel of the same shape
memory    64 pictures of 1024 tokens against 8
packer    examples per second, and empty slots
conversion    memory of tools/convert_weights.py on 304 M values, over the size of the file
positions  of 64 mixed sizes, over a forward of ViT-B
univitar  UniViTAR-0.3B whole, forward and backward: a picture and a clip in one pack
steps     whole training steps of RetinaNet and Mask R-CNN, packed against padded
pipeline  photos through the training pipeline, against stock Resize(keep_ratio)
sampler   how full TokenBudgetBatchSampler's batches are
run       a training run of 1,000 steps: waiting for data, and memory
segment   a linear segmentor on mixed sizes: evaluation against batch 1, steps against padded
large     a picture of 6000 x 4000 pixels, labelled at its own size
clips     training steps on clips of mixed sizes and lengths, against padded with a key mask
reading   16 frames of a 1080p video, against the whole file into memory; and memory over many reads
waiting   a training run on the fight clips: waiting for data

Sizes are those of coco128's photos, scaled by one factor; pixels are noise. A step is forward and
backward, in float32 on CPU and under bfloat16 autocast on CUDA. tools/measure.py tells how a figure
comes about, and when there is none.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch

from navit_backbone.file_writing import check_output
from navit_backbone.packing import pack, patchify
from navit_backbone.position import Learned1DPosition
from navit_backbone.tools.benchmark_arms import (
    PATCH_SIZE,
    Batch,
    Lengths,
    Setting,
    Step,
    by_orientation,
    num_tokens,
    pack_stream,
    photo_sizes,
    random_lengths,
    siglip2_inputs,
    siglip2_model,
    size_of_equal_flops,
    step_memory,
)
from navit_backbone.tools.benchmark_conversion import conversion_rows
from navit_backbone.tools.benchmark_univitar import univitar_rows
from navit_backbone.tools.measure import (
    MIN_ROUNDS,
    Comparison,
    Result,
    compared,
    figure_of,
    free_bytes,
    in_new_process,
    interleaved,
    lower_quartile,
    machine,
    show_progress,
    spread,
)
from navit_backbone.vit import ARCHS, NaViT


def padded_rows(setting: Setting, name: str) -> list[Result]:
    """The same model and pictures, packed and padded in three ways."""
    step, batches = setting.navit(name), setting.batches()
    groups = [
        [Batch.of(sizes, seed=0, device=setting.device) for sizes in by_orientation(batch.sizes)]
        for batch in batches
    ]

    def grouped(i: int) -> None:
        for group in groups[i]:
            step.packed(group.pack_whole())

    real = _real(batches)
    whole = [batch.padded_lengths for batch in batches]
    within = [[n for group in pair for n in group.padded_lengths] for pair in groups]
    arms = setting.measure(
        'padded',
        name,
        {
            'packed': (lambda i: step.packed(batches[i].pack()), real),
            'with a key mask': (lambda i: step.masked(batches[i]), whole),
            'without mask': (lambda i: step.packed(batches[i].pack_whole()), whole),
            'by orientation without mask': (grouped, within),
        },
    )
    targets = ['1.5', _no_mask_target(real, whole), _no_mask_target(real, within)]
    return [
        compared(f'packed against padded {arm}, {name}', arms['packed'], arms[arm], target)
        for arm, target in zip(list(arms)[1:], targets, strict=True)
    ]


def _real(batches: Sequence[Batch]) -> Lengths:
    return [batch.lengths for batch in batches]


def _no_mask_target(real: Lengths, padded: Lengths) -> str:
    share = sum(map(sum, real)) / sum(map(sum, padded))
    return f'{0.9 / share:.2f} = 0.9 / {share:.2f} real'


def uniform_rows(setting: Setting, name: str) -> list[Result]:
    """FLOPs per second on mixed sizes over those on equal sizes."""
    step, mixed = setting.navit(name), setting.batches()
    sizes = [size_of_equal_flops(batch.lengths, ARCHS[name]) for batch in mixed]
    uniform = [
        Batch.of([size] * setting.batch_size, seed=i, device=setting.device)
        for i, size in enumerate(sizes)
    ]
    arms = setting.measure(
        'uniform',
        name,
        {
            'mixed': (lambda i: step.packed(mixed[i].pack()), _real(mixed)),
            'uniform': (lambda i: step.packed(uniform[i].pack()), _real(uniform)),
        },
    )
    pair = Comparison(ours=arms['mixed'], theirs=arms['uniform'])
    return [
        Result(
            what=f'mixed against uniform sizes, per FLOP, {name}',
            figure=figure_of(f'{pair.per_flop:.2f}', spread=pair.spread, rounds=setting.rounds),
            target='0.95',
            flops=f'{pair.flops:.2f}',
        )
    ]


def siglip2_rows(setting: Setting, name: str) -> list[Result]:
    """Padded to a fixed `max_num_patches`, as its processor pads, and to the longest of the batch.

    Sizes stay as they are: its processor would resize all pictures to that number. Packing is in
    our time; theirs starts from patches that are padded already.
    """
    what = 'packed against Siglip2VisionModel'
    if find_spec('transformers') is None:
        return [Result(what=what, figure='skipped: transformers is not installed')]
    ours, batches = setting.navit(name), setting.batches()
    theirs = Step(siglip2_model(ARCHS[name]), dim=ARCHS[name].embed_dims, device=setting.device)
    of_all = [max(map(num_tokens, setting.sizes))] * len(batches)
    of_batch = [max(batch.lengths) for batch in batches]
    fixed, tight = (
        [siglip2_inputs(batch, n) for batch, n in zip(batches, longest, strict=True)]
        for longest in (of_all, of_batch)
    )
    arms = setting.measure(
        'siglip2',
        name,
        {
            'packed': (lambda i: ours.packed(batches[i].pack()), _real(batches)),
            'padded to a fixed max_num_patches': (
                lambda i: theirs.siglip2(fixed[i]),
                [[n] * setting.batch_size for n in of_all],
            ),
            "padded to the batch's longest": (
                lambda i: theirs.siglip2(tight[i]),
                [[n] * setting.batch_size for n in of_batch],
            ),
        },
    )
    return [
        compared(f'{what}, {arm}, {name}', arms['packed'], arms[arm], '1.5')
        for arm in list(arms)[1:]
    ]


def memory_rows(setting: Setting) -> list[Result]:
    """Peak memory of a step beyond what model and libraries hold."""
    side = (4 if setting.smoke else 32) * PATCH_SIZE
    what = f'memory of 64 pictures of {(side // PATCH_SIZE) ** 2} tokens over that of 8, tiny'
    if setting.device.type == 'cpu' and not Path('/proc/self/status').exists():
        return [Result(what=what, figure='skipped: the peak is read from /proc, as Linux has it')]
    started, where = time.monotonic(), (side, setting.device.type, torch.get_num_threads())
    few = in_new_process(step_memory, 8, *where)
    show_progress('memory', 1, 2, started)
    if (free := free_bytes(setting.device)) < 9 * few:
        need = f'64 need about {8 * few / 2**30:.1f} GiB of {free / 2**30:.1f} free'
        return [Result(what=what, figure=f'skipped: {need}')]
    many = in_new_process(step_memory, 64, *where)
    show_progress('memory', 2, 2, started)
    ratio = f'{many / few:.2f}'
    return [
        Result(
            what=what,
            figure=f'smaller pictures: no figure (smoke: {ratio})' if setting.smoke else ratio,
            target='at most 8.5',
            flops='8.00',
            detail=f'{few / 2**20:,.0f} and {many / 2**20:,.0f} MiB',
        )
    ]


def packer_rows(setting: Setting) -> list[Result]:
    """CPU time of a stream; what its end leaves in the pool is no part of the fill."""
    num = 10_000 if setting.smoke else 100_000
    lengths = random_lengths(num, low=128, high=384)
    rows = []
    for budget in (1024, 4096):
        started, seconds = time.monotonic(), []
        for done in range(1, setting.rounds + 1):
            took, empty = pack_stream(lengths, budget)
            seconds.append(took)
            show_progress(f'packer, rows of {budget}', done, setting.rounds, started)
        rate = f'{num / lower_quartile(seconds):,.0f}'
        rows.append(
            Result(
                what=f'packer: examples/s, sides 128 to 384 px, rows of {budget}, pool of 64',
                figure=figure_of(rate, spread=spread(seconds), rounds=len(seconds)),
                target='100,000; 0.1 % empty',
                detail=f'{empty:.4%} empty over {num:,} examples',
            )
        )
    return rows


ON_PHOTOS = {'padded': padded_rows, 'uniform': uniform_rows, 'siglip2': siglip2_rows}


def position_rows(setting: Setting) -> list[Result]:
    """Positions of 64 mixed sizes, for the tables that public weights have, over a forward."""
    rng = random.Random(0)
    grids = [(rng.randint(4, 32), rng.randint(4, 32)) for _ in range(4 if setting.smoke else 64)]
    name = 'tiny' if setting.smoke else 'base'
    pixels = [torch.rand(3, h * PATCH_SIZE, w * PATCH_SIZE) for h, w in grids]
    patch_shape = (1, PATCH_SIZE, PATCH_SIZE)
    packed = pack([patchify(item, patch_shape) for item in pixels]).to(setting.device)
    model = NaViT(name, patch_size=PATCH_SIZE).to(setting.device).eval()
    calls: dict[str, Callable[[int], object]] = {'forward': lambda _: model(packed)}
    for side, antialias in ((14, True), (37, True), (37, False), (64, False)):
        table = Learned1DPosition(
            ARCHS[name].embed_dims, grid=(side, side), antialias=antialias
        ).to(setting.device)
        smooth = 'with' if antialias else 'without'
        calls[f'{side} x {side} {smooth} antialias'] = lambda _, table=table: table(packed)
    with torch.no_grad():  # a forward of ViT-B takes a minute on a CPU
        seconds = interleaved(calls, rounds=min(setting.rounds, 5), label='positions')
    forward = median(seconds.pop('forward'))
    few = 'smoke: ' if setting.smoke else ''
    return [
        Result(
            what=f'positions {what}, for {len(grids)} sizes, over a forward of {name}',
            figure=f'{few}{median(took) / forward:.2%}',
            target='under 3 %',
            detail=f'{len(packed.patches):,} tokens',
        )
        for what, took in seconds.items()
    ]


ALONE = {
    'positions': position_rows,
    'memory': memory_rows,
    'packer': packer_rows,
    'conversion': conversion_rows,
    'univitar': univitar_rows,
}
DETECTION = ('steps', 'pipeline', 'sampler', 'run')  # what tools/benchmark_detection.py has
SEGMENTATION = ('segment', 'large')  # what tools/benchmark_segmentation.py has
VIDEO = ('clips', 'reading', 'waiting')  # what tools/benchmark_video.py has


def as_markdown(header: dict[str, str], results: Sequence[Result]) -> str:
    """What was measured on, and the table."""
    lines = [f'{key}: {value}  ' for key, value in header.items()]
    lines += ['', '| | figure | target | ratio of FLOPs | |', '|---|---|---|---|---|']
    lines += [f'| {r.what} | {r.figure} | {r.target} | {r.flops} | {r.detail} |' for r in results]
    return '\n'.join(lines) + '\n'


def write(path: Path, header: dict[str, str], results: Sequence[Result]) -> None:
    """As JSON or Markdown, by the file's name."""
    if path.suffix == '.json':
        rows = [asdict(result) for result in results]
        path.write_text(json.dumps({'setting': header, 'rows': rows}, indent=2) + '\n')
    else:
        path.write_text(as_markdown(header, results))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; --smoke sets what is not given to something small."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*ON_PHOTOS, *ALONE, *DETECTION, *SEGMENTATION, *VIDEO]
    parser.add_argument('--only', nargs='+', choices=names, default=names, help='(all)')
    parser.add_argument('--arch', nargs='+', choices=list(ARCHS), help='(tiny small)')
    parser.add_argument('--pairs', type=int, help=f'rounds of each comparison ({MIN_ROUNDS})')
    parser.add_argument('--batch-size', type=int, help='photos in a batch (16)')
    parser.add_argument('--scale', type=float, help='of the photos (0.5 on CPU, 1 on CUDA)')
    parser.add_argument('--threads', type=int, help="of the CPU (torch's own choice)")
    parser.add_argument('--device', choices=['cpu', 'cuda'], help='(cuda where there is one)')
    parser.add_argument('--data', type=Path, help='with coco128/ ($NAVIT_DATA or ../shared/data)')
    parser.add_argument('--smoke', action='store_true', help='few small steps, and no figures')
    parser.add_argument('--out', type=Path, help='a file for the table: .md or .json')
    args = parser.parse_args(argv)
    args.device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    args.arch = args.arch or (['tiny'] if args.smoke else ['tiny', 'small'])
    defaults = {
        'pairs': 3 if args.smoke else MIN_ROUNDS,
        'batch_size': 4 if args.smoke else 16,
        'scale': 0.2 if args.smoke else 0.5 if args.device == 'cpu' else 1.0,
    }
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.data = args.data or Path(os.environ.get('NAVIT_DATA', '../shared/data'))
    if problem := _problem(args):
        parser.error(problem)
    return args


def _problem(args: argparse.Namespace) -> str:
    if (args.pairs < MIN_ROUNDS) != args.smoke or args.pairs < 2:
        return (
            f'--pairs {args.pairs}: figures need {MIN_ROUNDS}; with --smoke there are none, '
            f'and 2 to {MIN_ROUNDS - 1} pairs will do'
        )
    for name in ('batch_size', 'scale', 'threads'):
        if (value := getattr(args, name)) is not None and value <= 0:
            return f'--{name.replace("_", "-")} {value}: it must be above 0'
    if args.device == 'cuda' and not torch.cuda.is_available():
        return '--device cuda: torch sees no CUDA device here; leave it out to measure on the CPU'
    if args.out and args.out.suffix not in ('.md', '.json'):
        return f'--out {args.out}: the name must end in .md or .json'
    if args.out:
        try:
            check_output(args.out)
        except ValueError as error:
            return f'--out {error}'
    return ''


def setting_of(args: argparse.Namespace) -> Setting:
    """The parsed command line, with the sizes of the photos."""
    path = args.data / 'coco128/annotations/instances_train2017.json'
    return Setting(
        device=torch.device(args.device),
        rounds=args.pairs,
        data=args.data,
        scale=args.scale,
        sizes=photo_sizes(path, args.scale) if path.exists() else [],
        batch_size=args.batch_size,
        smoke=args.smoke,
    )


def header_of(setting: Setting) -> dict[str, str]:
    """What the figures were measured on, and with what."""
    longest = max(map(num_tokens, setting.sizes), default=0)
    return machine(setting.device) | {
        'precision': 'float32' if setting.device.type == 'cpu' else 'bfloat16 autocast',
        'step': f'forward + backward of {setting.batch_size} photos, patch {PATCH_SIZE}',
        'sizes': f"those of coco128's photos times {setting.scale:g}, at most {longest} tokens",
        'rounds': str(setting.rounds),
    }


def results_of(row: str, setting: Setting, archs: Sequence[str]) -> list[Result]:
    """All lines of one row's name."""
    if row in ALONE:
        return ALONE[row](setting)
    if row in VIDEO:
        return video_results(row, setting, archs)
    if not setting.sizes:
        reason = (
            'skipped: no coco128/annotations/instances_train2017.json; set NAVIT_DATA or --data'
        )
        return [Result(what=row, figure=reason)]
    if len(setting.sizes) < setting.batch_size:
        reason = f'skipped: {len(setting.sizes)} photos make no batch of {setting.batch_size}'
        return [Result(what=row, figure=reason)]
    if row in DETECTION:
        return detection_results(row, setting, archs)
    if row in SEGMENTATION:
        return segmentation_results(row, setting, archs)
    return [result for name in archs for result in ON_PHOTOS[row](setting, name)]


def detection_results(row: str, setting: Setting, archs: Sequence[str]) -> list[Result]:
    """The lines of one row of detection, where mmdet is installed."""
    if find_spec('mmdet') is None:
        return [Result(what=row, figure='skipped: mmdet is not installed (the extra [det])')]
    from navit_backbone.tools import benchmark_detection as detection

    if row == 'steps':
        return [result for name in archs for result in detection.step_rows(setting, name)]
    rows = {'pipeline': detection.pipeline_rows, 'sampler': detection.sampler_rows}
    return {**rows, 'run': detection.run_rows}[row](setting)


def segmentation_results(row: str, setting: Setting, archs: Sequence[str]) -> list[Result]:
    """The lines of one row of segmentation, where mmseg is installed."""
    if find_spec('mmseg') is None:
        return [Result(what=row, figure='skipped: mmseg is not installed (the extra [seg])')]
    from navit_backbone.tools import benchmark_segmentation as segmentation

    if row == 'large':
        return segmentation.large_rows(setting)
    return [result for name in archs for result in segmentation.segmentation_rows(setting, name)]


def video_results(row: str, setting: Setting, archs: Sequence[str]) -> list[Result]:
    """Return the results of one row of clips, or why it is skipped."""
    needed = {'av': 'the extra [video]', 'decord': 'pip install decord2, the baseline'}
    for name, remedy in needed.items():
        if find_spec(name) is None and (name == 'av' or row == 'reading'):
            return [Result(what=row, figure=f'skipped: {name} is not installed ({remedy})')]
    from navit_backbone.tools import benchmark_video as video

    if row != 'clips':
        return {'reading': video.reading_rows, 'waiting': video.waiting_rows}[row](setting)
    return [result for name in archs for result in video.clip_rows(setting, name)]


def main() -> None:
    """Measure, write, print."""
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    setting = setting_of(args)
    header, results = header_of(setting), []
    for row in args.only:
        results += results_of(row, setting, args.arch)
        if args.out:
            write(args.out, header, results)
    print(as_markdown(header, results))


if __name__ == '__main__':
    main()
