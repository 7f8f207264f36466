"""One learner in several processes, where torchrun (or whoever sets its variables) starts them.

Every process has a world of its own and the same learner. What the learners learn from, gradients and statistics, is
averaged before it is used, so each of them takes the same step as one that had all rows: they are equal after every
update, and what a checkpoint says of one holds for all. Started alone, nothing here does anything.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@contextmanager
def joined(device: str = "cpu") -> Iterator[None]:
    """While inside, this is one of `WORLD_SIZE` processes that reach each other by `MASTER_ADDR` and `MASTER_PORT`.

    Args:
        device: `cpu` or `cuda`; each process of a machine then has a GPU of its own, by `LOCAL_RANK`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # Gloo beside NCCL: flags of the host, and checkpoints, never pass through the device.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
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
