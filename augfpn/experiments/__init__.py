"""What is run: the paper's experiments as data, and the scales at which they can be run."""

from augfpn.experiments.config import RunConfig
from augfpn.experiments.paper import PAPER, Experiment, find_experiment
from augfpn.experiments.scales import SCALES, plan

__all__ = ["PAPER", "SCALES", "Experiment", "RunConfig", "find_experiment", "plan"]
