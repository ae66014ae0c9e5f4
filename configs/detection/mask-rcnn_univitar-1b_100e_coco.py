"""Mask R-CNN on UniViTAR-1B, COCO. Cost and AP: not measured yet.

What is not the size's stands in mask-rcnn_univitar-0.3b_100e_coco.py.

NAVIT_DATA is the folder that holds `coco/` and `weights/` (unset: data). The weights are
those of https://huggingface.co/MM-MVR/UniViTAR-1B, converted first:
python tools/convert_weights.py hf://MM-MVR/UniViTAR-1B data/weights/univitar-1b.safetensors
python tools/train.py configs/detection/mask-rcnn_univitar-1b_100e_coco.py --amp
"""

_base_ = './mask-rcnn_univitar-0.3b_100e_coco.py'

model = dict(
    backbone=dict(
        arch=dict(preset='univitar_1b'),
        drop_path_rate=0.5,  # ViTDet's for 32 blocks, of which 7, 15, 23 and 31 stay global
        init_cfg=dict(checkpoint='{{$NAVIT_DATA:data}}/weights/univitar-1b.safetensors'),
    ),
    neck=dict(in_channels=1920),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.9))
