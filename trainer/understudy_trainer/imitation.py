"""The actor that ships until reinforcement learning has made a better one: it imitates a calibrated rule.

On generated workloads every row of the action table is replayed on the same arrivals, which tells what each would have
cost in hindsight. The network learns to name the cheap rows from what can be seen at the time. States are visited under
random rows first and under the network's own choices later (DAgger), so that it knows where its choices lead. It cannot
beat its teacher, the best constant row in hindsight; it can come closer to it than any one row does for all.

    python -m understudy_trainer.imitation --out imitation.onnx --seed 0
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from pydantic import dataclasses as checked
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from understudy_policy import actions, features
from understudy_trainer import config as command_line
from understudy_trainer import export, rollout, workloads
from understudy_trainer.networks import Actor
from understudy_trainer.rollout import Result
from understudy_trainer.workloads import Floats, Workloads

A = len(actions.TABLE)
USUAL_ROW = actions.TABLE.index(actions.Row(20, 0.66))
"""What many would set by hand: the maximum of five minutes at 66 %."""

REGRET_LIMIT = 3.0
"""Four times the best row's cost is as bad as it gets: the few that are far worse must not drown the others."""

_NAMES = [name for name, _ in features.SCHEMA]
PRICE_COLUMN, SLO_COLUMN = _NAMES.index("log_price"), _NAMES.index("slo_nines")


@checked.dataclass(frozen=True, config=command_line.DOCUMENTED)
class ImitationConfig:
    """How to imitate."""

    seed: int = Field(default=0, ge=0)
    """Seed of all draws: the same seed gives the same actor."""
    workloads: int = Field(default=1200, ge=16)
    """Generated workloads to learn from."""
    held_out: int = Field(default=400, ge=16)
    """Generated workloads to measure on."""
    ticks: int = Field(default=960, ge=8)
    """Length of every workload's episode in ticks of 15 s."""
    rounds: int = Field(default=3, ge=1)
    """Rounds of visiting states and learning; from the second on, half of the workloads are scaled by the network."""
    updates: int = Field(default=4500, ge=1)
    """Gradient steps, spread evenly over the rounds."""
    batch: int = Field(default=4096, ge=1)
    """Observations in one gradient step."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Of Adam at the start of a round; it falls to nothing along a cosine."""
    temperature: float = Field(default=0.05, gt=0)
    """Regret (share of the best row's cost beyond it) at which a row's weight in the target falls to 1/e."""
    regret_weight: float = Field(default=10.0, ge=0)
    """Weight of the expected regret in the loss: against rows that are cheap for most and ruinous for a few."""


@dataclass(frozen=True)
class Lesson:
    """States that were visited, and what every row costs on the workload that each belongs to.

    Attributes:
        observations: `[M, F]`.
        workload: `[M]` index into the sweep.
        swept: cost and violation of every row, `[N, A]` each.
    """

    observations: Floats
    workload: NDArray[np.int64]
    swept: Result


def regret_of(adjusted: Floats) -> Floats:
    """Share of the best row's adjusted cost that every row costs beyond it, `[M, A]`."""
    regret: Floats = adjusted / adjusted.min(axis=1, keepdims=True) - 1.0
    return regret


def loss_of(logits: Tensor, regret: Tensor, temperature: float, regret_weight: float) -> Tensor:
    """Cross-entropy to soft targets plus the regret to be expected.

    The targets fall with a row's regret, so that near-equal rows are near-equally right.

    Args:
        logits, regret: `[M, A]`.
        temperature: regret at which the weight in the target falls to 1/e.
        regret_weight: of the expected regret.
    """
    target = torch.softmax(-regret / temperature, dim=1)
    expected = (torch.softmax(logits, dim=1) * regret.clamp(max=REGRET_LIMIT)).sum(dim=1).mean()
    return torch.nn.functional.cross_entropy(logits, target) + regret_weight * expected


def visit(
    world: Workloads, best: NDArray[np.int64], actor: Actor | None, rng: np.random.Generator
) -> tuple[Floats, NDArray[np.int64]]:
    """Observations `[M, F]` of all decisions in an episode, and the workload `[M]` that each belongs to.

    Args:
        world: where.
        best: `[N]` cheapest row of every workload.
        actor: scales half of the workloads; None: rows scale all of them.
        rng: source of the rows, which change about every twenty decisions, half of the time to the cheapest.
    """
    count = len(best)
    row = rng.integers(0, A, count)
    by_actor = np.zeros(count, bool) if actor is None else rng.random(count) < 0.5
    seen: list[Floats] = []

    def choose(_tick: int, observation: Floats, allowed: NDArray[np.bool_]) -> Floats:
        anew = rng.random(count) < 0.05
        drawn = np.where(rng.random(count) < 0.5, best, rng.integers(0, A, count))
        row[:] = np.where(anew, drawn, row)
        chosen = np.eye(A)[row]
        return (
            chosen if actor is None else np.where(by_actor[:, None], ask(actor, observation, allowed), chosen)
        )

    rollout.play(world, choose, seen.append)
    return np.concatenate(seen), np.tile(np.arange(count), len(seen))


