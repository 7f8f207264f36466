"""The cluster model: pure functions over arrays whose first axis is the workload.

The trainer learns in it, the emulator of the demo runs on it in real time, and the judge replays traces in
it: one model, so that what was learned, shown and judged is the same thing.
"""
