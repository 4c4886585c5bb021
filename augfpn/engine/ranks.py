"""The processes of one training: one a device, on one machine or on several, as torchrun starts them.

Each is a rank, the first of which is the main one: it alone writes files and prints. What is computed does not depend
on how many there are, but for rounding (`augfpn.ops.ranks`), as long as images are padded alike.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from augfpn.errors import UserError, first_line

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """This process among ``num`` of them; by default there is one. ``group``: in which they speak, host to host."""

    rank: int = 0
    num: int = 1
    group: Any = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank; the same answer on all."""
        if self.num == 1:
            return flag
        # On the host, so that a GPU is not waited for.
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.group)
        return bool(flags)

    def gather(self, value: Value) -> list[Value]:
        """Each rank's value, in their order, on all of them."""
        if self.num == 1:
            return [value]
        values: list[Any] = [None] * self.num
        dist.all_gather_object(values, value, group=self.group)
        return values

    def gather_to_main(self, value: Value) -> list[Value]:
        """Likewise on the main rank; nothing on the others."""
        if self.num == 1:
            return [value]
        values: list[Any] | None = [None] * self.num if self.is_main else None
        dist.gather_object(value, values, group=self.group)
        return values or []

    def wait(self) -> None:
        """Goes on when all ranks are here."""
        self.any(False)


ALONE = Ranks()


class RanksError(UserError):
    """The others do not answer."""


def is_rank() -> bool:
    """Whether torchrun, or something that speaks like it, started this process as one of several."""
    # A cluster may have a WORLD_SIZE of its own.
    spoken = all(name in os.environ for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"))
    return spoken and os.environ["WORLD_SIZE"] != "1"


def _end_with_launcher() -> None:
    """Whatever started the ranks may be killed; then they stop as if they were asked to, rather than live on unseen."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGTERM))


@contextmanager
def joined(device: torch.device, timeout: float) -> Iterator[tuple[Ranks, torch.device]]:
    """This process among those that were started with it, and its device.

    Args:
        device: what all of them use; of GPUs, each process gets its own.
        timeout: after so many seconds without an answer from the others it is an error.

    Raises:
        RanksError: out of what is done within, where the others do not answer.
    """
    if not is_rank():
        yield ALONE, device
        return
    _end_with_launcher()
    if device.type == "cuda":
        local, num_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= num_gpus:
            raise UserError(f"This machine has {num_gpus} GPUs for more processes; start no more than one a GPU.")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    # Weights of 1 × 1 convolutions have the same strides in either layout.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    ranks = None
    try:
        # NCCL ends the process without a word when its time is over: the hosts, who can say why, have less.
        factor, backend = (2, "nccl") if device.type == "cuda" else (1, "gloo")
        dist.init_process_group(backend, timeout=timedelta(seconds=factor * timeout))
        hosts = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        ranks = Ranks(dist.get_rank(), dist.get_world_size(), hosts)
        yield ranks, device
        # Not after an error: the others may not answer any more.
        dist.destroy_process_group()
    except RuntimeError as error:
        # Gloo's are RuntimeErrors among others.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        who = f"Rank {ranks.rank} of {ranks.num}" if ranks else f"Rank {os.environ['RANK']}"
        raise RanksError(
            f"{who} gets no answer from the others. One of them has ended, and says why in its own output, or hangs "
            f"longer than --timeout. Start all of them again with --resume. ({first_line(error)})"
        ) from error
