"""Pictures shown in four ways to a classifier: sizes, figures, intervals, and what is refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import call
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from weights import GRID, WITH_CLASS, navit

from navit_backbone.checkpoint import save_navit, weights_of
from navit_backbone.packing import patchify
from navit_backbone.tasks.common.resampling import FILTERS, resize_image
from navit_backbone.tasks.common.resize import token_budget_size
from navit_backbone.tools import convert_weights
from navit_backbone.tools.check_images import (
    WAYS,
    Check,
    Classifier,
    Records,
    View,
    budgets_of,
    classes_of,
    records_of,
    upright,
)
from navit_backbone.tools.check_images_report import measured

PATCH = 16
STATISTICS = dict(input_mean=(0.4, 0.5, 0.6), input_std=(0.2, 0.25, 0.3))
CLASSES = 'cats=2,dogs=5'
SIDES = st.integers(1, 3000)
SIZES = [(40, 61), (64, 64), (90, 30), (33, 100), (1, 50), (70, 70), (48, 80)]

# --------------------------------------------------------------------------------------------------
# The four ways


@given(h=SIDES, w=SIDES, budget=st.integers(1, 600), patch=st.sampled_from([1, 14, 16]))
@settings(deadline=None)
def test_every_way_keeps_the_budget_and_its_promise(h, w, budget, patch):
    views = {way: View.of(way, h, w, patch_size=patch, max_tokens=budget) for way in WAYS}
    side = math.isqrt(budget) * patch
    for way, view in views.items():
        rows, columns = (length // patch for length in view.canvas)
        assert view.canvas == (rows * patch, columns * patch)
        assert 1 <= rows * columns <= budget
        assert all(1 <= part <= whole for part, whole in zip(view.size, view.canvas, strict=True))
        left, upper, right, lower = view.box
        assert 0 <= left < right <= w and 0 <= upper < lower <= h
        assert (way == 'native') or view.canvas == (side, side)
        assert (way == 'padded') or view.size == view.canvas
        assert (way == 'centre crop') or view.box == (0, 0, w, h)
    native, padded = views['native'], views['padded']
    assert native.size == token_budget_size(h, w, patch_size=patch, max_tokens=budget)
    assert max(padded.size) == side
    # the aspect is kept to half a pixel, or one pixel is left of a side
    assert min(padded.size) == 1 or abs(min(padded.size) - side * min(h, w) / max(h, w)) <= 0.5
    left, upper, right, lower = views['centre crop'].box
    assert right - left == lower - upper == min(h, w)
    assert 0 <= w - left - right <= 1 and 0 <= h - upper - lower <= 1, 'in the middle'


def test_square_pictures_are_shown_alike():
    views = [View.of(way, 70, 70, patch_size=PATCH, max_tokens=49) for way in WAYS]
    assert len(set(views)) == 1


def test_each_way_shows_what_it_says():
    """A picture that is dark on the left half and bright on the right, three times as wide."""
    values = np.zeros((60, 180, 3), dtype=np.uint8)
    values[:, 90:] = 255
    mean, std = (0.5,) * 3, (0.5,) * 3
    shown = {
        way: View.of(way, 60, 180, patch_size=2, max_tokens=900).shown(values, mean, std)
        for way in WAYS
    }
    assert {way: tuple(image.shape[1:]) for way, image in shown.items()} == {
        'native': (34, 104),
        'squashed': (60, 60),
        'padded': (60, 60),
        'centre crop': (60, 60),
    }
    for image in shown.values():
        row = image[0, image.shape[1] // 2]
        assert row[0] == -1 and row[-1] == 1
    assert (shown['padded'][:, :20] == 0).all() and (shown['padded'][:, 40:] == 0).all()
    assert (shown['padded'][:, 20:40, [0, -1]].abs() == 1).all()
    assert (shown['centre crop'][0, 0] == torch.tensor([-1.0] * 30 + [1.0] * 30)).all()


def test_pictures_are_resampled_with_antialiasing():
    """A chequerboard of single pixels becomes grey; without antialiasing it would not."""
    board = np.indices((128, 128)).sum(0) % 2 * 255
    image = np.stack([board.astype(np.uint8)] * 3, -1)
    view = View.of('native', 128, 128, patch_size=4, max_tokens=64)
    for name in FILTERS:
        assert view.shown(image, (0.5,) * 3, (0.5,) * 3, name)[:, 4:-4, 4:-4].abs().max() < 0.02


def test_pictures_stand_as_their_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('L', (30, 20)).save(tmp_path / 'turned.jpg', exif=exif)
    picture = upright(tmp_path / 'turned.jpg')
    assert (picture.size, picture.mode) == ((20, 30), 'RGB')


# --------------------------------------------------------------------------------------------------
# Figures


def test_records_are_those_of_a_table_of_shares():
    shares = np.array([[0.5, 0.2, 0.3], [0.6, 0.1, 0.3], [0.1, 0.2, 0.7], [0.2, 0.5, 0.3]])
    labels = np.array([2, 2, 2, 1])
    got = records_of(np.log(shares), labels, [1, 2])
    np.testing.assert_allclose(
        got,
        [
            [0, 100, math.log(0.3)],
            [0, 100, math.log(0.3)],
            [100, 100, math.log(0.7)],
            [100, 100, math.log(0.5)],
        ],
    )


def records(found, aspects, groups=None):
    return Records(
        budgets=[16],
        found=found,
        tokens=np.full(found.shape[:3], 16),
        aspects=aspects,
        groups=np.arange(len(aspects)) if groups is None else groups,
        classes={'cats': 2, 'dogs': 5},
        content={'cats': len(aspects)},
        faults=[],
    )


def test_figures_and_differences_are_means_of_the_pictures_of_each_part():
    random = np.random.default_rng(0)
    found, aspects = random.normal(size=(4, 1, 60, 3)), random.permutation(60) / 60
    parts = measured(records(found, aspects))
    assert [part.num_pictures for part in parts] == [60, 20, 20, 20]
    order = np.argsort(aspects)
    for part, chosen in zip(parts, [order, order[:20], order[20:40], order[40:]], strict=True):
        for way in range(4):
            for figure in range(3):
                values, native = found[way, 0, chosen, figure], found[0, 0, chosen, figure]
                check_interval(part.figures[way][0][figure], values)
                if way:
                    check_interval(part.ahead[way - 1][0][figure], native - values)


def check_interval(interval, values):
    """The mean, and near it what the normal law gives the bootstrap of a mean."""
    assert interval.estimate == pytest.approx(values.mean(), abs=1e-12)
    width = 2 * 1.96 * values.std() / math.sqrt(len(values))
    assert (interval.high - interval.low) / width == pytest.approx(1, abs=0.12)


def test_intervals_of_copies_are_those_of_their_originals():
    """Five copies of each image in a group give the interval of 30 images, not of 150."""
    found, aspects = np.random.default_rng(0).normal(size=(4, 1, 30, 3)), np.arange(30) / 30
    copies = records(found.repeat(5, 2), aspects.repeat(5), np.arange(30).repeat(5))
    one, five = measured(records(found, aspects))[0], measured(copies)[0]
    for alone, copied in zip(one.figures[2][0], five.figures[2][0], strict=True):
        assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high), abs=1e-12)


def test_a_wrong_table_of_groups_is_told_before_the_work(weights_file, pictures, monkeypatch):
    check = Check.of(pictures, tokens='4', classes=CLASSES)
    monkeypatch.setattr(Classifier, 'answers', lambda *_: pytest.fail('classified'))
    (pictures / 'groups.csv').write_text('file,litter\nx.jpg,1\n')
    with pytest.raises(ValueError, match=r"groups\.csv: the columns \['group'\] are missing"):
        check.records(Classifier.of(weights_file))
    (pictures / 'groups.csv').unlink()


def test_groups_of_a_folder_are_read(weights_file, pictures):
    files = sorted(pictures.rglob('dogs/*.png'))
    names = [file.relative_to(pictures) for file in files]
    (pictures / 'groups.csv').write_text('file,group\n' + ''.join(f'{n},litter\n' for n in names))
    check = Check.of(pictures, tokens='4', classes=CLASSES)
    found = check.records(Classifier.of(weights_file))
    (pictures / 'groups.csv').unlink()
    assert found.content == {'cats': 7, 'dogs': 4}
    assert sorted(np.bincount(found.groups)) == [1] * 7 + [4]


def test_a_part_of_few_pictures_has_no_interval():
    random = np.random.default_rng(0)
    parts = measured(records(random.normal(size=(4, 1, 12, 3)), np.arange(12) / 12))
    assert not math.isnan(parts[0].figures[0][0][0].low)
    assert all(math.isnan(part.figures[0][0][0].low) for part in parts[1:])


# --------------------------------------------------------------------------------------------------
# The tool


@pytest.fixture
def weights_file(tmp_path):
    model = navit(dict(WITH_CLASS, pooling='token', num_classes=7))
    save_navit(tmp_path / 'small.safetensors', weights_of(model, **STATISTICS))
    return tmp_path / 'small.safetensors'


@pytest.fixture
def pictures(tmp_path):
    """DIR/{train,val}/{cats,dogs}, one of them cut short, and a folder that no class names."""
    random = np.random.default_rng(0)
    for number, size in enumerate(SIZES * 2):
        name = ('cats', 'dogs', 'cats', 'birds')[number % 4]
        folder = tmp_path / 'set' / ('train', 'val')[number % 2] / name
        folder.mkdir(parents=True, exist_ok=True)
        values = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f'{number}.png')
    whole = (tmp_path / 'set/train/cats/0.png').read_bytes()
    (tmp_path / 'set/train/cats/broken.png').write_bytes(whole[: len(whole) // 2])
    return tmp_path / 'set'


def test_converted_file_classifies_a_folder(weights_file, pictures, monkeypatch, capsys):
    arguments = ['--check-images', pictures, '--tokens', '20,4,20', '--classes', CLASSES]
    assert call(monkeypatch, convert_weights, weights_file, *arguments) is None
    printed = capsys.readouterr().out
    assert 'does not name birds (3)' in printed
    assert f'left out: {pictures}/train/cats/broken.png: ' in printed
    folder = weights_file.with_name('small_images')
    found = json.loads((folder / 'figures.json').read_text())
    assert found['pictures'] == {'cats': 7, 'dogs': 4} and len(found['left out']) == 1
    rows = found['parts'][0]['rows']
    assert [(row['budget'], row['way']) for row in rows] == [(b, w) for b in (4, 20) for w in WAYS]
    assert all(
        row['tokens'] == {4: 4, 20: 16}[row['budget']] for row in rows if row['way'] in WAYS[1:]
    )
    table = (folder / 'table.md').read_text()
    assert '1 could not be read' in table and 'broken.png' in table and table in printed
    assert (folder / 'plot.png').stat().st_size > 10_000


@torch.no_grad()
def test_pictures_in_packs_are_classified_as_alone(weights_file, pictures):
    check = Check.of(pictures, tokens='4,20', classes=CLASSES)
    classifier, picture = Classifier.of(weights_file), 0
    got = check.records(classifier)
    for file, name in check.pictures:
        if file.stem == 'broken':
            continue
        for w, way in enumerate(WAYS):
            for b, budget in enumerate(check.budgets):
                example = classifier.example(np.asarray(upright(file)), way, budget)
                logits = classifier.model.classify(classifier.model(example))[0]
                expected = logits.double().log_softmax(0)[check.classes[name]]
                assert got.found[w, b, picture, 2] == pytest.approx(float(expected), abs=1e-5)
                assert got.tokens[w, b, picture] == len(example.patches)
        picture += 1
    assert picture == len(got.aspects)


def test_a_second_filter_is_compared_with_the_first(weights_file, pictures, monkeypatch, capsys):
    arguments = ['--check-images', pictures, '--tokens', '4', '--classes', CLASSES]
    arguments += ['--interpolation', 'bicubic', 'area']
    assert call(monkeypatch, convert_weights, weights_file, *arguments) is None
    assert 'filter `bicubic`' in capsys.readouterr().out
    folder = weights_file.with_name('small_images')
    rows = json.loads((folder / 'figures.json').read_text())['parts'][0]['rows']
    by_way = {row['way']: row for row in rows}
    assert list(by_way) == [*WAYS, 'native, area']
    native, other = by_way['native']['figures'][2], by_way['native, area']['figures'][2]
    difference = by_way['native, area']['native less this'][2][0]
    assert native != other and difference == pytest.approx(native[0] - other[0], abs=2e-5)


def test_each_filter_shows_what_resize_image_gives(weights_file):
    image = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    classifier = Classifier.of(weights_file)
    for name, expected in (
        ('bicubic', Image.fromarray(image).resize((32, 48), Image.Resampling.BICUBIC)),
        ('area', resize_image(image, (48, 32))),
    ):
        got = classifier.example(image, 'native', 6, name)
        pixels = torch.from_numpy(np.array(expected)).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(STATISTICS[k]).view(3, 1, 1) for k in ('input_mean', 'input_std'))
        expected = patchify((pixels - mean) / std, (1, PATCH, PATCH)).patches
        torch.testing.assert_close(got.patches, expected)


def test_foreign_weights_are_converted_first(weights_file, pictures, monkeypatch, capsys):
    out = weights_file.with_name('out.safetensors')
    arguments = ['--check-images', pictures, '--tokens', '9', '--classes', CLASSES]
    report = weights_file.with_name('deep') / 'report'
    assert (
        call(monkeypatch, convert_weights, weights_file, out, *arguments, '--report', report)
        is None
    )
    assert out.is_file() and (report / 'plot.png').is_file()
    # a wrong folder is told before anything is written
    other = weights_file.with_name('other.safetensors')
    arguments[1] = pictures / 'nowhere'
    assert 'no folder there' in call(monkeypatch, convert_weights, weights_file, other, *arguments)
    assert not other.exists()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'--tokens': '16,0'}, "'0' is no number of tokens from 1 on; give them as 64,"),
        ({'--tokens': '-4'}, 'no number of tokens'),
        ({'--classes': 'cats'}, 'FOLDER=NUMBER'),
        ({'--classes': 'cats=2'}, 'two classes or more'),
        ({'--classes': 'cats=2,dogs=7'}, 'have 7 classes, numbered from 0 to 6'),
        ({'--classes': 'cats=2,horses=3'}, 'no pictures of horses .* folders named birds, cats'),
        ({'--check-images': 'empty'}, 'no pictures in it, as empty/CLASS/'),
        ({'--interpolation': 'nearest'}, "interpolation='nearest' is not one of 'area', 'bil"),
    ],
)
def test_mistake_is_told_with_the_way_out(
    changes, message, weights_file, pictures, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    chosen = {'--check-images': pictures, '--tokens': '16', '--classes': CLASSES, **changes}
    told = call(monkeypatch, convert_weights, weights_file, *(x for p in chosen.items() for x in p))
    assert str(told).startswith('error: ')
    with pytest.raises(ValueError, match=message):
        raise ValueError(told)


def test_options_without_what_they_go_with_are_refused(weights_file, monkeypatch, tmp_path, capsys):
    assert call(monkeypatch, convert_weights, weights_file) == 2
    assert 'OUT is missing' in capsys.readouterr().err
    assert call(monkeypatch, convert_weights, weights_file, 'x.safetensors', '--tokens', '4') == 2
    assert 'go with --check-images' in capsys.readouterr().err
    arguments = ['--check-images', tmp_path]
    assert call(monkeypatch, convert_weights, 'hf://someone/something', *arguments) == 2
    assert 'without OUT, SOURCE is a file that was converted' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arch', 'options', 'statistics', 'message'),
    [
        ({}, {}, STATISTICS, 'no classifier to ask'),
        (dict(pooling='token', num_classes=7), {}, {}, 'does not say by which mean'),
        (
            dict(pooling='token', num_classes=7),
            dict(patch_size=(2, 16, 16), position=GRID),
            STATISTICS,
            'weights of pictures',
        ),
    ],
)
def test_weights_that_cannot_classify_pictures_are_refused(
    arch, options, statistics, message, tmp_path
):
    model = navit(dict(WITH_CLASS, **arch), **options)
    save_navit(tmp_path / 'other.safetensors', weights_of(model, **statistics))
    with pytest.raises(ValueError, match=message):
        Classifier.of(tmp_path / 'other.safetensors')


def test_pictures_none_of_which_can_be_read_are_told(weights_file, tmp_path):
    for name in ('cats', 'dogs'):
        (tmp_path / 'bad' / name).mkdir(parents=True)
        (tmp_path / 'bad' / name / 'a.jpg').write_bytes(b'<html>')
    check = Check.of(tmp_path / 'bad', tokens='4', classes=CLASSES)
    with pytest.raises(ValueError, match='none of 2 pictures can be read: .*a.jpg'):
        check.records(Classifier.of(weights_file))


def test_budgets_and_classes_are_read_from_text():
    assert budgets_of('576, 64,64') == [64, 576]
    assert classes_of('a=b=1, c=0') == {'a=b': 1, 'c': 0}


def test_real_weights_know_ants_from_bees(data_root):
    check = Check.of(data_root / 'hymenoptera', tokens='196', classes='ants=310,bees=309')
    few = replace(check, pictures=check.pictures[::10])
    classifier = Classifier.of(data_root / 'weights/deit_tiny_patch16_224.pt')
    found = few.records(classifier).found
    assert (found[..., 1].mean(2) >= 80).all()  # of those asked, in each way
