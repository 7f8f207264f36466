"""K-FAC beside curvlinops, whose own tests compare it with exact curvature: the same factors, the same inverse."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install understudy[trainer]")
curvlinops = pytest.importorskip(
    "curvlinops", reason="curvlinops is not installed: pip install understudy[learning]"
)

from understudy_trainer.actor_critic import ActorCritic, NetworkConfig  # noqa: E402
from understudy_trainer.algorithms.kfac import KFAC  # noqa: E402
from understudy_trainer.algorithms.optimizers import FlatParameters  # noqa: E402

ROWS, DRAWS, DAMPING = 40, 10_000, 0.01

SAMPLING_ERROR = 0.02
"""Of a matrix's largest entry. Ours is the mean over ROWS · DRAWS = 400,000 sampled gradients, curvlinops sums over all
actions ("type-2"): were an entry's samples as wide as its largest entry, the deviation of the mean would be 0.16 %.
They are some times as wide; over ten draws the worst entry of all factors was off by 0.9 %, and the worst of a natural
gradient, where the damping evens it out, by 0.35 %."""


class Branch(torch.nn.Module):
    """The layers that lead to one of the two heads, as a module of one input and one output."""

    def __init__(self, trunk, head):
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, seen):
        return self.head(self.trunk(seen))


def exact(branch: Branch, loss, seen, target):
    """curvlinops' K-FAC of one head: all actions enumerated, weights and bias together."""
    return curvlinops.KFACLinearOperator(
        branch,
        loss,
        list(branch.parameters()),
        [(seen, target)],
        fisher_type="type-2",
        separate_weight_and_bias=False,
        check_deterministic=False,
    )


@pytest.fixture(params=[True, False], ids=["shared trunk", "separate trunks"])
def both(request):
    """Our K-FAC, and curvlinops' operators of the actor and of the critic, of one network at the same observations."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = NetworkConfig(hidden=(6, 5), shared_trunk=request.param, normalize_observation=False)
        model = ActorCritic(4, 3, config).double()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0.0, 0.5)
        seen = torch.randn(ROWS, 4, dtype=torch.float64)
    kfac = KFAC(model, FlatParameters(model), DAMPING, decay=1.0 - 1e-9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        kfac.update(seen.repeat(DRAWS // 10, 1), None, generator)
    kfac.invert()
    actor = exact(
        Branch(model.trunk, model.head),
        torch.nn.CrossEntropyLoss(),
        seen,
        torch.zeros(ROWS, dtype=torch.int64),
    )
    critic = exact(
        Branch(model.critic_trunk or model.trunk, model.critic),
        torch.nn.MSELoss(),
        seen,
        torch.zeros(ROWS, 1, dtype=torch.float64),
    )
    for operator in (actor, critic):
        operator.compute_kronecker_factors()
    return kfac, model, actor, critic


def layers_of(operator, branch_trunk, branch_head):
    """`(layer, A, G)` of every layer of a branch."""
    named = {f"trunk.{name}": layer for name, layer in branch_trunk.named_children()} | {"head": branch_head}
    return [
        (named[name], operator._input_covariances[name], operator._gradient_covariances[name])
        for name in operator._mapping
    ]


def expected(model, actor, critic):
    """`[A, G]` by layer. Draws of action and value are independent, so what both heads send through a layer adds up."""
    found = {}
    for layer, taken, given in layers_of(actor, model.trunk, model.head):
        found[layer] = [taken, given]
    for layer, taken, given in layers_of(critic, model.critic_trunk or model.trunk, model.critic):
        # Its squared error has twice the curvature of a normal log-likelihood of variance one.
        entry = found.setdefault(layer, [taken, torch.zeros_like(given)])
        entry[1] = entry[1] + given / 2.0
    return found


def test_the_factors_are_curvlinops(both) -> None:
    kfac, model, actor, critic = both
    theirs = expected(model, actor, critic)
    assert set(theirs) == set(kfac.layers)
    for layer, taken, given in zip(kfac.layers, kfac.inputs, kfac.outputs, strict=True):
        torch.testing.assert_close(taken, theirs[layer][0], atol=1e-10, rtol=1e-8)  # nothing is sampled here
        scale = float(theirs[layer][1].abs().max())
        torch.testing.assert_close(given, theirs[layer][1], atol=SAMPLING_ERROR * scale, rtol=0.0)


def put(operator, kfac, named) -> None:
    """Give an operator of curvlinops our factors in place of its own."""
    for name, layer in named.items():
        i = kfac.layers.index(layer)
        operator._input_covariances[name], operator._gradient_covariances[name] = (
            kfac.inputs[i],
            kfac.outputs[i],
        )


@pytest.mark.parametrize("ours", [True, False], ids=["of our factors", "of its own factors"])
def test_the_natural_gradient_is_curvlinops(both, ours: bool) -> None:
    kfac, model, actor, critic = both
    named = {
        name: layer for name, layer in Branch(model.trunk, model.head).named_modules() if layer in kfac.layers
    }
    if ours:
        put(actor, kfac, named)
    else:  # the exact ones; in a shared trunk with the critic's part
        for layer, (_, given) in expected(model, actor, critic).items():
            for name in [name for name, other in named.items() if other is layer]:
                actor._gradient_covariances[name] = given
    inverse = curvlinops.KFACInverseLinearOperator(actor, damping=DAMPING, use_heuristic_damping=True)
    parameters = FlatParameters(model)
    gradient = torch.randn(len(parameters.flat), generator=torch.Generator().manual_seed(1)).double()
    parts = dict(zip(map(id, parameters.tensors), gradient.split(parameters.sizes), strict=True))
    natural = dict(
        zip(map(id, parameters.tensors), kfac.precondition(gradient).split(parameters.sizes), strict=True)
    )
    branch = list(Branch(model.trunk, model.head).parameters())
    found = inverse._matmat([parts[id(one)].view_as(one)[..., None].clone() for one in branch])
    tolerance = 1e-9 if ours else SAMPLING_ERROR  # with the same factors only rounding is left
    for parameter, other in zip(branch, found, strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(
            natural[id(parameter)].view_as(parameter), other[..., 0], atol=tolerance * scale, rtol=0.0
        )
