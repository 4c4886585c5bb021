"""What finished runs can be asked, and what detectors cost."""

from augfpn.analysis.comparison import comparison
from augfpn.analysis.cost import Cost, cost, cost_of_experiment
from augfpn.analysis.level_ratios import LevelRatios, level_ratios

__all__ = ["Cost", "LevelRatios", "comparison", "cost", "cost_of_experiment", "level_ratios"]
