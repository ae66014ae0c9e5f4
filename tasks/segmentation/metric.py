"""IoU of label maps: of regions and of boundaries, counted in whole numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import cv2
import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS
from prettytable import PrettyTable
from torch import Tensor


class Counts(NamedTuple):
    """What one picture adds. Pixels whose truth is ignored are in none of it."""

    confusion: np.ndarray  # [number, 3]: (truth, prediction, pixels), what occurs alone
    boundary: np.ndarray  # [number, 3]: (class, pixels in both boundaries, in either)


@METRICS.register_module()
class NaViTIoUMetric(BaseMetric):
    """aAcc, mIoU, mAcc and mBIoU in per cent, and all of them by class.

    Pixels are counted in whole numbers over all pictures, as mmseg's `IoUMetric` does in float32.
    A class without a pixel in truth and prediction has no IoU (NaN): it stays out of the means, and
    is said. mBIoU is the boundary IoU (Cheng et al. 2021, arXiv 2103.16562) over the pixels within
    `boundary_ratio` of the picture's diagonal from the border of a region; None leaves it out.

    `out_dir`, where given, gets `per_class.json` and `confusion.json`.
    """

    default_prefix: ClassVar[str | None] = None

    def __init__(
        self,
        *,
        ignore_index: int = 255,
        boundary_ratio: float | None = 0.02,
        out_dir: str | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ignore_index = ignore_index
        self.boundary_ratio = boundary_ratio
        self.out_dir = out_dir

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        num = len(self.dataset_meta['classes'])
        for sample in data_samples:
            if 'gt_sem_seg' not in sample:
                raise ValueError(
                    f'{sample.get("img_path")} came without its truth: put '
                    "dict(type='LoadSegMap') before PackSegInputs in the test pipeline"
                )
            truth = sample['gt_sem_seg']['data'].squeeze(0)
            found = sample['pred_sem_seg']['data'].squeeze(0)
            if truth.shape != found.shape:
                raise ValueError(
                    f'{sample.get("img_path")}: the prediction is {tuple(found.shape)} pixels, its '
                    f'truth {tuple(truth.shape)}: LoadSegMap must come after the resize in the '
                    'test pipeline, as the truth keeps its own size'
                )
            self.results.append(self._count(found, truth.to(found), num))

    def _count(self, found: Tensor, truth: Tensor, num: int) -> Counts:
        valid = truth != self.ignore_index
        pairs = truth[valid].long() * num + found[valid].long()
        table = torch.bincount(pairs, minlength=num * num).cpu().numpy()
        places = np.flatnonzero(table)
        confusion = np.stack([places // num, places % num, table[places]], 1)
        if self.boundary_ratio is None:
            return Counts(confusion, np.zeros((0, 3), dtype=np.int64))
        maps = (item.cpu().numpy().astype(np.uint8) for item in (found, truth, valid))
        return Counts(confusion, boundaries(*maps, ratio=self.boundary_ratio))

    def compute_metrics(self, results: list[Counts]) -> dict[str, float]:
        classes = self.dataset_meta['classes']
        results = [Counts(*item) for item in results]  # collecting them made plain tuples
        found = figures(results, len(classes))
        by_class = {key: value for key, value in found.items() if isinstance(value, np.ndarray)}
        table = PrettyTable()
        table.add_column('class', list(classes))
        for key, values in by_class.items():
            table.add_column(key, [f'{100 * value:.2f}' for value in values])
        print_log(f'\n{table.get_string()}', 'current')
        if absent := [
            c for c, value in zip(classes, by_class['IoU'], strict=True) if value != value
        ]:
            print_log(
                f'{len(absent)} of {len(classes)} classes have no pixel in truth or prediction and '
                f'stay out of the means: {", ".join(map(str, absent))}',
                'current',
            )
        if self.out_dir is not None:
            write(results, by_class, classes, Path(self.out_dir))
        means = {f'm{key}': float(np.nanmean(value)) for key, value in by_class.items()}
        return {
            key: round(100 * value, 2) for key, value in {'aAcc': found['aAcc'], **means}.items()
        }


def confusion_of(results: Sequence[Counts], num: int) -> np.ndarray:
    """Pixels by truth and prediction over all pictures: [num, num] int64."""
    confusion = np.zeros((num, num), dtype=np.int64)
    for counts in results:
        truth, prediction, pixels = counts.confusion.T
        confusion[truth, prediction] += pixels
    return confusion


def figures(results: Sequence[Counts], num: int) -> dict[str, Any]:
    """aAcc, and by class [num] IoU, Acc and, where boundaries were counted, BIoU; all 0 to 1."""
    confusion = confusion_of(results, num)
    both, truth, prediction = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    boundary = np.zeros((num, 2), dtype=np.int64)
    for counts in results:
        boundary[counts.boundary[:, 0]] += counts.boundary[:, 1:]
    with np.errstate(invalid='ignore'):
        found = {
            'aAcc': both.sum() / confusion.sum(),
            'IoU': both / (truth + prediction - both),
            'Acc': both / truth,
        }
        if boundary.any():
            found['BIoU'] = boundary[:, 0] / boundary[:, 1]
    return found


def boundaries(
    found: np.ndarray, truth: np.ndarray, valid: np.ndarray, *, ratio: float
) -> np.ndarray:
    """(class, pixels in both boundaries, in either) for each class of two label maps [h, w].

    The boundary of a region are its pixels within `ratio` of the picture's diagonal from its
    border, which the picture's edge belongs to (arXiv 2103.16562, section 4).
    """
    width = max(1, round(ratio * float(np.hypot(*truth.shape))))
    seen = valid.astype(bool)
    rows = []
    for label in np.union1d(found[seen], truth[seen]):
        ours, theirs = (_boundary(item == label, width) & seen for item in (found, truth))
        rows.append((int(label), int((ours & theirs).sum()), int((ours | theirs).sum())))
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _boundary(region: np.ndarray, width: int) -> np.ndarray:
    kernel = np.ones((2 * width + 1, 2 * width + 1), dtype=np.uint8)
    inner = cv2.erode(
        region.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0
    )
    boundary: np.ndarray = region & ~inner.astype(bool)
    return boundary


def write(
    results: Sequence[Counts],
    by_class: dict[str, np.ndarray],
    classes: Sequence[str],
    folder: Path,
) -> None:
    """The figures by class, and the confusion: `pixels[truth][prediction]`."""
    folder.mkdir(parents=True, exist_ok=True)
    confusion = confusion_of(results, len(classes))
    listed = {
        name: {
            key: None if np.isnan(v[i]) else round(float(v[i]), 6) for key, v in by_class.items()
        }
        for i, name in enumerate(classes)
    }
    (folder / 'per_class.json').write_text(json.dumps(listed, indent=1) + '\n')
    content = {'classes': list(classes), 'pixels': confusion.tolist()}
    (folder / 'confusion.json').write_text(json.dumps(content) + '\n')
