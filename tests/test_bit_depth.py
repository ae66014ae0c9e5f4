"""Images of 16 bits: what files state, which are dark as loaded, and how 8 bits are made."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import call
from PIL import Image, PngImagePlugin

from navit_backbone.tasks.common.bit_depth import (
    darkness_of,
    read_deep,
    sample_files,
    sample_images,
    stated_largest,
)
from navit_backbone.tasks.common.clip_data import NaViTClipDataset
from navit_backbone.tools import prepare_data

RAMP = np.linspace(0, 4095, 24).astype(np.uint16).reshape(4, 6)


def write_png(file: Path, values: np.ndarray, bits: int = 0) -> str:
    info = PngImagePlugin.PngInfo()
    if bits:
        info.add(b'sBIT', bytes([bits]))
    Image.fromarray(values).save(file, pnginfo=info)
    return str(file)


def write_tiff(file: Path, values: np.ndarray, largest: int = 0) -> str:
    Image.fromarray(values).save(file, tiffinfo={281: largest} if largest else {})
    return str(file)


def test_what_files_state(tmp_path: Path) -> None:
    assert stated_largest(write_png(tmp_path / 'a.png', RAMP, 12)) == 4095
    assert stated_largest(write_png(tmp_path / 'b.png', RAMP)) is None
    assert stated_largest(write_tiff(tmp_path / 'a.tif', RAMP, 4095)) == 4095
    assert stated_largest(write_tiff(tmp_path / 'b.tif', RAMP)) is None


def test_only_images_of_16_bits_are_deep(tmp_path: Path) -> None:
    found = read_deep(write_png(tmp_path / 'a.png', RAMP))
    assert found is not None
    assert (found == RAMP).all()
    assert read_deep(write_png(tmp_path / 'b.png', RAMP.astype(np.uint8))) is None
    (tmp_path / 'c.png').write_bytes(b'broken')
    assert read_deep(tmp_path / 'c.png') is None
    assert read_deep(tmp_path / 'none.png') is None


def test_images_that_are_dark_as_loaded_are_named_with_the_command(tmp_path: Path) -> None:
    dark = write_png(tmp_path / 'dark.png', RAMP)
    text = darkness_of([write_png(tmp_path / '8.png', RAMP.astype(np.uint8)), dark])
    assert text.startswith(f'{dark}: ')
    assert 'values reach 4,095' in text
    assert 'at 15 of 255 at most' in text  # as OpenCV loads it, in every task
    assert int(cv2.imread(dark, cv2.IMREAD_COLOR).max()) == 15
    assert f'prepare_data.py depth {tmp_path} --out' in text
    assert darkness_of([write_png(tmp_path / 'full.png', RAMP * 16)]) == ''
    assert darkness_of([]) == ''


@pytest.mark.parametrize('stated', [True, False])
def test_12_bits_in_16_are_stretched_to_8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: bool
) -> None:
    (tmp_path / 'in/deep').mkdir(parents=True)
    dim = (RAMP // 2).astype(np.uint16)  # one scale for all images keeps it darker
    write_png(tmp_path / 'in/a.png', RAMP, 12 * stated)
    write_tiff(tmp_path / 'in/deep/b.tif', dim, 4095 * stated)
    rgb = np.stack([RAMP, dim, dim], axis=2)
    cv2.imwrite(str(tmp_path / 'in/c.png'), rgb[..., ::-1])
    (tmp_path / 'in/d.jpg').write_bytes(b'of 8 bits')
    command = ['depth', tmp_path / 'in', '--out', tmp_path / 'out']
    assert call(monkeypatch, prepare_data, *command) == 0
    for name, values in (('a.png', RAMP), ('deep/b.tif', dim), ('c.png', rgb)):
        found = np.asarray(Image.open(tmp_path / 'out' / name))
        assert found.dtype == np.uint8
        assert (found == np.rint(values * (255 / 4095))).all()
    assert (tmp_path / 'out/d.jpg').read_bytes() == b'of 8 bits'
    assert 'nothing is overwritten' in call(monkeypatch, prepare_data, *command)


def test_dark_frames_of_clips_are_named_with_the_folder_of_all(tmp_path: Path) -> None:
    clips = [tmp_path / 'clips/run/a', tmp_path / 'clips/walk/b']
    for clip in clips:
        clip.mkdir(parents=True)
        write_png(clip / '1.png', RAMP * 0)  # black, as many clips begin
        for number in (2, 3):
            write_png(clip / f'{number}.png', RAMP)
        (clip / 'a.txt').write_text('no frame')
    data = NaViTClipDataset(kind='frames', data_root=str(tmp_path / 'clips'), pipeline=[])
    files = sample_files(data)
    assert files == sample_images(clips) == [str(clip / '2.png') for clip in clips]
    text = darkness_of(files)
    assert text.startswith(f'{clips[0] / "2.png"}: ')
    assert f'prepare_data.py depth {tmp_path}/clips --out {tmp_path}/clips_8bit' in text


def test_the_value_of_the_command_line_goes_before_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'in').mkdir()
    write_png(tmp_path / 'in/a.png', RAMP, 12)
    command = ['depth', tmp_path / 'in', '--out', tmp_path / 'out', '--largest', '1000']
    assert call(monkeypatch, prepare_data, *command) == 0
    expected = np.rint(np.minimum(RAMP, 1000) * (255 / 1000))
    assert (np.asarray(Image.open(tmp_path / 'out/a.png')) == expected).all()


def test_unreadable_images_are_skipped_and_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'in').mkdir()
    whole = Path(write_png(tmp_path / 'in/c.png', RAMP)).read_bytes()
    (tmp_path / 'in/a.png').write_bytes(b'')
    (tmp_path / 'in/b.tif').write_bytes(b'<!DOCTYPE html>')
    (tmp_path / 'in/d.png').write_bytes(whole[:8] + b'\0\0\0\x03sBIT')
    (tmp_path / 'in/e.png').write_bytes(whole[:40])
    command = ['depth', tmp_path / 'in', '--out', tmp_path / 'out']
    assert call(monkeypatch, prepare_data, *command) == 3
    said = capsys.readouterr()
    assert '1 of 5 images written' in said.out
    for name, reason in (
        ('a.png', 'the file is empty'),
        ('b.tif', 'the file is a web page'),
        ('d.png', 'the file is a PNG image that is damaged or incomplete'),
        ('e.png', 'the file is a PNG image that is damaged or incomplete'),
    ):
        assert f'skipped: {tmp_path}/in/{name} cannot be read ({reason}' in said.err
    assert [file.name for file in (tmp_path / 'out').iterdir()] == ['c.png']
    assert darkness_of([str(tmp_path / f'in/{name}') for name in ('a.png', 'b.tif', 'd.png')]) == ''
    (tmp_path / 'in/c.png').unlink()
    assert 'none of the 4 images in' in call(monkeypatch, prepare_data, *command[:-1], tmp_path)


def test_folders_without_images_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ['depth', tmp_path / 'in', '--out', tmp_path / 'out']
    assert 'no folder of images at' in call(monkeypatch, prepare_data, *command)
    (tmp_path / 'in').mkdir()
    assert 'no images in' in call(monkeypatch, prepare_data, *command)
