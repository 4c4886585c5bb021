"""The paper's Section 3, a file an idea."""

from augfpn.components.adaptive_fusion import AdaptiveSpatialFusion
from augfpn.components.consistent_supervision import ConsistentSupervision
from augfpn.components.pyramid import FeaturePyramid
from augfpn.components.residual_feature_augmentation import ResidualFeatureAugmentation
from augfpn.components.soft_roi_selection import SoftRoISelection

__all__ = [
    "AdaptiveSpatialFusion",
    "ConsistentSupervision",
    "FeaturePyramid",
    "ResidualFeatureAugmentation",
    "SoftRoISelection",
]
