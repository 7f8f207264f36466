"""Each algorithm on worlds that ask one thing at a time, and against each other where they must agree."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install understudy[trainer]")

import worlds  # noqa: E402
from understudy_trainer.actor_critic import ActorCritic, NetworkConfig  # noqa: E402
from understudy_trainer.algorithms.a2c import A2C, A2CConfig  # noqa: E402
from understudy_trainer.algorithms.acktr import ACKTRConfig  # noqa: E402
from understudy_trainer.algorithms.ppo import PPO, PPOConfig  # noqa: E402
from understudy_trainer.constraint import ConstraintConfig, Multiplier  # noqa: E402
from understudy_trainer.loop import RunConfig, Trainer  # noqa: E402
from understudy_trainer.training import TrainingConfig, make_trainer  # noqa: E402

SMALL = NetworkConfig(hidden=(16,), normalize_observation=False)
ALGORITHMS = {
    "a2c": A2CConfig(learning_rate=0.01, gamma=0.5),
    "a2c-adam": A2CConfig(learning_rate=0.01, gamma=0.5, optimizer="adam"),
    "acktr": ACKTRConfig(learning_rate=0.25, gamma=0.5, kl_limit=0.01, entropy_coefficient=0.0),
    "ppo": PPOConfig(learning_rate=0.005, gamma=0.5, minibatch_rows=128, normalize_advantage=False),
}
every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS.keys())


def learn(
    world: worlds.World, algorithm, updates: int = 150, network: NetworkConfig = SMALL, **options
) -> Trainer:
    steps = world.num_envs * 4 * updates
    config = TrainingConfig(
        algorithm=algorithm, network=network, run=RunConfig(total_steps=steps), rollout_steps=4, **options
    )
    trainer = make_trainer(world, config)
    trainer.run()
    return trainer


@torch.no_grad()
def answer(trainer: Trainer, *rows: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    model = trainer.learner.model
    logits, value, _ = model(torch.tensor(rows), None, model.initial_memory(len(rows)))
    return torch.softmax(logits, 1), model.value_scale.natural(value)[:, 0]


@every_algorithm
def test_the_critic_learns_a_constant(algorithm) -> None:
    assert float(answer(learn(worlds.AlwaysOne(), algorithm), [0.0])[1]) == pytest.approx(1.0, abs=0.1)


@every_algorithm
def test_the_critic_learns_what_it_sees(algorithm) -> None:
    values = answer(learn(worlds.WhatYouSee(), algorithm), [-1.0], [1.0])[1]
    assert values.tolist() == pytest.approx([-1.0, 1.0], abs=0.15)


@every_algorithm
def test_the_critic_discounts_what_comes_later(algorithm) -> None:
    values = answer(learn(worlds.LaterIsLess(), algorithm), [0.0], [1.0])[1]
    assert values.tolist() == pytest.approx([0.5, 1.0], abs=0.1)


@every_algorithm
def test_the_critic_knows_that_a_recording_ends_and_life_does_not(algorithm) -> None:
    # 1 + 0.5 + 0.25 + … = 2; taken for an end, the average over three-step pieces would be near 1.4.
    assert float(answer(learn(worlds.ForEver(), algorithm), [0.0])[1]) == pytest.approx(2.0, abs=0.15)


@every_algorithm
def test_the_policy_learns_which_action_earns(algorithm) -> None:
    assert float(answer(learn(worlds.ChooseTheSecond(), algorithm), [0.0])[0][0, 1]) > 0.9


@every_algorithm
def test_the_policy_learns_to_act_on_what_it_sees(algorithm) -> None:
    chosen = answer(learn(worlds.ChooseAsSeen(), algorithm), [-1.0], [1.0])[0]
    assert float(chosen[0, 0]) > 0.9
    assert float(chosen[1, 1]) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a2c", "ppo"])
def test_a_memory_is_learnt_to_be_used(name: str) -> None:
    network = NetworkConfig(hidden=(16,), memory=16, normalize_observation=False)
    trainer = learn(worlds.Remember(), ALGORITHMS[name], updates=400, network=network)
    # Three rewards of 0 and one of ±1 make an episode: 1 where what was seen two steps ago is known, 0 by guessing.
    assert trainer.episode_return() > 0.9


def test_values_in_standard_deviations_foretell_the_same() -> None:
    scaled = replace(ALGORITHMS["a2c"], normalize_value=True)
    values = answer(learn(worlds.LaterIsLess(), scaled), [0.0], [1.0])[1]
    assert values.tolist() == pytest.approx([0.5, 1.0], abs=0.1)


def test_a2c_is_ppo_with_one_pass_over_the_whole_batch() -> None:
    # arXiv:2205.09123: the clipped ratio is one before the first step, and so is its gradient's weight.
    options = {
        "learning_rate": 0.01,
        "gae_lambda": 0.9,
        "normalize_advantage": False,
        "entropy_coefficient": 0.02,
    }
    torch.manual_seed(0)
    first, second = ActorCritic(3, 4, SMALL), ActorCritic(3, 4, SMALL)
    second.load_state_dict(first.state_dict())
    a2c = A2C(first, A2CConfig(optimizer="rmsprop_tf", chunk_rows=7, **options))
    ppo = PPO(
        second,
        torch.Generator(),
        PPOConfig(optimizer="rmsprop_tf", epochs=1, minibatch_rows=10**6, **options),
    )
    for seed in range(5):
        batch = worlds.batch_of(first, 60, seed)
        a2c.learn(batch, 0.01, 0.02)
        ppo.learn(batch, 0.01, 0.02)
    torch.testing.assert_close(a2c.parameters.flat, ppo.parameters.flat, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 7, 60, 1000])
def test_chunks_are_not_minibatches(rows: int) -> None:
    model = ActorCritic(3, 4, SMALL)
    batch = worlds.batch_of(model, 60)
    whole, _ = A2C(model, A2CConfig(chunk_rows=60)).gradient(batch, 0.01)
    chunked, _ = A2C(model, A2CConfig(chunk_rows=rows)).gradient(batch, 0.01)
    torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=1e-4)


def test_ppo_stops_when_the_policy_has_moved_enough() -> None:
    model = ActorCritic(3, 4, SMALL)
    ppo = PPO(model, torch.Generator(), PPOConfig(epochs=20, minibatch_rows=60, target_kl=1e-4))
    metrics = ppo.learn(worlds.batch_of(model, 60), 0.05, 0.0)
    assert 1 <= float(metrics["epochs"]) < 20


def test_schedules_go_in_a_straight_line() -> None:
    config = A2CConfig(
        learning_rate=1.0,
        final_learning_rate_share=0.5,
        entropy_coefficient=0.1,
        final_entropy_coefficient=0.0,
    )
    learner = A2C(ActorCritic(3, 4, SMALL), config)
    assert [learner.learning_rate(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.75, 0.5])
    assert [learner.entropy_coefficient(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.1, 0.05, 0.0])


@every_algorithm
def test_a_constraint_holds_where_reward_would_break_it(algorithm) -> None:
    # Entropy keeps a policy that swings to one side from forgetting the other.
    lively = replace(algorithm, entropy_coefficient=0.1)
    constraint = ConstraintConfig(limit=0.3, proportional=0.5, integral=0.02)
    trainer = learn(worlds.Costly(), lively, updates=300, constraint=constraint)
    late = [trainer.iterate()["cost_mean"] for _ in range(100)]
    assert sum(late) / len(late) == pytest.approx(0.3, abs=0.1)


def test_without_a_constraint_reward_is_taken_whatever_it_costs() -> None:
    trainer = learn(worlds.Costly(), ALGORITHMS["a2c"], updates=300)
    assert float(answer(trainer, [0.0])[0][0, 1]) > 0.9


def test_the_price_of_a_cost_falls_to_nothing_where_the_bound_is_kept_and_has_a_maximum() -> None:
    multiplier = Multiplier(ConstraintConfig(limit=0.1, maximum=5.0), torch.device("cpu"))
    for _ in range(3000):
        multiplier.update(torch.tensor([1.0]))
    assert float(multiplier.price) == pytest.approx(5.0)
    for _ in range(3000):
        multiplier.update(torch.tensor([0.0]))
    assert float(multiplier.price) == 0.0


def test_an_environment_that_tells_no_cost_cannot_be_constrained() -> None:
    with pytest.raises(ValueError, match=r"give Step\.cost"):
        learn(worlds.AlwaysOne(), ALGORITHMS["a2c"], constraint=ConstraintConfig(limit=0.1))
