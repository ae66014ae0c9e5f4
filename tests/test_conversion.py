"""Label maps of public sets as class numbers, against mmseg's own tables."""

import re
from pathlib import Path

import mmseg
import numpy as np
import pytest
from commands import call
from mmseg.datasets import CityscapesDataset, COCOStuffDataset, PascalContextDataset
from PIL import Image
from scipy.io import savemat

from navit_backbone.tasks.segmentation import conversion
from navit_backbone.tools import prepare_data

CONVERTERS = Path(mmseg.__file__).parent / '.mim/tools/dataset_converters'


def write(file, labels):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(labels, dtype=np.uint8)).save(file)


def read(file):
    with Image.open(file) as picture:
        return np.array(picture)


def test_coco_stuff_as_mmseg_converts_it(tmp_path, monkeypatch):
    source = (CONVERTERS / 'coco_stuff164k.py').read_text()
    body = re.search(r'clsID_to_trID = \{(.*?)\}', source, re.DOTALL)[1]
    theirs = {int(a): int(b) for a, b in re.findall(r'(\d+): (\d+)', body)}
    assert len(COCOStuffDataset.METAINFO['classes']) == 171
    write(tmp_path / 'annotations/val2017/1.png', np.arange(256).reshape(16, 16))
    assert call(monkeypatch, prepare_data, 'coco-stuff', tmp_path) is None
    found = read(tmp_path / 'annotations/val2017/1_labelTrainIds.png').ravel()
    assert found.tolist() == [theirs.get(value, 255) for value in range(256)]
    # what is written is no source the next time
    assert call(monkeypatch, prepare_data, 'coco-stuff', tmp_path) is None
    assert len(list(tmp_path.rglob('*.png'))) == 2


def test_cityscapes_has_its_19_classes(tmp_path, monkeypatch):
    write(tmp_path / 'gtFine/val/ulm/a_gtFine_labelIds.png', np.arange(34)[None])
    assert call(monkeypatch, prepare_data, 'cityscapes', tmp_path) is None
    found = read(tmp_path / 'gtFine/val/ulm/a_gtFine_labelTrainIds.png')[0]
    names = dict(enumerate(CityscapesDataset.METAINFO['classes']))
    assert len(names) == 19
    # from the definition of the data set: road 7, sky 23, person 24, car 26, bicycle 33
    told = {7: 'road', 11: 'building', 23: 'sky', 24: 'person', 26: 'car', 33: 'bicycle'}
    assert {value: names[found[value]] for value in told} == told
    assert found[[0, 9, 10, 14, 29, 30]].tolist() == [255] * 6
    assert sorted(found[found != 255]) == list(range(19))


def test_pascal_context_as_mmseg_numbers_it(tmp_path, monkeypatch):
    source = (CONVERTERS / 'pascal_context.py').read_text()
    body = source[source.index('np.array([') : source.index('])')]
    theirs = sorted(map(int, re.findall(r'\d+', body)))
    assert len(theirs) == len(PascalContextDataset.METAINFO['classes']) == 60
    root, labels = tmp_path / 'VOC2010', tmp_path / 'trainval'
    labels.mkdir()
    savemat(labels / '2008_1.mat', {'LabelMap': np.arange(460, dtype=np.uint16)[None]})
    for split, names in (('train', '2008_1\n2008_9\n'), ('val', '2008_2\n')):
        file = root / f'ImageSets/Main/{split}.txt'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(names)
    assert call(monkeypatch, prepare_data, 'pascal-context', root, '--labels', labels) is None
    found = read(root / 'SegmentationClassContext/2008_1.png')[0]
    assert found.tolist() == [theirs.index(v) if v in theirs else 0 for v in range(460)]
    lists = root / 'ImageSets/SegmentationContext'
    assert (lists / 'train.txt').read_text() == '2008_1\n'
    assert (lists / 'val.txt').read_text() == ''


def test_colours_become_numbers(tmp_path, monkeypatch):
    colours = tmp_path / 'colours.txt'
    colours.write_text('0 0 0 ignored\n0 128 0 long grass\n9 9 200 sky\n0 100 0 long grass\n')
    picture = np.zeros((2, 3, 3))
    picture[0] = [[0, 128, 0], [9, 9, 200], [0, 100, 0]]
    write(tmp_path / 'coloured/deep/a.png', picture)
    out = tmp_path / 'set/masks'
    command = ['masks', tmp_path / 'coloured', '--colours', colours, '--out', out]
    assert call(monkeypatch, prepare_data, *command) is None
    assert read(out / 'deep/a.png').tolist() == [[0, 1, 0], [255, 255, 255]]
    assert (tmp_path / 'set/classes.txt').read_text() == 'long grass\nsky\n'

    colours.write_text('1 1 1 road\n' + colours.read_text())  # all numbers are others now
    assert 'classes.txt exists with other names' in call(monkeypatch, prepare_data, *command)
    assert read(out / 'deep/a.png').tolist() == [[0, 1, 0], [255, 255, 255]]
    assert call(monkeypatch, prepare_data, *command, '--overwrite') is None
    assert read(out / 'deep/a.png').tolist() == [[1, 2, 1], [255, 255, 255]]
    assert (tmp_path / 'set/classes.txt').read_text() == 'road\nlong grass\nsky\n'
    told = call(monkeypatch, prepare_data, *command[:4], '--out', tmp_path / 'coloured')
    assert 'would be lost' in told


