"""The one way to Prometheus: bounded in time, with every failure named.

`prometheus_api_client` does the talking, through the places where it lets itself be told, because left alone it
waits for ever, retries for seconds, keeps a long query in the URL even when it posts, and throws the warnings of a
partial answer away. So it is given a session that sends long queries as a form and refuses what is not an answer;
and since `custom_query` hands on nothing but `data.result`, what it finds there is the whole answer, parsed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import orjson
import requests
from prometheus_api_client import PrometheusConnect
from requests.auth import AuthBase
from urllib3.util.retry import Retry

from understudy_policy.signals import Cause, Signal

LONGEST_GET = 1800
"""Characters of PromQL that still travel in a URL; proxies begin to refuse a little above."""

AUTHORIZATION_MAX_AGE_S = 60.0


class RangeSeries(NamedTuple):
    """One row of a range vector: `timestamp_s` and `value` are float64 arrays of the same length."""

    labels: Mapping[str, str]
    timestamp_s: np.ndarray
    value: np.ndarray


@dataclass(frozen=True)
class Result:
    """An instant vector, and what Prometheus thinks is missing from it.

    Attributes:
        labels: of every series.
        values, timestamps_s: its value and when it was measured; as lists, since no object a series is worth its cost.
        warnings: of Prometheus.
    """

    labels: list[Mapping[str, str]]
    values: list[float]
    timestamps_s: list[float]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class RangeResult:
    """A range vector, and what Prometheus thinks is missing from it."""

    series: list[RangeSeries]
    warnings: tuple[str, ...]


class QueryFailed(Exception):  # noqa: N818 (it reads as what happened)
    """A query without a usable answer.

    Attributes:
        cause: `HTTP_ERROR`, `TIMEOUT`, `UNREACHABLE` or `BAD_RESPONSE`.
        detail: one sentence for a person.
    """

    def __init__(self, cause: Cause, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause
        self.detail = detail


@dataclass(frozen=True)
class PrometheusConfig:
    """How Prometheus is reached.

    Attributes:
        url: up to, and without, `/api/v1`.
        authorization_file: holds a bearer token, or a whole `Authorization` value such as `Basic abc=`; read again
            every minute, and after an HTTP 401.
        headers: sent with every query, such as `X-Scope-OrgID`.
        ca_file: PEM bundle to trust instead of the system's.
        connect_timeout_s: limit for the connection; the rest of a query is limited by its caller.
        threads: queries that may be under way at once: one per signal by default.
    """

    url: str
    authorization_file: Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    ca_file: Path | None = None
    connect_timeout_s: float = 1.0
    threads: int = len(Signal)


T = TypeVar("T", Result, RangeResult)


class Prometheus:
    """Asks Prometheus from a few threads of its own, so that a hanging answer holds up nobody else."""

    def __init__(self, config: PrometheusConfig, on_query: Callable[[Cause], None] = lambda _: None) -> None:
        """Ask nothing yet.

        Args:
            config: see there.
            on_query: told what became of every query, `OK` where it was answered.
        """
        self._on_query = on_query
        self._connect_timeout_s = config.connect_timeout_s
        self._session = _Session()
        self._session.verify = True if config.ca_file is None else str(config.ca_file)
        path = config.authorization_file
        self._client = PrometheusConnect(
            url=config.url.rstrip("/"),
            headers=dict(config.headers),
            auth=None if path is None else _FileAuthorization(path),
            session=self._session,
            # One more try at once, but never after a hang: that would double the time a tick waits.
            retry=Retry(
                total=1,
                read=False,
                status_forcelist=(429, 500, 502, 503, 504),
                allowed_methods=("GET", "POST"),
                respect_retry_after_header=False,
                raise_on_status=False,
            ),
        )
        self._threads = ThreadPoolExecutor(config.threads, thread_name_prefix="prometheus")

    def close(self) -> None:
        """Drop what is queued; a query under way ends by its own timeout."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    async def query(self, promql: str, at_s: float, timeout_s: float) -> Result:
        """Evaluate a query at one moment.

        Args:
            promql: the query.
            at_s: evaluation time in Unix seconds, the same for all queries of a tick.
            timeout_s: seconds until the caller gives up, waiting for a free thread included.

        Raises:
            QueryFailed: there is no usable answer.
        """
        params = {"time": f"{at_s:.3f}", "timeout": _milliseconds(timeout_s)}
        timeout = (min(self._connect_timeout_s, timeout_s), timeout_s)
        return await self._ask(Result, timeout_s, lambda: self._client.custom_query(promql, params, timeout))

    async def query_range(
        self, promql: str, start_s: float, end_s: float, step_s: float, timeout_s: float
    ) -> RangeResult:
        """Evaluate a query from `start_s` to `end_s` (inclusive) every `step_s`; raises `QueryFailed`."""
        params = {
            # custom_query_range rounds its own to whole seconds; these win.
            "start": f"{start_s:.3f}",
            "end": f"{end_s:.3f}",
            "timeout": _milliseconds(timeout_s),
        }
        timeout = (min(self._connect_timeout_s, timeout_s), timeout_s)
        start, end = datetime.fromtimestamp(start_s, UTC), datetime.fromtimestamp(end_s, UTC)
        return await self._ask(
            RangeResult,
            timeout_s,
            lambda: self._client.custom_query_range(promql, start, end, f"{step_s:.3f}", params, timeout),
        )

    async def _ask(self, kind: type[T], timeout_s: float, call: Callable[[], Any]) -> T:
        try:
            answer = await self._answer(kind, timeout_s, call)
        except QueryFailed as failure:
            self._on_query(failure.cause)
            raise
        self._on_query(Cause.OK)
        return answer

    async def _answer(self, kind: type[T], timeout_s: float, call: Callable[[], Any]) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                answer = await loop.run_in_executor(self._threads, call)
        except (TimeoutError, requests.ReadTimeout) as error:
            raise QueryFailed(Cause.TIMEOUT, f"Prometheus did not answer within {timeout_s:g} s") from error
        except (
            OSError
        ) as error:  # every failure of requests is one, and so is an unreadable authorization file
            raise QueryFailed(Cause.UNREACHABLE, f"{self._client.url} cannot be asked: {error}") from error
        if not isinstance(answer, kind):
            raise QueryFailed(
                Cause.BAD_RESPONSE, "the query is a range: make it an instant vector or a scalar"
            )
        return answer


