"""The doctor finds what does not fit together in a config: every case is wrong in one place."""

import gc
import json
import re
import sys
from pathlib import Path

import pytest
from coco_files import write_data_of
from detectors import ARCH, DINO, FCOS, MASK_RCNN, STOCK, STRIDES, narrow
from mmengine.config import Config
from mmengine.registry import init_default_scope

from navit_backbone import NaViT
from navit_backbone.checkpoint import save_navit, weights_of
from navit_backbone.tasks.common.classes import override, set_num_classes
from navit_backbone.tools import doctor
from navit_backbone.tools.doctor_config import examine_config
from navit_backbone.tools.doctor_model import examine_model

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = next((ROOT / 'configs/detection').glob('retinanet_navit-ti_*_sample.py'))
CLASSES = ('a', 'b', 'c')
PIPELINE = 'train_dataloader.dataset.pipeline'


@pytest.fixture(autouse=True)
def _without_garbage_collection(monkeypatch):
    """A data set of mmengine collects all garbage when it is built, which is most of its time."""
    monkeypatch.setattr(gc, 'collect', int)


@pytest.fixture
def healthy(tmp_path):
    """A config that fits, and its data."""
    cfg = Config.fromfile(SAMPLE)
    root = tmp_path / 'set'
    write_data_of(cfg, root, classes=CLASSES)
    override(cfg, {'data_root': str(root)})
    cfg.model.backbone = dict(type='NaViTBackbone', arch=ARCH, position='learned_1d')
    cfg.model.neck.in_channels = ARCH['embed_dims']
    set_num_classes(cfg.model, len(CLASSES))
    init_default_scope('mmdet')
    return cfg


@pytest.fixture
def detector(healthy):
    """The same data for a stock detector behind our preprocessor, backbone and pyramid."""

    def detector(kind):
        ours = {key: healthy.model[key] for key in ('data_preprocessor', 'backbone')}
        healthy.model = Config.fromfile(STOCK / kind).model
        narrow(healthy.model, 32)
        pyramid = dict(type='SimpleFeaturePyramid', in_channels=24, out_channels=32)
        pyramid['strides'] = STRIDES[kind]
        ours['data_preprocessor'].pad_size_divisor = STRIDES[kind][-1]
        for key, value in {**ours, 'neck': pyramid}.items():
            healthy.model[key] = value
        set_num_classes(healthy.model, len(CLASSES))
        return healthy

    return detector


def problems(cfg):
    """What the doctor has against a config."""

    def examine():
        data = yield from examine_config(cfg)
        yield from examine_model(cfg, data)

    return [finding for finding in examine() if finding.problem]


def the_problem(cfg):
    found = problems(cfg)
    assert len(found) == 1, '\n'.join(map(str, found))
    return found[0]


def test_what_fits_is_healthy(healthy, detector):
    assert problems(healthy) == []
    assert problems(detector(MASK_RCNN)) == []
    assert problems(detector(DINO)) == []


def change_annotations(cfg, split, edit):
    """Change the annotations of a split."""
    data = cfg[f'{split}_dataloader'].dataset
    path = Path(data.data_root, data.ann_file)
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_an_evaluation_of_crowds_alone_is_wrong(healthy):
    change_annotations(
        healthy, 'val', lambda c: [item.update(iscrowd=1) for item in c['annotations']]
    )
    found = the_problem(healthy)
    assert found.name == 'val_evaluator'
    assert 'no box of a, b, c to compare with. Of 8 boxes 8 a crowd' in found.problem


def test_run_lengths_that_do_not_add_up_are_wrong(healthy):
    healthy.val_evaluator.metric = ['bbox', 'segm']
    mask = dict(size=[61, 113], counts=[10, 20, 30])
    change_annotations(healthy, 'val', lambda c: c['annotations'][0].update(segmentation=mask))
    found = the_problem(healthy)
    assert found.name == 'val_evaluator'
    assert 'they have 60 pixels, its image 61 x 113 = 6,893; 1 of 8 is' in found.problem


def test_more_objects_than_the_model_keeps_are_noted(healthy):
    healthy.model.test_cfg.max_per_img = 1
    notes = [f for f in examine_config(healthy) if f.note and f.name == 'val_evaluator']
    assert len(notes) == 1
    assert 'an image holds 2 objects, but model.test_cfg.max_per_img=1 lets' in notes[0].note


