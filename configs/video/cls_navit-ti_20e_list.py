"""As cls_navit-ti_20e_folder.py, on clips that lists name.

`data_root` holds train.txt and val.txt, a path within it and a class a line, as mmaction2 has them:
`clips/one.mp4 walk`. A class is a name or a number; where they are numbers, classes.txt beside the
lists says their names, a line each. Cost and accuracy: not measured yet.

CONFIG=configs/video/cls_navit-ti_20e_list.py
python tools/train.py $CONFIG --cfg-options data_root=/data/mine
"""

_base_ = './cls_navit-ti_20e_folder.py'

train_dataloader = dict(dataset=dict(ann_file='train.txt', data_prefix=dict(clips='')))
val_dataloader = dict(dataset=dict(ann_file='val.txt', data_prefix=dict(clips='')))
test_dataloader = val_dataloader
