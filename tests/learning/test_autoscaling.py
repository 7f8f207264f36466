"""The world that policies are trained in: paired rewards, ends of episodes, determinism, resuming, and the command."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

import small_runs
from understudy_policy import actions, artifact, features
from understudy_simulator import audition
from understudy_simulator.audition import AIM_ROWS, AIMS
from understudy_trainer import actors, export, train
from understudy_trainer.actor_critic import ActorCritic, NetworkConfig
from understudy_trainer.autoscaling import REFERENCE_ROWS, AutoscalingConfig, AutoscalingEnvironment
from understudy_trainer.environment import Step
from understudy_trainer.hints import _ahead
from understudy_trainer.loop import InterruptedRunError
from understudy_trainer.networks import Actor
from understudy_trainer.options import OptionsError, read_options
from understudy_trainer.training import make_model

SMALL = AutoscalingConfig(workloads=6, episode_ticks=8, curves=9, batches=2, lives=2)
DECISIONS = SMALL.episode_ticks // actions.DECISION_TICKS


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def lived(world: AutoscalingEnvironment, steps: int, seed: int = 7) -> list[Step]:
    generator = torch.Generator().manual_seed(seed)
    rows = (
        torch.randint(0, len(actions.TABLE), (world.num_envs,), generator=generator) for _ in range(steps)
    )
    return [world.step(row) for row in rows]


def test_whoever_does_what_the_reference_does_earns_nothing() -> None:
    world = AutoscalingEnvironment(SMALL, seed=0)
    world.reset()
    for _ in range(2 * DECISIONS):
        step = world.step(world.reference_row)
        assert torch.equal(step.reward, torch.zeros(SMALL.workloads))


def test_the_reference_is_the_row_that_costs_least_at_the_price_of_the_life() -> None:
    world = AutoscalingEnvironment(SMALL, seed=0)
    batch = world.draw(0)
    for row in REFERENCE_ROWS[:3]:
        played = world.play(batch, lambda seen, row=row: torch.full((len(seen),), row))
        price = played.price[:, None]
        own = played.own.reward(price, SMALL.change_price).sum(dim=1)
        reference = played.reference.reward(price, SMALL.change_price).sum(dim=1)
        assert (own <= reference + 1e-5).all()


def test_a_dearer_miss_is_answered_with_a_reference_that_misses_less() -> None:
    missed = []
    for price in (0.5, 30.0):
        world = AutoscalingEnvironment(replace(SMALL, price_low=price, price_high=price), seed=0)
        played = world.play(world.draw(0), lambda seen: torch.zeros(len(seen), dtype=torch.int64))
        missed.append(float(played.reference.missed.sum()))
    assert missed[1] <= missed[0]


def test_a_service_is_told_at_which_utilisation_it_did_best_at_other_times() -> None:
    config = replace(SMALL, workloads=16, moments=4, uncalibrated_share=0.0)
    world = AutoscalingEnvironment(config, seed=1)
    batch = world.draw(0)
    seen = world.play(batch, lambda seen: torch.zeros(len(seen), dtype=torch.int64))
    told = world._episode.settings.calibrated_utilization[:, 0]
    cost, missed = (
        torch.stack(
            [
                getattr(audition.rehearse(batch.episode, torch.full((16,), row)), name).mean(1)
                for row in AIM_ROWS
            ]
        )
        for name in ("cost", "missed")
    )
    for row in range(config.workloads):
        others = [k for k in range(4 * (row // 4), 4 * (row // 4) + 4) if k != row]
        spent = (cost[:, others] + seen.price[row] * missed[:, others]).sum(dim=1)
        (level,) = [k for k, aim in enumerate(AIMS) if told[row] == pytest.approx(aim)]
        assert spent[level] <= spent.min() * (1.0 + 2e-5)


def test_moments_of_a_service_have_its_pods_and_its_objective_and_loads_and_luck_of_their_own() -> None:
    world = AutoscalingEnvironment(replace(SMALL, workloads=10, moments=4), seed=1)
    episode = world.draw(0).episode
    assert episode.service.bincount().tolist() == [0, 4, 4, 2]
    for own in (
        episode.cluster.service.capacity_rps,
        episode.cluster.startup[:, 5],
        episode.settings.latency_threshold_s,
        episode.settings.given_capacity_rps.nan_to_num(-1.0),
        episode.dispersion,
        episode.mean_rps,
    ):
        assert [len(part.unique()) for part in own.split(4)] == [1, 1, 1]
    assert len(episode.seeds.unique()) == len(episode.rate_rps[:, -1].unique()) == 10


def test_nobody_is_told_what_nobody_looked_for() -> None:
    for config in (
        replace(SMALL, moments=1, uncalibrated_share=0.0),
        replace(SMALL, uncalibrated_share=1.0),
    ):
        world = AutoscalingEnvironment(config, seed=1)
        world.reset()
        assert world._episode.settings.calibrated_utilization.isnan().all()


def test_episodes_are_truncated_together_and_show_what_was_seen_last() -> None:
    world = AutoscalingEnvironment(SMALL, seed=0)
    first = world.reset().observation
    steps = lived(world, DECISIONS + 1)
    for step in steps[: DECISIONS - 1]:
        assert step.final_observation is None
        assert not step.truncated.any()
    end = steps[DECISIONS - 1]
    assert end.truncated.all()
    assert not end.terminated.any()
    assert end.final_observation is not None
    assert torch.isfinite(end.final_observation).all()
    assert not torch.equal(end.final_observation, end.view.observation)
    assert not torch.equal(first, end.view.observation), "another batch has begun"
    assert not steps[DECISIONS].truncated.any()


def test_the_same_seed_gives_the_same_life_and_another_seed_another() -> None:
    runs = []
    for seed in (3, 3, 4):
        world = AutoscalingEnvironment(SMALL, seed)
        first = world.reset().observation
        runs.append(
            [first, *(part for step in lived(world, 3) for part in (step.reward, step.view.observation))]
        )
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not torch.equal(runs[0][0], runs[2][0])


def test_hints_tell_what_is_coming_whatever_the_actor_does() -> None:
    told = []
    for row in (0, 39):
        world = AutoscalingEnvironment(SMALL, seed=0)
        seen = [world.reset().observation]
        seen += [
            world.step(torch.full((SMALL.workloads,), row)).view.observation for _ in range(DECISIONS - 1)
        ]
        told.append(torch.stack(seen))
    assert not torch.equal(told[0][..., : features.F], told[1][..., : features.F])
    assert torch.equal(told[0][..., features.F :], told[1][..., features.F :])


def test_the_actor_never_hears_the_hints() -> None:
    world = AutoscalingEnvironment(SMALL, seed=0)
    model = make_model(world, read_options(None, []).training())
    seen = world.reset().observation
    model.observe(seen)
    other = seen.clone()
    other[:, features.F :] += 1.0
    memory = model.initial_memory(len(seen))
    one, two = model(seen, None, memory), model(other, None, memory)
    assert torch.equal(one.logits, two.logits)
    assert not torch.equal(one.value, two.value)
    with pytest.raises(ValueError, match="shared_trunk is True"):
        make_model(
            world, replace(read_options(None, []).training(), network=NetworkConfig(shared_trunk=True))
        )


def test_a_hint_is_the_mean_of_what_lies_ahead_and_the_last_value_lasts() -> None:
    values = torch.tensor([[1.0, 2.0, 4.0]])
    assert _ahead(values, 0, 1).tolist() == [[1.0, 2.0, 4.0, 4.0]]
    assert _ahead(values, 1, 3).tolist() == [[3.0, 4.0, 4.0, 4.0]]


@pytest.mark.parametrize("before", [1, DECISIONS + 1])
def test_a_world_resumes_exactly(before: int) -> None:
    world = AutoscalingEnvironment(SMALL, seed=1)
    world.reset()
    lived(world, before)
    saved = world.state_dict()
    wanted = lived(world, DECISIONS + 1, seed=8)
    other = AutoscalingEnvironment(SMALL, seed=1)
    other.load_state_dict(saved)
    for mine, theirs in zip(lived(other, DECISIONS + 1, seed=8), wanted, strict=True):
        assert torch.equal(mine.reward, theirs.reward)
        assert torch.equal(mine.view.observation, theirs.view.observation)


def test_prices_are_drawn_anew_in_every_life_and_told_to_the_actor() -> None:
    names = [name for name, _ in features.SCHEMA]
    column = names.index("log_price")
    world = AutoscalingEnvironment(replace(SMALL, batches=1), seed=2)
    first = world.reset().observation
    second = world.reset().observation
    assert not torch.equal(first[:, column], second[:, column])
    # At which utilisation a service did best depends on the price.
    others = [k for k, name in enumerate(names) if k != column and not name.startswith("calibrated")]
    assert torch.equal(first[:, others], second[:, others]), "the services are the same"


def test_unknown_and_refused_options_are_named(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("world: {workloads: 32}\n")
    options = read_options(file, ["ppo.epochs=3"])
    assert (options.world.workloads, options.ppo.epochs, options.ppo.gamma) == (32, 3, 0.97)
    with pytest.raises(OptionsError, match=r"world\.workload is no option.*workloads"):
        read_options(None, ["world.workload=3"])
    with pytest.raises(OptionsError, match=r"world\.episode_ticks is 0: .*greater than or equal to 4"):
        read_options(None, ["world.episode_ticks=0"])
    with pytest.raises(OptionsError, match=r"network\.memory is 8, but an artefact carries none"):
        read_options(None, ["network.memory=8", "network.shared_trunk=true"]).training()
    with pytest.raises(OptionsError, match=r"network\.normalize_observation is False"):
        read_options(None, ["network.normalize_observation=false"]).training()
    with pytest.raises(OptionsError, match=r"network\.shared_trunk is True.* world\.hints"):
        read_options(None, ["network.shared_trunk=true"]).training()


def network(hidden: str) -> ActorCritic:
    world = SimpleNamespace(
        observation_size=features.F, num_actions=len(actions.TABLE), device=torch.device("cpu"), hints=0
    )
    return make_model(world, read_options(None, [f"network.hidden={hidden}"]).training())


@pytest.fixture
def older(tmp_path: Path) -> str:
    """An actor from before the newest columns and rows."""
    columns, rows = 28, 40
    table, schema, hashes = actions.TABLE, features.SCHEMA, (features.schema_hash, actions.table_hash)
    observations = np.random.default_rng(1).normal(size=(1000, columns)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "F", columns)
        patch.setattr(features, "SCHEMA", schema[:columns])
        patch.setattr(features, "schema_hash", lambda *_: hashes[0](columns))
        patch.setattr(actions, "TABLE", table[:rows])
        patch.setattr(actions, "ROW_UTILIZATION", actions.ROW_UTILIZATION[:rows])
        patch.setattr(actions, "table_hash", lambda *_: hashes[1](rows))
        actor = Actor((64, 64))
        for weights in actor.parameters():
            torch.nn.init.normal_(weights, std=0.3)
        actor.normalizer.update(torch.from_numpy(observations))
        export.export(actor, tmp_path / "older.onnx", "older", {}, observations)
    return (tmp_path / "older.onnx").as_uri()


@pytest.mark.parametrize("hidden", ["[64, 64]", "[96, 80]"])
def test_a_network_that_begins_with_an_actor_answers_as_the_actor_does(hidden: str, older: str) -> None:
    model = network(hidden)
    actors.begin(model, older)
    begun = artifact.load(older)
    assert (begun.columns, begun.rows) == (28, 40)
    known = np.array(begun.manifest.golden_features, np.float32)
    golden = np.random.default_rng(0).normal(size=(len(known), features.F)).astype(np.float32)
    golden[:, : begun.columns] = known
    everything = np.ones((len(golden), len(actions.TABLE)), bool)
    everything[:, begun.rows :] = False

    def answer(allowed: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model.actor()(torch.from_numpy(golden), torch.from_numpy(allowed).float()).numpy()

    assert np.abs(answer(everything) - begun.probabilities(golden, everything)).max() < 1e-5
    # Rows that the actor did not know get their turn, but seldom.
    new = answer(np.ones_like(everything))[:, begun.rows :].sum(axis=1)
    assert (new > 0.0).all()
    assert new.mean() < 0.4


def test_an_actor_that_does_not_fit_in_is_refused() -> None:
    with pytest.raises(
        OptionsError, match=r"begin_with is builtin://generalist, whose trunk\.0\.weight is \[128"
    ):
        actors.begin(network("[64, 128]"), "builtin://generalist")
    with pytest.raises(OptionsError, match=r"as many layers"):
        actors.begin(network("[128, 128, 128]"), "builtin://generalist")
    with pytest.raises(OptionsError, match=r"as many layers"):
        actors.begin(network("[128]"), "builtin://generalist")


def test_a_run_ends_in_an_artefact_that_the_operator_takes(tmp_path: Path) -> None:
    options = read_options(
        None,
        [
            "world={workloads: 520, episode_ticks: 8, curves: 9, batches: 1, compiled: false}",
            "run={total_steps: 6240, evaluate_updates: 1, log_updates: 1}",
            "rollout_steps=4",
            "network.hidden=[16]",
        ],
    )
    path = train.train(options, tmp_path, "short", resume=False, console=Console(quiet=True))
    actor = artifact.load(path.as_uri())
    assert actor.manifest.lineage["parity"]["observations"] >= 1000
    assert actor.manifest.lineage["parity"]["max_abs_error"] <= 1e-5
    assert actor.manifest.lineage["options"]["network"]["hidden"] == [16]
    assert set(actor.manifest.lineage["held_out"]) >= {"cost_ratio", "missed_ratio", "changes_ratio"}
    golden = np.array(actor.manifest.golden_features, np.float32)
    probabilities = actor.probabilities(golden, np.array(actor.manifest.golden_mask, bool))
    assert np.allclose(probabilities.sum(axis=1), 1.0, atol=1e-5)


def test_a_run_that_is_stopped_says_so_and_leaves_what_it_has(tmp_path: Path) -> None:
    def stop(steps: int, _scalars: dict[str, float]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(
        InterruptedRunError, match=r"stopped after [0-9,]+ of 3,120 decisions; go on with --resume"
    ):
        small_runs.learn(tmp_path, listeners=(stop,))
    begun = artifact.load((tmp_path / "small.onnx").as_uri()).manifest.lineage["decisions"]
    assert begun < 3120
    path = small_runs.learn(tmp_path, resume=True)
    assert artifact.load(path.as_uri()).manifest.lineage["decisions"] >= 3120
