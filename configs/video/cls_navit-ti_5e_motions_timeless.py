"""Control arm of cls_navit-ti_5e_motions.py: without temporal position.

It sees all frames and nothing of their order, so it cannot tell one motion of a pair from the
other.

python tools/train.py configs/video/cls_navit-ti_5e_motions_timeless.py
"""

_base_ = './cls_navit-ti_5e_motions.py'

model = dict(backbone=dict(temporal_position=None))
