"""Folders of pictures and label maps: what is read, and what is refused, by name."""

import warnings
from copy import deepcopy
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope
from mmseg.datasets import ADE20KDataset
from PIL import Image, ImageOps

import navit_backbone.tasks.segmentation  # noqa: F401  registers
from navit_backbone.tasks.common.classes import override
from navit_backbone.tasks.common.palette import palette
from navit_backbone.tasks.common.sample import BadSampleError, SampleIndex
from navit_backbone.tasks.segmentation import data as segmentation_data
from navit_backbone.tasks.segmentation.label_check import check_ignored

SIZES = [(40, 60), (33, 21), (50, 50)]
CLASSES = ['paper', 'circle', 'square', 'star']
PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadSegMap'),
    dict(type='ResizeToTokenBudget', max_tokens=16, patch_size=16),
    dict(type='PackSegInputs'),
]
TEST_PIPELINE = [PIPELINE[0], PIPELINE[2], PIPELINE[1], PIPELINE[3]]


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for name in ('images', 'masks'):
        (tmp_path / name).mkdir()
    for number, size in enumerate(SIZES):
        write_picture(tmp_path, number, size)
        write_map(tmp_path, number, random.integers(len(CLASSES), size=size))
    (tmp_path / 'classes.txt').write_text('\n'.join(CLASSES) + '\n')
    return tmp_path


def write_picture(folder, number, size):
    cv2.imwrite(str(folder / f'images/{number}.jpg'), np.full((*size, 3), 99, np.uint8))


def write_map(folder, number, labels):
    cv2.imwrite(str(folder / f'masks/{number}.png'), np.asarray(labels).astype(np.uint8))


def map_of(folder, number):
    return cv2.imread(str(folder / f'masks/{number}.png'), cv2.IMREAD_UNCHANGED)


def build(folder, *, pipeline=PIPELINE, type='NaViTSegDataset', **options):
    init_default_scope('mmseg')
    prefix = dict(img_path='images', seg_map_path='masks')
    data = dict(type=type, data_root=str(folder), data_prefix=prefix, pipeline=pipeline)
    return DATASETS.build({**data, **options})


def loaded(dataset, number, loader=None):
    """The label map as the loader gives it."""
    results = dataset.get_data_info(number)
    for step in (dict(type='LoadImageFromFile'), loader or dict(type='LoadSegMap')):
        results = TRANSFORMS.build(step)(results)
    return results['gt_seg_map']


def test_a_background_is_dark_and_other_classes_keep_their_colours(folder):
    names = ['Background', 'sky', 'road', 'grass']
    (folder / 'classes.txt').write_text('\n'.join(names))
    colours = build(folder).metainfo['palette']
    assert max(colours[0]) < 50
    assert list(colours[1:]) == palette(4)[1:]


def test_pictures_keep_their_sizes_and_maps(folder):
    dataset = build(folder)
    assert dataset.metainfo['classes'] == tuple(CLASSES)
    assert len(dataset.metainfo['palette']) == 4
    for number, size in enumerate(SIZES):
        assert (loaded(dataset, number) == map_of(folder, number)).all()
        sample = dataset[SampleIndex(number, (0, 0, number))]['data_samples']
        assert sample.ori_shape == size
        assert sample.gt_sem_seg.shape == sample.img_shape
    dataset = build(folder, pipeline=TEST_PIPELINE, test_mode=True)
    for number, size in enumerate(SIZES):
        assert dataset[number]['data_samples'].gt_sem_seg.shape == size


def test_some_of_the_pictures_and_any_suffix(folder):
    (folder / 'images/1.jpg').rename(folder / 'images/1.JPEG')
    (folder / 'list.txt').write_text('1\n0.jpg\n')
    records = [build(folder, ann_file='list.txt').get_data_info(i) for i in range(2)]
    assert [record['img_path'].rsplit('/')[-1] for record in records] == ['1.JPEG', '0.jpg']
    assert records[0]['seg_map_path'].endswith('masks/1.png')
    assert len(build(folder, img_suffix='.jpg')) == 2


def rename(folder, number, name):
    (folder / f'images/{number}.jpg').rename(folder / f'images/{name}')
    (folder / f'masks/{number}.png').rename(folder / 'masks' / f'{name.rsplit(".", 1)[0]}.png')


