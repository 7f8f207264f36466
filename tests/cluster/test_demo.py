"""The demo from its command line, as a person or a pipeline without a terminal would start it."""

import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SECONDS = 120  # the shortest replay that the demo accepts
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# A browser that neither asks the network for anything nor needs a display.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1100,2600",
)


@pytest.fixture(scope="module")
def demo(binaries, tmp_path_factory):
    """One run: exit code and output of the command, and the folder of the report."""
    out = tmp_path_factory.mktemp("demo-out")
    command = [sys.executable, "-m", "understudy_demo", "--seconds", str(SECONDS), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    return done, out


class Text(HTMLParser):
    """What a page says, without its markup."""

    def __init__(self, page):
        super().__init__()
        self.said = []
        self.feed(page)

    def handle_data(self, data):
        self.said.append(data)

    def __contains__(self, phrase):
        return phrase in " ".join(" ".join(self.said).split())


def test_the_loop_closes_and_the_report_states_the_figures(demo):
    done, out = demo
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((out / "figures.json").read_text())
    assert told["missing"] == []
    assert told["handover_ticks"] <= 1
    assert told["scale_ups"] > 0
    assert told["scale_downs"] > 0
    assert told["served"] > 10_000
    assert told["decisions"] > 0.8 * SECONDS
    page = Text((out / "report.html").read_text())
    for name in (
        "requests served",
        "SLO misses",
        "pod-hours",
        "scaling actions",
        "ticks overrun",
        "kill to hand-over",
    ):
        assert name in page
        assert name in done.stdout
    assert "generated load" in page
    assert f"{told['served']:,.0f}" in page
    assert "$ understudy kill checkout --reason drill -n shop" in page
    assert "$ understudy explain checkout" in page


def test_the_actor_was_heard_and_the_drill_silenced_it(demo):
    _, out = demo
    records = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    assert any(record["authority"]["in_force"] > 0 and record["actor"]["rule"] for record in records)
    assert any(record["killed"] == "Policy" for record in records)
    written = [record["write"]["outcome"] for record in records if record["write"]]
    assert "Written" in written


def test_what_a_log_shows_is_plain_text(demo):
    done, _ = demo
    assert "\x1b" not in done.stdout
    assert sum("rps  ready" in row for row in done.stdout.splitlines()) >= SECONDS / 10


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH to open the report with")
def test_a_browser_shows_the_report(demo, tmp_path):
    _, out = demo
    picture = tmp_path / "report.png"
    subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}",
         (out / "report.html").as_uri()],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    assert picture.stat().st_size > 50_000  # a blank page of this size has some 10 kB
