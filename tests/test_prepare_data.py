"""The sample set: alike for one seed, true annotations, whole or not there. Splits of a file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import pytest
from commands import call
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.transforms import LoadImageFromFile

from navit_backbone.tasks.common import sample_set
from navit_backbone.tasks.common.drawings import CLASSES, draw
from navit_backbone.tasks.common.sample_set import write_sample_set
from navit_backbone.tasks.detection.split_set import split_annotations
from navit_backbone.tools import prepare_data as tool

TOOL = Path(__file__).parents[1] / 'tools' / 'prepare_data.py'


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('sets') / 'sample'
    assert write_sample_set(out, seed=0, num_pictures=dict(train=12, val=5))
    return out


def annotations(out: Path, split: str) -> dict:
    return json.loads((out / 'annotations' / f'instances_{split}.json').read_text())


def decoded(segmentation: dict) -> np.ndarray:
    """The mask of uncompressed run lengths, column by column, from zeros."""
    counts = segmentation['counts']
    flat = np.repeat(np.arange(len(counts)) % 2, counts).astype(bool)
    h, w = segmentation['size']
    return flat.reshape(w, h).T


def test_one_seed_gives_the_same_bytes_and_another_one_does_not(made, tmp_path):
    write_sample_set(tmp_path / 'again', seed=0, num_pictures=dict(train=12, val=5))
    assert contents(tmp_path / 'again') == contents(made)
    write_sample_set(tmp_path / 'other', seed=1, num_pictures=dict(train=2, val=2))
    other = contents(tmp_path / 'other')
    assert other['train/00000.jpg'] != contents(made)['train/00000.jpg']
    assert other['val/00000.jpg'] != other['train/00000.jpg']


def test_a_drawing_does_not_depend_on_how_many_there_are(made, tmp_path):
    write_sample_set(tmp_path / 'small', seed=0, num_pictures=dict(train=1, val=2))
    small, large = contents(tmp_path / 'small'), contents(made)
    for name in ('train/00000.jpg', 'val/00001.jpg', 'masks/val/00001.png'):
        assert small[name] == large[name]


def test_annotations_say_what_is_in_the_files(made):
    for split, count in (('train', 12), ('val', 5)):
        data = annotations(made, split)
        assert [c['name'] for c in data['categories']] == list(CLASSES)
        assert len(data['images']) == count
        assert len({a['id'] for a in data['annotations']}) == len(data['annotations'])
        for image in data['images']:
            picture = cv2.imread(str(made / split / image['file_name']))
            assert picture.shape == (image['height'], image['width'], 3)
            index_file = made / 'masks' / split / f'{Path(image["file_name"]).stem}.png'
            index = cv2.imread(str(index_file), cv2.IMREAD_UNCHANGED)
            own = [a for a in data['annotations'] if a['image_id'] == image['id']]
            check_objects(own, index)


def check_objects(objects: list[dict], index: np.ndarray) -> None:
    assert 1 <= len(objects) <= 4
    expected = np.zeros_like(index)
    for item in objects:
        mask = decoded(item['segmentation'])
        assert mask.shape == index.shape and mask.sum() == item['area'] > 0
        assert not expected[mask].any(), 'visible masks do not overlap'
        expected[mask] = item['category_id']
        x, y, w, h = item['bbox']
        box = np.zeros_like(mask)
        box[y : y + h, x : x + w] = True
        assert not (mask & ~box).any()
        rows, columns = mask[[y, y + h - 1]], mask[:, [x, x + w - 1]]
        assert rows.any(1).all() and columns.any(0).all(), 'the box is tight'
    np.testing.assert_array_equal(index, expected)


def test_sizes_vary_and_objects_are_large_and_plain_to_see():
    seen = set()
    sizes = []
    for number in range(60):
        drawing = draw(7, 'train', number)
        h, w = drawing.image.shape[:2]
        sizes.append((h, w))
        assert min(h, w) >= 96 and max(h, w) <= 320
        assert 0.38 < w / h < 2.6
        saturation = cv2.cvtColor(drawing.image, cv2.COLOR_BGR2HSV)[..., 1].astype(float)
        paper = ~np.logical_or.reduce(drawing.masks)
        for label, mask in zip(drawing.labels, drawing.masks, strict=True):
            seen.add(label)
            assert mask.sum() > 200
            assert saturation[mask].mean() > saturation[paper].mean() + 60
    assert seen == set(range(len(CLASSES)))
    assert len(set(sizes)) > 50
    tokens = [-(-h // 16) * -(-w // 16) for h, w in sizes]
    assert max(tokens) <= 220 and min(tokens) < max(tokens) / 2


def test_mmdet_reads_the_set_with_its_masks(made):
    datasets = pytest.importorskip('mmdet.datasets')
    loading = pytest.importorskip('mmdet.datasets.transforms')
    dataset = datasets.CocoDataset(
        data_root=str(made),
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train'),
        metainfo=dict(classes=CLASSES),
        pipeline=[
            LoadImageFromFile(),
            loading.LoadAnnotations(with_bbox=True, with_mask=True),
        ],
    )
    assert len(dataset) == 12
    sample = dataset[3]
    index = cv2.imread(str(made / 'masks/train/00003.png'), cv2.IMREAD_UNCHANGED)
    labels = np.zeros_like(index)
    masks = zip(sample['gt_masks'].masks, sample['gt_bboxes_labels'], strict=True)
    for mask, label in masks:
        labels[mask.astype(bool)] = label + 1
    np.testing.assert_array_equal(labels, index)
    assert not sample['gt_ignore_flags'].any()


def test_a_second_call_finds_the_set_and_leaves_it_alone(made):
    before = {path: path.stat().st_mtime_ns for path in made.rglob('*')}
    assert not write_sample_set(made, seed=0, num_pictures=dict(train=12, val=5))
    assert {path: path.stat().st_mtime_ns for path in made.rglob('*')} == before


def test_nothing_is_overwritten(made, tmp_path):
    with pytest.raises(ValueError, match="'seed': 0.*remove it"):
        write_sample_set(made, seed=1, num_pictures=dict(train=12, val=5))
    (tmp_path / 'thesis.txt').write_text('years of work')
    with pytest.raises(ValueError, match='other files'):
        write_sample_set(tmp_path, seed=0, num_pictures=dict(train=1, val=1))
    with pytest.raises(ValueError, match='other files'):
        write_sample_set(tmp_path / 'thesis.txt', seed=0, num_pictures=dict(train=1, val=1))
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.txt']


def test_an_interrupted_run_leaves_no_set_and_the_next_one_starts_anew(made, tmp_path, monkeypatch):
    def stop(split: str, number: int) -> None:
        if (split, number) == ('val', 2):
            raise KeyboardInterrupt

    def interrupted(seed: int, split: str, number: int) -> object:
        stop(split, number)
        return draw(seed, split, number)

    monkeypatch.setattr(sample_set, 'draw', interrupted)
    out = tmp_path / 'sample'
    with pytest.raises(KeyboardInterrupt):
        write_sample_set(out, seed=0, num_pictures=dict(train=12, val=5))
    assert not out.exists()
    monkeypatch.undo()
    assert write_sample_set(out, seed=0, num_pictures=dict(train=12, val=5))
    assert contents(out) == contents(made)
    assert [path.name for path in tmp_path.iterdir()] == ['sample']


def test_the_tool_draws_a_set(tmp_path):
    arguments = ['sample', '--out', 'new/sample', '--train', '2', '--val', '1']
    command = [sys.executable, str(TOOL), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '2 train and 1 val drawings in new/sample' in done.stdout
    assert len(list((tmp_path / 'new/sample/train').iterdir())) == 2


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['sample', '--out', '.'], 'error: --out . holds another set or other files'),
        (['sample', '--train', 'many'], "'many' is not a whole number"),
        (['split', 'none.json', '--out', 'o'], 'no file or folder at none.json'),
        (['split', 'thesis.txt', '--out', 'o'], 'thesis.txt is not JSON'),
        (['split', 'thesis.txt', '--out', 'o', '--val', '20'], 'between 0 and 1, got 20.0'),
        (['smaple'], "invalid choice: 'smaple'"),
        ([], 'required'),
    ],
)
def test_the_tool_names_mistakes(tmp_path, monkeypatch, capsys, arguments, words):
    (tmp_path / 'thesis.txt').write_text('years of work')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['prepare_data.py', *arguments])
    with pytest.raises(SystemExit) as stopped:
        tool.main()
    assert words in str(stopped.value) + capsys.readouterr().err
    assert stopped.value.code not in (0, None)


@settings(max_examples=50)
@given(
    classes=st.lists(st.integers(0, 3), min_size=2, max_size=60),
    share=st.sampled_from([0.1, 0.2, 0.5]),
    seed=st.integers(0, 9),
)
def test_a_split_holds_out_the_share_of_the_pictures_and_of_each_class(classes, share, seed):
    """Here a picture has one class, or none (class 0)."""
    with TemporaryDirectory() as folder:
        out, file = Path(folder) / 'out', Path(folder) / 'all.json'
        write_annotations(file, classes)
        parts = split_annotations(file, out, share=share, seed=seed)
        assert split_annotations(file, out, share=share, seed=seed) == parts
        read = [json.loads((out / f'instances_{name}.json').read_text()) for name in parts]
    assert read == list(parts.values())
    train, val = ({item['id'] for item in part['images']} for part in read)
    assert not train & val and train | val == set(range(len(classes)))
    for pictures, part in zip((train, val), read, strict=True):
        assert part['info'] == 'kept' and len(part['categories']) == 3
        assert {a['image_id'] for a in part['annotations']} == {i for i in pictures if classes[i]}
    for name in {1, 2, 3} & set(classes):
        members = {i for i, found in enumerate(classes) if found == name}
        assert abs(len(members & val) - share * len(members)) <= 1
        assert len(members) < 2 or (members & val and members & train)
    assert abs(len(val) - share * len(classes)) <= 3


def test_a_split_is_not_written_over_another(tmp_path):
    write_annotations(tmp_path / 'all.json', [1, 2] * 10)
    split_annotations(tmp_path / 'all.json', tmp_path, share=0.5, seed=0)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r'instances_train.json is there .* another split: move'):
        split_annotations(tmp_path / 'all.json', tmp_path, share=0.5, seed=1)
    assert contents(tmp_path) == before


def write_annotations(file: Path, classes: list[int]) -> None:
    images = [dict(id=i, file_name=f'{i}.jpg', height=9, width=8) for i in range(len(classes))]
    box = dict(bbox=[1, 1, 4, 4], area=16, iscrowd=0)
    file.write_text(
        json.dumps(
            dict(
                info='kept',
                images=images,
                annotations=[
                    dict(box, id=i, image_id=i, category_id=name)
                    for i, name in enumerate(classes)
                    if name
                ],
                categories=[dict(id=i, name=f'class {i}') for i in (1, 2, 3)],
            )
        )
    )


# --------------------------------------------------------------------------------------------------
# Copies of an image


def copied_set(root: Path, count: int = 12) -> Path:
    """Images of which half are copies: one file name twice, equal bytes, saved again."""
    (root / 'images').mkdir(parents=True)
    (root / 'annotations').mkdir()
    images, boxes = [], []
    for number in range(count):
        name = f'{number:02}.png'
        pixels = draw(3, 'train', number).image
        cv2.imwrite(str(root / 'images' / name), pixels)
        copy = root / 'images' / f'copy_{number:02}'
        if number % 3 == 0:
            copy = root / 'images' / name
        elif number % 3 == 1:
            copy = copy.with_suffix('.png')
            copy.write_bytes((root / 'images' / name).read_bytes())
        else:
            copy = copy.with_suffix('.jpg')
            cv2.imwrite(str(copy), pixels, [cv2.IMWRITE_JPEG_QUALITY, 70])
        height, width = pixels.shape[:2]
        for file_name in (name, copy.name):
            images.append(dict(id=len(images), file_name=file_name, height=height, width=width))
            box = dict(id=len(boxes) + 1, image_id=images[-1]['id'], category_id=1 + number % 2)
            boxes.append(box | dict(bbox=[1, 1, 20, 20], area=400, iscrowd=0))
    categories = [dict(id=1, name='a'), dict(id=2, name='b')]
    file = root / 'annotations' / 'all.json'
    file.write_text(json.dumps(dict(images=images, annotations=boxes, categories=categories)))
    return file


def grouped_set(root: Path, how: str) -> Path:
    """Images of six groups of four, named by a field of each image or by groups.csv."""
    (root / 'images').mkdir(parents=True)
    (root / 'annotations').mkdir()
    images, boxes = [], []
    random = np.random.default_rng(0)
    for number in range(24):
        pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        cv2.imwrite(str(root / f'images/{number}.png'), pixels)
        image = dict(id=number, file_name=f'{number}.png', height=40, width=40)
        images.append(image | (dict(group=number % 6) if how == 'field' else {}))
        box = dict(id=number, image_id=number, category_id=1, bbox=[1, 1, 20, 20])
        boxes.append(box | dict(area=400, iscrowd=0))
    if how != 'field':
        folder, inner = (root, 'images/') if how == 'beside' else (root / 'images', '')
        rows = [f'{inner}{number}.png,scene {number % 6}\n' for number in range(24)]
        (folder / 'groups.csv').write_text('file,group\n' + ''.join(rows))
    content = dict(images=images, annotations=boxes, categories=[dict(id=1, name='a')])
    file = root / 'annotations' / 'all.json'
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize('how', ['field', 'beside', 'within'])
def test_images_of_one_group_are_on_one_side_of_a_split(tmp_path, monkeypatch, how):
    """Of an annotation file, and of a folder, in the same command."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    file = grouped_set(tmp_path / 'set', how)
    run_split(monkeypatch, file, '--out', tmp_path / 'out', '--val', '0.3')
    sides = []
    for split in ('train', 'val'):
        content = json.loads((tmp_path / f'out/instances_{split}.json').read_text())
        sides.append([image['id'] for image in content['images']])
    if how != 'field':
        run_split(monkeypatch, tmp_path / 'set/images', '--out', tmp_path, '--val', '0.3')
        names = ((tmp_path / f'{split}.txt').read_text().split() for split in ('train', 'val'))
        sides += [[int(name) for name in listed] for listed in names]
    for train, val in zip(sides[::2], sides[1::2], strict=True):
        assert (len(train), len(val)) == (16, 8)
        assert not {number % 6 for number in train} & {number % 6 for number in val}


