"""What finished runs can be asked, and what detectors cost."""

from augfpn.analysis.alterations import Alteration, altered, applicable
from augfpn.analysis.comparison import comparison
from augfpn.analysis.cost import Cost, cost, cost_of_experiment
from augfpn.analysis.image_losses import image_losses, kept_image_losses
from augfpn.analysis.level_ratios import LevelRatios, level_ratios
from augfpn.analysis.runtime import Runtime, measure_runtimes
from augfpn.analysis.semantic_gap import SemanticGap, semantic_gaps
from augfpn.analysis.significance import Difference, differences_to_baselines, intervals, paired_difference

__all__ = [
    "Alteration",
    "Cost",
    "Difference",
    "LevelRatios",
    "Runtime",
    "SemanticGap",
    "altered",
    "applicable",
    "comparison",
    "cost",
    "cost_of_experiment",
    "differences_to_baselines",
    "image_losses",
    "intervals",
    "kept_image_losses",
    "level_ratios",
    "measure_runtimes",
    "paired_difference",
    "semantic_gaps",
]
