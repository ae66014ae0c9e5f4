"""Text files: every encoding, newline and separator that editors and spreadsheets write."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest

from navit_backbone.tasks.common import text_files
from navit_backbone.tasks.common.text_files import (
    Table,
    read_class_names,
    read_json,
    read_lines,
    read_names,
    read_text,
    write_new,
)

TEXT = 'play guitar 0\narrêt 1\n走路 2\n'
WESTERN = 'marche 0\narrêt 1\n'


@pytest.mark.parametrize('newline', ['\n', '\r\n', '\r'])
@pytest.mark.parametrize(
    'encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32']
)
def test_unicode_is_read_in_every_encoding_without_a_word(
    tmp_path: Path, encoding: str, newline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(text_files, 'print_log', lambda text, *_: said.append(text))
    file = tmp_path / 'list.txt'
    file.write_bytes(TEXT.replace('\n', newline).encode(encoding))
    assert read_text(file) == TEXT
    assert read_lines(file) == ['play guitar 0', 'arrêt 1', '走路 2']
    assert not said


def test_big_endian_with_a_mark_is_read(tmp_path: Path) -> None:
    file = tmp_path / 'list.txt'
    file.write_bytes(codecs.BOM_UTF16_BE + TEXT.encode('utf-16-be'))
    assert read_text(file) == TEXT


def test_utf_16_without_a_mark_is_read_where_only_newlines_are_latin(tmp_path: Path) -> None:
    file = tmp_path / 'classes.txt'
    file.write_bytes('走路\n跑步\n'.encode('utf-16-le'))
    assert read_names(file) == ['走路', '跑步']


@pytest.mark.parametrize('encoding', ['utf-16-le', 'utf-16-be'])
@pytest.mark.parametrize('blanks', [1, 12])
def test_utf_16_without_a_mark_is_read_with_ideographic_spaces(
    tmp_path: Path, encoding: str, blanks: int
) -> None:
    text = '走路' + '\u3000跑步' * blanks + '\n跳舞\u3000慢\n'
    (tmp_path / 'classes.txt').write_bytes(text.encode(encoding))
    assert read_text(tmp_path / 'classes.txt') == text


def test_class_names_are_composed_and_a_labelmap_of_cvat_is_named(tmp_path: Path) -> None:
    file = tmp_path / 'labelmap.txt'
    file.write_text('arre\u0302t\nratio 4:3\n', encoding='utf-8')
    assert read_class_names(file) == ['arr\u00eat', 'ratio 4:3']
    file.write_text('# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0:a,b:\n')
    with pytest.raises(ValueError, match=r'labelmap\.txt of CVAT.*prepare_data\.py masks'):
        read_class_names(file)


@pytest.mark.parametrize(
    ('text', 'first'),
    [
        ('1 walk\n2 run\n3 ice skating\n', '1 walk'),
        ('0: walk\n1: run\n', '0: walk'),
        ('0,walk\n1,run\n', '0,walk'),
        ('01.\twalk\n\n02.\trun\n', '01.\twalk'),
    ],
)
def test_numbered_class_names_are_refused(text: str, first: str, tmp_path: Path) -> None:
    file = tmp_path / 'classInd.txt'
    file.write_text(text)
    with pytest.raises(ValueError, match='begins with its number.*Fix: keep the names') as caught:
        read_class_names(file)
    assert str(caught.value).startswith(f'{file}: ')
    assert repr(first) in str(caught.value)


@pytest.mark.parametrize(
    'names',
    [
        ['3d printer'],
        ['1 walk'],
        ['1d code', '2d code'],
        ['1 euro', '2 euro'],
        ['1 cent', '2 cents', '5 cents'],
        ['2 doors', '3 wheels'],
        ['1 walk', '2 run', 'rest'],
        ['1.5 litres', '2.5 kilos'],
        ['0', '1', '2'],
    ],
)
def test_class_names_that_begin_with_digits_are_names(names: list[str], tmp_path: Path) -> None:
    file = tmp_path / 'classes.txt'
    file.write_text('\n'.join(names))
    assert read_class_names(file) == names


@pytest.mark.parametrize('line', ['bg, a, b', 'bg;a', 'bg\ta'])
def test_class_names_on_one_line_are_refused(line: str, tmp_path: Path) -> None:
    file = tmp_path / 'classes.txt'
    file.write_text(f'{line}\n')
    with pytest.raises(ValueError, match='Fix: write one name a line') as caught:
        read_class_names(file)
    assert repr(line) in str(caught.value)
    file.write_text('tench, Tinca tinca\ngoldfish, Carassius auratus\n')
    assert read_class_names(file) == ['tench, Tinca tinca', 'goldfish, Carassius auratus']


@pytest.mark.parametrize('encoding', ['latin-1', 'cp1252'])
def test_western_files_are_read_with_one_warning_that_names_them(
    tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(text_files, 'print_log', lambda text, *_: said.append(text))
    file = tmp_path / 'latin.txt'
    file.write_bytes(WESTERN.encode(encoding))
    assert read_text(file) == WESTERN
    assert read_text(file) == WESTERN
    assert [f'{file}: read as Windows-1252' in text for text in said] == [True]


@pytest.mark.parametrize(
    'content',
    [
        b'\x81\x8d arr\xeat',  # undefined in Windows-1252
        codecs.BOM_UTF8 + b'arr\xeat\n',
        codecs.BOM_UTF16_LE + b'a\x00b',  # half a letter
        b'\x89PNG\x00\x00\x01\x00 binary',
        b'one stray \x00 in a long text file of plain letters',
    ],
)
def test_what_is_not_text_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / 'broken.txt'
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r'broken\.txt .*save it as UTF-8'):
        read_text(file)


def test_a_missing_file_is_an_error_of_its_own_kind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / 'absent.txt')


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    (tmp_path / 'empty.txt').write_bytes(b'')
    assert read_lines(tmp_path / 'empty.txt') == []


def test_only_newlines_end_a_line(tmp_path: Path) -> None:
    file = tmp_path / 'odd.txt'
    file.write_text('a\x0cb\u2028c\n\nd', encoding='utf-8')
    assert read_lines(file) == ['a\x0cb\u2028c', '', 'd']


def test_json_with_a_mark_is_read_and_a_fault_names_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / 'a.json'
    file.write_bytes(codecs.BOM_UTF8 + json.dumps({'naïve': 1}, ensure_ascii=False).encode())
    assert read_json(file) == {'naïve': 1}
    file.write_text('{"a": 1,\n')
    with pytest.raises(ValueError, match=r'a\.json is not JSON .*line 2'):
        read_json(file)


@pytest.mark.parametrize('separator', [',', ';', '\t'])
@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'cp1252'])
def test_tables_of_spreadsheets(tmp_path: Path, separator: str, encoding: str) -> None:
    file = tmp_path / 'clips.csv'
    rows = [['file', ' label '], ['a b.mp4', ' arrêt'], [' c.mp4 ', 'marche '], ['', '']]
    file.write_bytes('\r\n'.join(separator.join(row) for row in rows).encode(encoding))
    table = Table(file)
    assert table.columns == ['file', 'label']
    assert list(table) == [
        (2, {'file': 'a b.mp4', 'label': 'arrêt'}),
        (3, {'file': 'c.mp4', 'label': 'marche'}),
    ]


def test_a_row_of_another_length_is_refused_by_line(tmp_path: Path) -> None:
    file = tmp_path / 'clips.csv'
    file.write_text('file,label\na.mp4,run\nb,c.mp4,walk\n')
    with pytest.raises(ValueError, match=r'clips\.csv, line 3: has 3 fields, the header has 2'):
        list(Table(file))
    file.write_text('file,label\n"b,c.mp4",walk\n')
    assert [row['file'] for _, row in Table(file)] == ['b,c.mp4']


def test_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / 'clips.csv').write_text('file,label,label\na,b,c\n')
    with pytest.raises(ValueError, match=r"clips\.csv: the header names the columns \['label'\]"):
        Table(tmp_path / 'clips.csv')


def test_names_are_written_once_and_never_over_others(tmp_path: Path) -> None:
    file = tmp_path / 'classes.txt'
    write_new(file, ['arrêt', '走路'])
    assert file.read_bytes() == 'arrêt\n走路\n'.encode()
    file.write_bytes('arrêt\r\n走路'.encode('utf-16'))
    before = file.read_bytes()
    write_new(file, ['arrêt', '走路'])
    assert file.read_bytes() == before
    with pytest.raises(ValueError, match=r'classes\.txt exists with other names'):
        write_new(file, ['走路', 'arrêt'])
    assert file.read_bytes() == before
    write_new(file, ['one'], overwrite=True)
    assert file.read_text() == 'one\n'


@pytest.mark.parametrize('separator', [',', ';', '\t', '|'])
def test_the_separator_line_and_empty_columns_of_excel(tmp_path: Path, separator: str) -> None:
    file = tmp_path / 'clips.csv'
    rows = [f'sep={separator}', 'file_label__', 'a, b.mp4_run__', 'c.mp4_walk_']
    if separator == ',':
        rows[2] = 'a.mp4_run__'
    file.write_bytes('\r\n'.join(row.replace('_', separator) for row in rows).encode('utf-8-sig'))
    table = Table(file)
    assert table.columns == ['file', 'label']
    first = 'a.mp4' if separator == ',' else 'a, b.mp4'
    assert list(table) == [
        (3, {'file': first, 'label': 'run'}),
        (4, {'file': 'c.mp4', 'label': 'walk'}),
    ]
    file.write_text('file,label,,\na.mp4,run,,\nb.mp4,run,,walk\n')
    with pytest.raises(ValueError, match='line 3: has 4 fields, the header has 2'):
        list(Table(file))


def test_a_quote_without_an_end_is_refused_with_its_line(tmp_path: Path) -> None:
    """Read leniently, the rows below would be part of its class name."""
    file = tmp_path / 'list.csv'
    file.write_text('file,label\na.mp4,walk\nb.mp4,"run\nc.mp4,run\nd.mp4,walk\n')
    with pytest.raises(ValueError, match=r'list\.csv, line 3: .*not closed'):
        list(Table(file))
    file.write_text('file,label,note\na.mp4,walk,"two\nlines, ""quoted"""\nb.mp4,12" run,\n')
    assert [row for _, row in Table(file)] == [
        {'file': 'a.mp4', 'label': 'walk', 'note': 'two\nlines, "quoted"'},
        {'file': 'b.mp4', 'label': '12" run', 'note': ''},
    ]
