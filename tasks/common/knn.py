"""Classes by the nearest neighbours of a frozen model's vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 1024  # queries at once


def knn_scores(
    bank_ND: Tensor,
    labels_N: Tensor,
    queries_MD: Tensor,
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """The share of each class among the `k` vectors of the bank most alike a query: [M, C].

    Weighted by ``exp(cosine / temperature)``, as DINO does (Caron et al. 2021; Wu et al. 2018).
    """
    if not 1 <= k <= len(bank_ND):
        raise ValueError(f'k={k} neighbours of {len(bank_ND)} examples: from 1 to that many')
    bank_ND = F.normalize(bank_ND.float(), dim=1)
    votes_NC = F.one_hot(labels_N, num_classes).float()
    scores = []
    for part_MD in F.normalize(queries_MD.float(), dim=1).split(_CHUNK):
        near, places = (part_MD @ bank_ND.T).topk(k, dim=1)
        weights = (near / temperature).softmax(1)
        scores.append((weights[..., None] * votes_NC[places]).sum(1))
    return torch.cat(scores)
