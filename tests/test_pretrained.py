"""What a file of weights tells a config, a checkpoint a model, and both the input."""

import pytest
import torch
from commands import NO_WORKERS, call
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from oracles import perturb, pictures
from weights import ARCH, timm_state

import navit_backbone.tasks.detection  # noqa: F401  registers
from navit_backbone import NaViT
from navit_backbone.backbone import NaViTBackbone, NaViTClipBackbone
from navit_backbone.checkpoint import read_checkpoint, save_navit, weights_of
from navit_backbone.families import IMAGENET
from navit_backbone.tasks.common.pretrained import fill_from_file, fill_from_state
from navit_backbone.tasks.common.sample_set import write_sample_set

pytest.importorskip('mmdet')
from test_tools import CONFIG

from navit_backbone.tools import predict, test, train

STATISTICS = ((0.5,) * 3, (50 / 255,) * 3)  # those of the config
UNUSUAL = dict(
    ARCH, prefix_tokens=1, norm_eps=1e-5, mlp='quick_gelu', rope=dict(theta=50.0), qk_norm=True
)


def written(path, arch=UNUSUAL, statistics=STATISTICS, **options):
    options = {'patch_size': 16, 'position': dict(kind='learned_1d', grid=(3, 7)), **options}
    model = perturb(NaViT(arch, **options), seed=5)
    mean, std = statistics
    save_navit(path, weights_of(model, input_mean=mean, input_std=std))
    return model, dict(type='Pretrained', checkpoint=str(path))


def test_a_file_of_ours_alone_suffices(tmp_path):
    model, start = written(tmp_path / 'w.safetensors')
    backbone = NaViTBackbone(init_cfg=start)
    backbone.init_weights()
    assert backbone.vit.architecture() == model.architecture()
    for key, item in model.state_dict().items():
        assert torch.equal(backbone.vit.state_dict()[key], item), key
    assert backbone.statistics == STATISTICS
    assert set(backbone.completed) == {'arch', 'patch_size', 'position'}


def test_what_a_config_leaves_out_is_told_and_what_it_states_stays(tmp_path):
    model, start = written(tmp_path / 'w.safetensors')
    partial = NaViTBackbone(dict(norm_eps=1e-5), patch_size=16, init_cfg=start)
    partial.init_weights()
    assert partial.vit.architecture() == model.architecture()
    assert partial.completed['arch'] == model.arch.to_dict()
    assert 'patch_size' not in partial.completed
    for stated, message in (
        (dict(arch=dict(norm_eps=1e-6)), 'norm_eps: 1e-05 in the file, 1e-06 in the model'),
        (
            dict(patch_size=8),
            r'of 1x16x16 .*, the model of 1x8x8: set patch_size=16 or leave it',
        ),
        (dict(position='factorised'), "position .*'learned_1d'.* the model .*'factorised'"),
        (dict(arch='tiny'), r'embed_dims: 24 in the file, 192 in the model'),
    ):
        with pytest.raises(ValueError, match=message):
            NaViTBackbone(**stated, init_cfg=start).init_weights()


def test_clips_and_pictures_are_told_by_one_another_s_files(tmp_path):
    _, start = written(tmp_path / 'pictures.safetensors', dict(UNUSUAL, pooling='mean'))
    clips = NaViTClipBackbone(patch_size=(2, 16, 16), init_cfg=start)
    clips.init_weights()
    assert clips.vit.temporal_position is None
    timed = NaViTClipBackbone(init_cfg=start, temporal_position=dict(max_size=4))
    assert (timed.vit.patch_shapes, timed.vit.temporal_position.max_size) == ([(1, 16, 16)], 4)
    _, start = written(
        tmp_path / 'clips.safetensors', patch_size=(2, 16, 16), temporal_position=dict(max_size=8)
    )
    backbone = NaViTBackbone(init_cfg=start)
    backbone.init_weights()
    assert backbone.patch_size == 16
    assert NaViTClipBackbone(dict(pooling='map'), init_cfg=start).vit.temporal_position is not None


def test_without_a_file_the_defaults_hold_and_foreign_files_tell_nothing(tmp_path):
    vit = NaViTBackbone(dict(preset='tiny', num_layers=1)).vit
    assert (vit.patch_shapes, vit.position.grid) == ([(1, 16, 16)], (14, 14))
    assert NaViTBackbone('tiny', position=None).vit.position is None
    torch.save(timm_state(), tmp_path / 'deit.pth')
    start = dict(type='Pretrained', checkpoint=str(tmp_path / 'deit.pth'))
    with pytest.raises(ValueError, match=r'deit.pth does not say .*convert_weights.py'):
        NaViTBackbone(init_cfg=start)
    with pytest.raises(ValueError, match=r'no weights at .*none.safetensors'):
        NaViTBackbone(init_cfg=dict(type='Pretrained', checkpoint='none.safetensors'))


