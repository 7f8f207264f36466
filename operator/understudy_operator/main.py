"""The composition root: everything is wired here and nowhere else.

kopf watches and feeds caches, three lines a handler. One loop of our own decides for all policies at once: a timer
per policy would cost two tasks each and a call to every dependency per policy.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import kopf
import typer

from understudy_operator import logs
from understudy_operator.actors import Actors
from understudy_operator.cache import Cache
from understudy_operator.events import EventRecorder
from understudy_operator.health import Endpoints, Vitals, serving
from understudy_operator.killswitch import KillSwitch
from understudy_operator.kube import Kube, KubeError, load_configuration
from understudy_operator.ledger import Ledger, LedgerConfig
from understudy_operator.loop import Loop
from understudy_operator.metrics import Metrics
from understudy_operator.recorder import Decisions, Recorder
from understudy_operator.scaling import Scaler, key_of
from understudy_operator.status import StatusWriter
from understudy_operator.store import PolicyStore
from understudy_operator.telemetry.port import Prometheus, PrometheusConfig
from understudy_operator.tick import Tick
from understudy_policy.api import GROUP, VERSION

log = logging.getLogger(__name__)

POLICIES = f"/apis/{GROUP}/{VERSION}/rlpolicies"


@dataclass(frozen=True)
class OperatorConfig:
    """How the operator runs.

    Attributes:
        prometheus: where telemetry comes from.
        namespace: the operator's own, where the cluster-wide kill switch lies.
        kubeconfig, context: how the API server is reached; by default as a pod, else by the default kubeconfig.
        ledger: file of the decision ledger; None: decisions are kept in memory only.
        host, port: of health, metrics and decisions.
        relist_s: seconds between two complete lists, which find what a watch has missed.
    """

    prometheus: PrometheusConfig
    namespace: str = "understudy-system"
    kubeconfig: Path | None = None
    context: str | None = None
    ledger: Path | None = None
    host: str = "0.0.0.0"
    port: int = 8080
    relist_s: float = 600.0


@dataclass
class Operator:
    """All parts, wired.

    Attributes:
        kube, store, scaler, killswitch, tick, recorder, loop, metrics, decisions, vitals, actors: see there.
        workloads, hpas, namespaces: what is known of the cluster beside the policies.
        port: that health and metrics are served on, once they are.
    """

    kube: Kube
    store: PolicyStore
    scaler: Scaler
    killswitch: KillSwitch
    tick: Tick
    recorder: Recorder
    loop: Loop
    metrics: Metrics
    decisions: Decisions
    vitals: Vitals
    actors: Actors
    port: int = 0
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Describe the caches that are fed by watches."""
        scaler, killswitch = self.scaler, self.killswitch
        self.workloads = Cache(
            ("/apis/apps/v1/deployments", "/apis/apps/v1/statefulsets"),
            scaler.on_workload_event,
            scaler.known_workloads,
            scaler.drop_workload,
            key_of,
        )
        self.hpas = Cache(
            ("/apis/autoscaling/v2/horizontalpodautoscalers",),
            scaler.on_hpa_event,
            scaler.known_hpas,
            scaler.drop_hpa,
            lambda body: (body["metadata"]["namespace"], body["metadata"]["name"]),
        )
        self.namespaces = Cache(
            ("/api/v1/namespaces",),
            killswitch.on_namespace_event,
            killswitch.known_namespaces,
            killswitch.drop_namespace,
            lambda body: body["metadata"]["name"],
        )

    async def refresh(self) -> None:
        """List everything once: the caches are complete afterwards, whatever a watch has missed.

        Raises:
            KubeError: something could not be listed.
        """
        for cache in (self.workloads, self.hpas, self.namespaces):
            await cache.refresh(self.kube.list)
        corrected = await self.store.sync(lambda: self.kube.list(POLICIES))
        if corrected:
            log.info("listing all policies corrected %d of them", corrected)

    async def start(self) -> None:
        """Fill the caches, then begin to tick."""
        while True:
            try:
                await self.refresh()
                break
            except KubeError as error:
                log.error("the first lists failed, trying again: %s", error.message)
                await asyncio.sleep(1.0)
        self._tasks.append(asyncio.create_task(self.loop.run()))

    async def relist(self, every_s: float) -> None:
        """Repeat the lists until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.refresh()
            except KubeError as error:
                log.warning("listing again failed: %s", error.message)
            except Exception:  # what one list met must not end the lists for good
                log.exception("listing again failed")

    async def stop(self) -> None:
        """Finish the ticks under way, begin no other."""
        self.loop.stop()
        await asyncio.gather(*self._tasks)
        await self.recorder.settle()

    def not_ready(self) -> str | None:
        """Why the operator is not ready, None once it is."""
        if not self.store.synced:
            return "the policies have not been listed yet"
        if any(record.policy for record in self.store) and not self.actors.loaded_once:
            return "the first tick is not over yet"
        return None


@asynccontextmanager
async def operator(config: OperatorConfig) -> AsyncIterator[Operator]:
    """Wire the operator, and take it apart again at the end."""
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        kube = await stack.enter_async_context(
            await Kube.connect(
                config.kubeconfig,
                config.context,
                on_call=lambda verb, outcome: metrics.api_calls.labels(verb, outcome).inc(),
            )
        )
        prometheus = Prometheus(config.prometheus, metrics.count_query)
        stack.callback(prometheus.close)
        store, scaler, actors, decisions = PolicyStore(), Scaler(kube), Actors(), Decisions()
        killswitch = KillSwitch(kube, config.namespace)
        ledger = None
        if config.ledger is not None:
            ledger = Ledger(LedgerConfig(config.ledger), lambda count: metrics.ledger_dropped.inc(count))
            stack.callback(ledger.close)
        events = EventRecorder(kube, lambda reason: metrics.events.labels(reason).inc())
        status = StatusWriter(
            kube, events, decisions.last, lambda outcome: metrics.status_writes.labels(outcome).inc()
        )
        recorder = Recorder(store, decisions, ledger, metrics, status, events)
        tick = Tick(store, prometheus, scaler, killswitch, actors, _stopwatch(metrics))
        loop = Loop(store, tick, recorder.record, recorder.tend, metrics)
        vitals = Vitals(loop, metrics.loop_lag.set)
        yield Operator(
            kube, store, scaler, killswitch, tick, recorder, loop, metrics, decisions, vitals, actors
        )


def handlers(config: OperatorConfig) -> kopf.OperatorRegistry:
    """The kopf handlers: watch events into caches, start and stop of the loop.

    All of them are coroutines, because kopf runs plain functions in threads, and the caches belong to the event loop.
    """
    registry = kopf.OperatorRegistry()
    stack = AsyncExitStack()
    running: dict[str, Operator] = {}

    # A port that is taken or a kubeconfig that is wrong ends the process: tried again, it would fail again.
    @kopf.on.startup(registry=registry, errors=kopf.ErrorsMode.PERMANENT)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure_kopf(settings)
        async with AsyncExitStack() as starting:
            running["operator"] = wired = await starting.enter_async_context(operator(config))
            endpoints = Endpoints(wired.vitals, wired.not_ready, wired.metrics.render, wired.decisions.last)
            wired.port = await starting.enter_async_context(serving(endpoints, config.host, config.port))
            await wired.start()
            relist = asyncio.create_task(wired.relist(config.relist_s))
            starting.callback(relist.cancel)
            await stack.enter_async_context(starting.pop_all())
        log.info("understudy is ticking; health, metrics and decisions on port %d", wired.port)

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        await running["operator"].stop()
        await stack.aclose()

    @kopf.on.event(GROUP, VERSION, "rlpolicies", registry=registry)
    async def policy(event: kopf.RawEvent, **_: Any) -> None:
        running["operator"].store.on_event(event["type"], event["object"])

    @kopf.on.event("apps", "v1", "deployments", registry=registry)
    @kopf.on.event("apps", "v1", "statefulsets", registry=registry)
    async def workload(event: kopf.RawEvent, **_: Any) -> None:
        running["operator"].workloads.on_event(event)

    @kopf.on.event("autoscaling", "v2", "horizontalpodautoscalers", registry=registry)
    async def hpa(event: kopf.RawEvent, **_: Any) -> None:
        running["operator"].hpas.on_event(event)

    @kopf.on.event("", "v1", "namespaces", registry=registry)
    async def namespace(event: kopf.RawEvent, **_: Any) -> None:
        running["operator"].namespaces.on_event(event)

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await _connection(config)

    return registry


async def _connection(config: OperatorConfig) -> kopf.ConnectionInfo:
    """Kopf logs in with what the rest of the operator uses, so that there is one way of authentication."""
    configuration = await load_configuration(config.kubeconfig, config.context)
    settings: Any = await configuration.auth_settings()
    header = next((setting["value"] for setting in settings.values()), "")
    scheme, _, token = header.rpartition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        scheme=scheme or None,
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )


class _Backoffs:
    """Seconds between tries that never run out, for kopf to go through once per request.

    With its own, an API server that answers 500 for two minutes would end the process, and with it what was learned.
    """

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((1.0, 1.0, 2.0, 3.0, 5.0), itertools.repeat(10.0))


class Forgetful(kopf.DiffBaseStorage):
    """Remembers nothing of an object: copying it twice to find what has changed is half of what an event costs."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Nothing of the object is worth comparing."""
        return {}

    def fetch(self, **_: Any) -> None:
        """Nothing has been stored."""

    def store(self, **_: Any) -> None:
        """Nothing to store."""


