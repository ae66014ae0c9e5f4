"""Faster R-CNN on a plain ViT-L from MAE's weights, COCO. Cost and AP: not measured yet.

What is not the size's stands in faster-rcnn_navit-b_100e_coco.py.

NAVIT_DATA is the folder that holds `coco/` and `weights/` (unset: data). The weights are
mae_pretrain_vit_large.pth of https://github.com/facebookresearch/mae.
python tools/train.py configs/detection/faster-rcnn_navit-l_100e_coco.py --amp
"""

_base_ = './faster-rcnn_navit-b_100e_coco.py'

model = dict(
    backbone=dict(
        arch=dict(preset='large'),
        drop_path_rate=0.4,
        with_cp=True,  # activations of 24 blocks would not fit
        init_cfg=dict(checkpoint='{{$NAVIT_DATA:data}}/weights/mae_pretrain_vit_large.pth'),
    ),
    neck=dict(in_channels=1024),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.8))
