"""The generators of random numbers of a process: their states as tensors and plain numbers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def generator_states() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's generators, the device's own included.

    Only tensors and numbers, so that they can be read back without running code.
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    assert (version, name) == (3, 'MT19937'), f'{version} and {name} are not the generators known'
    states = {
        'python': {'words': torch.tensor(words), 'gauss': gauss},
        'numpy': {
            'keys': torch.from_numpy(np.asarray(keys, np.int64)),
            'position': int(position),
            'has_gauss': int(has_gauss),
            'gauss': float(cached),
        },
        'torch': torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states['cuda'] = torch.cuda.get_rng_state()  # of the one device that a rank works on
    return states


def restore_generators(states: dict[str, Any]) -> None:
    """Put the generators into `states`, whose tensors may lie on any device."""
    python, numpy = states['python'], states['numpy']
    random.setstate((3, tuple(python['words'].tolist()), python['gauss']))
    keys = numpy['keys'].cpu().numpy().astype(np.uint32)
    np.random.set_state(('MT19937', keys, numpy['position'], numpy['has_gauss'], numpy['gauss']))
    torch.set_rng_state(states['torch'].cpu())
    if 'cuda' in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states['cuda'].cpu())
