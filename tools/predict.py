"""Find objects in images, label their pixels, or classify images and videos.

    python tools/predict.py CONFIG CHECKPOINT INPUT... --out-dir DIR
    python tools/predict.py MODEL.safetensors INPUT... --out-dir DIR

MODEL is a file of tools/publish.py, which is all that is needed. INPUT is an image or a folder,
which is searched with all folders in it. DIR gets each image with what was found drawn on it, at
its own size, and predictions.json, whose images and categories have numbers of its own, listed with
their file names and class names. A detector gives all objects in COCO's form: boxes as [x, y,
width, height] in the images' own pixels, masks as run-length codes. A segmentor gives the share of
each class, and DIR/labels/ the class of each pixel as a PNG of one channel. A classifier takes
videos too, and folders of frames where its test data is of kind='frames': DIR gets each with the
best classes under its frames, and predictions.json the score of every class.

Results are kept from the first input on: DIR/predictions.jsonl has a line for each while predict
runs, and becomes predictions.json at the end, after Ctrl-C and SIGTERM too. An input that cannot be
read, predicted, drawn or written costs that input alone; all such are listed at the end.

Exit status: 0 all inputs were predicted and drawn, 1 nothing was begun or predictions.json cannot
be written, 2 wrong arguments, 3 some inputs were skipped or not drawn, 130 stopped by Ctrl-C, 143
by SIGTERM.

A run that is killed at once (SIGKILL, no power) leaves predictions.jsonl. The next run into DIR
renames it to predictions_killed_1.jsonl, and says so; predictions.json and drawings are replaced.
"""

from __future__ import annotations

import argparse
import math
import mimetypes
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.config import Config
from mmengine.device import get_device
from rich.progress import track

from navit_backbone.tasks.common.bit_depth import darkness_of, sample_images
from navit_backbone.tasks.common.dataset import DECODER_ERRORS, LOADER_ERRORS
from navit_backbone.tasks.common.file_formats import describe_damage, describe_format
from navit_backbone.tasks.common.folders import find_files, find_folders, search, visible
from navit_backbone.tasks.common.output_files import OutputNames
from navit_backbone.tasks.common.picture_sizes import PICTURE_SUFFIXES
from navit_backbone.tasks.common.published import check_names, config_of, is_published
from navit_backbone.tasks.common.sample import UnreadableVideoError
from navit_backbone.tools.command_line import (
    add_config_arguments,
    apply_options,
    enter_task,
    mistake,
    output_folder,
    read_config,
    require_parts,
    run,
    task_of,
    usable_device,
)
from navit_backbone.tools.predict_output import label_map_of, tools_for
from navit_backbone.tools.predict_results import Results

if TYPE_CHECKING:
    from navit_backbone.tasks.common.inference import Predictor

_LISTS = ('.json', '.jsonl', '.txt', '.csv', '.tsv', '.xml', '.yaml', '.yml')


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage='%(prog)s (CONFIG CHECKPOINT | MODEL.safetensors) INPUT... --out-dir DIR [...]',
    )
    add_config_arguments(parser)
    parser.add_argument(
        'inputs',
        type=os.path.expanduser,
        nargs='+',
        metavar='INPUT',
        help='after CONFIG: the checkpoint first',
    )
    parser.add_argument(
        '--out-dir', type=output_folder, required=True, help='made where it is missing'
    )
    parser.add_argument(
        '--score-thr', type=_score, default=0.3, help='draw objects from this score, 0 to 1 (0.3)'
    )
    parser.add_argument('--device', type=usable_device, default=get_device(), help='(%(default)s)')
    args = parser.parse_args()
    args.checkpoint = args.config if is_published(args.config) else Path(args.inputs.pop(0))
    if not args.inputs:
        parser.error('no INPUT: give CONFIG CHECKPOINT INPUT..., or MODEL.safetensors INPUT...')
    return args


