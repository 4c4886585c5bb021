"""What is run: the paper's experiments as data, and the scales at which they can be run."""

from augfpn.experiments.config import RunConfig
from augfpn.experiments.paper import EXPERIMENTS, PAPER, find_experiment
from augfpn.experiments.rows import Experiment
from augfpn.experiments.scales import SCALES, plan, run_as

__all__ = ["EXPERIMENTS", "PAPER", "SCALES", "Experiment", "RunConfig", "find_experiment", "plan", "run_as"]
