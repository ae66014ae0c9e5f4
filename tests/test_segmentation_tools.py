"""The commands that a user types, for segmentation: train, test, predict, publish."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import NO_WORKERS, call
from PIL import Image

from navit_backbone.checkpoint import read_checkpoint
from navit_backbone.tasks.common.sample_set import write_sample_set
from navit_backbone.tools import predict, prepare_data, publish, test, train

ROOT = Path(__file__).resolve().parents[1]
CONFIG = next((ROOT / 'configs/segmentation').glob('segmenter_navit-ti_*_sample.py'))
QUICK = [
    'model.backbone.arch.num_layers=1',
    'train_cfg.max_epochs=1',
    'train_cfg.val_interval=1',
    *NO_WORKERS,
]
CLASSES = ['paper', 'circle', 'square', 'triangle', 'star', 'ring']
COLOURS = [[40 * i, 200, 7] for i in range(6)]


@pytest.fixture(scope='module')
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sample') / 'set'
    write_sample_set(folder, seed=0, num_pictures=dict(train=8, val=3))
    return folder


@pytest.fixture(scope='module')
def options(sample):
    return ['--cfg-options', f'data_root={sample}', *QUICK]


@pytest.fixture(scope='module')
def checkpoint(options, tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        work_dir = tmp_path_factory.mktemp('work')
        more = [
            'model.decode_head.num_classes=2',  # the data has six, and the model follows
            f'train_dataloader.dataset.metainfo.palette={COLOURS}'.replace(' ', ''),
        ]
        arguments = [CONFIG, '--work-dir', work_dir, *options, *more]
        assert call(monkeypatch, train, *arguments) is None
    return work_dir / 'epoch_1.pth'


def test_model_counts_the_classes_of_its_data(checkpoint):
    state = read_checkpoint(checkpoint)
    assert len(state['state_dict']['decode_head.cls_emb']) == 6
    assert list(state['meta']['dataset_meta']['classes']) == CLASSES


def figures(monkeypatch, checkpoint, options, tmp_path, *arguments):
    out = tmp_path / 'figures.json'
    more = ['--work-dir', tmp_path / 'work', '--out', out, *arguments]
    assert call(monkeypatch, test, CONFIG, checkpoint, *more, *options) is None
    return json.loads(out.read_text())


def test_a_mixed_batch_gives_the_figures_of_batch_1(checkpoint, options, monkeypatch, tmp_path):
    single = figures(monkeypatch, checkpoint, options, tmp_path)
    several = [*options, 'test_dataloader.batch_size=3']
    batch = figures(monkeypatch, checkpoint, several, tmp_path)
    for key in ('aAcc', 'mIoU', 'mAcc', 'mBIoU'):
        assert batch[key] == pytest.approx(single[key], abs=0.011), key


def relabelled(sample, folder, split, change):
    """A copy of the set whose label maps of a split are changed."""
    shutil.copytree(sample, folder)
    files = sorted((folder / 'masks' / split).glob('*.png'))
    assert files, f'no label maps of {split} in {folder}'
    for file in files:
        labels = np.array(Image.open(file))
        Image.fromarray(change(labels).astype(np.uint8)).save(file)
    return folder


def test_label_maps_of_the_evaluation_are_read_before_the_first_step(sample, monkeypatch, tmp_path):
    folder = relabelled(sample, tmp_path / 'set', 'val', lambda labels: labels + 70)
    work = tmp_path / 'work'
    told = call(
        monkeypatch,
        train,
        CONFIG,
        '--work-dir',
        work,
        '--cfg-options',
        f'data_root={folder}',
        *QUICK,
    )
    assert told.startswith('error: 3 of 3 label maps cannot be evaluated')
    assert 'have the labels 70' in told
    assert not list(work.glob('*.pth'))


def test_maps_in_colours_are_told_in_a_sentence(sample, monkeypatch, tmp_path):
    folder = relabelled(sample, tmp_path / 'set', 'train', lambda labels: np.stack([labels] * 3, 2))
    arguments = ['--work-dir', tmp_path, '--cfg-options', f'data_root={folder}', *QUICK]
    told = call(monkeypatch, train, CONFIG, *arguments)
    assert told.startswith('error: not one label map can be used')
    assert 'prepare_data.py masks' in told


def test_a_training_set_of_masks_of_0_and_255_is_refused_with_the_command_that_numbers_them(
    sample, monkeypatch, tmp_path
):
    folder = relabelled(
        sample, tmp_path / 'set', 'train', lambda labels: np.where(labels > 0, 255, 0)
    )
    arguments = ['--work-dir', tmp_path, '--cfg-options', f'data_root={folder}', *QUICK]
    told = call(monkeypatch, train, CONFIG, *arguments)
    assert "only 'paper' has pixels" in told
    command = re.search(r'prepare_data\.py (masks .*), then set data_prefix', told)[1]
    (folder / 'masks/classes.txt').unlink(missing_ok=True)
    assert call(monkeypatch, prepare_data, *shlex.split(command)) is None
    numbered = sorted((folder / 'masks/train_numbered').rglob('*.png'))
    assert numbered
    for file in numbered:
        values = np.unique(np.asarray(Image.open(folder / 'masks/train' / file.name)))
        found = np.unique(np.asarray(Image.open(file)))
        assert [{0: 0, 255: 1}[value] for value in values.tolist()] == found.tolist()


@pytest.mark.parametrize('split', ['train', 'val'])
def test_a_split_without_a_class_pixel_is_refused_before_the_first_step(
    sample, monkeypatch, tmp_path, split
):
    folder = relabelled(sample, tmp_path / 'set', split, lambda labels: np.full_like(labels, 255))
    arguments = ['--work-dir', tmp_path / 'work', '--cfg-options', f'data_root={folder}', *QUICK]
    told = call(monkeypatch, train, CONFIG, *arguments)
    assert re.match(rf'error: label maps of .*{split}.*: no pixel has a class, 100% of all', told)
    assert not list((tmp_path / 'work').rglob('*.pth'))


def test_classes_in_another_order_than_in_training_are_refused(
    checkpoint, options, monkeypatch, tmp_path
):
    mixed = f'classes={[*CLASSES[1:], CLASSES[0]]}'.replace(' ', '')
    told = call(monkeypatch, test, CONFIG, checkpoint, '--work-dir', tmp_path, *options, mixed)
    assert 'in another order (class 0 is' in told


def test_predict_never_draws_over_a_picture(checkpoint, options, monkeypatch, tmp_path):
    picture = tmp_path / 'photo.png'
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(picture)
    before = picture.read_bytes()
    told = call(monkeypatch, predict, CONFIG, checkpoint, picture, '--out-dir', tmp_path, *options)
    assert 'which the drawing would take the place of' in told
    assert picture.read_bytes() == before


def test_a_published_model_is_found_by_the_name_it_was_to_have(
    checkpoint, options, monkeypatch, tmp_path
):
    picture = tmp_path / 'photo.png'
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(picture)
    (tmp_path / 'mine-12345678.safetensors').write_bytes(b'')
    told = call(
        monkeypatch, predict, tmp_path / 'mine.safetensors', picture, '--out-dir', tmp_path / 'out'
    )
    assert 'did you mean' in told
    assert 'mine-12345678.safetensors' in told


def test_two_processes_give_the_figures_of_one(checkpoint, options, monkeypatch, tmp_path):
    """Three pictures on two ranks: one has a picture less."""
    single = figures(monkeypatch, checkpoint, options, tmp_path)
    out = tmp_path / 'two.json'
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    command += ['--nproc_per_node', '2', ROOT / 'tools/test.py', CONFIG, checkpoint]
    command += ['--launcher', 'pytorch', '--work-dir', tmp_path, '--out', out, *options]
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1')
    done = subprocess.run(
        [*map(str, command)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-9000:]
    assert json.loads(out.read_text()) == single


def test_files_of_an_evaluation(checkpoint, options, monkeypatch, tmp_path):
    show, kept = tmp_path / 'show', tmp_path / 'kept'
    more = [*options, f'test_evaluator.output_dir={kept}']
    plain = figures(monkeypatch, checkpoint, more, tmp_path, '--show-dir', show)
    assert len(list(show.glob('*.jpg'))) == 3
    assert list(json.loads((kept / 'per_class.json').read_text())) == CLASSES
    assert len(list((kept / 'labels').glob('*.png'))) == 3
    assert (kept / 'confusion.png').is_file()
    flipped = figures(monkeypatch, checkpoint, options, tmp_path, '--tta')
    assert flipped.keys() == plain.keys()
    assert flipped != plain


def test_slide_refuses_mixed_sizes(checkpoint, options, monkeypatch, tmp_path):
    slide = ['model.test_cfg.mode=slide', 'model.test_cfg.crop_size=(96,96)']
    more = [*options, *slide, 'model.test_cfg.stride=(64,64)']
    assert figures(monkeypatch, checkpoint, more, tmp_path)['aAcc'] > 0
    arguments = [CONFIG, checkpoint, '--work-dir', tmp_path, *more, 'test_dataloader.batch_size=3']
    assert "mode='whole', which takes any sizes" in call(monkeypatch, test, *arguments)


def test_quality_and_time_by_tokens(checkpoint, options, monkeypatch, tmp_path, capsys):
    arguments = [CONFIG, checkpoint, '--tokens', '16,100,native', '--work-dir', tmp_path, *options]
    assert call(monkeypatch, test, *arguments) is None
    rows = json.loads((tmp_path / 'token_curve.json').read_text())
    assert [row['budget'] for row in rows] == [16, 100, 'native']
    assert rows[0]['tokens'] <= 16 < 60 < rows[1]['tokens'] <= 100
    assert all(row['seconds'] > 0 and 'mIoU' in row for row in rows)
    assert (tmp_path / 'token_curve.png').is_file()
    assert re.search(r'budget +tokens +seconds', capsys.readouterr().out)


@pytest.mark.parametrize('budgets', ['0', '16;100', 'all'])
def test_budgets_that_are_none(budgets, checkpoint, options, monkeypatch):
    told = call(monkeypatch, test, CONFIG, checkpoint, '--tokens', budgets, *options)
    assert f'--tokens {budgets}' in told


def test_prediction_from_one_file(checkpoint, sample, monkeypatch, tmp_path, capsys):
    """Published, the model needs neither config nor data."""
    published = tmp_path / 'model.safetensors'
    assert call(monkeypatch, publish, checkpoint, published) is None
    (file,) = tmp_path.glob('model-*.safetensors')
    source, out = tmp_path / 'in', tmp_path / 'out'
    source.mkdir()
    pictures = sorted((sample / 'val').glob('*.jpg'))
    for picture in pictures:
        (source / picture.name).write_bytes(picture.read_bytes())
    (source / 'cut.jpg').write_bytes(pictures[0].read_bytes()[:200])
    first = source / pictures[0].name
    Image.open(first).transpose(Image.Transpose.ROTATE_90).save(first.with_suffix('.png'))
    pictures = sorted(set(source.iterdir()) - {source / 'cut.jpg'})  # two of one name
    assert call(monkeypatch, predict, file, source, '--out-dir', out) == 3
    content = json.loads((out / 'predictions.json').read_text())
    assert [item['name'] for item in content['categories']] == CLASSES
    assert [Path(item['file_name']).name for item in content['skipped']] == ['cut.jpg']
    for item, picture in zip(content['images'], pictures, strict=True):
        kept = Image.open(out / item['labels'])
        assert kept.getpalette()[:18] == [part for colour in COLOURS for part in colour]
        labels = np.array(kept)
        assert labels.shape == (item['height'], item['width'])
        assert Image.open(picture).size == (item['width'], item['height'])
        assert sum(item['shares'].values()) == pytest.approx(1, abs=1e-4)
        first = next(iter(item['shares']))
        assert item['shares'][first] == pytest.approx((labels == CLASSES.index(first)).mean())
        assert (out / picture.name).is_file()
    assert 'of 6 classes found' in capsys.readouterr().out


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(['mmdet', 'mmcv.ops', 'mmcv._ext']))
from navit_backbone.tools import {tool}
sys.argv = ['{tool}', *sys.argv[1:]]
{tool}.main()
"""


