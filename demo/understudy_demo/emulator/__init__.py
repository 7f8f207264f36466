"""Workloads that exist only as numbers: a replayed load, real pods, and the metrics that real services would show.

`workload` describes them, `fleet` computes what happens to their requests, `exposition` writes it as
Prometheus text, `pod_watch` follows the pods of a cluster, and `server` puts them together.
"""

from understudy_demo.emulator.server import Emulator
from understudy_demo.emulator.workload import Workload, open_load, replay

__all__ = ["Emulator", "Workload", "open_load", "replay"]
