"""Sizes before any transform: true, read once, and told where they cannot be read."""

from __future__ import annotations

import json
import logging
import os
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import BaseDataset
from PIL import Image, ImageFile

from navit_backbone.tasks.common import picture_sizes
from navit_backbone.tasks.common.dataset import SeededSamples
from navit_backbone.tasks.common.picture_sizes import (
    default_cache,
    picture_size,
    scan,
    stated_sizes,
)
from navit_backbone.tasks.common.resize import ResizeToTokenBudget
from navit_backbone.tasks.common.sample import SampleIndex


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of many kinds, turned ones among them."""
    folder = tmp_path / 'pictures'
    folder.mkdir()
    img = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    for name, mode in (('gray.png', 'L'), ('rgba.png', 'RGBA'), ('cmyk.jpg', 'CMYK')):
        Image.fromarray(img).convert(mode).save(folder / name)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(img).save(folder / f'exif{orientation}.jpg', exif=exif)
    Image.fromarray(img[:3, :1]).save(folder / 'slim.bmp')
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / 'caches' / 'sizes.json'


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(
        picture_sizes, 'print_log', lambda text, level=logging.INFO, **_: logging.log(level, text)
    )
    caplog.set_level(logging.INFO)
    return caplog


class Watched:
    """`picture_size`, which counts the files that it opens."""

    __name__ = 'watched'

    def __init__(self) -> None:
        self.files: list[str] = []

    def __call__(self, file: str) -> tuple[float, ...]:
        self.files.append(Path(file).name)
        return picture_size(file)


def files_of(folder: Path) -> list[str]:
    return sorted(map(str, folder.iterdir()))


def test_a_header_gives_the_size_that_loading_gives(folder):
    for file in files_of(folder):
        loaded = LoadImageFromFile()(dict(img_path=file))['ori_shape']
        assert picture_size(file) == loaded, file
    assert {picture_size(file) for file in files_of(folder)} == {(40, 64), (64, 40), (3, 1)}


def exif(kind: int, value: bytes) -> bytes:
    """An EXIF block with nothing but an orientation, of some TIFF type."""
    entry = struct.pack('>HHI', 0x0112, kind, 1) + value.ljust(4, b'\0')
    return b'Exif\0\0MM\0*\0\0\0\x08\0\x01' + entry + bytes(4)


@pytest.mark.parametrize('suffix', ['jpg', 'png'])
@pytest.mark.parametrize(
    'block',
    [exif(3, b'\0\x09'), exif(2, b'6'), exif(1, b'\6'), b'Exif\0\0MM\0*', b'Exif\0\0abcdefghijk'],
    ids=['9', 'a text', 'bytes', 'cut off', 'no TIFF'],
)
def test_a_damaged_orientation_is_passed_over_as_loading_does(block, suffix, tmp_path):
    file = str(tmp_path / f'picture.{suffix}')
    Image.new('RGB', (64, 40)).save(file, exif=block)
    loaded = LoadImageFromFile()(dict(img_path=file))['ori_shape']
    assert scan([file], cache=tmp_path / 'sizes.json') == [loaded] == [(40, 64)]


def test_no_pixels_are_decoded(folder, monkeypatch):
    def load(picture: Image.Image) -> None:
        raise AssertionError(f'{picture.filename} is decoded')

    monkeypatch.setattr(ImageFile.ImageFile, 'load', load)
    assert len({picture_size(file) for file in files_of(folder)}) == 3


def test_files_are_opened_once_and_again_only_when_they_change(folder, cache):
    files = files_of(folder)
    expected = [picture_size(file) for file in files]
    for opened in (sorted(Path(file).name for file in files), []):
        measure = Watched()
        assert scan(files, measure=measure, cache=cache) == expected
        assert sorted(measure.files) == opened
    cv2.imwrite(str(folder / 'gray.png'), np.zeros((11, 12), dtype=np.uint8))
    extra = folder / 'new.png'
    cv2.imwrite(str(extra), np.zeros((5, 6), dtype=np.uint8))
    measure = Watched()
    found = scan([*files, str(extra)], measure=measure, cache=cache)
    assert sorted(measure.files) == ['gray.png', 'new.png']
    assert found[-1] == (5, 6) and found[files.index(str(folder / 'gray.png'))] == (11, 12)
    measure = Watched()  # a part of the files leaves the others in the cache
    scan(files[:2], measure=measure, cache=cache)
    scan(files, measure=measure, cache=cache)
    assert measure.files == []


def test_a_change_of_time_alone_counts_too(folder, cache):
    file = str(folder / 'gray.png')
    scan([file], cache=cache)
    os.utime(file, ns=(1, 1))
    measure = Watched()
    scan([file], measure=measure, cache=cache)
    assert measure.files == ['gray.png']


@pytest.mark.parametrize('content', ['', '{', '[]', '{"a": 1}', '{"a": [1, 2]}', '\x00'])
def test_a_damaged_cache_is_made_anew(folder, cache, content, log):
    cache.parent.mkdir()
    cache.write_text(content)
    files = files_of(folder)
    assert scan(files, cache=cache) == [picture_size(file) for file in files]
    assert 'not read' in log.text or content == '[]'
    assert set(json.loads(cache.read_text())) == set(files)


def test_the_cache_is_whole_or_not_there(folder, cache, monkeypatch, log):
    files = files_of(folder)
    scan(files[:2], cache=cache)
    before = cache.read_bytes()

    def torn(aside: Path, content: str) -> None:
        aside.open('w').write(content[:10])
        raise OSError('no space left')

    with monkeypatch.context() as patch:
        patch.setattr(Path, 'write_text', torn)
        assert scan(files, cache=cache) == [picture_size(file) for file in files]
    assert cache.read_bytes() == before
    assert list(cache.parent.iterdir()) == [cache], 'nothing is left aside'
    assert 'no space left' in log.text


def test_what_cannot_be_read_is_named_and_asked_again_next_time(folder, cache, log):
    (folder / 'text.jpg').write_text('no picture')
    (folder / 'empty.png').touch()
    (folder / 'dangling.png').symlink_to(folder / 'nowhere.png')
    bad = ['dangling.png', 'empty.png', 'text.jpg']
    files = files_of(folder)
    for _ in range(2):
        log.clear()
        found = dict(zip(files, scan(files, cache=cache), strict=True))
        assert sorted(Path(file).name for file in files if found[file] is None) == bad
        assert [sum(name in line for line in log.messages) for name in bad] == [1, 1, 1]
    Image.new('RGB', (7, 9)).save(folder / 'text.jpg')
    assert scan([str(folder / 'text.jpg')], cache=cache) == [(9, 7)]


def test_nothing_readable_at_all_says_where_to_look(tmp_path, cache):
    with pytest.raises(ValueError, match=r'not one of 2 files .*a\.jpg.*data_root'):
        scan([str(tmp_path / 'a.jpg'), str(tmp_path / 'b.jpg')], cache=cache)
    assert scan([]) == []


def test_each_folder_has_its_cache_in_the_users(folder, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'user'))
    files = files_of(folder)
    scan(files)
    (cache,) = (tmp_path / 'user').rglob('*.json')
    assert cache == default_cache(files, picture_size)
    assert cache != default_cache([str(tmp_path / 'a.jpg')], picture_size)
    assert cache != default_cache(files, max), 'another measure gives other figures'


def test_other_ranks_are_told_and_read_nothing(folder, cache, monkeypatch):
    monkeypatch.setattr(picture_sizes, 'is_main_process', lambda: False)

    def told(found: list) -> None:
        found[0] = [(1, 2)]

    monkeypatch.setattr(picture_sizes, 'broadcast_object_list', told)
    measure = Watched()
    assert scan([files_of(folder)[0]], measure=measure, cache=cache) == [(1, 2)]
    assert measure.files == [] and not cache.exists()


@given(st.lists(st.fixed_dictionaries({}, optional=dict(h=st.integers(0), w=st.floats(0, 9)))))
def test_stated_sizes_are_nan_where_a_record_does_not_say(records):
    table = stated_sizes(records, ('h', 'w'))
    assert table.shape == (len(records), 2)
    for row, record in zip(table, records, strict=True):
        for value, field in zip(row, ('h', 'w'), strict=True):
            assert value == record[field] if field in record else np.isnan(value)


# ---------------------------------------------------------------------------- in a data set


class Photos(SeededSamples, BaseDataset):
    """The pictures of a folder; the annotations know some of their sizes."""

    def __init__(self, folder: Path, stated: dict[str, dict], **options) -> None:
        self.folder, self.stated = folder, stated
        super().__init__(pipeline=[ResizeToTokenBudget(8, min_tokens=1)], **options)

    def load_data_list(self) -> list[dict]:
        return [
            dict(img_path=str(path)) | self.stated.get(path.name, {})
            for path in sorted(self.folder.iterdir())
        ]


@pytest.mark.parametrize('serialize', [True, False])
def test_a_data_set_scans_only_what_its_records_lack(folder, tmp_path, monkeypatch, serialize):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'user'))
    (folder / 'zero.png').touch()
    stated = {'cmyk.jpg': dict(height=16, width=32), 'zero.png': dict(height=0, width=9)}
    photos = Photos(folder, stated, serialize_data=serialize)
    names = [Path(photos.get_data_info(i)['img_path']).name for i in range(len(photos))]

    def tokens() -> dict[str, int]:
        indices = [SampleIndex(i, (0, 0, i)) for i in range(len(photos))]
        return dict(zip(names, map(photos.num_tokens, indices), strict=True))

    before = tokens()
    assert before['cmyk.jpg'] == 2 and before['gray.png'] == before['zero.png'] == 8 == 4 * 2
    measure = Watched()
    photos.measure = measure
    photos.complete_sizes()
    assert sorted(measure.files) == sorted(set(names) - set(stated))
    assert tokens() == before | {
        'slim.bmp': 3
    }  # 3 x 1 pixels, scaled up until each side has a patch
    photos.complete_sizes()
    assert len(measure.files) == len(names) - 2, 'once is enough'
