"""RoIAlign of a batch of RoIs, from the level that each is assigned to or from every level.

Bilinear sampling is linear in the features and separable, so RoIAlign can be written in two ways, and on a CPU each is
several times faster than torchvision's kernel where it fits (above all backward; a test compares the values):

- **bags**: a pooled cell is a weighted sum of cells of the map, four corners times `SAMPLING_RATIO`² samples. That is
  what `embedding_bag` computes over a table with a row a cell. An RoI may name its level by an offset into the table,
  so that pooling "each RoI from its own level" has fixed shapes.
- **matrices**: a pooled RoI is Y·F·Xᵀ, with a matrix of interpolation weights for each axis. The cost grows with the
  map, but it is all in matrix products: better for maps of up to `SMALL_MAP` cells, where bags meet the same few cells
  again and again.

Both equal `torchvision.ops.roi_align` with ``aligned=False``, the convention of the release and of torchvision's
detectors: no half-pixel shift, RoIs at least one cell wide, samples more than one cell outside count as 0. No gradient
flows to the boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Samples a side of each pooled cell, as in the paper's settings.
SAMPLING_RATIO = 2
SMALL_MAP = 1024


def roi_align_every_level(
    features: Sequence[Tensor], strides: Sequence[int], boxes: Tensor, output_size: int = 7
) -> Tensor:
    """Pools every RoI from every level.

    Args:
        features: the levels, each ``(B, C, H_l, W_l)``; fastest in channels-last memory.
        strides: pixels a cell of each level.
        boxes: ``(B, R, 4)``.
        output_size: cells a side, S.

    Returns:
        ``(B · R, L, C, S, S)``, channels last in memory and levels before them, so that `flatten(1, 2)` copies nothing.
    """
    pooled = []
    for feature, stride in zip(features, strides, strict=True):
        height, width = feature.shape[-2:]
        rows, columns = _samples_of_boxes(boxes, stride, height, width, output_size)
        if height * width <= SMALL_MAP:
            pooled.append(_by_matrices(feature, rows, columns))
        else:
            first_row = torch.zeros(boxes.shape[:2], dtype=torch.int64, device=boxes.device)
            pooled.append(_by_bags([feature], first_row, width, height * width, rows, columns))
    return torch.stack(pooled, dim=3).permute(0, 3, 4, 1, 2)


def roi_align_assigned_level(
    features: Sequence[Tensor], strides: Sequence[int], boxes: Tensor, levels: Tensor, output_size: int = 7
) -> Tensor:
    """Pools every RoI from the level that ``levels (B, R)`` names for it, a position in ``features``.

    The other arguments are those of `roi_align_every_level`. Returns ``(B · R, C, S, S)``, channels last in memory.
    """
    num_images = boxes.shape[0]
    heights = [feature.shape[-2] for feature in features]
    widths = [feature.shape[-1] for feature in features]
    starts = [0]
    for num_rows, num_columns in zip(heights, widths, strict=True):
        starts.append(starts[-1] + num_images * num_rows * num_columns)

    def of_level(values: Sequence[int]) -> Tensor:
        # A comparison a level: indexing into a tensor made from a list would wait for its copy to the device.
        of_rois = torch.zeros_like(levels)
        for level, value in enumerate(values):
            of_rois = torch.where(levels == level, value, of_rois)
        return of_rois

    height, width = of_level(heights), of_level(widths)
    rows, columns = _samples_of_boxes(boxes, of_level(strides), height, width, output_size)
    pooled = _by_bags(features, of_level(starts[:-1]), width, height * width, rows, columns)
    return pooled.permute(0, 3, 1, 2)


class _Samples:
    """The cells between which the samples along one axis fall, and their weights.

    ``cells`` and ``weights``: ``(B, R, S, 2 · sampling ratio)``; the weights of a pooled cell sum to 1 inside the map.
    """

    def __init__(self, low: Tensor, high: Tensor, size: Tensor, output_size: int) -> None:
        """``low`` and ``high (B, R)``: the RoI's ends in cells. ``size (B, R)``: the number of cells of the axis."""
        size = size[..., None, None]
        # The operations of torchvision's kernel in its order, so that not even rounding differs.
        cell = ((high - low).clamp(min=1.0) / output_size)[..., None, None]
        within = torch.arange(output_size, device=low.device)[:, None] * cell
        sample = (torch.arange(SAMPLING_RATIO, device=low.device) + 0.5) * cell / SAMPLING_RATIO
        positions = low[..., None, None] + within + sample
        inside = (positions >= -1.0) & (positions <= size)
        positions = torch.minimum(positions.clamp(min=0.0), (size - 1).to(positions.dtype))
        lower = positions.floor()
        fraction = positions - lower
        # A box that is not finite, as when training diverges, has weights that are not; its cells have to exist anyway.
        lower = lower.long().clamp(min=0)
        upper = torch.minimum(lower + 1, size - 1)
        self.cells = torch.cat([lower, upper], dim=-1)
        self.weights = torch.cat([1 - fraction, fraction], dim=-1) * inside.repeat(1, 1, 1, 2) / SAMPLING_RATIO

    def as_matrices(self, size: int) -> Tensor:
        """``(B, R, S, size)``: for each pooled cell the weight of each cell of the axis."""
        matrices = self.weights.new_zeros(*self.cells.shape[:3], size)
        return matrices.scatter_add(-1, self.cells, self.weights)


