"""A model with few blocks: as it is in all that does not depend on the depth of its backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from navit_backbone.vit import Arch


def shallow(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config with one block for each map that our backbone gives out, from no file."""
    model = deepcopy(dict(model))
    backbone = {**model['backbone'], 'init_cfg': None}
    if backbone['type'] == 'NaViTBackbone':
        given = backbone.get('out_indices', -1)
        depth = len(given) if isinstance(given, Sequence) else 1
        arch = Arch.of(backbone.get('arch', 'base')).to_dict() | {'num_layers': depth}
        backbone |= {'arch': arch, 'out_indices': list(range(depth)), 'frozen_stages': -1}
        backbone.pop('global_attn_indexes', None)
    return {**model, 'backbone': backbone}
