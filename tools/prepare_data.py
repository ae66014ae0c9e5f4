"""Prepare a data set.

    python tools/prepare_data.py sample --out data/sample

`sample` draws a detection and segmentation set on the spot: nothing is downloaded.
"""

from __future__ import annotations

import argparse
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


def parse_args() -> argparse.Namespace:
    """The command line: one sub-command per data set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar='DATA_SET')
    command = commands.add_parser('sample', help='draw a sample set', description=sample.__doc__)
    command.add_argument('--out', type=Path, default=Path('data/sample'), help='(data/sample)')
    command.add_argument('--seed', type=_count, default=0, help='another set for each (0)')
    command.add_argument('--train', type=_count, default=320, help='drawings to train on (320)')
    command.add_argument('--val', type=_count, default=40, help='drawings held out (40)')
    command.set_defaults(run=sample)
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
