"""Mask R-CNN on a plain ViT-Ti from DeiT's weights, LVIS v1. Cost and AP: not measured yet.

What is not the size's stands in mask-rcnn_navit-b_100e_lvis-v1.py.

NAVIT_DATA is the folder that holds `lvis_v1/` and `weights/` (unset: data). The weights are
deit_tiny_patch16_224-a1311bcf.pth of https://github.com/facebookresearch/deit.
python tools/train.py configs/detection/mask-rcnn_navit-ti_100e_lvis-v1.py --amp
"""

_base_ = './mask-rcnn_navit-b_100e_lvis-v1.py'

model = dict(
    backbone=dict(
        arch=dict(preset='tiny'),
        drop_path_rate=0.0,
        init_cfg=dict(checkpoint='{{$NAVIT_DATA:data}}/weights/deit_tiny_patch16_224-a1311bcf.pth'),
    ),
    neck=dict(in_channels=192),
)
