"""What is coming, for the critic alone.

What the load will be and what the calibrated row will pay for it are settled before the actor decides anything, so a
value that knows them is still a baseline without bias, and a better one. The actor never sees these columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from understudy_policy.actions import DECISION_TICKS
from understudy_simulator.audition import Episode

WINDOWS = ((0, 1), (1, 3), (3, 7), (7, 15))
"""Decisions ahead, from and until, over which a hint is the mean of what comes."""

HINTS = 3 * len(WINDOWS) + 5
"""Columns."""


def what_comes(episode: Episode, pays: Tensor, pods: Tensor, unit: Tensor) -> Tensor:
    """Hints `[decisions + 1, N, HINTS]` of a life, as seen before each decision and after the last.

    Args:
        episode: the services.
        pays: `[N, decisions]` what the reference pays, in units.
        pods: `[N, decisions]` the part of it that is pods, as `audition.Terms.cost`.
        unit: `[N]` of the rewards.
    """
    decisions, first = episode.decisions, episode.first_tick
    rate = episode.rate_rps[:, first : first + decisions * DECISION_TICKS]
    load = rate.unflatten(1, (decisions, DECISION_TICKS)).mean(dim=2) / episode.mean_rps[:, None] + 1e-3
    now = torch.cat([load[:, :1], load], dim=1)
    columns = [now.log(), torch.cat([pods[:, :1], pods], dim=1).log1p()]
    for start, end in WINDOWS:
        columns += [
            (_ahead(load, start, end) / now).log(),
            _ahead(pays, start, end).log1p(),
            (_ahead(pods, start, end) / _ahead(load, start, end)).log1p(),
        ]
    given = episode.settings.given_capacity_rps / episode.cluster.service.capacity_rps
    constant = (given.log().nan_to_num(0.0), unit.log(), episode.dispersion.log())
    columns += [column[:, None].expand_as(now) for column in constant]
    return torch.stack(columns, dim=2).transpose(0, 1).float().contiguous()


def _ahead(values: Tensor, start: int, end: int) -> Tensor:
    """Means `[N, D + 1]` of values `[N, D]` from `start` to `end` decisions ahead; behind the end the last lasts."""
    width, last = end - start, values[:, -1:]
    following = torch.cat([values[:, start:], last.expand(-1, start + width)], dim=1)
    total = torch.cat([torch.zeros_like(last), following.cumsum(dim=1)], dim=1)
    return (total[:, width:] - total[:, :-width])[:, : values.shape[1] + 1] / width