def test_a_table_of_groups_that_lists_no_image_is_named(tmp_path, monkeypatch):
    file = grouped_set(tmp_path / 'set', 'within')
    (tmp_path / 'set/images/groups.csv').rename(tmp_path / 'set/groups.csv')
    for source in (file, tmp_path / 'set/images'):
        with pytest.raises(ValueError, match='groups.csv lists a group for none of the 24 files'):
            run_split(monkeypatch, source, '--out', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def run_split(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['prepare_data.py', 'split', *map(str, arguments)])
    args = tool.parse_args()
    args.run(args)


def drawing_of(name: str) -> int:
    return int(Path(name).stem[-2:])


@pytest.mark.parametrize('seed', [0, 1])
def test_copies_of_an_image_are_on_one_side_of_a_split(tmp_path, monkeypatch, seed):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    file = copied_set(tmp_path / 'set')
    run_split(monkeypatch, file, '--out', tmp_path / 'out', '--seed', seed, '--val', '0.25')
    sides = [
        [
            image['file_name']
            for image in json.loads((tmp_path / f'out/instances_{split}.json').read_text())[
                'images'
            ]
        ]
        for split in ('train', 'val')
    ]
    assert (
        sum(map(len, sides)) == 24 and len(sides[1]) == 8
    )  # two of the six drawings of each class
    train, val = ({drawing_of(name) for name in side} for side in sides)
    assert not train & val


def test_copies_in_a_folder_are_on_one_side_of_a_split(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    folder = copied_set(tmp_path / 'set').parents[1] / 'images'
    run_split(monkeypatch, folder, '--out', tmp_path / 'out', '--val', '0.4')
    sides = [(tmp_path / f'out/{split}.txt').read_text().split() for split in ('train', 'val')]
    assert sum(map(len, sides)) == 20 and min(map(len, sides)) >= 5
    train, val = ({drawing_of(name) for name in side} for side in sides)
    assert not train & val


def test_a_folder_of_images_that_is_not_there_is_refused(tmp_path, monkeypatch):
    file = copied_set(tmp_path / 'set', count=2)
    with pytest.raises(ValueError, match='--images .*gone: there is no such folder'):
        run_split(monkeypatch, file, '--out', tmp_path / 'out', '--images', tmp_path / 'gone')


def test_a_folder_of_too_few_images_to_split_is_named(tmp_path, monkeypatch):
    folder = tmp_path / 'images'
    folder.mkdir()
    split = ['split', folder, '--out', tmp_path / 'out']
    assert f'{folder} has 0 images: two or more' in call(monkeypatch, tool, *split)
    for number in range(2):
        cv2.imwrite(str(folder / f'{number}.png'), np.full((4, 4, 3), 90 * number, np.uint8))
    message = call(monkeypatch, tool, *split, '--val', 20)
    assert '--val 20.0: the share held out must lie between 0 and 1' in message
