"""The processes of A3C: workers that share weights, and a parent that watches, writes and saves."""

from __future__ import annotations

import math
import queue
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

from understudy_simulator.processes import end_with_parent
from understudy_trainer.algorithms.a3c import A3C, A3CConfig, Shared
from understudy_trainer.checkpoint import Checkpoints, load, of_the_same_run
from understudy_trainer.collector import Rollout
from understudy_trainer.environment import EnvironmentFactory
from understudy_trainer.loop import (
    Evaluate,
    Listener,
    Outcome,
    StopRun,
    Trainer,
    scalars_to,
    stopped_by_sigterm,
)
from understudy_trainer.training import (
    TrainingConfig,
    environment_seed,
    make_collector,
    make_model,
    seeds,
)

POLL_S = 0.2
"""From one look at whether the workers live to the next."""


class LostWorkerError(RuntimeError):
    """A worker ended before its end; the message says how."""


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


class AsynchronousTrainer:
    """Trains one network by workers, and watches, judges and saves: for A3C what `Trainer` is for the others."""

    def __init__(
        self,
        factory: EnvironmentFactory,
        config: TrainingConfig,
        folder: Path | None = None,
        listeners: tuple[Listener, ...] = (),
        evaluate: Evaluate | None = None,
    ) -> None:
        """Put the parts together; nobody works yet.

        Args:
            factory: makes every worker's environment, on the processor.
            config: options, those of the algorithm being A3C's.
            folder: for checkpoints (by environment steps) and TensorBoard's scalars; None: nothing is written.
            listeners: get every worker's scalars.
            evaluate: see `Trainer`; this process judges, while the workers go on.
        """
        options = config.algorithm
        if not isinstance(options, A3CConfig):
            raise TypeError(f"algorithm is {type(options).__name__}; give A3CConfig, or use make_trainer")
        self.factory = factory
        self.config = config
        self.folder = folder
        self.listeners = listeners
        self.evaluate = evaluate
        self.checkpoints = Checkpoints.of_run(folder) if folder else None
        self.context = multiprocessing.get_context("spawn")
        model = make_model(factory(environment_seed(config, 0)), config)
        self.shared = Shared.of(model, options, self.context.Lock())
        self.learner = A3C(model, options, self.shared, config.constraint)
        self.workers = options.workers
        self.updates = 0
        self.seconds = 0.0
        self.best = -math.inf
        self._lately: dict[int, dict[str, float]] = {}

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint: weights, moments and steps. Not bit for bit: who writes first is nobody's to say.

        Raises:
            CheckpointError: it cannot be read, or is of a run that another network or algorithm was trained in.
        """
        content = load(path, torch.device("cpu"))
        with of_the_same_run(path):
            self.learner.load_state_dict(content["learner"])
            self.shared.steps.fill_(content["steps"])
            self.updates, self.seconds, self.best = (content[name] for name in ("updates", "seconds", "best"))

    def run(self) -> Outcome:
        """Learn until `total_steps`, SIGTERM or a listener's `StopRun`; then save and return.

        Raises:
            LostWorkerError: a worker failed; the others were ended.
        """
        self.learner.push()
        news: Any = self.context.Queue()
        stop: Any = self.context.Event()
        told = (self.factory, self.config, self.shared, news, stop)
        workers = [
            self.context.Process(target=_work, args=(rank, *told), daemon=True)
            for rank in range(self.workers)
        ]
        self._since, self._before = time.monotonic(), self.seconds
        with stopped_by_sigterm(stop.set), scalars_to(self.folder) as write:
            try:
                for worker in workers:
                    worker.start()
                self._follow(workers, news, stop, (write, *self.listeners))
            finally:
                # Nobody learns on for a parent that gave up.
                for worker in workers:
                    worker.kill()
                    worker.join()
            self.learner.pull()
            self._save()
        steps = int(self.shared.steps)
        interrupted = stop.is_set() and steps < self.config.run.total_steps
        return Outcome(steps, self.updates, interrupted, 0, self._mean("episode_return"), self.seconds)

    def _follow(self, workers: Sequence[Any], news: Any, stop: Any, listeners: tuple[Listener, ...]) -> None:
        """Hear what the workers tell until all of them are done."""
        while any(worker.is_alive() for worker in workers) or not news.empty():
            if killed := [worker.exitcode for worker in workers if worker.exitcode]:
                raise LostWorkerError(f"a worker ended with exit code {killed[0]}; what it said stands above")
            try:
                told: Told = news.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if told.failure:
                raise LostWorkerError(f"worker {told.rank} failed: {told.failure}")
            scalars = self._heard(told)
            for listener in listeners:
                try:
                    listener(told.steps, scalars)
                except StopRun:
                    stop.set()

    def _heard(self, told: Told) -> dict[str, float]:
        """Take note of what a worker told; the scalars as listeners get them."""
        run = self.config.run
        self.updates += run.log_updates
        self._lately[told.rank] = told.scalars
        speed = sum(scalars["steps_per_second"] for scalars in self._lately.values())
        scalars = {
            **told.scalars,
            "episode_return": self._mean("episode_return"),
            "steps_per_second": speed,
        }
        if self._is_due(run.evaluate_updates) and self.evaluate:
            self.learner.pull()
            judged = self.evaluate(self.learner.model)
            scalars |= {f"evaluation/{name}": value for name, value in judged.items()}
            if self._improves(judged["score"]):
                self._write(is_best=True)
        if self._is_due(run.checkpoint_updates):
            self.learner.pull()
            self._save()
        return scalars

    def _is_due(self, every: int) -> bool:
        """Whether what is to be done after so many updates is to be done now; they come in lots."""
        return every > 0 and self.updates % every < self.config.run.log_updates

    def _mean(self, name: str) -> float:
        """Of all workers that could tell it."""
        known = [told[name] for told in self._lately.values() if not math.isnan(told[name])]
        return sum(known) / len(known) if known else math.nan

    def _save(self) -> None:
        judged = self.config.run.evaluate_updates > 0
        self._write(is_best=not judged and self._improves(self._mean("episode_return")))

    def _write(self, is_best: bool) -> None:
        self.seconds = self._before + time.monotonic() - self._since
        if self.checkpoints:
            steps = int(self.shared.steps)
            content = {
                "learner": self.learner.state_dict(),
                "steps": steps,
                "updates": self.updates,
                "seconds": self.seconds,
                "best": self.best,
            }
            self.checkpoints.write(content, steps, is_best)

    def _improves(self, score: float) -> bool:
        improved = score > self.best
        self.best = score if improved else self.best
        return improved


def _work(
    rank: int, factory: EnvironmentFactory, config: TrainingConfig, shared: Shared, told: Any, stop: Any
) -> None:
    # Ctrl-C reaches all of them, and the parent ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
