"""Find objects in pictures, label their pixels, or classify pictures and videos.

    python tools/predict.py CONFIG CHECKPOINT INPUT... --out-dir DIR
    python tools/predict.py MODEL.safetensors INPUT... --out-dir DIR

MODEL is a file of tools/publish.py, which is all that is needed. INPUT is a picture or a folder,
which is searched with all folders in it. DIR gets each picture with what was found drawn on it, at
its own size, and predictions.json, whose images and categories have numbers of its own, listed with
their file names and class names. Of a detector it has all objects in COCO's form: boxes as [x, y,
width, height] in the pictures' own pixels, masks as run-length codes. Of a segmentor it has the
share of each class, and DIR/labels/ the class of each pixel as a PNG of one channel. A classifier
takes videos too, and folders of frames where its test data is of kind='frames': DIR gets each with
the best classes under its frames, and predictions.json the score of every class. Exit status 3:
some were skipped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import torch
from mmengine.config import Config
from mmengine.device import get_device
from rich.progress import track

from navit_backbone.tasks.common.classes import override
from navit_backbone.tasks.common.folders import find_files, find_folders, visible
from navit_backbone.tasks.common.picture_sizes import PICTURE_SUFFIXES
from navit_backbone.tasks.common.published import check_names, config_of, is_published
from navit_backbone.tools.command_line import (
    add_config_arguments,
    check_options,
    enter_task,
    mistake,
    read_config,
    run,
    task_of,
)
from navit_backbone.tools.predict_output import tools_for

if TYPE_CHECKING:
    from navit_backbone.tasks.common.inference import Predictor

# What loading raises on a file that is broken or no picture.
_KEPT = ('.jpg', '.jpeg', '.png', '.mp4')  # suffixes that what is drawn keeps
UNREADABLE = (OSError, cv2.error, AssertionError, AttributeError, ValueError, SyntaxError)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage='%(prog)s (CONFIG CHECKPOINT | MODEL.safetensors) INPUT... --out-dir DIR [...]',
    )
    add_config_arguments(parser)
    parser.add_argument(
        'inputs', type=Path, nargs='+', metavar='INPUT', help='after CONFIG: the checkpoint first'
    )
    parser.add_argument('--out-dir', type=Path, required=True, help='made where it is missing')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='draw objects from this score on (0.3)'
    )
    parser.add_argument('--device', type=_device, default=get_device(), help='(%(default)s)')
    args = parser.parse_args()
    args.checkpoint = args.config if is_published(args.config) else args.inputs.pop(0)
    if not args.inputs:
        parser.error('no INPUT: give CONFIG CHECKPOINT INPUT..., or MODEL.safetensors INPUT...')
    return args


def _device(text: str) -> str:
    try:
        torch.empty(1, device=text)
    except (RuntimeError, AssertionError) as error:
        told = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(
            f'{text!r} cannot be used here ({told}): leave it out for {get_device()}'
        ) from error
    return text


def predict(args: argparse.Namespace) -> int:
    """Predict picture by picture; 3 where some were skipped."""
    check_there(args.checkpoint)
    cfg = config_for(args)
    model_side, output_side = tools_for(task_of(cfg, args.config))
    frames = cfg.test_dataloader.dataset.get('kind') == 'frames'
    files = find_inputs(args.inputs, args.out_dir, model_side.suffixes, frames=frames)
    predictor = model_side(cfg, args.checkpoint, device=args.device)
    args.out_dir.mkdir(parents=True, exist_ok=True)
    output = output_side(args.out_dir, predictor, args.score_thr)
    entries: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    for file, target in track(files.items(), description='predicting'):
        try:
            told, image, found = look(predictor, file)
        except SkippedError as error:
            skipped.append({'file_name': str(file), 'reason': str(error)})
            continue
        entry = {'id': len(entries) + 1, 'file_name': str(file), **told}
        output.write(image, found, entry, target)
        entries.append(entry)
    content = {
        'config': str(args.config),
        'checkpoint': str(args.checkpoint),
        'categories': [{'id': i, 'name': name} for i, name in enumerate(predictor.classes)],
        predictor.listed: entries,
        **output.content,
        'skipped': skipped,
    }
    status = report(content, len(entries), args.out_dir)
    print(output.summary())
    return status


def check_there(checkpoint: Path) -> None:
    """Raise where no file is at `checkpoint`: tools/publish.py adds digits to names."""
    if checkpoint.is_file():
        return
    near = sorted(checkpoint.parent.glob(f'{checkpoint.stem}-*{checkpoint.suffix}'))
    way = f'did you mean {near[0]}?' if near else 'give a file of a work dir'
    raise ValueError(f'no checkpoint at {checkpoint}: {way}')


def config_for(args: argparse.Namespace) -> Config:
    """The config that was given, or the one inside the published model."""
    published = is_published(args.config)
    cfg = config_of(args.config) if published else read_config(args.config, args.cfg_options)
    enter_task(cfg, args.config)
    if published:
        check_names(cfg)
        check_options(cfg, args.cfg_options)
        override(cfg, args.cfg_options)
    return cfg


class SkippedError(ValueError):
    """Why a picture is left out, to follow its name; the others are predicted nevertheless."""


def look(predictor: Predictor, file: Path) -> tuple[dict[str, Any], Any, Any]:
    """What is to be said of a file, what is drawn on, and what is found in it."""
    try:
        results = predictor.read(file)
    except UNREADABLE as error:
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise SkippedError(f'cannot be read ({reason})') from error
    told, image = predictor.describe(results), predictor.shown(results)
    try:
        return told, image, predictor.find(results)
    except ValueError as error:  # as of a picture too long for the positions
        if (reason := mistake(error)) is None:
            raise
        raise SkippedError(f'does not fit the model ({reason})') from error


def find_inputs(
    inputs: list[Path], out_dir: Path, suffixes: Sequence[str], *, frames: bool = False
) -> dict[Path, Path]:
    """Every file of the inputs, once, and where in `out_dir` it is drawn; two never meet.

    With `frames` a folder of pictures is a clip too, and goes before the pictures in it.
    """
    files: dict[Path, Path] = {}
    for item in inputs:
        if frames and (clips := folders_of_frames(item, out_dir)):
            top = Path(item.resolve().name)
            files |= {clip: top / clip.relative_to(item) for clip in clips}
        elif item.is_dir():
            found = find_files(item, suffixes)
            found = [file for file in found if out_dir.resolve() not in file.resolve().parents]
            if not found:
                raise ValueError(f'no pictures in {item}: looked for {" ".join(suffixes)}')
            files |= {file: file.relative_to(item) for file in found}
        elif item.is_file():
            files[item] = Path(item.name)
        else:
            raise ValueError(f'no file or folder at {item}')
    taken: set[Path] = set()
    for file, target in files.items():
        if target.suffix.lower() not in _KEPT:
            other = '.png' if target.suffix.lower() in PICTURE_SUFFIXES else '.mp4'
            target = target.with_name(f'{target.name}{other}')
        number, stem = 1, target.stem
        while target in taken:
            number += 1
            target = target.with_stem(f'{stem}_{number}')
        taken.add(target)
        files[file] = target
    originals = {file.resolve() for file in files}
    for file, target in files.items():
        if (out_dir / target).resolve() in originals:
            raise ValueError(
                f'--out-dir {out_dir} holds {file}, which the drawing would take the place of: '
                'set another folder'
            )
    return files


def folders_of_frames(item: Path, out_dir: Path) -> list[Path]:
    """A folder that holds pictures, and those within it that do, but for what was drawn before."""
    if not item.is_dir():
        return []
    drawn = out_dir.resolve()
    return [
        folder
        for folder in find_folders(item)
        if drawn not in (folder.resolve(), *folder.resolve().parents)
        and any(file.suffix.lower() in PICTURE_SUFFIXES for file in visible(folder))
    ]


def report(content: dict[str, Any], count: int, out_dir: Path) -> int:
    """Write predictions.json, say what is where, and give the exit status."""
    out = out_dir / 'predictions.json'
    out.write_text(json.dumps(content, indent=1) + '\n')
    skipped = content['skipped']
    drawn = (
        f'{count} {"clip" if "clips" in content else "picture"}{"" if count == 1 else "s"} drawn'
    )
    print(f'{drawn} in {out_dir}; all that was found in {out}')
    for item in skipped:
        print(f'skipped: {item["file_name"]} {item["reason"]}', file=sys.stderr)
    return 3 if skipped else 0


def main() -> None:
    """Run; a user's mistake ends with a sentence, not a traceback."""
    args = parse_args()
    run(lambda: predict(args), args.config)


if __name__ == '__main__':
    main()
