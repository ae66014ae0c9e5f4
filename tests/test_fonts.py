"""Letters beyond ASCII in drawings: drawn as what they are, or as what keeps them apart."""

import warnings
from itertools import combinations

import numpy as np
import pytest
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw

from navit_backbone.tasks.common import fonts
from navit_backbone.tasks.common.confusion import confusion_picture
from navit_backbone.tasks.common.fonts import TextLine, drawn_names, font_families
from navit_backbone.tasks.detection.inference import annotated

NAMES = [
    'cat',
    'собака',
    'город',
    'zèbre',
    'zêbre',
    'zebre',
    'ñ',
    'ü',
    'قط',
    'كلب',
    'Ωμέγα',
    '猫',
    '狗',
]
CHINESE = ['猫', '狗', '人']


@pytest.fixture
def no_system_fonts(monkeypatch):
    """Use only the fonts of Pillow and matplotlib."""
    monkeypatch.setattr(fonts, '_system_fonts', lambda: ())
    yield from _fresh_caches()


@pytest.fixture
def chinese_font(monkeypatch):
    """A machine with a font that has the letters of CHINESE: DejaVu's, under other numbers."""
    other = dict(zip(map(ord, CHINESE), map(ord, 'ДЖЮ'), strict=True))
    known = fonts._letters_of
    monkeypatch.setattr(fonts, '_system_fonts', lambda: ('/system/chinese.ttf',))
    monkeypatch.setattr(
        fonts,
        '_letters_of',
        lambda file: frozenset(other) if file == '/system/chinese.ttf' else known(file),
    )
    monkeypatch.setattr(
        fonts, '_font', lambda file, size, real=fonts._font: real(fonts._DEJAVU, size)
    )
    yield from _fresh_caches()


def _fresh_caches():
    for cached in (fonts._file_with, fonts.drawn_names):
        cached.cache_clear()
    yield
    for cached in (fonts._file_with, fonts.drawn_names):
        cached.cache_clear()


def drawn(name, **further):
    item = dict(bbox=[20, 40, 60, 40], category_id=0, category_name=name, score=0.5)
    image = np.zeros((120, 300, 3), dtype=np.uint8)
    return np.asarray(annotated(image, [item], [(200, 30, 30)], **further))


@pytest.mark.parametrize('named', [False, True])
def test_no_two_names_are_drawn_alike(named, no_system_fonts):
    """With and without the numbers that stand for what no font has."""
    names = drawn_names(tuple(NAMES)) if named else NAMES
    pictures = [drawn(name) for name in names]
    for (one, a), (other, b) in combinations(zip(NAMES, pictures, strict=True), 2):
        assert not np.array_equal(a, b), (one, other)


def test_letters_of_matplotlibs_font_are_drawn_as_they_are(no_system_fonts):
    names = ('собака', 'zèbre', 'Ωμέγα', 'قط', 'a b', 'x_$1')
    assert drawn_names(names) == names
    has = FT2Font(fonts._DEJAVU).get_charmap()
    assert all(ord(letter) in has for name in names for letter in name)
    assert {file for _, file in TextLine('собака 0.53', 20).runs} != {''}


def test_names_without_letters_are_numbered_and_the_numbers_listed_once(
    no_system_fonts, monkeypatch
):
    logged = []
    monkeypatch.setattr(fonts, 'print_log', lambda message, **_: logged.append(message))
    names = ('cat', '猫', '狗', '#1', 'two\nlines', ' ')
    assert drawn_names(names) == ('cat', '##1', '#2', '#1', '#4', '#5')
    assert drawn_names(names) == ('cat', '##1', '#2', '#1', '#4', '#5')
    assert len(logged) == 1
    assert '4 class names are numbered' in logged[0]
    assert "##1 = '猫', #2 = '狗', #4 = 'two\\nlines', #5 = ' '" in logged[0]


def test_composed_and_decomposed_names_are_told_apart():
    assert drawn_names(('\u00e9t\u00e9', 'e\u0301te\u0301')) == ('\u00e9t\u00e9', '#1')


def test_a_font_of_the_system_draws_what_it_has(chinese_font):
    assert drawn_names((*CHINESE, 'cat', '鳥')) == (*CHINESE, 'cat', '#4')
    ((text, _),) = TextLine('猫狗', 20).runs
    assert text == '猫狗'
    line = TextLine('cat 猫, собака', 20)
    assert ''.join(run for run, _ in line.runs) == 'cat 猫, собака'
    assert len(line.runs) >= 3
    canvas = Image.new('L', (400, 40))
    line.draw(ImageDraw.Draw(canvas), (0, 0), 255)
    columns = np.flatnonzero(np.asarray(canvas).any(0))
    assert 0.9 * line.width < columns.max() <= line.width


@pytest.mark.parametrize('size', [12, 17, 40])
def test_width_is_what_is_drawn(size):
    line = TextLine('zèbre, собака: قط', size)
    canvas = Image.new('L', (line.width + 200, 2 * size))
    line.draw(ImageDraw.Draw(canvas), (50, 0), 255)
    columns = np.flatnonzero(np.asarray(canvas).any(0))
    assert abs(columns.min() - 50) <= 0.2 * size
    assert abs(columns.max() - (50 + line.width)) <= 0.2 * size


def test_plots_of_confusion_have_all_letters(no_system_fonts, tmp_path):
    """matplotlib warns of each glyph that it lacks, and reads $ as the sign of a formula."""
    names = ['собака', 'zèbre', '猫', 'a$b$^', 'قط']
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        confusion_picture(np.eye(5, dtype=np.int64), names, tmp_path / 'c.png', unit='pixels')
    assert font_families(names) == ['DejaVu Sans']
    with Image.open(tmp_path / 'c.png') as picture:
        assert picture.width > 100


def test_a_line_is_shortened_in_its_middle_to_fit():
    name = 'a long name of many words that has a last one'
    line = TextLine(('99.0 %  ', name), 14, max_width=150)
    text = ''.join(run for run, _ in line.runs)
    assert line.width <= 150
    assert text.startswith('99.0 %  a long')
    assert text.endswith(' one')
    assert text.count('…') == 1
    assert [run for run, _ in TextLine('cat', 14, max_width=1).runs] == ['cat']
    assert [run for run, _ in TextLine(name, 14, max_width=1000).runs] == [name]


def test_a_number_stays_to_the_left_of_a_name_from_right_to_left():
    line = TextLine(('10.0 %  ', 'قط'), 14)
    assert [run for run, _ in line.runs] == ['10.0 %  ', 'قط']


def test_long_names_are_whole_in_a_confusion_matrix(tmp_path):
    names = ['cat', 'a long name of many words ' * 4]
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # matplotlib warns where names leave no room for the matrix
        confusion_picture(np.eye(2, dtype=int), names, tmp_path / 'a.png', unit='pixels')
    assert min(Image.open(tmp_path / 'a.png').size) > 900
