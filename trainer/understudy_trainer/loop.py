"""The loop: collect, learn, look whether all is sane, note, save; the same for every algorithm and world.

A run can be stopped at any update and goes on bit for bit as if it had not been (on a processor): weights, moments of
the optimiser, generators, running episodes and statistics are all in the checkpoint.
"""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from pydantic import Field
from pydantic import dataclasses as checked

from understudy_trainer import config as command_line
from understudy_trainer import distributed
from understudy_trainer.actor_critic import ActorCritic
from understudy_trainer.algorithms.learner import Learner
from understudy_trainer.checkpoint import CheckpointError, Checkpoints, load, of_the_same_run, save
from understudy_trainer.collector import Collector, Rollout

EPISODES = 100
"""Episodes that the return of a run is averaged over."""

RESTORES = 5
"""Times in a row that the last good weights are brought back before the run is given up."""

Listener = Callable[[int, dict[str, float]], None]
"""Gets the environment steps done and the scalars of an update."""

Evaluate = Callable[[ActorCritic], dict[str, float]]
"""Judges a network; more `score` is better."""


class DivergedError(RuntimeError):
    """Learning produced NaN again and again; the message says where to look."""


class InterruptedRunError(RuntimeError):
    """The run was stopped before its end."""


@checked.dataclass(frozen=True, config=command_line.DOCUMENTED)
class RunConfig:
    """How long to learn, and what to keep."""

    total_steps: int = Field(default=1_000_000, ge=1)
    """Environment steps, over all rows, to learn from."""
    checkpoint_updates: int = Field(default=200, ge=1)
    """Updates from one checkpoint to the next."""
    snapshot_updates: int = Field(default=20, ge=1)
    """Updates from one set of weights that NaN can be undone with to the next, kept in memory."""
    log_updates: int = Field(default=10, ge=1)
    """Updates from one line of figures to the next; each is the mean since the last."""
    evaluate_updates: int = Field(default=0, ge=0)
    """Updates from one evaluation to the next; 0: none. With evaluations, the best by `score` is `best.pt`."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        steps: environment steps done.
        updates: done.
        interrupted: it was stopped by SIGTERM or a listener before its end.
        restores: times that NaN was undone.
        episode_return: raw mean return of the last hundred episodes; NaN if none ended.
        seconds: of this process, with those before the checkpoint that it resumed from.
    """

    steps: int
    updates: int
    interrupted: bool
    restores: int
    episode_return: float
    seconds: float


class StopRun(Exception):  # noqa: N818 - not an error
    """Raised by a listener that has seen enough: the run ends after this update as if interrupted."""


