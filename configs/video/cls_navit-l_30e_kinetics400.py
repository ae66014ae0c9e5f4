"""ViT-L from MAE's weights, Kinetics-400. Cost and accuracy: not measured yet.

What is not the size's stands in cls_navit-b_30e_kinetics400.py.

NAVIT_DATA is the folder that holds `kinetics400/` and `weights/` (unset: data). The weights are
mae_pretrain_vit_large.pth of https://github.com/facebookresearch/mae.
python tools/train.py configs/video/cls_navit-l_30e_kinetics400.py --amp
"""

_base_ = './cls_navit-b_30e_kinetics400.py'

model = dict(
    backbone=dict(
        arch=dict(preset='large'),
        init_cfg=dict(checkpoint='{{$NAVIT_DATA:data}}/weights/mae_pretrain_vit_large.pth'),
    ),
)
