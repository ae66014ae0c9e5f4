"""UPerNet on a plain ViT-L from MAE's weights, Cityscapes. Cost and mIoU: not measured
yet.

What is not the size's stands in upernet_navit-b_215e_cityscapes.py.

NAVIT_DATA is the folder that holds `cityscapes/` and `weights/` (unset: data). The weights are
mae_pretrain_vit_large.pth of https://github.com/facebookresearch/mae.
python tools/train.py configs/segmentation/upernet_navit-l_215e_cityscapes.py --amp
"""

_base_ = './upernet_navit-b_215e_cityscapes.py'

model = dict(
    backbone=dict(
        arch=dict(preset='large'),
        init_cfg=dict(checkpoint='{{$NAVIT_DATA:data}}/weights/mae_pretrain_vit_large.pth'),
    ),
    neck=dict(in_channels=1024),
)
