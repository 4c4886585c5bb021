"""The semantic gap in one image: where two levels disagree before they are fused, and on what (Section 3.1).

`augfpn.analysis.semantic_gap` says how far the levels are apart over a data set. Here one image is looked at:

- at each place, how alike the features of every two laterals are, and whether the probe sees the same class in them
  (`gap_in_image`);
- for an object, what one classifier makes of it in each level (`predictions_of_objects`).

**The grid.** Levels have cells of 4 to 32 pixels. They are compared on one grid over the image without its padding: the
cells of the finest lateral, as that is the most detail there is, but no more than `MOST_CELLS` on the longer side, as
nobody could see more in a picture. A place of the grid is the same place of the image in each level. It is read from a
lateral at one point or, where cells of the lateral are smaller, at as many points as there are cells, evenly spaced, of
which the mean is taken; each point is bilinear between the four cells around it. So coarse levels are interpolated and
fine ones averaged, and sides need not be whole numbers of cells.

**Where a cell is.** Cell i is at pixel i · stride, as in RoIAlign (`augfpn.ops.roi_align`), so a map shows what an RoI
there would hold. It also is where the cells of the paper's backbones look: padded convolutions of stride 2 are centred
so, while the other convention would move M5 by 16 pixels. Backbones that average in their shortcuts, as ``resnet10t``
of the small scales, look further to the right and below, by up to 14 pixels in M5. RoIAlign itself does not do for the
grid: an RoI smaller than a cell is widened to one, to the right and below.

**Padding.** Cells that lie in the padding are not read; behind the last cell of the image its value stays. What the
network itself sees of the padding is in the features of the cells near it.

Shapes: N objects, L levels, C channels, h w places of the grid, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from augfpn.analysis.probe import Classifier, Laterals, Probe, auxiliary_logits
from augfpn.detectors.detector import Detector
from augfpn.errors import UserError
from augfpn.structures import Images

# On the longer side of the grid.
MOST_CELLS = 64


@dataclass(frozen=True)
class GapInImage:
    """How alike the levels are at each place of an image; on the host, symmetric in the two levels.

    The probe is trained on means over objects and knows no background, so it sees a class at every place. Where there
    is no object, which one says little; whether it is the same in both levels still tells whether they mean the same.
    The distributions of a surer probe overlap less, so ``overlap`` is for comparing places and levels of one model;
    ``similarity`` can be compared between models, too.

    ``levels``: M2…M5 (M3…M5 of one-stage detectors), finest first.
    ``similarity (L, L, h, w)``: cosine similarity, -1 to 1, of the features of two levels.
    ``classes (L, h, w)``: int64, the class 1…K that the probe sees in each level.
    ``overlap (L, L, h, w)``: how much the probe's class distributions p and q of two levels agree, in 0-1: the sum over
    the classes of min(p, q), which is 1 less their total variation distance. 1 for no gap.
    ``size``: height and width in pixels of the image without padding, all of which the grid covers.
    """

    levels: tuple[str, ...]
    similarity: Tensor
    classes: Tensor
    overlap: Tensor
    size: tuple[int, int]


@dataclass(frozen=True)
class ObjectPredictions:
    """What classifiers make of objects that they see in one level at a time; on the host.

    ``levels``: M2…M5 (M3…M5 of one-stage detectors), finest first.
    ``probabilities``: by the probe and, where there is one, by the auxiliary head; each ``(N, L, K + 1)`` and 1 in sum.
    Background is first, and 0 for the probe, which knows none; then classes 1…K.
    """

    levels: tuple[str, ...]
    probabilities: dict[Classifier, Tensor]


@torch.no_grad()
def gap_in_image(model: Detector, images: Images, probe: Probe) -> GapInImage:
    """The gap between every two laterals at each place of an image; leaves the model in evaluation mode.

    Args:
        model: on the device of ``images``.
        images: a batch of one image; else a UserError.
        probe: of this model (`augfpn.analysis.probe.probe_of`).
    """
    size = _size_of_one(images)
    laterals = Laterals.of(model.eval(), images)
    height, width = grid_shape(size, laterals.strides[0])
    features = torch.stack(
        [
            on_grid(feature[0], stride, size, (height, width))
            for feature, stride in zip(laterals.features, laterals.strides, strict=True)
        ]
    )
    features = features.permute(2, 3, 0, 1).cpu()
    unit = F.normalize(features, dim=3)
    probabilities = probe.probabilities(features)
    # Two distributions differ by their total variation on either side of it, so by twice of it in all.
    overlap = (1 - torch.cdist(probabilities, probabilities, p=1) / 2).clamp(min=0).float()
    return GapInImage(
        levels=laterals.levels,
        similarity=(unit @ unit.transpose(2, 3)).permute(2, 3, 0, 1),
        classes=probe.classes(features).permute(2, 0, 1),
        overlap=overlap.permute(2, 3, 0, 1),
        size=size,
    )


@torch.no_grad()
def predictions_of_objects(model: Detector, images: Images, boxes: Tensor, probe: Probe) -> ObjectPredictions:
    """What the probe and, where there is one, the auxiliary head make of each object in each lateral.

    Objects are pooled as for `augfpn.analysis.semantic_gap`. The model is left in evaluation mode.

    Args:
        model: on the device of ``images`` and ``boxes``.
        images: a batch of one image; else a UserError.
        boxes: ``(N, 4)`` in pixels of the batch; N may be 0.
        probe: of this model (`augfpn.analysis.probe.probe_of`).
    """
    _size_of_one(images)
    laterals = Laterals.of(model.eval(), images)
    pooled = laterals.pool(boxes[None])
    of_probe = probe.probabilities(pooled.mean(dim=(3, 4)).cpu()).float()
    probabilities: dict[Classifier, Tensor] = {"probe": F.pad(of_probe, (1, 0))}
    logits = auxiliary_logits(model, pooled)
    if logits is not None:
        probabilities["auxiliary head"] = logits.softmax(dim=2).cpu()
    return ObjectPredictions(laterals.levels, probabilities)


def grid_shape(size: tuple[int, int], finest_stride: int) -> tuple[int, int]:
    """Height and width of the grid, in cells, over an image of ``size`` pixels (height, width).

    >>> grid_shape((160, 100), 4), grid_shape((800, 1333), 4), grid_shape((3, 300), 4)
    ((40, 25), (38, 64), (1, 64))
    """
    cell = max(finest_stride, max(size) / MOST_CELLS)
    height, width = (max(1, round(side / cell)) for side in size)
    return height, width


def on_grid(lateral: Tensor, stride: int, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """A ``lateral (C, H, W)`` of an image of ``size`` pixels on a ``grid`` of (h, w) cells: ``(C, h, w)``.

    Bilinear interpolation is separable: one matrix for each axis. Channels stay last, as laterals have them in memory.
    """
    vertical, horizontal = (_weights(side, num, stride).to(lateral) for side, num in zip(size, grid, strict=True))
    inside = lateral[:, : vertical.shape[1], : horizontal.shape[1]]
    rows = (vertical @ inside.permute(1, 2, 0).flatten(1)).view(grid[0], -1, len(lateral))
    return (horizontal @ rows).permute(2, 0, 1)


def _weights(side: int, num: int, stride: int) -> Tensor:
    """For each of ``num`` places along a side of so many pixels the weights of the lateral's cells: ``(num, cells)``.

    Only of the cells that are in the image. Rows sum to 1.

    >>> _weights(side=8, num=4, stride=4)  # at the pixels 1, 3, 5 and 7, between cells at 0 and 4
    tensor([[0.7500, 0.2500],
            [0.2500, 0.7500],
            [0.0000, 1.0000],
            [0.0000, 1.0000]])
    """
    num_cells = math.ceil(side / stride)
    samples = math.ceil(side / num / stride)
    pixels = (torch.arange(num * samples) + 0.5) * (side / (num * samples))
    positions = (pixels / stride).clamp(max=num_cells - 1)
    weights = (1 - (positions[:, None] - torch.arange(num_cells)).abs()).clamp(min=0)
    return weights.view(num, samples, num_cells).mean(dim=1)


def _size_of_one(images: Images) -> tuple[int, int]:
    if len(images.pixels) != 1:
        raise UserError(
            f"The gap is shown in one image at a time; found a batch of {len(images.pixels)}. Make a batch of each "
            "image, as Images.pad([image]) does."
        )
    height, width = images.sizes[0].tolist()
    return height, width
