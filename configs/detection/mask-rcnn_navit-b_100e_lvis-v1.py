"""Mask R-CNN on a plain ViT-B from MAE's weights, LVIS v1: ViTDet's recipe at native resolution.

Model and recipe are those of mask-rcnn_navit-b_100e_coco.py, with twice its learning rate and a
step as large (ViTDet's, arXiv 2203.16527). Photos with rare classes come oftener (repeat factors,
threshold 0.001). The boxes' classes have a plain softmax, since mmdet has no federated loss, and
their scores count from 0.0001 as in mmdet's configs for LVIS (ViTDet: 0.02).
Cost and AP: not measured yet.

NAVIT_DATA is the folder that holds `lvis_v1/` and `weights/` (unset: data). `lvis_v1/` is laid out
as mmdet has it: `annotations/lvis_v1_{train,val}.json` and COCO's `train2017/` and `val2017/`.
python tools/train.py configs/detection/mask-rcnn_navit-b_100e_lvis-v1.py --amp
"""

_base_ = './mask-rcnn_navit-b_100e_coco.py'

model = dict(
    roi_head=dict(bbox_head=dict(num_classes=1203), mask_head=dict(num_classes=1203)),
    test_cfg=dict(rcnn=dict(score_thr=1e-4, max_per_img=300)),
)

steps_per_epoch = 1563  # 100,000 photos, 64 a step on 8 devices
data_root = '{{$NAVIT_DATA:data}}/lvis_v1/'
data = dict(type='NaViTLVISDataset', data_root=data_root, data_prefix=dict(img=''))
train_dataloader = dict(
    batch_sampler=dict(steps_per_epoch=steps_per_epoch),
    dataset=dict(
        _delete_=True,
        type='SeededClassBalancedDataset',
        oversample_thr=1e-3,
        dataset=dict(
            ann_file='annotations/lvis_v1_train.json',
            filter_cfg=dict(filter_empty_gt=True, min_size=1),
            pipeline=_base_.train_pipeline,
            **data,
        ),
    ),
)
val_dataloader = dict(dataset=dict(ann_file='annotations/lvis_v1_val.json', **data))
test_dataloader = val_dataloader
val_evaluator = dict(
    _delete_=True,
    type='NaViTLVISMetric',
    ann_file=data_root + 'annotations/lvis_v1_val.json',
    metric=['bbox', 'segm'],
)
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(save_best='lvis/segm_AP', rule='greater'))

num_steps = _base_.max_epochs * steps_per_epoch
optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type='MultiStepLR', by_epoch=False, milestones=[num_steps * 8 // 9, num_steps * 26 // 27]),
]
