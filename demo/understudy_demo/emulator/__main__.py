"""The emulator as a process, described by a JSON file: for fleets that are to have a core of their own.

The file holds `{"workloads": [{"namespace": …, "name": …, "load": "trace.csv.gz" or "generated://flash",
…}]}`; an entry may also say `profile` (web, api, llm), `pods` (mean demand), `compression`, `offset_s`,
`duration_s`, `seed`, `dispersion` and `cpu_request_cores`. Once up, one line of JSON on the standard output
tells the URL.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any

from understudy_demo.emulator.server import Emulator
from understudy_demo.emulator.workload import Workload, open_load, replay
from understudy_simulator.cluster import PROFILES
from understudy_simulator.traces import TraceError, scale_to_pods


def read_workload(entry: dict[str, Any]) -> Workload:
    """One workload of the file."""
    known = dict(entry)
    profile = PROFILES[known.pop("profile", "web")]
    trace = open_load(known.pop("load"), known.pop("duration_s", 86400.0), known.pop("seed", 0))
    trace = scale_to_pods(trace, known.pop("pods", 4.0), profile.capacity_rps)
    rate = replay(trace, known.pop("compression", 1.0), known.pop("offset_s", 0.0))
    return Workload(rate=rate, profile=profile, **known)


def main() -> None:
    """Serve until interrupted or terminated."""
    parser = argparse.ArgumentParser(description="Emulate workloads on the pods of a cluster.")
    parser.add_argument("config", type=Path, help="JSON file that describes the workloads")
    parser.add_argument("--kubeconfig", type=Path, required=True, help="may list and watch pods")
    parser.add_argument("--port", type=int, default=0, help="where to serve; 0: any free port")
    parser.add_argument("--step", type=float, default=0.25, help="seconds between two computations")
    parser.add_argument("--latency-per-workload", action="store_true", help="one histogram per workload")
    arguments = parser.parse_args()
    try:
        workloads = [read_workload(entry) for entry in json.loads(arguments.config.read_text())["workloads"]]
    except (TraceError, OSError, KeyError, TypeError, ValueError) as error:
        sys.exit(f"{arguments.config}: {error!r}; see the description of the file in {__file__}.")
    stop = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    with Emulator(
        workloads,
        arguments.kubeconfig,
        port=arguments.port,
        step_s=arguments.step,
        latency_per_pod=not arguments.latency_per_workload,
    ) as emulator:
        print(json.dumps({"url": emulator.url, "workloads": len(workloads)}), flush=True)
        signal.sigwait(stop)


if __name__ == "__main__":
    main()
