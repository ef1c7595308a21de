"""Several processes, one training: `torchrun --nproc-per-node 2 -m fer_train ...`.

Every process draws the same order and the same augmentation and takes its share of each batch, so that
the faces of a step are those of a single process. BatchNorm's statistics and the loss are taken over
the whole batch; only the dropout masks differ.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fer_runtime.errors import FerError

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those on its machine

    @property
    def is_writer(self) -> bool:
        """Whether this process writes files and talks to the user: exactly one does."""
        return self.rank == 0


ALONE = World()


@contextmanager
def joined_world(device: torch.device) -> Iterator[tuple[World, torch.device]]:
    """This process's place and device, as torchrun's environment variables say; alone without them.

    NCCL on CUDA, one device per local rank; gloo elsewhere.
    """
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield ALONE, device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        local_rank = int(os.environ["LOCAL_RANK"])
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), local_rank=local_rank), device
        # Nobody leaves while the writer still writes: the launcher would take that for a failure.
        dist.barrier()
    finally:
        dist.destroy_process_group()


def spread(network: nn.Module, world: World, device: torch.device) -> nn.Module:
    """`network` for one process of `world`: gradients averaged over all, BatchNorm over the whole batch."""
    if world.size == 1:
        return network
    if device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return nn.parallel.DistributedDataParallel(network, device_ids=[device.index])
    _replace_batch_norms(network)
    return nn.parallel.DistributedDataParallel(network)


def summed(values: Tensor, world: World) -> Tensor:
    """`values` added up over all processes."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def gathered(value: Result, world: World) -> list[Result]:
    """`value` of every process, by rank."""
    values: list[Any] = [value] * world.size
    if world.size > 1:
        dist.all_gather_object(values, value)
    return values


def from_writer(read: Callable[[], Result], world: World) -> Result:
    """What `read()` gives in the writer, in every process: other machines need not have the writer's files.

    Raises:
        FerError: the writer's, in every process, so that none waits for the others.
    """
    if world.size == 1:
        return read()
    outcome: list[Any] = [*_outcome(read)] if world.is_writer else [None, None]
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: Result = outcome[0]
    return result


def one_per_machine_first(fetch: Callable[[], Result], world: World) -> Result:
    """`fetch()` in one process of every machine, then in the others, who find in its caches what it downloaded.

    Raises:
        FerError: that of any process, in every process.
    """
    if world.size == 1:
        return fetch()
    is_first = world.local_rank == 0
    outcome: tuple[Any, FerError | None] = _outcome(fetch) if is_first else (None, None)
    for error in gathered(outcome[1], world):
        if error is not None:
            raise error
    result: Result = outcome[0] if is_first else fetch()
    return result


def _outcome(work: Callable[[], Any]) -> tuple[Any, FerError | None]:
    """The result, or the error in its stead."""
    try:
        return work(), None
    except FerError as error:
        return None, error


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over all processes' faces; nn.SyncBatchNorm does the same on CUDA only."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize float (batch, channels, height, width)."""
        if not self.training:
            return super().forward(input)
        channels = input.shape[1]
        # Under autocast the faces come in bfloat16, whose sums over a batch would have two digits.
        values = input.float()
        count = values.new_tensor([values.numel() / channels])
        local = torch.cat([values.sum((0, 2, 3)), (values * values).sum((0, 2, 3)), count])
        total: Tensor = _Sum.apply(local)  # type: ignore[no-untyped-call]
        number = total[-1]
        mean = total[:channels] / number
        variance = total[channels:-1] / number - mean * mean
        with torch.no_grad():
            if self.running_mean is not None and self.running_var is not None and self.momentum is not None:
                # The running variance is the unbiased one, as in nn.BatchNorm2d.
                unbiased = variance * (number / (number - 1))
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(unbiased, self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        shift = self.bias - mean * scale
        return (values * scale[:, None, None] + shift[:, None, None]).to(input.dtype)


class _Sum(torch.autograd.Function):
    """All-reduce whose gradient is the all-reduce of the gradients: every process's loss depends on every input."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _replace_batch_norms(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            # Only the forward differs: weights, buffers and their names stay as they are.
            part.__class__ = GlobalBatchNorm2d
