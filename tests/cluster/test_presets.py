"""What a preset's queries make of the series that real servers export, as Prometheus itself evaluates them."""

import subprocess

import pytest
import yaml

from understudy_operator.telemetry.presets import HTTP_SERVER
from understudy_policy.signals import Signal

pytestmark = pytest.mark.cluster

BUCKET, COUNT = "http_request_duration_seconds_bucket", "http_request_duration_seconds_count"


def series(metric, service, per_scrape, **labels):
    told = ",".join(
        f'{name}="{value}"' for name, value in {"namespace": "shop", "service": service, **labels}.items()
    )
    return {"series": f"{metric}{{{told}}}", "values": f"0+{per_scrape}x40"}


SERVERS = [
    # 93 of 100 are answered well and in time; the five that fail do so at once.
    series(BUCKET, "web", 93, le="0.25", code="200"),
    series(BUCKET, "web", 5, le="0.25", code="500"),
    series(COUNT, "web", 95, code="200"),
    series(COUNT, "web", 5, code="500"),
    # Knows no codes.
    series(BUCKET, "plain", 99, le="0.25"),
    series(COUNT, "plain", 100),
    # Everything fails, quickly.
    series(BUCKET, "down", 10, le="0.25", code="503"),
    series(COUNT, "down", 10, code="503"),
    # All are late.
    series(BUCKET, "slow", 0, le="0.25", code="200"),
    series(COUNT, "slow", 10, code="200"),
    # Nobody can tell: no bucket ends at the threshold.
    series(BUCKET, "coarse", 9, le="0.5"),
    series(COUNT, "coarse", 10),
    # Nothing to tell of: NaN, which is not above anything.
    series(BUCKET, "idle", 0, le="0.25"),
    series(COUNT, "idle", 0),
    # Writes whole seconds with a point.
    series(BUCKET, "python", 8, le="1.0"),
    series(BUCKET, "python", 9, le="10.0"),
    series(COUNT, "python", 10),
]


@pytest.mark.parametrize(
    ("threshold_s", "missed"),
    [
        (0.25, {"web": 0.07, "plain": 0.01, "down": 1, "slow": 1}),
        (1.0, {"python": 0.2}),
        (0.1, {}),
    ],
)
def test_misses_are_what_failed_or_came_late(threshold_s, missed, binaries, tmp_path):
    tests = {
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": SERVERS,
                "promql_expr_test": [
                    {
                        "expr": f"round({HTTP_SERVER[Signal.MISS_RATE].of(60.0, threshold_s)}, 0.001) >= 0",
                        "eval_time": "8m",
                        "exp_samples": [
                            {"labels": f'{{namespace="shop", service="{service}"}}', "value": value}
                            for service, value in missed.items()
                        ],
                    }
                ],
            }
        ],
    }
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump(tests))
    ran = subprocess.run(
        [binaries["promtool"], "test", "rules", file], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
