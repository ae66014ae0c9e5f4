"""Make one file of a trained model, to hand on: weights, config, class names, a digest.

    python tools/publish.py CHECKPOINT OUT.safetensors [--config CONFIG] [--figures FILE.json]
    python tools/predict.py OUT-1a2b3c4d.safetensors photo.jpg --out-dir found

What training alone needs is left out. The config is the one that the checkpoint was trained with,
unless --config gives another. Nothing in the file is ever run; it is refused where it was changed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner.checkpoint import CheckpointLoader

from navit_backbone.sealed import DIGEST
from navit_backbone.tasks.common.classes import set_num_classes
from navit_backbone.tasks.common.published import publish
from navit_backbone.tools.command_line import (
    add_options_argument,
    enter_task,
    expanded_path,
    output_file,
    read_config,
    run,
)
from navit_backbone.weight_files import config_values, read_header


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'checkpoint', type=expanded_path, help='of the whole model, as tools/train.py saves'
    )
    parser.add_argument(
        'out', type=output_file, help='ends in .safetensors; its name gains 8 digits'
    )
    parser.add_argument(
        '--config', type=expanded_path, help='where the checkpoint holds none, or another'
    )
    add_options_argument(parser)
    parser.add_argument(
        '--figures',
        type=expanded_path,
        help='what tools/test.py --out wrote of this very checkpoint',
    )
    parser.add_argument(
        '--raw',
        action='store_true',
        help='where training kept a moving average of the weights (EMAHook): those it averaged',
    )
    return parser.parse_args()


def make(args: argparse.Namespace) -> None:
    """Read, check, write, and say how to use it."""
    if args.out.suffix != '.safetensors':
        raise ValueError(f'{args.out}: a published model is a file whose name ends in .safetensors')
    content = CheckpointLoader.load_checkpoint(str(args.checkpoint), map_location='cpu')
    meta = content.get('meta') if isinstance(content.get('meta'), dict) else {}
    cfg = config_for(args, meta)
    enter_task(cfg, args.checkpoint)
    dataset_meta = {key.lower(): item for key, item in (meta.get('dataset_meta') or {}).items()}
    if not dataset_meta.get('classes'):
        raise ValueError(f'{args.checkpoint} holds no class names: tools/train.py saves them')
    set_num_classes(cfg.model, len(dataset_meta['classes']))
    notes = {key: meta[key] for key in ('epoch', 'iter', 'time') if key in meta}
    state, notes['weights'] = weights_of(content, raw=args.raw)
    if args.figures is not None:
        notes['figures'] = figures_of(args.figures, args.checkpoint)
    file = publish(
        args.out,
        cfg=cfg,
        state=state,
        dataset_meta=dataset_meta,
        notes=notes,
        source=args.checkpoint,
    )
    print(f'{file}: {file.stat().st_size / 1e6:.1f} MB, SHA-256 {read_header(file)[DIGEST]}')
    print(f'its weights: {notes["weights"]}; classes: {", ".join(dataset_meta["classes"][:8])}')
    print(f'Use it:\n  python tools/predict.py {file} INPUT... --out-dir DIR')


def config_for(args: argparse.Namespace, meta: dict[str, Any]) -> Config:
    """The config given, or the one inside the checkpoint, read without running it."""
    if args.config is not None:
        return read_config(args.config, args.cfg_options)
    if 'cfg' not in meta:
        raise ValueError(f'{args.checkpoint} holds no config of values alone: give --config')
    if args.cfg_options:
        raise ValueError('--cfg-options changes the config of --config: give both')
    return Config(config_values(meta['cfg']))


def weights_of(content: dict[str, Any], *, raw: bool) -> tuple[dict[str, Any], str]:
    """The weights, and which they are: EMAHook saves its average as the model's own."""
    state = content.get('state_dict', content)
    averaged = content.get('ema_state_dict')
    if averaged is None:
        if raw:
            raise ValueError('--raw: training kept no moving average, so there is no choice')
        return state, 'as trained'
    if not raw:
        return state, 'the moving average of training'
    own = {k.removeprefix('module.'): t for k, t in averaged.items() if k.startswith('module.')}
    return {**state, **own}, 'as trained, not averaged'


def figures_of(file: Path, checkpoint: Path) -> dict[str, Any]:
    """The figures that tools/test.py found for this checkpoint."""
    try:
        figures: dict[str, Any] = json.loads(file.read_text())
        measured = str(figures.pop('checkpoint', ''))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f'--figures {file} is not what tools/test.py --out FILE.json writes: {error}'
        ) from error
    if Path(measured).resolve() != checkpoint.resolve():
        raise ValueError(f'{file} has the figures of {measured or "nothing"}, not of {checkpoint}')
    return figures


def main() -> None:
    """Run; a user's mistake ends with a sentence, not a traceback."""
    args = parse_args()
    run(lambda: make(args), args.config)


if __name__ == '__main__':
    main()
