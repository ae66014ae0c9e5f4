"""ViT-S from DeiT's weights, Kinetics-400. Cost and accuracy: not measured yet.

What is not the size's stands in cls_navit-b_30e_kinetics400.py.

NAVIT_DATA is the folder that holds `kinetics400/` and `weights/` (unset: data). The weights are
deit_small_patch16_224-cd65a155.pth of https://github.com/facebookresearch/deit.
python tools/train.py configs/video/cls_navit-s_30e_kinetics400.py --amp
"""

_base_ = './cls_navit-b_30e_kinetics400.py'

model = dict(
    backbone=dict(
        arch=dict(preset='small'),
        init_cfg=dict(
            checkpoint='{{$NAVIT_DATA:data}}/weights/deit_small_patch16_224-cd65a155.pth'
        ),
    ),
)
