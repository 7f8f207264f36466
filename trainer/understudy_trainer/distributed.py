"""One learner in several processes, which torchrun (or whoever sets its variables) or `launch` starts.

Every process has a world of its own and the same learner. What the learners learn from, gradients and statistics, is
averaged before it is used, so each of them takes the same step as one that had all rows: they are equal after every
update, and what a checkpoint says of one holds for all. Started alone, nothing here does anything.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Seat:
    """The place of one of several processes of this machine.

    Attributes:
        rank: which of them; 0 is the first.
        processes: how many there are.
        port: where they meet.
    """

    rank: int
    processes: int
    port: int


def started() -> int:
    """Processes that torchrun, or whoever sets its variables, started to learn together; 1: this one alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined(device: str = "cpu", seat: Seat | None = None) -> Iterator[None]:
    """While inside, this is one of several processes that reach each other.

    Args:
        device: `cpu` or `cuda`; each process of a machine then has a GPU of its own, by its rank there.
        seat: None: as `WORLD_SIZE`, `RANK`, `LOCAL_RANK`, `MASTER_ADDR` and `MASTER_PORT` say; where they say
            nothing, this process is alone.
    """
    if seat is None and started() == 1:
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(seat.rank if seat else int(os.environ.get("LOCAL_RANK", "0")))
    # Gloo beside NCCL: flags of the host, and checkpoints, never pass through the device.
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    if seat:
        meeting = f"tcp://127.0.0.1:{seat.port}"
        dist.init_process_group(backend, meeting, rank=seat.rank, world_size=seat.processes)
    else:
        dist.init_process_group(backend)
    try:
        yield
    finally:
        dist.destroy_process_group()


def size() -> int:
    """Processes that learn together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 is the one that writes and talks."""
    return dist.get_rank() if dist.is_initialized() else 0


def total(tensor: Tensor) -> Tensor:
    """The sum over all processes."""
    if size() == 1:
        return tensor
    summed = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(summed)
    return summed


def averaged(tensor: Tensor) -> Tensor:
    """The mean over all processes."""
    return tensor if size() == 1 else total(tensor).div_(size())


def averaged_each(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The means of several tensors of one kind, in one exchange."""
    if size() == 1:
        return tensors
    flat = averaged(torch.cat([tensor.flatten() for tensor in tensors]))
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance `[…]` of the rows `[B, …]` of all processes, which have equally many."""
    own = rows.mean(dim=0)
    mean = averaged(own)
    return mean, averaged(rows.var(dim=0, unbiased=False) + (own - mean) ** 2)


def follow_first(tensor: Tensor) -> None:
    """Copy the first process's values in."""
    if size() > 1:
        dist.broadcast(tensor, 0)


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes of it, for all; the others wait."""
    if size() == 1:
        return make()
    told: list[Any] = [make() if rank() == 0 else None]
    dist.broadcast_object_list(told, 0, device=torch.device("cpu"))
    made: T = told[0]
    return made


def any_process(flag: bool) -> bool:
    """Whether it is true in one of the processes."""
    return flag if size() == 1 else bool(total(torch.tensor([float(flag)]))[0])


def gathered(state: dict[str, Any]) -> list[dict[str, Any]]:
    """In the first process the states of all, by rank; in the others their own alone."""
    if size() == 1:
        return [state]
    packed = io.BytesIO()
    torch.save(state, packed)
    # By way of bytes: a tensor that lives on another process's device is nothing that this one could open.
    all_packed: list[Any] | None = [None] * size() if rank() == 0 else None
    dist.gather_object(packed.getvalue(), all_packed)
    if all_packed is None:
        return [state]
    return [torch.load(io.BytesIO(one), map_location="cpu", weights_only=True) for one in all_packed]
