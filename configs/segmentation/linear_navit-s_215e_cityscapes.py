"""One linear layer per token on a plain ViT-S from DeiT's weights, Cityscapes. Cost and mIoU: not
measured yet.

What is not the size's stands in linear_navit-b_215e_cityscapes.py.

NAVIT_DATA is the folder that holds `cityscapes/` and `weights/` (unset: data). The weights are
deit_small_patch16_224-cd65a155.pth of https://github.com/facebookresearch/deit.
python tools/train.py configs/segmentation/linear_navit-s_215e_cityscapes.py --amp
"""

_base_ = './linear_navit-b_215e_cityscapes.py'

model = dict(
    backbone=dict(
        arch=dict(preset='small'),
        init_cfg=dict(
            checkpoint='{{$NAVIT_DATA:data}}/weights/deit_small_patch16_224-cd65a155.pth'
        ),
    ),
    decode_head=dict(in_channels=384),
)