def test_names_with_a_second_suffix(folder):
    for number, name in enumerate(['scan.tif.jpg', 'a b.rf.12.jpg', 'img.v1.PNG']):
        rename(folder, number, name)
    (folder / 'list.txt').write_text('scan.tif\na b.rf.12\nimg.v1.PNG\n')
    dataset = build(folder, ann_file='list.txt')
    records = [dataset.get_data_info(i) for i in range(3)]
    names = [record['img_path'].rsplit('/')[-1] for record in records]
    assert names == ['scan.tif.jpg', 'a b.rf.12.jpg', 'img.v1.PNG']
    assert records[1]['seg_map_path'].endswith('masks/a b.rf.12.png')


def test_a_line_that_names_two_images_is_refused(folder):
    rename(folder, 0, 'scan.tif.jpg')
    rename(folder, 1, 'scan.tif')
    (folder / 'list.txt').write_text('2\nscan.tif\n')
    with pytest.raises(ValueError, match=r"list\.txt, line 2: 'scan\.tif' is the name of two"):
        build(folder, ann_file='list.txt')
    (folder / 'list.txt').write_text('scan\nscan.tif.jpg\n')
    assert len(build(folder, ann_file='list.txt')) == 2


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'cp1252'])
def test_lists_and_class_files_of_any_encoding(folder, encoding):
    rename(folder, 0, 'été.jpg')
    names = ['Straße', 'circle', 'square', 'star']
    (folder / 'classes.txt').write_bytes('\r\n'.join(names).encode(encoding))
    (folder / 'list.txt').write_bytes('été\r\n1.jpg\r\n'.encode(encoding))
    (folder / 'stems.txt').write_bytes('été\r\n1\r\n'.encode(encoding))
    dataset = build(folder, ann_file='list.txt')
    assert dataset.metainfo['classes'] == tuple(names)
    assert dataset.get_data_info(0)['img_path'].endswith('images/été.jpg')
    listed = build(folder, type='NaViTADE20KDataset', ann_file='stems.txt')
    assert listed.get_data_info(0)['img_path'].endswith('images/été.jpg')
    (folder / 'chosen.txt').write_bytes('star\r\nStraße\r\n'.encode(encoding))
    chosen = build(folder, metainfo=dict(classes=str(folder / 'chosen.txt')))
    assert chosen.metainfo['classes'] == ('star', 'Straße')
    with pytest.raises(ValueError, match=r"metainfo\.classes='star' must be a list of names"):
        build(folder, metainfo=dict(classes='star'))


def test_files_of_macos_are_no_images_and_no_maps(folder):
    for name in ('images/._0.jpg', 'masks/._0.png', 'images/.DS_Store', '__MACOSX/images/._0.jpg'):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b'\0\5\x16\7')
    assert len(build(folder)) == 3
    assert len(build(folder, type='NaViTADE20KDataset', reduce_zero_label=True)) == 3


@pytest.mark.parametrize('reduce', [False, True])
def test_labels_as_mmseg_reads_them(folder, reduce):
    """0 is ignored first, and then the classes that are left out."""
    if reduce:
        (folder / 'classes.txt').write_text('circle\nsquare\nstar\n')
    write_map(folder, 0, np.resize([0, 1, 2, 3, 255], SIZES[0]))
    chosen = ['star', 'circle']
    dataset = build(folder, reduce_zero_label=reduce, metainfo=dict(classes=chosen))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        expected = loaded(dataset, 0, dict(type='LoadAnnotations'))
    assert (loaded(dataset, 0) == expected).all()
    assert loaded(dataset, 0)[0, :5].tolist() == [255, 1, 255, 0, 255]


def test_a_stock_data_set_reads_alike(folder):
    stock = build(folder, type='ADE20KDataset', reduce_zero_label=True)
    ours = build(folder, type='NaViTADE20KDataset', reduce_zero_label=True)
    assert ours.metainfo['classes'] == ADE20KDataset.METAINFO['classes']
    for number in range(len(SIZES)):
        expected = loaded(stock, number, dict(type='LoadAnnotations'))
        assert (loaded(ours, number) == expected).all()


# --------------------------------------------------------------------------------------------------
# What is refused


