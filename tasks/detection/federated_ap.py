"""Average precision where each picture is labelled for some classes only, as LVIS defines it.

For every picture the annotators looked for a few classes: those they found in it (positive) and
those they made sure are absent (negative). Detections of any other class are neither right nor
wrong there, and are left out. Of some positive classes not all objects are marked (not exhaustive):
detections of these that match nothing are left out too.

K classes; G boxes and D detections of one picture or, in `average_precision`, N of all pictures;
A ranges of area; T thresholds of IoU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as run_lengths

IOU_THRESHOLDS_T = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
# all areas, small, medium, large
LIMITS_A2 = np.array([(0, 1e5**2), (0, 32**2), (32**2, 96**2), (96**2, 1e5**2)])

WRONG, RIGHT, LEFT_OUT = 0, 1, 2  # what becomes of a detection


def out_of_range(areas: np.ndarray) -> np.ndarray:
    """[N] -> [A, N]: which areas lie outside each of the ranges."""
    return (areas < LIMITS_A2[:, :1]) | (areas > LIMITS_A2[:, 1:])


def ious_of_equal_labels(
    found: Sequence[object],
    found_labels_D: np.ndarray,
    true: Sequence[object],
    labels_G: np.ndarray,
) -> np.ndarray:
    """[D, G], of boxes (x, y, width, height) or masks in run lengths; -1 where labels differ."""
    iou_DG = np.full((len(found), len(true)), -1.0)
    for label in np.unique(labels_G):
        rows, columns = np.flatnonzero(found_labels_D == label), np.flatnonzero(labels_G == label)
        if len(rows):
            of_label = [found[i] for i in rows], [true[i] for i in columns]
            iou_DG[np.ix_(rows, columns)] = run_lengths.iou(*of_label, [0] * len(columns))
    return iou_DG


def match(iou_DG: np.ndarray, ignored_AG: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give each detection, best score first, the free box that it overlaps most.

    A box that counts comes before any that is ignored; of equal overlaps the last box is taken.
    Gives two of [D, A, T]: whether a detection has a box, and whether it has an ignored one.
    """
    num_D, num_G = iou_DG.shape
    free_ATG = np.ones((len(ignored_AG), len(IOU_THRESHOLDS_T), num_G), dtype=bool)
    counts_AG = ~ignored_AG[:, None]
    has_box = np.zeros((num_D, *free_ATG.shape[:2]), dtype=bool)
    has_ignored = has_box.copy()
    for d in np.flatnonzero((iou_DG >= IOU_THRESHOLDS_T[0]).any(1)):
        near_ATG = free_ATG & (iou_DG[d] >= IOU_THRESHOLDS_T[:, None])
        counting_ATG = near_ATG & counts_AG
        choice_ATG = np.where(counting_ATG.any(-1, keepdims=True), counting_ATG, near_ATG)
        overlap_ATG = np.where(choice_ATG, iou_DG[d], -1)[..., ::-1]
        best_AT1 = num_G - 1 - overlap_ATG.argmax(-1)[..., None]
        taken_ATG = choice_ATG & (np.arange(num_G) == best_AT1)
        free_ATG &= ~taken_ATG
        has_box[d] = taken_ATG.any(-1)
        has_ignored[d] = (taken_ATG & ~counts_AG).any(-1)
    return has_box, has_ignored


def judge(
    iou_DG: np.ndarray,
    *,
    ignored_G: np.ndarray,
    areas_G: np.ndarray,
    areas_D: np.ndarray,
    not_exhaustive_D: np.ndarray,
) -> np.ndarray:
    """[D, A, T]: RIGHT, WRONG or LEFT_OUT. The detections of a picture, best score first."""
    has_box, has_ignored = match(iou_DG, out_of_range(areas_G) | ignored_G)
    pardoned_DA = (out_of_range(areas_D) | not_exhaustive_D).T
    left_out = has_ignored | (~has_box & pardoned_DA[..., None])
    return np.where(left_out, LEFT_OUT, np.where(has_box, RIGHT, WRONG)).astype(np.uint8)


def average_precision(
    scores_N: np.ndarray, labels_N: np.ndarray, verdicts_NAT: np.ndarray, num_boxes_KA: np.ndarray
) -> np.ndarray:
    """[K, A, T], NaN where a class has no box. Equal scores keep the order in which they come."""
    ap_KAT = np.full((*num_boxes_KA.shape, len(IOU_THRESHOLDS_T)), np.nan)
    order = np.lexsort((-scores_N, labels_N))
    borders = np.searchsorted(labels_N[order], np.arange(len(num_boxes_KA) + 1))
    for k, a in np.argwhere(num_boxes_KA > 0):
        verdicts_NT = verdicts_NAT[order[borders[k] : borders[k + 1]], a]
        ap_KAT[k, a] = _average_precision(verdicts_NT, num_boxes_KA[k, a])
    return ap_KAT


def _average_precision(verdicts_NT: np.ndarray, num_boxes: int) -> np.ndarray:
    """[T]: the mean over 101 recalls of the best precision at that recall or more."""
    right_NT = (verdicts_NT == RIGHT).cumsum(0)
    wrong_NT = (verdicts_NT == WRONG).cumsum(0)
    precision_NT = right_NT / np.maximum(right_NT + wrong_NT, 1)
    best_NT = np.maximum.accumulate(precision_NT[::-1])[::-1]
    best_NT = np.pad(best_NT, ((0, 1), (0, 0)))  # a recall never reached
    ranks = [np.searchsorted(recall_N, RECALLS) for recall_N in (right_NT / num_boxes).T]
    return np.array([best_NT[rank, t].mean() for t, rank in enumerate(ranks)])
