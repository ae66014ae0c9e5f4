"""Prepare a data set.

    python tools/prepare_data.py sample --out data/sample
    python tools/prepare_data.py split ANNOTATIONS.json --out data/mine/annotations
    python tools/prepare_data.py split PICTURES/ --out data/mine
    python tools/prepare_data.py masks COLOURED/ --colours COLOURS.txt --out data/mine/masks
    python tools/prepare_data.py depth IMAGES/ --out data/mine/images_8bit
    python tools/prepare_data.py motions [TRAIN_PICTURES/ VAL_PICTURES/] --out data/motions
    python tools/prepare_data.py folds LIST.csv --by COLUMN --out FOLDS.csv
    python tools/prepare_data.py cityscapes | coco-stuff | pascal-context | ade20k ROOT

`sample` draws a detection and segmentation set on the spot: nothing is downloaded. `split` makes
two of one annotation file in COCO's format, or lists the pictures of a folder in train.txt and
val.txt: to train on, and held out; copies of an image, exact or near, and images of one group
(`group` of an image in the file, or groups.csv with the columns file and group) stay on one side.
`masks` turns label maps in colours into class numbers. `depth` stretches images of 16 bits, of
which fewer are used, to 8 bits. `motions` cuts clips from still pictures, or from drawings, whose
class is how they move. `folds` adds a column of folds to a list, groups such as those of one camera
kept whole. The rest bring the label maps of public data sets, once unpacked, to where the configs
look for them; what is there already is kept, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from navit_backbone.file_writing import written_whole
from navit_backbone.tasks.common.sample_set import write_sample_set
from navit_backbone.tasks.common.text_files import Table, read_lines, refuse_other_names, write_new
from navit_backbone.tasks.common.wording import counted
from navit_backbone.tools.command_line import expanded_path, output_file, output_folder, run


def sample(args: argparse.Namespace) -> None:
    """Coloured shapes of varied sizes and aspects, with boxes, instance masks and index masks."""
    counts = dict(train=args.train, val=args.val)
    if write_sample_set(args.out, seed=args.seed, num_pictures=counts):
        print(f'{args.train} train and {args.val} val drawings in {args.out}')
    else:
        print(f'{args.out} holds this set already')


def split(args: argparse.Namespace) -> None:
    """Two files of one: about a share of the pictures held out, and of those of each class too."""
    if args.annotations.is_dir():
        return split_folder(args)
    if not args.annotations.exists():
        raise ValueError(f'no file or folder at {args.annotations}: give a COCO JSON, or pictures')
    # imported here: what a task needs is not there in every set-up
    from navit_backbone.tasks.detection.split_set import default_images, split_annotations

    images = args.images or default_images(args.annotations)
    if args.images and not images.is_dir():
        raise ValueError(f'--images {images}: there is no such folder')
    if not images.is_dir():
        print('copies of images are found by file name alone: --images FOLDER compares the files')
    parts = split_annotations(
        args.annotations,
        args.out,
        share=args.val,
        seed=args.seed,
        images=images,
    )
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


def split_folder(args: argparse.Namespace) -> None:
    """train.txt and val.txt: the names of a folder's pictures, a share of them held out."""
    from navit_backbone.tasks.common.duplicates import first_copies
    from navit_backbone.tasks.common.folds import hold_out
    from navit_backbone.tasks.common.groups import listed_groups
    from navit_backbone.tasks.segmentation.data import pictures_in

    pictures = pictures_in(str(args.annotations))
    names = list(pictures)
    if len(names) < 2:
        raise ValueError(
            f'{args.annotations} has {counted(len(names), "image")}: two or more can be split'
        )
    if not 0 < args.val < 1:
        raise ValueError(f'--val {args.val}: the share held out must lie between 0 and 1')
    files = list(map(str, pictures.values()))
    folder = args.annotations.absolute()
    groups = listed_groups(files, [folder, folder.parent, args.out])
    first = first_copies(files, groups=groups)  # copies of an image go where the first goes
    if len({*first}) < 2:
        raise ValueError(
            f'{args.annotations}: its {len(names)} images are all the same, or of one group: they '
            'cannot be split'
        )
    held = hold_out(first, share=args.val, seed=args.seed)
    held_out = {name for name, chosen in zip(names, held, strict=True) if chosen}
    args.out.mkdir(parents=True, exist_ok=True)
    for part in ('train', 'val'):
        file = args.out / f'{part}.txt'
        listed = [name for name in names if (name in held_out) == (part == 'val')]
        write_new(file, listed)
        print(f'{file}: {len(listed)} pictures')


