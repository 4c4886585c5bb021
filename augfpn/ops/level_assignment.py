"""FPN's rule for the level that an RoI belongs to, by its size.

Lin et al., Feature Pyramid Networks, Equation 1: level = ⌊4 + log2(√(w·h) / 224)⌋, within P2…P5. This is the heuristic
that Soft RoI Selection (Section 3.3) replaces; the single-level form of Consistent Supervision (Table 3) uses it too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from augfpn.ops.boxes import area

# P6 is there for proposals of large objects only; RoIs are pooled from P2…P5.
NUM_ROI_LEVELS = 4
# The side in pixels of the RoIs that P2 is meant for; it takes those below twice of it, P3 those below four times.
FINEST_SIDE = 56.0


def assigned_levels(boxes: Tensor, finest_side: float = FINEST_SIDE, num_levels: int = NUM_ROI_LEVELS) -> Tensor:
    """FPN's level ``(…)`` of boxes ``(…, 4)``: 0 for P2 to ``num_levels − 1``.

    >>> assigned_levels(torch.tensor([[0.0, 0.0, 55.0, 55.0], [0.0, 0.0, 224.0, 224.0], [0.0, 0.0, 900.0, 900.0]]))
    tensor([0, 2, 3])
    """
    side = area(boxes).clamp(min=0).sqrt()
    # The level of a box that is not finite, as when training diverges, has to exist too: clamp what `long` makes of it.
    return torch.log2(side / finest_side + 1e-6).floor().long().clamp(0, num_levels - 1)
