"""From a description to a detector."""

from __future__ import annotations

from dataclasses import replace

from augfpn.components.consistent_supervision import ConsistentSupervision
from augfpn.components.pyramid import ConvolvedP6P7, FeaturePyramid
from augfpn.components.residual_feature_augmentation import ResidualFeatureAugmentation
from augfpn.components.soft_roi_selection import SoftRoISelection
from augfpn.detectors.backbone import Backbone
from augfpn.detectors.detector import Detector
from augfpn.detectors.faster_rcnn import BoxRules, FasterRCNN
from augfpn.detectors.one_stage import OneStageDetector
from augfpn.detectors.preprocessing import Preprocessing
from augfpn.errors import UserError
from augfpn.experiments.config import AnyDetectorConfig, DetectorConfig, FasterRCNNConfig, FCOSConfig, RetinaNetConfig
from augfpn.experiments.paper import find_experiment
from augfpn.experiments.variants import from_scratch
from augfpn.heads.box import BoxHead
from augfpn.heads.dense import Selection
from augfpn.heads.fcos import FCOSHead, FCOSRules
from augfpn.heads.mask import MASK_ROI_SIZE, MaskBranch, MaskHead
from augfpn.heads.region_proposals import ProposalCounts, ProposalRules, RegionProposals
from augfpn.heads.retinanet import RetinaNetHead, RetinaNetRules
from augfpn.heads.roi_pooling import AdaptiveFeaturePooling, SingleLevelPooling
from augfpn.ops.anchors import AnchorGenerator
from augfpn.ops.boxes import BoxCoder
from augfpn.ops.level_assignment import FINEST_SIDE, NUM_ROI_LEVELS
from augfpn.ops.matching import Matcher, Sampler

ROI_CODER = BoxCoder(stds=(0.1, 0.1, 0.2, 0.2))


def build_detector(
    experiment: str, num_classes: int, *, pretrained: bool = True, weights: str | None = None
) -> Detector:
    """The detector of one of the paper's experiments, as the paper has it, such as ``table2/cs+rfa+srs``.

    Args:
        experiment: an id from `augfpn.experiments.PAPER`.
        num_classes: K, without background.
        pretrained: start the backbone from ImageNet weights, which are fetched once; a random start has nothing frozen.
        weights: a tag of timm's, a file or a URL in the place of the experiment's weights.
    """
    model = find_experiment(experiment).model
    if weights is not None:
        model = replace(model, backbone=replace(model.backbone, weights=weights))
    return build_from_config(model if pretrained else from_scratch(model), num_classes)


def build_from_config(
    config: AnyDetectorConfig, num_classes: int, *, short_side: int = 800, long_side: int = 1333
) -> Detector:
    """The detector that is described, for K = ``num_classes`` classes without background.

    ``short_side`` and ``long_side``: pixels to which images are resized (`augfpn.detectors.preprocessing`).
    """
    if num_classes < 1:
        raise UserError(f"A detector has at least one class besides background, not {num_classes}.")
    preprocessing = Preprocessing(short_side, long_side, config.backbone.style, config.conventions.antialias)
    if isinstance(config, FasterRCNNConfig):
        return _faster_rcnn(config, num_classes, preprocessing)
    return _one_stage(config, num_classes, preprocessing)


def _faster_rcnn(config: FasterRCNNConfig, num_classes: int, preprocessing: Preprocessing) -> FasterRCNN:
    conventions = config.conventions
    backbone = Backbone(**vars(config.backbone))
    pyramid = FeaturePyramid(backbone.channels, config.channels, backbone.strides, _augmentation(config, backbone))
    roi_pooling = AdaptiveFeaturePooling() if config.adaptive_feature_pooling else _roi_pooling(config)
    box_rules = BoxRules(
        sampler=Sampler(num=config.box.num_sampled, foreground_fraction=0.25),
        coder=ROI_CODER,
        smooth_l1_beta=conventions.box_smooth_l1_beta,
        score_threshold=config.box.score_threshold,
        nms_iou=config.box.nms_iou,
        num_detections=config.box.num_detections,
    )
    return FasterRCNN(
        num_classes,
        preprocessing,
        backbone,
        pyramid,
        RegionProposals(config.channels, _anchors(config), _proposal_rules(config)),
        roi_pooling=roi_pooling,
        box_head=BoxHead(
            config.channels,
            num_classes,
            config.box.width,
            num_levels=NUM_ROI_LEVELS if config.adaptive_feature_pooling else 1,
        ),
        box_rules=box_rules,
        mask_branch=None
        if config.mask is None
        else MaskBranch(_roi_pooling(config, MASK_ROI_SIZE), MaskHead(config.channels, num_classes, config.mask.width)),
        consistent_supervision=_supervision(config, num_classes, config.finest_side),
        finest_side=config.finest_side,
    )


