"""Convert weights of a plain ViT into a NaViT file that knows what it is.

    python tools/convert_weights.py SOURCE OUT.safetensors [--family auto]

SOURCE is a .safetensors, .pth or .pt file of timm's ViT family (DeiT, AugReg, MAE). Nothing in it
is run. OUT has the architecture, the patch size, the rule by which positions are interpolated and
the statistics of the input in its header.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from navit_backbone.checkpoint import OPTIONAL_FIELDS, read_weights, save_navit
from navit_backbone.conversion import NaViTWeights
from navit_backbone.families import FAMILIES
from navit_backbone.tools.command_line import run
from navit_backbone.vit import ARCHS, Arch


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', type=Path)
    parser.add_argument('out', type=Path, help='ends in .safetensors')
    parser.add_argument(
        '--family',
        choices=['auto', *FAMILIES],
        default='auto',
        help='whose rules hold where tensors do not tell (auto: by keys and the name of SOURCE)',
    )
    parser.add_argument('--prefix', help='which model, where SOURCE holds several')
    parser.add_argument('--num-heads', type=int, help='where the width does not tell it')
    parser.add_argument('--overwrite', action='store_true', help='where OUT exists')
    return parser.parse_args()


def convert(args: argparse.Namespace) -> None:
    """Read, check, write, and say what became of every tensor."""
    if args.out.exists() and args.out.samefile(args.source):
        raise ValueError(f'{args.out} is the source itself: give another name')
    weights = read_weights(
        args.source, family=args.family, prefix=args.prefix, num_heads=args.num_heads
    )
    report = save_navit(args.out, weights, overwrite=args.overwrite)
    print(report)
    print(f'  input: mean {weights.input_mean}, std {weights.input_std} of RGB in [0, 1]')
    print(f'Use it:\n  backbone={backbone_of(weights, args.out)}')


def backbone_of(weights: NaViTWeights, out: Path) -> str:
    """The part of a config that takes these weights."""
    arch = Arch(**{k: v for k, v in weights.arch.items() if k not in OPTIONAL_FIELDS})
    preset, base = max(ARCHS.items(), key=lambda item: shared(arch, item[1]))
    fields = {k: v for k, v in arch.to_dict().items() if v != getattr(base, k)}
    parts = {
        'type': 'NaViTBackbone',
        'arch': {'preset': preset, **fields} if fields else preset,
        'patch_size': weights.patch_shapes[0][1],
        'position': weights.position,
        'init_cfg': {'type': 'Pretrained', 'checkpoint': str(out)},
    }
    return f'dict({", ".join(f"{key}={value!r}" for key, value in parts.items())})'


def shared(arch: Arch, other: Arch) -> int:
    """How many fields of two architectures agree."""
    return sum(value == getattr(other, key) for key, value in arch.to_dict().items())


def main() -> None:
    """Run; a user's mistake ends with a sentence, not a traceback."""
    args = parse_args()
    run(lambda: convert(args))


if __name__ == '__main__':
    main()