@torch.no_grad()
def ask(actor: Actor, observation: Floats, allowed: NDArray[np.bool_]) -> Floats:
    """The actor's probabilities `[N, A]` as the operator would get them."""
    answer: Floats = actor(torch.from_numpy(observation), torch.from_numpy(allowed)).numpy()
    return answer


def learn(
    actor: Actor,
    lesson: Lesson,
    config: ImitationConfig,
    updates: int,
    rng: np.random.Generator,
    progress: Callable[[], None],
) -> float:
    """Move the actor towards the cheap rows; the mean loss of the last tenth is returned.

    Price and objective do not change what a row does, only what it is worth: every observation gets new ones each time
    it is used, and the actor learns the whole trade-off from one sweep.
    """
    optimizer = torch.optim.Adam(actor.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    everything = torch.ones((config.batch, A))
    losses = []
    for _ in range(updates):
        index = rng.integers(0, len(lesson.workload), config.batch)
        log_price = rng.uniform(np.log(workloads.PRICES[0]), np.log(workloads.PRICES[1]), (config.batch, 1))
        nines = rng.uniform(workloads.SLO_NINES[0], workloads.SLO_NINES[1], (config.batch, 1))
        observation = lesson.observations[index]
        observation[:, PRICE_COLUMN], observation[:, SLO_COLUMN] = log_price[:, 0], nines[:, 0]
        own = lesson.workload[index]
        judged = Result(lesson.swept.cost[own], lesson.swept.violation[own])
        regret = regret_of(judged.adjusted(np.exp(log_price), 1.0 - 10.0**-nines)).astype(np.float32)
        logits = actor.logits(torch.from_numpy(observation), everything)
        loss = loss_of(logits, torch.from_numpy(regret), config.temperature, config.regret_weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(actor.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        progress()
    return float(np.mean(losses[-max(1, updates // 10) :]))


def measure(actor: Actor, world: Workloads, swept: Result) -> dict[str, float]:
    """Figures of an actor on workloads that it has not seen, against the constant rows on the same arrivals.

    A regret is the adjusted cost over that of the workload's own best row in hindsight, minus 1.
    """
    settings = world.settings
    price, slo = settings.missed_request_price, settings.slo_target
    rows = swept.adjusted(price[:, None], slo[:, None])
    best, lowest = rows.argmin(axis=1), rows.min(axis=1)
    first, among_five, entropy = [], [], []

    def choose(_tick: int, observation: Floats, allowed: NDArray[np.bool_]) -> Floats:
        answer = ask(actor, observation, allowed)
        order = np.argsort(-answer, axis=1)[:, :5]
        first.append(np.mean(order[:, 0] == best))
        among_five.append(np.mean((order == best[:, None]).any(axis=1)))
        entropy.append(-np.mean(np.sum(answer * np.log(np.maximum(answer, 1e-30)), axis=1)))
        return answer

    own = rollout.play(world, choose).adjusted(price, slo)
    regret = regret_of(rows)
    single = int(regret.mean(axis=0).argmin())
    return {
        "actor_regret": float(np.mean(own / lowest - 1.0)),
        "actor_regret_median": float(np.median(own / lowest - 1.0)),
        "single_row": single,
        "single_row_regret": float(regret[:, single].mean()),
        "preference_row_regret": _row_per_preference(regret, price, slo),
        "usual_row_regret": float(regret[:, USUAL_ROW].mean()),
        "actor_cheaper_than_single_row": float(np.mean(own < rows[:, single])),
        "top_1_agreement": float(np.mean(first)),
        "top_5_agreement": float(np.mean(among_five)),
        "entropy_nats": float(np.mean(entropy)),
        "workloads": len(best),
    }


def _row_per_preference(regret: Floats, price: Floats, slo: Floats) -> float:
    """Mean regret of the best row for each third of the prices and each third of the objectives, in hindsight.

    It knows what people want and nothing of the workload: what the actor is better by, it owes to telemetry.
    """
    third = [np.argsort(np.argsort(values)) * 3 // len(values) for values in (price, slo)]
    cell = 3 * third[0] + third[1]
    best = [regret[cell == c].sum(axis=0).min() for c in np.unique(cell)]
    return float(np.sum(best) / len(regret))


def imitate(config: ImitationConfig, progress: Progress) -> tuple[Actor, Floats, dict[str, float]]:
    """Run the whole imitation.

    Returns:
        The actor, the observations `[M, F]` that it was trained on, and its figures on held-out workloads.
    """
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    draws, others, rng = (np.random.default_rng(s) for s in np.random.SeedSequence(config.seed).spawn(3))
    total = config.workloads + config.held_out
    task = progress.add_task("every row on every workload", total=1.0)
    world = workloads.draw(config.workloads, config.ticks, draws)
    share = config.workloads / total
    swept = rollout.sweep(world, lambda done: progress.update(task, completed=share * done))
    held_out = workloads.draw(config.held_out, config.ticks, others)
    judged = rollout.sweep(held_out, lambda done: progress.update(task, completed=share + (1 - share) * done))

    price, slo = world.settings.missed_request_price, world.settings.slo_target
    best = swept.adjusted(price[:, None], slo[:, None]).argmin(axis=1)
    actor = Actor()
    observations, owner = np.empty((0, features.F), np.float32), np.empty(0, np.int64)
    updates, loss = max(1, config.updates // config.rounds), float("nan")
    for turn in range(config.rounds):
        task = progress.add_task(f"round {turn + 1} of {config.rounds}", total=updates)
        more, whose = visit(world, best, actor if turn else None, rng)
        observations, owner = np.concatenate([observations, more]), np.concatenate([owner, whose])
        # The moments move a little with every round, and the network with them; they stand still after the last.
        actor.normalizer.update(torch.from_numpy(more))
        loss = learn(
            actor, Lesson(observations, owner, swept), config, updates, rng, partial(progress.advance, task)
        )
    return actor, observations, {"loss": loss, **measure(actor, held_out, judged)}


def report(figures: dict[str, float]) -> Table:
    """The figures for people."""
    table = Table("held-out generated workloads", str(int(figures["workloads"])))
    single = actions.TABLE[int(figures["single_row"])].sentence(workloads.TICK_S)
    usual = actions.TABLE[USUAL_ROW].sentence(workloads.TICK_S)
    table.add_row(
        "regret of the actor (median)",
        f"{figures['actor_regret']:.1%} ({figures['actor_regret_median']:.1%})",
    )
    table.add_row(f"regret of the best single row for all: {single}", f"{figures['single_row_regret']:.1%}")
    table.add_row(
        "regret of the best row for each third of prices and objectives",
        f"{figures['preference_row_regret']:.1%}",
    )
    table.add_row(f"regret of the usual row: {usual}", f"{figures['usual_row_regret']:.1%}")
    table.add_row(
        "workloads where the actor is cheaper than that single row",
        f"{figures['actor_cheaper_than_single_row']:.0%}",
    )
    table.add_row("chosen row is the workload's best", f"{figures['top_1_agreement']:.0%}")
    table.add_row("the best is among the actor's five", f"{figures['top_5_agreement']:.0%}")
    table.add_row(
        f"entropy of its choice (uniform: {np.log(A):.2f} nats)", f"{figures['entropy_nats']:.2f} nats"
    )
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, export."""
    parser = argparse.ArgumentParser(prog="python -m understudy_trainer.imitation", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="ONNX file to write.")
    parser.add_argument("--json", type=Path, help="File for the figures.")
    options = command_line.parse(parser, ImitationConfig, argv)
    for option, path in (("--out", options.out), ("--json", options.json)):
        if path and not path.absolute().parent.is_dir():
            parser.error(f"{option} is {path}: its folder does not exist; create it first")
    # Asked before the run: a checkout may move on while it lasts.
    console, start, source = Console(), time.monotonic(), export.commit()
    with Progress(console=console) as progress:
        actor, observations, figures = imitate(options.config, progress)
    console.print(report(figures))
    if figures["actor_regret"] >= figures["single_row_regret"]:
        console.print("[bold]The actor is no better than one constant row for all.[/bold]")
    lineage = {
        "algorithm": "imitation",
        "teacher": "best constant row in hindsight",
        "loads": "generated",
        "config": asdict(options.config),
        "seed": options.config.seed,
        "steps": options.config.updates,
        "commit": source,
        "reward_hash": None,
        "figures": figures,
    }
    exported = export.export(actor, options.out, options.out.stem, lineage, observations)
    seconds = time.monotonic() - start
    console.print(f"{options.out}: {exported.summary()}; {seconds:.0f} s in all")
    if options.json:
        options.json.write_text(
            json.dumps(
                {**lineage, "seconds": seconds, "sha256": exported.sha256, "parity": exported.parity},
                indent=2,
            )
        )


if __name__ == "__main__":
    main()
