"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from augfpn.experiments.config import TrainingConfig


def learning_rate(config: TrainingConfig, step: int, num_steps: int) -> float:
    """The rate of a step, from 0: a warm-up, multiplied with the schedule.

    Section 4.2: 0.02 for 16 images a step, divided by ten after the 8th and the 11th of 12 epochs.
    """
    rate = config.scaled_learning_rate
    if config.schedule == "steps":
        rate *= 0.1 ** sum(step >= milestone * num_steps for milestone in config.milestones)
    else:
        rate *= 0.5 * (1 + math.cos(math.pi * step / num_steps))
    if step < config.warmup_steps:
        done = step / config.warmup_steps if config.warmup == "linear" else 0.0
        rate *= config.warmup_start + (1 - config.warmup_start) * done
    return rate
