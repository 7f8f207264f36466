"""The decision program answers alike on NumPy and torch, and no workload's answer depends on its neighbours."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from understudy_policy import actions, decision, features
from understudy_policy import settings as policy_settings
from understudy_policy.api import RLPolicySpec
from understudy_policy.decision import Decision, Observation, Seen, State
from understudy_policy.guards.reasons import KillScope
from understudy_policy.rows import as_torch_or_numpy, take
from understudy_policy.settings import Settings
from understudy_policy.signals import Cause, Samples, Signal

torch = pytest.importorskip("torch", reason="torch is not installed: pip install understudy[trainer]")

TICKS = 80
N = 60


def settings_of(count: int, rng: np.random.Generator) -> Settings:
    def spec() -> RLPolicySpec:
        low = int(rng.integers(1, 5))
        down = {
            "stabilizationWindowSeconds": int(rng.choice([0, 60, 300])),
            "policies": [{"type": "Percent", "value": int(rng.choice([10, 100])), "periodSeconds": 60}],
        }
        return RLPolicySpec.model_validate(
            {
                "owner": "team",
                "scaleTargetRef": {"name": "web"},
                "minReplicas": low,
                "maxReplicas": low + int(rng.integers(0, 60)),
                "onKill": str(rng.choice(["Reference", "Hold"])),
                "objective": {
                    "latencyThreshold": "250ms",
                    "capacityPerPod": "Auto" if rng.random() < 0.3 else 25,
                    "missedRequestPrice": float(rng.uniform(0.5, 30)),
                },
                "reference": {
                    "signal": str(rng.choice(["cpuUtilization", "requestRate"])),
                    "target": float(rng.uniform(0.3, 0.95)),
                    "behavior": {"scaleDown": down},
                },
            }
        )

    return policy_settings.from_specs([spec() for _ in range(count)], 15.0)


def world(count: int, rng: np.random.Generator) -> Iterator[tuple[Seen, np.ndarray]]:
    """Ticks of workloads that live their own life: load, lies of telemetry, kills, pins, canaries, absent models."""
    shape = (count, len(Signal))
    pods = rng.integers(1, 30, count)
    for tick in range(TICKS):
        rate = rng.gamma(3.0, 60.0, count) * (1 + np.sin(tick / 10 + np.arange(count)))
        latency, failed, missed = rng.gamma(2, 0.05, count), rng.random(count) * 0.1, rng.random(count) * 0.1
        values = np.stack([rate, latency, failed, rate / 25 + 0.01, np.ones(count), missed], 1)
        garbage = rng.choice([np.nan, np.inf, -np.inf, -1.0, 1e12, 0.0], shape)
        values = np.where(rng.random(shape) < 0.03, garbage, values)
        cause = np.where(rng.random(shape) < 0.02, rng.choice([int(c) for c in Cause], shape), 0)
        age = np.where(rng.random(shape) < 0.02, rng.choice([-1e4, 1e4], shape), rng.uniform(0, 10, shape))
        pods = np.maximum(pods + rng.integers(-1, 2, count) * rng.integers(0, 4, count), 0)
        answer = rng.dirichlet(np.full(len(actions.TABLE), 0.3), count).astype(np.float32)
        answer[rng.random(count) < 0.05] = np.nan
        answer[rng.random(count) < 0.03, 7] = np.nan
        yield (
            Seen(
                samples=Samples(values, age, cause),
                replicas=np.where(rng.random(count) < 0.02, -1, pods),
                ready=np.maximum(pods - rng.integers(0, 3, count), 0),
                authority=rng.choice([0.0, 0.1, 0.25, 0.5, 1.0], count),
                override=np.where(rng.random(count) < 0.05, rng.integers(0, 50, count), -1),
                killed=np.where(rng.random(count) < 0.05, rng.choice([int(k) for k in KillScope], count), 0),
                now_s=1000.0 + 15.0 * tick,
            ),
            answer,
        )


def program(settings: Settings, state: State, ticks: Iterator[tuple[Seen, np.ndarray]]) -> Iterator[tuple]:
    for seen, answer in ticks:
        state, observation = decision.observe(settings, state, seen)
        state, decided = decision.decide(settings, state, observation, answer)
        yield state, observation, decided


def arrays(structure: object, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Every array of a structure by its path, as NumPy."""
    if dataclasses.is_dataclass(structure):
        for field in dataclasses.fields(structure):
            yield from arrays(getattr(structure, field.name), f"{path}.{field.name}")
    elif isinstance(structure, dict):
        for key, value in structure.items():
            yield from arrays(value, f"{path}[{key}]")
    else:
        yield path, np.asarray(structure)


