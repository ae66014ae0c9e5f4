"""UniViTAR-1B, Kinetics-400. Cost and accuracy: not measured yet.

What is not the size's stands in cls_univitar-0.3b_30e_kinetics400.py.

NAVIT_DATA is the folder that holds `kinetics400/` and `weights/` (unset: data). The weights are
those of https://huggingface.co/MM-MVR/UniViTAR-1B, converted first:
python tools/convert_weights.py hf://MM-MVR/UniViTAR-1B data/weights/univitar-1b.safetensors
python tools/train.py configs/video/cls_univitar-1b_30e_kinetics400.py --amp
"""

_base_ = './cls_univitar-0.3b_30e_kinetics400.py'

model = dict(
    backbone=dict(
        arch=dict(preset='univitar_1b'),
        with_cp=True,
        init_cfg=dict(checkpoint='{{$NAVIT_DATA:data}}/weights/univitar-1b.safetensors'),
    ),
)
