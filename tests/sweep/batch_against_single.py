"""What a batch of several sizes does to label maps: figures, and pixels that differ from batch 1.

    python tests/sweep/batch_against_single.py CONFIG CHECKPOINT [CONFIG CHECKPOINT ...] [--batch 8]

The linear head and our Segmenter give the same label maps, but for pixels where float32, in another
order of summing, decides between two classes; other heads see the canvas too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def evaluated(config: str, checkpoint: str, folder: Path, batch: int) -> dict[str, float]:
    """The figures of a test at this batch size, which leaves its label maps in `folder`/found."""
    options = [f'test_dataloader.batch_size={batch}', f'test_evaluator.output_dir={folder}/found']
    command = [sys.executable, str(ROOT / 'tools/test.py'), config, checkpoint]
    command += ['--work-dir', str(folder), '--out', f'{folder}/figures.json']
    done = subprocess.run(
        [*command, '--cfg-options', *options], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    figures: dict[str, float] = json.loads((folder / 'figures.json').read_text())
    return figures


def differing(one: Path, other: Path) -> float:
    """The share of the pixels of all pictures whose label differs."""
    wrong = total = 0
    files = sorted((one / 'found/labels').glob('*.png'))
    assert files, f'no label maps in {one}'
    for file in files:
        labels = [np.array(Image.open(f)) for f in (file, other / 'found/labels' / file.name)]
        wrong += int((labels[0] != labels[1]).sum())
        total += labels[0].size
    return wrong / total


def main() -> None:
    """A line for each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('models', nargs='+', metavar='CONFIG CHECKPOINT')
    parser.add_argument('--batch', type=int, default=8)
    args = parser.parse_args()
    if len(args.models) % 2:
        parser.error('give a checkpoint for each config')
    for config, checkpoint in zip(args.models[::2], args.models[1::2], strict=True):
        with tempfile.TemporaryDirectory() as temporary:
            folders = [Path(temporary) / name for name in ('single', 'batch')]
            figures = [
                evaluated(config, checkpoint, folder, size)
                for folder, size in zip(folders, (1, args.batch), strict=True)
            ]
            share = differing(*folders)
        told = ', '.join(f'{key} {figures[0][key]} / {figures[1][key]}' for key in ('mIoU', 'aAcc'))
        print(
            f'{Path(config).stem}: batch 1 / {args.batch}: {told}; {share:.4%} of labels differ',
            flush=True,
        )


if __name__ == '__main__':
    main()
