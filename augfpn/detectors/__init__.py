"""Detectors: short compositions of the parts."""

from augfpn.detectors.build import build_detector, build_from_config
from augfpn.detectors.detector import Detector
from augfpn.detectors.faster_rcnn import FasterRCNN
from augfpn.detectors.one_stage import OneStageDetector

__all__ = ["Detector", "FasterRCNN", "OneStageDetector", "build_detector", "build_from_config"]
