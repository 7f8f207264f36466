"""How good a decision was: advantages from what followed it, with the end of a rollout and of an episode told apart.

`terminated` cuts the value of what follows (there is nothing), `ended` cuts the sum of surprises (what is recorded next
belongs to another episode). A truncated step is ended but not terminated: its `next_value` is that of the last state
seen, not of the one that the next episode began with.
"""

from __future__ import annotations

import torch
from torch import Tensor


def next_values(value: Tensor, last_value: Tensor, truncated: Tensor, final_value: Tensor) -> Tensor:
    """Value of the state that each step led to.

    Args:
        value: `[T, N, V]` of the states acted in.
        last_value: `[N, V]` of the states after the last step (the bootstrap at the end of the rollout).
        truncated: `[T, N]` bool.
        final_value: `[T, N, V]`, value of the last state of an episode where it was truncated; elsewhere anything.

    Returns:
        `[T, N, V]`; in terminated steps it means nothing and is not used.
    """
    following = torch.cat([value[1:], last_value[None]])
    return torch.where(truncated.unsqueeze(-1), final_value, following)


def generalized_advantages(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    ended: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalised advantage estimates (arXiv:1506.02438); with `gae_lambda` 1 the n-step advantage of A3C.

    Args:
        reward: `[T, N, V]`.
        value: `[T, N, V]` of the states acted in.
        next_value: `[T, N, V]` of the states that were led to, see `next_values`.
        terminated: `[T, N]` bool, nothing follows.
        ended: `[T, N]` bool, terminated or truncated.
        gamma: discount of one step.
        gae_lambda: 0 trusts the critic after one step, 1 only at the end of the rollout or episode.

    Returns:
        `[T, N, V]`; add `value` for the return that the critic learns.
    """
    surprise = reward + gamma * next_value.masked_fill(terminated.unsqueeze(-1), 0.0) - value
    carried = (gamma * gae_lambda) * (~ended).unsqueeze(-1).to(value.dtype)
    advantage = torch.empty_like(surprise)
    following = torch.zeros_like(surprise[0])
    for t in range(len(surprise) - 1, -1, -1):
        following = surprise[t] + carried[t] * following
        advantage[t] = following
    return advantage
