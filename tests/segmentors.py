"""mmseg's segmentors on a tiny packed backbone, and batches of random pictures for them."""

import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

import navit_backbone.tasks.segmentation  # noqa: F401  registers

ARCH = dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=32, prefix_tokens=1)
NUM_CLASSES = 7
NORM = dict(type='LayerNorm2d', eps=1e-6)
LOSS = dict(type='CrossEntropyLoss', avg_non_ignore=True)
PYRAMID = dict(type='SimpleFeaturePyramid', in_channels=24, out_channels=16, strides=(4, 8, 16, 32))
LINEAR = dict(type='NaViTLinearHead', in_channels=24)
TWO_LEVELS = dict(type='NaViTLinearHead', in_channels=[24, 24], in_index=[0, 1])
SEGMENTER = dict(
    type='NaViTSegmenterHead', in_channels=24, channels=16, num_heads=2, drop_path_rate=0.0
)
FCN = dict(
    type='FCNHead', in_channels=24, channels=16, num_convs=2, concat_input=False, norm_cfg=NORM
)
UPERNET = dict(
    type='UPerHead',
    in_channels=[16] * 4,
    in_index=[0, 1, 2, 3],
    channels=16,
    norm_cfg=NORM,
    dropout_ratio=0.0,
)
SETR = dict(type='SETRUPHead', in_channels=24, channels=16, num_convs=2, up_scale=2, norm_cfg=NORM)
OCR = dict(type='OCRHead', in_channels=24, channels=16, ocr_channels=8, norm_cfg=NORM)
ATTENTION = dict(embed_dims=16, num_heads=2, batch_first=True)
POSITIONS = dict(num_feats=8, normalize=True)
MASK2FORMER = dict(
    type='Mask2FormerHead',
    in_channels=[16] * 4,
    strides=[4, 8, 16, 32],
    feat_channels=16,
    out_channels=16,
    num_queries=10,
    num_transformer_feat_level=3,
    pixel_decoder=dict(
        type='mmdet.MSDeformAttnPixelDecoder',
        num_outs=3,
        norm_cfg=NORM,
        act_cfg=dict(type='ReLU'),
        encoder=dict(
            num_layers=2,
            layer_cfg=dict(
                self_attn_cfg=dict(num_levels=3, num_points=4, **ATTENTION),
                ffn_cfg=dict(embed_dims=16, feedforward_channels=32),
            ),
        ),
        positional_encoding=POSITIONS,
    ),
    positional_encoding=POSITIONS,
    transformer_decoder=dict(
        return_intermediate=True,
        num_layers=2,
        layer_cfg=dict(
            self_attn_cfg=ATTENTION,
            cross_attn_cfg=ATTENTION,
            ffn_cfg=dict(embed_dims=16, feedforward_channels=32),
        ),
    ),
    loss_cls=dict(type='mmdet.CrossEntropyLoss', class_weight=[1.0] * NUM_CLASSES + [0.1]),
    loss_mask=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=True),
    loss_dice=dict(type='mmdet.DiceLoss', use_sigmoid=True, naive_dice=True),
)


def segmentor(head, **options):
    """What `config` describes, with its weights set."""
    torch.manual_seed(0)
    model = MODELS.build(config(head, **options))
    model.init_weights()
    return model


def config(head, *, neck=None, type='EncoderDecoder', mode='whole', position='learned_1d', **test):
    """A segmentor with `head`, or a cascade of heads, on the two last blocks of a tiny backbone."""
    init_default_scope('mmseg')
    heads = [
        ConfigDict(
            num_classes=NUM_CLASSES,
            **({} if item['type'] == 'Mask2FormerHead' else {'loss_decode': LOSS}),
            **item,
        )
        for item in (head if isinstance(head, list) else [head])
    ]
    stages = {'num_stages': len(heads)} if type == 'CascadeEncoderDecoder' else {}
    return dict(
        type=type,
        **stages,
        data_preprocessor=dict(
            type='NaViTSegDataPreprocessor',
            mean=[123.0, 116.0, 103.0],
            std=[58.0, 57.0, 57.0],
            bgr_to_rgb=True,
            size_divisor=16 if neck is None else 32,
        ),
        backbone=dict(type='NaViTBackbone', arch=ARCH, out_indices=(0, 1), position=position),
        neck=neck,
        decode_head=heads if stages else heads[0],
        train_cfg=ConfigDict(),
        test_cfg=ConfigDict(mode=mode, **test),
    )


def sample(size, *, native=None, seed=0):
    """What a pipeline gives of one picture: random pixels and labels, some of them ignored."""
    h, w = size
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(NUM_CLASSES, (1, h, w), generator=generator)
    labels[torch.rand(1, h, w, generator=generator) < 0.2] = 255
    data_sample = SegDataSample(
        metainfo=dict(img_shape=(h, w), ori_shape=native or (h, w), img_path=f'{seed}.jpg')
    )
    data_sample.gt_sem_seg = PixelData(data=labels)
    return torch.randint(256, (3, h, w), generator=generator, dtype=torch.uint8), data_sample


def batch(sizes, *, natives=None):
    """The same for several pictures, as a loader collates it."""
    natives = natives or [None] * len(sizes)
    pairs = [
        sample(size, native=native, seed=seed)
        for seed, (size, native) in enumerate(zip(sizes, natives, strict=True))
    ]
    images, samples = zip(*pairs, strict=True)
    return dict(inputs=list(images), data_samples=list(samples))