@pytest.mark.parametrize(
    ('lines', 'told'),
    [
        ('0 0 0 paper\n', r'a\.png: 1 pixels .* \(1, 2, 3\) at x=1, y=0'),
        ('0 0 0\n', "line 1: '0 0 0' is not R G B NAME"),
        ('0 0 300 sky\n', 'line 1'),
        ('sky\n', "line 1: 'sky' is not R G B NAME"),
        ('0 0 0 a\n0 0 0 b\n', r'line 2: the colour \(0, 0, 0\) .* in line 1'),
        ('0 0 0 ignored\n', 'names no class'),
    ],
)
def test_colours_that_are_not_told(tmp_path, monkeypatch, lines, told):
    (tmp_path / 'colours.txt').write_text(lines)
    write(tmp_path / 'coloured/a.png', [[[0, 0, 0], [1, 2, 3]]])
    command = ['masks', tmp_path / 'coloured', '--colours', tmp_path / 'colours.txt']
    assert re.search(told, call(monkeypatch, prepare_data, *command, '--out', tmp_path / 'masks'))
    assert not list(tmp_path.rglob('masks/*'))
    assert not (tmp_path / 'classes.txt').exists()


@pytest.mark.parametrize(
    'line',
    [
        '1 20 3 long grass 2',
        '1,20,3 long grass 2',
        'long grass 2: (1, 20, 3)',
        '(1,20,3): long grass 2',
        'long grass 2 1 20 3',
        ' long grass 2: [1, 20, 3] ',
    ],
)
def test_ways_to_write_a_colour(line):
    assert conversion.read_colours([line], 'colours.txt') == ({(1, 20, 3): 0}, ['long grass 2'])


def test_more_classes_than_a_label_map_holds_are_refused():
    lines = [f'{number % 256} {number // 256} 0 class {number}' for number in range(256)]
    assert conversion.read_colours(lines[:255], 'colours.txt')[0][254, 0, 0] == 254
    with pytest.raises(ValueError, match=r'colours\.txt names 256 classes.*hold 255.*Fix'):
        conversion.read_colours(lines, 'colours.txt')


def test_a_stopped_conversion_goes_on(tmp_path):
    files = [tmp_path / f'{number}.png' for number in range(3)]
    for file in files:
        write(file, [[1, 2]])
    targets = [tmp_path / 'out' / file.name for file in files]
    write(targets[1], [[9, 9]])
    assert conversion.convert(files, targets, np.arange(256, dtype=np.uint8)[::-1]) == 2
    assert [read(target)[0].tolist() for target in targets] == [[254, 253], [9, 9], [254, 253]]


@pytest.mark.parametrize(
    ('command', 'told'),
    [
        (['cityscapes'], r'no \*_gtFine_labelIds\.png in .*gtFine_trainvaltest\.zip'),
        (['coco-stuff'], r'stuffthingmaps_trainval2017\.zip'),
        (['ade20k'], r'images.training has 0 files \*\.jpg, of 20,210'),
        (['pascal-context', '--labels', 'nowhere'], r'no \*\.mat in nowhere'),
    ],
)
def test_what_is_not_unpacked_is_told(tmp_path, monkeypatch, command, told):
    assert re.search(told, call(monkeypatch, prepare_data, command[0], tmp_path, *command[1:]))


