"""How often the right class is found: overall, by class, and what is taken for what."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS

from ..common.confusion import confusion_picture
from ..common.dataset import file_of


@METRICS.register_module()
class NaViTClipMetric(BaseMetric):
    """top1, top5 and mean_class accuracy in per cent; with `multi_label` mAP.

    With `pairs`, where classes 0 and 1, 2 and 3 and so on are two sides of one thing, as left and
    right: also `pair`, how often it is the right pair, and `direction`, how often of the two of the
    true pair the right one scores higher.

    A clip that could not be read counts as wrong, whatever its class. `mean_class` is the mean over
    the classes that the data has. `output_dir`, where given, gets ``predictions.json`` (of each
    clip its file, class, group, [height, width, frames, rate] and the score of every class),
    ``confusion.json`` and ``confusion.png``.
    """

    default_prefix: ClassVar[str | None] = None

    def __init__(
        self,
        *,
        topk: Sequence[int] = (1, 5),
        multi_label: bool = False,
        pairs: bool = False,
        output_dir: str | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if min(topk, default=0) < 1:
            raise ValueError(f'topk={topk}: give numbers of at least 1')
        self.topk, self.multi_label, self.pairs = tuple(topk), multi_label, pairs
        self.output_dir = None if output_dir is None else Path(output_dir)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        for sample in data_samples:
            if 'gt_label' not in sample:
                raise ValueError(f'{file_of(sample)} came without its class')
            bad = bool(sample.get('bad', False))
            self.results.append(
                {
                    'file': file_of(sample),
                    'labels': sample['gt_label'].tolist(),
                    'group': sample.get('group'),
                    'measured': [float(value) for value in sample.get('measured', ())],
                    'scores': None if bad else sample['pred_score'].cpu().double().tolist(),
                }
            )

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        classes = list(self.dataset_meta['classes'])
        bad = [item['file'] for item in results if item['scores'] is None]
        if bad:
            listed = '\n'.join(f'  {file}' for file in bad)
            print_log(
                f'{len(bad)} of {len(results)} clips could not be read and count as wrong:\n'
                f'{listed}',
                'current',
            )
        scores = np.array(
            [item['scores'] or [np.nan] * len(classes) for item in results], dtype=np.float64
        )
        if self.multi_label:
            found = {'mAP': 100 * mean_average_precision(scores, results, len(classes))}
        else:
            labels = np.array([item['labels'][0] for item in results])
            found = accuracies(scores, labels, self.topk)
            if self.pairs:
                found |= pairs_and_directions(scores, labels)
            self._write_confusion(scores, labels, classes)
        if self.output_dir is not None:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            content = {'classes': classes, 'clips': results}
            (self.output_dir / 'predictions.json').write_text(json.dumps(content) + '\n')
            print_log(f'scores of all clips, and the confusion: {self.output_dir}', 'current')
        return {**found, 'bad': float(len(bad))}

    def _write_confusion(
        self, scores: np.ndarray, labels: np.ndarray, classes: Sequence[str]
    ) -> None:
        if self.output_dir is None:
            return
        table, columns = confusion(scores, labels, len(classes)), [*classes, 'not read']
        self.output_dir.mkdir(parents=True, exist_ok=True)
        (self.output_dir / 'confusion.json').write_text(
            json.dumps({'classes': classes, 'columns': columns, 'truth_by_found': table.tolist()})
            + '\n'
        )
        confusion_picture(table, columns, self.output_dir / 'confusion.png', unit='clips')


def ranks_of(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes score higher than the true one, or as high and come first: [N].

    Of a clip that could not be read, whose scores are NaN, more than there can be.
    """
    own = scores[np.arange(len(labels)), labels][:, None]
    before = np.arange(scores.shape[1]) < labels[:, None]
    ranks = ((scores > own) | ((scores == own) & before)).sum(1)
    return np.where(np.isnan(own[:, 0]), np.iinfo(np.int64).max, ranks)


def accuracies(scores: np.ndarray, labels: np.ndarray, topk: Sequence[int]) -> dict[str, float]:
    """The topK of each K, and the mean over the classes that are there, in per cent.

    `scores` [N, num_classes], of a clip that could not be read NaN; `labels` [N].
    """
    ranks = ranks_of(scores, labels)
    found = {f'top{k}': 100 * float((ranks < k).mean()) for k in topk}
    by_class = [float((ranks[labels == number] < 1).mean()) for number in np.unique(labels)]
    return {**found, 'mean_class': 100 * float(np.mean(by_class))}


def pairs_and_directions(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Of pairs of classes (0 and 1, 2 and 3, ...), in per cent; unread clips have scores of NaN."""
    read, every = ~np.isnan(scores[:, 0]), np.arange(len(labels))
    pair = read & (np.nan_to_num(scores).argmax(1) // 2 == labels // 2)
    direction = scores[every, labels] > scores[every, labels ^ 1]
    return {'pair': 100 * float(pair.mean()), 'direction': 100 * float(direction.mean())}


def confusion(scores: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """[num_classes, num_classes + 1]: truth by what was found; last, what could not be read."""
    unread = np.isnan(scores).any(1)
    found = np.where(unread, num_classes, np.where(unread[:, None], 0, scores).argmax(1))
    table = np.zeros((num_classes, num_classes + 1), dtype=np.int64)
    np.add.at(table, (labels, found), 1)
    return table


def mean_average_precision(
    scores: np.ndarray, results: Sequence[dict[str, Any]], num_classes: int
) -> float:
    """The mean over classes of the precision at each clip that has the class, ranked by score."""
    truth = np.zeros((len(results), num_classes), dtype=bool)
    for row, item in zip(truth, results, strict=True):
        row[item['labels']] = True
    found = []
    for number in np.flatnonzero(truth.any(0)):
        order = np.argsort(-np.nan_to_num(scores[:, number], nan=-np.inf), kind='stable')
        hits = truth[order, number]
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        found.append(precision[hits].mean())
    return float(np.mean(found))
