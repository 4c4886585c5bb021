"""torchvision's detectors: their weights in our models, under their conventions.

torchvision's RetinaNet and FCOS have an output for label 0, which no target names and no data set has; ours have not,
so it is dropped. In a trained model its score is next to nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from timm.layers import FrozenBatchNormAct2d
from torch import Tensor
from torchvision.ops import FrozenBatchNorm2d

from augfpn.detectors.build import build_from_config
from augfpn.detectors.detector import Detector
from augfpn.errors import UserError
from augfpn.experiments.config import (
    AnyDetectorConfig,
    BackboneConfig,
    BoxConfig,
    FasterRCNNConfig,
    FCOSConfig,
    MaskConfig,
    ProposalConfig,
    RetinaNetConfig,
)
from augfpn.experiments.conventions import TORCHVISION
from augfpn.experiments.paper import unknown
from augfpn.interop.renaming import renamed

_BACKBONE = BackboneConfig(weights=None, frozen_stages=1)
_PROPOSALS = ProposalConfig(num_at_inference=1000)

# torchvision's detectors as we describe them, by the names of the functions that build them. The numbers are theirs.
TORCHVISION_DETECTORS: dict[str, AnyDetectorConfig] = {
    "fasterrcnn_resnet50_fpn": FasterRCNNConfig(backbone=_BACKBONE, proposals=_PROPOSALS, conventions=TORCHVISION),
    "maskrcnn_resnet50_fpn": FasterRCNNConfig(
        backbone=_BACKBONE, proposals=_PROPOSALS, mask=MaskConfig(), conventions=TORCHVISION
    ),
    "retinanet_resnet50_fpn": RetinaNetConfig(
        backbone=_BACKBONE, box=BoxConfig(num_detections=300), conventions=TORCHVISION
    ),
    "fcos_resnet50_fpn": FCOSConfig(
        backbone=_BACKBONE, box=BoxConfig(score_threshold=0.2, nms_iou=0.6), conventions=TORCHVISION
    ),
}

_WB = r"(weight|bias)"
_FPN = (
    (rf"inner_blocks\.(\d+)\.(?:0\.)?{_WB}", r"lateral_convs.\1.\2"),
    (rf"layer_blocks\.(\d+)\.(?:0\.)?{_WB}", r"output_convs.\1.\2"),
    (rf"extra_blocks\.(p[67])\.{_WB}", r"top.\1.\2"),
)
_RPN = (
    (rf"head\.conv\.(?:0\.0\.)?{_WB}", r"conv.\1"),
    (rf"head\.cls_logits\.{_WB}", r"objectness.\1"),
    (rf"head\.bbox_pred\.{_WB}", r"deltas.\1"),
)
_ROI_HEADS = (
    (rf"box_head\.fc6\.{_WB}", r"box_head.fc1.\1"),
    (rf"box_head\.fc7\.{_WB}", r"box_head.fc2.\1"),
    (rf"box_predictor\.cls_score\.{_WB}", r"box_head.classifier.\1"),
    (rf"box_predictor\.bbox_pred\.{_WB}", r"box_head.regressor.\1"),
    (rf"mask_head\.(\d)\.0\.{_WB}", r"mask_branch.head.convs.\1.\2"),
    *((rf"mask_head\.mask_fcn{i + 1}\.{_WB}", rf"mask_branch.head.convs.{i}.\1") for i in range(4)),
    (rf"mask_predictor\.conv5_mask\.{_WB}", r"mask_branch.head.upsample.\1"),
    (rf"mask_predictor\.mask_fcn_logits\.{_WB}", r"mask_branch.head.classifier.\1"),
)
_OUTPUTS = (
    (rf"classification_head\.cls_logits\.{_WB}", r"classifier.\1"),
    (rf"regression_head\.bbox_reg\.{_WB}", r"regressor.\1"),
    (rf"regression_head\.bbox_ctrness\.{_WB}", r"centerness.\1"),
)
_RETINANET_HEAD = _OUTPUTS + tuple(
    rule
    for kind in ("classification", "regression")
    for rule in (
        # Today's, and before torchvision 0.13, when a ReLU was every second layer.
        (rf"{kind}_head\.conv\.(\d)\.0\.{_WB}", rf"{kind}_tower.convs.\1.\2"),
        *((rf"{kind}_head\.conv\.{2 * i}\.{_WB}", rf"{kind}_tower.convs.{i}.\1") for i in range(4)),
    )
)
# Convolution, norm and ReLU follow one another.
_FCOS_HEAD = _OUTPUTS + tuple(
    (rf"{kind}_head\.conv\.{3 * i + j}\.{_WB}", rf"{kind}_tower.{part}.{i}.\1")
    for kind in ("classification", "regression")
    for i in range(4)
    for j, part in enumerate(("convs", "norms"))
)


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of one of torchvision's detectors in our names: of a whole one, or of a part.

    A part can be alone, with the name that it has in the detector before its own names, or without; the pyramid also
    with ``neck.``. A UserError names what is unknown.

    >>> import torch
    >>> list(from_torchvision({"backbone.fpn.inner_blocks.0.0.bias": torch.zeros(1)}))
    ['pyramid.lateral_convs.0.bias']
    >>> list(from_torchvision({"inner_blocks.0.0.bias": torch.zeros(1)}))
    ['lateral_convs.0.bias']
    """
    # Of the numbered layers of towers, only those of FCOS have norms, whose weights are vectors.
    is_fcos = any(re.search(r"conv\.\d+\.weight$", name) and tensor.ndim == 1 for name, tensor in state.items())
    parts = (
        (r"(?:backbone\.fpn|fpn|neck)\.", "pyramid.", _FPN),
        (r"rpn\.", "region_proposals.", _RPN),
        (r"(?:roi_heads\.)?", "", _ROI_HEADS),
        (r"head\.", "head.", _FCOS_HEAD if is_fcos else _RETINANET_HEAD),
    )
    rules = (
        (r"backbone\.body\.(.+)", r"backbone.body.\1"),
        *((theirs + name, ours + own) for theirs, ours, names in parts for name, own in names),
        *(rule for _, _, names in parts for rule in names),
    )
    ours = renamed(state, rules, "torchvision's detectors")
    return _without_label_0(_without_label_0(ours, "head."), "")


