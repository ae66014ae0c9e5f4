"""Pictures as they come: any kind that can be read gets boxes, any other is named and skipped."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from PIL import Image
from test_tools import CONFIG, call

from navit_backbone.tasks.detection.inference import Detector
from navit_backbone.tools import predict, train
from navit_backbone.tools.command_line import override, read_config

sys.path.append(str(Path(__file__).parent / 'faults'))
from broken_clips import CLIP_BREAKS, CLIP_KINDS
from broken_files import BREAKS, KINDS, OF_SEGMENTATION, command, faults, write_set

CLASSES = ('a', 'b')
TINY = {
    'model.backbone.arch.embed_dims': 24,
    'model.backbone.arch.num_layers': 1,
    'model.backbone.arch.num_heads': 3,
    'model.backbone.arch.feedforward_channels': 32,
    'model.neck.in_channels': 24,
    'model.backbone.position': 'fourier',  # of any length
    'model.test_cfg.score_thr': 0.0,
    'model.test_cfg.max_per_img': 5,
}
OPTIONS = ['--cfg-options', *(f'{key}={value}' for key, value in TINY.items())]
# (height, width) as shown: beside the usual, below one patch, slim, and far beyond 196 tokens
SIZES = {'tiny.png': (3, 5), 'panorama.png': (1, 2000), 'tower.png': (2000, 1), 'dot.png': (1, 1)}
SIZES |= {'huge.jpg': (1501, 2003)}
H, W = 61, 83


def scene(h=H, w=W):
    """[h, w, 3] uint8 in RGB: smooth, so that JPEG keeps it, and unlike its turns and mirrors."""
    y, x = np.mgrid[:h, :w] / max(h, w)
    return np.stack([255 * x, 255 * y, 255 * (1 - x) * y], -1).astype(np.uint8)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def write_readable(folder):
    """Write pictures of many kinds; what each shows, [h, w, 3] in RGB."""
    picture, image = Image.fromarray(scene()), scene()
    gray = np.asarray(picture.convert('L'))
    rgba = np.dstack([image, np.full((H, W), 255, dtype=np.uint8)])
    shown = {'gray.png': gray, 'gray.jpg': gray, 'cmyk.jpg': image, 'rgba.png': image}
    Image.fromarray(gray).save(folder / 'gray.png')
    Image.fromarray(gray).save(folder / 'gray.jpg', quality=95)
    Image.fromarray(rgba).save(folder / 'rgba.png')
    picture.convert('CMYK').save(folder / 'cmyk.jpg', quality=95)
    cv2.imwrite(str(folder / '16bit.png'), image[..., ::-1].astype(np.uint16) * 257)
    cv2.imwrite(str(folder / '16bit_gray.png'), gray.astype(np.uint16) * 257)
    shown |= {'16bit.png': image, '16bit_gray.png': gray}
    for orientation, turn in ((6, lambda x: np.rot90(x, -1)), (2, np.fliplr), (5, np.transpose)):
        name = f'exif{orientation}.jpg'
        picture.save(folder / name, quality=95, exif=turned(orientation))
        shown[name] = image.transpose(1, 0, 2) if turn is np.transpose else turn(image)
    for name, size in SIZES.items():
        shown[name] = scene(*size)
        Image.fromarray(shown[name]).save(folder / name)
    return {k: i if i.ndim == 3 else np.dstack([i] * 3) for k, i in shown.items()}


def write_broken(folder):
    """Write files that are no whole pictures; their names."""
    folder.mkdir()
    for suffix in ('.jpg', '.png', '.bmp', '.webp', '.tif'):
        Image.fromarray(scene()).save(folder / f'cut{suffix}')
        whole = (folder / f'cut{suffix}').read_bytes()
        (folder / f'cut{suffix}').write_bytes(whole[: len(whole) // 2])
    (folder / 'empty.jpg').write_bytes(b'')
    (folder / 'text.png').write_text('this is no picture')
    (folder / 'zeros.jpg').write_bytes(bytes(5000))
    (folder / 'dangling.png').symlink_to(folder / 'nowhere.png')
    return {file.name for file in folder.iterdir()}


def write_model(file, options):
    """A checkpoint of a detector of random weights, with the names of its classes."""
    cfg = read_config(CONFIG, {})
    override(cfg, {**options, 'model.bbox_head.num_classes': len(CLASSES)})
    torch.manual_seed(0)
    state = MODELS.build(cfg.model).state_dict()
    torch.save(dict(state_dict=state, meta=dict(dataset_meta=dict(classes=CLASSES))), file)
    return file


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp('model') / 'random.pth', TINY)


@pytest.fixture
def detector(checkpoint):
    cfg = read_config(CONFIG, {})
    override(cfg, TINY)
    return Detector(cfg, checkpoint, device='cpu')


def test_pictures_of_every_kind_are_read_as_shown_and_get_boxes(detector, tmp_path):
    for name, shown in write_readable(tmp_path).items():
        results = detector.read(tmp_path / name)
        loaded = results['img'][..., ::-1].astype(int)
        assert loaded.shape == shown.shape, name
        assert np.abs(loaded - shown).mean() < 4, name
        objects = detector.find(results)
        assert objects, name
        h, w = shown.shape[:2]
        for item in objects:
            x, y, width, height = item['bbox']
            assert np.isfinite(item['bbox']).all(), name
            assert -1e-3 <= x <= x + width <= w + 1e-3, name
            assert -1e-3 <= y <= y + height <= h + 1e-3, name


def test_drawings_and_json_agree_on_sizes_and_broken_files_are_named(
    checkpoint, tmp_path, monkeypatch, capsys
):
    source, out = tmp_path / 'in', tmp_path / 'out'
    source.mkdir()
    shown = write_readable(source)
    sizes = {name: image.shape[:2] for name, image in shown.items()}
    broken = write_broken(source / 'broken')
    (source / 'folder.jpg').mkdir()  # no picture, whatever its name
    arguments = [CONFIG, checkpoint, source, '--out-dir', out, '--score-thr', 0, *OPTIONS]
    assert call(monkeypatch, predict, *arguments) == 3
    content = json.loads((out / 'predictions.json').read_text())

    listed = {
        Path(item['file_name']).name: (item['height'], item['width']) for item in content['images']
    }
    assert listed == sizes
    assert {item['image_id'] for item in content['annotations']} == {
        item['id'] for item in content['images']
    }
    for name, (h, w) in sizes.items():
        with Image.open(out / name) as drawing:
            assert drawing.size == (w, h), name
            assert not drawing.getexif().get(0x0112), name  # or viewers would turn it again
            marked = np.asarray(drawing.convert('RGB')).astype(int)
        assert np.abs(marked - shown[name]).max() > 60, name  # the boxes and their labels

    assert {Path(item['file_name']).name for item in content['skipped']} == broken
    told = capsys.readouterr().err
    for name in broken:
        assert f'{source / "broken" / name} cannot be read' in told
        assert not (out / 'broken' / name).exists()


def test_nothing_readable_still_ends_with_a_report(checkpoint, tmp_path, monkeypatch):
    broken = write_broken(tmp_path / 'broken')
    arguments = [CONFIG, checkpoint, tmp_path / 'broken', '--out-dir', tmp_path / 'out', *OPTIONS]
    assert call(monkeypatch, predict, *arguments) == 3
    content = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert (len(content['images']), len(content['skipped'])) == (0, len(broken))


def test_picture_that_the_model_cannot_take_stops_no_other(tmp_path, monkeypatch):
    """A grid of 1 x 196 patches is beyond positions up to 128."""
    options = {**TINY, 'model.backbone.position': 'factorised'}
    file = write_model(tmp_path / 'short.pth', options)
    source, out = tmp_path / 'in', tmp_path / 'out'
    source.mkdir()
    write_readable(source)
    arguments = [CONFIG, file, source, '--out-dir', out, '--cfg-options']
    arguments += [f'{key}={value}' for key, value in options.items()]
    assert call(monkeypatch, predict, *arguments) == 3
    content = json.loads((out / 'predictions.json').read_text())
    skipped = {Path(item['file_name']).name: item['reason'] for item in content['skipped']}
    assert skipped.keys() == {'panorama.png', 'tower.png'}
    assert 'does not fit the model (an image of 1 x 196 patches' in skipped['panorama.png']


# --------------------------------------------------------------------------------------------------
# In training


@pytest.mark.parametrize(
    ('task', 'breaks', 'workers'),
    [
        ('detection', BREAKS, 0),
        ('detection', BREAKS, 2),
        ('segmentation', OF_SEGMENTATION, 2),
        ('video', CLIP_BREAKS, 2),
    ],
)
def test_training_on_broken_files_ends_and_names_them(
    task, breaks, workers, tmp_path, monkeypatch, capfd
):
    """tests/faults/broken_files.py is the long version."""
    counts = dict(num_samples=20, num_broken=len(breaks))
    broken = write_set(tmp_path / 'set', task=task, **counts)
    assert set(broken.values()) == set(breaks)
    assert len(CLIP_KINDS if task == 'video' else KINDS) <= len(breaks)
    arguments = command(tmp_path / 'set', tmp_path / 'work', task=task, workers=workers)
    assert call(monkeypatch, train, *arguments) is None
    log = ''.join(capfd.readouterr())
    assert faults(broken, log, num_samples=20, task=task) == []
    first, *others = broken
    assert faults({key: broken[key] for key in others}, log, num_samples=20, task=task)
    assert faults(broken, log.replace(f'  {first} (', '  other ('), num_samples=20, task=task)
