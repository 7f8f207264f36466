"""The judge is fair, says the same twice, picks up where it stopped, and claims no more than its figures hold."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import understudy_policy
import understudy_simulator
from small_contest import SMALL, cells, constant_actor, wave
from understudy_policy import actions
from understudy_simulator.audition import best_aim
from understudy_simulator.judge import bench, report, show, summary
from understudy_simulator.judge.contest import CellResult, Entrant, Where, hold
from understudy_simulator.judge.entrants import (
    FORECAST,
    HPA,
    KEDA,
    PREFERENCES,
    ROW,
    STATIC,
    STOCK,
    SWEPT,
    TUNED,
    aims,
    rules,
)
from understudy_simulator.judge.summary import Contest, document
from understudy_simulator.judge.world import FIGURES
from understudy_simulator.protocol import TICK_S, draw

CHOSEN_ROW = 15
COST, VIOLATION, ADJUSTED, ACTIONS = (
    FIGURES.index(name) for name in ("cost", "violation", "adjusted", "actions_per_hour")
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1300,6000",
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return constant_actor(tmp_path_factory.mktemp("policies") / "constant.onnx", CHOSEN_ROW)


@pytest.fixture(scope="module")
def judged():
    """Two services, one of them slow to start, and a second family that is calm."""
    both = replace(SMALL, profiles=("web", "llm"))
    return [*cells(both), *cells(SMALL, wave(depth=0.2), "calm")]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def contest(judged, policy, out):
    return Contest.of(judged, bench.run(judged, [policy], out, workers=1))


@pytest.fixture(scope="module")
def figures(contest):
    return document(contest, {"quick": False, "seeds": 2, "left_out": {}})


def rows(result, name):
    return np.flatnonzero(np.array(result.entrants) == name)


def test_nobody_is_below_the_clairvoyant_bound(contest):
    for result in contest.results:
        assert np.all(result.bound[None, :] <= result.future[ADJUSTED])
        assert np.all(result.bound > 0.5)


def test_the_table_holds_every_contestant_with_clairvoyant_last(contest):
    assert contest.contestants == [
        "hpa-stock", "hpa-past", "hpa-hindsight", "keda-past", "keda-hindsight", "knative-past", "seasonal-past",
        "rule-past", "rule-hindsight", "static", "zero-shot", "auditioned", "perfect-forecast", "clairvoyant",
    ]  # fmt: skip


def test_hindsight_is_never_dearer_than_foresight(contest):
    for table in contest.tables:
        adjusted = {name: standing.figures[ADJUSTED].mean() for name, standing in table.items()}
        for rule in ("hpa", "keda", "rule"):
            assert adjusted[f"{rule}-hindsight"] <= adjusted[f"{rule}-past"]
        assert adjusted["rule-hindsight"] <= min(adjusted["hpa-hindsight"], adjusted["keda-hindsight"])


def test_who_is_chosen_on_the_past_is_the_best_of_the_past(contest):
    for result, table in zip(contest.results, contest.tables, strict=True):
        past = result.past[ADJUSTED].mean(axis=1)
        for name, entrants in (
            ("hpa-past", [HPA]), ("keda-past", [KEDA]), ("rule-past", SWEPT), ("zero-shot", ["constant"]),
            ("auditioned", [*SWEPT, "constant"]),
        ):  # fmt: skip
            among = np.isin(result.entrants, entrants)
            assert past[table[name].configuration] == past[among].min()


def test_a_fixed_number_of_pods_costs_just_that(contest):
    for cell, result in zip(contest.cells, contest.results, strict=True):
        (k,) = rows(result, STATIC)
        replicas = result.replicas[:, k]
        assert len(set(replicas.tolist())) == 1
        arrivals = draw(cell).arrivals[:, cell.past_ticks :].sum(axis=(1, 2))
        pod_seconds = replicas[0] * TICK_S * len(replicas)
        started = 5.0 * max(cell.start_replicas(cell.past_ticks) - replicas[0], 0)  # termination lag
        expected = (pod_seconds + started) * cell.service.capacity_rps / arrivals
        np.testing.assert_allclose(result.future[COST, k], expected, rtol=1e-4)


def test_knowing_the_rate_to_come_beats_every_rule_where_the_load_moves_and_pods_start_slowly():
    (cell,) = cells(replace(SMALL, startup_s=(180.0,), pods=(20.0,)))
    table = summary.standings(hold([cell], rules())[0])
    forecast, rule = (table[name].figures[ADJUSTED].mean() for name in ("perfect-forecast", "rule-hindsight"))
    assert table["clairvoyant"].figures[ADJUSTED].mean() < forecast < rule


def test_a_perfect_forecast_asks_for_pods_just_as_early_as_they_start_and_knows_of_no_end():
    future_rps = np.where(np.arange(12) < 8, [[10.0], [20.0]], [[40.0], [60.0]])
    (forecast,) = (entrant for entrant in rules() if entrant.name == FORECAST)
    at_full = [k for k, label in enumerate(forecast.labels) if label.endswith("at 100%")]
    count = 4  # both cells with both leads
    where = Where(
        cell=np.array([0, 1, 0, 1]),
        half_past_s=np.zeros(count), past_s=np.zeros(count), capacity_rps=np.full(count, 10.0),
        service_s=np.full(count, 0.1), latency_threshold_s=np.full(count, 1.0),
        min_replicas=np.ones(count, np.int64), max_replicas=np.full(count, 5), static_replicas=np.ones(count, np.int64),
        startup_s=np.array([30.0, 60.0, 30.0, 60.0]), future_rps=future_rps,
    )  # fmt: skip
    player = forecast.play(np.repeat(at_full, 2), where)
    asked = np.stack([player.decide(np.empty((count, 0)), None, tick * TICK_S) for tick in range(12)])
    # The step comes at tick 8; leads are start-up (2 and 4 ticks) or one and a half of it (3 and 6), and a tick.
    assert (asked[1:] != asked[:-1]).argmax(axis=0).tolist() == [4, 2, 3, 0]
    assert asked[0].tolist() == [1, 2, 1, 2]
    assert asked[-1].tolist() == [4, 5, 4, 5], "maxReplicas is 5"


def test_adjusted_is_cost_plus_ten_times_what_is_missed_beyond_the_budget(contest):
    for result in contest.results:
        missed = np.maximum(result.future[VIOLATION] - 0.01, 0)
        np.testing.assert_allclose(result.future[ADJUSTED], result.future[COST] + 10 * missed)
        assert np.all((result.future[VIOLATION] >= 0) & (result.future[VIOLATION] <= 1))
        assert np.all(result.future[COST] > 0)


def test_latency_quantiles_and_shares_of_time_are_what_their_names_say(contest):
    values = {name: np.stack([r.future[k] for r in contest.results]) for k, name in enumerate(FIGURES)}
    assert np.all(values["latency_p50_s"] <= values["latency_p95_s"])
    assert np.all(values["latency_p95_s"] <= values["latency_p99_s"])
    assert np.all(values["tau_under"] + values["tau_over"] <= 1 + 1e-9)
    assert np.all((values["instability"] >= 0) & (values["instability"] <= 1))
    assert np.all(values["reversals_per_hour"] <= values["actions_per_hour"])


def test_a_policy_that_always_names_a_row_fares_as_that_row_does(contest):
    for result in contest.results:
        (row,) = rows(result, ROW)[[CHOSEN_ROW]]
        own = rows(result, "constant")
        assert len(own) == len(PREFERENCES)
        for k in own:
            np.testing.assert_allclose(result.future[COST, k], result.future[COST, row], rtol=1e-3)
            np.testing.assert_allclose(result.future[ADJUSTED, k], result.future[ADJUSTED, row], rtol=0.01)


def test_a_policy_is_told_at_which_utilisation_it_would_have_started_on_the_past(judged):
    cell = replace(judged[0], ticks=120, past_ticks=72)
    told = []

    class Listens:
        def decide(self, values, seen, now_s):
            return seen.replicas

    def play(pick, where):
        told.append((where.aim_cost, where.aim_violation))
        return Listens()

    (alone,) = hold([cell], [aims()])
    hold([cell], [Entrant("listener", ("",), play)], aims())
    (cost, violation) = told[0]
    past = alone.past.mean(axis=-1)
    np.testing.assert_array_equal(cost, np.stack([past[COST]] * cell.seeds))
    np.testing.assert_array_equal(violation, np.stack([past[FIGURES.index("violation")]] * cell.seeds))
    assert np.all(np.diff(cost) <= 0), "a higher utilisation never costs more pods"


@pytest.mark.parametrize(("price", "best"), [(0.5, 0.95), (30.0, 0.66)])
def test_the_utilisation_that_is_told_is_the_cheapest_at_the_price(price, best):
    cost = np.array([2.0, 1.9, 1.7, 1.5, 1.35, 1.2, 1.1, 1.0])
    missed = np.array([0.0, 0.0, 0.0, 0.001, 0.01, 0.05, 0.1, 0.5])
    assert best_aim(np.array([price]), cost[:, None], missed[:, None]) == [best]


def test_a_cell_fares_the_same_alone_and_in_company(judged, contest):
    alone = hold([judged[1]], rules())[0]
    together = contest.results[1]
    own = np.array(together.entrants) != "constant"
    np.testing.assert_array_equal(alone.future, together.future[:, own])
    np.testing.assert_array_equal(alone.past, together.past[:, own])
    np.testing.assert_array_equal(alone.bound, together.bound)


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(judged, tmp_path, contest, policy):
    two = bench.run(judged[:2], [policy], tmp_path, workers=2)
    for one, other in zip(contest.results, two, strict=False):
        np.testing.assert_array_equal(one.future, other.future)
        np.testing.assert_array_equal(one.replicas, other.replicas)


@pytest.mark.slow
def test_an_interrupted_run_judges_only_what_is_missing(judged, policy, out, contest, tmp_path):
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    kept, gone, broken = (tmp_path / f"{cell.key}.npz" for cell in judged)
    gone.unlink()
    broken.write_bytes(broken.read_bytes()[:1000])
    written, shares = kept.stat().st_mtime_ns, []
    results = bench.run(judged, [policy], tmp_path, workers=1, progress=shares.append)
    assert kept.stat().st_mtime_ns == written
    assert shares[0] == pytest.approx(1 / 3)
    assert shares[-1] == pytest.approx(1.0)
    for before, after in zip(contest.results, results, strict=True):
        np.testing.assert_array_equal(before.future, after.future)


def test_results_of_other_inputs_are_not_taken_for_these(judged, policy, out, contest):
    everybody = bench.entrants([policy])
    own = bench.mark(judged[0], everybody, [policy])
    assert own == bench.mark(judged[0], everybody, [policy])
    assert own != bench.mark(replace(judged[0], seeds=3), everybody, [policy])
    assert own != bench.mark(judged[0], rules(), [])


def test_two_files_of_one_name_are_refused(policy, tmp_path):
    other = constant_actor(tmp_path / "constant.onnx", 3)
    with pytest.raises(ValueError, match="'constant'"):
        bench.entrants([policy, other])
    with pytest.raises(ValueError, match="'hpa'"):
        bench.entrants([constant_actor(tmp_path / "hpa.onnx", 3)])


def test_several_policies_are_told_apart(judged, policy, tmp_path):
    other = constant_actor(tmp_path / "generous.onnx", 0)
    short = replace(judged[0], ticks=120, past_ticks=72)
    everybody = [e for e in bench.entrants([policy, other]) if e.name not in ("knative", "seasonal")]
    result = hold([short], everybody)[0]
    assert {"constant", "generous"} <= set(result.entrants)
    costs = {name: result.future[COST][rows(result, name)].mean() for name in ("constant", "generous")}
    assert costs["generous"] > costs["constant"]


def invented(rule, own, stock=2.0, bound=1.0, seeds=4, tuned=None, tuned_future=None):
    """A result in which each entrant has one configuration and a given adjusted cost."""
    names = (
        STOCK,
        HPA,
        KEDA,
        "knative",
        "seasonal",
        ROW,
        STATIC,
        FORECAST,
        "mine",
        *([TUNED + "mine"] if tuned else []),
    )
    costs = [stock, rule + 0.2, rule + 0.1, 3.0, 3.0, rule, 4.0, 1.1, own, *([tuned] if tuned else [])]
    adjusted = np.array(costs)[:, None].repeat(seeds, 1)
    values = np.zeros((len(FIGURES), len(names), seeds))
    values[ADJUSTED], values[COST], values[VIOLATION], values[ACTIONS] = adjusted, adjusted, 0.005, 6.0
    past, ticks = values.copy(), 8
    if tuned_future:
        values[[[ADJUSTED], [COST]], -1] = tuned_future
    return CellResult(
        entrants=names,
        labels=names,
        past=past,
        future=values,
        bound=np.full(seeds, bound),
        replicas=np.ones((ticks, len(names)), np.int16),
        demand_pods=np.ones(ticks),
        needed=np.ones(ticks, np.int64),
    )


def invented_contest(*pairs):
    return Contest.of(cells(replace(SMALL, pods=tuple(range(2, 2 + len(pairs)))))[: len(pairs)],
                      [invented(*pair) for pair in pairs])  # fmt: skip


def test_conditions_that_were_varied_are_told_apart():
    four = cells(replace(SMALL, pods=(2, 3), profiles=("web", "api")))
    results = [invented(1.6, 1.2) if cell.pods == 2 else invented(1.25, 1.25) for cell in four]
    told = document(Contest.of(four, results), {"seeds": 4})
    assert [(own["condition"], own["cells"]) for own in told["slices"]] == [
        ("profile api", 2), ("profile web", 2), ("2 pods", 2), ("3 pods", 2),
    ]  # fmt: skip
    assert told["slices"][2]["contestants"]["zero-shot"]["geomean"] == pytest.approx(0.75)
    assert "| 2 pods | 2 |" in report.markdown(told)


def test_an_interval_from_one_load_says_so():
    alone = invented_contest((1.5, 1.2), (1.5, 1.25))
    two = Contest.of(
        [replace(cell, segment=f"wave/{k}") for k, cell in enumerate(alone.cells)], alone.results
    )
    says = [show.verdict(document(contest, {}), "zero-shot") for contest in (alone, two)]
    assert ["of luck on this one load" in said for said in says] == [True, False]


def test_headlines_are_those_worked_out_by_hand():
    found = document(invented_contest((1.6, 1.2), (1.25, 1.25)), {})["headlines"]["zero-shot"]
    over = found["adjusted_over_rule_past"]
    assert over["geomean"] == pytest.approx(np.sqrt(1.2 / 1.6))
    assert over["worst"] == pytest.approx(1.0)
    assert over["low"] == pytest.approx(0.75)
    assert over["high"] == pytest.approx(1.0)
    assert found["adjusted_over_hpa_past"]["worst"] == pytest.approx(1.25 / 1.45)
    assert found["gap_closed"]["share"] == pytest.approx(np.log(1.6 / 1.2) / np.log(1.6 * 1.25))
    assert found["better_than_rule_hindsight_share"] == 0.5
    assert found["cost_at_equal_slo"] == {
        "geomean": pytest.approx(np.sqrt(0.75)), "low": pytest.approx(0.75), "high": pytest.approx(1.0),
        "worst": pytest.approx(1.0), "cells": 2, "of": 2,
    }  # fmt: skip
    assert found["violation_over_rule_past_worst"] == 1.0
    assert found["actions_over_rule_past"] == 1.0
    assert found["actions_over_rule_past_twice_share"] == 0.0


def test_the_audition_keeps_the_rule_where_the_policy_was_worse_on_the_past():
    worse, better = invented_contest((1.2, 1.5), (1.6, 1.3)).tables
    assert worse["auditioned"].label == ROW
    assert better["auditioned"].label == "mine"


def test_the_stock_hpa_is_one_of_the_rules_that_rule_past_is_the_best_of():
    (table,) = invented_contest((1.6, 1.7, 1.5)).tables
    assert table["rule-past"].label == STOCK
    assert table["rule-hindsight"].label == STOCK


def test_a_policy_trained_further_takes_part_in_the_audition_like_any_other():
    # The future says the opposite of the past, and nobody asks it.
    worse, better = (
        invented(1.2, 1.5, tuned=1.3, tuned_future=1.0),
        invented(1.2, 1.5, tuned=1.1, tuned_future=1.6),
    )
    for result, chosen in ((worse, ROW), (better, TUNED + "mine")):
        table = summary.standings(result)
        assert table["auditioned"].label == chosen
        assert table["fine-tuned"].label == TUNED + "mine"
        assert table["zero-shot"].label == "mine"
        assert list(table)[-5:] == [
            "zero-shot",
            "fine-tuned",
            "auditioned",
            "perfect-forecast",
            "clairvoyant",
        ]


def test_a_fine_tuned_policy_chooses_its_preference_on_the_past():
    result = invented(1.2, 1.5, tuned=1.1)
    # The same with a second preference that is cheaper on the past and dearer afterwards.
    names = (*result.entrants, TUNED + "mine")
    past, future = (
        np.concatenate([part, part[:, -1:] + more], axis=1)
        for part, more in ((result.past, -0.05), (result.future, 0.5))
    )
    two = replace(result, entrants=names, labels=(*result.labels, "thrifty"), past=past, future=future,
                  replicas=np.ones((8, len(names)), np.int16))  # fmt: skip
    assert summary.standings(two)["fine-tuned"].label == "thrifty"


def test_the_rule_closes_none_of_the_gap_and_the_bound_all_of_it(figures):
    assert figures["headlines"]["rule-past"]["gap_closed"]["share"] == 0
    assert figures["headlines"]["clairvoyant"]["gap_closed"]["share"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("own", "says"),
    [((1.2, 1.1, 1.3), "cheaper"), ((1.9, 1.8, 1.95), "dearer"), ((1.3, 1.9, 1.5), "cannot be told")],
)
def test_a_win_is_claimed_only_where_the_interval_excludes_one(own, says):
    told = document(invented_contest(*((1.5, each) for each in own)), {})
    assert says in show.verdict(told, "zero-shot")


def test_more_scatter_means_a_wider_interval():
    calm, wild = invented_contest((1.5, 1.2), (1.5, 1.25)), invented_contest((1.5, 1.0), (1.5, 1.9))

    def width(contest):
        told = contest.ratio("zero-shot", "rule-past")
        return told["high"] - told["low"]

    assert 0 < width(calm) < width(wild)
    assert calm.ratio("zero-shot", "rule-past") == calm.ratio("zero-shot", "rule-past")


def test_cells_of_one_part_of_a_recording_do_not_pass_for_independent_ones():
    own = (1.1, 1.2, 1.15, 1.4, 1.5, 1.45)
    alone = invented_contest(*((1.5, each) for each in own))
    by_part = [replace(cell, segment=f"wave/{k // 3}") for k, cell in enumerate(alone.cells)]
    shared = Contest.of(by_part, alone.results)
    each, together = (c.ratio("zero-shot", "rule-past") for c in (alone, shared))
    assert together["geomean"] == each["geomean"]
    assert together["high"] - together["low"] > 1.3 * (each["high"] - each["low"])
    # Both parts drawn from the same side now and then: the interval reaches into them.
    assert together["low"] < 1.2 / 1.5
    assert together["high"] > 1.4 / 1.5


def test_flapping_in_one_cell_is_not_hidden_by_another_where_the_rule_is_busy():
    calm, busy = invented(1.5, 1.2), invented(1.5, 1.2)
    mine = calm.entrants.index("mine")
    for result, rule, policy in ((calm, 2.0, 40.0), (busy, 120.0, 60.0)):
        result.future[ACTIONS] = rule
        result.future[ACTIONS, mine] = policy
    told = document(Contest.of(cells(replace(SMALL, pods=(2, 3))), [calm, busy]), {})["headlines"][
        "zero-shot"
    ]
    assert told["actions_over_rule_past"] == pytest.approx(np.sqrt(20 * 0.5))
    assert told["actions_over_rule_past_worst"] == pytest.approx(20.0)
    assert told["actions_over_rule_past_twice_share"] == 0.5


def test_a_cell_is_judged_alike_whoever_shares_its_batch():
    # Many pods, since one in thousands is as slow as others usually are.
    both = cells(replace(SMALL, startup_s=(30.0, 180.0), pods=(100.0,), seeds=10))
    alone, (together, _) = hold(both[:1], [aims()])[0], hold(both, [aims()])
    assert both[0].startup_s == 30.0
    assert np.array_equal(alone.past, together.past)
    assert np.array_equal(alone.future, together.future)


def test_a_module_that_only_tells_spoils_no_result(monkeypatch, tmp_path):
    def digest_with(name, text):
        root = tmp_path / "simulator"
        for package, module in (("simulator", understudy_simulator), ("policy", understudy_policy)):
            shutil.copytree(module.__path__[0], tmp_path / package)
            monkeypatch.setattr(module, "__path__", [str(tmp_path / package)])
        (root / name).write_text(text)
        bench.program.cache_clear()
        found = bench.program()
        shutil.rmtree(tmp_path / "policy")
        shutil.rmtree(root)
        monkeypatch.undo()
        bench.program.cache_clear()
        return found

    assert all((Path(understudy_simulator.__path__[0]) / name).is_file() for name in bench.TELLING)
    assert digest_with("judge/summary.py", "mended") == bench.program()
    assert digest_with("cluster.py", "mended") != bench.program()


def test_the_document_has_the_shape_that_programs_expect(figures, contest):
    told = json.loads(json.dumps(figures, allow_nan=False))
    assert told["protocol"] == "understudy-judge/1"
    assert len(told["cells"]) == len(contest.cells) * len(contest.contestants)
    needed = {"trace", "segment", "profile", "pods", "startup_s", "contestant", "cost", "violation", "adjusted",
              "actions_per_hour"}  # fmt: skip
    assert all(needed <= set(row) for row in told["cells"])
    assert set(told["families"]) == {"wave", "calm"}
    for name in contest.contestants:
        assert set(told["headlines"][name]["adjusted_over_rule_past"]) == {"geomean", "low", "high", "worst"}
        assert {"adjusted_over_hpa_past", "adjusted_over_rule_hindsight", "gap_closed"} <= set(
            told["headlines"][name]
        )
    assert {"violation_over_rule_past_worst", "actions_over_rule_past"} <= set(told["headlines"]["zero-shot"])
    regrets = [row["regret"] for row in told["cells"]]
    assert min(regrets) >= 0


def test_the_pareto_sweep_of_a_policy_is_its_preferences(contest):
    labels, cost, missed = summary.sweep(contest, "constant")
    assert labels == [f"price {price:g}" for price in PREFERENCES]
    assert len(cost) == len(missed) == len(PREFERENCES)
    labels, cost, missed = summary.sweep(contest, ROW)
    assert len(labels) == len(actions.TABLE)
    # Among rows of one rule, more head-room costs more and misses no more.
    for rule in range(actions.RULES):
        rows = np.flatnonzero(rule == actions.ROW_RULE)
        levels = rows[actions.ROW_UTILIZATION[rows].argsort()]
        assert np.all(np.diff(cost[levels]) < 0)
        assert np.all(np.diff(missed[levels]) > -1e-3)


def test_the_page_stands_alone_and_names_everybody(contest, figures):
    page = report.render(contest, figures)
    for name in contest.contestants:
        assert name in page
    assert show.verdict(figures, "zero-shot") in page
    assert page.count("data:image/png;base64,") == 4
    assert "http://" not in page
    assert "https://" not in page


def test_what_comes_from_outside_cannot_become_markup(contest, figures):
    hostile = figures | {"conditions": figures["conditions"] | {"left_out": {"<script>.csv": "<b>"}}}
    page = report.render(contest, hostile)
    assert "<script>" not in page
    assert "&lt;script&gt;.csv" in page


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH to open the report with")
def test_a_browser_shows_the_report_with_its_pictures(contest, figures, tmp_path):
    page, probe, picture = (tmp_path / name for name in ("report.html", "probe.html", "report.png"))
    text = report.render(contest, figures)
    page.write_text(text)
    count = (
        "<script>document.title = [...document.images].filter(i => i.naturalWidth > 600).length"
        " + ' of ' + document.images.length + ' pictures'</script>"
    )
    probe.write_text(text.replace("</body>", f"{count}</body>"))

    def browse(*arguments):
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        return subprocess.run(
            [CHROMIUM, *FLAGS, profile, *arguments], check=True, capture_output=True, timeout=60, text=True
        ).stdout

    assert "<title>4 of 4 pictures</title>" in browse("--dump-dom", probe.as_uri())
    browse(f"--screenshot={picture}", page.as_uri())
    assert picture.stat().st_size > 100_000  # a blank page of this size has some 20 kB


def test_the_tables_for_the_documentation_name_every_family_and_contestant(contest, figures):
    text = report.markdown(figures)
    for name in contest.contestants:
        assert f"| `{name}` |" in text
    assert "| calm |" in text
    assert "3 cells with 2 seeds" in text
    policy = figures["headlines"]["zero-shot"]
    assert f"{policy['cost_at_equal_slo']['geomean']:.3f} (" in text
    assert f"| {policy['violation_over_rule_past_worst']:.1f} × |" in text


def test_tables_replace_what_lay_between_the_marks_of_a_page(tmp_path):
    page = tmp_path / "judge.md"
    report.insert(page, "first")
    page.write_text(f"# Before\n{page.read_text()}After\n")
    report.insert(page, "second")
    told = page.read_text()
    assert "first" not in told
    assert told.startswith("# Before\n")
    assert "second" in told
    assert told.endswith("After\n")
    page.write_text("no marks")
    with pytest.raises(ValueError, match="judge: begin"):
        report.insert(page, "third")
    assert page.read_text() == "no marks"


def test_a_terminal_is_told_a_line_per_contestant_and_family(contest, figures, capsys):
    show.table(figures)
    told = capsys.readouterr().out
    for name in (*contest.contestants, "wave", "calm"):
        assert name in told
    assert told.index("clairvoyant") > told.index("auditioned")
    assert "cost at equal SLO" in " ".join(told.split())
