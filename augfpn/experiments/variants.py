"""What a description becomes: with AugFPN in the place of FPN, and with a backbone that starts at random."""

from __future__ import annotations

from dataclasses import replace

from augfpn.experiments.config import (
    AnyDetectorConfig,
    ConsistentSupervisionConfig,
    FasterRCNNConfig,
    ResidualFeatureAugmentationConfig,
    SoftRoISelectionConfig,
)


def with_augfpn(model: AnyDetectorConfig) -> AnyDetectorConfig:
    """A detector with FPN as it is with AugFPN: all three components, or the two that one-stage detectors can have."""
    model = replace(
        model,
        consistent_supervision=ConsistentSupervisionConfig(),
        residual_feature_augmentation=ResidualFeatureAugmentationConfig(),
    )
    return replace(model, soft_roi_selection=SoftRoISelectionConfig()) if isinstance(model, FasterRCNNConfig) else model


def from_scratch(model: AnyDetectorConfig) -> AnyDetectorConfig:
    """A detector whose backbone starts at random, and so has nothing to keep frozen."""
    return replace(model, backbone=replace(model.backbone, weights=None, frozen_stages=0, frozen_batch_norm=False))
