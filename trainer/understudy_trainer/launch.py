"""One command, several processes of this machine that learn together: the one that was started, and others."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from typing import TypeVar

import torch
from rich.console import Console
from torch import multiprocessing

from understudy_trainer import distributed
from understudy_trainer.distributed import Seat
from understudy_trainer.options import OptionsError

T = TypeVar("T")

Errors = tuple[type[Exception], ...]


def seats(processes: int) -> list[Seat]:
    """Places for that many processes of this machine, which meet at a port that is free now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    return [Seat(rank, processes, port) for rank in range(processes)]


def together(
    processes: int, device: str, learn: Callable[..., T], console: Console, expected: Errors = ()
) -> T:
    """Learn in several processes; this one is the first, and what it makes of it is returned.

    Args:
        processes: how many; 1: this one alone, or as one of those that torchrun started.
        device: see `distributed.joined`.
        learn: what each of them does, told where to talk as `console`; it is pickled.
        console: of the first process; the others are quiet.
        expected: errors that come up in all of them, and that the first one tells.

    Raises:
        OptionsError: others were asked for where torchrun started them already.
    """
    if processes == 1:
        with distributed.joined(device):
            return learn(console=console)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionsError(
            f"--processes is {processes}, but this is already one of {os.environ['WORLD_SIZE']} that torchrun started; "
            "leave it out"
        )
    first, *others = seats(processes)
    spawn = multiprocessing.get_context("spawn")
    threads = torch.get_num_threads()
    peers = [
        spawn.Process(target=_follow, args=(seat, device, threads, learn, expected), daemon=True)
        for seat in others
    ]
    for peer in peers:
        peer.start()
    try:
        with distributed.joined(device, first):
            try:
                return learn(console=console)
            except BaseException:
                # What they would still say is that the first one is gone.
                for peer in peers:
                    peer.kill()
                raise
    finally:
        for peer in peers:
            peer.join()


def _follow(seat: Seat, device: str, threads: int, learn: Callable[..., T], expected: Errors) -> None:
    """What a process does that is not the first."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all of them, and the first one ends the others
    torch.set_num_threads(threads)
    try:
        with distributed.joined(device, seat):
            learn(console=Console(quiet=True))
    except expected:
        return