def masks(args: argparse.Namespace) -> None:
    """Label maps in colours as class numbers, and classes.txt beside them.

    A line of COLOURS.txt, or an argument in its place, is `R G B NAME` or `#RRGGBB NAME`; the
    classes are numbered in the order of the lines, and pixels of a colour named `ignored` are left
    out. Masks of 0 and 255: --colours '0 0 0 background' '255 255 255 thing'.
    """
    from navit_backbone.tasks.segmentation.conversion import coloured, read_colours

    colours, names = read_colours(*_colour_lines(args.colours))
    class_file = args.out.parent / 'classes.txt'
    if not args.overwrite:
        refuse_other_names(class_file, names)
    written = coloured(args.folder, args.out, colours, overwrite=args.overwrite)
    write_new(class_file, names, overwrite=args.overwrite)
    print(f'{written} label maps written to {args.out}, {len(names)} classes to {class_file}')


def _colour_lines(given: list[str]) -> tuple[list[str], str]:
    """Return the lines of colours, of a file or of the command line, and where they stand."""
    file = Path(given[0]).expanduser()
    if len(given) > 1 or (len(given[0].split()) > 1 and not file.exists()):
        return given, '--colours'
    if not file.is_file():
        raise ValueError(f'no file of colours at {file}: write R G B NAME there, one a line')
    return read_lines(file), str(file)


def depth(args: argparse.Namespace) -> int:
    """Write images of 16 bits as 8 bits that use the whole range; all other images are copied.

    The brightest value is what a file states (sBIT of PNG, MaxSampleValue of TIFF), else that of
    the fewest bits that hold all images, else --largest. Files that cannot be read are skipped and
    listed; the exit status is then 3.
    """
    from navit_backbone.tasks.common.bit_depth import stretch_folder

    written, skipped = stretch_folder(args.folder, args.out, largest=args.largest)
    for file, reason in skipped.items():
        print(f'skipped: {file} cannot be read ({reason})', file=sys.stderr)
    total = written + len(skipped)
    if not written:
        raise ValueError(f'none of the {total} images in {args.folder} can be read')
    print(f'{written} of {total} images written to {args.out}')
    return 3 if skipped else 0


def motions(args: argparse.Namespace) -> None:
    """Clips that differ in their motion alone: left, right, up, down, in, out, clockwise and back.

    Cut from the pictures of two folders, or from drawings where none are given.
    """
    from navit_backbone.tasks.common.drawings import draw
    from navit_backbone.tasks.common.video_reader import frame_files, read_picture
    from navit_backbone.tasks.video.motions import write_motions

    if args.pictures and len(args.pictures) != 2:
        raise ValueError(f'{len(args.pictures)} folders: give two, to train on and held out')
    files = {}
    for split, folder in zip(('train', 'val'), args.pictures, strict=False):
        files[split] = frame_files(str(folder))
        if not files[split]:
            raise ValueError(f'no pictures in {folder}')

    def picture(split: str, number: int) -> tuple[str, np.ndarray]:
        if files:
            file = files[split][number % len(files[split])]
            return f'{split}/{Path(file).name}', read_picture(file)
        drawing = draw(args.seed, split, number).image[..., ::-1]
        return f'{split} drawing {number}', np.ascontiguousarray(drawing)

    counts = dict(train=args.train, val=args.val)
    if write_motions(picture, args.out, num_clips=counts, frames=args.frames, seed=args.seed):
        print(f'{args.train} train and {args.val} val clips in {args.out}')
    else:
        print(f'{args.out} holds this set already')


def folds(args: argparse.Namespace) -> None:
    """A column `fold` for a list of clips: the rows of one group, by a column, in one fold.

    A row whose group is empty is a group of its own.
    """
    from navit_backbone.tasks.common.folds import grouped_folds

    table = Table(args.list)
    if missing := [name for name in dict.fromkeys(['label', args.by]) if name not in table.columns]:
        raise ValueError(
            f'{args.list}: has no column {" and no column ".join(missing)}, it has '
            f'{", ".join(table.columns) or "none"}: a list needs label and the column of --by'
        )
    if 'fold' in table.columns:
        raise ValueError(
            f'{args.list}: has a column fold already. Fix: rename or remove it, or give the list '
            'without folds'
        )
    rows = [row for _, row in table]
    if not rows:
        raise ValueError(f'{args.list}: has no rows under its header: list the clips there')
    found = grouped_folds([r['label'] for r in rows], [r[args.by] for r in rows], args.folds)
    if args.out.exists():
        raise ValueError(f'{args.out} is there already, and nothing is overwritten: set another')
    with (
        written_whole(args.out) as aside,
        aside.open('w', newline='', encoding='utf-8') as content,
    ):
        writer = csv.DictWriter(content, [*rows[0], 'fold'], lineterminator='\n')
        writer.writeheader()
        writer.writerows({**row, 'fold': fold} for row, fold in zip(rows, found, strict=True))
    for fold in range(args.folds):
        counts = Counter(r['label'] for r, f in zip(rows, found, strict=True) if f == fold)
        print(f'fold {fold}: ' + ', '.join(f'{counts[name]} {name}' for name in sorted(counts)))