def configure_kopf(settings: kopf.OperatorSettings) -> None:
    """Kopf only watches: no finalizers, no annotations, no events, and watches that notice when they died."""
    settings.persistence.diffbase_storage = Forgetful()
    settings.posting.enabled = False
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 310
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 30
    settings.networking.enforce_retry_after = True
    settings.networking.error_backoffs = _Backoffs()
    settings.scanning.disabled = True
    settings.peering.standalone = True


def _stopwatch(metrics: Metrics) -> Callable[[str], Callable[[], float]]:
    def start(stage: str) -> Callable[[], float]:
        began = time.monotonic()

        def stop() -> float:
            seconds = time.monotonic() - began
            metrics.stage_seconds.labels(stage).observe(seconds)
            return seconds

        return stop

    return start


app = typer.Typer(add_completion=False, help="The Understudy operator.")


@app.command()
def run(
    prometheus_url: Annotated[
        str, typer.Option(envvar="UNDERSTUDY_PROMETHEUS_URL", help="Up to, without, /api/v1.")
    ],
    namespace: Annotated[
        str, typer.Option(envvar="UNDERSTUDY_NAMESPACE", help="The operator's own namespace.")
    ] = "understudy-system",
    kubeconfig: Annotated[
        Path | None, typer.Option(help="Default: the pod's service account, else KUBECONFIG.")
    ] = None,
    context: Annotated[str | None, typer.Option(help="Context of the kubeconfig.")] = None,
    ledger: Annotated[
        Path | None, typer.Option(envvar="UNDERSTUDY_LEDGER", help="File of the decision ledger (JSONL).")
    ] = None,
    host: Annotated[str, typer.Option(help="Address of health, metrics and decisions.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(help="Port of the same; 0: any that is free.")] = 8080,
    authorization_file: Annotated[
        Path | None,
        typer.Option(help="Holds Prometheus' bearer token or Authorization header; read every minute."),
    ] = None,
    prometheus_ca_file: Annotated[
        Path | None, typer.Option(help="PEM bundle to trust for Prometheus.")
    ] = None,
    prometheus_header: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE sent with every query, such as X-Scope-OrgID=team.")
    ] = None,
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "INFO",
) -> None:
    """Watch RLPolicy resources and scale what they name."""
    logs.configure(log_level)
    headers = dict(item.split("=", 1) for item in prometheus_header or () if "=" in item)
    if len(headers) != len(prometheus_header or ()):
        raise typer.BadParameter(f"--prometheus-header {prometheus_header}: write each as NAME=VALUE")
    config = OperatorConfig(
        prometheus=PrometheusConfig(
            url=prometheus_url,
            authorization_file=authorization_file,
            headers=headers,
            ca_file=prometheus_ca_file,
        ),
        namespace=namespace,
        kubeconfig=kubeconfig,
        context=context,
        ledger=ledger,
        host=host,
        port=port,
    )
    # Nearly all that is allocated is freed without the collector's help, and what thousands of policies keep takes it
    # 200 ms to go through: as often as Python would by default, that is half of what an idle operator costs.
    gc.set_threshold(50_000)
    # SIGTERM and SIGINT are kopf's: it ends the watches and then calls the clean-up.
    asyncio.run(kopf.operator(registry=handlers(config), clusterwide=True, standalone=True))


def main() -> None:
    """Entry point of `understudy-operator`."""
    app()
