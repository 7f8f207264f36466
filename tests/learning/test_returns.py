"""Advantages: the end of a rollout, of an episode and of a recording are three different things."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed: pip install understudy[trainer]")

from understudy_trainer.returns import generalized_advantages, next_values  # noqa: E402


def column(*values: float) -> torch.Tensor:
    """[T, 1, 1]."""
    return torch.tensor(values, dtype=torch.float64)[:, None, None]


def flags(*values: int) -> torch.Tensor:
    """[T, 1]."""
    return torch.tensor(values, dtype=torch.bool)[:, None]


def advantages(terminated, truncated, gae_lambda=1.0, gamma=0.5, final=(0.0, 0.0, 0.0)):
    value = column(1.0, 2.0, 3.0)
    last = torch.tensor([[8.0]], dtype=torch.float64)
    following = next_values(value, last, truncated, column(*final))
    reward = column(10.0, 20.0, 30.0)
    return generalized_advantages(
        reward, value, following, terminated, terminated | truncated, gamma, gae_lambda
    ).flatten()


def test_the_end_of_a_rollout_is_bootstrapped_with_the_value_of_what_follows() -> None:
    # Returns by hand: 30 + 0.5·8 = 34, 20 + 0.5·34 = 37, 10 + 0.5·37 = 28.5.
    assert advantages(flags(0, 0, 0), flags(0, 0, 0)).tolist() == [28.5 - 1, 37 - 2, 34 - 3]


def test_behind_a_terminated_step_nothing_follows() -> None:
    assert advantages(flags(0, 1, 0), flags(0, 0, 0)).tolist() == [10 + 0.5 * 20 - 1, 20 - 2, 34 - 3]


def test_behind_a_truncated_step_the_last_state_of_that_episode_counts_and_not_the_next_episodes_first() -> (
    None
):
    # 20 + 0.5·V(final) = 20 + 0.5·6 = 23, where V of the next episode's first state (3) would give 21.5.
    found = advantages(flags(0, 0, 0), flags(0, 1, 0), final=(0.0, 6.0, 0.0))
    assert found.tolist() == [10 + 0.5 * 23 - 1, 23 - 2, 34 - 3]


def test_truncated_in_the_last_step_takes_the_final_state_and_not_the_view_behind_the_reset() -> None:
    assert advantages(flags(0, 0, 0), flags(0, 0, 1), final=(0.0, 0.0, 6.0))[2] == 30 + 0.5 * 6 - 3


def test_with_lambda_zero_only_one_step_counts() -> None:
    assert advantages(flags(0, 0, 0), flags(0, 0, 0), gae_lambda=0.0).tolist() == [
        10 + 0.5 * 2 - 1,
        20 + 0.5 * 3 - 2,
        30 + 0.5 * 8 - 3,
    ]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), gamma=st.floats(0, 1), gae_lambda=st.floats(0, 1))
def test_agrees_with_the_definition_summed_up_step_by_step(
    seed: int, gamma: float, gae_lambda: float
) -> None:
    rng = np.random.default_rng(seed)
    steps, rows = 7, 3
    reward, value, final = rng.normal(size=(3, steps, rows))
    last = rng.normal(size=rows)
    end = rng.random((steps, rows))
    terminated, truncated = end < 0.2, end > 0.8

    def tensor(array):
        return torch.from_numpy(array)

    following = next_values(
        tensor(value)[..., None], tensor(last)[..., None], tensor(truncated), tensor(final)[..., None]
    )
    found = generalized_advantages(
        tensor(reward)[..., None],
        tensor(value)[..., None],
        following,
        tensor(terminated),
        tensor(terminated | truncated),
        gamma,
        gae_lambda,
    )[..., 0].numpy()

    for n in range(rows):
        for t in range(steps):
            # Sum over the surprises of the rest of this episode within the rollout.
            expected, weight = 0.0, 1.0
            for k in range(t, steps):
                after = value[k + 1, n] if k + 1 < steps else last[n]
                if terminated[k, n]:
                    after = 0.0
                elif truncated[k, n]:
                    after = final[k, n]
                expected += weight * (reward[k, n] + gamma * after - value[k, n])
                weight *= gamma * gae_lambda
                if terminated[k, n] or truncated[k, n]:
                    break
            assert found[t, n] == pytest.approx(expected, abs=1e-9)
