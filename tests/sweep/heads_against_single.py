"""What a batch of several sizes does to the labels of each head, on random weights and pictures.

    python tests/sweep/heads_against_single.py [--batches 8]

For every head the share of pixels whose label in a batch of mixed sizes is not that of the picture
alone on its own canvas. Random weights have no large regions of one class, so more pixels are near
a border between two than in a trained model: batch_against_single.py tells it of a trained one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from oracles import perturb
from segmentors import FCN, LINEAR, MASK2FORMER, PYRAMID, SEGMENTER, SETR, UPERNET, batch, segmentor

HEADS = {
    'linear': dict(head=LINEAR),
    'Segmenter': dict(head=SEGMENTER),
    'FCN': dict(head=FCN),
    'SETR': dict(head=SETR),
    'UPerNet': dict(head=UPERNET, neck=PYRAMID),
    'Mask2Former': dict(head=MASK2FORMER, neck=PYRAMID),
}
COUNT = 8


def labels(
    model: torch.nn.Module, sizes: list[tuple[int, int]], together: bool
) -> list[np.ndarray]:
    """The label maps of these pictures, in one batch or one by one."""
    data = batch(sizes)
    groups = [range(len(sizes))] if together else [[i] for i in range(len(sizes))]
    found = []
    for group in groups:
        part = {key: [values[i] for i in group] for key, values in data.items()}
        with torch.no_grad():
            samples = model.test_step(part)
        found += [sample.pred_sem_seg.data[0].numpy() for sample in samples]
    return found


def main() -> None:
    """A line for each head."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--batches', type=int, default=8, help=f'of {COUNT} pictures (8)')
    args = parser.parse_args()
    for name, options in HEADS.items():
        model = perturb(segmentor(**options), scale=0.05).eval()
        wrong = total = 0
        for number in range(args.batches):
            draws = np.random.default_rng(number)
            sizes = [tuple(int(s) for s in draws.integers(64, 320, 2)) for _ in range(COUNT)]
            pairs = zip(labels(model, sizes, True), labels(model, sizes, False), strict=True)
            for one, other in pairs:
                wrong += int((one != other).sum())
                total += one.size
        print(f'{name}: {100 * wrong / total:.4f} % of {total:,} pixels', flush=True)


if __name__ == '__main__':
    main()
