"""The best candidates of each level of a pyramid, before suppression."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def best_of_each_level(scores: Tensor, counts: Sequence[int], num: int) -> Tensor:
    """The positions ``(B, M)`` of the best ``num`` of each level in ``scores (B, N)``, level after level.

    ``counts``: how many of the N belong to each level; all of a level are taken where it has no more than ``num``.

    >>> best_of_each_level(torch.tensor([[0.1, 0.3, 0.2, 0.9]]), (3, 1), 2)
    tensor([[1, 2, 3]])
    """
    best, start = [], 0
    for level_scores in torch.split(scores, list(counts), dim=1):
        best.append(level_scores.topk(min(num, level_scores.shape[1]), dim=1).indices + start)
        start += level_scores.shape[1]
    return torch.cat(best, dim=1)
