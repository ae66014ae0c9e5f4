"""Linear probe: cls_navit-ti_20e_hymenoptera_squashed.py with the backbone frozen.

Cost and accuracy: not measured yet.
python tools/train.py configs/video/probe_navit-ti_20e_hymenoptera_squashed.py
"""

_base_ = './cls_navit-ti_20e_hymenoptera_squashed.py'

model = dict(backbone=dict(frozen_stages=12, drop_path_rate=0.0))
optim_wrapper = dict(optimizer=dict(lr=1e-2, weight_decay=0.0))
