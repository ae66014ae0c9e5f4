"""No path of ours runs what is in a file of weights: runner, backbone, tools, Inferencers."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_checkpoint
from safetensors.torch import save_file
from test_hostile_weights import CODE, Runs, plain_content
from torch.utils.data import DataLoader

from navit_backbone.backbone import NaViTBackbone
from navit_backbone.checkpoint import UnsafeWeightsError, load_weights
from navit_backbone.tasks.common.sample_set import write_sample_set
from navit_backbone.tools import convert_weights, predict, train
from navit_backbone.tools import test as test_tool

ARCH = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=40)


@pytest.fixture
def marker(tmp_path):
    """A file that appears when a payload runs."""
    path = tmp_path / 'it_ran'
    yield path
    assert not path.exists(), 'the payload ran'


@MODELS.register_module()
class ToyDetector(BaseModel):
    """A backbone and a head, as small as a runner takes."""

    def __init__(self, init_cfg=None):
        super().__init__()
        self.backbone = NaViTBackbone(ARCH, init_cfg=init_cfg)
        self.head = torch.nn.Conv2d(24, 1, 1)

    def forward(self, inputs, mode='tensor'):
        out = self.head(self.backbone(torch.stack(inputs))[-1])
        return {'loss': out.square().mean()} if mode == 'loss' else []


def runner(work_dir, *, epochs=1, hooks=(), **options):
    pictures = [torch.randn(3, 32, 48) for _ in range(4)]
    return Runner(
        model=dict(type='ToyDetector'),
        work_dir=str(work_dir),
        train_dataloader=DataLoader(pictures, batch_size=2, collate_fn=lambda b: {'inputs': b}),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
        param_scheduler=dict(type='LinearLR', start_factor=0.5, end=2),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        custom_hooks=list(hooks),
        experiment_name=work_dir.name,
        log_level='ERROR',
        **options,
    )


@pytest.mark.parametrize('hooks', [(), (dict(type='EMAHook'),)], ids=['plain', 'EMA'])
def test_training_resumes_from_its_own_checkpoint(tmp_path, hooks):
    first = runner(tmp_path / 'first', hooks=hooks)
    first.train()
    logged = first.message_hub.log_scalars['train/loss'].data[0].copy()
    file = tmp_path / 'first' / 'epoch_1.pth'

    again = runner(tmp_path / 'second', epochs=2, hooks=hooks, load_from=str(file), resume=True)
    again.train()
    assert (again.epoch, again.iter) == (2, 4)
    resumed = again.message_hub.log_scalars['train/loss'].data[0]
    assert np.array_equal(resumed[: len(logged)], logged)
    assert len(resumed) > len(logged)


@pytest.mark.parametrize('resume', [True, False])
def test_load_from_and_resume_run_nothing(tmp_path, marker, resume):
    first = runner(tmp_path / 'first')
    first.train()
    content = torch.load(tmp_path / 'first' / 'epoch_1.pth', weights_only=False)
    content['optimizer']['x'] = Runs(os.system, f'touch {marker}')
    torch.save(content, tmp_path / 'hostile.pth')
    again = runner(tmp_path / 'b', load_from=str(tmp_path / 'hostile.pth'), resume=resume)
    with pytest.raises(UnsafeWeightsError, match=r'hostile.pth asks to run.*system.*trust'):
        again.train()


def test_resume_does_not_run_a_config_text(tmp_path, marker):
    """mmengine runs meta['config'] as Python when it resumes, and never writes it."""
    runner(tmp_path / 'first').train()
    content = torch.load(tmp_path / 'first' / 'epoch_1.pth', weights_only=False)
    content['meta']['config'] = CODE.format(marker=marker)
    torch.save(content, tmp_path / 'w.pth')
    again = runner(tmp_path / 'b', epochs=2, load_from=str(tmp_path / 'w.pth'), resume=True)
    again.train()
    assert again.epoch == 2


@pytest.mark.parametrize('resume', [True, False])
def test_half_matching_checkpoint_is_refused(tmp_path, resume):
    runner(tmp_path / 'first').train()
    content = torch.load(tmp_path / 'first' / 'epoch_1.pth', weights_only=False)
    for key in [key for key in content['state_dict'] if 'blocks.1' in key]:
        del content['state_dict'][key]
    torch.save(content, tmp_path / 'half.pth')
    again = runner(tmp_path / 'b', load_from=str(tmp_path / 'half.pth'), resume=resume)
    with pytest.raises(ValueError, match=r'has no blocks.1.norm1.weight .* for backbone.vit'):
        again.train()


def test_init_cfg_runs_nothing_and_names_the_file(tmp_path, marker):
    torch.save({'x': Runs(os.system, f'touch {marker}')}, tmp_path / 'hostile.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'hostile.pth'))
    with pytest.raises(UnsafeWeightsError, match=r'hostile.pth asks to run'):
        ToyDetector(init_cfg).init_weights()
    with pytest.raises(UnsafeWeightsError, match=r'hostile.pth asks to run'):
        load_weights(NaViTBackbone(ARCH).vit, tmp_path / 'hostile.pth')


def test_stock_backbones_load_as_safely(tmp_path, marker):
    """mmengine's own Pretrained goes through the same loader."""
    torch.save({'x': Runs(os.system, f'touch {marker}')}, tmp_path / 'hostile.pth')
    with pytest.raises(UnsafeWeightsError, match=r'hostile.pth'):
        load_checkpoint(torch.nn.Linear(2, 2), str(tmp_path / 'hostile.pth'))