def test_images_of_training_in_the_evaluation_are_wrong(healthy):
    train = healthy.train_dataloader.dataset
    healthy.val_dataloader.dataset.data_prefix = train.data_prefix
    found = the_problem(healthy)
    assert found.name == 'val_dataloader: duplicates'
    assert found.problem.startswith('4 of 4 samples of val are in training too')


def test_every_stride_is_said(detector):
    cfg = detector(MASK_RCNN)
    lines = [str(finding) for finding in examine_model(cfg, {})]
    assert any('model.neck' in line and '4, 8, 16, 32, 64' in line for line in lines)
    assert any('model.rpn_head.anchor_generator.strides' in line for line in lines)
    assert any('model.roi_head.mask_roi_extractor.featmap_strides' in line for line in lines)


CASES = {  # what is changed -> the place that is named, what is wrong, and the way out
    'Pad': ({f'{PIPELINE}.3': dict(type='Pad', size_divisor=32)}, PIPELINE,
            "Pad overwrites a picture's img_shape", 'the data preprocessor pads'),
    'Pad inside a choice': (
        {f'{PIPELINE}.3': dict(type='RandomChoice', transforms=[[dict(type='Pad', size=(9, 9))]])},
        PIPELINE, 'Pad overwrites', 'remove it'),
    'another loader': ({'val_dataloader.dataset.pipeline.0.type': 'LoadImageFromNDArray'},
                       'val_dataloader.dataset.pipeline', 'starts with LoadImageFromNDArray',
                       "type='LoadImageFromFile'"),
    'an end that packs nothing': ({f'{PIPELINE}.4': dict(type='RandomFlip', prob=0.5)},
                                  PIPELINE, 'ends with RandomFlip', 'PackDetInputs'),
    'patches of the budget': ({f'{PIPELINE}.2.patch_size': 14}, PIPELINE,
                              'counts patches of 14 pixels, the backbone of 16', 'patch_size=16'),
    'an argument of a transform': ({f'{PIPELINE}.2.flux': 1}, 'train_dataloader',
                                   "unexpected keyword argument 'flux'", ''),
    'no annotations': ({'val_dataloader.dataset.ann_file': 'annotations/gone.json',
                        'val_evaluator.ann_file': None}, 'val_dataloader',
                       r'no annotation file at .*gone\.json: set data_root', ''),
    'batches smaller than pictures': (
        {'train_dataloader.batch_sampler': dict(type='TokenBudgetBatchSampler', max_tokens=8)},
        'train_dataloader', r'may have \d+ tokens, but a batch at most 8: lower max_tokens', ''),
    'no pictures': ({'train_dataloader.dataset.data_prefix.img': 'gone/'},
                    'train_dataloader.dataset.data_prefix', r'4 of 4 pictures are missing.*gone/0',
                    'data_prefix.img'),
    'figures of other data': ({'val_evaluator.ann_file': 'other.json'}, 'val_evaluator.ann_file',
                              'other.json is not the ann_file of the data set', 'set val_evalu'),
    'weights': ({'model.backbone.init_cfg': dict(type='Pretrained', checkpoint='gone.pth')},
                'model.backbone.init_cfg', 'no weights at gone.pth', 'init_cfg=None'),
    'weights of the whole': ({'load_from': 'gone.pth'}, 'load_from', 'no file at gone.pth',
                             'leave load_from out'),
    'anchors': ({'model.bbox_head.anchor_generator.strides': [8, 16]},
                'model.bbox_head.anchor_generator.strides',
                '8, 16, but its maps have strides 16, 32', r'strides=\[16, 32\]'),
    'anchors of more levels': ({'model.bbox_head.anchor_generator.strides': [16, 32, 64]},
                               'model.bbox_head.anchor_generator.strides',
                               '16, 32, 64, but its maps', ''),
    'the head is of another width': ({'model.bbox_head.in_channels': 32},
                                     'model.bbox_head.in_channels', 'but the maps have',
                                     'set model.bbox_head.in_channels='),
    'the neck is of another width': ({'model.neck.in_channels': 48}, 'model.neck', '24.*48|48.*24',
                                     'set model.neck.in_channels=24'),
    'the canvas': ({'model.data_preprocessor.pad_size_divisor': 16},
                   'model.data_preprocessor.pad_size_divisor', '16 is no multiple of 32',
                   'pad_size_divisor=32'),
    'sizes that get lost': ({'model.data_preprocessor.type': 'DetDataPreprocessor'},
                            'model.data_preprocessor',
                            '192 patches are computed where 80 are picture', 'NaViTDetDataPre'),
    'GroupNorm': ({'model.bbox_head.norm_cfg': dict(type='GN', num_groups=4)}, 'model.bbox_head',
                  'GroupNorm: the statistics take in padding', "type='LayerNorm2d'"),
    'BatchNorm': ({'model.bbox_head.norm_cfg': dict(type='BN')}, 'model.bbox_head',
                  'BatchNorm2d: the statistics', 'model.bbox_head.norm_cfg='),
    'positions': ({'model.backbone.position': dict(kind='factorised', max_size=16)},
                  'model.backbone.position', r'a picture of 31 patches a side, positions end at 16',
                  'learned_1d'),
    'an unknown part': ({'model.neck.type': 'Flux'}, 'model', 'Flux is not in the .*registry', ''),
}  # fmt: skip


