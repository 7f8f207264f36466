"""Who asked the API server for what: its audit log counts the calls of Understudy and of the HPA by one yardstick."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import yaml

from understudy_demo.controlplane.client import wait_for

UNDERSTUDY = "system:serviceaccount:understudy-system:understudy-operator"
HPA = "system:serviceaccount:kube-system:horizontal-pod-autoscaler"


@dataclass(frozen=True)
class Call:
    """One call; times are Unix seconds.

    Attributes:
        user, verb, code: who, what, and the HTTP status of the answer.
        what: resource and subresource, such as `deployments/scale`; `external` for an external metric.
        name: of the object; of the workload for an external metric.
        began_s, ended_s: by the API server's clock, which is ours.
    """

    user: str
    verb: str
    code: int
    what: str
    name: str
    began_s: float
    ended_s: float


class Audit:
    """The audit log of one API server, read as it grows."""

    def __init__(self, folder: Path) -> None:
        """Keep policy and log in `folder`."""
        self._log = folder / "audit.log"
        self._policy = folder / "audit-policy.yaml"
        self._read = 0
        self._rest = b""
        self._calls: list[Call] = []
        rules = [{"level": "Metadata", "users": [UNDERSTUDY, HPA]}, {"level": "None"}]
        policy = {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived", "ResponseStarted"],
            "rules": rules,
        }
        self._policy.write_text(yaml.safe_dump(policy))

    @property
    def flags(self) -> list[str]:
        """What makes an API server keep the log."""
        return [
            f"--audit-policy-file={self._policy}",
            f"--audit-log-path={self._log}",
            "--audit-log-mode=batch",
        ]

    def calls(self, user: str, since_s: float) -> list[Call]:
        """The calls of one user that began after a moment, watches left out."""
        if self._log.exists():
            with self._log.open("rb") as log:
                log.seek(self._read)
                fresh = log.read()
            self._read += len(fresh)
            *lines, self._rest = (self._rest + fresh).split(b"\n")
            self._calls += [call for line in lines if (call := _call(json.loads(line))).verb != "watch"]
        return [call for call in self._calls if call.user == user and call.began_s >= since_s]

    def wait_for_silence(self, user: str, silent_s: float, give_up_s: float) -> bool:
        """Wait until a user has been silent for a while; False where it never is."""
        deadline = time.time() + give_up_s
        while time.time() < deadline:
            if not self.calls(user, time.time() - silent_s):
                return True
            time.sleep(0.25)
        return False

    def wait_for_each(
        self,
        user: str,
        names: Iterable[str],
        matches: Callable[[Call], bool],
        since_s: float,
        timeout_s: float,
    ) -> float:
        """Wait until every name has been in a matching call; returns when the last of their first calls ended."""
        wanted = set(names)

        def first_ends() -> dict[str, float]:
            ends: dict[str, float] = {}
            for call in self.calls(user, since_s):
                if call.name in wanted and matches(call):
                    ends.setdefault(call.name, call.ended_s)
            return ends

        wait_for(lambda: len(first_ends()) == len(wanted), f"{len(wanted)} calls of {user}", timeout_s, 0.25)
        return max(first_ends().values())


def counted(calls: Iterable[Call]) -> dict[str, int]:
    """How many calls of each kind there were."""
    return dict(Counter(f"{call.verb} {call.what}" for call in calls).most_common())


def _call(event: dict[str, object]) -> Call:
    ref: dict[str, str] = event.get("objectRef") or {}  # type: ignore[assignment]
    what, name = ref.get("resource", ""), ref.get("name", "")
    if ref.get("subresource"):
        what = f"{what}/{ref['subresource']}"
    if ref.get("apiGroup") == "external.metrics.k8s.io":
        what = "external"
        selector = parse_qs(urlsplit(str(event["requestURI"])).query).get("labelSelector", [""])[0]
        name = selector.removeprefix("service=")
    user: dict[str, str] = event["user"]  # type: ignore[assignment]
    answer: dict[str, int] = event.get("responseStatus") or {}  # type: ignore[assignment]
    return Call(
        user=user["username"],
        verb=str(event["verb"]),
        code=answer.get("code", 0),
        what=what,
        name=name,
        began_s=_unix(event["requestReceivedTimestamp"]),
        ended_s=_unix(event["stageTimestamp"]),
    )


def _unix(moment: object) -> float:
    return datetime.fromisoformat(str(moment)).timestamp()