def fault(folder, labels, **options):
    """What is told of a label map in the place of the first."""
    loader = options.pop('loader', None)
    cv2.imwrite(str(folder / 'masks/0.png'), labels)
    with pytest.raises(BadSampleError) as caught:
        loaded(build(folder, **options), 0, loader)
    return str(caught.value)


def test_a_map_of_another_size(folder):
    told = fault(folder, np.ones((20, 30), np.uint8))
    for part in ('masks/0.png', '20 x 30', 'images/0.jpg', '40 x 60', 'resize=True'):
        assert part in told
    loader = dict(type='LoadSegMap', resize=True)
    labels = np.kron(np.arange(4, dtype=np.uint8).reshape(2, 2), np.ones((10, 15), np.uint8))
    cv2.imwrite(str(folder / 'masks/0.png'), labels)
    resized = loaded(build(folder), 0, loader)
    assert (resized == labels.repeat(2, axis=0).repeat(2, axis=1)).all()


def write_turned(folder, number, orientation, *, size=None):
    """An image with an EXIF orientation, its map as stored, and the map as Pillow turns it."""
    stored = SIZES[number]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = folder / f'images/{number}.jpg'
    Image.new('RGB', stored[::-1], 'gray').save(file, exif=exif)
    labels = np.random.default_rng(number).integers(len(CLASSES), size=size or stored)
    write_map(folder, number, labels)
    shown = Image.fromarray(labels.astype(np.uint8))
    shown.getexif()[0x0112] = orientation
    return labels, np.asarray(ImageOps.exif_transpose(shown))


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('number', range(3))
def test_maps_of_images_as_stored_are_turned_as_pillow_turns_them(folder, orientation, number):
    _, expected = write_turned(folder, number, orientation)
    found = loaded(build(folder), number, dict(type='LoadSegMap', turn=True))
    assert (found == expected).all()
    if SIZES[number][0] != SIZES[number][1] and orientation > 4:  # a map of the size shown stays
        write_map(folder, number, expected)
        assert (loaded(build(folder), number, dict(type='LoadSegMap', turn=True)) == expected).all()


@pytest.mark.parametrize('size', [SIZES[0], (20, 30), (120, 180), (21, 31)])
@pytest.mark.parametrize('resize', [False, True])
def test_a_map_on_its_side_is_never_resized(folder, size, resize):
    write_turned(folder, 0, 6, size=size)
    for orientation, advice in ((6, 'EXIF orientation 6 .*turn=True'), (1, 'by a quarter')):
        if orientation == 1:  # the image itself lies on its side
            cv2.imwrite(str(folder / 'images/0.jpg'), np.full((60, 40, 3), 99, np.uint8))
        with pytest.raises(BadSampleError, match=rf'masks/0\.png: .* swapped.*{advice}'):
            loaded(build(folder), 0, dict(type='LoadSegMap', resize=resize))


def test_a_smaller_map_of_an_image_as_stored_is_turned_and_resized(folder):
    labels, _ = write_turned(folder, 0, 6, size=(20, 30))
    found = loaded(build(folder), 0, dict(type='LoadSegMap', resize=True, turn=True))
    expected = np.rot90(labels, -1).repeat(2, axis=0).repeat(2, axis=1)
    assert (found == expected).all()


def test_maps_of_one_square_size_for_all_images_may_be_resized(folder):
    """Made by a model of a fixed size: nothing shows that they are turned."""
    write_map(folder, 0, np.ones((32, 32)))
    assert loaded(build(folder), 0, dict(type='LoadSegMap', resize=True)).shape == SIZES[0]


@pytest.mark.parametrize('value', [4, 77, 254])
def test_numbers_beyond_the_classes(folder, value):
    labels = np.zeros(SIZES[0], np.uint8)
    labels[3, 4:7] = value
    told = fault(folder, labels)
    for part in ('masks/0.png', '3 pixels', f'labels {value}', '4 labels, 0 to 3', '255'):
        assert part in told
    assert ('reduce_zero_label=True' in told) == (value == 4), 'classes that begin at 1'


def test_numbers_beyond_a_byte(folder):
    """mmseg keeps the last byte of each."""
    labels = np.full(SIZES[0], 256, np.uint16)
    assert 'labels 256' in fault(folder, labels)


