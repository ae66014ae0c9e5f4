"""mmdet's own scripts and Inferencer run our config and give our boxes."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import mmdet
import numpy as np
import pytest
import torch
from commands import NO_STOCK_WORKERS

ROOT = Path(__file__).resolve().parents[1]
STOCK = Path(mmdet.__file__).parent / '.mim' / 'tools'
CONFIG = ROOT / 'configs/detection/retinanet_navit-ti_20e_sample.py'
# a low threshold: after two epochs nothing is sure, and no boxes would prove nothing
QUICK = [
    'train_cfg.max_epochs=2',
    'param_scheduler.1.end=2',  # which our tools set by themselves
    'model.backbone.arch.num_layers=2',
    'model.test_cfg.score_thr=0.001',
    *NO_STOCK_WORKERS,
]


def script(folder, *arguments):
    """Run a script where `data/sample` lies; its checkpoints and figures are its outcome."""
    run = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:] + run.stdout[-3000:]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A sample set, and trainings of the same config by our script and by mmdet's."""
    folder = tmp_path_factory.mktemp('stock')
    script(folder, ROOT / 'tools/prepare_data.py', 'sample', '--train', '16', '--val', '6')
    for name, tools in (('ours', ROOT / 'tools'), ('stock', STOCK)):
        options = ['--work-dir', name, '--cfg-options', *QUICK]
        script(folder, tools / 'train.py', CONFIG, *options)
    return folder


def weights(folder, name):
    path = folder / name / 'epoch_2.pth'
    # mmengine's own checkpoint, made above: it holds more than tensors
    return torch.load(path, map_location='cpu', weights_only=False)['state_dict']


def boxes(folder, tools, name):
    """The boxes that a test script finds with our weights: one array [n, 6] per picture."""
    out = folder / f'{name}.pkl'
    options = ['--work-dir', f'test_{name}', '--out', out, '--cfg-options', *QUICK]
    script(folder, tools / 'test.py', CONFIG, folder / 'ours/epoch_2.pth', *options)
    found = {}
    for item in pickle.loads(out.read_bytes()):  # made just above
        instances = item['pred_instances']
        columns = (instances['bboxes'], instances['scores'], instances['labels'])
        table = np.column_stack([np.asarray(column) for column in columns])
        found[Path(item['img_path']).name] = table
    return found


def test_the_stock_train_script_trains_the_same_model(folder):
    ours, stock = weights(folder, 'ours'), weights(folder, 'stock')
    assert ours.keys() == stock.keys()
    for key in ours:
        assert torch.allclose(ours[key], stock[key], atol=1e-6), key


def test_stock_test_script_and_inferencer_give_our_boxes(folder):
    ours, stock = boxes(folder, ROOT / 'tools', 'ours'), boxes(folder, STOCK, 'stock')
    assert ours.keys() == stock.keys()
    assert len(ours) == 6
    assert min(len(table) for table in ours.values()) > 0
    for name in ours:
        assert ours[name].shape == stock[name].shape, name
        assert np.allclose(ours[name], stock[name], atol=1e-4), name

    from mmdet.apis import DetInferencer
    from mmengine.config import Config

    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict({'model.backbone.arch.num_layers': 2, 'model.test_cfg.score_thr': 0.001})
    cfg.dump(folder / 'quick.py')
    weights_file = str(folder / 'ours/epoch_2.pth')
    inferencer = DetInferencer(str(folder / 'quick.py'), weights_file, device='cpu')
    pictures = [str(folder / 'data/sample/val' / name) for name in ours]
    results = inferencer(pictures, no_save_vis=True, pred_score_thr=0.0)['predictions']
    for name, item in zip(ours, results, strict=True):
        table = np.column_stack([item['bboxes'], item['scores'], item['labels']])
        assert np.allclose(ours[name], table, atol=1e-4), name


def test_predict_gives_the_same_boxes_in_coco_form(folder):
    ours = boxes(folder, ROOT / 'tools', 'again')
    picture = folder / 'data/sample/val' / next(iter(ours))
    checkpoint = folder / 'ours/epoch_2.pth'
    options = ['--cfg-options', *QUICK]
    predict = ROOT / 'tools/predict.py'
    script(folder, predict, CONFIG, checkpoint, picture, '--out-dir', 'out', *options)
    content = json.loads((folder / 'out/predictions.json').read_text())
    rows = [
        [x, y, x + w, y + h, item['score'], item['category_id']]
        for item in content['annotations']
        for x, y, w, h in [item['bbox']]
    ]
    assert np.allclose(np.array(rows), ours[picture.name], atol=1e-4)
    assert (folder / 'out' / picture.name).is_file()
