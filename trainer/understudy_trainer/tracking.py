"""What a run is, for those who look at it later: its record in its folder, and an MLflow server where there is one.

A server can be slow, full or gone for a night, and what is being learnt must not mind. So a thread of its own does the
telling: training hands figures over and goes on, trouble is told once, and the end waits a bounded time.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from understudy_policy import artifact
from understudy_trainer import distributed, export
from understudy_trainer.loop import InterruptedRunError
from understudy_trainer.options import OptionsError

if TYPE_CHECKING:
    from mlflow import MlflowClient

RECORD = "run.json"
"""Options and origin of a run, in its folder."""

REMEMBERED = "mlflow.json"
"""Where a run's folder remembers its MLflow run, so that a resumed run goes on with it."""

EXPERIMENT = "understudy"
"""MLflow's experiment where `MLFLOW_EXPERIMENT_NAME` names no other."""

CLIENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Where the environment says nothing else: little patience with a request, since what fails is told again later; no
lines between those of progress; no word to MLflow's makers."""

PAUSE_S = 20.0
"""From a request that failed to the next."""

FINISH_S = 30.0
"""Time that the end of a run waits for what is still to be told."""

WAITING = 2_000
"""Notes that wait for the server at most; the oldest give way."""

NOTES_IN_REQUEST, PARAMETERS_IN_REQUEST, PARAMETER_LENGTH = 20, 100, 500
"""A server takes a thousand figures at once, a hundred parameters, and so many characters of each."""

Say = Callable[[str], None]