def public(args: argparse.Namespace) -> None:
    """Bring a public data set's label maps to where the configs look for them."""
    from navit_backbone.tasks.segmentation import conversion

    if args.what == 'cityscapes':
        written = conversion.cityscapes(args.root)
    elif args.what == 'coco-stuff':
        written = conversion.coco_stuff(args.root)
    elif args.what == 'pascal-context':
        written = conversion.pascal_context(args.root, args.labels)
    else:
        conversion.check_ade20k(args.root)
        written = 0
    print(f'{written} label maps written; {args.root} is ready')


PUBLIC = {
    'ade20k': 'ade/ADEChallengeData2016, of ADEChallengeData2016.zip: looked through',
    'cityscapes': 'cityscapes, of leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip',
    'coco-stuff': 'coco_stuff164k, of COCO 2017 and stuffthingmaps_trainval2017.zip',
    'pascal-context': 'VOCdevkit/VOC2010, of VOC2010 and trainval.tar.gz of Pascal Context',
}


def parse_args() -> argparse.Namespace:
    """The command line: one sub-command for each thing to do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar='WHAT')
    command = commands.add_parser('sample', help='draw a sample set', description=sample.__doc__)
    command.add_argument('--out', type=output_folder, default='data/sample', help='(data/sample)')
    command.add_argument('--seed', type=_count, default=0, help='another set for each (0)')
    command.add_argument('--train', type=_count, default=320, help='drawings to train on (320)')
    command.add_argument('--val', type=_count, default=40, help='drawings held out (40)')
    command.set_defaults(run=sample)
    command = commands.add_parser('split', help='hold pictures out', description=split.__doc__)
    command.add_argument('annotations', type=expanded_path, metavar='ANNOTATIONS.json | PICTURES/')
    command.add_argument(
        '--out', type=output_folder, required=True, help='the folder of the two files'
    )
    command.add_argument('--val', type=float, default=0.2, help='the share held out (0.2)')
    command.add_argument('--seed', type=_count, default=0, help='another split for each (0)')
    command.add_argument(
        '--images',
        type=expanded_path,
        metavar='FOLDER',
        help='the images of ANNOTATIONS.json: copies are put on one side (../images beside it)',
    )
    command.set_defaults(run=split)
    command = commands.add_parser('masks', help='colours to classes', description=masks.__doc__)
    command.add_argument('folder', type=expanded_path, metavar='COLOURED/')
    command.add_argument(
        '--colours',
        type=os.path.expanduser,
        nargs='+',
        required=True,
        metavar='COLOURS.txt | LINE',
        help='a file of lines R G B NAME or #RRGGBB NAME, or these lines themselves',
    )
    command.add_argument(
        '--out', type=output_folder, required=True, help='the folder of the label maps'
    )
    command.add_argument(
        '--overwrite', action='store_true', help='write over label maps and classes.txt'
    )
    command.set_defaults(run=masks)
    command = commands.add_parser('depth', help='16 bits to 8', description=depth.__doc__)
    command.add_argument('folder', type=expanded_path, metavar='IMAGES/')
    command.add_argument(
        '--out', type=output_folder, required=True, help='the folder of the new images'
    )
    command.add_argument('--largest', type=_positive, help='the value that becomes 255, as 4095')
    command.set_defaults(run=depth)
    command = commands.add_parser('motions', help='clips by motion', description=motions.__doc__)
    command.add_argument('pictures', type=expanded_path, nargs='*', metavar='TRAIN/ VAL/')
    command.add_argument('--out', type=output_folder, default='data/motions', help='(data/motions)')
    command.add_argument('--seed', type=_count, default=0, help='another set for each (0)')
    command.add_argument('--train', type=_count, default=320, help='clips to train on (320)')
    command.add_argument('--val', type=_count, default=80, help='clips held out (80)')
    command.add_argument('--frames', type=_positive, default=16, help='of a clip (16)')
    command.set_defaults(run=motions)
    command = commands.add_parser('folds', help='folds of a list', description=folds.__doc__)
    command.add_argument('list', type=expanded_path, metavar='LIST.csv')
    command.add_argument('--by', required=True, help='the column whose groups stay whole')
    command.add_argument('--folds', type=_count, default=5, help='(5)')
    command.add_argument('--out', type=output_file, required=True, metavar='FOLDS.csv')
    command.set_defaults(run=folds)
    for what, content in PUBLIC.items():
        command = commands.add_parser(what, help=content, description=public.__doc__)
        command.add_argument('root', type=expanded_path, metavar='ROOT', help=content)
        if what == 'pascal-context':
            command.add_argument(
                '--labels', type=expanded_path, required=True, help='its .mat files'
            )
        command.set_defaults(run=public, what=what)
    return parser.parse_args()


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number of 0 or more')
    return int(text)


def _positive(text: str) -> int:
    if not (number := _count(text)):
        raise argparse.ArgumentTypeError('0 is not 1 or more')
    return number


def main() -> None:
    """Run; a user's mistake ends with a sentence, not a traceback."""
    args = parse_args()
    run(lambda: args.run(args))


if __name__ == '__main__':
    main()