def test_colours(folder):
    told = fault(folder, np.zeros((*SIZES[0], 3), np.uint8))
    for part in ('masks/0.png', '[40, 60, 3]', 'one channel', 'prepare_data.py masks'):
        assert part in told


@pytest.mark.parametrize(
    ('spoil', 'told'),
    [
        (lambda f: (f / 'masks/1.png').unlink(), r'1 of 3 pictures have no label map .*1\.jpg'),
        (lambda f: (f / 'masks/1.png').rename(f / 'masks/01.png'), r'01\.png is there'),
        (lambda f: [p.unlink() for p in (f / 'images').iterdir()], 'no pictures in .*images'),
        (lambda f: (f / 'images').rename(f / 'photos'), 'no folder at .*images'),
        (lambda f: (f / 'classes.txt').unlink(), r'no class names at .*classes\.txt'),
        (lambda f: (f / 'classes.txt').write_text('a\na\nb'), 'class names a stand there twice'),
        (lambda f: write_png(f, 1), r'1\.jpg and .*1\.png have one name'),
        (lambda f: (f / 'list.txt').write_text('\n'), r'list\.txt lists no pictures: write'),
        (lambda f: (f / 'list.txt').write_text('0\n7\n'), r'list\.txt: 1 of its 2 .* 7;'),
    ],
)
def test_files_that_do_not_fit_together(folder, spoil, told):
    spoil(folder)
    listed = (folder / 'list.txt').exists()
    with pytest.raises(ValueError, match=told):
        build(folder, ann_file='list.txt' if listed else '')


def write_png(folder, number):
    cv2.imwrite(str(folder / f'images/{number}.png'), np.zeros((5, 5, 3), np.uint8))


def test_a_class_that_is_not_there(folder):
    with pytest.raises(ValueError, match=r"'cirkel' is none of the 4 .*circle"):
        build(folder, metainfo=dict(classes=['cirkel']))


@pytest.mark.parametrize('content', [b'', b'\x89PNG broken', None])
def test_a_map_that_cannot_be_read_is_replaced_and_named(folder, content):
    dataset = build(folder)
    (folder / 'masks/0.png').unlink()
    if content is not None:
        (folder / 'masks/0.png').write_bytes(content)
    sample = dataset[SampleIndex(0, (0, 0, 0))]['data_samples']
    assert sample.ori_shape != SIZES[0]
    assert [file.rsplit('/')[-1] for _, file in dataset.bad_samples] == ['0.jpg']
    with pytest.raises(BadSampleError, match=r'masks/0\.png|images/0\.jpg'):
        build_whole(folder)[0]


def build_whole(folder):
    write_map(folder, 0, np.zeros(SIZES[0]))
    dataset = build(folder, pipeline=TEST_PIPELINE, test_mode=True)
    (folder / 'masks/0.png').write_bytes(b'broken')
    return dataset


def test_zero_as_unlabelled_reaches_every_split():
    loader = dict(dataset=dict(type='NaViTSegDataset'))
    cfg = Config(dict(train_dataloader=loader, val_dataloader=deepcopy(loader)))
    override(cfg, dict(reduce_zero_label=True))
    assert cfg.train_dataloader.dataset.reduce_zero_label
    assert cfg.val_dataloader.dataset.reduce_zero_label


def test_ignored_pixels_alone_teach_nothing(folder):
    write_map(folder, 0, np.full(SIZES[0], 255))
    dataset = build(folder)
    sample = dataset[SampleIndex(0, (0, 0, 0))]['data_samples']
    assert (sample.gt_sem_seg.data != 255).any()
    assert [file.rsplit('/')[-1] for _, file in dataset.emptied_samples] == ['0.jpg']
    assert dataset.bad_samples == []
    evaluated = build(folder, pipeline=TEST_PIPELINE, test_mode=True)[0]
    assert (evaluated['data_samples'].gt_sem_seg.data == 255).all()


