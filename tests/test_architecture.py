"""Imports go down only, and importing decides nothing."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A module imports from the floors before its own and from its own folder; '' is the package.
LIBRARY = [
    'packing',
    'packer',
    'attention',
    'interpolation',
    'position',
    'layers',
    'pooling',
    'vit',
    '',
    'file_writing',
    'sealed',
    'weight_files',
    'families',
    'recognition',
    'conversion',
    'weight_sources',
    'inflation',
    'checkpoint',
    'given_back',
    'plans',
    'homes',
    'outbound',
    'backbone',
]
FLOORS = [*LIBRARY, 'tasks.common', 'tasks', 'tools', 'tests']
CORE = {*sys.stdlib_module_names, 'torch', 'einops', 'safetensors'}
BESIDES = {
    'backbone': {'mmengine'},
    'weight_sources': {'huggingface_hub'},
    'weight_files': {'numpy'},  # for .npz alone, inside the function that reads it
}
# Who may import what others have to do without. Tools and the library take them inside functions.
OPTIONAL = {
    'mmdet': {'tasks.detection', 'tasks.comparison'},
    'mmseg': {'tasks.segmentation', 'tasks.comparison'},
    'mmcv.ops': {'tasks.detection', 'tasks.comparison'},
    'transformers': {'tasks.pretraining', 'tasks.comparison'},
    'timm': set(),
    'torchvision': set(),
    'huggingface_hub': {'weight_sources'},
}
DECISIONS = ('torch.cuda', 'torch.set_', 'torch.backends', 'os.environ', 'os.getenv', 'cv2.set')
DRAWERS = {'utils', 'util', 'helpers', 'helper', 'misc'}


def modules() -> dict[str, Path]:
    """Every Python file by its name in the package, to which tools and tests are counted here."""
    folders = ('navit_backbone', 'tasks', 'tools', 'tests')
    paths = [path for folder in folders for path in (ROOT / folder).rglob('*.py')]
    names = ['.'.join(path.relative_to(ROOT).with_suffix('').parts) for path in paths]
    inside = [f'navit_backbone.{name.removeprefix("navit_backbone.")}' for name in names]
    return dict(zip(inside, paths, strict=True))


def unit(name: str) -> str:
    """The part of the house that a name belongs to: 'vit', 'tasks.detection', 'tools', ''."""
    parts = name.split('.')[1:]
    if parts[:1] == ['tasks']:
        return '.'.join(parts[:2])
    return parts[0] if parts and parts[0] in FLOORS else ''


def floor(name: str) -> int:
    return FLOORS.index(unit(name) if unit(name) in FLOORS else 'tasks')


def imports(name: str, tree: ast.AST) -> list[str]:
    """All that a module imports, inside functions too."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = name.split('.')[: -node.level] if node.level else []
            base = '.'.join([*above, *([node.module] if node.module else [])])
            found += [f'{base}.{alias.name}' for alias in node.names]
    return found


def import_faults(name: str, imported: str) -> list[str]:
    own, top = unit(name), imported.split('.')[0]
    if top == 'navit_backbone':
        below = unit(imported) == own or floor(imported) < floor(name)
        return [] if below else [f'{imported} is not below {name}']
    found = []
    if own in LIBRARY and top not in CORE | BESIDES.get(own, set()):
        found.append(f'the library stands on torch, einops and safetensors alone, not {imported}')
    if own.startswith('tasks') and imported.startswith(('mmdet.registry', 'mmseg.registry')):
        found.append(f'register in the root registries of mmengine, not in {imported}')
    for framework, users in OPTIONAL.items():
        if f'{imported}.'.startswith(f'{framework}.') and own not in {*users, 'tools', 'tests'}:
            found.append(f'{framework} may be absent in {own or name}')
    return found


def faults(name: str, source: str) -> list[str]:
    """What a module does against the rules."""
    tree = ast.parse(source)
    found = [fault for imported in imports(name, tree) for fault in import_faults(name, imported)]
    found += ['a global' for node in ast.walk(tree) if isinstance(node, ast.Global)]
    for node in ast.walk(tree):  # what is left then runs at import
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            node.body = []
    if unit(name) == 'tools' or unit(name) in LIBRARY:
        found += [f'{i} at import' for i in imports(name, tree) if i.split('.')[0] in OPTIONAL]
    if unit(name) in LIBRARY:
        found += [f'{i} at import' for i in imports(name, tree) if i.split('.')[0] == 'numpy']
    touched = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return found + [f'{what} at import' for what in touched if what.startswith(DECISIONS)]


@pytest.mark.parametrize(('name', 'path'), modules().items(), ids=modules())
def test_module_keeps_the_rules(name, path):
    assert faults(name, path.read_text()) == []
    assert not DRAWERS & set(path.stem.split('_')), f'{path}: name it by what it holds'


def test_every_module_of_the_library_has_its_floor():
    stems = {path.stem for path in (ROOT / 'navit_backbone').rglob('*.py')}
    assert stems - {'__init__'} == set(LIBRARY) - {''}


@pytest.mark.parametrize(
    ('name', 'source'),
    [
        ('attention', 'from .vit import NaViT'),
        ('layers', 'from . import vit'),
        ('vit', 'def f():\n    import navit_backbone.backbone'),
        ('vit', 'import numpy'),
        ('weight_files', 'import numpy'),
        ('__init__', 'from .backbone import NaViTBackbone'),
        ('backbone', 'from mmdet.registry import MODELS'),
        ('backbone', 'from .tasks import common'),
        ('tasks.common.norm', 'def f():\n    import mmdet.models'),
        ('tasks.common.norm', 'from mmcv import ops'),
        ('tasks.common.norm', 'from ..detection import data'),
        ('tasks.video.model', 'from ..segmentation.data import load'),
        ('tasks.video.model', 'import mmcv.ops.nms'),
        ('tasks.detection.model', 'from mmdet.registry import MODELS'),
        ('tasks.detection.model', 'from navit_backbone.tools import train'),
        ('tools.train', 'import mmdet'),
        ('weight_sources', 'from huggingface_hub import snapshot_download'),
        ('checkpoint', 'def f():\n    import huggingface_hub'),
        ('packing', 'import torch\nDEVICE = "cuda" if torch.cuda.is_available() else "cpu"'),
        ('packing', 'import os\nclass A:\n    os.environ["A"] = "1"'),
        ('packing', 'import torch\ndef f(device=torch.cuda.current_device()): ...'),
        ('packing', 'def f():\n    global x\n    x = 1'),
    ],
)
def test_a_fault_is_found(name, source):
    assert faults(f'navit_backbone.{name}', source)


def test_what_is_right_is_no_fault():
    source = (
        'from ..common.norm import LayerNorm2d\nimport mmdet\ndef f(): torch.cuda.synchronize()'
    )
    assert faults('navit_backbone.tasks.detection.model', source) == []
    assert faults('navit_backbone.tools.train', 'def f():\n    import mmdet.apis') == []


@pytest.mark.parametrize('folder', ['navit_backbone', 'tasks', 'tools', 'configs'])
def test_the_map_of_the_house_is_complete(folder):
    text = (ROOT / 'CONTRIBUTING.md').read_text()
    paths = list((ROOT / folder).rglob('*.py'))
    named = [path for path in paths if folder != 'configs' and path.stem != '__init__']
    names = [path.name for path in named] + [f'{path.parent.name}/' for path in paths]
    assert [name for name in names if name not in text] == []
