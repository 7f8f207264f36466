"""`understudy`: look at policies, ask why, kill and resume. Everything it does can be done with kubectl alone, too.

Exit codes: 0 done, or nothing to do; 1 it could not be done; 2 the command line makes no sense.
"""

from __future__ import annotations

import dataclasses
import json
import urllib.request
from enum import StrEnum
from http import HTTPStatus
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from understudy_operator.cli import show, switches
from understudy_operator.cli.cluster import Cluster, ClusterError, policies_path
from understudy_operator.cli.show import Output
from understudy_operator.ledger import read_latest
from understudy_simulator import cli as judge

OPERATOR_NAMESPACE = "understudy-system"
OPERATOR_SERVICE = "understudy-operator:8080"
TIMEOUT_S = 5.0


class Mode(StrEnum):
    """Values of `spec.mode`."""

    OFF = "Off"
    SHADOW = "Shadow"
    APPROVE = "Approve"
    CANARY = "Canary"
    ACTIVE = "Active"


class _Group(TyperGroup):
    """Turns what could not be done into one line and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ClusterError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    help="Look at learned autoscalers, ask them why, kill and resume them.",
    epilog="Exit codes: 0 done or nothing to do, 1 it could not be done, 2 the command line makes no sense.",
)

Kubeconfig = Annotated[str | None, typer.Option(help="Path of the kubeconfig (default: $KUBECONFIG).")]
Context = Annotated[str | None, typer.Option(help="Context of the kubeconfig.")]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Namespace (default: the context's).")
]
Format = Annotated[Output, typer.Option("--output", "-o", help="How to show it.")]
Name = Annotated[str, typer.Argument(help="Name of the RLPolicy.")]
OptionalName = Annotated[str | None, typer.Argument(help="Name of the RLPolicy.")]
WholeNamespace = Annotated[bool, typer.Option("--namespace-wide", help="All policies of the namespace.")]
WholeCluster = Annotated[bool, typer.Option("--cluster", help="All policies of the cluster.")]
OperatorNamespace = Annotated[str, typer.Option(help="Namespace that the operator runs in.")]


def connect(kubeconfig: str | None, context: str | None) -> Cluster:
    """The cluster that a command is about; a seam for the tests."""
    return Cluster.connect(kubeconfig, context)


@app.command()
def status(
    name: OptionalName = None,
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A", help="All namespaces.")] = False,
    namespace: Namespace = None,
    output: Format = Output.TABLE,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Show what policies are doing."""
    if name and everywhere:
        raise typer.BadParameter("a name and -A exclude each other: give -n NAMESPACE with the name")
    cluster = connect(kubeconfig, context)
    where = None if everywhere else namespace or cluster.namespace
    if name:
        row = show.summary(cluster.get(policies_path(where, name)))
        if output is not Output.TABLE:
            show.data(row, output)
            return
        show.policies([row])
        show.conditions(row)
        return
    rows = [show.summary(policy) for policy in cluster.get(policies_path(where))["items"]]
    if output is not Output.TABLE:
        show.data(rows, output)
    elif rows:
        show.policies(rows)
    else:
        typer.echo(f"no RLPolicy in {'any namespace' if where is None else f'namespace {where}'}", err=True)