def test_everything_without_mmdet_and_compiled_operators(checkpoint, options, tmp_path):
    """But for Mask2Former, which is mmdet's."""
    picture = ROOT / 'docs/browse.png'
    for tool, arguments in (
        ('train', [CONFIG, '--work-dir', tmp_path, *options]),
        ('test', [CONFIG, checkpoint, '--work-dir', tmp_path, *options]),
        ('predict', [CONFIG, checkpoint, picture, '--out-dir', tmp_path / 'out', *options]),
    ):
        command = [sys.executable, '-c', WITHOUT.format(tool=tool), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


STOCK_HEADS = """
import sys
sys.modules.update(dict.fromkeys(['mmdet', 'mmcv.ops', 'mmcv._ext']))
sys.path.insert(0, 'tests')
from segmentors import FCN, PYRAMID, UPERNET, batch, segmentor
for options in (dict(head=UPERNET, neck=PYRAMID), dict(head=FCN)):
    model = segmentor(**options)
    data = model.data_preprocessor(batch([(64, 80), (33, 47)]), True)
    assert model.loss(data['inputs'], data['data_samples'])['decode.loss_ce'].isfinite()
    found = model.eval().test_step(batch([(64, 80), (33, 47)]))
    assert [sample.pred_sem_seg.shape for sample in found] == [(64, 80), (33, 47)]
"""


def test_stock_heads_without_mmdet_and_compiled_operators():
    command = [sys.executable, '-c', STOCK_HEADS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
