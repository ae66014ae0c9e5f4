"""mmseg's own scripts and Inferencer run our config and give our label maps."""

import os
import subprocess
import sys
from pathlib import Path

import mmseg
import numpy as np
import pytest
import torch
from commands import NO_STOCK_WORKERS
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
STOCK = Path(mmseg.__file__).parent / '.mim' / 'tools'
CONFIG = ROOT / 'configs/segmentation/segmenter_navit-ti_20e_sample.py'
QUICK = [
    'train_cfg.max_epochs=2',
    'param_scheduler.1.end=2',  # which our tools set by themselves
    'model.backbone.arch.num_layers=2',
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
    """A sample set, and trainings of the same config by our script and by mmseg's."""
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


def label_maps(folder, tools, name, *more):
    """The label maps that a test script finds with our weights, by the picture's name."""
    out = folder / f'found_{name}'
    options = ['--work-dir', f'test_{name}']
    if tools == STOCK:
        options += ['--out', out, '--show-dir', folder / f'shown_{name}']
    else:
        more = [*more, f'test_evaluator.output_dir={out}']
    options += ['--cfg-options', *QUICK, *more]
    script(folder, tools / 'test.py', CONFIG, folder / 'ours/epoch_2.pth', *options)
    return {file.stem[:-9]: np.array(Image.open(file)) for file in (out / 'labels').glob('*.png')}


def test_the_stock_train_script_trains_the_same_model(folder):
    ours, stock = weights(folder, 'ours'), weights(folder, 'stock')
    assert ours.keys() == stock.keys()
    for key in ours:
        assert torch.allclose(ours[key], stock[key], atol=1e-6), key


def test_stock_test_script_and_inferencer_give_our_label_maps(folder):
    ours, stock = label_maps(folder, ROOT / 'tools', 'ours'), label_maps(folder, STOCK, 'stock')
    batch = label_maps(folder, STOCK, 'batch', 'test_dataloader.batch_size=6')
    assert len(ours) == 6
    assert {file.stem for file in (folder / 'shown_stock').rglob('*.jpg')} == set(ours)
    assert len(np.unique(np.concatenate([labels.ravel() for labels in ours.values()]))) > 1
    for name, labels in ours.items():
        assert (labels == stock[name]).all(), name
        assert (labels == batch[name]).mean() > 0.999, name  # float32, in another order

    from mmengine.config import Config
    from mmseg.apis import MMSegInferencer

    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict({'model.backbone.arch.num_layers': 2})
    cfg.dump(folder / 'quick.py')
    weights_file = str(folder / 'ours/epoch_2.pth')
    inferencer = MMSegInferencer(str(folder / 'quick.py'), weights_file, device='cpu')
    pictures = [str(folder / f'data/sample/val/{name}.jpg') for name in ours]
    for batch_size in (1, 6):
        results = inferencer(pictures, batch_size=batch_size)['predictions']
        for name, labels in zip(ours, results, strict=True):
            assert (ours[name] == labels).mean() > 0.999, name


def test_predict_gives_the_same_label_maps(folder):
    ours = label_maps(folder, ROOT / 'tools', 'again')
    picture = next(iter(ours))
    file = folder / f'data/sample/val/{picture}.jpg'
    checkpoint = folder / 'ours/epoch_2.pth'
    predict = ROOT / 'tools/predict.py'
    script(folder, predict, CONFIG, checkpoint, file, '--out-dir', 'out', '--cfg-options', *QUICK)
    labels = np.array(Image.open(folder / f'out/labels/{picture}.jpg.png'))
    assert (labels == ours[picture]).all()
