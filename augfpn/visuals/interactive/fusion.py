"""What Soft RoI Selection and Residual Feature Augmentation did in one image, for the ASF explorer."""

from __future__ import annotations

import numpy as np
import torch

from augfpn.analysis.level_ratios import LEVELS
from augfpn.detectors.detector import Detector
from augfpn.detectors.faster_rcnn import FasterRCNN
from augfpn.engine.outcomes import Array
from augfpn.experiments.config import RunConfig
from augfpn.heads.roi_pooling import AdaptiveFeaturePooling, SingleLevelPooling
from augfpn.ops.boxes import area, rescale
from augfpn.ops.level_assignment import assigned_levels
from augfpn.structures import Images
from augfpn.visuals.interactive.pictures import ShownImage
from augfpn.visuals.interactive.view import Answer, rounded
from augfpn.visuals.samples import weighted_contexts


@torch.no_grad()
def fusion_answer(
    model: Detector, config: RunConfig, image: ShownImage, rois: Array | None, device: torch.device
) -> Answer:
    """The fusion weights of RoIs, and of the contexts of the image.

    The model sees the image alone. In the evaluation it saw a batch, whose padding changes features a little.

    Args:
        rois: ``(D, 4)`` in the image's pixels; None where they are not known.
    """
    images = image.as_seen(config.data).to(device)
    answer: Answer = {"contexts": _contexts(model, config, images)}
    if not isinstance(model, FasterRCNN):
        return {**answer, "why": "This detector has no RoIs: it predicts from every cell of every level."}
    if rois is None:
        return {
            **answer,
            "why": "The detections of this run do not say which RoIs they were made from; evaluate it again with "
            "`augfpn evaluate`.",
        }
    boxes = rescale(torch.from_numpy(rois).to(device), torch.tensor(image.size), images.sizes[0].cpu())
    weights = torch.zeros(0, len(LEVELS), 1, 1)
    if len(boxes):
        weights = model.roi_pooling(model.features(images), boxes[None]).weights.float().cpu()
    heuristic = assigned_levels(boxes, model.finest_side)
    most = max(1.0, round(float(weights.max()), 2)) if len(boxes) else 1.0
    return {
        **answer,
        "levels": list(LEVELS),
        "rows": weights.shape[2],
        "columns": weights.shape[3],
        # Turned by hand, weights can be more than 1.
        "weights": rounded(weights.numpy() / most),
        "most": most,
        "means": np.round(weights.mean(dim=(2, 3)).numpy(), 5).tolist(),
        "heuristic": heuristic.tolist(),
        "sides": np.round(area(boxes).clamp(min=0).sqrt().cpu().numpy(), 2).tolist(),
        "how": _how(model),
    }


def has_contexts(config: RunConfig) -> bool:
    """Whether a model weighs contexts."""
    augmentation = config.model.residual_feature_augmentation
    return augmentation is not None and augmentation.fusion != "psp"


def _how(model: FasterRCNN) -> str:
    """What the detector does in the place of FPN's choice."""
    if isinstance(model.roi_pooling, AdaptiveFeaturePooling):
        return "this detector gives all levels to its box head, which takes the largest of what it makes of each."
    if isinstance(model.roi_pooling, SingleLevelPooling):
        return "this detector does so."
    return "Soft RoI Selection takes it from all levels, by these weights."


def _contexts(model: Detector, config: RunConfig, images: Images) -> Answer | None:
    """The weights over the part of C5 that the image covers, without its padding."""
    found = weighted_contexts(model, config, images)
    if found is None:
        return None
    stride = images.pixels.shape[2] // found.weights.shape[2]
    resized = images.sizes[0].tolist()
    rows, columns = (-(-side // stride) for side in resized)
    weights = found.weights[0, :, :rows, :columns]
    means = weights.mean(dim=(1, 2)).numpy()
    return {
        "names": found.names,
        "rows": rows,
        "columns": columns,
        # What these cells cover, of the image's height and width: the last ones can go beyond it.
        "covers": [rows * stride / resized[0], columns * stride / resized[1]],
        "maps": rounded(weights.numpy()),
        "means": np.round(means, 5).tolist(),
    }
