"""Interactive views of runs, for notebooks, for the browser, and as pages that need neither kernel nor network."""

from augfpn.visuals.interactive.detections import DetectionViewer

__all__ = ["DetectionViewer"]
