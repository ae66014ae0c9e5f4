"""ViT-S from DeiT's weights, Something-Something v2. Cost and accuracy: not measured yet.

What is not the size's stands in cls_navit-b_40e_sthv2.py.

NAVIT_DATA is the folder that holds `sthv2/` and `weights/` (unset: data). The weights are
deit_small_patch16_224-cd65a155.pth of https://github.com/facebookresearch/deit.
python tools/train.py configs/video/cls_navit-s_40e_sthv2.py --amp
"""

_base_ = './cls_navit-b_40e_sthv2.py'

model = dict(
    backbone=dict(
        arch=dict(preset='small'),
        init_cfg=dict(
            checkpoint='{{$NAVIT_DATA:data}}/weights/deit_small_patch16_224-cd65a155.pth'
        ),
    ),
)
