"""Output files: whole or not at all, and none in the place of another."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from navit_backbone.tasks.common.output_files import OutputNames, written_whole
from navit_backbone.tasks.segmentation.conversion import coloured


def test_no_two_inputs_share_an_output():
    names = OutputNames(clips=True)
    inputs = ['a.jpg', 'a.png', 'x/a.jpg', 'a.webp', 'a.webp.png', 'A.JPG', 'a.jpg', 'clip.avi']
    assert [str(names.assign(Path(name))) for name in inputs] == [
        'a.jpg',
        'a.png',
        'x/a.jpg',
        'a.webp.png',
        'a.webp_2.png',
        'A_2.JPG',
        'a_3.jpg',
        'clip.avi.mp4',
    ]


def test_images_of_any_suffix_are_drawn_as_images():
    names = OutputNames()
    inputs = ['a.gif', 'a.avif', 'scan', 'a.PNG', 'IMG.dcm.mp4']
    assert [str(names.assign(Path(name))) for name in inputs] == [
        'a.gif.png',
        'a.avif.png',
        'scan.png',
        'a.PNG',
        'IMG.dcm.mp4.png',
    ]


def test_a_file_beside_the_drawing_is_reserved_with_it():
    names = OutputNames(also=lambda target: Path('labels', f'{target}.png'))
    assert names.assign(Path('x.jpg')) == Path('x.jpg')
    assert names.assign(Path('labels/x.jpg.png')) == Path('labels/x.jpg_2.png')


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), KeyboardInterrupt()])
def test_a_failed_write_leaves_what_was_there(error, tmp_path):
    def write(text, *, then=None):
        with written_whole(out) as aside:
            aside.write_text(text)
            if then is not None:
                raise then

    out = tmp_path / 'deeper' / 'a.txt'
    write('first')
    with pytest.raises(type(error)):
        write('sec', then=error)
    assert out.read_text() == 'first'
    assert [file.name for file in out.parent.iterdir()] == ['a.txt']


@pytest.mark.parametrize('kind', ['cut', 'huge'])
def test_label_maps_that_cannot_be_read_are_named(kind, tmp_path, monkeypatch):
    (tmp_path / 'in').mkdir()
    for name in ('good', 'bad'):
        map_ = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (40, 60, 1))
        Image.fromarray(map_.repeat(3, 2)).save(tmp_path / f'in/{name}.png')
    file = tmp_path / 'in/bad.png'
    if kind == 'cut':
        file.write_bytes(file.read_bytes()[:100])
    else:
        Image.fromarray(np.zeros((200, 300, 3), np.uint8)).save(file)
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10_000)  # twice as many are refused
    colours = {(0, 0, 0): 0, (255, 255, 255): 1}
    with pytest.raises(ValueError, match=r'in/bad\.png: cannot be read, replace or remove it'):
        coloured(tmp_path / 'in', tmp_path / 'out', colours)
    assert all(file.name == 'good.png' for file in (tmp_path / 'out').rglob('*.png'))
