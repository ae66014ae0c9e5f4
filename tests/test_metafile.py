"""The index of models: what OpenMMLab's tools read, and no figure that the README lacks."""

import re
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import navit_backbone.tasks.detection
import navit_backbone.tasks.segmentation
import navit_backbone.tasks.video  # noqa: F401  register

ROOT = Path(__file__).resolve().parents[1]
FILES = [ROOT / name for name in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']]
# A metric of the index, which is in percent -> a column of the README, and what that has for 100 %.
COLUMNS = {
    'box AP': ('box AP', 1),
    'box AP50': ('AP50', 1),
    'mIoU': ('mIoU', 100),
    'Top 1 Accuracy': ('top1', 100),
}


def listed():
    """Every model of every file, with the folder that its README stands in."""
    for file in FILES:
        content = yaml.safe_load(file.read_text())
        collections = {item['Name']: item for item in content['Collections']}
        for model in content['Models']:
            yield model, collections[model['In Collection']]


def rows(readme):
    """The rows of all tables: {column: figure}, of each cell the first number that stands in it."""
    header = None
    for line in readme.splitlines():
        if not line.startswith('|'):
            header = None
            continue
        cells = [cell.strip(' *') for cell in line.strip('|').split('|')]
        if header is None:
            header = cells
        elif not set(line) <= set('|-: '):
            numbers = [re.match(r'-?\d+\.?\d*', cell) for cell in cells]
            yield {
                name: float(number[0])
                for name, number in zip(header, numbers, strict=True)
                if number
            }


def test_every_metafile_is_in_the_index():
    assert sorted(FILES) == sorted((ROOT / 'configs').rglob('metafile.yml'))


@pytest.mark.parametrize(('model', 'collection'), list(listed()), ids=lambda item: item['Name'])
def test_model_is_there_as_it_is_described(model, collection):
    path = ROOT / model['Config']
    assert path.stem == model['Name']
    assert (ROOT / collection['README']).is_file()
    cfg = Config.fromfile(path)
    assert cfg.train_cfg.max_epochs == model['Metadata']['Epochs']
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    parameters = sum(p.numel() for p in MODELS.build(cfg.model).parameters())
    assert parameters == model['Metadata']['Parameters']


@pytest.mark.parametrize(('model', 'collection'), list(listed()), ids=lambda item: item['Name'])
def test_figures_are_those_of_the_readme(model, collection):
    text = (ROOT / collection['README']).read_text()
    assert model['Name'] in text
    for result in model['Results']:
        expected = {}
        for name, value in result['Metrics'].items():
            column, whole = COLUMNS[name]
            expected[column] = pytest.approx(value * whole / 100)
        assert expected
        assert any(expected.items() <= row.items() for row in rows(text)), expected


def test_tables_are_read_as_they_stand():
    text = '| seed | box AP | AP50 |\n|---|---|---|\n| **0** | **0.536** ± 0.01 | - |\n\n| a |\n'
    assert list(rows(text)) == [{'seed': 0.0, 'box AP': 0.536}]
