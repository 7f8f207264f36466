"""The rules that move the weights, against the papers' and libraries' own arithmetic."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install understudy[trainer]")

from understudy_trainer.algorithms.optimizers import (  # noqa: E402
    Adam,
    FlatParameters,
    RMSProp,
    RMSPropTF,
    clip_norm,
)

GRADIENTS = [[0.3, -2.0, 0.0], [1.1, 0.4, -1e-4], [-0.7, 0.1, 5.0], [0.2, 0.2, 0.2]]


def test_rmsprop_tf_is_tensorflows_arithmetic_number_by_number() -> None:
    parameters = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    optimizer = RMSPropTF(parameters, decay=0.9, epsilon=1e-3)
    expected, square = parameters.tolist(), [1.0, 1.0, 1.0]  # the mean square starts at one
    for gradient in GRADIENTS:
        optimizer.step(parameters, torch.tensor(gradient, dtype=torch.float64), 0.05)
        for i, g in enumerate(gradient):
            square[i] = 0.9 * square[i] + 0.1 * g * g
            expected[i] -= 0.05 * g / math.sqrt(square[i] + 1e-3)  # epsilon inside of the root
    assert parameters.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (RMSProp, torch.optim.RMSprop, {"alpha": 0.99, "eps": 1e-5}),
        (Adam, torch.optim.Adam, {"betas": (0.9, 0.999), "eps": 1e-5}),
    ],
)
def test_agrees_with_torch(ours, theirs, options) -> None:
    parameters = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    theirs_parameters = torch.nn.Parameter(parameters.clone())
    optimizer, other = ours(parameters), theirs([theirs_parameters], lr=0.05, **options)
    for gradient in GRADIENTS:
        optimizer.step(parameters, torch.tensor(gradient, dtype=torch.float64), 0.05)
        theirs_parameters.grad = torch.tensor(gradient, dtype=torch.float64)
        other.step()
    assert parameters.tolist() == pytest.approx(theirs_parameters.tolist(), rel=1e-10)


def test_a_module_and_its_flat_parameters_are_the_same_memory() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1))
    flat = FlatParameters(module)
    seen = torch.randn(5, 3)
    before = module(seen)
    flat.flat.mul_(2.0)
    assert not torch.equal(module(seen), before)
    module.load_state_dict({name: torch.ones_like(t) for name, t in module.state_dict().items()})
    assert torch.equal(flat.flat, torch.ones_like(flat.flat))


def test_two_updates_with_known_gradients_use_each_gradient_once() -> None:
    # The trap of both well-known A3C repositories: gradients that pile up, or the first one used for ever.
    module = torch.nn.Linear(1, 1, bias=False)
    flat = FlatParameters(module)
    for k in (1.0, 2.0, 3.0):
        assert flat.gradient(k * module.weight.sum()).tolist() == [k]
    assert module.weight.grad is None


def test_a_parameter_that_a_loss_does_not_touch_has_gradient_zero() -> None:
    module = torch.nn.ModuleList([torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)])
    flat = FlatParameters(module)
    assert flat.gradient(module[1](torch.ones(1, 1)).sum()).tolist() == [0.0, 0.0, 1.0, 1.0]


def test_clipping_shortens_long_gradients_only_and_tells_the_length_before() -> None:
    gradient = torch.tensor([3.0, 4.0])
    assert float(clip_norm(gradient, 1.0)) == 5.0
    assert float(gradient.norm()) == pytest.approx(1.0, rel=1e-5)
    short = torch.tensor([0.3, 0.4])
    clip_norm(short, 1.0)
    assert short.tolist() == pytest.approx([0.3, 0.4])
