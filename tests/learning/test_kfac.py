"""K-FAC against what it approximates: autograd's own Fisher matrix, and dense linear algebra."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install understudy[trainer]")

from understudy_trainer import actor_critic  # noqa: E402
from understudy_trainer.actor_critic import ActorCritic, NetworkConfig  # noqa: E402
from understudy_trainer.algorithms.acktr import ACKTR, ACKTRConfig  # noqa: E402
from understudy_trainer.algorithms.kfac import KFAC, trace, with_one  # noqa: E402
from understudy_trainer.algorithms.optimizers import FlatParameters  # noqa: E402
from worlds import batch_of  # noqa: E402


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def network(shared: bool = True) -> ActorCritic:
    model = ActorCritic(3, 4, NetworkConfig(hidden=(5, 4), shared_trunk=shared, normalize_observation=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5)
    return model


def parts(kfac: KFAC, flat: torch.Tensor) -> list[torch.Tensor]:
    """Of a `[…, P]`, every layer's weights and bias as `[…, out·(in + 1)]`, the bias behind each row of weights."""
    found = []
    for layer, (weight, bias) in zip(kfac.layers, kfac._slices, strict=True):
        rows = flat[..., weight].unflatten(-1, layer.weight.shape)
        found.append(torch.cat([rows, flat[..., bias, None]], dim=-1).flatten(-2))
    return found


@pytest.mark.parametrize("shared", [True, False])
def test_for_one_observation_the_factors_converge_to_the_exact_fisher_matrix(shared: bool) -> None:
    model = network(shared)
    flat = FlatParameters(model)
    kfac = KFAC(model, flat, damping=1e-3, decay=1.0 - 1e-9)
    seen = torch.randn(1, 3)
    # The same observation 60,000 times over: the draws of action and value average out.
    generator = torch.Generator().manual_seed(0)
    kfac.update(seen.expand(60_000, 3), None, generator)

    logits, value, _ = trace(model, seen, None)
    exact = [torch.zeros(part.numel(), part.numel()) for part in parts(kfac, flat.flat)]
    scores = []
    for action in range(4):
        score = flat.gradient(actor_critic.log_prob(logits, torch.tensor([action])).sum(), keep_graph=True)
        scores.append((float(torch.softmax(logits, 1)[0, action].detach()), score))
    scores.append((1.0, flat.gradient(value.sum())))  # variance one: E[noise²] = 1
    for weight, score in scores:
        for i, part in enumerate(parts(kfac, score)):
            exact[i] += weight * torch.outer(part, part)
    for i in range(len(exact)):
        approximate = torch.kron(kfac.outputs[i], kfac.inputs[i])
        torch.testing.assert_close(approximate, exact[i], atol=0.03 * float(exact[i].abs().max()), rtol=0)


def test_the_input_factor_is_the_second_moment_of_inputs_with_a_one_for_the_bias() -> None:
    model = network()
    kfac = KFAC(model, FlatParameters(model), damping=1e-3, decay=0.9)
    seen = torch.randn(7, 3)
    kfac.update(seen, None, torch.Generator().manual_seed(0))
    rows = with_one(seen)
    torch.testing.assert_close(kfac.inputs[kfac.layers.index(model.trunk[0])], rows.T @ rows / 7)


def test_a_natural_gradient_is_that_of_a_dense_solve() -> None:
    model = network()
    flat = FlatParameters(model)
    kfac = KFAC(model, flat, damping=0.01, decay=0.9)
    kfac.update(torch.randn(50, 3), None, torch.Generator().manual_seed(0))
    kfac.invert()
    gradient = torch.randn(len(flat.flat))
    natural = kfac.precondition(gradient)
    for found, plain, taken, given in zip(
        parts(kfac, natural), parts(kfac, gradient), kfac.inputs, kfac.outputs, strict=True
    ):
        ratio = (taken.diagonal().mean() / given.diagonal().mean()).sqrt()
        damped = torch.kron(
            given + 0.1 / ratio * torch.eye(len(given)), taken + 0.1 * ratio * torch.eye(len(taken))
        )
        torch.testing.assert_close(found, torch.linalg.solve(damped, plain), atol=1e-9, rtol=1e-7)


