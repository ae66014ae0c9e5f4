"""Files of another format than their suffix says are named, with the fix."""

from types import SimpleNamespace

import pytest
from coco_files import write_coco
from mmcv.transforms import LoadImageFromFile
from mmengine.registry import DATASETS
from PIL import Image

import navit_backbone.tasks.detection  # noqa: F401  registers
from navit_backbone.tasks.common import picture_sizes
from navit_backbone.tasks.common.file_formats import describe_format
from navit_backbone.tasks.common.sample import BadSampleError
from navit_backbone.tasks.common.text_files import read_json
from navit_backbone.tasks.common.video_reader import UnreadableVideoError, read_picture
from navit_backbone.tools import predict

HEIC = b'\0\0\0\x24ftypheic\0\0\0\0mif1heic' + bytes(200)


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (HEIC, 'an HEIC image, as iPhones write it. Fix: convert it to JPEG or PNG'),
        (HEIC.replace(b'ftypheic', b'ftypmif1'), 'an HEIC image'),
        (HEIC.replace(b'ftypheic', b'ftypavif'), 'an AVIF image'),
        (b'\xff\x0a\x7f', 'a JPEG XL image'),
        (b'\0\0\0\x0cjP  \r\n\x87\n', 'a JPEG 2000 image'),
        (b'\n<!DOCTYPE HTML><title>404</title>', 'a web page'),
        (
            b'version https://git-lfs.github.com/spec/v1\n',
            'a pointer of Git LFS. Fix: .*git lfs pull',
        ),
        (b'<?xml version="1.0"?><svg width="9"/>', 'an SVG drawing'),
        (b'PK\x03\x04', 'a ZIP archive'),
        (b'%PDF-1.7', 'a PDF'),
        (b'', 'the file is empty'),
    ],
)
def test_formats_are_known_by_their_content(tmp_path, content, words):
    file = tmp_path / "it's.jpg"
    file.write_bytes(content)
    with pytest.raises(UnreadableVideoError, match=words):
        read_picture(str(file))
    assert describe_format(str(file)).startswith('the file is ')


def test_images_and_missing_files_are_not_described(tmp_path):
    for suffix in ('jpg', 'png', 'bmp', 'tif', 'webp', 'ppm'):
        file = tmp_path / f'a.{suffix}'
        Image.new('RGB', (9, 8), (10, 200, 10)).save(file)
        assert describe_format(str(file)) == ''
    assert describe_format(str(tmp_path / 'none.jpg')) == describe_format(str(tmp_path)) == ''


def test_a_phone_s_photo_named_jpg_is_named_in_training_and_evaluation(tmp_path, monkeypatch):
    write_coco(tmp_path, 'a.json', 'images')
    (tmp_path / 'images/1.jpg').write_bytes(HEIC)
    pipeline = [dict(type='LoadImageFromFile'), dict(type='mmdet.PackDetInputs', meta_keys=())]
    data = DATASETS.build(
        dict(
            type='NaViTCocoDataset', data_root=str(tmp_path), ann_file='a.json', test_mode=True,
            data_prefix=dict(img='images'), pipeline=pipeline,
        )
    )  # fmt: skip
    with pytest.raises(BadSampleError, match='1.jpg: cannot be read, the file is an HEIC image'):
        data[1]
    logged = []
    monkeypatch.setattr(picture_sizes, 'print_log', lambda text, **_: logged.append(text))
    files = [str(tmp_path / f'images/{number}.jpg') for number in (0, 1)]
    assert picture_sizes.scan(files, cache=tmp_path / 'sizes.json') == [(61, 113), None]
    assert len(logged) == 1 and 'the file is an HEIC image' in logged[0]


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (b'\xff\xd8\xff\xe0' + bytes(90), 'a JPEG image that is damaged or incomplete'),
        (b'\x89PNG\r\n\x1a\n\0', 'a PNG image that is damaged or incomplete'),
        (b'hello', 'of no image format known here'),
        (b'', 'empty'),
    ],
)
def test_predict_names_the_damage_in_place_of_the_decoder_s_words(tmp_path, content, words):
    file = tmp_path / 'a.jpg'
    file.write_bytes(content)
    load = LoadImageFromFile()
    predictor = SimpleNamespace(read=lambda file: load({'img_path': str(file)}))
    with pytest.raises(
        predict.SkippedError, match=f'cannot be read .the file is {words}. Fix: '
    ) as error:
        predict.look(predictor, file)
    assert error.value.unexpected is None


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (b'version https://git-lfs.github.com/spec/v1\n', 'a pointer of Git LFS. Fix: .*lfs pull'),
        (b'<!DOCTYPE html><html>', 'a web page, .* Fix: get the file'),
        (b'', 'empty. Fix: get the file'),
        (b'PK\x03\x04\0\0\xff\xfe\x81', 'a ZIP archive. Fix: unpack it'),
        (b'\x1f\x8b\x08\0\0\x81', 'a gzip archive. Fix: unpack it'),
    ],
)
def test_an_annotation_file_that_is_no_json_is_named(tmp_path, content, words):
    file = tmp_path / 'a.json'
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f'a.json is not JSON, the file is {words}'):
        read_json(file)


def test_predict_names_the_format(tmp_path):
    file = tmp_path / 'a.jpg'
    file.write_bytes(HEIC)

    def read(file):
        raise AssertionError('img is None')

    with pytest.raises(predict.SkippedError, match='cannot be read .the file is an HEIC') as error:
        predict.look(SimpleNamespace(read=read), file)
    assert error.value.unexpected is None
