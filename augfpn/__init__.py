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


# Where the names come from; a module may have the name of a function of another one.
_HOMES = {
    "augfpn.components": (
        "AdaptiveSpatialFusion",
        "ConsistentSupervision",
        "FeaturePyramid",
        "ResidualFeatureAugmentation",
        "SoftRoISelection",
    ),
    "augfpn.detectors": ("Detector", "FasterRCNN", "OneStageDetector", "build_detector", "build_from_config"),
    "augfpn.detectors.constructors": ("faster_rcnn", "fcos", "mask_rcnn", "retinanet"),
    "augfpn.experiments": ("plan",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'augfpn' has no attribute {name!r}")
