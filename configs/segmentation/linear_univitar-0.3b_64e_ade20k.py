"""One linear layer per token on UniViTAR-0.3B, ADE20K at native resolution and at a patch of 14.

As the paper's ADE20K model (arXiv 2307.06304, section 3.6): a linear decoder, photos with their
aspect, no squash and no crop. Evaluation has UniViTAR's own rule of sizes: 576 tokens at least, and
within the limits a photo's own size. Cost and mIoU: not measured yet.

NAVIT_DATA is the folder that holds `ade/` and `weights/` (unset: data). The weights are
those of https://huggingface.co/MM-MVR/UniViTAR-0.3B, converted first:
python tools/convert_weights.py hf://MM-MVR/UniViTAR-0.3B data/weights/univitar-0.3b.safetensors
python tools/train.py configs/segmentation/linear_univitar-0.3b_64e_ade20k.py --amp
"""

_base_ = [
    '../_base_/runtime_segmentation.py',
    '../_base_/univitar-0.3b.py',
    '../_base_/ade20k.py',
]

weights = '{{$NAVIT_DATA:data}}/weights/univitar-0.3b.safetensors'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='NaViTSegDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size_divisor=14,
    ),
    backbone=dict(
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=weights),
    ),
    decode_head=dict(
        type='NaViTLinearHead',
        in_channels=1024,
        in_stride=14,
        num_classes=150,
        loss_decode=dict(type='NaViTCrossEntropyLoss'),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadSegMap'),
    dict(
        type='ResizeToTokenBudget',
        max_tokens=1024,
        patch_size=14,
        random=dict(low_tokens=256, by='area'),
        interpolation='bicubic',  # Pillow's, as UniViTAR's code has it
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='ResizeToTokenBudget',
        min_tokens=576,
        max_tokens=4096,
        patch_size=14,
        interpolation='bicubic',
    ),
    dict(type='LoadSegMap'),  # behind the resize: the truth keeps its own size
    dict(type='PackSegInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

max_epochs = 64
num_steps = max_epochs * _base_.steps_per_epoch
train_cfg = dict(type='ResumableEpochLoop', max_epochs=max_epochs, val_interval=8)

optim_wrapper = dict(
    type='ExampleMeanOptimWrapper',
    optimizer=dict(type='AdamW', lr=0.0005, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.75),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=num_steps),
]
auto_scale_lr = dict(base_batch_size=16)