@app.command()
def explain(
    name: Name,
    namespace: Namespace = None,
    ledger: Annotated[Path | None, typer.Option(help="Read the decision from this ledger file.")] = None,
    operator_url: Annotated[str | None, typer.Option(help="Ask the operator at this address.")] = None,
    operator_namespace: OperatorNamespace = OPERATOR_NAMESPACE,
    operator_service: Annotated[
        str, typer.Option(help="Service of the operator, with its port.")
    ] = OPERATOR_SERVICE,
    output: Format = Output.TABLE,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Tell why a policy decided what it decided last: inputs, actor, reference, every guard, the write.

    Asks the ledger or the operator where one is named, else the operator through the API server's proxy, else what
    the status holds.
    """
    if ledger is not None and operator_url is not None:
        raise typer.BadParameter("--ledger and --operator-url exclude each other: name one of them")
    if ledger is not None or operator_url is not None:
        # Neither needs the cluster, which may be gone.
        where = namespace or "default"
        record = (
            _from_ledger(ledger, where, name) if ledger else _from_operator(str(operator_url), where, name)
        )
    else:
        cluster = connect(kubeconfig, context)
        where = namespace or cluster.namespace
        proxy = f"/api/v1/namespaces/{operator_namespace}/services/{operator_service}/proxy/decisions/{where}/{name}"
        try:
            record = cluster.get(proxy)
        except ClusterError as error:
            _explain_from_status(cluster, where, name, output, error)
            return
    if output is Output.TABLE:
        show.decision(record)
    else:
        show.data(record, output)


@app.command()
def kill(
    name: OptionalName = None,
    namespace: Namespace = None,
    namespace_wide: WholeNamespace = False,
    whole_cluster: WholeCluster = False,
    reason: Annotated[str, typer.Option(help="Why, for whoever is on call next.")] = "killed by hand",
    operator_namespace: OperatorNamespace = OPERATOR_NAMESPACE,
    output: Format = Output.TABLE,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Take the actor out: of one policy, of a namespace, or of the whole cluster. The reference carries on."""
    _one_scope(name, namespace_wide, whole_cluster)
    if reason.strip().lower() in switches.NOT_A_REASON:
        raise typer.BadParameter(
            f"--reason is {reason!r}, which would read as not killed: write why in a few words"
        )
    cluster = connect(kubeconfig, context)
    where = namespace or cluster.namespace
    if whole_cluster:
        change = switches.kill_cluster(cluster, operator_namespace, reason)
    elif namespace_wide:
        change = switches.kill_namespace(cluster, where, reason)
    else:
        change = switches.set_mode(cluster, where, str(name), Mode.OFF, reason)
    _tell(change, output)


@app.command()
def resume(
    name: OptionalName = None,
    namespace: Namespace = None,
    namespace_wide: WholeNamespace = False,
    whole_cluster: WholeCluster = False,
    operator_namespace: OperatorNamespace = OPERATOR_NAMESPACE,
    output: Format = Output.TABLE,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Undo a kill of the same scope; a policy goes back to the mode that it had."""
    _one_scope(name, namespace_wide, whole_cluster)
    cluster = connect(kubeconfig, context)
    where = namespace or cluster.namespace
    if whole_cluster:
        change = switches.resume_cluster(cluster, operator_namespace)
    elif namespace_wide:
        change = switches.resume_namespace(cluster, where)
    else:
        change = switches.resume_policy(cluster, where, str(name))
    _tell(change, output)


@app.command()
def mode(
    name: Name,
    wanted: Annotated[
        Mode,
        typer.Argument(metavar="MODE", case_sensitive=False, help="Off, Shadow, Approve, Canary or Active."),
    ],
    namespace: Namespace = None,
    output: Format = Output.TABLE,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Set how far a policy may go."""
    cluster = connect(kubeconfig, context)
    _tell(switches.set_mode(cluster, namespace or cluster.namespace, name, wanted), output)


def _one_scope(name: str | None, namespace_wide: bool, whole_cluster: bool) -> None:
    if (name is not None) + namespace_wide + whole_cluster != 1:
        raise typer.BadParameter("name exactly one scope: NAME, --namespace-wide or --cluster")


def _tell(change: switches.Change, output: Output) -> None:
    if output is Output.TABLE:
        typer.echo(change.message)
    else:
        show.data(dataclasses.asdict(change), output)


def _from_ledger(path: Path, namespace: str, name: str) -> dict[str, Any]:
    try:
        record = read_latest(path, (namespace, name))
    except OSError as error:
        raise ClusterError(f"the ledger {path} cannot be read: {error.strerror}") from error
    if record is None:
        raise ClusterError(f"the ledger {path} holds no decision of {namespace}/{name}")
    return record


def _from_operator(url: str, namespace: str, name: str) -> dict[str, Any]:
    address = f"{url.rstrip('/')}/decisions/{namespace}/{name}"
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as response:
            record: dict[str, Any] = json.load(response)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"the operator at {url} has no decision of {namespace}/{name} to tell: {error}"
        ) from error
    return record


def _explain_from_status(
    cluster: Cluster, namespace: str, name: str, output: Output, why_not_more: ClusterError
) -> None:
    row = show.summary(cluster.get(policies_path(namespace, name)))
    if row["lastDecision"] is None:
        raise ClusterError(
            f"nothing has been decided yet for rlpolicy {namespace}/{name}, or nothing that changed"
        )
    denied = why_not_more.status == HTTPStatus.FORBIDDEN
    mend = "ask for the right get on services/proxy" if denied else "name --ledger or --operator-url"
    typer.echo(
        f"only what the status holds: the operator could not be asked ({why_not_more}). Inputs, features and guards "
        f"are missing: {mend}",
        err=True,
    )
    if output is Output.TABLE:
        show.last_decision(row)
    else:
        show.data(row["lastDecision"], output)


def _read_range(url: str, promql: str, duration_s: float, step_s: float) -> tuple[Any, Any]:
    # Imported on use: it brings the whole HTTP client, and `understudy status` shall answer at once.
    from understudy_operator.telemetry.ranges import read_range

    return read_range(url, promql, duration_s, step_s)


judge.register(app, _read_range)


FORWARDED = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=FORWARDED)
def train(context: typer.Context) -> None:
    """Learn a policy, where the trainer is installed; `understudy train --help` lists the options."""
    _forward("train", context.args)


@app.command(context_settings=FORWARDED)
def tune(context: typer.Context) -> None:
    """Search for options that learn better policies; `understudy tune --help` lists what may be said."""
    _forward("tune", context.args)


@app.command(context_settings=FORWARDED)
def runs(context: typer.Context) -> None:
    """Look at training runs: `understudy runs compare DIR…`."""
    _forward("runs", context.args)


def _forward(name: str, arguments: list[str]) -> None:
    # By its entry point: the operator's room knows no torch, and is installed without it.
    (trainer,) = entry_points(group="understudy.commands", name=name)
    try:
        command = trainer.load()
    except ModuleNotFoundError as error:
        typer.echo(f"error: the trainer lacks {error.name}: pip install 'understudy[trainer]'", err=True)
        raise typer.Exit(1) from error
    program = command
    if not isinstance(command, typer.Typer):
        program = typer.Typer(add_completion=False)
        program.command()(command)
    # A history may lie in Prometheus, and only this room talks to it.
    program(arguments, prog_name=f"understudy {name}", obj=_read_range)


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