def _one_stage(config: RetinaNetConfig | FCOSConfig, num_classes: int, preprocessing: Preprocessing) -> Detector:
    conventions = config.conventions
    backbone = Backbone(**vars(config.backbone))
    source = conventions.retinanet_top if isinstance(config, RetinaNetConfig) else "p5"
    # The backbone's stages begin with C2.
    first = config.finest_level - 2
    pyramid = FeaturePyramid(
        backbone.channels[first:],
        config.channels,
        backbone.strides[first:],
        _augmentation(config, backbone),
        ConvolvedP6P7(backbone.channels[-1] if source == "c5" else config.channels, config.channels, source),
    )
    selection = Selection(
        score_threshold=config.box.score_threshold,
        num_before_nms=config.num_before_nms,
        nms_iou=config.box.nms_iou,
        num=config.box.num_detections,
    )
    head: RetinaNetHead | FCOSHead
    if isinstance(config, RetinaNetConfig):
        retinanet = RetinaNetRules(
            matcher=Matcher(
                foreground_iou=0.5, background_iou=0.4, lowest_best_iou=0.0, best_of=conventions.best_anchor_of
            ),
            smooth_l1_beta=conventions.retinanet_smooth_l1_beta,
            mean=conventions.retinanet_mean,
            tower_convs=config.tower_convs,
            selection=selection,
        )
        head = RetinaNetHead(config.channels, num_classes, _anchors(config), retinanet)
    else:
        fcos = FCOSRules(
            regression_ranges=tuple(config.finest_range * 2**i for i in range(len(pyramid.strides) - 1)),
            centre_radius=conventions.fcos_centre_radius,
            range_ends=conventions.fcos_range_ends,
            centerness_on=conventions.fcos_centerness_on,
            distances=conventions.fcos_distances,
            tower_bias=conventions.fcos_tower_bias,
            box_loss=conventions.fcos_box_loss,
            score=conventions.fcos_score,
            tower_convs=config.tower_convs,
            selection=selection,
        )
        head = FCOSHead(config.channels, num_classes, _anchors(config), fcos)
    return OneStageDetector(
        num_classes,
        preprocessing,
        backbone,
        pyramid,
        head,
        # The release's values; two-stage detectors have a region proposal network instead.
        Selection(
            score_threshold=0.01, num_before_nms=config.proposals_before_nms, nms_iou=0.7, num=config.num_proposals
        ),
        Sampler(num=config.box.num_sampled, foreground_fraction=0.25),
        _supervision(config, num_classes),
    )


def _augmentation(config: DetectorConfig, backbone: Backbone) -> ResidualFeatureAugmentation | None:
    augmentation = config.residual_feature_augmentation
    if augmentation is None:
        return None
    return ResidualFeatureAugmentation(backbone.channels[-1], config.channels, **vars(augmentation))


def _anchors(config: AnyDetectorConfig) -> AnchorGenerator:
    scales: tuple[float, ...]
    ratios: tuple[float, ...]
    if isinstance(config, FasterRCNNConfig):
        scales, ratios = (config.proposals.anchor_scale,), config.proposals.anchor_ratios
    elif isinstance(config, RetinaNetConfig):
        num = config.num_octave_scales
        scales, ratios = tuple(config.anchor_scale * 2 ** (i / num) for i in range(num)), config.anchor_ratios
    else:
        scales, ratios = (1.0,), (1.0,)
    conventions = config.conventions
    return AnchorGenerator(
        scales=scales,
        ratios=ratios,
        centre=conventions.anchor_centre,
        whole_pixels=conventions.whole_pixel_anchors,
    )


def _proposal_rules(config: FasterRCNNConfig) -> ProposalRules:
    conventions, proposals = config.conventions, config.proposals
    training = ProposalCounts(before_nms=proposals.num_before_nms, num=proposals.num)
    fewer = proposals.num_at_inference
    return ProposalRules(
        matcher=Matcher(
            foreground_iou=0.7,
            background_iou=0.3,
            lowest_best_iou=conventions.lowest_best_iou,
            best_of=conventions.best_anchor_of,
        ),
        sampler=Sampler(num=proposals.num_sampled, foreground_fraction=0.5),
        train_inside_only=conventions.train_inside_only,
        training=training,
        inference=training if fewer is None else ProposalCounts(before_nms=fewer, num=fewer),
    )


def _roi_pooling(config: FasterRCNNConfig, output_size: int = 7) -> SingleLevelPooling | SoftRoISelection:
    if config.soft_roi_selection is None:
        return SingleLevelPooling(output_size, config.finest_side)
    return SoftRoISelection(config.channels, output_size, config.soft_roi_selection.fusion)


def _supervision(
    config: AnyDetectorConfig, num_classes: int, finest_side: float | None = None
) -> ConsistentSupervision | None:
    """``finest_side``: of the RoIs that the finest lateral is meant for, where they are assigned by their size."""
    supervision = config.consistent_supervision
    if supervision is None:
        return None
    if finest_side is None and supervision.levels == "assigned":
        raise UserError("One-stage detectors do not assign RoIs to levels: supervise all of them (levels='all').")
    mask = config.mask if isinstance(config, FasterRCNNConfig) else None
    return ConsistentSupervision(
        BoxHead(config.channels, num_classes, config.box.width),
        ROI_CODER,
        supervision.weight,
        supervision.levels,
        FINEST_SIDE if finest_side is None else finest_side,
        None if mask is None else MaskHead(config.channels, num_classes, mask.width),
    )
