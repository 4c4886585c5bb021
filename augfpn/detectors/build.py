"""From a description to a detector."""

from __future__ import annotations

from dataclasses import replace

from augfpn.components.consistent_supervision import ConsistentSupervision
from augfpn.components.pyramid import FeaturePyramid
from augfpn.components.residual_feature_augmentation import ResidualFeatureAugmentation
from augfpn.components.soft_roi_selection import SoftRoISelection
from augfpn.detectors.backbone import Backbone
from augfpn.detectors.faster_rcnn import BoxRules, FasterRCNN
from augfpn.detectors.preprocessing import Preprocessing
from augfpn.experiments.config import FasterRCNNConfig
from augfpn.experiments.paper import find_experiment
from augfpn.heads.box import BoxHead
from augfpn.heads.region_proposals import ProposalRules, RegionProposals
from augfpn.heads.roi_pooling import SingleLevelPooling
from augfpn.ops.anchors import AnchorGenerator
from augfpn.ops.matching import Sampler


def build_detector(experiment: str, num_classes: int, *, pretrained: bool = True) -> FasterRCNN:
    """The detector of one of the paper's experiments, as the paper has it, such as ``table2/cs+rfa+srs``.

    The backbone's ImageNet weights are fetched once, unless ``pretrained`` is false.
    """
    model = find_experiment(experiment).model
    if not pretrained:
        model = replace(model, backbone=replace(model.backbone, weights=None))
    return build_faster_rcnn(model, num_classes)


def build_faster_rcnn(
    config: FasterRCNNConfig, num_classes: int, *, short_side: int = 800, long_side: int = 1333
) -> FasterRCNN:
    """A Faster R-CNN as described, for K = ``num_classes`` classes without background.

    ``short_side`` and ``long_side``: pixels to which images are resized (`augfpn.detectors.preprocessing`).
    """
    backbone = Backbone(**vars(config.backbone))
    augmentation = config.residual_feature_augmentation
    pyramid = FeaturePyramid(
        backbone.channels,
        config.channels,
        backbone.strides,
        None
        if augmentation is None
        else ResidualFeatureAugmentation(backbone.channels[-1], config.channels, augmentation.ratios),
    )
    anchors = AnchorGenerator(scales=(config.proposals.anchor_scale,), ratios=config.proposals.anchor_ratios)
    proposal_rules = ProposalRules(
        sampler=Sampler(num=config.proposals.num_sampled, foreground_fraction=0.5),
        train_inside_only=config.proposals.train_inside_only,
        num_before_nms=config.proposals.num_before_nms,
        num_proposals=config.proposals.num,
    )
    box_rules = BoxRules(
        sampler=Sampler(num=config.box.num_sampled, foreground_fraction=0.25),
        score_threshold=config.box.score_threshold,
        nms_iou=config.box.nms_iou,
        num_detections=config.box.num_detections,
    )
    roi_pooling = (
        SingleLevelPooling(finest_side=config.finest_side)
        if config.soft_roi_selection is None
        else SoftRoISelection(config.channels)
    )
    supervision = config.consistent_supervision
    return FasterRCNN(
        preprocessing=Preprocessing(short_side, long_side, style=config.backbone.style),
        backbone=backbone,
        pyramid=pyramid,
        region_proposals=RegionProposals(config.channels, anchors, proposal_rules),
        roi_pooling=roi_pooling,
        box_head=BoxHead(config.channels, num_classes, config.box.width),
        box_rules=box_rules,
        consistent_supervision=None
        if supervision is None
        else ConsistentSupervision(
            BoxHead(config.channels, num_classes, config.box.width),
            box_rules.coder,
            supervision.weight,
            supervision.levels,
            config.finest_side,
        ),
        finest_side=config.finest_side,
    )
