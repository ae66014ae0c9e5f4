"""Prepare a data set.

    python tools/prepare_data.py sample --out data/sample
    python tools/prepare_data.py split ANNOTATIONS.json --out data/mine/annotations

`sample` draws a detection and segmentation set on the spot: nothing is downloaded. `split` makes
two of one annotation file in COCO's format: to train on, and held out.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from navit_backbone.tasks.common.sample_set import write_sample_set
from navit_backbone.tools.command_line import run


def sample(args: argparse.Namespace) -> None:
    """Coloured shapes of varied sizes and aspects, with boxes, instance masks and index masks."""
    counts = dict(train=args.train, val=args.val)
    if write_sample_set(args.out, seed=args.seed, num_pictures=counts):
        print(f'{args.train} train and {args.val} val drawings in {args.out}')
    else:
        print(f'{args.out} holds this set already')


def split(args: argparse.Namespace) -> None:
    """Two files of one: about a share of the pictures held out, and of those of each class too."""
    # imported here: what detection needs is not there in every set-up
    from navit_backbone.tasks.detection.split_set import split_annotations

    parts = split_annotations(args.annotations, args.out, share=args.val, seed=args.seed)
    counts = {
        name: Counter(item['category_id'] for item in part['annotations'])
        for name, part in parts.items()
    }
    print(f'{"":<24}{"train":>8}{"val":>8}')
    print(f'{"pictures":<24}' + ''.join(f'{len(part["images"]):>8}' for part in parts.values()))
    for item in parts['train']['categories']:
        boxes = ''.join(f'{counts[name][item["id"]]:>8}' for name in parts)
        print(f'{"boxes of " + item["name"]:<24}{boxes}')
    print(f'written to {args.out}')


def parse_args() -> argparse.Namespace:
    """The command line: one sub-command for each thing to do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar='WHAT')
    command = commands.add_parser('sample', help='draw a sample set', description=sample.__doc__)
    command.add_argument('--out', type=Path, default=Path('data/sample'), help='(data/sample)')
    command.add_argument('--seed', type=_count, default=0, help='another set for each (0)')
    command.add_argument('--train', type=_count, default=320, help='drawings to train on (320)')
    command.add_argument('--val', type=_count, default=40, help='drawings held out (40)')
    command.set_defaults(run=sample)
    command = commands.add_parser('split', help='hold pictures out', description=split.__doc__)
    command.add_argument('annotations', type=Path, metavar='ANNOTATIONS.json')
    command.add_argument('--out', type=Path, required=True, help='the folder of the two files')
    command.add_argument('--val', type=float, default=0.2, help='the share held out (0.2)')
    command.add_argument('--seed', type=_count, default=0, help='another split for each (0)')
    command.set_defaults(run=split)
    return parser.parse_args()


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number of 0 or more')
    return int(text)


def main() -> None:
    """Run; a user's mistake ends with a sentence, not a traceback."""
    args = parse_args()
    run(lambda: args.run(args))


if __name__ == '__main__':
    main()
