"""Weights to and from others: torchvision's detectors and the authors' release."""

from augfpn.interop.release import from_release
from augfpn.interop.torchvision import TORCHVISION_DETECTORS, from_torchvision, torchvision_detector

__all__ = ["TORCHVISION_DETECTORS", "from_release", "from_torchvision", "torchvision_detector"]
