"""Control arm of fcos_navit-ti_20e_raccoon.py: padding is attended, as in a stock ViT.

Everything else is the same: weights, pyramid, head, schedule, and the size of every photo, so the
same number of real tokens. mmdet's own preprocessor says nothing of sizes, and so the whole canvas
counts as picture: in attention, in the positions and in the pyramid.

python tools/train.py configs/detection/fcos_navit-ti_20e_raccoon_padded.py
"""

_base_ = './fcos_navit-ti_20e_raccoon.py'

model = dict(data_preprocessor=dict(type='DetDataPreprocessor'))