def _samples_of_boxes(
    boxes: Tensor, strides: Tensor | int, height: Tensor | int, width: Tensor | int, output_size: int
) -> tuple[_Samples, _Samples]:
    """The samples along the height and along the width; a number stands for the same number for every RoI."""
    strides, height, width = (_of_rois(value, boxes) for value in (strides, height, width))
    x1, y1, x2, y2 = (boxes.detach() / strides[..., None]).unbind(-1)
    return _Samples(y1, y2, height, output_size), _Samples(x1, x2, width, output_size)


def _of_rois(value: Tensor | int, rois: Tensor) -> Tensor:
    """A number for each of ``rois (B, R, …)``: ``(B, R)``."""
    if isinstance(value, Tensor):
        return value
    return torch.full((1, 1), value, dtype=torch.int64, device=rois.device).expand(rois.shape[:2])


def _by_matrices(feature: Tensor, rows: _Samples, columns: _Samples) -> Tensor:
    """Y·F·Xᵀ for each RoI: ``(B · R, S, S, C)``."""
    num_images, channels, height, width = feature.shape
    vertical = rows.as_matrices(height).to(feature.dtype)
    horizontal = columns.as_matrices(width).to(feature.dtype)
    num_rois, output_size = vertical.shape[1:3]
    cells = feature.permute(0, 2, 3, 1).reshape(num_images, height, width * channels)
    pooled_rows = torch.bmm(vertical.flatten(1, 2), cells).view(num_images * num_rois, output_size, width, channels)
    return torch.matmul(horizontal.flatten(0, 1)[:, None], pooled_rows)


def _by_bags(
    features: Sequence[Tensor],
    start: Tensor,
    width: Tensor | int,
    num_cells: Tensor | int,
    rows: _Samples,
    columns: _Samples,
) -> Tensor:
    """Weighted sums of rows of a table with all cells of ``features``: ``(B · R, S, S, C)``.

    ``start (B, R)``: the first row of the level that an RoI is pooled from; ``width`` and ``num_cells`` are its own.
    """
    channels = features[0].shape[1]
    table = torch.cat([feature.permute(0, 2, 3, 1).reshape(-1, channels) for feature in features])
    num_images, num_rois, output_size, _ = rows.cells.shape
    width = _of_rois(width, start[..., None])[..., None, None]
    first_cell = start + torch.arange(num_images, device=start.device)[:, None] * num_cells
    first_of_row = first_cell[..., None, None] + rows.cells * width
    indices = first_of_row[:, :, :, None, :, None] + columns.cells[:, :, None, :, None, :]
    weights = rows.weights[:, :, :, None, :, None] * columns.weights[:, :, None, :, None, :]
    num_corners = (2 * SAMPLING_RATIO) ** 2
    bags = F.embedding_bag(
        indices.reshape(-1, num_corners),
        table,
        per_sample_weights=weights.reshape(-1, num_corners).to(table.dtype),
        mode="sum",
    )
    return bags.view(num_images * num_rois, output_size, output_size, channels)
