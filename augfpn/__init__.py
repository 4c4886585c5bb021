"""AugFPN: a reproducible companion of the CVPR 2020 paper.

The names that most people need; the rest is in the packages that they come from. They are imported when they are first
used, so that commands which need no PyTorch do not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from augfpn.components import (
        AdaptiveSpatialFusion,
        ConsistentSupervision,
        FeaturePyramid,
        ResidualFeatureAugmentation,
        SoftRoISelection,
    )
    from augfpn.detectors import (
        Detector,
        FasterRCNN,
        OneStageDetector,
        build_detector,
        build_from_config,
    )
    from augfpn.detectors.constructors import faster_rcnn, fcos, mask_rcnn, retinanet
    from augfpn.experiments import plan

__all__ = [
    "AdaptiveSpatialFusion",
    "ConsistentSupervision",
    "Detector",
    "FasterRCNN",
    "FeaturePyramid",
    "OneStageDetector",
    "ResidualFeatureAugmentation",
    "SoftRoISelection",
    "build_detector",
    "build_from_config",
    "faster_rcnn",
    "fcos",
    "mask_rcnn",
    "plan",
    "retinanet",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for package in ("components", "detectors", "detectors.constructors", "experiments"):
            module = import_module(f"augfpn.{package}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module 'augfpn' has no attribute {name!r}")
