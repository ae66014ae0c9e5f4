"""Messages name what they mean: no field left unfilled, no argument lost to a loop variable."""

import ast
import re
from pathlib import Path

import pytest

from navit_backbone import NaViT
from navit_backbone.tasks.common.clip_data import NaViTClipDataset

ROOT = Path(__file__).resolve().parents[1]
FILES = [
    file for name in ('navit_backbone', 'tasks', 'tools') for file in (ROOT / name).rglob('*.py')
]
FIELD = re.compile(r'(?<!\{)\{([A-Za-z_]\w*)[^{}]*\}(?!\})')
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def own_nodes(function):
    """The nodes of a function without those of the functions inside it."""
    todo = list(ast.iter_child_nodes(function))
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, FUNCTIONS):
            todo += ast.iter_child_nodes(node)


def arguments(function):
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return {item.arg for item in every if item is not None}


def slips(source):
    """(line, what) of fields that no f-string fills, and of loops that take an argument's name."""
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, FUNCTIONS):
            continue
        nodes = list(own_nodes(function))
        stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        names = arguments(function) | stored
        templates = {
            id(node.value)
            for node in nodes
            if isinstance(node, ast.Attribute) and node.attr in ('format', 'format_map')
        }
        templates |= {id(node.value) for node in nodes if isinstance(node, ast.Expr)}  # docstrings
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for field in FIELD.finditer(node.value):
                    if field[1] in names and id(node) not in templates:
                        yield node.lineno, field[0]
            if isinstance(node, (ast.For, ast.AsyncFor)):
                targets = {n.id for n in ast.walk(node.target) if isinstance(n, ast.Name)}
                for name in sorted(targets & arguments(function)):
                    yield node.lineno, f'for {name}'


@pytest.mark.parametrize(
    ('source', 'found'),
    [
        ("def f(file):\n    raise ValueError(f'{file}: ' 'take {file} away')", [(2, '{file}')]),
        ("def f(n):\n    return 'at {n!r}'", [(2, '{n!r}')]),
        ("def f():\n    size = 3\n    print('{size.real:g} px')", [(3, '{size.real:g}')]),
        ("def f(n):\n    return f'at {n}, {{braces}}, {n:>{n}}'", []),
        ("def f(n):\n    return '{n}'.format(n=n)", []),
        ("def f(n):\n    return 'blocks.{i}.weight'", []),
        ('def f(name):\n    for name in "ab":\n        pass', [(2, 'for name')]),
        ('def f(name):\n    return [name for name in "ab"]', []),
    ],
)
def test_a_slip_is_found(source, found):
    assert list(slips(source)) == found


def test_no_message_has_a_slip():
    assert len(FILES) > 100
    found = [(str(f.relative_to(ROOT)), *slip) for f in FILES for slip in slips(f.read_text())]
    assert found == []


def test_a_checkpoint_of_another_model_is_named():
    arch = dict(embed_dims=8, num_layers=1, num_heads=2, feedforward_channels=8)
    state = NaViT(arch, position='fourier').get_extra_state()
    with pytest.raises(ValueError, match=r'^best\.pth is of another architecture than this model'):
        NaViT(arch).check_architecture(state, 'best.pth')
    with pytest.raises(ValueError, match='the checkpoint is of another architecture'):
        NaViT(arch).load_state_dict(NaViT(arch, position='fourier').state_dict())


@pytest.mark.parametrize(
    ('header', 'missing'),
    [
        ('name,label', r"\(\['file or path or video or filename'\] missing\)"),
        ('file,class', r"\(\['label'\] missing\)"),
        ('name,class', r"\(\['file or path or video or filename', 'label'\] missing\)"),
    ],
)
def test_the_missing_columns_of_a_csv_are_named(tmp_path, header, missing):
    (tmp_path / 'list.csv').write_text(f'{header}\na.mp4,run\n')
    with pytest.raises(ValueError, match=missing):
        NaViTClipDataset(
            'list.csv', data_root=str(tmp_path), data_prefix=dict(clips=''), pipeline=[]
        )
