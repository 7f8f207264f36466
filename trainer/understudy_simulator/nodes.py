"""Nodes: a pod that finds no room waits for a machine first, which takes minutes where a pod takes seconds.

As the cluster autoscaler does, nodes are added for pods that do not fit and removed after they were not needed for a
while. Kept like pods: a schedule of how many nodes will be there `j` ticks from now.
"""

from __future__ import annotations

from dataclasses import dataclass

from understudy_policy.rows import Array, maximum, minimum, namespace
from understudy_simulator import pods

AMPLE = 1e6
"""As `free_pods`: a workload that never needs a node of its own."""


@dataclass(frozen=True)
class Nodes:
    """How nodes come and go; every field's first axis is N.

    Attributes:
        free_pods: `[N]` pods that fit on the nodes that are there anyway, whole; `AMPLE` switches nodes off.
        pods_per_node: `[N]` pods that fit on a node that is added, whole.
        idle_s: `[N]` time that nodes are kept after they were last needed.
        startup: `[N, B + 1]` from `pods.startup_cdf`: asking for a node until pods can start on it.
    """

    free_pods: Array
    pods_per_node: Array
    idle_s: Array
    startup: Array


@dataclass(frozen=True)
class NodeState:
    """The nodes that were added.

    Attributes:
        schedule: `[N, B]` nodes, see `pods`.
        idle_s: `[N]` time since all of them were needed.
    """

    schedule: Array
    idle_s: Array


def initial(nodes: Nodes, replicas: Array) -> NodeState:
    """As many nodes as these pods need, all there."""
    return NodeState(
        pods.all_ready(_needed(nodes, replicas), nodes.startup), namespace(replicas).zeros_like(replicas)
    )


def provide(
    nodes: Nodes, state: NodeState, replicas: Array, uniform: Array, tick_s: float
) -> tuple[NodeState, Array, Array]:
    """Ask for nodes, and say how many pods there is room for during this tick.

    Args:
        nodes: the workloads.
        state: at the start of the tick.
        replicas: `[N]` pods wanted.
        uniform: `[N]` draws from [0, 1): how long the nodes asked for now will take.
        tick_s: length of the tick.

    Returns:
        The state at the end of the tick, the pods that have room, and the nodes that exist; `[N]` each.
    """
    xp = namespace(replicas)
    needed, existing = _needed(nodes, replicas), pods.existing(state.schedule)
    idle_s = xp.where(needed < existing, state.idle_s + tick_s, xp.zeros_like(state.idle_s))
    wanted = xp.where(idle_s > nodes.idle_s, needed, maximum(xp, existing, needed))
    ready = minimum(xp, pods.ready(state.schedule), wanted)
    schedule = pods.advance(state.schedule, wanted, nodes.startup, uniform)
    room = nodes.free_pods + ready * nodes.pods_per_node
    return NodeState(schedule, idle_s), minimum(xp, replicas, room), wanted


def _needed(nodes: Nodes, replicas: Array) -> Array:
    xp = namespace(replicas)
    return xp.ceil(maximum(xp, replicas - nodes.free_pods, 0.0) / nodes.pods_per_node)
