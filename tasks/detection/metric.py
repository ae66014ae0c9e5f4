"""COCO's evaluation where pycocotools or mmdet would go wrong, and LVIS's."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Any, NamedTuple

import numpy as np
import torch
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric
from mmdet.evaluation.metrics import coco_metric
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS
from pycocotools import mask as run_lengths

from ..common.wording import few
from .annotations import COUNTED, Annotations, Entry, read_annotations
from .coco_eval import VectorizedCOCOeval
from .federated_ap import average_precision, ious_of_equal_labels, judge
from .lvis import LVISPicture, LVISTruth, read_lvis

_KINDS = ('bbox', 'segm', 'proposal', 'proposal_fast')


@METRICS.register_module()
class NaViTCocoMetric(CocoMetric):
    """mmdet's `CocoMetric`, with its arguments and figures, on any sound annotation file.

    A box of id 0 counts as any other (pycocotools takes it for unmatched whatever matches it), a
    box without `iscrowd` is none, and a detector that finds nothing has AP 0 rather than none.
    Boxes that no detection can match are left out, with a warning. COCO's AP counts the 100 best
    detections of a class in an image; where an image holds more objects of one class, it counts all
    up to the last of `proposal_nums`, which is raised to that number, and a warning says so.

    `use_mp_eval=True` is logged and ignored: mmdet would fork this process, whose threads may hold
    a lock, and the evaluation could hang for ever.
    """

    def __init__(self, ann_file: str | None = None, **options: Any) -> None:
        kinds = options.get('metric', 'bbox')
        if not kinds or not {*([kinds] if isinstance(kinds, str) else kinds)} <= {*_KINDS}:
            raise ValueError(
                f'metric={kinds!r} must be one of {", ".join(_KINDS)}, or a list of these, as '
                'metric=[bbox,segm] in --cfg-options'
            )
        super().__init__(**options)
        if self.use_mp_eval:
            self.use_mp_eval = False
            print_log(
                'use_mp_eval=True is ignored, forked processes can hang: leave it out',
                'current',
                logging.WARNING,
            )
        self.stated: Annotations | None = None  # the whole file
        self.found: Annotations | None = None  # what a detection can match
        if ann_file is not None:
            self.ann_file = ann_file
            found = read_annotations(ann_file, self.backend_args)
            for remark in found.remarks:
                self._log(remark)
            self._take(found)
            if (counted := self.found.counted_detections(self.proposal_nums[-1])) > COUNTED:
                self.proposal_nums[-1] = counted
                self._log(
                    f'an image holds {self.found.most_objects(of_one_class=True):,} objects of one '
                    f'class: AP counts the {counted:,} best detections of a class in an image (the '
                    f"last of proposal_nums), where COCO's counts {COUNTED}"
                )

    @property
    def picture_sizes(self) -> dict[Any, tuple[int, int] | None] | None:
        return None if self.found is None else self.found.picture_sizes()

    def complete_sizes(self, sizes: Mapping[Any, tuple[int, int] | None]) -> None:
        """Take image sizes that the annotation file lacks, by image id."""
        if self.stated is not None and self.stated.complete_sizes(sizes):
            self._take(self.stated)

    def _take(self, stated: Annotations) -> None:
        self.stated, self.found = stated, _matchable(stated, self.found)
        if 'segm' in self.metrics:
            _require_masks(self.found)
        self._coco_api = _coco(self.found)

    def _log(self, remark: str) -> None:
        print_log(f'{self.ann_file}: {remark}', 'current', logging.WARNING)

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        if not self.format_only and not any(len(found['scores']) for _, found in results):
            print_log('no detection at all, so every AP is 0', 'current', logging.WARNING)
            truth, found = results[0]
            nowhere = {key: value for key, value in _nowhere(truth).items() if key in found}
            results = [(truth, found | nowhere), *results[1:]]
        with _ap_of_all_detections(self.found):
            figures: dict[str, float] = super().compute_metrics(results)
        return figures


@contextmanager
def _ap_of_all_detections(found: Annotations | None) -> Iterator[None]:
    """Let mmdet's metric compute AP at the last of `maxDets`, where COCO's 100 are too few.

    pycocotools has the 100 in the code of the first figure of its summary, and none in the others.
    """
    if found is None or found.counted_detections() == COUNTED:
        yield
        return
    stock = coco_metric.COCOeval
    coco_metric.COCOeval = _WholeImageEval
    try:
        yield
    finally:
        coco_metric.COCOeval = stock


class _WholeImageEval(VectorizedCOCOeval):
    """COCOeval that counts as many detections for AP as for the other figures of its summary."""

    def summarize(self) -> None:
        super().summarize()
        precision = self.eval['precision'][:, :, :, 0, -1]  # [T, R, K] of all areas
        known = precision[precision > -1]
        self.stats[0] = known.mean() if known.size else -1


def _matchable(stated: Annotations, before: Annotations | None) -> Annotations:
    """Return the ground truth of a file; log what was not logged of it before."""
    found = stated.matchable()
    known = (stated if before is None else before).remarks
    for remark in found.remarks:
        if remark not in known:
            print_log(f'{stated.file}: {remark}', 'current', logging.WARNING)
    return found


def _require_masks(found: Annotations) -> None:
    """Raise where an annotation has no mask to compare with; log masks outside their boxes."""
    without = found.without_mask()
    remark = found.mask_remark()
    for reason, entries in without.items():
        raise ValueError(
            f'{found.file}: {len(entries):,} of {len(found.annotations):,} annotations {reason} '
            f"(id {few([item['id'] for item in entries])}), but metric 'segm' compares masks. "
            f'{f"{remark}. " if remark else ""}Fix: add or correct them, remove these annotations, '
            "or set metric='bbox'"
        )
    if remark:
        print_log(f'{found.file}: {remark}', 'current', logging.WARNING)


def _coco(found: Annotations) -> COCO:
    """Return the annotations, numbered from 1, as pycocotools takes them."""
    numbered = [dict(item, id=number) for number, item in enumerate(found.annotations, start=1)]
    coco = COCO()
    coco.dataset = dict(
        images=found.images, annotations=numbered, categories=found.categories, info={}
    )
    with redirect_stdout(StringIO()):
        coco.createIndex()
    return coco


def _nowhere(truth: Mapping[str, Any]) -> dict[str, Any]:
    """A detection of no size, which matches nothing: AP is what it is without one."""
    mask = run_lengths.encode(np.zeros((truth['height'], truth['width']), np.uint8, order='F'))
    return dict(bboxes=np.zeros((1, 4)), scores=np.zeros(1), labels=np.zeros(1, int), masks=[mask])


class _Judged(NamedTuple):
    """The D detections of a picture that LVIS looks at, best score first."""

    scores: np.ndarray  # [D]
    labels: np.ndarray  # [D]
    verdicts: np.ndarray  # [D, A, T]


@METRICS.register_module()
class NaViTLVISMetric(BaseMetric):
    """LVIS's average precision with any numpy; takes the place of `LVISMetric`.

    Gives `AP`, `AP50`, `AP75`, by area `APs`, `APm`, `APl`, by how rare the class is `APr`, `APc`,
    `APf`, each as `bbox_AP` or `segm_AP`: from 0 to 1, and -1 where the annotations have no such
    box. Masks count by their own area.

    A picture is judged when its detections come, on the rank where they come: what is kept and
    gathered is no box and no mask, but a score and a verdict for each detection that LVIS looks at.
    Those are among the `max_dets` best of a picture.
    """

    default_prefix = 'lvis'

    def __init__(
        self,
        ann_file: str,
        *,
        metric: str | Sequence[str] = 'bbox',
        max_dets: int = 300,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        backend_args: Entry | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.kinds = [metric] if isinstance(metric, str) else list(metric)
        if not self.kinds or not set(self.kinds) <= {'bbox', 'segm'}:
            raise ValueError(f"metric={metric!r} must be 'bbox', 'segm' or a list of both")
        self.max_dets = max_dets
        self.ann_file = ann_file
        self.found: Annotations | None = None
        self._take(read_lvis(ann_file, backend_args))

    @property
    def picture_sizes(self) -> dict[Any, tuple[int, int] | None]:
        return self.found.picture_sizes()

    def complete_sizes(self, sizes: Mapping[Any, tuple[int, int] | None]) -> None:
        """Take image sizes that the annotation file lacks, by image id."""
        if self.stated.complete_sizes(sizes):
            self._take(self.stated)

    def _take(self, stated: Annotations) -> None:
        self.stated, self.found = stated, _matchable(stated, self.found)
        if 'segm' in self.kinds:
            _require_masks(self.found)
        self._truth: LVISTruth | None = None  # until the classes are known

    @property
    def truth(self) -> LVISTruth:
        if self._truth is None:
            self._truth = LVISTruth(self.found, self.dataset_meta['classes'])
        return self._truth

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        for sample in data_samples:
            picture, found = self.truth.picture(sample['img_id']), sample['pred_instances']
            judged = {kind: self._judge(picture, found, kind) for kind in self.kinds}
            self.results.append((sample['img_id'], judged))

    def _judge(self, picture: LVISPicture, found: Mapping[str, Any], kind: str) -> _Judged:
        own = kind == 'segm' and 'mask_scores' in found
        scores = found['mask_scores' if own else 'scores'].detach().cpu().numpy()
        labels = found['labels'].detach().cpu().numpy()
        best = np.argsort(-scores, kind='stable')[: self.max_dets]
        best = best[np.isin(labels[best], picture.looked_for)]
        shapes, areas = _masks(found, best) if kind == 'segm' else _boxes(found, best)
        iou = ious_of_equal_labels(shapes, labels[best], picture.shapes(kind), picture.labels)
        verdicts = judge(
            iou,
            ignored_G=picture.ignored,
            areas_G=picture.areas,
            areas_D=areas,
            not_exhaustive_D=np.isin(labels[best], picture.not_exhaustive),
        )
        return _Judged(scores[best], labels[best], verdicts)

    def compute_metrics(self, results: list[tuple[Any, dict[str, _Judged]]]) -> dict[str, float]:
        results = sorted(results, key=lambda result: result[0])  # equal scores: by image id
        num_boxes_KA = self.truth.num_boxes()
        figures = {}
        for kind in self.kinds:
            parts = zip(*(judged[kind] for _, judged in results), strict=True)
            judged = [np.concatenate(part) for part in parts]
            if not len(judged[0]):
                print_log(
                    f'{kind}: no detection at all, so every AP is 0', 'current', logging.WARNING
                )
            ap_KAT = average_precision(*judged, num_boxes_KA)
            for name, value in _summary(ap_KAT, self.truth.frequencies).items():
                figures[f'{kind}_{name}'] = value
        return figures


def _boxes(found: Mapping[str, Any], chosen: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """Boxes as (x, y, width, height), and their areas."""
    corners = found['bboxes'].detach().cpu().numpy()[chosen].astype(float)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
    return list(boxes), boxes[:, 2] * boxes[:, 3]


def _masks(found: Mapping[str, Any], chosen: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """Masks in run lengths, and their areas."""
    masks = [found['masks'][i] for i in chosen]
    if isinstance(found['masks'], torch.Tensor):  # else run lengths already
        pixels = (mask.detach().to('cpu', torch.uint8).numpy() for mask in masks)
        masks = [run_lengths.encode(np.asfortranarray(mask)) for mask in pixels]
    # one by one: on numpy 2 pycocotools counts no more than 255 masks at once
    return masks, np.array([run_lengths.area(mask) for mask in masks], dtype=float)


def _summary(ap_KAT: np.ndarray, frequencies: np.ndarray) -> dict[str, float]:
    parts = dict(AP=ap_KAT[:, 0], AP50=ap_KAT[:, 0, 0], AP75=ap_KAT[:, 0, 5])
    parts |= {f'AP{area}': ap_KAT[:, a] for a, area in enumerate('sml', start=1)}
    parts |= {f'AP{rarity}': ap_KAT[frequencies == rarity, 0] for rarity in 'rcf'}
    return {name: _mean(part) for name, part in parts.items()}


def _mean(aps: np.ndarray) -> float:
    """The mean over the classes that have boxes; -1 where none has, as LVIS says it."""
    there = aps[~np.isnan(aps)]
    return float(there.mean()) if there.size else -1.0