def _score(text: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not 0 <= score <= 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a score: give a number from 0 to 1')
    return score


def predict(args: argparse.Namespace) -> int:
    """Predict input by input; return the exit status."""
    check_there(args.checkpoint)
    cfg = config_for(args)
    model_side, output_side = tools_for(task_of(cfg, args.config))
    frames = cfg.test_dataloader.dataset.get('kind') == 'frames'
    files = find_inputs(args.inputs, args.out_dir, model_side.suffixes, frames=frames)
    if dark := darkness_of(sample_images(list(files))):
        print(dark, file=sys.stderr)
    predictor = model_side(cfg, args.checkpoint, device=args.device)
    output = output_side(args.out_dir, predictor, args.score_thr)
    header = {
        'config': str(args.config),
        'checkpoint': str(args.checkpoint),
        'categories': [{'id': i, 'name': name} for i, name in enumerate(predictor.classes)],
        'inputs': len(files),
    }
    results = Results(args.out_dir, header, (predictor.listed, *output.lists))
    if results.kept:
        print(f'results of an earlier run that was killed are kept in {results.kept}')
    stopped_by = None
    try:
        with stop_signals():
            for file, target in track(files.items(), description='predicting'):
                predict_one(predictor, output, results, file, target)
    except StoppedError as stop:
        stopped_by = stop.number
    status = report(results, args.out_dir, len(files), stopped_by)
    print(output.summary())
    return status


def predict_one(
    predictor: Predictor, output: Any, results: Results, file: Path, target: Path
) -> None:
    """Predict one input, keep what is found, then draw it; list what fails, and why."""
    try:
        described, image, found = look(predictor, file)
        more, rows = output.entry(found, target)
        entry = {'file_name': str(file), **described, **more}
        results.add(entry, rows)
    except SkippedError as error:
        results.fail('skipped', file, str(error), error.unexpected)
        return
    except OSError as error:
        results.fail('skipped', file, f'has a result that cannot be written ({error})')
        return
    try:
        output.draw(image, found, entry, target)
    except Exception as error:
        reason, unexpected = reason_of(error)
        results.fail('not_drawn', file, f'was predicted, but not drawn ({reason})', unexpected)


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
    require_parts(cfg, args.config, 'model', 'test_dataloader')
    enter_task(cfg, args.config)
    if published:
        check_names(cfg)
        apply_options(cfg, args.cfg_options)
    return cfg


class SkippedError(ValueError):
    """Why an input is left out, to follow its name; the others are predicted nevertheless.

    `unexpected` is an error behind it that may be one of the code.
    """

    def __init__(self, reason: str, unexpected: Exception | None = None) -> None:
        super().__init__(reason)
        self.unexpected = unexpected


def look(predictor: Predictor, file: Path) -> tuple[dict[str, Any], Any, Any]:
    """Return what predictions.json says of a file, what is drawn on, and what is found in it.

    Raise SkippedError for any failure: one input never ends a run.
    """
    try:
        results = predictor.read(file)
    except Exception as error:
        reason, unexpected = reason_of(error)
        if isinstance(error, LOADER_ERRORS):
            reason, unexpected = ' '.join(str(error).split()) or type(error).__name__, None
        if isinstance(error, DECODER_ERRORS) and file.is_file() and not _is_video(file):
            reason = describe_damage(str(file))
        if known := describe_format(str(file)):
            reason, unexpected = known, None
        raise SkippedError(f'cannot be read ({reason})', unexpected) from error
    try:
        return predictor.describe(results), predictor.shown(results), predictor.find(results)
    except Exception as error:  # as of an image too long for the positions
        reason, unexpected = reason_of(error)
        what = 'cannot be predicted' if unexpected else 'does not fit the model'
        if isinstance(error, UnreadableVideoError):  # damaged behind its first frame
            what = 'cannot be read'
        raise SkippedError(f'{what} ({reason})', unexpected) from error


def reason_of(error: Exception) -> tuple[str, Exception | None]:
    """Return a line on an error, and the error again where it may be one of the code."""
    reason = mistake(error)
    if reason is None and not isinstance(error, MemoryError):
        return f'{type(error).__name__}: {" ".join(str(error).split())}', error
    return ' '.join((reason or f'no memory left {error}').split()), None


class StoppedError(BaseException):
    """A signal that asks predict to stop, between any two lines of Python."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stop_signals() -> Iterator[None]:
    """Raise StoppedError on Ctrl-C and SIGTERM within the block."""

    def stop(number: int, _: Any) -> None:
        raise StoppedError(number)

    if threading.current_thread() is not threading.main_thread():  # only that one may
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def find_inputs(
    inputs: list[str], out_dir: Path, suffixes: Sequence[str], *, frames: bool = False
) -> dict[Path, Path]:
    """Return every file of the inputs, once, and where in `out_dir` it is drawn; two never meet.

    Spellings of one path, as a.jpg and ./a.jpg, are one input; links to other names are not. With
    `frames` a folder of images is a clip too, and goes before the images in it.
    """
    files: dict[Path, Path] = {}
    for item in (existing_input(text, suffixes) for text in inputs):
        if frames and (clips := folders_of_frames(item, out_dir)):
            top = Path(item.resolve().name)
            files |= {clip: top / clip.relative_to(item) for clip in clips}
        elif item.is_dir():
            within = find_files(item, suffixes)
            found = [file for file in within if not _is_below(file, out_dir)]
            if within and not found:
                raise ValueError(
                    f'--out-dir {out_dir} is or holds {item}, and what lies there is taken for '
                    'drawings: set another folder'
                )
            if not found:
                others = search(item, suffixes).others.values()
                videos = sum(_is_video(file) for listed in others for file in listed)
                there = f'; its {videos} videos need a classifier of clips' if videos else ''
                raise ValueError(f'no pictures in {item}: looked for {" ".join(suffixes)}{there}')
            files |= {file: file.relative_to(item) for file in found}
        else:
            files[item] = Path(item.name)
    first: dict[Path, Path] = {}
    for file in files:
        first.setdefault(_place(file), file)
    files = {file: files[file] for file in first.values()}
    clips = frames or any(_is_video(Path(f'clip{suffix}')) for suffix in suffixes)
    names = OutputNames(also=label_map_of, clips=clips)
    files = {file: names.assign(target) for file, target in files.items()}
    originals = {os.path.realpath(file) for file in files}
    for file, target in files.items():
        for written in (target, label_map_of(target)):
            if os.path.realpath(out_dir / written) in originals:
                raise ValueError(
                    f'--out-dir {out_dir} holds {file}, which the drawing would take the place '
                    'of: set another folder'
                )
    return files


def existing_input(text: str, suffixes: Sequence[str]) -> Path:
    """Return the path of an INPUT; raise ValueError, with the fix, for what is none."""
    path = Path(text)
    if path.is_dir():
        return path
    if path.is_file():
        if _is_video(path) and path.suffix.lower() not in suffixes:
            raise ValueError(
                f'{text} is a video, and this model takes images ({" ".join(suffixes)}): write its '
                f'frames with `mkdir frames; ffmpeg -i {shlex.quote(text)} frames/%06d.png` and '
                'give frames/'
            )
        if path.suffix.lower() in _LISTS:
            raise ValueError(
                f'{text} is a list or an annotation file: give the images themselves, or their '
                'folder'
            )
        return path
    if re.match('[a-zA-Z][a-zA-Z0-9+.-]+://', text):
        raise ValueError(
            f'{text} is a URL, and predict takes files and folders: download it first '
            f'(`curl -O {shlex.quote(text)}`) and give the file'
        )
    if matches := sorted(glob(text, recursive=True)):
        raise ValueError(
            f'{text} is a pattern, and predict takes files and folders: leave its quotes away, so '
            f'that the shell gives the {len(matches)} files that match it'
        )
    if text.isdecimal():
        raise ValueError(
            f'no file or folder at {text}; where it is the number of a camera, record its images '
            f'first (`ffmpeg -f v4l2 -i /dev/video{text} frames/%06d.png`) and give their folder'
        )
    raise ValueError(f'no file or folder at {text}')


def _place(file: Path) -> Path:
    """Return the one absolute path of a file or folder, a link at its end not followed."""
    if file.name in ('', '..'):
        return Path(os.path.realpath(file))
    return Path(os.path.realpath(file.parent), file.name)


def _is_below(file: Path, folder: Path) -> bool:
    """Return whether a file is in a folder or below it; follow links as far as they go."""
    return Path(os.path.realpath(folder)) in Path(os.path.realpath(file)).parents


def _is_video(file: Path) -> bool:
    return (mimetypes.guess_type(file.name)[0] or '').startswith('video/')


def folders_of_frames(item: Path, out_dir: Path) -> list[Path]:
    """A folder that holds pictures, and those within it that do, but for what was drawn before."""
    if not item.is_dir():
        return []
    return [
        folder
        for folder in find_folders(item)
        if not _is_below(folder / 'frame', out_dir)
        and any(file.suffix.lower() in PICTURE_SUFFIXES for file in visible(folder))
    ]


def report(results: Results, out_dir: Path, num_inputs: int, stopped_by: int | None) -> int:
    """Write predictions.json, print what is where and what failed; return the exit status."""
    failed = [(item, kind) for kind, items in results.failed.items() for item in items]
    for item, kind in failed:
        print(f'{kind.replace("_", " ")}: {item["file_name"]} {item["reason"]}', file=sys.stderr)
    try:
        results.finish()
    except OSError as error:
        raise OSError(
            f'{results.whole} cannot be written ({error}): all that was found in {results.count} '
            f'of {num_inputs} inputs is in {results.lines}, a JSON object on each line'
        ) from error
    drawn = results.count - len(results.failed['not_drawn'])
    print(f'{drawn} of {num_inputs} inputs drawn in {out_dir}; all results are in {results.whole}')
    if stopped_by is not None:
        name = signal.Signals(stopped_by).name
        rest = num_inputs - results.count - len(results.failed['skipped'])
        print(f'stopped by {name}: {rest} inputs were not looked at', file=sys.stderr)
        return 128 + stopped_by
    return 3 if failed else 0


def main() -> None:
    """Run; a user's mistake ends with a sentence, not a traceback."""
    args = parse_args()
    run(lambda: predict(args), args.config)


if __name__ == '__main__':
    main()
