"""How closely each family computes here what it computes at home: a table for docs/weights.md.

    python tests/parity.py

Small random models, every parameter perturbed, six grids alone and packed; the largest error over
the largest value of tokens, prefix tokens and pooled vectors.
"""

import tempfile
from pathlib import Path

import torch
from foreign import PATCH
from oracles import pictures
from test_families import GRIDS, NEEDS_FOLDER, PLAIN, ours, run


def error(case, dtype):
    model = ours(case, dtype)
    images = pictures([(h * PATCH, w * PATCH) for h, w in GRIDS], dtype)
    expected = [case.answer(image) for image in images]
    pairs = [
        (run(model, [image]), [answer]) for image, answer in zip(images, expected, strict=True)
    ]
    found = []
    for (output, pooled), answers in [*pairs, (run(model, images), expected)]:
        found.append((output.tokens, torch.cat([a.tokens for a in answers])))
        found.append((output.prefix, torch.stack([a.prefix for a in answers])))
        if answers[0].pooled is not None:
            found.append((pooled, torch.stack([a.pooled for a in answers])))
    return max(
        float((got.double() - wanted.double()).abs().max() / wanted.double().abs().max())
        for got, wanted in found
        if wanted.numel()
    )


@torch.no_grad()
def main():
    print('| family | against | float32 | float64 |\n|---|---|---|---|')
    for name, make in {**NEEDS_FOLDER, **PLAIN}.items():
        with tempfile.TemporaryDirectory() as folder:
            case = make(Path(folder)) if name in NEEDS_FOLDER else make()
            home = 'transformers' if not case.exact else 'plain maths'
            home = 'mmseg' if name == 'mmseg' else home
            errors = ' | '.join(f'{error(case, d):.0e}' for d in (torch.float32, torch.float64))
        print(f'| {name} | {home} | {errors} |', flush=True)


if __name__ == '__main__':
    main()
