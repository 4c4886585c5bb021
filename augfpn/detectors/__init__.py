"""Detectors: short compositions of the parts."""

from augfpn.detectors.build import build_detector, build_faster_rcnn
from augfpn.detectors.faster_rcnn import FasterRCNN

__all__ = ["FasterRCNN", "build_detector", "build_faster_rcnn"]
