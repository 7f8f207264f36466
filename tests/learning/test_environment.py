"""The worlds to check on do what Gymnasium's do, and Gymnasium's own can be learnt in too."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install understudy[trainer]")
gymnasium = pytest.importorskip(
    "gymnasium", reason="gymnasium is not installed: pip install understudy[bench]"
)

from gymnasium.vector import AutoresetMode  # noqa: E402

from understudy_trainer.classic_control import Acrobot, CartPole  # noqa: E402
from understudy_trainer.environment import GymnasiumEnvironment  # noqa: E402

SAME_STEP = {"autoreset_mode": AutoresetMode.SAME_STEP}


@pytest.mark.parametrize(("ours", "theirs"), [(CartPole, "CartPole-v1"), (Acrobot, "Acrobot-v1")])
def test_every_step_is_gymnasiums(ours, theirs) -> None:
    world, env = ours(1, seed=3), gymnasium.make(theirs).unwrapped
    rng, ends = np.random.default_rng(0), 0
    view = world.reset()
    env.reset(seed=0)
    for _ in range(3000):
        # The state is handed over at every step: single precision would drift from double otherwise.
        env.state = world.state[0].double().numpy().copy()
        env.steps_beyond_terminated = None
        before = view
        action = int(rng.integers(world.num_actions))
        step = world.step(torch.tensor([action]))
        observation, reward, terminated, _, _ = env.step(action)
        assert float(step.reward) == reward
        if bool(step.truncated):
            np.testing.assert_allclose(step.final_observation[0], observation, atol=2e-5)
        elif bool(step.terminated) != terminated:
            pytest.fail(f"terminated differs behind {before}")
        elif not terminated:
            np.testing.assert_allclose(step.view.observation[0], observation, atol=2e-5)
        ends += bool(step.terminated | step.truncated)
        view = step.view
    assert ends >= 1


def test_the_time_limit_truncates_and_does_not_terminate() -> None:
    world = Acrobot(8, seed=0)
    world.reset()
    still = torch.ones(8, dtype=torch.int64)  # no torque: it hangs
    for _ in range(world.time_limit - 1):
        step = world.step(still)
        assert not bool((step.terminated | step.truncated).any())
        assert step.final_observation is None
    step = world.step(still)
    assert bool(step.truncated.all())
    assert not bool(step.terminated.any())
    assert not torch.equal(step.final_observation, step.view.observation)


def test_a_gymnasium_environment_tells_how_its_episodes_ended() -> None:
    envs = gymnasium.make_vec(
        "CartPole-v1", 6, vectorization_mode="sync", vector_kwargs=SAME_STEP, max_episode_steps=20
    )
    world = GymnasiumEnvironment(envs, seed=0)
    assert (world.num_envs, world.observation_size, world.num_actions) == (6, 4, 2)
    view, terminated, truncated = world.reset(), 0, 0
    for _ in range(200):
        # A hand-written rule that holds the pole up for twenty steps most of the time.
        step = world.step((view.observation[:, 2] + view.observation[:, 3] > 0).long())
        rows = step.truncated.nonzero()[:, 0]
        if len(rows):
            # The last thing seen of a truncated episode is not the first of the next.
            assert bool((step.final_observation[rows] - step.view.observation[rows]).abs().sum(1).min() > 0)
            assert float(step.view.observation[rows].abs().max()) <= 0.05
        terminated, truncated = terminated + int(step.terminated.sum()), truncated + len(rows)
        view = step.view
    assert truncated > 10


def test_the_same_seed_gives_the_same_episodes() -> None:
    def play(seed: int) -> list[float]:
        envs = gymnasium.make_vec("CartPole-v1", 3, vectorization_mode="sync", vector_kwargs=SAME_STEP)
        world = GymnasiumEnvironment(envs, seed)
        seen = [world.reset().observation]
        seen += [world.step(torch.tensor([0, 1, 0])).view.observation for _ in range(40)]
        return torch.cat(seen).flatten().tolist()

    assert play(5) == play(5)
    assert play(5) != play(6)


def test_another_autoreset_is_refused_with_the_mend() -> None:
    envs = gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="sync")
    with pytest.raises(ValueError, match=r"autoreset_mode .*NEXT_STEP.*SAME_STEP"):
        GymnasiumEnvironment(envs, 0)