@pytest.mark.parametrize('case', CASES)
def test_what_is_wrong_is_named_with_the_way_out(case, healthy):
    changes, place, problem, fix = CASES[case]
    for key, value in changes.items():
        change(healthy, key, value)
    found = the_problem(healthy)
    assert found.name.removesuffix('.pipeline') == place.removesuffix('.pipeline')
    assert re.search(problem, found.problem), found.problem
    assert re.search(fix, found.fix), found.fix


def change(cfg, key, value):
    """Set one value anywhere in a config."""
    *parents, last = key.split('.')
    for part in parents:
        cfg = cfg[int(part) if isinstance(cfg, list) else part]
    cfg[int(last) if isinstance(cfg, list) else last] = value


# --------------------------------------------------------------------------------------------------
# Other heads


def test_patch_14_under_a_pyramid_for_16(healthy):
    healthy.model.backbone.patch_size = 14
    found = {finding.name: finding for finding in problems(healthy)}
    assert set(found) == {
        'train_dataloader.dataset.pipeline',  # the budgets count patches of 16
        'val_dataloader.dataset.pipeline',
        'model.neck.in_stride',
        'model.data_preprocessor.pad_size_divisor',
        'model.bbox_head.anchor_generator.strides',
    }
    assert '16, 32, but its maps have strides 14, 28' in str(
        found['model.bbox_head.anchor_generator.strides']
    )
    assert 'set model.neck.in_stride=14' in found['model.neck.in_stride'].fix


def test_the_stride_of_a_stock_backbone_is_none_of_a_patch(healthy):
    healthy.model.backbone = dict(type='ResNet', depth=18, init_cfg=None)
    healthy.model.neck.update(in_channels=512, in_stride=32)
    assert not [item for item in problems(healthy) if item.name.startswith('model.neck')]


def test_patch_14_throughout_is_healthy(healthy):
    healthy.model.backbone.patch_size = 14
    healthy.model.neck.update(in_stride=14, strides=[14, 28])
    healthy.model.data_preprocessor.pad_size_divisor = 28
    healthy.model.bbox_head.anchor_generator.strides = [14, 28]
    for split in ('train', 'val', 'test'):
        for item in healthy[f'{split}_dataloader'].dataset.pipeline:
            if 'patch_size' in item:
                item.patch_size = 14
    assert problems(healthy) == []


def test_regions_are_cut_at_the_strides_of_the_maps(detector):
    cfg = detector(MASK_RCNN)
    cfg.model.roi_head.mask_roi_extractor.featmap_strides = [4, 8, 16, 64]
    found = the_problem(cfg)
    assert found.name == 'model.roi_head.mask_roi_extractor.featmap_strides'
    assert '4, 8, 16, 64, but its maps have strides 4, 8, 16, 32' in found.problem


