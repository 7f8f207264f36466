"""A long history comes in pieces, whole and in order; what is no history is refused in one line."""

import asyncio
import threading

import numpy as np
import pytest
from aiohttp import web

from fake_prometheus import FakePrometheus
from understudy_operator.telemetry.ranges import POINTS_AT_ONCE, read_range

NOW_S = 1_800_000_000.0
STEP_S = 15.0


def matrix(*series):
    result = [{"metric": {}, "values": values} for values in series]
    return {"status": "success", "data": {"resultType": "matrix", "result": result}}


def ramp(fields):
    """One series whose value is its own time; every hundredth sample is missing."""
    times = np.arange(float(fields["start"]), float(fields["end"]) + 1e-6, STEP_S)
    return matrix([[t, str(t - NOW_S)] for t in times if round(t / STEP_S) % 100])


@pytest.fixture
def served():
    """Calls `read_range` on a fake that runs in a thread of its own, as the command line would."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    runners = []

    def serve(fake):
        async def start():
            app = web.Application()
            app.router.add_route("*", "/api/v1/{kind}", fake.handle)
            runner = web.AppRunner(app)
            runners.append(runner)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            return runner.addresses[0][1]

        return f"http://127.0.0.1:{asyncio.run_coroutine_threadsafe(start(), loop).result(10)}"

    yield serve
    for runner in runners:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def test_three_weeks_come_whole_although_prometheus_gives_little_at_once(served):
    fake = FakePrometheus(requests=ramp)
    days = 21
    times, values = read_range(served(fake), "sum(rate(requests[1m]))", 86400.0 * days, STEP_S, NOW_S)
    steps = round(86400 * days / STEP_S) + 1
    assert len(fake.asked) == -(-steps // POINTS_AT_ONCE)
    assert len(times) == pytest.approx(0.99 * steps, abs=1)
    assert np.all(np.diff(times) > 0)
    assert times[0] >= NOW_S - 86400 * days
    assert times[-1] <= NOW_S
    np.testing.assert_allclose(values, times - NOW_S)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (matrix(), "nothing in this range"),
        (matrix([[NOW_S, "1"]], [[NOW_S, "2"]]), "2 series: wrap it in sum"),
        ({"status": "error", "errorType": "bad_data", "error": "parse error: unexpected end"}, "parse error"),
    ],
)
def test_what_is_no_history_is_refused_with_the_mend(served, answer, says):
    with pytest.raises(OSError) as refused:
        read_range(served(FakePrometheus(requests=answer)), "requests", 3600.0, STEP_S, NOW_S)
    assert says in str(refused.value)
    assert "--prometheus http://127.0.0.1:" in str(refused.value)


def test_a_prometheus_that_is_not_there_is_one_line():
    with pytest.raises(OSError) as refused:
        read_range("http://127.0.0.1:1", "requests", 3600.0, STEP_S, NOW_S)
    assert "\n" not in str(refused.value)
