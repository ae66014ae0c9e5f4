"""The sweep itself: its rules, its record, and that what is wrong counts as failed."""

import json
import os
import sys
import time

import pytest
from mmengine.config import ConfigDict
from sweep import stock_configs, stock_detectors
from sweep.adoption import adopted, backbone_strides
from sweep.one_step import Pictures, one_step

RPN = 'rpn/rpn_r50_fpn_1x_coco.py'


@pytest.mark.parametrize(
    ('config', 'strides', 'others', 'divisor'),
    [
        (RPN, [4, 8, 16, 32, 64], [], 64),
        ('retinanet/retinanet_r18_fpn_1x_coco.py', [8, 16, 32, 64, 128], [], 128),
        ('swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py', [8, 16, 32, 64, 128], [], 128),
        ('dino/dino-5scale_swin-l_8xb2-12e_coco.py', [4, 8, 16, 32, 64], [], 64),
        ('detr/detr_r50_8xb2-150e_coco.py', [32], [], 32),
        ('faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco.py', [16], [], 16),
        ('mask_rcnn/mask-rcnn_r50-caffe-c4_1x_coco.py', [16], [], 16),
        ('rtmdet/rtmdet_l_swin_b_p6_4xb16-100e_coco.py', [8, 16, 32, 64], ['CSPNeXtPAFPN'], 64),
        ('yolof/yolof_r50-c5_8xb8-1x_coco.py', [32], ['DilatedEncoder'], 32),
        ('nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco.py', [4, 8, 16, 32], ['NASFPN'], 128),
        ('libra_rcnn/libra-retinanet_r50_fpn_1x_coco.py', [8, 16, 32, 64, 128], ['BFP'], 128),
    ],
)
def test_the_pyramid_gives_the_strides_of_what_it_replaces(config, strides, others, divisor):
    model = stock_configs.adopt(config, stock_configs.read(config))
    pyramid, *kept = model.neck if isinstance(model.neck, list) else [model.neck]
    assert pyramid.strides == strides
    assert [neck.type for neck in kept] == others
    assert model.data_preprocessor.pad_size_divisor == divisor


def test_a_dilated_stage_keeps_its_stride():
    assert backbone_strides(dict(type='ResNet', strides=(1, 2, 2, 1))) == [4, 8, 16, 16]
    assert backbone_strides(dict(type='SwinTransformer', out_indices=(1, 3))) == [8, 32]


def test_custom_imports_stay():
    model = stock_configs.read(RPN).model.to_dict()
    text = adopted(model, arch='tiny', width=192, imports=['theirs'])
    assert text.startswith("custom_imports = dict(imports=['theirs', 'navit_backbone.tasks.")


@pytest.mark.parametrize(
    ('config', 'reason'),
    [
        ('fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py', 'takes proposals from a file'),
        ('grounding_dino/grounding_dino_r50_scratch_8xb2_1x_coco.py', 'text-conditioned'),
        ('deepsort/deepsort_faster-rcnn_r50_fpn_8xb2-4e_mot17train_test-mot17test.py', 'tracking'),
        ('reid/reid_r50_8xb32-6e_mot17train80_test-mot17val20.py', 'ReID'),
        ('soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py', 'semi-'),
        ('hrnet/fcos_hrnetv2p-w18-gn-head_4xb4-1x_coco.py', 'another backbone: HRNet'),
        ('clrnet/clrnet.py', 'lanes'),
        ('common/lsj-100e_coco-detection.py', 'has no model'),
        ('misc/d2_retinanet_r50-caffe_fpn_ms-90k_coco.py', 'another package'),
        ('convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py', 'needs another package'),
        ('sort/faster-rcnn_r50_fpn_8xb2-8e_mot20train_test-mot20train.py', 'file that is absent'),
    ],
)
def test_what_is_left_out_and_why(config, reason):
    with pytest.raises(ValueError, match=reason):
        stock_configs.read(config)


@pytest.mark.parametrize(
    ('part', 'value', 'message'),
    [
        ('neck', dict(strides=[2, 4, 8, 16, 32]), 'counts with stride 64'),
        ('backbone', dict(frozen_stages=2, arch=dict(final_norm=False)), 'no gradient reaches'),
        ('rpn_head', dict(loss_bbox=dict(type='L1Loss', loss_weight=float('nan'))), 'not finite'),
    ],
)
def test_a_step_that_goes_wrong_is_no_pass(part, value, message):
    cfg = stock_configs.read(RPN)
    model = stock_configs.shrink(stock_configs.adopt(RPN, cfg))
    model[part].update(value)
    with pytest.raises(ValueError, match=message):
        one_step(model, stock_configs.pictures(cfg))


@pytest.mark.parametrize(
    ('work', 'reason'),
    [
        (lambda *_: os._exit(3), 'the process ended with 3'),
        (lambda *_: time.sleep(60), 'over 1 s'),
        (lambda *_: 1 / 0, 'ZeroDivisionError: division by zero'),
    ],
)
def test_a_crash_or_a_hang_is_a_result(monkeypatch, work, reason):
    monkeypatch.setattr(stock_detectors, 'one_step', work)
    result = stock_detectors.in_a_process(ConfigDict(), Pictures(1, 1), seconds=1)
    assert (result['passed'], result['reason']) == (False, reason)


def test_goes_on_where_it_stopped(monkeypatch, tmp_path, capsys):
    """Configs of one model share a run; a failure is tried again only when asked for."""
    runs = []

    def run(model, *_, **__):
        runs.append(model)
        return dict(passed=len(runs) > 2, reason='once', place='', seconds=0)

    def sweep(*options):
        runs_before = len(runs)
        command = ['', '--out', str(tmp_path / 'a/sweep.json'), '--only', 'rpn/rpn_*', *options]
        monkeypatch.setattr(sys, 'argv', command)
        stock_detectors.main()
        return len(runs) - runs_before, capsys.readouterr().out

    monkeypatch.setattr(stock_detectors, 'in_a_process', run)
    monkeypatch.chdir(tmp_path)  # to where it comes back
    count, told = sweep('--limit', '1')
    assert count == 2  # the stock model too, after a failure
    assert 'are still to be run' in told
    assert sweep('--limit', '1')[0] == 1
    assert sweep()[0] > 0
    count, told = sweep()
    assert count == 0
    assert 'once (); the stock model fails so too' in told
    count, told = sweep('--retry-failed')
    assert count == 1
    assert '11 of 11 configs pass, 100.0%' in told
    record = json.loads((tmp_path / 'a/sweep.json').read_text())
    assert len(record['models']) < len(record['configs'])
