"""The processes of A3C: workers that share weights, and a parent that watches, writes and saves."""

from __future__ import annotations

import math
import queue
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

from understudy_simulator.processes import end_with_parent
from understudy_trainer.algorithms.a3c import A3C, A3CConfig, Shared
from understudy_trainer.checkpoint import load, of_the_same_run
from understudy_trainer.collector import Rollout
from understudy_trainer.environment import EnvironmentFactory
from understudy_trainer.launch import POLL_S, LostProcessError
from understudy_trainer.loop import (
    BaseTrainer,
    DivergedError,
    Evaluate,
    Listener,
    Outcome,
    Trainer,
    enough,
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


@dataclass(frozen=True)
class Told:
    """What a worker tells its parent.

    Attributes:
        rank: of the worker.
        steps: environment steps done by all.
        scalars: as a `Listener` gets them.
        failure: why the worker ended; None while it works.
        diverged: it ended in NaN.
    """

    rank: int
    steps: int
    scalars: dict[str, float]
    failure: str | None = None
    diverged: bool = False


class Worker(Trainer):
    """A trainer whose steps are those of all workers, and that ends when all are asked to."""

    shared: Shared
    stop: Any

    def count(self, rollout: Rollout) -> None:
        """See `Trainer`."""
        with self.shared.lock:
            self.shared.steps += rollout.action.numel()
            self.steps = int(self.shared.steps)
        if self.stop.is_set():
            self._request_stop()


@dataclass(frozen=True)
class Task:
    """What a worker is to do.

    Attributes:
        factory: of its environment.
        config: options.
        shared: what it has in common with the others.
        stop: is set when all are to end.
        quarantine: folder for rollouts that ended in NaN; None: they are not kept.
        begun: environment steps that were done before any worker of this run began.
    """

    factory: EnvironmentFactory
    config: TrainingConfig
    shared: Shared
    stop: Any
    quarantine: Path | None
    begun: int


def make_worker(rank: int, task: Task, listener: Listener) -> Worker:
    """One worker with everything that it needs."""
    config, shared, factory = task.config, task.shared, task.factory
    options = config.algorithm
    assert isinstance(options, A3CConfig)
    if task.begun:  # or a run that is resumed again and again would meet the same services every time
        config = replace(config, seed=seeds(config.seed, task.begun, 1)[0])
    environment = factory(environment_seed(config, rank))
    generator = torch.Generator(environment.device).manual_seed(seeds(config.seed, rank, 2)[0])
    model = make_model(environment, config)
    learner = A3C(model, options, shared, config.constraint, config.compiled)
    collector = make_collector(environment, model, config, generator)
    worker = Worker(collector, learner, config.run, listeners=(listener,))
    worker.shared, worker.stop, worker.steps = shared, task.stop, task.begun
    worker.quarantine = task.quarantine / f"worker-{rank}" if task.quarantine else None
    return worker


class AsynchronousTrainer(BaseTrainer):
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
            folder: for checkpoints, TensorBoard's scalars and rollouts that ended in NaN; None: nothing is written.
            listeners: get every worker's scalars.
            evaluate: see `Trainer`; this process judges, while the workers go on.
        """
        options = config.algorithm
        if not isinstance(options, A3CConfig):
            raise TypeError(f"algorithm is {type(options).__name__}; give A3CConfig, or use make_trainer")
        self.context = multiprocessing.get_context("spawn")
        model = make_model(factory(environment_seed(config, 0)), config)
        self.shared = Shared.of(model, options, self.context.RLock())
        self.parent = A3C(model, options, self.shared, config.constraint)
        super().__init__(self.parent, config.run, folder, listeners, evaluate)
        self.factory = factory
        self.training = config
        self.workers = options.workers
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
            LostProcessError: a worker failed; the others were ended.
        """
        self.parent.push()
        self.steps = int(self.shared.steps)
        news: Any = self.context.Queue()
        stop: Any = self.context.Event()
        task = Task(self.factory, self.training, self.shared, stop, self.quarantine, self.steps)
        self._workers = [
            self.context.Process(target=_work, args=(rank, task, news), daemon=True)
            for rank in range(self.workers)
        ]
        self._since, self._before = time.monotonic(), self.seconds
        with stopped_by_sigterm(stop.set), scalars_to(self.folder) as write:
            try:
                for worker in self._workers:
                    worker.start()
                self._follow(news, stop, (write, *self.listeners))
            finally:
                # Nobody learns on for a parent that gave up.
                begun = [worker for worker in self._workers if worker.pid]
                for worker in begun:
                    worker.kill()
                for worker in begun:
                    worker.join()
            self._pull()
            self.save()
        restores = round(sum(told["restores"] for told in self._lately.values()))
        interrupted = self.steps < self.config.total_steps
        return Outcome(self.steps, self.updates, interrupted, restores, self.episode_return(), self.seconds)

    def _follow(self, news: Any, stop: Any, listeners: tuple[Listener, ...]) -> None:
        """Hear what the workers tell until all of them are done."""
        while any(worker.is_alive() for worker in self._workers) or not news.empty():
            self._refuse_lost(stop.is_set())
            try:
                told: Told = news.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if told.failure:
                kind = DivergedError if told.diverged else LostProcessError
                raise kind(f"worker {told.rank} failed: {told.failure}")
            if enough(listeners, told.steps, self._heard(told)):
                stop.set()
        self._refuse_lost(stop.is_set())

    def _refuse_lost(self, stopping: bool = False) -> None:
        # SIGTERM that was meant for all may find one that does not know yet what to do about it.
        expected = {None, 0, *([-signal.SIGTERM] if stopping else [])}
        for worker in self._workers:
            if worker.exitcode not in expected:
                raise LostProcessError(
                    f"a worker ended with exit code {worker.exitcode}; what it said stands above, "
                    "so mend that, and go on with --resume"
                )

    def _pull(self) -> None:
        """Take the shared weights over, and how many steps they have learned from."""
        while not self.shared.lock.acquire(timeout=POLL_S):
            self._refuse_lost()  # killed while it held the lock
        try:
            self.parent.pull()
            self.steps = int(self.shared.steps)
        finally:
            self.shared.lock.release()
        self.seconds = self._before + time.monotonic() - self._since

    def _heard(self, told: Told) -> dict[str, float]:
        """Take note of what a worker told; the scalars as listeners get them."""
        self.updates += self.config.log_updates
        self._lately[told.rank] = told.scalars
        speed = sum(scalars["steps_per_second"] for scalars in self._lately.values())
        scalars = {
            **told.scalars,
            "episode_return": self.episode_return(),
            "steps_per_second": speed,
        }
        if self._is_due(self.config.evaluate_updates) and self.evaluate:
            self._pull()
            scalars |= self._keep_if_best(self.evaluate(self.learner.model))
        if self._is_due(self.config.checkpoint_updates):
            self._pull()
            self.save()
        return scalars

    def _is_due(self, every: int) -> bool:
        """Whether what is to be done after so many updates is to be done now; they come in lots."""
        return every > 0 and self.updates % every < self.config.log_updates

    def episode_return(self) -> float:
        """See `BaseTrainer`; the mean of all workers that could tell it."""
        returns = [told["episode_return"] for told in self._lately.values()]
        known = [value for value in returns if not math.isnan(value)]
        return sum(known) / len(known) if known else math.nan

    def state_dict(self) -> dict[str, Any]:
        """See `BaseTrainer`; what every worker keeps for itself begins anew."""
        return {
            "learner": self.learner.state_dict(),
            "steps": self.steps,
            "updates": self.updates,
            "seconds": self.seconds,
            "best": self.best,
        }


def _work(rank: int, task: Task, news: Any) -> None:
    # Ctrl-C reaches all of them, and so may SIGTERM: the parent knows what to do about it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
    torch.set_num_threads(1)
    try:
        make_worker(rank, task, lambda steps, scalars: news.put(Told(rank, steps, scalars))).run()
    except Exception as error:  # noqa: BLE001 - handed to the parent, which raises it
        diverged = isinstance(error, DivergedError)
        reason = str(error) if diverged else f"{type(error).__name__}: {error}"
        news.put(Told(rank, int(task.shared.steps), {}, reason, diverged))
