"""How things look on a terminal; `-o json` and `-o yaml` show the same things without the looks."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from understudy_policy import explain
from understudy_policy.features import SCHEMA
from understudy_policy.guards.reasons import SENTENCES, Reason

WIDTH_OF_A_PIPE = 220

_SENTENCES = {reason.label: SENTENCES[reason] for reason in Reason}
_ABNORMAL_IF_TRUE = frozenset({"Conflict", "Degraded"})
_NOT_WORTH_A_WORD = frozenset({"GuardrailLimited", "Acting"})


class Output(StrEnum):
    """How to show something."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def data(value: Any, output: Output) -> None:
    """Print plain data for another program."""
    if output is Output.JSON:
        print(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        print(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), end="")


def summary(policy: dict[str, Any]) -> dict[str, Any]:
    """A policy as `status` shows it, from the object."""
    spec, status = policy.get("spec") or {}, policy.get("status") or {}
    decision = status.get("lastDecision") or {}
    return {
        "namespace": policy["metadata"]["namespace"],
        "name": policy["metadata"]["name"],
        "mode": spec.get("mode", "Shadow"),
        "stage": status.get("stage"),
        "authority": status.get("authority"),
        "current": status.get("currentReplicas"),
        "reference": status.get("referenceReplicas"),
        "proposed": status.get("proposedReplicas"),
        "desired": status.get("desiredReplicas"),
        "reason": decision.get("reason"),
        "lastDecision": decision or None,
        "owner": spec.get("owner"),
        "conditions": status.get("conditions", []),
    }


def policies(rows: Iterable[dict[str, Any]]) -> None:
    """One line a policy."""
    columns = (
        "namespace",
        "name",
        "mode",
        "stage",
        "authority",
        "current",
        "reference",
        "proposed",
        "desired",
        "reason",
    )
    table = _table(*columns, "conditions")
    for row in rows:
        table.add_row(*(_cell(row[column]) for column in columns), _notable(row["conditions"]))
    _console().print(table)


def conditions(row: dict[str, Any]) -> None:
    """All conditions of one policy."""
    table = _table("condition", "status", "reason", "since", "message")
    for each in row["conditions"]:
        since = each["lastTransitionTime"]
        table.add_row(each["type"], each["status"], each["reason"], since, each["message"])
    _console().print(table)


def decision(record: dict[str, Any]) -> None:
    """The whole chain of a decision, from what was seen to what was written."""
    out = _console()
    out.print(
        f"[bold]{record['namespace']}/{record['policy']}[/]  {explain.sentence(record)}", highlight=False
    )
    model = record["model_sha256"]
    facts = {
        "decision": f"{record['decision_id']}, {record['time']}, tick {record['tick_id']}",
        "mode": f"{_cell(record['mode'])}, generation {record['generation']}",
        "model": "none" if model is None else f"sha256:{model[:12]}…",
        "replicas": f"{_cell(record['current_replicas'])} current, {record['ready_replicas']} ready, "
        f"{_cell(record['desired_replicas'])} desired",
        "actor": f"{record['proposed_replicas']}{_actor(record['actor'])}",
        "reference": f"{record['reference_raw_replicas']}, stabilised {record['reference_replicas']}"
        f"{'' if record['reference_known'] else ' (it lacks its signal and holds)'}",
        "authority": f"{record['authority']['granted']:g} granted, {record['authority']['in_force']:g} in force",
        "demand": f"{_cell(record['demand_pods'])} pods, at {_cell(record['capacity_rps'])} requests/s a pod "
        f"({'given' if record['capacity_given'] else 'estimated'})",
        "price of a miss": _price(record.get("error_budget")),
        "doubt": ", ".join(record["doubt"]) or "none",
        "kill switch": record["killed"] if record["killed"] != "None" else "not engaged",
        "write": _write(record["write"]),
    }
    table = _table("", "")
    table.show_header = False
    for name, value in facts.items():
        table.add_row(name, value)
    out.print(table)

    table = _table("signal", "value", "quality", "cause", "age")
    for name, signal in record["signals"].items():
        age = "" if signal["age_s"] is None else f"{signal['age_s']:g} s"
        table.add_row(name, _cell(signal["value"]), signal["quality"], signal["cause"], age)
    out.print(table)

    table = _table("guard", "before", "after", "why")
    for step in record["guards"]:
        moved = step["before"] != step["after"]
        after = f"[bold]{step['after']}[/]" if moved else str(step["after"])
        table.add_row(
            step["guard"], str(step["before"]), after, _SENTENCES.get(step["reason"], "") if moved else ""
        )
    out.print(table)
    _details(out, record)


def _price(budget: dict[str, float] | None) -> str:
    if budget is None:
        return "not part of this record, it was written by an older operator"
    return (
        f"{budget['missed_request_price']:.3g}, error budget burnt {budget['burn']:.2f} × "
        f"({budget['known']:.0%} of its window is known)"
    )


def _details(out: Console, record: dict[str, Any]) -> None:
    if "features" not in record:
        out.print(
            "features and likeliest rows: not part of this record, they are kept when the actor chooses a row"
        )
        return
    if "details_of" in record:
        out.print(
            f"as the actor saw it when it chose the row (decision {record['details_of']}):", highlight=False
        )
    table = _table("row", "rule", "probability")
    for top in record["top_rows"]:
        table.add_row(str(top["row"]), top["rule"], f"{top['probability']:.3f}")
    out.print(table)
    meaning = dict(SCHEMA)
    table = _table("feature", "value", "meaning")
    for name, value in record["features"].items():
        table.add_row(name, _cell(value), meaning.get(name, ""))
    out.print(table)


def last_decision(row: dict[str, Any]) -> None:
    """What the status alone can tell of the last decision that changed something."""
    told = row["lastDecision"] or {}
    table = _table("", "")
    table.show_header = False
    for name in ("decisionId", "time", "message", "rule", "reason", "modelSha256"):
        if told.get(name):
            table.add_row(name, str(told[name]))
    _console().print(table)


def _actor(actor: dict[str, Any]) -> str:
    if actor["row"] is None:
        return " (no row chosen)"
    chosen = "in this tick" if actor["age_ticks"] == 0 else f"{actor['age_ticks']} ticks ago"
    return f" ({actor['rule']}; row {actor['row']}, chosen {chosen}, p={_cell(actor['probability'])})"


def _write(write: dict[str, str] | None) -> str:
    if write is None:
        return "none: nothing to write, or not in this mode"
    version = f", resourceVersion {write['resource_version']}" if write["resource_version"] else ""
    return f"{write['outcome']}{version}{': ' + write['message'] if write['message'] else ''}"


def _notable(found: Iterable[dict[str, Any]]) -> str:
    """The conditions that are not as one would wish, with their reasons."""
    bad = [
        f"{each['type']}={each['status']} ({each['reason']})"
        for each in found
        if each["type"] not in _NOT_WORTH_A_WORD
        and each["status"] != ("False" if each["type"] in _ABNORMAL_IF_TRUE else "True")
    ]
    acting = [
        f"Acting=False ({each['reason']})"
        for each in found
        if each["type"] == "Acting" and each["status"] == "False"
    ]
    return ", ".join(bad + acting) or ("as intended" if found else "no status yet")


def _cell(value: Any) -> str:
    if value is None or value == "None":
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column.upper(), overflow="fold")
    return table


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=WIDTH_OF_A_PIPE)