def test_factors_are_the_plain_mean_at_first_and_forget_later() -> None:
    model = network()
    kfac = KFAC(model, FlatParameters(model), damping=1e-3, decay=0.75)
    first = kfac.layers.index(model.trunk[0])
    expected = torch.zeros(4, 4)
    for k in range(1, 9):
        seen = torch.randn(6, 3)
        kfac.update(seen, None, torch.Generator().manual_seed(k))
        share = max(1.0 / k, 0.25)  # the mean of four, then a quarter of what is new
        expected = (1 - share) * expected + share * with_one(seen).T @ with_one(seen) / 6
        torch.testing.assert_close(kfac.inputs[first], expected)


def test_looking_at_curvature_leaves_weights_and_their_gradients_alone() -> None:
    model = network()
    flat = FlatParameters(model)
    before = flat.flat.clone()
    KFAC(model, flat, 1e-3, 0.9).update(torch.randn(9, 3), None, torch.Generator().manual_seed(0))
    assert torch.equal(flat.flat, before)
    assert all(parameter.grad is None for parameter in model.parameters())


def learner(model: ActorCritic, **options) -> ACKTR:
    config = ACKTRConfig(**{"cold_updates": 1, "momentum": 0.0, "entropy_coefficient": 0.0, **options})
    return ACKTR(model, torch.Generator().manual_seed(0), config)


@pytest.mark.parametrize("limit", [1e-4, 1e-3])
def test_a_step_moves_the_policy_by_the_divergence_that_it_is_allowed(limit: float) -> None:
    model = network()
    # Damping small, so that the region and not the damping bounds the step; the critic stands still.
    acktr = learner(model, kl_limit=limit, damping=1e-6, learning_rate=100.0, value_coefficient=0.0)
    batch = batch_of(model, 4000)
    acktr.updates = 1
    before = model.sequence(batch.observation, None, batch.memory, batch.started)[0].detach().log_softmax(-1)
    metrics = acktr.learn(batch, 100.0, 0.0)
    after = model.sequence(batch.observation, None, batch.memory, batch.started)[0].detach().log_softmax(-1)
    moved = float((before.exp() * (before - after)).sum(-1).mean())
    assert float(metrics["actor_shortened"]) < 1.0
    # Correlations between layers are not in the picture: three layers that pull together move it some times as far.
    assert limit / 6 < moved < limit * 6


def test_the_region_never_lengthens_a_step() -> None:
    model = network()
    acktr = learner(model, kl_limit=1e6)
    acktr.updates = 1
    metrics = acktr.learn(batch_of(model, 200), 0.01, 0.0)
    assert float(metrics["actor_shortened"]) == 1.0
    assert float(metrics["critic_shortened"]) == 1.0


def test_while_cold_it_follows_the_plain_gradient() -> None:
    model = network()
    acktr = learner(model, max_gradient_norm=1e9)
    batch, before = batch_of(model, 100), acktr.parameters.flat.clone()
    gradients, _ = acktr.gradients(batch, 0.0)
    acktr.learn(batch, 0.1, 0.0)
    torch.testing.assert_close(acktr.parameters.flat, before - 0.1 * gradients.sum(0))


@pytest.mark.slow
def test_fused_by_the_compiler_it_takes_the_same_steps() -> None:
    models = network(), network()
    models[1].load_state_dict(models[0].state_dict())
    config = ACKTRConfig(cold_updates=2, inverse_updates=2)
    plain, fused = (
        ACKTR(model, torch.Generator().manual_seed(0), config, compiled=compiled)
        for model, compiled in zip(models, (False, True), strict=True)
    )
    for seed in range(6):
        batch = batch_of(plain.model, 60, seed)
        for acktr in (plain, fused):
            acktr.learn(batch, 0.1, 0.01)
            acktr.updates += 1
    torch.testing.assert_close(fused.parameters.flat, plain.parameters.flat, atol=1e-8, rtol=1e-6)


def test_a_network_with_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="memory is 4"):
        ACKTR(ActorCritic(3, 2, NetworkConfig(memory=4)), torch.Generator())
