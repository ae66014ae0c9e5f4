"""IoU of label maps: of regions and of boundaries, counted in whole numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
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

from ..common.confusion import confusion_picture
from ..common.overlay import label_picture


class Counts(NamedTuple):
    """What one picture adds. Pixels whose truth is ignored are in none of it."""

    confusion: np.ndarray  # [number, 3]: (truth, prediction, pixels), what occurs alone
    boundary: np.ndarray  # [number, 3]: (class, pixels in both boundaries, in either)
    file: str = ''
    labels: str = ''  # the file of its label map in output_dir/labels
    size: tuple[int, int] = (0, 0)  # height, width


@METRICS.register_module()
class NaViTIoUMetric(BaseMetric):
    """aAcc, mIoU, mAcc and mBIoU in per cent, and all of them by class.

    Pixels are counted in whole numbers over all pictures, as mmseg's `IoUMetric` does in float32.
    A class without a pixel in truth and prediction has no IoU (NaN): it stays out of the means, and
    is said. mBIoU is the boundary IoU (Cheng et al. 2021, arXiv 2103.16562) over the pixels within
    `boundary_ratio` of the picture's diagonal from the border of a region; None leaves it out.

    `output_dir`, where given, gets `per_class.json`, `confusion.json` and `confusion.png`, in
    `pictures.json` what each picture adds, and in `labels/` its label map, the model's class
    numbers as a PNG of one channel; beside it in `truth/` the true one. `keep_results`, which
    mmseg's own script sets with it, changes nothing: they are kept.
    """

    default_prefix: ClassVar[str | None] = None

    def __init__(
        self,
        *,
        ignore_index: int = 255,
        boundary_ratio: float | None = 0.02,
        output_dir: str | None = None,
        keep_results: bool = False,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ignore_index = ignore_index
        self.boundary_ratio = boundary_ratio
        self.output_dir = None if output_dir is None else Path(output_dir)

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
            counts = self._count(found, truth.to(found), num)
            file = str(sample.get('img_path', ''))
            size = (int(truth.shape[0]), int(truth.shape[1]))
            counts = counts._replace(file=file, labels=self._keep(found, truth, file), size=size)
            self.results.append(counts)

    def _keep(self, found: Tensor, truth: Tensor, file: str) -> str:
        """Write both label maps where asked for; their name, told apart by the whole path."""
        if self.output_dir is None:
            return ''
        digest = hashlib.blake2b(file.encode(), digest_size=4).hexdigest()
        name = f'{Path(file).stem}-{digest}.png'
        palette = self.dataset_meta['palette']
        for part, labels in (('labels', found), ('truth', truth)):
            folder = self.output_dir / part
            folder.mkdir(parents=True, exist_ok=True)
            label_picture(labels.cpu().numpy(), palette).save(folder / name)
        return name

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
        if self.output_dir is not None:
            meta = {**self.dataset_meta, 'ignore_index': self.ignore_index}
            write(results, by_class, meta, self.output_dir)
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


def by_picture(results: Sequence[Counts], num: int) -> tuple[np.ndarray, ...]:
    """Pixels by picture and class, each [pictures, num] int64.

    Right ones, those of the truth, those of the prediction; in both boundaries, in either.
    """
    tables = tuple(np.zeros((len(results), num), dtype=np.int64) for _ in range(5))
    both, truth, found, inner, outer = tables
    for row, counts in enumerate(results):
        of_truth, of_prediction, pixels = counts.confusion.T
        right = of_truth == of_prediction
        both[row, of_truth[right]] = pixels[right]
        np.add.at(truth[row], of_truth, pixels)
        np.add.at(found[row], of_prediction, pixels)
        label, shared, either = counts.boundary.T
        inner[row, label], outer[row, label] = shared, either
    return tables


def figures(results: Sequence[Counts], num: int) -> dict[str, Any]:
    """aAcc, and by class [num] IoU, Acc and, where boundaries were counted, BIoU; all 0 to 1."""
    both, truth, found, inner, outer = (table.sum(0) for table in by_picture(results, num))
    with np.errstate(invalid='ignore'):
        measured = {
            'aAcc': both.sum() / truth.sum(),
            'IoU': both / (truth + found - both),
            'Acc': both / truth,
        }
        if outer.any():
            measured['BIoU'] = inner / outer
    return measured


def boundaries(
    found: np.ndarray, truth: np.ndarray, valid: np.ndarray, *, ratio: float
) -> np.ndarray:
    """(class, pixels in both boundaries, in either) for each class of two label maps [h, w].

    The boundary of a region are its pixels within `ratio` of the picture's diagonal from its
    border, which the picture's edge belongs to (arXiv 2103.16562, section 4). Where a region meets
    pixels that are not `valid`, nobody knows whether it ends there: that is no border.
    """
    width = max(1, round(ratio * float(np.hypot(*truth.shape))))
    seen = valid.astype(bool)
    rows = []
    for label in np.union1d(found[seen], truth[seen]):
        regions = ((item == label) | ~seen for item in (found, truth))
        ours, theirs = (_boundary(region, width) & seen for region in regions)
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
    meta: Mapping[str, Any],
    folder: Path,
) -> None:
    """The figures by class; the confusion, `pixels[truth][prediction]`; what each picture adds."""
    folder.mkdir(parents=True, exist_ok=True)
    classes = list(meta['classes'])
    confusion = confusion_of(results, len(classes))
    listed = {
        name: {
            key: None if np.isnan(v[i]) else round(float(v[i]), 6) for key, v in by_class.items()
        }
        for i, name in enumerate(classes)
    }
    (folder / 'per_class.json').write_text(json.dumps(listed, indent=1) + '\n')
    content = {'classes': classes, 'pixels': confusion.tolist()}
    (folder / 'confusion.json').write_text(json.dumps(content) + '\n')
    confusion_picture(confusion, classes, folder / 'confusion.png', unit='pixels')
    pictures = [
        dict(
            file=counts.file,
            labels=counts.labels,
            size=counts.size,
            confusion=counts.confusion.tolist(),
            boundary=counts.boundary.tolist(),
        )
        for counts in results
    ]
    content = dict(
        classes=classes,
        palette=[list(map(int, colour)) for colour in meta['palette']],
        ignore_index=meta['ignore_index'],
        pictures=pictures,
    )
    (folder / 'pictures.json').write_text(json.dumps(content) + '\n')
