"""Interactive views of runs, for notebooks, for the browser, and as pages that need neither kernel nor network."""

from augfpn.visuals.interactive.detections import DetectionViewer
from augfpn.visuals.interactive.semantic_gap import SemanticGapExplorer

__all__ = ["DetectionViewer", "SemanticGapExplorer"]
