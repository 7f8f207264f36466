"""A long history from Prometheus for the judge: in pieces, because it refuses more than 11,000 points at once."""

from __future__ import annotations

import asyncio
import time

import numpy as np

from understudy_operator.telemetry.port import Prometheus, PrometheusConfig, QueryFailed
from understudy_policy.signals import Cause

POINTS_AT_ONCE = 10_000
TIMEOUT_S = 60.0


def read_range(
    url: str, promql: str, duration_s: float, step_s: float, now_s: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The values of one series over the last `duration_s`.

    Args:
        url: of Prometheus.
        promql: a query that answers with a single series.
        duration_s: how far back.
        step_s: time between two values.
        now_s: end of the range in Unix seconds; by default now.

    Returns:
        Times in Unix seconds and values, float64 of one length; missing steps are left out.

    Raises:
        OSError: there is no usable answer, or the query does not answer with one series.
    """
    end_s = (time.time() if now_s is None else now_s) // step_s * step_s
    try:
        return asyncio.run(_read(url, promql, end_s - duration_s, end_s, step_s))
    except QueryFailed as error:
        raise OSError(f"--prometheus {url}: {error.detail}") from error


async def _read(
    url: str, promql: str, start_s: float, end_s: float, step_s: float
) -> tuple[np.ndarray, np.ndarray]:
    prometheus = Prometheus(PrometheusConfig(url, connect_timeout_s=5.0, threads=1))
    times, values = [], []
    try:
        while start_s <= end_s:
            until_s = min(start_s + (POINTS_AT_ONCE - 1) * step_s, end_s)
            answer = await prometheus.query_range(promql, start_s, until_s, step_s, TIMEOUT_S)
            if len(answer.series) > 1:
                detail = f"the query answers with {len(answer.series)} series: wrap it in sum(…)"
                raise QueryFailed(Cause.BAD_RESPONSE, detail)
            times += [series.timestamp_s for series in answer.series]
            values += [series.value for series in answer.series]
            start_s = until_s + step_s
    finally:
        prometheus.close()
    if not times:
        raise QueryFailed(Cause.EMPTY, "the query answers with nothing in this range: check its labels")
    return np.concatenate(times), np.concatenate(values)
