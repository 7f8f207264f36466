"""How many workload-ticks a second the cluster model steps, with everything switched on.

    python benchmarks/simulator.py --json simulator.json

A workload-tick is 15 s of one workload: its arrivals and every other chance are drawn, replicas are set, three
sub-steps are served, metrics are scraped and read. `audition` is the same under an actor: four ticks and the features
of a decision. Every figure comes from fresh processes of one thread each, which start together; rates are those of the
wall clock, summed over the processes, best of three. On a machine that others use, too, `per_cpu_second` says what one
undisturbed core would do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _machine import SINGLE_THREAD, machine

from understudy_policy.rows import as_torch_or_numpy
from understudy_simulator import audition, cluster, scenario

SIZES = (1, 16, 256, 1_024, 4_096, 16_384, 65_536)
BACKENDS = ("numpy", "torch", "torch.compile", "cuda")
MODELS = ("cluster", "audition")
TICKS = 4
AIM = 10e6
REPEATS, SECONDS = 3, 2.0


def main() -> None:
    """Measure all, or be one of the measuring processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="File for the figures.")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="Workloads per process.")
    parser.add_argument("--backends", nargs="+", default=BACKENDS, choices=BACKENDS)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--processes", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--worker", nargs=3, metavar=("BACKEND", "MODEL", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        backend, model, size = options.worker
        work(backend, model, int(size))
        return
    rows: list[dict[str, Any]] = []
    begun = machine()
    for backend in options.backends:
        if backend == "cuda" and not _has_gpu():
            print("no GPU at hand: cuda is left out")
            continue
        for model in options.models:
            for size in options.sizes:
                for processes in options.processes:
                    row = measure(backend, model, size, processes)
                    rows.append(row)
                    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    stepped = [row for row in rows if row["model"] == "cluster"] or rows
    best = max(stepped, key=lambda row: row["workload_ticks_per_second"])
    result = {
        "best_workload_ticks_per_second": best["workload_ticks_per_second"],
        "aim": AIM,
        "best": best,
        "machine": begun,
        "load_average_1min_at_end": round(os.getloadavg()[0], 2),
        "rows": rows,
    }
    print(f"best: {best['workload_ticks_per_second'] / 1e6:.2f} M workload-ticks/s (aim: {AIM / 1e6:.0f} M)")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


def measure(backend: str, model: str, size: int, processes: int) -> dict[str, Any]:
    """One row of the table, from fresh processes that start at the same moment."""
    command = [sys.executable, __file__, "--worker", backend, model, str(size)]
    workers = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **SINGLE_THREAD},
        )
        for _ in range(processes)
    ]
    answers: list[dict[str, Any]] = []
    ready = [json.loads(_line(worker.stdout)) for worker in workers]
    for worker in workers:
        _say(worker)
    answers = [json.loads(_line(worker.stdout)) for worker in workers]
    for worker in workers:
        worker.wait()
    return {
        "backend": backend,
        "model": model,
        "size": size,
        "processes": processes,
        "workload_ticks_per_second": round(sum(answer["rate"] for answer in answers)),
        "per_cpu_second": round(max(answer["per_cpu_second"] for answer in answers)),
        "bytes_per_workload": ready[0]["bytes_per_workload"],
        "compile_s": round(ready[0]["first_s"], 1),
    }


def _line(stream: Any) -> str:
    line: str = stream.readline()
    if not line:
        raise SystemExit("a measuring process ended early; its error is printed above.")
    return line


def _say(worker: subprocess.Popen[str]) -> None:
    assert worker.stdin is not None
    worker.stdin.write("go\n")
    worker.stdin.flush()


