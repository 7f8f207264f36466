"""The processes of A3C: workers that share weights, and a parent that watches, writes and saves."""

from __future__ import annotations

import math
import queue
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

from understudy_simulator.processes import end_with_parent
from understudy_trainer.actor_critic import ActorCritic
from understudy_trainer.algorithms.a3c import A3C, A3CConfig, Shared
from understudy_trainer.checkpoint import Checkpoints, load
from understudy_trainer.collector import Rollout
from understudy_trainer.environment import EnvironmentFactory
from understudy_trainer.loop import Listener, Outcome, StopRun, Trainer, scalars_to, stopped_by_sigterm
from understudy_trainer.training import (
    TrainingConfig,
    environment_seed,
    make_collector,
    make_model,
    seeds,
)


@dataclass(frozen=True)
class Told:
    """What a worker tells its parent.

    Attributes:
        rank: of the worker.
        steps: environment steps done by all.
        scalars: as a `Listener` gets them.
        failure: why the worker ended; None while it works.
    """

    rank: int
    steps: int
    scalars: dict[str, float]
    failure: str | None = None


class Worker(Trainer):
    """A trainer whose steps are those of all workers."""

    shared: Shared

    def count(self, rollout: Rollout) -> None:
        """See `Trainer`."""
        with self.shared.lock:
            self.shared.steps += rollout.action.numel()
            self.steps = int(self.shared.steps)


def make_worker(
    rank: int, factory: EnvironmentFactory, config: TrainingConfig, shared: Shared, **parts: Any
) -> Worker:
    """One worker with everything that it needs; `parts` as in `make_trainer`."""
    assert isinstance(config.algorithm, A3CConfig)
    environment = factory(environment_seed(config, rank))
    generator = torch.Generator(environment.device).manual_seed(seeds(config.seed, rank, 2)[0])
    model = make_model(environment, config)
    learner = A3C(model, config.algorithm, shared, config.constraint, config.compiled)
    collector = make_collector(environment, model, config, generator)
    worker = Worker(collector, learner, config.run, **parts)
    worker.shared = shared
    return worker


def train_asynchronously(
    factory: EnvironmentFactory,
    config: TrainingConfig,
    folder: Path | None = None,
    listeners: tuple[Listener, ...] = (),
    resume: Path | None = None,
) -> tuple[Outcome, ActorCritic]:
    """Learn with A3C.

    Args:
        factory: makes every worker's environment, on the processor.
        config: options, those of the algorithm being A3C's.
        folder: for checkpoints (by environment steps) and TensorBoard's scalars; None: nothing is written.
        listeners: get every worker's scalars; may raise `StopRun`.
        resume: checkpoint to go on from: weights, moments and steps. Not bit for bit: the order in which workers write
            is nobody's to say.

    Returns:
        How it ended, and the network.

    Raises:
        RuntimeError: a worker failed; the others were stopped.
    """
    options = config.algorithm
    if not isinstance(options, A3CConfig):
        raise TypeError(f"algorithm is {type(options).__name__}; give A3CConfig, or use make_trainer")
    context = multiprocessing.get_context("spawn")
    model = make_model(factory(environment_seed(config, 0)), config)
    shared = Shared.of(model, options, context.Lock())
    parent = A3C(model, options, shared, config.constraint)
    if resume:
        _restore(parent, shared, load(resume, torch.device("cpu")))
    told: Any = context.Queue()
    stop: Any = context.Event()
    workers = [
        context.Process(target=_work, args=(rank, factory, config, shared, told, stop), daemon=True)
        for rank in range(options.workers)
    ]
    start, updates, failure = time.monotonic(), 0, None
    returns: dict[int, float] = {}
    checkpoints = Checkpoints.of_run(folder) if folder else None
    best = -math.inf

    def mean_return() -> float:
        known = [value for value in returns.values() if not math.isnan(value)]
        return sum(known) / len(known) if known else math.nan

    def save() -> None:
        nonlocal best
        if checkpoints:
            parent.pull()
            improved = mean_return() > best
            best = max(best, mean_return()) if improved else best
            content = {"learner": parent.state_dict(), "steps": int(shared.steps)}
            checkpoints.write(content, int(shared.steps), improved)

    def stop_if_one_was_killed() -> None:
        nonlocal failure
        killed = [worker.exitcode for worker in workers if worker.exitcode]
        if killed:
            failure = failure or f"a worker ended with exit code {killed[0]}"
            stop.set()

    with stopped_by_sigterm(stop.set), scalars_to(folder) as write:
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers) or not told.empty():
            stop_if_one_was_killed()
            try:
                news: Told = told.get(timeout=0.2)
            except queue.Empty:
                continue
            if news.failure:
                failure = failure or f"worker {news.rank} failed: {news.failure}"
                stop.set()
                continue
            updates += config.run.log_updates
            returns[news.rank] = news.scalars["episode_return"]
            for listener in (write, *listeners):
                try:
                    listener(news.steps, news.scalars | {"episode_return": mean_return()})
                except StopRun:
                    stop.set()
            if updates % config.run.checkpoint_updates < config.run.log_updates:
                save()
        for worker in workers:
            worker.join()
        stop_if_one_was_killed()
        save()
    if failure:
        raise RuntimeError(failure)
    parent.pull()
    steps = int(shared.steps)
    outcome = Outcome(steps, updates, stop.is_set(), 0, mean_return(), time.monotonic() - start)
    return outcome, model


def _work(
    rank: int, factory: EnvironmentFactory, config: TrainingConfig, shared: Shared, told: Any, stop: Any
) -> None:
    end_with_parent()
    torch.set_num_threads(1)

    def listen(steps: int, scalars: dict[str, float]) -> None:
        told.put(Told(rank, steps, scalars))
        if stop.is_set():
            raise StopRun

    try:
        make_worker(rank, factory, config, shared, listeners=(listen,)).run()
    except Exception as error:  # noqa: BLE001 - handed to the parent, which raises it
        told.put(Told(rank, int(shared.steps), {}, f"{type(error).__name__}: {error}"))


def _restore(parent: A3C, shared: Shared, content: dict[str, Any]) -> None:
    state = content["learner"]
    parent.model.load_state_dict(state["model"])
    shared.parameters.copy_(parent.parameters.flat)
    for name, tensor in shared.optimizer.items():
        tensor.copy_(state["optimizer"][name])
    for name, tensor in parent.model.normalizer.state_dict().items():
        shared.normalizer[name].copy_(tensor)
    shared.steps.fill_(content["steps"])
