"""What finished runs can be asked, and what detectors cost."""

from augfpn.analysis.comparison import comparison
from augfpn.analysis.cost import Cost, cost, cost_of_experiment
from augfpn.analysis.level_ratios import LevelRatios, level_ratios
from augfpn.analysis.runtime import Runtime, measure_runtimes
from augfpn.analysis.semantic_gap import SemanticGap, semantic_gaps

__all__ = [
    "Cost",
    "LevelRatios",
    "Runtime",
    "SemanticGap",
    "comparison",
    "cost",
    "cost_of_experiment",
    "level_ratios",
    "measure_runtimes",
    "semantic_gaps",
]
