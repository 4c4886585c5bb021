"""The paper's Section 3, a file an idea."""

from augfpn.components.adaptive_fusion import AdaptiveChannelFusion, AdaptiveSpatialFusion
from augfpn.components.consistent_supervision import ConsistentSupervision
from augfpn.components.pyramid import FeaturePyramid
from augfpn.components.residual_feature_augmentation import ResidualFeatureAugmentation
from augfpn.components.soft_roi_selection import SoftRoISelection

__all__ = [
    "AdaptiveChannelFusion",
    "AdaptiveSpatialFusion",
    "ConsistentSupervision",
    "FeaturePyramid",
    "ResidualFeatureAugmentation",
    "SoftRoISelection",
]
