"""One linear layer per token on a plain ViT-Ti from DeiT's ImageNet weights: 120 photos of clothing
to train on, 40 held out, 59 classes.

All but the data is linear_navit-ti_20e_folder.py. Cost: 24 to 27 minutes on one core of an AMD
EPYC, beside another training; mIoU 15.83, mean of three seeds (2026-11-21).

NAVIT_DATA is the folder that holds `clothing/` and `weights/` (unset: ../shared/data).
python tools/train.py configs/segmentation/linear_navit-ti_20e_clothing.py
"""

_base_ = './linear_navit-ti_20e_folder.py'

model = dict(decode_head=dict(num_classes=59))

data_root = '{{$NAVIT_DATA:../shared/data}}/clothing/'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
