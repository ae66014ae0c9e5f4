"""Find clips that cannot be read, before a training meets them.

    python tools/check_videos.py CONFIG [--decode] [--workers N] [--out FILE.txt]
    python tools/check_videos.py FOLDER_OR_FILE... [the same]

Reads the header and the packets of every clip of a config's data sets, or of all videos in folders;
--decode decodes all their frames too, which finds what is broken inside, and takes as long as
playing them. Every clip that cannot be read is named with the reason; --out writes their paths, a
line each. Exit status 1: there were some.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.progress import track

from navit_backbone.file_writing import written_whole
from navit_backbone.tools.command_line import (
    add_options_argument,
    enter_task,
    expanded_path,
    output_file,
    read_config,
    run,
)

Clip = tuple[str, str]  # what it is, and its path


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('inputs', type=expanded_path, nargs='+', metavar='CONFIG | FOLDER_OR_FILE')
    parser.add_argument('--decode', action='store_true', help='all frames, not the headers alone')
    parser.add_argument(
        '--workers', type=int, default=os.cpu_count(), help='processes (%(default)s)'
    )
    parser.add_argument(
        '--out', type=output_file, help='a file for the paths of those that are broken'
    )
    add_options_argument(parser)
    args = parser.parse_args()
    if args.workers < 1:
        parser.error(f'--workers {args.workers} must be at least 1')
    return args


def check(args: argparse.Namespace) -> int:
    """Name the broken clips; 1 where there are some."""
    clips = clips_of(args)
    found = faults_of(clips, partial(fault_of, decode=args.decode), args.workers)
    faults = list(track(found, 'reading clips', len(clips), transient=True))
    broken = [(file, fault) for (_, file), fault in zip(clips, faults, strict=True) if fault]
    for file, fault in broken:
        print(fault if fault.startswith(file) else f'{file}: {fault}')
    how = 'decoded whole' if args.decode else 'by header and packets'
    print(f'{len(clips)} clips, {how}: {len(broken)} cannot be read')
    if args.out is not None:
        with written_whole(args.out) as aside:
            aside.write_text(''.join(f'{file}\n' for file, _ in broken))
    return 1 if broken else 0


def faults_of(clips: list[Clip], look: Callable[[Clip], str], workers: int) -> Iterator[str]:
    """What `look` says of each clip. One that takes its process down is found and named too."""
    done = 0
    while done < len(clips):
        try:
            with ProcessPoolExecutor(workers) as pool:
                for fault in pool.map(look, clips[done:], chunksize=4):
                    yield fault
                    done += 1
        except BrokenProcessPool:  # by one of the next few: which, they say alone
            for clip in clips[done : done + 4 * workers]:
                yield _alone(clip, look)
                done += 1


def _alone(clip: Clip, look: Callable[[Clip], str]) -> str:
    try:
        with ProcessPoolExecutor(1) as pool:
            return pool.submit(look, clip).result()
    except BrokenProcessPool:
        return 'takes the process that decodes it down'


def clips_of(args: argparse.Namespace) -> list[Clip]:
    """(kind, path) of all clips, each once."""
    if args.inputs[0].suffix == '.py':
        if len(args.inputs) > 1:
            raise ValueError(f'{args.inputs[1]} beside a config: give a config alone, or folders')
        return _of_config(args.inputs[0], args.cfg_options)
    if args.cfg_options:
        raise ValueError('--cfg-options goes with a config')
    found = [('videos', file) for item in args.inputs for file in _of_folder(item)]
    return list(dict.fromkeys(found))


def _of_config(config: Path, options: dict[str, Any]) -> list[Clip]:
    from mmengine.registry import DATASETS

    from navit_backbone.tasks.common.dataset import file_of

    cfg = read_config(config, options)
    enter_task(cfg, config)
    found = []
    for split in ('train', 'val', 'test'):
        if (loader := cfg.get(f'{split}_dataloader')) is None:
            continue
        data = DATASETS.build(loader.dataset)
        kind = getattr(data, 'kind', None)
        if kind is None:
            raise ValueError(f'{split}_dataloader of {config} holds no NaViTClipDataset')
        found += [(kind, file_of(data.get_data_info(i))) for i in range(len(data))]
    return list(dict.fromkeys(found))


def _of_folder(item: Path) -> Iterator[str]:
    from navit_backbone.tasks.common.folders import find_files
    from navit_backbone.tasks.common.video_reader import VIDEO_SUFFIXES

    if item.suffix.lower() in ('.txt', '.csv'):
        raise ValueError(
            f'{item} is a list: give the config that reads it, with the same --cfg-options, or '
            'the folder of its clips'
        )
    if item.is_file():
        yield str(item)
        return
    if not item.is_dir():
        raise ValueError(f'no file or folder at {item}')
    files = find_files(item, VIDEO_SUFFIXES)
    if not files:
        raise ValueError(f'no videos in {item}: looked for {" ".join(VIDEO_SUFFIXES)}')
    yield from map(str, files)


def fault_of(clip: Clip, *, decode: bool) -> str:
    """Why a clip cannot be read; empty where it can."""
    data = import_module('navit_backbone.tasks.common.clip_data')
    kind, file = clip
    try:
        data.MEASURES[kind](file)
        if decode:
            for _ in data.open_clip(kind, file).frames():
                pass
    except data.UNREADABLE as error:
        return ' '.join(str(error).split())
    return ''


def main() -> None:
    """Run; a user's mistake ends with a sentence, not a traceback."""
    args = parse_args()
    run(lambda: check(args), args.inputs[0])


if __name__ == '__main__':
    main()