def test_configs_are_filled_from_the_file_or_from_a_checkpoint(tmp_path):
    model, start = written(tmp_path / 'w.safetensors')
    one = ConfigDict(backbone=dict(type='NaViTBackbone', init_cfg=start))
    other = ConfigDict(backbone=dict(type='NaViTBackbone', init_cfg=start))
    fill_from_file(one)
    (tmp_path / 'w.safetensors').unlink()
    fill_from_file(other)  # tells nothing any more
    assert 'arch' not in other.backbone
    fill_from_state(other, {f'backbone.vit.{k}': v for k, v in model.state_dict().items()})
    for filled in (one, other):
        built = MODELS.build({**filled.backbone, 'init_cfg': None})
        assert built.vit.architecture() == model.architecture()
    stock = ConfigDict(backbone=dict(type='ResNet', depth=50))
    fill_from_file(stock)
    assert set(stock.backbone) == {'type', 'depth'}


@pytest.fixture
def set_up(tmp_path):
    """A detector's config that leaves its backbone to a file, and what it needs."""
    write_sample_set(tmp_path / 'set', seed=0, num_pictures=dict(train=8, val=3))
    arch = dict(UNUSUAL, embed_dims=192, num_heads=3, num_layers=1)
    _, start = written(tmp_path / 'w.safetensors', arch)
    config = tmp_path / 'told.py'
    config.write_text(
        f'_base_ = [{str(CONFIG)!r}]\n'
        f"model = dict(backbone=dict(_delete_=True, type='NaViTBackbone', init_cfg={start!r}))\n"
    )
    options = [f'data_root={tmp_path / "set"}', 'train_cfg.max_epochs=1', *NO_WORKERS]
    return config, ['--cfg-options', *options]


def test_after_training_the_first_file_is_not_needed(set_up, monkeypatch, tmp_path):
    """By the tools with the first config, and by stock code with the one in the work dir."""
    from mmdet.apis import inference_detector, init_detector

    config, options = set_up
    work_dir = tmp_path / 'work'
    assert call(monkeypatch, train, config, '--work-dir', work_dir, *options) is None
    (tmp_path / 'w.safetensors').unlink()
    checkpoint, kept = work_dir / 'epoch_1.pth', work_dir / 'told.py'
    arch = Config.fromfile(kept).model.backbone.arch
    assert (arch.rope.theta, arch.mlp, arch.prefix_tokens) == (50.0, 'quick_gelu', 1)
    assert call(monkeypatch, test, config, checkpoint, *options) is None
    found = tmp_path / 'found'
    pictures_in = tmp_path / 'set/val'
    assert not call(monkeypatch, predict, config, checkpoint, pictures_in, '--out-dir', found)
    detector = init_detector(str(kept), str(checkpoint), device='cpu')
    picture = next(pictures_in.glob('*.*'))
    assert len(inference_detector(detector, str(picture)).pred_instances) >= 0
    state = read_checkpoint(checkpoint)['state_dict']
    for key, item in detector.state_dict().items():
        assert torch.equal(item, state[key]), key


def test_stock_training_keeps_what_the_file_told(set_up, monkeypatch, tmp_path):
    """mmengine's Runner alone: what it keeps was written by our hook."""
    from mmengine.runner import Runner

    from navit_backbone.tools.command_line import read_config

    config, _ = set_up
    values = read_config(config, {'data_root': str(tmp_path / 'set')})
    for key in ('arch', 'patch_size', 'position'):
        values.model.backbone.pop(key, None)
    for split in ('train', 'val', 'test'):
        loader = values[f'{split}_dataloader']
        loader.num_workers, loader.persistent_workers = 0, False
    values.train_cfg.max_epochs, values.work_dir = 1, str(tmp_path / 'stock')
    Runner.from_cfg(values).train()
    kept = Config.fromfile(tmp_path / 'stock/told.py').model.backbone
    assert kept.arch.mlp == 'quick_gelu'
    told = read_checkpoint(tmp_path / 'stock/epoch_1.pth')['meta']['cfg']
    assert 'quick_gelu' in told


def test_another_input_than_the_weights_know_is_refused(set_up, monkeypatch, tmp_path):
    config, options = set_up
    (tmp_path / 'w.safetensors').unlink()
    arch = dict(UNUSUAL, embed_dims=192, num_heads=3, num_layers=1)
    written(tmp_path / 'w.safetensors', arch, statistics=IMAGENET)
    told = call(monkeypatch, train, config, '--work-dir', tmp_path / 'work', *options)
    assert 'data_preprocessor has mean=[127.5, 127.5, 127.5]' in told
    assert 'mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]' in told


def test_pictures_give_maps_of_what_the_file_told(tmp_path):
    _, start = written(tmp_path / 'w.safetensors')
    backbone = NaViTBackbone(init_cfg=start).eval()
    backbone.init_weights()
    (image,) = pictures([(33, 70)], torch.float32)
    assert backbone(image[None])[0].shape == (1, 24, 3, 5)