def work(backend: str, model: str, size: int) -> None:
    """Be a measuring process: say that everything is ready, wait, measure, say how it went."""
    convert, compiler, wait = _library(backend)
    episode = as_torch_or_numpy(_episode(size), convert)
    run, kept = (_cluster if model == "cluster" else _audition)(episode, compiler)
    begun = time.perf_counter()
    run()
    wait()
    first_s = time.perf_counter() - begun
    run()
    wait()
    print(json.dumps({"first_s": first_s, "bytes_per_workload": round(_bytes(kept) / size)}), flush=True)
    sys.stdin.readline()
    rates, per_cpu = [], []
    for _ in range(REPEATS):
        wall, cpu, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - wall < SECONDS:
            run()
            count += 1
        wait()
        ticks = count * TICKS * size
        rates.append(ticks / (time.perf_counter() - wall))
        per_cpu.append(ticks / (time.process_time() - cpu))
    print(json.dumps({"rate": max(rates), "per_cpu_second": max(per_cpu)}), flush=True)


def _episode(size: int) -> audition.Episode:
    rng = np.random.default_rng(0)
    return scenario.draw(size, 10 * TICKS, scenario.stock(64, rng, 10 * TICKS), rng)


def _library(backend: str) -> tuple[Callable[[Any], Any], Callable[[Any], Any], Callable[[], None]]:
    """How arrays are converted, how functions are compiled, and how the device is waited for."""
    if backend == "numpy":
        return lambda array: array, lambda function: function, lambda: None
    import torch

    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)

    def convert(array: np.ndarray) -> Any:
        return torch.from_numpy(array).to("cuda" if backend == "cuda" else "cpu")

    def compiler(function: Any) -> Any:
        return torch.compile(function, fullgraph=True, dynamic=False)

    eager = backend == "torch"
    return (
        convert,
        (lambda f: f) if eager else compiler,
        torch.cuda.synchronize if backend == "cuda" else lambda: None,
    )


def _cluster(episode: audition.Episode, compiler: Callable[[Any], Any]) -> tuple[Callable[[], None], Any]:
    def tick(
        config: Any, state: Any, replicas: Any, rate_rps: Any, dispersion: Any, seeds: Any, at: Any
    ) -> Any:
        arrivals, draws = cluster.draw(config, rate_rps, dispersion, seeds, at)
        state, out = cluster.step(config, state, replicas, arrivals, draws)
        # What a policy sees is in the state; what it is judged by:
        return state, (out.arrivals, out.violations, out.pod_seconds, out.node_seconds, out.ready)

    step, first = compiler(tick), episode.first_tick
    pods = episode.mean_rps / episode.cluster.service.capacity_rps
    wanted = [(share * pods) // 1 + 1.0 for share in (1.1, 1.4, 1.2, 1.7)]
    state = cluster.initial(episode.cluster, wanted[0], episode.rate_rps[:, first])
    number = episode.seeds[:1] * 0

    def run() -> None:
        nonlocal state, number
        for replicas in wanted:
            number = number + 1
            rate = episode.rate_rps[:, first]
            state, _ = step(episode.cluster, state, replicas, rate, episode.dispersion, episode.seeds, number)

    return run, (episode.cluster, state)


def _audition(episode: audition.Episode, compiler: Callable[[Any], Any]) -> tuple[Callable[[], None], Any]:
    program = audition.compiled(compiler)
    state, _ = audition.reset(episode, program)
    begun, action = (
        state,
        (episode.seeds * 0 + 15).astype(np.int64)
        if isinstance(episode.seeds, np.ndarray)
        else episode.seeds.long() * 0 + 15,
    )

    def run() -> None:
        nonlocal state
        if state.tick + TICKS > episode.rate_rps.shape[1]:
            state = begun
        state, _, _ = audition.step(episode, state, action, program)

    return run, (episode.cluster, state)


def _bytes(kept: Any) -> int:
    """Memory of all arrays in a structure."""
    if is_dataclass(kept):
        return sum(_bytes(getattr(kept, field.name)) for field in fields(kept))
    if isinstance(kept, tuple):
        return sum(_bytes(value) for value in kept)
    return int(getattr(kept, "nbytes", 0))


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


if __name__ == "__main__":
    main()