def torchvision_detector(name: str, state: Mapping[str, Tensor], *, batch_norm_eps: float) -> Detector:
    """Our form of a torchvision detector, which detects the same.

    Args:
        name: of the function that builds it, such as ``retinanet_resnet50_fpn``.
        state: its state dict; the number of classes is read from it.
        batch_norm_eps: 1e-5 in general; 0 for the ``COCO_V1`` weights of Faster R-CNN, Mask R-CNN and RetinaNet, where
            torchvision sets it when it loads them.
    """
    if name not in TORCHVISION_DETECTORS:
        raise UserError(unknown("detector of torchvision's", name, TORCHVISION_DETECTORS))
    ours = from_torchvision(state)
    outputs = ours["box_head.classifier.bias" if "box_head.classifier.bias" in ours else "head.classifier.bias"]
    is_one_stage = "head.classifier.bias" in ours
    num_anchors = len(ours["head.regressor.bias"]) // 4 if is_one_stage else 1
    detector = build_from_config(
        TORCHVISION_DETECTORS[name], len(outputs) // num_anchors if is_one_stage else len(outputs) - 1
    )
    for module in detector.backbone.modules():
        if isinstance(module, FrozenBatchNormAct2d | FrozenBatchNorm2d):
            module.eps = batch_norm_eps
    # Frozen batch norm counts no batches.
    detector.load_state_dict({key: value for key, value in ours.items() if not key.endswith("num_batches_tracked")})
    return detector


def _without_label_0(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A one-stage classifier, where there is one, without its first output a place, label 0."""
    classifier, regressor = f"{prefix}classifier", f"{prefix}regressor"
    if f"{classifier}.bias" not in state:
        return state
    if f"{regressor}.bias" not in state:
        raise UserError("A one-stage head has to be whole: how many anchors it has is read from its regression head.")
    num_anchors = len(state[f"{regressor}.bias"]) // 4
    outputs = {
        name: state[name].reshape(num_anchors, -1, *state[name].shape[1:])[:, 1:].flatten(0, 1)
        for name in (f"{classifier}.weight", f"{classifier}.bias")
    }
    return {**state, **outputs}
