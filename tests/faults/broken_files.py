"""Train on a set of which 5 % of the files are broken: the run ends, and names just those.

    python tests/faults/broken_files.py [--task segmentation|video] [--samples 240] [--workers 0 2]

Drawings, or clips of them, are broken in each way of `BREAKS` in turn; as many others become of the
rare kinds of `KINDS`, which are as good as any. A tiny model of the task is trained for one pass
with tools/train.py. The exit status is 1 where the training does not end well, or where the list at
its end is not exactly that of the broken ones.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from broken_clips import BROKEN_IN_VAL, write_clips
from PIL import Image

from navit_backbone.tasks.common.sample_set import write_sample_set

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {
    'detection': ROOT / 'configs/detection/retinanet_navit-ti_20e_sample.py',
    'segmentation': ROOT / 'configs/segmentation/segmenter_navit-ti_20e_sample.py',
    'video': ROOT / 'configs/video/cls_navit-ti_30e_sample.py',
}
ANNOTATIONS = 'annotations/instances_train.json'


def cut(file: Path, image: dict) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def cut_png(file: Path, image: dict) -> None:
    image['file_name'] = f'{file.stem}.png'
    Image.open(file).save(file.with_suffix('.png'))
    cut(file.with_suffix('.png'), image)


def state_another_size(file: Path, image: dict) -> None:
    image['height'] += 7


BREAKS: dict[str, Callable[[Path, dict], object]] = {
    'a JPEG cut in half': cut,
    'a PNG cut in half': cut_png,
    'no bytes': lambda file, image: file.write_bytes(b''),
    'a text of that name': lambda file, image: file.write_text('this is no picture'),
    'no file': lambda file, image: file.unlink(),
    'another size in the annotations': state_another_size,
}


def convert(mode: str, suffix: str) -> Callable[[Path, dict], object]:
    def change(file: Path, image: dict) -> None:
        image['file_name'] = f'{file.stem}{suffix}'
        Image.open(file).convert(mode).save(file.with_suffix(suffix))

    return change


def deepen(file: Path, image: dict) -> None:
    image['file_name'] = f'{file.stem}.png'
    gray = np.asarray(Image.open(file).convert('L'))
    Image.fromarray(gray.astype(np.uint16) * 257).save(file.with_suffix('.png'))


def turn(file: Path, image: dict) -> None:
    """Store it on its side, with the note how to turn it back."""
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    Image.open(file).transpose(Image.Transpose.ROTATE_90).save(file, exif=exif)


def change_map(change: Callable[[Image.Image], Image.Image]) -> Callable[[Path, dict], object]:
    def apply(file: Path, image: dict) -> None:
        with Image.open(map_of(file)) as labels:
            changed = change(labels.copy())
        changed.save(map_of(file))

    return apply


def map_of(file: Path) -> Path:
    return file.parents[1] / 'masks' / file.parent.name / f'{file.stem}.png'


MAP_BREAKS: dict[str, Callable[[Path, dict], object]] = {
    'a label map cut in half': lambda file, image: cut(map_of(file), image),
    'a label map of another size': change_map(lambda labels: labels.resize((40, 30))),
    'a label map in colours': change_map(lambda labels: labels.convert('RGB')),
    'a label beyond the classes': change_map(lambda labels: labels.point(lambda v: v + 3)),
}
OF_SEGMENTATION = {  # annotations state no sizes, and a missing picture is told at the start
    how: change
    for how, change in {**BREAKS, **MAP_BREAKS}.items()
    if how not in ('another size in the annotations', 'no file')
}

KINDS: dict[str, Callable[[Path, dict], object]] = {
    'CMYK': convert('CMYK', '.jpg'),
    'gray': convert('L', '.jpg'),
    'with alpha': convert('RGBA', '.png'),
    'of a palette': convert('P', '.png'),
    'of 16 bits': deepen,
    'turned by EXIF': turn,
}


def write_set(folder: Path, *, task: str, num_samples: int, num_broken: int) -> dict[str, str]:
    """A sample set in which files are broken, or of rare kinds; the broken ones, and how."""
    if task == 'video':
        return write_clips(folder, num_clips=num_samples, num_broken=num_broken)
    write_sample_set(folder, seed=0, num_pictures=dict(train=num_samples, val=2))
    path = folder / ANNOTATIONS
    content = json.loads(path.read_text())
    order = np.random.default_rng(0).permutation(num_samples)[: 2 * num_broken]
    chosen = [content['images'][i] for i in order]
    broken = {}
    breaks = OF_SEGMENTATION if task == 'segmentation' else BREAKS
    for image, (how, change) in zip(chosen[::2], itertools.cycle(breaks.items()), strict=False):
        broken[str(changed(folder / 'train', image, change))] = how
    for image, change in zip(chosen[1::2], itertools.cycle(KINDS.values()), strict=False):
        changed(folder / 'train', image, change)
    path.write_text(json.dumps(content))
    return broken


def changed(folder: Path, image: dict, change: Callable[[Path, dict], object]) -> Path:
    """The file that a picture is in after a change, of which there is only one."""
    before = folder / image['file_name']
    change(before, image)
    if image['file_name'] != before.name:
        before.unlink()
    return folder / image['file_name']


def command(folder: Path, work_dir: Path, *, task: str, workers: int) -> list[str]:
    """The arguments of tools/train.py."""
    options = [
        f'data_root={folder}',
        'model.backbone.arch.num_layers=1',
        'train_cfg.max_epochs=1',
        f'train_dataloader.num_workers={workers}',
        f'train_dataloader.persistent_workers={workers > 0}',
        *(['train_dataloader.batch_sampler.steps_per_epoch=None'] if task == 'video' else []),
    ]
    return [str(CONFIGS[task]), '--work-dir', str(work_dir), '--cfg-options', *options]


def faults(broken: dict[str, str], log: str, *, num_samples: int, task: str) -> list[str]:
    """How the lists in the log differ from what is broken."""
    listed = re.findall(r'^  (\S+) \(sample \d+\)$', log, flags=re.MULTILINE)
    found = [f'{file} ({how}) is not named' for file, how in broken.items() if file not in listed]
    found += [f'{file} is whole, or named twice' for file in listed if file not in broken]
    if f'{len(broken)} of {num_samples} samples were bad' not in log:
        found.append(f'the log does not count {len(broken)} of {num_samples}')
    if task == 'video':
        wrong = re.findall(r'^  (\S+\.mp4)$', log, flags=re.MULTILINE)
        if sorted(Path(file).name for file in wrong) != list(BROKEN_IN_VAL):
            found.append(f'{wrong} are listed as wrong in the evaluation, not {BROKEN_IN_VAL}')
    return found


def main() -> None:
    """Train with each number of workers; exit with 1 where anything is amiss."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--task', choices=CONFIGS, default='detection')
    parser.add_argument('--samples', type=int, default=240, help='of which 5 %% are broken')
    parser.add_argument('--workers', type=int, nargs='+', default=[0, 2])
    parser.add_argument('--work-dir', type=Path, help='kept, where given')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.work_dir or Path(temporary)
        num_broken = round(args.samples * 0.05)
        counts = dict(num_samples=args.samples, num_broken=num_broken)
        broken = write_set(folder / 'set', task=args.task, **counts)
        print(f'{len(broken)} of {args.samples} files are broken')
        amiss = [check(folder, broken, args, workers) for workers in args.workers]
    sys.exit(any(amiss))


def check(folder: Path, broken: dict[str, str], args: argparse.Namespace, workers: int) -> bool:
    """Train in a process of its own; whether something was amiss, which is printed."""
    work_dir = folder / f'workers_{workers}'
    arguments = command(folder / 'set', work_dir, task=args.task, workers=workers)
    run = [sys.executable, str(ROOT / 'tools/train.py'), *arguments]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    found = faults(broken, done.stdout + done.stderr, num_samples=args.samples, task=args.task)
    if done.returncode:
        found.append(f'ended with {done.returncode}: {(done.stdout + done.stderr)[-500:]}')
    print(f'{workers} workers:', '; '.join(found) or 'the run ends, and names all and only these')
    return bool(found)


if __name__ == '__main__':
    main()