def record(folder: Path, name: str, options: Mapping[str, Any]) -> None:
    """Write down what a run is before it begins: a run that never ends well has been one, too."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "name": name,
        "options": options,
        "processes": distributed.size(),
        "torch": torch.__version__,
        "commit": export.commit(),
    }
    (folder / RECORD).write_text(json.dumps(content, indent=2) + "\n")


def refuse_other(folder: Path, options: Mapping[str, Any]) -> None:
    """A run goes on as what it began as; only how long it lasts and what is kept of it may change (`run`).

    Raises:
        OptionsError: options differ from those in the folder's record.
    """
    file = folder / RECORD
    if not file.is_file():
        return
    begun, asked = flat(json.loads(file.read_text())["options"]), flat(options)
    differing = [
        f"{name} {begun[name]!r} (now {asked[name]!r})"
        for name in begun
        if name in asked and not name.startswith("run.") and asked[name] != begun[name]
    ]
    if differing:
        raise OptionsError(
            f"--resume goes on with the run in {folder}, which began with {', '.join(differing[:3])}; "
            "give the options that it began with; only those of run may change"
        )


class Tracker:
    """A listener of `Trainer` that is told of the artefact, too. This one, for runs without a server, tells nobody."""

    def __call__(self, steps: int, scalars: dict[str, float]) -> None:
        """See `Listener`."""

    def publish(self, path: Path, interrupted: bool) -> None:
        """The run ended with an artefact.

        Args:
            path: of the artefact.
            interrupted: it is to be resumed; no version is registered yet.
        """


@contextmanager
def tracked(
    uri: str | None, name: str, folder: Path, options: Mapping[str, Any], resume: bool, say: Say
) -> Iterator[Tracker]:
    """Tell an MLflow server of a run while inside.

    Args:
        uri: of the server; None or empty: nobody is told.
        name: of the run, and of the registered model.
        folder: of the run.
        options: nested; MLflow's parameters.
        resume: go on with the MLflow run that the folder remembers.
        say: tells people a line.
    """
    if not uri:
        yield Tracker()
        return
    tracker = MLflowTracker(uri, name, folder, options, resume, say)
    try:
        yield tracker
    except (InterruptedRunError, SystemExit, KeyboardInterrupt):
        tracker.status = "KILLED"
        raise
    finally:
        tracker.end()


class MLflowTracker(Tracker):
    """Tells an MLflow server."""

    def __init__(
        self, uri: str, name: str, folder: Path, options: Mapping[str, Any], resume: bool, say: Say
    ) -> None:
        """See `tracked`; returns at once."""
        for variable, value in CLIENT.items():
            os.environ.setdefault(variable, value)
        self.uri = uri
        self.name = name
        self.folder = folder
        self.options = options
        self.resume = resume
        self.say = say
        self.dropped = 0
        self._notes: deque[tuple[int, int, dict[str, float]]] = deque()
        self._artefact: Path | None = None
        self._run: str | None = None
        self.status = "FAILED"
        self._news, self._ended = threading.Event(), threading.Event()
        # A daemon: a server that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def __call__(self, steps: int, scalars: dict[str, float]) -> None:
        """See `Listener`."""
        self._notes.append((int(time.time() * 1000), steps, dict(scalars)))
        if len(self._notes) > WAITING:
            self._notes.popleft()
            self.dropped += 1
        self._news.set()

    def publish(self, path: Path, interrupted: bool) -> None:
        """See `Tracker`."""
        self._artefact, self.status = path, "KILLED" if interrupted else "FINISHED"

    def end(self) -> None:
        """Tell the rest: a run of which nothing was published has failed, unless it was stopped."""
        self._ended.set()
        self._news.set()
        self._thread.join(FINISH_S)
        if self._thread.is_alive():
            self.say(
                f"MLflow at {self.uri} did not answer within {FINISH_S:.0f} s; its record of the run has gaps"
            )
        elif self.dropped:
            self.say(f"MLflow at {self.uri} answered too late for {self.dropped} notes; its record has gaps")

    def _work(self) -> None:
        client_and_run: tuple[MlflowClient, str] | None = None
        troubled = False
        while True:
            ended = self._ended.is_set()  # looked at first, so that what was noted before the end is told
            try:
                client_and_run = client_and_run or self._begin()
                self._tell(*client_and_run)
                if ended:
                    self._finish(*client_and_run)
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the training
                if ended or not troubled:
                    comes_after = (
                        "its record of the run has gaps"
                        if ended
                        else "training goes on, telling is tried again"
                    )
                    self.say(f"MLflow at {self.uri} was not told ({error}); {comes_after}")
                troubled = True
                self._ended.wait(PAUSE_S)
            else:
                if not ended:
                    self._news.wait()
                    self._news.clear()
            if ended:
                return

    def _begin(self) -> tuple[MlflowClient, str]:
        # Imported here: it takes seconds, which are the thread's.
        from mlflow import MlflowClient
        from mlflow.entities import Param

        file = self.folder / REMEMBERED
        client = MlflowClient(tracking_uri=self.uri)
        if self.resume and self._run is None and file.is_file():
            remembered = json.loads(file.read_text())
            if remembered["uri"] == self.uri:
                client.update_run(remembered["run_id"], status="RUNNING")
                return client, remembered["run_id"]
        if self._run is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Before anything else is told: whatever fails then must not create another one.
            self._run = self._create(client)
            file.write_text(json.dumps({"uri": self.uri, "run_id": self._run}) + "\n")
        parameters = [
            Param(name, str(value)[:PARAMETER_LENGTH]) for name, value in flat(self.options).items()
        ]
        for start in range(0, len(parameters), PARAMETERS_IN_REQUEST):
            client.log_batch(self._run, params=parameters[start : start + PARAMETERS_IN_REQUEST])
        return client, self._run

    def _create(self, client: MlflowClient) -> str:
        wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        experiment = client.get_experiment_by_name(wanted)
        number = experiment.experiment_id if experiment else client.create_experiment(wanted)
        tags = {
            "mlflow.source.git.commit": export.commit() or "unknown",
            "understudy.folder": self.folder.name,
        }
        run: str = client.create_run(number, run_name=self.name, tags=tags).info.run_id
        return run

    def _tell(self, client: MlflowClient, run: str) -> None:
        from mlflow.entities import Metric

        while self._notes:
            taken = [self._notes.popleft() for _ in range(min(NOTES_IN_REQUEST, len(self._notes)))]
            try:
                metrics = [
                    Metric(name, value, at_ms, steps)
                    for at_ms, steps, scalars in taken
                    for name, value in scalars.items()
                    if math.isfinite(value)
                ]
                client.log_batch(run, metrics=metrics)
            except Exception:
                self._notes.extendleft(reversed(taken))
                raise

    def _finish(self, client: MlflowClient, run: str) -> None:
        if self._artefact:
            actor = artifact.load(self._artefact.resolve().as_uri())
            client.log_artifact(run, str(self._artefact), "actor")
            client.log_text(run, json.dumps(actor.manifest.lineage, indent=2), "lineage.json")
            client.set_tag(run, "sha256", actor.sha256)
            if self.status == "FINISHED":
                self._register(client, run, actor.sha256)
        client.set_terminated(run, self.status)

    def _register(self, client: MlflowClient, run: str, sha256: str) -> None:
        """A version of the model, under an alias by which a digest finds it: once, however often it is told."""
        from mlflow.exceptions import MlflowException

        try:
            client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        alias = f"sha256-{sha256}"
        if alias in client.get_registered_model(self.name).aliases:
            return
        source = f"{client.get_run(run).info.artifact_uri}/actor"
        version = client.create_model_version(
            self.name, source, run, tags={"sha256": sha256}, await_creation_for=0
        )
        client.set_registered_model_alias(self.name, alias, version.version)


def flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by dotted names."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
