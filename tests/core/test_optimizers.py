import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lapo_cli.core.config import Stage2Config
from lapo_cli.core.models.policy import Policy
from lapo_cli.core.training.optimizers import Muon, build_optimizer, orthogonalized


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([1e-6, 1, 1e4]),
)
def test_an_orthogonalized_matrix_keeps_its_singular_vectors_and_evens_its_singular_values(rows, columns, seed, scale):
    torch.manual_seed(seed)
    short = min(rows, columns)
    u, _ = torch.linalg.qr(torch.randn(rows, short))
    v, _ = torch.linalg.qr(torch.randn(columns, short))
    matrix = scale * u @ torch.diag(torch.linspace(1, 2, short)) @ v.T
    out = orthogonalized(matrix)
    assert out.shape == matrix.shape
    assert out.dtype == matrix.dtype
    inside = u.T @ out @ v
    assert (out - u @ inside @ v.T).norm() < 0.05 * out.norm()  # it stays in the space of the singular vectors
    assert ((inside.diagonal() > 0.6) & (inside.diagonal() < 1.3)).all()


def test_matrices_orthogonalized_together_are_those_orthogonalized_alone():
    torch.manual_seed(0)
    for shape in ((3, 4, 9), (3, 9, 4)):
        matrices = torch.randn(shape)
        alone = torch.stack([orthogonalized(matrix) for matrix in matrices])
        assert torch.allclose(orthogonalized(matrices), alone, atol=1e-2)


class Network(nn.Module):
    """One layer of every kind."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3)
        self.hidden, self.head = nn.Linear(4 * 16, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.hidden(self.second(self.first(x).relu()).relu().flatten(1)).relu())


def network():
    torch.manual_seed(0)
    return Network()


def muon_of(net, **options):
    return Muon(list(net.named_parameters()), 1e-3, fused=True, **options)


def train(net, optimizer, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(8, 3, 8, 8, generator=generator)
        optimizer.zero_grad()
        (net(x) - x.mean((2, 3))[:, :2]).square().mean().backward()
        optimizer.step()


def test_muon_moves_what_is_not_a_hidden_weight_as_adamw_does():
    first, second = network(), network()
    adamw = torch.optim.AdamW(first.parameters(), 1e-3, weight_decay=0.01)
    train(first, adamw, 1)
    train(second, muon_of(second, weight_decay=0.01), 1)
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6) == (name not in ("second.weight", "hidden.weight")), name
    for layer in ("second", "hidden"):  # Some units of the hidden layer are dead: four directions at least are left.
        before, after = getattr(network(), layer).weight, getattr(second, layer).weight
        update = (after - before * (1 - 1e-5)).detach().flatten(1)
        assert torch.linalg.svdvals(update)[:4] == pytest.approx([0.02] * 4, rel=0.4)


def test_a_resumed_muon_goes_on_exactly():
    unbroken, broken = network(), network()
    optimizer = muon_of(unbroken)
    train(unbroken, optimizer, 5, seed=1)
    train(unbroken, optimizer, 5, seed=2)
    optimizer = muon_of(broken)
    train(broken, optimizer, 5, seed=1)
    net = network()
    again = muon_of(net)
    net.load_state_dict(broken.state_dict())
    again.load_state_dict(optimizer.state_dict())
    train(net, again, 5, seed=2)
    for a, b in zip(unbroken.parameters(), net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_muon_moves_the_hidden_layers_of_a_policy_and_not_its_first_and_last():
    policy = Policy(1, 16, 5, "compact")
    _, hidden = build_optimizer([policy], Stage2Config(optimizer="muon")).param_groups
    moved = {name for name, p in policy.named_parameters() if any(p is of for of in hidden["params"])}
    assert "hidden.weight" in moved
    assert len(moved) == 1 + 8  # and the convolutions but the first
    assert moved.isdisjoint({"trunk.convs.0.weight", "trunk.norm.weight", "head.weight"})


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("muon", Muon)])
def test_the_configuration_names_the_optimizer(name, kind):
    assert type(build_optimizer([network()], Stage2Config(optimizer=name))) is kind