class BaseTrainer(ABC):
    """What every trainer has, whoever does the work: where a run is kept, whom it tells, and how good its best was."""

    def __init__(
        self,
        learner: Learner,
        config: RunConfig,
        folder: Path | None = None,
        listeners: tuple[Listener, ...] = (),
        evaluate: Evaluate | None = None,
    ) -> None:
        """Begin a run.

        Args:
            learner: the algorithm.
            config: of the run.
            folder: for checkpoints, TensorBoard's scalars and quarantined rollouts; None: nothing is written.
            listeners: get the scalars whenever they are noted.
            evaluate: judges the network; its `score` (more is better) chooses `best.pt`.
        """
        self.learner = learner
        self.config = config
        self.folder = folder
        self.listeners = listeners
        self.evaluate = evaluate
        self.checkpoints = Checkpoints.of_run(folder) if folder else None
        self.quarantine = folder / "quarantine" if folder else None
        self.steps = 0
        self.updates = 0
        self.seconds = 0.0
        self.best = -math.inf

    @abstractmethod
    def run(self) -> Outcome:
        """Learn until `total_steps`, or until SIGTERM; then save and return."""

    @abstractmethod
    def resume(self, path: Path) -> None:
        """Go on from a checkpoint."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""

    @abstractmethod
    def episode_return(self) -> float:
        """Raw mean return of the last episodes; NaN if none ended yet."""

    def save(self) -> None:
        """Write a checkpoint; it is the best where its score, or else its return, is the highest so far."""
        self._write(not self.config.evaluate_updates and self._improves(self.episode_return()))

    def _keep_if_best(self, judged: dict[str, float]) -> dict[str, float]:
        """Write what was judged, if nothing was better; the scalars of it."""
        if self._improves(judged["score"]):
            self._write(is_best=True)
        return {f"evaluation/{name}": value for name, value in judged.items()}

    def _improves(self, score: float) -> bool:
        improved = score > self.best
        if improved:
            self.best = score
        return improved

    def _write(self, is_best: bool) -> None:
        content = self.state_dict()
        if self.checkpoints:
            self.checkpoints.write(content, self.updates, is_best)


def enough(listeners: Iterable[Listener], steps: int, scalars: dict[str, float]) -> bool:
    """Tell listeners; whether one of them has seen enough."""
    stop = False
    for listener in listeners:
        try:
            listener(steps, scalars)
        except StopRun:
            stop = True
    return stop


class Trainer(BaseTrainer):
    """Trains one network in one world."""

    def __init__(
        self,
        collector: Collector,
        learner: Learner,
        config: RunConfig,
        folder: Path | None = None,
        listeners: tuple[Listener, ...] = (),
        evaluate: Evaluate | None = None,
    ) -> None:
        """Put the parts together: a collector that acts with the learner's network; the rest as in `BaseTrainer`."""
        super().__init__(learner, config, folder, listeners, evaluate)
        self.collector = collector
        self.restores = 0
        self.returns: deque[float] = deque(maxlen=EPISODES)
        self.lengths: deque[float] = deque(maxlen=EPISODES)
        self._restores_in_a_row = 0
        self._good: dict[str, Any] | None = None
        self._stop = False

    def run(self) -> Outcome:
        """Learn until `total_steps`, or until SIGTERM; then save and return.

        Raises:
            DivergedError: NaN came back whatever was restored.
        """
        with stopped_by_sigterm(self._request_stop), scalars_to(self.folder) as write:
            start = before = time.monotonic()
            noted: list[dict[str, float]] = []
            distributed.follow_first(self.learner.parameters.flat)
            if self.steps == 0:
                self.warm_up()
            stopped = False
            while self.steps < self.config.total_steps and not stopped:
                noted.append(self.iterate())
                now = time.monotonic()
                self.seconds += now - before
                before = now
                evaluation = self._evaluate_if_due()
                if evaluation or self.updates % self.config.log_updates == 0:
                    scalars = self._summary(noted, now - start) | evaluation
                    noted, start = [], now
                    if enough((write, *self.listeners), self.steps, scalars):
                        self._stop = True
                if self.updates % self.config.checkpoint_updates == 0:
                    self.save()
                stopped = distributed.any_process(self._stop)
            self.save()
        # Whoever is done was not interrupted, whenever somebody asked.
        interrupted = stopped and self.steps < self.config.total_steps
        return Outcome(
            self.steps, self.updates, interrupted, self.restores, self.episode_return(), self.seconds
        )

    def warm_up(self) -> None:
        """Let the normaliser see one rollout of the untrained network before anything is learnt.

        Its steps count. Without it the first update would learn from observations that are all muted.
        """
        rollout = self.collector.collect()
        self.count(rollout)
        self.learner.observe(rollout)

    def iterate(self) -> dict[str, float]:
        """One rollout and one update; the scalars of it. Where it ended in NaN, it is undone and `{}` returned."""
        if self._good is None or self.learner.updates % self.config.snapshot_updates == 0:
            self._good = copy.deepcopy(self._learned())
        rollout = self.collector.collect()
        self.count(rollout)
        self.updates += 1
        progress = min(1.0, self.steps / self.config.total_steps)
        metrics = self.learner.update(rollout, progress)
        metrics["reward_mean"] = rollout.raw_reward.mean()
        metrics["reward_deviation"] = rollout.raw_reward.std(unbiased=False)
        # The one wait for the device in an update, that for the episodes that ended apart.
        names = list(metrics)
        told = torch.stack([metrics[name].float() for name in names] + [self.learner.parameters.flat.sum()])
        values = distributed.averaged(told).tolist()
        if not all(map(math.isfinite, values)):
            self._quarantine(rollout)
            return {}
        self._restores_in_a_row = 0
        self.learner.observe(rollout)
        ended = rollout.ended
        self.returns.extend(rollout.episode_return[ended].tolist())
        self.lengths.extend(rollout.episode_steps[ended].tolist())
        return dict(zip(names, values[:-1], strict=True))

    def episode_return(self) -> float:
        """Raw mean return of the last hundred episodes; NaN if none ended yet."""
        return sum(self.returns) / len(self.returns) if self.returns else math.nan

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: it cannot be read, or is of a run that another network or algorithm was trained in.
        """
        with of_the_same_run(path):
            self.load_state_dict(load(path, self.learner.parameters.flat.device))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on; in the first of several processes that of all."""
        collector, *peers = distributed.gathered(self.collector.state_dict())
        return {
            "learner": self.learner.state_dict(),
            "collector": collector,
            "peers": peers,
            "steps": self.steps,
            "updates": self.updates,
            "restores": self.restores,
            "seconds": self.seconds,
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "best": self.best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            CheckpointError: another number of processes wrote it.
        """
        collectors = [state["collector"], *state.get("peers", [])]
        if len(collectors) != distributed.size():
            raise CheckpointError(
                f"the checkpoint holds the episodes of {len(collectors)} processes and {distributed.size()} "
                f"would go on with them; start {len(collectors)} (--processes, or torchrun)"
            )
        self.learner.load_state_dict(state["learner"])
        self.collector.load_state_dict(collectors[distributed.rank()])
        for name in ("steps", "updates", "restores", "seconds", "best"):
            setattr(self, name, state[name])
        self.returns.extend(state["returns"])
        self.lengths.extend(state["lengths"])

    def count(self, rollout: Rollout) -> None:
        """Add a rollout's environment steps, and as many for every other process."""
        self.steps += rollout.action.numel() * distributed.size()

    def _learned(self) -> dict[str, Any]:
        return {"learner": self.learner.state_dict(), "scaler": self.collector.scaler.state_dict()}

    def _quarantine(self, rollout: Rollout) -> None:
        """Put the rollout aside, bring back the last good weights and begin new episodes."""
        self.restores += 1
        self._restores_in_a_row += 1
        where = "pass a folder to have it kept"
        if self.quarantine:
            path = self.quarantine / f"update-{self.updates:09d}.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path, {"rollout": rollout.tensors()})
            where = f"see {path}"
        sick = [name for name, tensor in rollout.tensors().items() if not bool(torch.isfinite(tensor).all())]
        source = f"the rollout's {', '.join(sick)} held it" if sick else "it arose in the update itself"
        if self._restores_in_a_row > RESTORES:
            raise DivergedError(
                f"NaN in {self._restores_in_a_row} updates in a row, lately at update {self.updates}: {source} "
                f"({where}); lower learning_rate {self.learner.base_config.learning_rate} or mend the environment"
            )
        assert self._good is not None
        self.learner.undo(self._good["learner"])
        self.collector.scaler.load_state_dict(self._good["scaler"])
        self.collector.restart()

    def _evaluate_if_due(self) -> dict[str, float]:
        every = self.config.evaluate_updates
        if self.evaluate is None or not every or self.updates % every:
            return {}
        evaluate = self.evaluate
        return self._keep_if_best(distributed.from_first(lambda: evaluate(self.learner.model)))

    def _summary(self, noted: list[dict[str, float]], seconds: float) -> dict[str, float]:
        told: dict[str, list[float]] = {}
        for scalars in noted:
            for name, value in scalars.items():
                told.setdefault(name, []).append(value)
        means = {name: sum(values) / len(values) for name, values in told.items()}
        rows = self.collector.environment.num_envs * self.collector.steps * distributed.size()
        episodes = {
            "episode_return": self.episode_return(),
            "episode_return_least": min(self.returns, default=math.nan),
            "episode_return_most": max(self.returns, default=math.nan),
            "episodes_averaged": float(len(self.returns)),
            "episode_steps": sum(self.lengths) / len(self.lengths) if self.lengths else math.nan,
        }
        return means | episodes | {
            "steps_per_second": rows * len(noted) / max(seconds, 1e-9),
            "restores": float(self.restores),
        }  # fmt: skip

    def _request_stop(self) -> None:
        self._stop = True


@contextmanager
def scalars_to(folder: Path | None) -> Iterator[Listener]:
    """A listener that writes scalars where TensorBoard finds them; without a folder it does nothing."""
    if folder is None:
        yield lambda _steps, _scalars: None
        return
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))  # type: ignore[no-untyped-call]

    def write(steps: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            writer.add_scalar(name, value, steps)  # type: ignore[no-untyped-call]

    try:
        yield write
    finally:
        writer.close()  # type: ignore[no-untyped-call]


@contextmanager
def stopped_by_sigterm(stop: Callable[[], None]) -> Iterator[None]:
    """While inside, SIGTERM asks to stop instead of ending the process; only the main thread can arrange that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
