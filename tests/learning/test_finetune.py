"""A workload's own past: what is drawn from it, what is never looked at, and the artefact that comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from small_contest import SMALL, cells, wave, write_trace
from understudy_operator.cli import main as cli
from understudy_policy import actions as policy_actions
from understudy_policy import artifact, features
from understudy_policy.rows import concatenate
from understudy_simulator import past as pasts
from understudy_simulator import scenario
from understudy_simulator.audition import PAST_TICKS, Episode
from understudy_simulator.past import AS_IT_CAME, Past, PastError, Variation
from understudy_simulator.protocol import PROFILES, Protocol
from understudy_simulator.traces import Trace
from understudy_trainer import actors, finetune
from understudy_trainer.autoscaling import AutoscalingConfig, AutoscalingEnvironment
from understudy_trainer.finetune import FinetuneOptions, Tuner
from understudy_trainer.loop import DivergedError
from understudy_trainer.options import read_options
from understudy_trainer.training import make_model, make_trainer

TINY = [
    "world={workloads: 520, episode_ticks: 8, curves: 9, batches: 1, compiled: false, hints: true}",
    "run={total_steps: 6240, log_updates: 1}",
    "rollout_steps=4",
    "critic_updates=1",
    "begin_with=builtin://generalist",
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def of(hours: float, **facts: float) -> Past:
    return Past(wave(hours=hours), 2.0, PROFILES["web"], facts.get("startup_s", 30.0))


def drawn(
    past: Past, count: int = 64, ticks: int = 160, seed: int = 0, vary: Variation = AS_IT_CAME
) -> Episode:
    rng = np.random.default_rng(seed)
    return pasts.draw(count, ticks, past, scenario.stock(16, rng, ticks), rng, vary=vary)


def of_rates(rate: Callable[[np.ndarray], np.ndarray], hours: float) -> Past:
    """A past whose rate is this function of seconds."""
    time_s = 60.0 * np.arange(60 * hours)
    return replace(of(3.0), curve=Trace("made", time_s, rate(time_s + 30.0)))


def test_episodes_are_parts_of_the_past_at_its_own_size() -> None:
    past = of(6.0)
    rate = drawn(past).rate_rps[:, PAST_TICKS:]
    low, high = past.curve.requests_per_second.min(), past.curve.requests_per_second.max()
    assert (rate >= low - 1e-3).all()
    assert (rate <= high + 1e-3).all()
    whole = np.interp(15.0 * np.arange(4 * 360), past.curve.timestamp_s, past.curve.requests_per_second)
    best = [np.corrcoef(np.lib.stride_tricks.sliding_window_view(whole, 160)[k], rate[0])[0, 1]
            for k in range(len(whole) - 160)]  # fmt: skip
    assert max(best) > 0.999


def test_what_is_learned_is_larger_or_smaller_faster_or_slower_than_what_came() -> None:
    slope = 0.02
    past = of_rates(lambda time_s: 300.0 + slope * time_s, hours=12.0)
    factors = (
        drawn(past, count=400, vary=Variation(load=2.0)).mean_rps / past.curve.requests_per_second.mean()
    )
    assert factors.min() < 0.55
    assert factors.max() > 1.8
    assert (factors >= 0.5 - 1e-3).all()
    assert (factors <= 2.0 + 1e-3).all()
    paced = drawn(past, count=400, vary=Variation(pace=1.5)).rate_rps[:, PAST_TICKS:].astype(float)
    pace = np.diff(paced, axis=1).mean(axis=1) / (15.0 * slope)
    assert pace.min() < 0.72
    assert pace.max() > 1.4
    assert (pace > 1 / 1.5 - 1e-2).all()
    assert (pace < 1.5 + 1e-2).all()
    # Whatever the pace, an episode begins with a whole tick of the past, and tells the middles of its own.
    begin = (paced[:, 0] - 300.0) / (15.0 * slope) - 0.5 * pace
    assert np.abs(begin - np.round(begin)).max() < 0.05


def test_slow_waves_are_as_high_as_asked_for() -> None:
    past = of_rates(lambda time_s: 100.0 + 0.0 * time_s, hours=12.0)
    rate = drawn(past, count=800, ticks=960, vary=Variation(swell=0.1)).rate_rps
    logs = np.log(rate / 100.0)
    assert np.std(logs) == pytest.approx(0.1, rel=0.1)
    assert np.abs(np.diff(logs, axis=1)).max() < 0.05, "they rise slowly"


def test_yesterday_stays_yesterday_however_time_runs() -> None:
    past = of_rates(lambda time_s: 100.0 + 50.0 * np.sin(2 * np.pi * time_s / 86400.0), hours=60.0)
    episode = drawn(past, count=200, vary=Variation(pace=1.5))
    blocks = episode.yesterday_rps.shape[1] - 3
    now = episode.rate_rps[:, : 20 * blocks].reshape(200, blocks, 20).mean(axis=2)
    known = np.isfinite(episode.yesterday_rps[:, :blocks]) & np.isfinite(episode.observed_rps[:, 0])[:, None]
    assert known.mean() > 0.3
    assert np.allclose(episode.yesterday_rps[:, :blocks][known], now[known], rtol=0.02)


@pytest.mark.parametrize("facts", [{"load": 0.5}, {"pace": float("inf")}, {"swell": -0.1}])
def test_a_variation_that_means_nothing_is_refused(facts: dict[str, float]) -> None:
    ((name, value),) = facts.items()
    with pytest.raises(ValueError, match=f"{name} is {value}; give"):
        Variation(**facts)


def test_nothing_is_remembered_from_before_the_first_sample() -> None:
    past = of(2.0)
    episode = drawn(past, ticks=480)
    assert np.isnan(episode.observed_rps[:, : PAST_TICKS - 1]).all(), (
        "every episode begins where the past does"
    )
    assert np.isnan(episode.yesterday_rps).all()


def test_yesterday_is_what_came_a_day_before() -> None:
    past = replace(of(50.0), curve=wave(hours=50.0, period_h=24.0))
    episode = drawn(past, count=200)
    known = np.isfinite(episode.yesterday_rps[:, 20])
    assert 0.3 < known.mean() < 0.8
    # The load repeats every day, but for its step in the middle of the two days. Of another time of day, the ratio
    # would lie above 1 as often as below.
    now = episode.rate_rps[:, 20 * 20 : 21 * 20].mean(axis=1)
    ratio = episode.yesterday_rps[known, 20] / now[known]
    assert ratio.max() <= 1.02
    assert ratio.max() > 0.98
    assert ratio.min() > 0.4


def test_own_and_made_up_services_live_together() -> None:
    rng = np.random.default_rng(1)
    stock = scenario.stock(16, rng, 160)
    own = pasts.draw(40, 160, of(6.0, startup_s=200.0), stock, rng)
    others = scenario.draw(24, 160, stock, rng)

    def compare(a: object, b: object, c: object) -> None:
        for field in fields(a):  # type: ignore[arg-type]
            x, y, z = (getattr(one, field.name) for one in (a, b, c))
            if is_dataclass(x):
                compare(x, y, z)
            elif isinstance(x, np.ndarray) and not field.metadata:
                assert len(z) == 64
                assert z.dtype == x.dtype == y.dtype
                assert z.ndim == 1 or z.flags.f_contiguous, (
                    f"{field.name} is another input of the compiled model"
                )

    both = concatenate(own, others)
    compare(own, others, both)
    assert [table.shape[1] for table in (both.cluster.startup, both.cluster.nodes.startup, both.cluster.window)] == [
        49, 33, 5,
    ], "widths that are fixed, or the model is compiled anew for every draw"  # fmt: skip


def test_what_is_played_changes_nothing_that_its_player_learned_from() -> None:
    (cell,) = cells(replace(SMALL, segment_s=12 * 3600), wave(hours=12.0))
    half_s, end_s = 15.0 * cell.half_past_tick, 15.0 * cell.past_ticks
    time_s = cell.curve.timestamp_s

    def learned(rates: np.ndarray) -> list[str]:
        return [
            past.fingerprint()
            for past in pasts.of_cell(replace(cell, curve=replace(cell.curve, requests_per_second=rates)))
        ]

    for past, length_s in zip(pasts.of_cell(cell), (half_s, half_s, end_s), strict=True):
        assert length_s - 480 <= past.curve.duration_s < length_s
    rates = cell.curve.requests_per_second
    first, second, whole = learned(rates)
    assert learned(np.where(time_s >= end_s, 1e6, rates)) == [first, second, whole]
    of_first, of_second, of_whole = learned(np.where(time_s < half_s, 1e6, rates))
    assert of_first == first
    assert of_second != second
    assert of_whole != whole
    of_first, of_second, of_whole = learned(np.where((time_s >= half_s) & (time_s < end_s), 1e6, rates))
    assert of_first != first
    assert of_second == second
    assert of_whole != whole


def test_a_past_that_is_too_short_says_how_long_it_must_be() -> None:
    with pytest.raises(PastError, match=r"wave: 1\.5 h to learn from; give 2 h or more"):
        of(1.5)
    with pytest.raises(PastError, match=r"480 ticks to learn from; give 960 or more"):
        drawn(of(2.0), ticks=960)
    (cell,) = cells(Protocol(1, 5 * 3600.0, ("web",), (5.0,), (30.0,), 2), wave(hours=5.0))
    with pytest.raises(PastError, match="learned from the other half"):
        pasts.of_cell(cell)
    with pytest.raises(PastError, match=r"^\S+: startup_s is 400"):
        pasts.of_cell(replace(cell, startup_s=400.0))


def test_the_held_back_part_is_the_last_and_apart() -> None:
    learned, since_s = finetune._split(of(20.0), 0.2, ticks=480)
    assert since_s == 16 * 3600
    assert learned.curve.duration_s <= 16 * 3600 - 120
    for too_short in (finetune._split(of(3.0), 0.2, 480), finetune._split(of(15.0), 0.2, 960)):
        assert too_short[1] == 0.0, "nothing is held back"
    assert too_short[0].curve.duration_s == 15 * 3600


def test_what_is_measured_on_what_was_held_back_remembers_what_was_before() -> None:
    past = replace(of(50.0), curve=wave(hours=50.0, period_h=24.0))
    rng = np.random.default_rng(0)
    episode = pasts.draw(64, 480, past, scenario.stock(16, rng, 480), rng, since_s=40 * 3600.0)
    whole = np.isfinite(episode.observed_rps).all(axis=1)
    assert whole.mean() > 0.75, "all but the forgetful"
    assert np.isfinite(episode.yesterday_rps).all(), "a day before 40 h lies within 50 h of history"
    with pytest.raises(PastError, match="480 or more"):
        pasts.draw(64, 480, past, scenario.stock(16, rng, 480), rng, since_s=48.5 * 3600.0)


def test_the_critic_learns_first_and_the_actor_stays() -> None:
    options = read_options(None, TINY, FinetuneOptions)
    options = replace(options, network=replace(options.network, hidden=(128, 128)))
    source = finetune._source(of(3.0), 0.25)
    world = AutoscalingEnvironment(options.world, 0, source=source)
    trainer = make_trainer(world, options.training())
    actors.begin(trainer.learner.model, options.begin_with)
    before = {name: own.clone() for name, own in trainer.learner.model.state_dict().items()}
    finetune._teach_critic(trainer, 2)
    after = trainer.learner.model.state_dict()
    for name in before:
        if name.startswith(("trunk.", "head.")):
            assert torch.equal(before[name], after[name])
    assert not torch.equal(before["critic.weight"], after["critic.weight"])


def test_an_actor_keeps_its_shape() -> None:
    widths = finetune._widths("builtin://generalist")
    world = SimpleNamespace(
        observation_size=features.F,
        num_actions=len(policy_actions.TABLE),
        hints=0,
        device=torch.device("cpu"),
    )
    options = read_options(
        None,
        [f"network.hidden={list(widths)}", "network.shared_trunk=true", "world.hints=false"],
        FinetuneOptions,
    )
    actors.begin(make_model(world, options.training()), "builtin://generalist")


def test_a_history_becomes_an_artefact_with_its_lineage(tmp_path: Path) -> None:
    history = write_trace(tmp_path / "shop.csv", wave(hours=24.0))
    settings = [part for setting in TINY for part in ("--set", setting)]
    told = CliRunner().invoke(
        cli.app,
        ["train", "--finetune", "--history", str(history), "--capacity-rps", "20", "--folder", str(tmp_path),
         "--name", "shop", *settings],
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    assert "4.8 h, which were held back" in " ".join(told.output.split())
    assert not (tmp_path / "checkpoints").exists(), "nobody can go on with it"
    lineage = artifact.load((tmp_path / "shop.onnx").as_uri()).manifest.lineage
    assert lineage["history"]["name"] == "shop"
    assert lineage["history"]["span_s"] == 24 * 3600
    assert lineage["history"]["held_back_s"] == pytest.approx(0.2 * 24 * 3600, abs=300)
    assert lineage["history"]["learned_s"] <= 0.8 * 24 * 3600
    assert lineage["begun_with"]["sha256"] == artifact.load("builtin://generalist").sha256
    assert lineage["options"]["generated_share"] == 0.25
    assert set(lineage["held_out"]) == set(lineage["history"]["held_out_before"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--history", "x.csv"], "without --finetune"),
        (["--finetune", "--history", "x.csv"], "needs --capacity-rps"),
        (["--finetune", "--capacity-rps", "20"], "exactly one source"),
        (["--finetune", "--capacity-rps", "20", "--prometheus", "http://p:9090"], "--query"),
        (["--finetune", "--capacity-rps", "20", "--generated-history", "--resume"], "begin anew"),
        (["--finetune", "--capacity-rps", "20", "--generated-history", "--history", "x.csv"], "leave one of them out"),
        (["--name", "team/shop"], "--name is 'team/shop', but it names a file in --folder"),
        (["--resume", "--folder", "nowhere-yet", "--set", "seed=x"], "seed is 'x'"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_said_in_a_sentence(arguments: list[str], says: str) -> None:
    told = CliRunner().invoke(cli.app, ["train", *arguments])
    assert told.exit_code == 2
    assert says in " ".join(told.output.split())


def test_a_history_that_cannot_be_read_is_no_mistake_in_the_command() -> None:
    told = CliRunner().invoke(
        cli.app, ["train", "--finetune", "--capacity-rps", "20", "--history", "nowhere.csv"]
    )
    assert told.exit_code == 1
    assert "nowhere.csv: no such trace file" in " ".join(told.output.split())


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("run.total_steps=4160", "the actor begins to learn after 4,160 decisions"),
        ("run.evaluate_updates=4", "leave it out"),
        ("network.memory=8", "an artefact carries none"),
        ("algorithm=a3c", "choose ppo, a2c or acktr"),
        ("world.workloads=100", "an artefact is proven on 1,000"),
    ],
)
def test_options_that_would_do_nothing_are_refused(setting: str, says: str, tmp_path: Path) -> None:
    settings = [part for one in [*TINY, setting] for part in ("--set", one)]
    told = CliRunner().invoke(
        cli.app,
        ["train", "--finetune", "--generated-history", "--capacity-rps", "20", "--folder", str(tmp_path), *settings],
    )  # fmt: skip
    assert told.exit_code == 2
    assert says in " ".join(told.output.split())
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.parametrize("finetuned", [True, False])
def test_a_run_that_can_be_resumed_is_not_written_over(finetuned: bool, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "last.pt"
    checkpoint.parent.mkdir()
    checkpoint.write_text("dear")
    further = ["--finetune", "--generated-history", "--capacity-rps", "20"] if finetuned else []
    told = CliRunner().invoke(cli.app, ["train", "--folder", str(tmp_path), *further])
    assert told.exit_code == 2
    assert "--resume goes on with it" in " ".join(told.output.split())
    assert checkpoint.read_text() == "dear"


def test_an_artefact_is_not_written_over(tmp_path: Path) -> None:
    artefact = tmp_path / "shop.onnx"
    artefact.write_text("dear")
    told = CliRunner().invoke(
        cli.app,
        ["train", "--finetune", "--generated-history", "--capacity-rps", "20", "--folder", str(tmp_path)],
    )
    assert told.exit_code == 2
    assert "holds shop.onnx, which a run has learned already" in " ".join(told.output.split())
    assert artefact.read_text() == "dear"


def test_a_past_without_a_request_is_refused_in_a_sentence(tmp_path: Path) -> None:
    launched = of_rates(lambda time_s: np.where(time_s < 18 * 3600, 0.0, 50.0), hours=20.0)
    with pytest.raises(
        PastError, match=r"made: no request in the .* h to learn from; give a history with load"
    ):
        finetune.finetune(FinetuneOptions(), launched, tmp_path / "x.onnx", "x")


@pytest.mark.parametrize(("step_s", "rows"), [(10.0, 3601), (2.0, 18_001), (60.0, 600), (7.0, 5143)])
def test_ten_hours_are_enough_to_hold_a_part_back(step_s: float, rows: int) -> None:
    time_s = step_s * np.arange(rows)
    past = replace(of(10.0), curve=Trace("ten hours", time_s, 50.0 + 10.0 * np.sin(time_s / 900.0)))
    learned, since_s = finetune._split(past, 0.2, 480)
    assert since_s > 0.0
    assert learned.curve.duration_s <= since_s
    rng = np.random.default_rng(0)
    held_back = pasts.draw(3, 480, past, scenario.stock(14, rng, 480), rng, since_s)
    assert held_back.decisions == 120


def test_a_run_that_diverges_names_the_workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_: object) -> None:
        raise DivergedError("NaN in 6 updates in a row")

    monkeypatch.setattr(finetune, "finetune", diverge)
    with pytest.raises(PastError, match="shop-first: NaN in 6 updates"):
        Tuner()(artifact.resolve("builtin://generalist"), of(3.0), tmp_path / "shop-first.onnx")


def test_prometheus_is_read_by_the_operators_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def read_range(url: str, promql: str, duration_s: float, step_s: float) -> tuple[object, object]:
        asked.append((url, promql, duration_s, step_s))
        raise OSError("connection refused")

    monkeypatch.setattr(cli, "_read_range", read_range)
    told = CliRunner().invoke(
        cli.app,
        ["train", "--finetune", "--capacity-rps", "20", "--prometheus", "http://p:9090", "--query", "sum(x)",
         "--days", "2"],
    )  # fmt: skip
    assert told.exit_code == 1
    assert asked == [("http://p:9090", "sum(x)", 2 * 86400.0, 15.0)]


def test_what_is_learned_varies_and_what_is_measured_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_how: list[tuple[bool, Variation]] = []
    real = pasts.draw

    def draw(*arguments: Any) -> Episode:
        *_, since_s, vary = arguments
        drawn_how.append((since_s > 0, vary))
        return real(*arguments)

    monkeypatch.setattr(pasts, "draw", draw)
    options = read_options(None, TINY, FinetuneOptions)
    finetune.finetune(options, of(24.0), tmp_path / "own.onnx", "own")
    learned = {vary for measured, vary in drawn_how if not measured}
    assert learned == {options.vary}
    assert options.vary != AS_IT_CAME
    assert {vary for measured, vary in drawn_how if measured} == {AS_IT_CAME}


def test_what_the_judge_plugs_in_says_what_it_depends_on_and_writes_an_actor(tmp_path: Path) -> None:
    options = replace(read_options(None, TINY, FinetuneOptions), held_back_share=0.0)
    tune = Tuner(options)
    assert tune.mark() == Tuner(options).mark()
    assert tune.mark() != Tuner(replace(options, seed=1)).mark()
    tune(artifact.resolve("builtin://generalist"), of(3.0), tmp_path / "own.onnx")
    own = artifact.load((tmp_path / "own.onnx").as_uri())
    assert own.manifest.lineage["history"]["sha256"] == of(3.0).fingerprint()
    assert own.manifest.lineage["history"]["held_back_s"] == 0.0


def test_a_share_of_none_is_the_workload_alone() -> None:
    config = AutoscalingConfig(workloads=8, episode_ticks=8, curves=9)
    episode = finetune._source(of(3.0), 0.0)(np.random.default_rng(0), config)
    assert len(episode.seeds) == 8
    assert np.allclose(episode.cluster.service.capacity_rps, PROFILES["web"].capacity_rps)


def test_one_compilation_serves_all_workloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Traced as for real, but run as it is: what takes minutes is compiling, and it must happen once.
    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **how: real(function, **{**how, "backend": "eager"})
    )
    finetune.shared_program.cache_clear()
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    settings = [TINY[0].replace("compiled: false", "compiled: true"), *TINY[1:], "ppo.minibatch_rows=1040"]
    options = replace(read_options(None, settings, FinetuneOptions), held_back_share=0.0)
    before, passes = graphs["unique_graphs"], []
    for service, startup_s in (("web", 30.0), ("llm", 180.0)):
        past = Past(wave(hours=3.0), 2.0, PROFILES[service], startup_s)
        finetune.finetune(options, past, tmp_path / f"{service}.onnx", service)
        passes.append(graphs["unique_graphs"] - before)
    finetune.shared_program.cache_clear()
    torch._dynamo.reset()
    assert passes == [5, 5], "three functions of the world, one of acting, one of learning"
