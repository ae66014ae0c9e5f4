"""Files are looked at before the first step: some for training, all for an evaluation."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from coco_files import SIZES, write_coco
from mmengine.registry import DATASETS, HOOKS, init_default_scope
from PIL import Image

import navit_backbone.tasks.detection  # noqa: F401  registers
from navit_backbone.tasks.common import picture_check
from navit_backbone.tasks.common.picture_check import require_all, require_some

VAL = 'annotations/instances_val.json'
PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeToTokenBudget', max_tokens=16, patch_size=16),
    dict(type='PackDetInputs'),
]


def build(root, *, test_mode=True, pipeline=PIPELINE, **options):
    init_default_scope('mmdet')
    data = dict(type='NaViTCocoDataset', data_root=str(root), ann_file=VAL, **options)
    data.setdefault('data_prefix', dict(img='images/'))
    return DATASETS.build(data | dict(pipeline=pipeline, test_mode=test_mode))


@pytest.fixture
def root(tmp_path):
    write_coco(tmp_path, VAL, 'images')
    return tmp_path


def half(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def other_size(file):
    Image.fromarray(np.zeros((30, 20, 3), np.uint8)).save(file)


BREAKS = {
    'truncated': half,
    'empty': lambda file: file.write_bytes(b''),
    'text': lambda file: file.write_text('no picture'),
    'missing': lambda file: file.unlink(),
    'zeros at the end': lambda file: file.write_bytes(file.read_bytes()[:600] + bytes(3000)),
    'of another size': other_size,
}


def test_a_sound_set_passes_without_loading_a_picture(root, monkeypatch):
    data = build(root)
    monkeypatch.setattr(type(data), '__getitem__', lambda *_: pytest.fail('loaded'))
    require_some(data)
    require_all(data)


@pytest.mark.parametrize('how', BREAKS)
def test_each_picture_that_an_evaluation_could_not_read_is_named(root, how):
    data = build(root)
    for name in ('1.jpg', '3.jpg'):
        BREAKS[how](root / 'images' / name)
    with pytest.raises(ValueError, match=r'^2 of the 4 pictures of .*instances_val.json') as error:
        require_all(data)
    said = str(error.value).splitlines()
    assert len(said) == 3
    assert 'images/1.jpg' in said[1]
    assert 'images/3.jpg' in said[2]
    require_some(data)


@pytest.mark.parametrize('suffix', ['png', 'bmp', 'webp', 'tif'])
def test_other_formats_are_judged_too(root, suffix):
    path = root / VAL
    content = json.loads(path.read_text())
    for image in content['images']:
        picture = Image.open(root / 'images' / image['file_name'])
        image['file_name'] = f'{image["id"]}.{suffix}'
        picture.save(root / 'images' / image['file_name'])
    path.write_text(json.dumps(content))
    require_all(build(root))
    half(root / f'images/2.{suffix}')
    with pytest.raises(ValueError, match=rf'^1 of the 4 pictures [^\n]*\n[^\n]*2\.{suffix}'):
        require_all(build(root))


def test_what_follows_the_end_of_a_picture_is_no_fault(root):
    for number in range(4):
        with (root / f'images/{number}.jpg').open('ab') as file:
            file.write(b'\0\0\n' if number % 2 else b'made by a camera')
    require_all(build(root))


@pytest.mark.parametrize('kept', [0, 1])
def test_a_wrong_folder_is_one_sentence(root, kept):
    data = build(root, data_prefix=dict(img='elsewhere/'))
    if kept:
        (root / 'elsewhere').mkdir()
        (root / 'images/3.jpg').rename(root / 'elsewhere/3.jpg')
        require_some(data)
        return
    words = r'none of the 4 pictures of .*_val.json is there, the first would be .*elsewhere/0.jpg'
    for check in (require_some, require_all):
        with pytest.raises(ValueError, match=words):
            check(data)


def test_more_than_ten_are_counted(tmp_path):
    write_coco(tmp_path, VAL, 'images', sizes=SIZES[:1] * 14)
    for number in range(13):
        (tmp_path / f'images/{number}.jpg').write_bytes(b'')
    with pytest.raises(ValueError, match=r'^13 of the 14 [\s\S]*\n  and 3 more$') as error:
        require_all(build(tmp_path))
    assert len(str(error.value).splitlines()) == 12


def test_files_of_a_server_are_not_looked_for(root):
    loader = dict(type='LoadImageFromFile', backend_args=dict(backend='http'))
    require_all(build(root, pipeline=[loader], data_prefix=dict(img='elsewhere/')))
    require_some(build(root, data_prefix=dict(img='https://example.org/')))


def test_the_hook_looks_at_training_data_loosely_and_at_an_evaluation_once(root, monkeypatch):
    data = SimpleNamespace(dataset=build(root))
    runner = SimpleNamespace(train_dataloader=data, val_dataloader=data, test_dataloader=data)
    runner.val_loop = None
    hook = HOOKS.build(dict(type='PictureCheckHook'))
    (root / 'images/2.jpg').unlink()
    hook.before_train(runner)  # training would replace it
    runner.val_loop = object()
    for when in (hook.before_train, hook.before_val, hook.before_test):
        with pytest.raises(ValueError, match='1 of the 4 pictures'):
            when(runner)
    lost = SimpleNamespace(dataset=build(root, data_prefix=dict(img='elsewhere/')))
    with pytest.raises(ValueError, match='none of the 4 pictures'):
        hook.before_train(SimpleNamespace(train_dataloader=lost, val_loop=None))
    monkeypatch.setattr(picture_check, 'require_all', lambda _: looked.append(1))
    looked, hook = [], HOOKS.build(dict(type='PictureCheckHook'))
    for when in (hook.before_train, hook.before_val, hook.before_val):
        when(runner)
    assert looked == [1]
