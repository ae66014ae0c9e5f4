"""One linear layer per token on UniViTAR-1B, ADE20K at native resolution. Cost and mIoU: not
measured yet.

What is not the size's stands in linear_univitar-0.3b_64e_ade20k.py.

NAVIT_DATA is the folder that holds `ade/` and `weights/` (unset: data). The weights are
those of https://huggingface.co/MM-MVR/UniViTAR-1B, converted first:
python tools/convert_weights.py hf://MM-MVR/UniViTAR-1B data/weights/univitar-1b.safetensors
python tools/train.py configs/segmentation/linear_univitar-1b_64e_ade20k.py --amp
"""

_base_ = './linear_univitar-0.3b_64e_ade20k.py'

model = dict(
    backbone=dict(
        arch=dict(preset='univitar_1b'),
        init_cfg=dict(checkpoint='{{$NAVIT_DATA:data}}/weights/univitar-1b.safetensors'),
    ),
    decode_head=dict(in_channels=1920),
)
