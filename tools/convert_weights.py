"""Convert weights of a plain ViT into a NaViT file that knows what it is.

    python tools/convert_weights.py SOURCE OUT.safetensors [--family auto]
    python tools/convert_weights.py SOURCE OUT --to timm|hf
    python tools/convert_weights.py SOURCE [OUT.safetensors] --check-images DIR [--tokens 64,196]

SOURCE is a .safetensors, .pth, .pt or .bin file, an .npz file of Google's vision_transformer or
big_vision, a folder as Hugging Face lays it out, also in shards, or hf://owner/name[@revision],
which is fetched (pip install 'navit-backbone[hub]'). Nothing in it is run. A config.json beside the
weights tells what they do not. OUT has the architecture, the patch size, the rule by which
positions are interpolated and the statistics of the input in its header.

--to: the other way, of a file of ours or a trained checkpoint: OUT.safetensors under timm's names,
or a folder OUT that transformers.AutoModel loads. What no model there computes is refused.

--check-images: what the converted weights make of the pictures in DIR/CLASS, untrained, at each
number of tokens: native, squashed, padded and cropped to a square. A table, all figures and a plot
go into a folder beside OUT. Without OUT, SOURCE is a file that was converted before.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from navit_backbone.checkpoint import check_target, read_weights, save_navit
from navit_backbone.families import FAMILIES
from navit_backbone.file_writing import check_output
from navit_backbone.outbound import check_place, write_for
from navit_backbone.tools.command_line import expanded_path, output_folder, run
from navit_backbone.weight_sources import HUB, find_source

LONG = 2**28  # bytes from which on one wants to see how far it is


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'source', type=os.path.expanduser, help='a file, a folder or hf://owner/name[@revision]'
    )
    parser.add_argument('out', type=expanded_path, nargs='?', help='ends in .safetensors')
    parser.add_argument(
        '--family',
        choices=['auto', *FAMILIES],
        default='auto',
        help='whose rules hold (auto: as config.json, keys or the name of SOURCE tell)',
    )
    parser.add_argument(
        '--prefix', help='which model, where SOURCE holds several: model_ema, teacher, ...'
    )
    parser.add_argument('--num-heads', type=int, help='where the width does not tell it')
    parser.add_argument('--overwrite', action='store_true', help='where OUT exists')
    parser.add_argument('--to', choices=['timm', 'hf'], help='whose model OUT is for (ours)')
    parser.add_argument(
        '--check-images', type=expanded_path, metavar='DIR', help='pictures of classes'
    )
    parser.add_argument('--tokens', help='budgets to show them at (64,100,...,576)')
    parser.add_argument('--classes', help='FOLDER=NUMBER of each class (ants=310,bees=309)')
    parser.add_argument(
        '--interpolation', nargs='+', metavar='FILTER',
        help='that resizes them (area); further ones are compared with the first',
    )  # fmt: skip
    parser.add_argument(
        '--report', type=output_folder, help='folder of the report (OUT without suffix + _images)'
    )
    args = parser.parse_args()
    if args.check_images is None and (
        args.tokens or args.classes or args.report or args.interpolation
    ):
        parser.error('--tokens, --classes, --interpolation and --report go with --check-images')
    if args.check_images is not None and args.to:
        parser.error('--check-images shows what our own file does: leave out --to')
    if args.check_images is None and args.out is None:
        parser.error('OUT is missing: give a name that ends in .safetensors')
    if args.out is None and (args.source.startswith(HUB) or args.family != 'auto' or args.prefix):
        parser.error('without OUT, SOURCE is a file that was converted before: give OUT')
    if args.out is not None:
        try:
            check_output(args.out, folder=args.to == 'hf')
        except ValueError as error:
            parser.error(f'OUT {error}')
    return args


def work(args: argparse.Namespace) -> None:
    """Convert, and check by pictures where that is asked for; wrong ones are told beforehand."""
    if args.check_images is None:
        return convert(args)
    from navit_backbone.tools import check_images as images

    check = images.Check.of(
        args.check_images,
        tokens=args.tokens or images.TOKENS,
        classes=args.classes or images.CLASSES,
        filters=args.interpolation or [images.DEFAULT_FILTER],
    )
    if args.out is not None:
        convert(args)
    check.run(args.out or Path(args.source), args.report)


def convert(args: argparse.Namespace) -> None:
    """Read, check, write, and say what became of every tensor."""
    local = not args.source.startswith(HUB)
    if local and args.out.exists() and any(map(args.out.samefile, find_source(args.source).files)):
        raise ValueError(f'{args.out} is the source itself: give another name')
    if args.out.resolve() in Path(args.source).resolve().parents:
        raise ValueError(f'{args.out} holds the source: give another name')
    if args.to:  # before what may take long
        check_place(args.to, args.out, overwrite=args.overwrite)
    else:
        check_target(args.out, overwrite=args.overwrite)
    weights = read_weights(
        args.source,
        family=args.family,
        prefix=args.prefix,
        num_heads=args.num_heads,
        progress=show_progress,
    )
    print(f'{args.source}: of the family {weights.family}, {weights.told}')
    if args.to:
        options = dict(overwrite=args.overwrite, progress=show_progress)
        print(write_for(args.to, args.out, weights, **options))
        return
    report = save_navit(args.out, weights, overwrite=args.overwrite, progress=show_progress)
    print(report)
    arch, table = weights.arch, weights.position
    print(
        f'  computes: {arch["norm"]} with eps {arch["norm_eps"]}, {arch["mlp"]}, position {table}'
    )
    print(f'  input: mean {weights.input_mean}, std {weights.input_std} of RGB in [0, 1]')
    width, shapes = weights.arch['embed_dims'], weights.patch_shapes
    sides = ' and '.join('x'.join(map(str, shape)) for shape in shapes)
    start = f"dict(type='Pretrained', checkpoint={str(args.out)!r})"
    print(f'  maps of {width} channels, patches of {sides} (t x h x w)')
    print(f"Use it, in model=dict(...):\n  backbone=dict(type='NaViTBackbone', init_cfg={start}),")
    if weights.input_mean and weights.input_std:
        mean, std = ([round(255 * item, 3) for item in row]
                     for row in (weights.input_mean, weights.input_std))  # fmt: skip
        print(f'  data_preprocessor=dict(mean={mean}, std={std}, bgr_to_rgb=True),')


def show_progress(what: str, done: int, total: int) -> None:
    """One line on stderr that is overwritten, of files that take long."""
    if total >= LONG:
        text = f'{what}: {done / 2**20:,.0f} of {total / 2**20:,.0f} MiB'
        print(f'\r{text:<60}', end='\n' if done == total else '', file=sys.stderr, flush=True)


def main() -> None:
    """Run; a user's mistake ends with a sentence, not a traceback."""
    args = parse_args()
    run(lambda: work(args))


if __name__ == '__main__':
    main()
