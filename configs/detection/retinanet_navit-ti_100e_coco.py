"""RetinaNet on a plain ViT-Ti from DeiT's weights, COCO. Cost and AP: not measured yet.

What is not the size's stands in retinanet_navit-b_100e_coco.py.

NAVIT_DATA is the folder that holds `coco/` and `weights/` (unset: data). The weights are
deit_tiny_patch16_224-a1311bcf.pth of https://github.com/facebookresearch/deit.
python tools/train.py configs/detection/retinanet_navit-ti_100e_coco.py --amp
"""

_base_ = './retinanet_navit-b_100e_coco.py'

model = dict(
    backbone=dict(
        arch=dict(preset='tiny'),
        drop_path_rate=0.0,
        init_cfg=dict(checkpoint='{{$NAVIT_DATA:data}}/weights/deit_tiny_patch16_224-a1311bcf.pth'),
    ),
    neck=dict(in_channels=192),
)