def compare(left: object, right: object, where: str) -> None:
    for (path, one), (_, other) in zip(arrays(left), arrays(right), strict=True):
        assert one.dtype == other.dtype, f"{where}{path}: {one.dtype} became {other.dtype}"
        if one.dtype.kind == "f":
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=where + path)
        else:
            np.testing.assert_array_equal(one, other, err_msg=where + path)


def to_torch(structure):
    return as_torch_or_numpy(structure, torch.from_numpy)


def test_the_decision_program_gives_the_same_answers_on_numpy_and_torch() -> None:
    rng = np.random.default_rng(4)
    settings = settings_of(N, rng)
    ticks = list(world(N, rng))
    torch_ticks = ((to_torch(seen), torch.from_numpy(answer)) for seen, answer in ticks)
    seen_reasons = set()
    on_torch = program(to_torch(settings), to_torch(decision.initial_state(N)), torch_ticks)
    on_numpy = program(settings, decision.initial_state(N), iter(ticks))
    for tick, (ours, theirs) in enumerate(zip(on_numpy, on_torch, strict=True)):
        observation, decided = theirs[1:]
        assert isinstance(observation.features, torch.Tensor)
        assert isinstance(decided.replicas, torch.Tensor)
        for mine, other, name in zip(ours, theirs, ("state", "observation", "decision"), strict=True):
            compare(mine, other, f"tick {tick}: {name}")
        seen_reasons |= set(np.unique(ours[2].chain.reasons))
    # The comparison is worth something only where the guards had something to do.
    assert len(seen_reasons) > 12


def test_a_workload_among_a_thousand_is_decided_as_if_it_were_alone() -> None:
    rng = np.random.default_rng(5)
    many = take(settings_of(50, rng), np.arange(1000) % 50)
    ticks = list(world(1000, rng))

    def alone(row: np.ndarray) -> Iterator[tuple]:
        own = ((take(seen, row), answer[row]) for seen, answer in ticks)
        return program(take(many, row), decision.initial_state(1), own)

    rows = [np.array([position]) for position in (0, 417, 999)]
    together = program(many, decision.initial_state(1000), iter(ticks))
    for tick, ((_, seen_by_all, everyone), *ones) in enumerate(zip(together, *map(alone, rows), strict=True)):
        for row, (_, seen_by_one, one) in zip(rows, ones, strict=True):
            for left, right in (
                (one.replicas, everyone.replicas[row]),
                (one.if_killed, everyone.if_killed[row]),
                (one.row, everyone.row[row]),
                (one.chain.replicas, everyone.chain.replicas[:, row]),
                (one.chain.reasons, everyone.chain.reasons[:, row]),
                (one.authority, everyone.authority[row]),
                (seen_by_one.cause, seen_by_all.cause[row]),
            ):
                np.testing.assert_array_equal(left, right, err_msg=f"tick {tick}, row {row}")
            np.testing.assert_allclose(seen_by_one.features, seen_by_all.features[row], rtol=1e-6, atol=1e-6)


def test_features_are_finite_whatever_telemetry_says() -> None:
    rng = np.random.default_rng(6)
    states = program(settings_of(N, rng), decision.initial_state(N), world(N, rng))
    for _, observation, decided in states:
        assert isinstance(observation, Observation)
        assert isinstance(decided, Decision)
        assert observation.features.shape == (N, features.F)
        assert np.isfinite(observation.features).all()
