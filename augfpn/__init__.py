"""AugFPN: a reproducible companion of the CVPR 2020 paper.

The names that most people need; the rest is in the packages that they come from.
"""

from augfpn.components import (
    AdaptiveSpatialFusion,
    ConsistentSupervision,
    FeaturePyramid,
    ResidualFeatureAugmentation,
    SoftRoISelection,
)
from augfpn.detectors import FasterRCNN, build_detector, build_faster_rcnn
from augfpn.experiments import plan

__all__ = [
    "AdaptiveSpatialFusion",
    "ConsistentSupervision",
    "FasterRCNN",
    "FeaturePyramid",
    "ResidualFeatureAugmentation",
    "SoftRoISelection",
    "build_detector",
    "build_faster_rcnn",
    "plan",
]
