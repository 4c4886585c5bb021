"""One step of the optimizer: losses, gradients, update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from augfpn.data.loading import Batch
from augfpn.detectors.batch_norm import share_statistics
from augfpn.detectors.detector import Detector
from augfpn.engine.ranks import ALONE, Ranks
from augfpn.experiments.config import Precision, TrainingConfig
from augfpn.structures import Images, Targets

NORMS = (nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


class TrainingStep:
    """Makes the steps of a training.

    A step's batch may come in parts, one after the other, where memory is short: the gradient is the mean of theirs.
    With several ranks it is the mean over theirs, too, and batch norm's statistics are those of all.

    Args:
        model: on its device.
        training: the optimizer's settings and the precision.
        ranks: the processes that train together.
        activation_checkpointing: of the backbone's stages, whose activations are computed again for the gradients.
    """

    def __init__(
        self, model: Detector, training: TrainingConfig, ranks: Ranks = ALONE, *, activation_checkpointing: bool = False
    ) -> None:
        self.training = training
        self.optimizer = build_optimizer(model, training)
        self.activation_checkpointing = activation_checkpointing
        model.backbone.checkpoint_activations(activation_checkpointing)
        self.losses: nn.Module = Losses(model)
        if ranks.num > 1:
            share_statistics(model)
            device = next(model.parameters()).device
            self.losses = DistributedDataParallel(
                self.losses,
                device_ids=[device] if device.type == "cuda" else None,
            )

    def __call__(self, parts: Sequence[Batch], rate: float) -> dict[str, Tensor]:
        """Makes a step with a learning rate; returns what `backpropagate` does."""
        self.optimizer.zero_grad(set_to_none=True)
        values = backpropagate(
            self.losses,
            parts,
            self.training.clip_norm,
            self.training.precision,
            activation_checkpointing=self.activation_checkpointing,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        self.optimizer.step()
        return values


class Losses(nn.Module):
    """A detector whose call gives its losses, as `DistributedDataParallel` needs it."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Images, targets: Targets) -> dict[str, Tensor]:
        return self.model.losses(images, targets)


def backpropagate(
    losses: nn.Module,
    parts: Sequence[Batch],
    clip_norm: float | None,
    precision: Precision = "fp32",
    *,
    activation_checkpointing: bool = False,
) -> dict[str, Tensor]:
    """Leaves the clipped gradient of the mean of the parts' losses in the parameters.

    The parts are brought to the model's device one after the other. Returns the losses by component, their sum as
    ``loss``, and the gradient's norm before clipping, on the device.
    """
    of_parts = []
    device = next(losses.parameters()).device
    for position, part in enumerate(parts, start=1):
        batch = part.to(device)
        # Ranks exchange their gradients with the last part.
        exchanges_later = isinstance(losses, DistributedDataParallel) and position < len(parts)
        with losses.no_sync() if exchanges_later else nullcontext():  # type: ignore[operator]
            with torch.autocast(batch.images.pixels.device.type, torch.bfloat16, enabled=precision == "bf16"):
                found = losses(batch.images, batch.targets)
            total = torch.stack([loss.float() for loss in found.values()]).sum()
            with _keeping_statistics(losses) if activation_checkpointing else nullcontext():
                (total / len(parts)).backward()  # type: ignore[no-untyped-call]
        of_parts.append({"loss": total.detach(), **{name: loss.detach() for name, loss in found.items()}})
    norm = nn.utils.clip_grad_norm_(losses.parameters(), float("inf") if clip_norm is None else clip_norm)
    values = {name: torch.stack([part[name] for part in of_parts]).mean() for name in of_parts[0]}
    return {**values, "gradient_norm": norm}


@contextmanager
def _keeping_statistics(model: nn.Module) -> Iterator[None]:
    """What is computed a second time for the gradients does not count a second time in batch norm's statistics."""
    norms = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, momentum, num_batches in before:
            norm.momentum = momentum
            norm.num_batches_tracked = num_batches


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """The paper's SGD, or AdamW for scales that train from scratch in minutes.

    As in the release, what holds for biases holds for those of convolutions and fully connected layers: the shifts of
    normalisations are trained like weights.
    """
    norms = (module for module in model.modules() if isinstance(module, NORMS))
    of_norms = {id(parameter) for norm in norms for parameter in norm.parameters(recurse=False)}
    biases: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_bias = name.endswith("bias") and id(parameter) not in of_norms
            (biases if is_bias else others).append(parameter)
    bias_decay = config.weight_decay if config.bias_decay else 0.0
    parameters: list[dict[str, Any]] = [
        {"params": others, "rate_factor": 1.0},
        {"params": biases, "rate_factor": config.bias_rate, "weight_decay": bias_decay},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parameters, lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )
