"""Segmenter's mask transformer on a plain ViT-S from DeiT's weights, ADE20K. Cost and mIoU: not
measured yet.

What is not the size's stands in segmenter_navit-b_64e_ade20k.py.

NAVIT_DATA is the folder that holds `ade/` and `weights/` (unset: data). The weights are
deit_small_patch16_224-cd65a155.pth of https://github.com/facebookresearch/deit.
python tools/train.py configs/segmentation/segmenter_navit-s_64e_ade20k.py --amp
"""

_base_ = './segmenter_navit-b_64e_ade20k.py'

model = dict(
    backbone=dict(
        arch=dict(preset='small'),
        init_cfg=dict(
            checkpoint='{{$NAVIT_DATA:data}}/weights/deit_small_patch16_224-cd65a155.pth'
        ),
    ),
    decode_head=dict(in_channels=384, channels=384, num_heads=6),
)