def test_safetensors_load_through_mmengine(tmp_path):
    model = ToyDetector()
    save_file(model.state_dict(), tmp_path / 'w.safetensors')
    other = ToyDetector()
    load_checkpoint(other, str(tmp_path / 'w.safetensors'))
    for key, item in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], item), key


# --------------------------------------------------------------------------------------------------
# Through the tools and mmdet's own Inferencer

ROOT = Path(__file__).resolve().parents[1]
CONFIG = next((ROOT / 'configs/detection').glob('retinanet_navit-ti_*_sample.py'))
INFERENCE = """
import sys
from mmdet.apis import DetInferencer, init_detector
config, weights = sys.argv[1:]
uses = [lambda: DetInferencer(weights=weights, device='cpu')]
if config != 'none':
    uses = [
        lambda: init_detector(config, weights, device='cpu'),
        lambda: DetInferencer(config, weights, device='cpu'),
    ]
for use in uses:
    try:
        use()
    except Exception as error:
        print('refused', type(error).__name__, ' '.join(str(error).split()))
    else:
        sys.exit('it was loaded')
"""


@pytest.fixture
def hostile(tmp_path, marker):
    file = tmp_path / 'hostile.pth'
    torch.save(plain_content() | {'x': Runs(os.system, f'touch {marker}')}, file)
    return file


def infer(config, file, **environment):
    """Load in a fresh process that knows mmdet alone; what it says of each way."""
    done = subprocess.run(
        [sys.executable, '-c', INFERENCE, str(config), str(file)],
        env={**os.environ, 'CUDA_VISIBLE_DEVICES': '', **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [line for line in done.stdout.splitlines() if line.startswith('refused')]


def test_stock_inferencers_with_our_config_run_nothing(hostile):
    """The config is read first, and importing what it names registers our reader."""
    said = infer(CONFIG, hostile)
    assert len(said) == 2
    for line in said:
        assert 'UnsafeWeightsError' in line
        assert 'hostile.pth asks to run or build' in line


def test_inferencer_given_weights_alone_can_be_told_to_refuse(hostile):
    (line,) = infer('none', hostile, TORCH_FORCE_WEIGHTS_ONLY_LOAD='1')
    assert 'UnpicklingError' in line


@pytest.mark.parametrize('tool', [train, test_tool, predict, convert_weights])
def test_tools_run_nothing_and_name_the_file(tool, hostile, tmp_path, monkeypatch):
    write_sample_set(tmp_path / 'set', seed=0, num_pictures=dict(train=2, val=2))
    picture = tmp_path / 'set/val/00000.jpg'
    options = ['--cfg-options', f'data_root={tmp_path / "set"}']
    options += [
        f'{split}_dataloader.{option}'
        for split in ('train', 'val', 'test')
        for option in ('num_workers=0', 'persistent_workers=False')
    ]
    init_cfg = 'model.backbone.init_cfg'
    starts = [f'{init_cfg}.type=Pretrained', f'{init_cfg}.checkpoint={hostile}']
    lines = {
        train: [
            [CONFIG, '--work-dir', tmp_path, '--resume', hostile, *options],
            [CONFIG, '--work-dir', tmp_path, *options, f'load_from={hostile}'],
            [CONFIG, '--work-dir', tmp_path, *options, *starts],
        ],
        test_tool: [[CONFIG, hostile, '--work-dir', tmp_path, *options]],
        predict: [[CONFIG, hostile, picture, '--out-dir', tmp_path, *options]],
        convert_weights: [[hostile, tmp_path / 'out.safetensors']],
    }
    for arguments in lines[tool]:
        monkeypatch.setattr(sys, 'argv', [tool.__name__, *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            tool.main()
        assert 'hostile.pth asks to run or build' in str(caught.value.code)
