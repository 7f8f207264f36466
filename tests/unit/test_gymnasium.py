"""The environments that others may train on keep to Gymnasium's rules, and the one is the other with one row."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from understudy_policy import actions, features
from understudy_simulator.gymnasium import ID, AutoscaleVectorEnv

SMALL = {"episode_s": 300.0, "curves": 16}


def vector(count=3, **options):
    return AutoscaleVectorEnv(count, **{**SMALL, **options})


def test_gymnasium_accepts_the_environment():
    check_env(
        gymnasium.make(f"understudy_simulator.gymnasium:{ID}", **SMALL).unwrapped, skip_render_check=True
    )


def test_an_episode_is_cut_off_by_time_and_never_ends_by_itself():
    env = gymnasium.make(ID, **SMALL)
    env.reset(seed=1)
    ends = [env.step(12)[2:4] for _ in range(5)]
    assert ends == [(False, False)] * 4 + [(False, True)]


def test_the_vector_of_one_is_the_single_environment():
    single, many = (
        gymnasium.make(ID, **SMALL),
        gymnasium.make_vec(ID, num_envs=1, vectorization_mode=None, **SMALL),
    )
    seen, _ = single.reset(seed=3)
    all_seen, _ = many.reset(seed=3)
    np.testing.assert_array_equal(seen, all_seen[0])
    for action in (3, 17, 39, 0):
        seen, reward, _, _, info = single.step(action)
        all_seen, rewards, _, _, infos = many.step(np.array([action]))
        np.testing.assert_array_equal(seen, all_seen[0])
        assert reward == rewards[0]
        assert info["cost"] == infos["cost"][0]


def test_all_rows_begin_anew_in_the_step_that_cuts_them_off():
    env = vector()
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    env.reset(seed=0)
    for _ in range(4):
        seen, _, terminated, truncated, info = env.step(np.full(3, 20))
        assert not truncated.any()
        assert "final_obs" not in info
    seen, _, terminated, truncated, info = env.step(np.full(3, 20))
    assert truncated.all()
    assert not terminated.any()
    assert info["final_obs"].shape == seen.shape == (3, features.F)
    assert (info["final_obs"] != seen).any(axis=1).all()


def test_equal_seeds_live_equal_lives():
    lives = []
    for seed in (5, 5, 6):
        env = vector()
        life = [env.reset(seed=seed)[0]]
        life += [env.step(np.array([4, 14, 24]))[0] for _ in range(7)]  # into the second episode
        lives.append(np.array(life))
    np.testing.assert_array_equal(lives[0], lives[1])
    assert (lives[0] != lives[2]).any()


def test_whoever_does_as_the_reference_row_earns_nothing():
    env = vector(reference_row=15)
    env.reset(seed=0)
    assert (env.step(np.full(3, 15))[1] == 0).all()
    assert (env.step(np.full(3, 0))[1] != 0).any()


def test_the_reward_is_minus_its_terms_at_their_prices():
    env = vector(change_price=0.5)
    env.reset(seed=0)
    _, reward, _, _, info = env.step(np.full(3, 9))
    price = env._episode.settings.missed_request_price
    assert reward == pytest.approx(-(info["cost"] + price * info["missed"] + 0.5 * info["changes"]), rel=1e-6)
    assert env.single_action_space.n == len(actions.TABLE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episode_s": 90.0}, "episode_s is 90; give a multiple of 60 s"),
        ({"reference_row": 65}, "reference_row is 65; the table has rows 0 to 64"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        vector(**options)