def test_pictures_are_held_out(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    for number in range(10):
        write(tmp_path / f'images/{number}.png', random.integers(256, size=(16, 16, 3)))
    assert call(monkeypatch, prepare_data, 'split', tmp_path / 'images', '--out', tmp_path) is None
    train, val = ((tmp_path / f'{part}.txt').read_text().split() for part in ('train', 'val'))
    assert (len(train), len(val)) == (8, 2)
    assert sorted(train + val) == [str(number) for number in range(10)]
    command = ['split', tmp_path / 'images', '--out', tmp_path, '--seed', '1']
    assert 'train.txt exists with other names' in call(monkeypatch, prepare_data, *command)


def test_maps_that_are_there_are_kept_unless_told_otherwise(tmp_path, monkeypatch):
    write(tmp_path / 'coloured/a.png', np.zeros((2, 2, 3)))
    write(tmp_path / 'masks/a.png', [[7]])
    command = ['masks', tmp_path / 'coloured', '--colours', '0 0 0 paper', '--out']
    told = call(monkeypatch, prepare_data, *command, tmp_path / 'masks')
    assert f'1 of 1 label maps are in {tmp_path}/masks already' in told
    assert read(tmp_path / 'masks/a.png').tolist() == [[7]]
    assert call(monkeypatch, prepare_data, *command, tmp_path / 'masks', '--overwrite') is None
    assert read(tmp_path / 'masks/a.png').tolist() == [[0, 0], [0, 0]]


def test_class_names_of_a_user_are_kept(tmp_path, monkeypatch):
    write(tmp_path / 'coloured/a.png', np.zeros((2, 2, 3)))
    (tmp_path / 'own').mkdir()
    (tmp_path / 'own/classes.txt').write_text('one\ntwo\n')
    command = ['masks', tmp_path / 'coloured', '--out', tmp_path / 'own/masks', '--colours']
    told = call(monkeypatch, prepare_data, *command, '0 0 0 paper')
    assert 'own/classes.txt exists' in told
    assert (tmp_path / 'own/classes.txt').read_text() == 'one\ntwo\n'
    (tmp_path / 'own/classes.txt').write_bytes(b'\xef\xbb\xbfpaper\r\n')  # the same names
    assert call(monkeypatch, prepare_data, *command, '0 0 0 paper') is None
    assert (tmp_path / 'own/classes.txt').read_bytes() == b'\xef\xbb\xbfpaper\r\n'


@pytest.mark.parametrize('name', ['a.png', 'a.PNG', 'a.tif', 'a.bmp', 'a.v1.tiff', 'b.x.gif'])
def test_maps_of_every_lossless_suffix_become_png(tmp_path, monkeypatch, name):
    pixels = np.zeros((4, 5, 3))
    pixels[2:, 1:] = 255
    write(tmp_path / 'in' / name, pixels)
    (tmp_path / 'in/._a.png').write_bytes(b'0')
    command = ['masks', tmp_path / 'in', '--out', tmp_path / 'out/masks', '--colours']
    assert call(monkeypatch, prepare_data, *command, '0 0 0 no', '#ffffff yes') is None
    found = read(tmp_path / 'out/masks' / f'{Path(name).stem}.png')
    assert found.tolist() == (pixels[..., 0] > 0).astype(int).tolist()


def test_maps_of_one_name_and_maps_as_jpeg_are_refused(tmp_path, monkeypatch):
    command = ['masks', tmp_path / 'in', '--out', tmp_path / 'masks', '--colours', '0 0 0 paper']
    assert 'no folder of label maps at' in call(monkeypatch, prepare_data, *command)
    write(tmp_path / 'in/a.jpg', np.zeros((8, 8, 3)))
    assert 'JPEG changes colours' in call(monkeypatch, prepare_data, *command)
    write(tmp_path / 'in/a.png', np.zeros((8, 8, 3)))
    write(tmp_path / 'in/a.bmp', np.zeros((8, 8, 3)))
    assert 'several label maps would be written to' in call(monkeypatch, prepare_data, *command)


@pytest.mark.parametrize(
    'lines',
    [
        '0 128 0 long grass\n9 9 200 sky\n',
        'name,r,g,b\nlong grass,0,128,0\nsky,9,9,200\n',
        'R;G;B;Class\n0;128;0;long grass\n9;9;200;sky\n',
        '#008000 long grass\n#0909C8 sky\n',
        'hex,label\n#008000,"long grass"\n#0909c8,"sky"\n',
        'long grass: (0, 128, 0)\nsky: (9, 9, 200)\n',
        'long grass #008000\n\nsky = #0909C8\n',
    ],
)
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_colours_as_users_write_them(tmp_path, monkeypatch, lines, encoding):
    (tmp_path / 'c.txt').write_bytes(lines.replace('\n', '\r\n').encode(encoding))
    write(tmp_path / 'in/a.png', [[[9, 9, 200], [0, 128, 0]]])
    command = ['masks', tmp_path / 'in', '--colours', tmp_path / 'c.txt', '--out']
    assert call(monkeypatch, prepare_data, *command, tmp_path / 'set/masks') is None
    assert read(tmp_path / 'set/masks/a.png').tolist() == [[1, 0]]
    assert (tmp_path / 'set/classes.txt').read_text() == 'long grass\nsky\n'


def test_a_file_of_colours_that_is_missing_is_named(tmp_path, monkeypatch):
    write(tmp_path / 'in/a.png', np.zeros((2, 2, 3)))
    command = ['masks', tmp_path / 'in', '--out', tmp_path / 'masks', '--colours']
    told = call(monkeypatch, prepare_data, *command, tmp_path / 'none.txt')
    assert f'no file of colours at {tmp_path}/none.txt' in told
    told = call(monkeypatch, prepare_data, *command, '0 0 0 paper', 'id,name,r,g,b')
    assert "--colours, line 2: 'id,name,r,g,b' is not R G B NAME" in told


def test_the_colours_of_cvat():
    lines = ['# label:color_rgb:parts:actions', 'background:0,0,0::', 'traffic light:250,170,30::']
    assert conversion.read_colours(lines, 'labelmap.txt') == (
        {(0, 0, 0): 0, (250, 170, 30): 1},
        ['background', 'traffic light'],
    )
