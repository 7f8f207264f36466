"""A Prometheus that answers whatever a test wants, and remembers what it was asked."""

import asyncio
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.test_utils import TestServer

from understudy_operator.telemetry.port import Prometheus, PrometheusConfig


class FakePrometheus:
    """Attributes: `answers` by a part of the query (the first that matches counts), `asked` requests in order."""

    def __init__(self, **answers):
        self.answers = answers
        self.asked = []

    async def handle(self, request):
        fields = request.query if request.method == "GET" else await request.post()
        self.asked.append((request.method, dict(fields), request.headers))
        for part, answer in self.answers.items():
            if part in fields["query"]:
                answer = answer(fields) if callable(answer) else answer
                if answer == "hang":
                    await asyncio.sleep(60)
                return answer if isinstance(answer, web.Response) else web.json_response(answer)
        return web.json_response(vector())


def vector(*series, warnings=None, kind="vector"):
    """A successful answer; a series is (labels, value, timestamp_s)."""
    rows = [{"metric": labels, "value": [at, str(value)]} for labels, value, at in series]
    body = {"status": "success", "data": {"resultType": kind, "result": rows}}
    return body | ({"warnings": warnings} if warnings else {})


@asynccontextmanager
async def serving(fake, on_query=lambda _: None, **options):
    """The fake behind a real socket, and a port that talks to it."""
    app = web.Application(client_max_size=2**24)
    app.router.add_route("*", "/api/v1/{kind}", fake.handle)
    async with TestServer(app) as server:
        port = Prometheus(PrometheusConfig(str(server.make_url("")), **options), on_query)
        try:
            yield port
        finally:
            port.close()
