"""The network: what is masked is never chosen, memory ends with the episode, the critic keeps its word."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install understudy[trainer]")

from torch.distributions import Categorical  # noqa: E402

from understudy_policy import actions, features  # noqa: E402
from understudy_trainer import actor_critic  # noqa: E402
from understudy_trainer.actor_critic import ActorCritic, NetworkConfig, ValueScale  # noqa: E402
from understudy_trainer.networks import FORBIDDEN_LOGIT  # noqa: E402

PLAIN = NetworkConfig(hidden=(8,), normalize_observation=False)


def test_log_probability_and_entropy_agree_with_torch() -> None:
    logits, action = torch.randn(64, 5), torch.randint(0, 5, (64,))
    theirs = Categorical(logits=logits)
    torch.testing.assert_close(actor_critic.log_prob(logits, action), theirs.log_prob(action))
    torch.testing.assert_close(actor_critic.entropy(logits), theirs.entropy())


def test_entropy_of_a_masked_choice_is_that_of_what_is_left() -> None:
    logits = torch.tensor([[0.0, FORBIDDEN_LOGIT, 0.0]])
    assert float(actor_critic.entropy(logits)) == pytest.approx(float(torch.log(torch.tensor(2.0))))


def test_actions_are_drawn_with_the_probabilities_that_the_logits_say() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0]).expand(200_000, 4)
    uniform = torch.rand(logits.shape, generator=torch.Generator().manual_seed(0))
    share = torch.bincount(actor_critic.sample(logits, uniform), minlength=4) / len(logits)
    # Five standard errors of the largest share.
    torch.testing.assert_close(share, torch.softmax(logits[0], 0), atol=0.006, rtol=0)


@pytest.mark.parametrize("extreme", [0.0, 1.0 - 2.0**-24])
def test_a_masked_action_is_never_drawn_whatever_the_luck(extreme: float) -> None:
    model = ActorCritic(3, 6, PLAIN)
    mask = torch.rand(500, 6, generator=torch.Generator().manual_seed(1)) < 0.3
    mask[:, 2] = True
    logits, _, _ = model(torch.randn(500, 3) * 100, mask, model.initial_memory(500))
    # The worst luck there is: the forbidden actions get the largest noise, the allowed ones the smallest.
    uniform = torch.where(mask, 0.0, 1.0 - 2.0**-24) if extreme else torch.full((500, 6), extreme)
    chosen = actor_critic.sample(logits, uniform)
    assert bool(mask.gather(1, chosen[:, None]).all())


def test_a_fresh_policy_is_nearly_uniform_and_its_layers_orthogonal() -> None:
    model = ActorCritic(4, 3, NetworkConfig(hidden=(16, 16), normalize_observation=False))
    logits, _, _ = model(torch.randn(100, 4), None, model.initial_memory(100))
    assert float((torch.softmax(logits, 1) - 1 / 3).detach().abs().max()) < 0.02
    weight = model.trunk[2].weight
    torch.testing.assert_close(weight @ weight.T, 2.0 * torch.eye(16), atol=1e-4, rtol=0)


def test_a_memory_ends_with_its_episode() -> None:
    model = ActorCritic(3, 2, NetworkConfig(hidden=(8,), memory=5, normalize_observation=False))
    seen = torch.randn(4, 2, 3)
    started = torch.zeros(4, 2, dtype=torch.bool)
    started[2, 0] = True
    logits, value = model.sequence(seen, None, torch.randn(2, 5), started)
    fresh, fresh_value = model.sequence(
        seen[2:], None, torch.zeros(2, 5), torch.zeros(2, 2, dtype=torch.bool)
    )
    torch.testing.assert_close(logits[2:, 0], fresh[:, 0])
    torch.testing.assert_close(value[2:, 0], fresh_value[:, 0])
    assert not torch.allclose(logits[2:, 1], fresh[:, 1])


def test_a_sequence_is_its_steps_one_after_the_other() -> None:
    model = ActorCritic(3, 2, NetworkConfig(hidden=(8,), memory=5, normalize_observation=False))
    seen, memory = torch.randn(4, 2, 3), torch.zeros(2, 5)
    logits, _ = model.sequence(seen, None, memory, torch.zeros(4, 2, dtype=torch.bool))
    for t in range(4):
        step, _, memory = model(seen[t], None, memory)
        torch.testing.assert_close(step, logits[t])


def test_moving_the_scale_of_values_does_not_change_what_the_critic_says() -> None:
    model = ActorCritic(3, 2, PLAIN)
    seen, memory = torch.randn(50, 3), model.initial_memory(50)
    with torch.no_grad():
        before = model.value_scale.natural(model(seen, None, memory).value)
        for scale in (3.0, 100.0, 0.1):
            model.value_scale.update(torch.randn(16, 8, 1) * scale + scale, model.critic)
        after = model.value_scale.natural(model(seen, None, memory).value)
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3)


def test_the_scale_of_values_is_that_of_the_returns() -> None:
    scale, critic = ValueScale(1), torch.nn.Linear(2, 1)
    returns = torch.randn(400, 50, 1, generator=torch.Generator().manual_seed(0)) * 7.0 + 30.0
    for part in returns.split(20):
        scale.update(part, critic)
    assert float(scale.mean) == pytest.approx(30.0, rel=0.02)
    assert float(scale.deviation) == pytest.approx(7.0, rel=0.05)


def test_what_is_exported_acts_as_what_was_trained() -> None:
    model = ActorCritic(features.F, len(actions.TABLE), NetworkConfig(hidden=(16, 8)))
    seen = torch.randn(200, features.F)
    model.normalizer.update(seen)
    mask = torch.rand(200, len(actions.TABLE)) < 0.8
    logits, _, _ = model(seen, mask, model.initial_memory(200))
    torch.testing.assert_close(model.actor()(seen, mask), torch.softmax(logits, 1))


def test_a_network_with_memory_is_not_exported() -> None:
    with pytest.raises(ValueError, match="memory is 4"):
        ActorCritic(features.F, len(actions.TABLE), NetworkConfig(memory=4)).actor()