@pytest.mark.parametrize('value', [-1, -255, -256])
def test_negative_numbers_are_no_classes(folder, value):
    """A cast to bytes would make class 1 of -255."""
    labels = np.zeros((40, 60), np.int32)
    labels[0, 0] = value
    Image.fromarray(labels).save(folder / 'masks/0.tif')
    record = build(folder).get_data_info(0)
    record |= dict(seg_map_path=str(folder / 'masks/0.tif'), ori_shape=(40, 60))
    with pytest.raises(BadSampleError, match=rf'0\.tif: 1 pixels have the labels {value}, but'):
        TRANSFORMS.build(dict(type='LoadSegMap')).transform(record)


def test_list_lines_with_backslashes_and_dots(folder):
    for part, suffix in (('images', 'jpg'), ('masks', 'png')):
        (folder / part / 'sub').mkdir()
        (folder / f'{part}/1.{suffix}').rename(folder / f'{part}/sub/1.{suffix}')
    (folder / 'list.txt').write_text('./0.jpg\nsub\\1.jpg\n')
    records = [build(folder, ann_file='list.txt').get_data_info(i) for i in range(2)]
    assert [record['seg_map_path'] for record in records] == [
        str(folder / 'masks/0.png'),
        str(folder / 'masks/sub/1.png'),
    ]


def test_label_maps_in_jpeg_are_warned_of(folder, monkeypatch):
    logged = []
    monkeypatch.setattr(segmentation_data, 'warn_once', logged.append)
    build(folder)
    assert not logged
    for file in (folder / 'masks').glob('*.png'):
        Image.open(file).convert('L').save(file.with_suffix('.jpg'))
    build(folder, seg_map_suffix='.jpg')
    assert len(logged) == 1
    assert f'{folder}/masks: label maps in JPEG, which changes class numbers' in logged[0]


@pytest.mark.parametrize('label', [-1, 256, 255.0, '255', True])
def test_an_ignored_label_that_is_no_byte_is_refused(folder, label):
    with pytest.raises(ValueError, match=f'ignore_index={label!r}.*0 to 255'):
        build(folder, ignore_index=label)


def test_a_head_or_metric_that_ignores_another_label_is_refused(folder):
    dataset = build(folder, ignore_index=254)
    agrees, differs = SimpleNamespace(ignore_index=254), SimpleNamespace(ignore_index=255)
    check_ignored(dataset, SimpleNamespace(decode_head=agrees), [agrees, object()])
    with pytest.raises(ValueError, match=r'ignore_index=254, model\.decode_head has .*=255'):
        check_ignored(dataset, SimpleNamespace(decode_head=differs), [])
    with pytest.raises(ValueError, match='ignore_index=254, the metric SimpleNamespace has .*=255'):
        check_ignored(dataset, None, [agrees, differs])


def test_label_maps_of_fractions_are_no_colours(folder):
    labels = cv2.imencode('.tiff', np.ones(SIZES[0], np.float32))[1]
    (folder / 'masks/0.png').write_bytes(labels.tobytes())
    with pytest.raises(BadSampleError, match='whole numbers, this one has float32'):
        loaded(build(folder), 0)


@pytest.mark.parametrize(
    ('content', 'found'),
    [
        (b'\x93NUMPY\x01\0' + bytes(100), r'a NumPy array \(\.npy\)'),
        (b'0 0 1\n0 1 1\n', 'the file is text'),
        (bytes(range(200, 256)), 'of no image format known here'),
        (b'', 'the file is empty'),
    ],
)
@pytest.mark.parametrize('backend', ['pillow', 'cv2'])
def test_label_maps_that_are_no_images_are_named(content, found, backend, folder):
    (folder / 'masks/0.png').write_bytes(content)
    loader = dict(type='LoadSegMap', imdecode_backend=backend)
    with pytest.raises(BadSampleError, match=f'{found}.*PNG, TIFF') as caught:
        loaded(build(folder), 0, loader)
    assert str(caught.value).startswith(f'{folder / "masks/0.png"}: ')


def test_what_is_there_in_the_place_of_a_file_is_named(folder):
    for file in (folder / 'masks').iterdir():
        file.rename(file.with_suffix('.PNG'))
    with pytest.raises(ValueError, match=r'0\.png is missing, \S*0\.PNG is there'):
        build(folder)
    for file in (folder / 'images').iterdir():
        file.rename(file.with_suffix('.heic'))
    with pytest.raises(ValueError, match=r'looked for \.jpg \.jpeg'):
        build(folder)