def test_points_and_ranges_of_fcos(detector):
    cfg = detector(FCOS)
    cfg.model.neck.strides = (8, 16, 32, 64)
    cfg.model.data_preprocessor.pad_size_divisor = 64
    names = [finding.name for finding in problems(cfg)]
    assert names == ['model.bbox_head.strides', 'model.bbox_head.regress_ranges', 'model.bbox_head']


def test_levels_of_dino(detector):
    cfg = detector(DINO)
    cfg.model.neck.strides = (8, 16, 32)
    cfg.model.data_preprocessor.pad_size_divisor = 32
    found = problems(cfg)
    assert {finding.name.split(':')[0] for finding in found} == {
        'model.encoder',
        'model.decoder',
    }
    assert all('4 levels, but the neck gives 3 maps' in finding.problem for finding in found)


def test_norms_of_regions_see_no_padding(detector):
    cfg = detector(MASK_RCNN)
    cfg.model.roi_head.bbox_head.update(
        type='Shared4Conv1FCBBoxHead', norm_cfg=dict(type='GN', num_groups=4), conv_out_channels=32
    )
    assert problems(cfg) == []


def test_splits_with_other_classes(healthy, tmp_path):
    write_data_of(healthy, tmp_path / 'other', classes=('a', 'c', 'b'))
    data = healthy.val_dataloader.dataset
    data.ann_file = str(tmp_path / 'other' / data.ann_file)
    healthy.test_dataloader = healthy.val_dataloader
    healthy.val_evaluator.ann_file = data.ann_file
    assert the_problem(healthy).name == 'classes'


def test_stock_backbones_are_told_apart(healthy):
    healthy.model.backbone = Config.fromfile(STOCK / MASK_RCNN).model.backbone
    healthy.model.neck = dict(
        type='FPN', in_channels=[64, 128, 256, 512], out_channels=96, start_level=2, num_outs=2
    )
    healthy.model.backbone.depth = 18
    healthy.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='torchvision://resnet50')
    assert problems(healthy) == []
    healthy.model.backbone.init_cfg.checkpoint = 'gone.pth'
    assert the_problem(healthy).name == 'model.backbone.init_cfg'


def test_weights_of_another_model(healthy, tmp_path):
    other = NaViT({**ARCH, 'num_layers': 1}, position='learned_1d')
    save_navit(tmp_path / 'w.safetensors', weights_of(other))
    healthy.model.backbone.init_cfg = dict(
        type='Pretrained', checkpoint=str(tmp_path / 'w.safetensors')
    )
    found = the_problem(healthy)
    assert found.name == 'model.backbone.init_cfg'
    assert 'arch.num_layers: 1 in the file, 2 in the model' in found.problem


def test_outputs_of_several_blocks_are_kept(healthy):
    healthy.model.backbone.update(out_indices=(0, 1), window_size=3, global_attn_indexes=(1,))
    assert problems(healthy) == []


# --------------------------------------------------------------------------------------------------
# As a user calls it


def test_a_problem_ends_in_status_1(healthy, tmp_path, monkeypatch, capsys):
    (tmp_path / 'config.json').write_text(json.dumps(healthy.to_dict()))
    for options, status in (
        ([], None),
        (['--cfg-options', 'model.bbox_head.num_classes=7'], None),  # training sets it
        (['--cfg-options', 'model.data_preprocessor.pad_size_divisor=16'], '1 thing to mend'),
    ):
        monkeypatch.setattr(sys, 'argv', ['doctor.py', str(tmp_path / 'config.json'), *options])
        with pytest.raises(SystemExit) as stopped:
            doctor.main()
        assert stopped.value.code == status
    printed = capsys.readouterr().out
    assert 'see   model.bbox_head.num_classes 7, the data has 3 classes\n' in printed
    assert 'for stock scripts set model.bbox_head.num_classes=3' in printed
    assert 'WRONG model.data_preprocessor.pad_size_divisor' in printed


def test_a_config_of_no_detector_is_refused(tmp_path, monkeypatch):
    (tmp_path / 'config.py').write_text("model = dict(type='A')")
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(sys, 'argv', ['doctor.py', '~/config.py'])  # as in quotes
    with pytest.raises(SystemExit, match='is of no task known'):
        doctor.main()
