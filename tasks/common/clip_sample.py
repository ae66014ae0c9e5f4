"""What is known and found of a clip."""

from __future__ import annotations

from mmengine.structures import BaseDataElement


class ClipDataSample(BaseDataElement):
    """The classes of a clip, named as in mmpretrain.

    `gt_label` [k] class numbers; `gt_score` [num_classes] shares of the classes, which mixing
    changes; `pred_score` [num_classes], and `pred_label` [1], the class of the highest.
    """
