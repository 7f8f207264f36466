"""Runs the demo, for comparison with the simulator.

`python demo_live.py FILE` records all loads, five minutes each: after a change of the built-in actor or of the demo's
policy. Nothing else should keep the machine busy meanwhile, because the operator's ticks are real. Every run is kept as
it ends; the same command goes on with those that are missing or were recorded with another actor.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import closed_loop
from understudy_demo.cluster import the_policy
from understudy_simulator.generators import generate

SECONDS = 240


def record(folder: Path, seed: int, mixture: bool = False) -> closed_loop.Run:
    """One run.

    Args:
        folder: for everything that the demo writes.
        seed: of load and chance.
        mixture: a generated mixture of patterns as the load, instead of the demo's own two flash crowds.
    """
    load = []
    if mixture:
        trace = folder / "mixture.csv"
        rates = 100.0 * generate("mixture", 86400.0, 60.0, np.random.default_rng(seed))[0]
        rows = [f"{60 * minute},{rate:.4f}" for minute, rate in enumerate(rates)]
        trace.write_text("\n".join(["timestamp_s,requests_per_second", *rows, ""]))
        load = ["--trace", str(trace)]
    command = [sys.executable, "-m", "understudy_demo", "--seed", str(seed), "--seconds", str(SECONDS), *load]
    subprocess.run([*command, "--out", str(folder)], check=True, timeout=SECONDS + 240)
    return closed_loop.read(folder, the_policy().spec, name(seed, mixture))


def name(seed: int, mixture: bool) -> str:
    """Of the run."""
    return f"{'mixture' if mixture else 'flash crowds'}, seed {seed}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    kept = [
        run for run in (closed_loop.load(path) if path.exists() else []) if closed_loop.has_todays_actor(run)
    ]
    for seed, mixture in ((0, False), (1, False), (2, False), (2, True)):
        if name(seed, mixture) not in {run.name for run in kept}:
            with tempfile.TemporaryDirectory() as folder:
                kept.append(record(Path(folder), seed, mixture))
            closed_loop.save(kept, path)
