"""DINO (DETR) on a plain ViT-S from DeiT's weights, COCO. Cost and AP: not measured yet.

What is not the size's stands in dino_navit-b_50e_coco.py.

NAVIT_DATA is the folder that holds `coco/` and `weights/` (unset: data). The weights are
deit_small_patch16_224-cd65a155.pth of https://github.com/facebookresearch/deit.
python tools/train.py configs/detection/dino_navit-s_50e_coco.py --amp
"""

_base_ = './dino_navit-b_50e_coco.py'

model = dict(
    backbone=dict(
        arch=dict(preset='small'),
        init_cfg=dict(
            checkpoint='{{$NAVIT_DATA:data}}/weights/deit_small_patch16_224-cd65a155.pth'
        ),
    ),
    neck=dict(in_channels=384),
)
