"""RoIAlign of a batch of RoIs from any of a pyramid's levels, in one pass.

The features of all levels are laid behind one another as one table with a row a cell (channels last). Bilinear sampling
is linear in the features, so a pooled cell is a weighted sum of rows: four corners times ``sampling_ratio``² samples.
That is what `embedding_bag` computes. Each RoI names its own levels, which costs nothing but an offset into the table,
so pooling "each RoI from its own level" has fixed shapes.

On two CPU cores the backward pass takes about a tenth of torchvision's time (a test compares the values).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def roi_align(
    features: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Tensor,
    levels: Tensor,
    *,
    output_size: int = 7,
    sampling_ratio: int = 2,
) -> Tensor:
    """Pools every RoI from each of the levels that it names.

    Equal to `torchvision.ops.roi_align` with ``aligned=False``, the convention of the release and of torchvision's
    detectors: no half-pixel shift, RoIs at least one cell wide, samples more than one cell outside count as 0.

    Args:
        features: the levels, each ``(B, C, H_l, W_l)``; fastest in channels-last memory.
        strides: pixels a cell of each level.
        boxes: ``(B, R, 4)``. No gradient flows to them.
        levels: ``(B, R, L)`` int64, positions in ``features``.
        output_size: cells a side, S.
        sampling_ratio: samples a side of each cell.

    Returns:
        ``(B · R, L, C, S, S)``, channels last in memory, levels within cells: `flatten(1, 2)` is free.
    """
    num_images, num_rois, num_levels = levels.shape
    channels = features[0].shape[1]
    table = torch.cat([feature.permute(0, 2, 3, 1).reshape(-1, channels) for feature in features])
    heights = [feature.shape[-2] for feature in features]
    widths = [feature.shape[-1] for feature in features]
    starts = [0]
    for feature in features:
        starts.append(starts[-1] + num_images * feature.shape[-2] * feature.shape[-1])

    def of_level(values: Sequence[int]) -> Tensor:
        # A comparison a level: indexing into a tensor made from a list would wait for its copy to the device.
        of_rois = torch.zeros_like(levels)
        for level, value in enumerate(values):
            of_rois = torch.where(levels == level, value, of_rois)
        return of_rois

    height, width = of_level(heights), of_level(widths)
    image = torch.arange(num_images, device=boxes.device)[:, None, None]
    first_row = of_level(starts[:-1]) + image * height * width
    x1, y1, x2, y2 = (boxes.detach()[:, :, None, :] / of_level(strides)[..., None]).unbind(-1)
    rows, row_weights = _samples(y1, y2, height, output_size, sampling_ratio)
    columns, column_weights = _samples(x1, x2, width, output_size, sampling_ratio)

    # Bags in the order (image, RoI, S, S, level), each with the (2 · sampling_ratio)² corners of its samples.
    def grid(vertical: Tensor, horizontal: Tensor) -> tuple[Tensor, Tensor]:
        vertical = vertical.permute(0, 1, 3, 2, 4)[:, :, :, None, :, :, None]
        horizontal = horizontal.permute(0, 1, 3, 2, 4)[:, :, None, :, :, None, :]
        return vertical, horizontal

    rows, columns = grid(rows * width[..., None, None] + first_row[..., None, None], columns)
    row_weights, column_weights = grid(row_weights / sampling_ratio**2, column_weights)
    indices = (rows + columns).reshape(-1, (2 * sampling_ratio) ** 2)
    weights = (row_weights * column_weights).reshape(indices.shape).to(table.dtype)
    pooled = F.embedding_bag(indices, table, per_sample_weights=weights, mode="sum")
    pooled = pooled.view(num_images * num_rois, output_size, output_size, num_levels, channels)
    return pooled.permute(0, 3, 4, 1, 2)


def _samples(low: Tensor, high: Tensor, size: Tensor, output_size: int, sampling_ratio: int) -> tuple[Tensor, Tensor]:
    """The cells that the samples along one axis fall between, and their weights: ``(B, R, L, S, 2 · sampling_ratio)``.

    ``low`` and ``high (B, R, L)`` are the RoI's ends in cells, ``size (B, R, L)`` is the number of cells of the axis.
    """
    # The operations of torchvision's kernel in its order, so that not even rounding differs.
    cell = ((high - low).clamp(min=1.0) / output_size)[..., None, None]
    within = torch.arange(output_size, device=low.device)[:, None] * cell
    sample = (torch.arange(sampling_ratio, device=low.device) + 0.5) * cell / sampling_ratio
    positions = (low[..., None, None] + within + sample).flatten(-2)
    size = size[..., None]
    inside = (positions >= -1.0) & (positions <= size)
    positions = torch.minimum(positions.clamp(min=0.0), (size - 1).to(positions.dtype))
    lower = positions.floor()
    fraction = positions - lower
    # A box that is not finite, as when training diverges, has weights that are not; its cells have to exist anyway.
    lower = lower.long().clamp(min=0)
    upper = torch.minimum(lower + 1, size - 1)
    cells = torch.stack([lower, upper], dim=-1)
    weights = torch.stack([1 - fraction, fraction], dim=-1) * inside[..., None]
    shape = (*low.shape, output_size, 2 * sampling_ratio)
    return cells.reshape(shape), weights.reshape(shape)