class _FileAuthorization(AuthBase):
    """An `Authorization` header from a file whose content is rotated under our feet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._value = ""
        self._read_at = float("-inf")

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if time.monotonic() - self._read_at > AUTHORIZATION_MAX_AGE_S:
            content = self._path.read_text().strip()
            self._value = content if " " in content else f"Bearer {content}"
            self._read_at = time.monotonic()
        request.headers["Authorization"] = self._value
        request.register_hook("response", self._forget_if_refused)
        return request

    def _forget_if_refused(self, response: requests.Response, **_: Any) -> None:
        if response.status_code == HTTPStatus.UNAUTHORIZED:
            self._read_at = float("-inf")


class _Answer:
    """What `PrometheusConnect` is shown instead of the response: all of it where it looks for `data.result`."""

    status_code = HTTPStatus.OK

    def __init__(self, whole: Result | RangeResult) -> None:
        self._whole = whole

    def json(self) -> dict[str, Any]:
        return {"data": {"result": self._whole}}


class _Session(requests.Session):
    """Sends long queries as a form, and lets only a complete, parsed answer through."""

    def __init__(self) -> None:
        super().__init__()
        # Proxies and ~/.netrc of the environment have no say: the credentials are the configured ones or none.
        self.trust_env = False

    def request(self, method: str, url: str, params: dict[str, str], **options: Any) -> _Answer:  # type: ignore[override]
        if len(params["query"]) > LONGEST_GET:
            response = super().request("POST", url, data=params, **options)
        else:
            response = super().request("GET", url, params=params, **options)
        return _Answer(_parse(response.status_code, response.content))


def _parse(status: int, content: bytes) -> Result | RangeResult:
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        cause = Cause.BAD_RESPONSE if status == HTTPStatus.OK else Cause.HTTP_ERROR
        text = content[:200].decode(errors="replace")
        raise QueryFailed(cause, f"Prometheus answered HTTP {status} with a body that is not JSON: {text!r}")
    if status != HTTPStatus.OK or body.get("status") != "success":
        cause = Cause.TIMEOUT if body.get("errorType") == "timeout" else Cause.HTTP_ERROR
        error = str(body.get("error", "no error message"))[:500]
        raise QueryFailed(cause, f"Prometheus answered HTTP {status}: {error}")
    try:
        warnings = tuple(body.get("warnings") or ())
        data = body["data"]
        kind, rows = data["resultType"], data["result"]
        if kind == "vector":
            return _instant([row["metric"] for row in rows], [row["value"] for row in rows], warnings)
        if kind == "scalar":
            return _instant([{}], [rows], warnings)
        if kind == "matrix":
            return RangeResult([_range_series(row["metric"], row["values"]) for row in rows], warnings)
    except (KeyError, TypeError, ValueError) as error:
        detail = f"Prometheus answered with something that is not a vector of numbers ({error!r})"
        raise QueryFailed(Cause.BAD_RESPONSE, detail) from error
    raise QueryFailed(Cause.BAD_RESPONSE, f"the query is a {kind}: make it an instant vector or a scalar")


def _instant(
    labels: list[Mapping[str, str]], points: list[tuple[float, str]], warnings: tuple[str, ...]
) -> Result:
    return Result(
        labels, [float(point[1]) for point in points], [float(point[0]) for point in points], warnings
    )


def _range_series(labels: Mapping[str, str], points: list[tuple[float, str]]) -> RangeSeries:
    return RangeSeries(
        labels,
        np.array([float(point[0]) for point in points]),
        np.array([float(point[1]) for point in points]),
    )


def _milliseconds(seconds: float) -> str:
    return f"{max(1, round(seconds * 1000))}ms"
