"""One command, several processes of this machine that learn together: the one that was started, and others."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import torch
from rich.console import Console
from torch import multiprocessing

from understudy_simulator.processes import end_with_parent
from understudy_trainer import distributed
from understudy_trainer.distributed import Seat
from understudy_trainer.loop import stopped_by_sigterm
from understudy_trainer.options import OptionsError

T = TypeVar("T")

Errors = tuple[type[Exception], ...]

POLL_S = 0.2
"""From one look at whether the others live to the next."""

LAST_WORDS_S = 2.0
"""Time that a process has to end after the first one noticed that it is gone."""


class LostProcessError(RuntimeError):
    """One of the processes that learn together ended before the others."""


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
        OptionsError: there cannot be so many.
        LostProcessError: another process ended early; it has said why.
    """
    if processes == 1:
        with stopped_by_sigterm(_leave), distributed.joined(device):
            return learn(console=console)
    if distributed.started() > 1:
        raise OptionsError(
            f"--processes is {processes}, but this is already one of {distributed.started()} that torchrun started; "
            "leave it out"
        )
    if device == "cuda" and processes > torch.cuda.device_count():
        raise OptionsError(
            f"--processes is {processes}, but torch finds {torch.cuda.device_count()} GPUs, and each takes one; "
            "give fewer"
        )
    first, *others = seats(processes)
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Semaphore(0)
    told = (device, torch.get_num_threads(), learn, expected, ready)
    peers = [spawn.Process(target=_follow, args=(seat, *told), daemon=True) for seat in others]
    with stopped_by_sigterm(_leave):
        for peer in peers:
            peer.start()
        try:
            for _ in peers:
                while not ready.acquire(timeout=POLL_S):
                    _refuse_lost(peers)
            with distributed.joined(device, first):
                return learn(console=console)
        except expected:
            raise
        except Exception:
            # Another's end shows as a broken connection: its own reason is the one to tell.
            for peer in peers:
                peer.join(LAST_WORDS_S)
            _refuse_lost(peers)
            raise
        finally:
            # Whatever they would still say or do is of no use once the first one is done.
            for peer in peers:
                peer.kill()
            for peer in peers:
                peer.join()


def _follow(
    seat: Seat, device: str, threads: int, learn: Callable[..., T], expected: Errors, ready: Any
) -> None:
    """What a process does that is not the first."""
    # Ctrl-C reaches all of them, and the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    torch.set_num_threads(threads)
    # Whoever waits at the meeting hears nothing for half an hour: so nobody goes there before all can.
    ready.release()
    try:
        with distributed.joined(device, seat):
            learn(console=Console(quiet=True))
    except expected:
        return


def _refuse_lost(peers: Sequence[Any]) -> None:
    for number, peer in enumerate(peers, 2):
        if peer.exitcode:
            raise LostProcessError(
                f"process {number} of {len(peers) + 1} ended with exit code {peer.exitcode} before the first; "
                "what it said stands above, so mend that and begin anew"
            )


def _leave() -> NoReturn:
    """By an exception, so that nobody is left behind; a `Trainer` that runs knows better."""
    raise SystemExit(128 + signal.SIGTERM)
