"""What a loss has to know when a batch is shared between several processes (ranks), each with as many of its images.

A rank's gradients are averaged with those of the others. So that the average is the gradient of the whole batch, a sum
is divided by the rank's even share of a count over all ranks, and not by its own count: the objects of one image in a
batch may be all that there are. Random numbers are those that one process would draw for the whole batch.

With one process both are what they are without this module.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def normaliser(count: Tensor, least: float = 1) -> Tensor:
    """What a loss that is summed over ``count`` terms is divided by: ``count``, or ``least`` if that is more.

    Of several ranks, each has the same share of the sum of their counts.
    """
    ranks = num_ranks()
    if ranks == 1:
        return count.clamp(min=least)
    total = count.detach().float()
    dist.all_reduce(total)
    return total.clamp(min=least) / ranks


def rand(shape: Sequence[int], device: torch.device) -> Tensor:
    """Uniform random numbers in 0-1, as `torch.rand`; the first dimension is that of this rank's images."""
    ranks = num_ranks()
    if ranks == 1:
        return torch.rand(*shape, device=device)
    of_batch = torch.rand(ranks * shape[0], *shape[1:], device=device)
    return of_batch[dist.get_rank() * shape[0] :][: shape[0]]
