"""One linear layer per token on UniViTAR-0.6B, ADE20K at native resolution. Cost and mIoU: not
measured yet.

What is not the size's stands in linear_univitar-0.3b_64e_ade20k.py.

NAVIT_DATA is the folder that holds `ade/` and `weights/` (unset: data). The weights are
those of https://huggingface.co/MM-MVR/UniViTAR-0.6B, converted first:
python tools/convert_weights.py hf://MM-MVR/UniViTAR-0.6B data/weights/univitar-0.6b.safetensors
python tools/train.py configs/segmentation/linear_univitar-0.6b_64e_ade20k.py --amp
"""

_base_ = './linear_univitar-0.3b_64e_ade20k.py'

model = dict(
    backbone=dict(
        arch=dict(preset='univitar_0.6b'),
        init_cfg=dict(checkpoint='{{$NAVIT_DATA:data}}/weights/univitar-0.6b.safetensors'),
    ),
    decode_head=dict(in_channels=1280),
)
