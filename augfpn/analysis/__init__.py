"""What finished runs can be asked."""

from augfpn.analysis.comparison import comparison
from augfpn.analysis.level_ratios import LevelRatios, level_ratios

__all__ = ["LevelRatios", "comparison", "level_ratios"]
