"""Layers of every family with a name, and of distributions: evidence, paths, priors, bad input."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from reparameterised import DOUBLE, nodes
from torch import Tensor, nn
from torch import distributions as d
from torch.distributions import Distribution, Independent

import fastvi
from fastvi.models.hierarchical.families import FAMILIES
from fastvi.objectives import ELBO, IWLB, VIMCO, Reinforce

FEATURES = 3
REPARAMETERISED = ["gaussian", "laplace"]
COUNTS = ["poisson", "negative_binomial", "zero_inflated_negative_binomial"]


def data(count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(8)
    return torch.randn(count, FEATURES, generator=generator, **DOUBLE)


def likelihood() -> fastvi.Likelihood:
    return fastvi.GaussianLikelihood(1.5)


def linear(inputs: int, outputs: int, size: float = 0.4) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, **DOUBLE)
    with torch.no_grad():
        layer.weight.mul_(size)
        layer.bias.mul_(size)
    return layer


def network_of(family: str) -> fastvi.HierarchicalVAE:
    torch.manual_seed(6)
    count = len(FAMILIES[family].parameters)
    layer = fastvi.StochasticLayer(family, 1, guide=linear(FEATURES, count))
    return fastvi.HierarchicalVAE([layer], linear(1, FEATURES), likelihood=likelihood())


def support_of(family: str) -> tuple[Tensor, Tensor]:
    """Values, (values, 1), and the weights that an integral over the support gives them."""
    if family in COUNTS:
        return torch.arange(200.0, **DOUBLE)[:, None], torch.ones(200, **DOUBLE)
    if family == "bernoulli":
        return torch.tensor([[0.0], [1.0]], **DOUBLE), torch.ones(2, **DOUBLE)
    z, weight = nodes("real")
    near = z.abs() < 60  # where the densities are not zero in float64
    return z[near][:, None], weight[near]


@pytest.mark.parametrize("family", [*REPARAMETERISED, "bernoulli", *COUNTS])
def test_the_evidence_of_a_layer_is_that_of_its_support(family: str):
    network, x = network_of(family), data()
    values, weight = support_of(family)
    h = values[:, None, :].expand(-1, len(x), -1)
    terms = network.log_joint(x, {"h1": h})
    exact = (terms["h1"].reshape(len(values), -1) + terms["x"] + weight.log()[:, None]).logsumexp(0)
    torch.manual_seed(0)
    log_w = network.log_weights(x, 20_000).detach()
    error = (log_w - exact).exp().std(0) / 20_000**0.5
    assert ((log_w.logsumexp(0) - math.log(20_000) - exact).abs() < 5 * error + 1e-9).all()
    # The prior sums to one, so that it is a density.
    total = (terms["h1"].reshape(len(values), -1)[:, 0] + weight.log()).logsumexp(0)
    # At a kink the rule is off by h^2/12 times the jump of the slope, which is 1 for the Laplace.
    kink = float(values.diff(dim=0).min()) ** 2 / 12 if family == "laplace" else 0.0
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=kink + 1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_draw_has_the_density_of_its_law(family: str):
    torch.manual_seed(1)
    count = len(FAMILIES[family].parameters)
    given = tuple(0.5 * torch.randn(5, 4, **DOUBLE) for _ in range(count))
    key = fastvi.ops.new_key()
    value, log_q = FAMILIES[family].draw(given, 6, key, 0)
    torch.testing.assert_close(log_q, FAMILIES[family].law(given).log_prob(value))
    each, log_each = FAMILIES[family].draw(tuple(p.expand(6, 5, 4) for p in given), None, key, 0)
    assert each.shape == value.shape
    torch.testing.assert_close(log_each, log_q) if family != "poisson" else None
    mean = FAMILIES[family].law(given).mean
    torch.testing.assert_close(FAMILIES[family].mean(given), mean)


# ---- two layers, of any kinds --------------------------------------------------------------------
class Returning(nn.Module):
    """A network that returns a distribution of what its linear layer says."""

    def __init__(self, inputs: int, features: int, make) -> None:
        super().__init__()
        self.linear = linear(inputs, 2 * features)
        self.make = make

    def forward(self, x: Tensor) -> Distribution:
        return self.make(*self.linear(x).chunk(2, -1))


def full(loc: Tensor, log_scale: Tensor) -> Distribution:
    factor = torch.diag_embed(log_scale.exp()) + 0.2 * torch.ones(2, 2, **DOUBLE).tril(-1)
    return d.MultivariateNormal(loc, scale_tril=factor)


def tanh(loc: Tensor, log_scale: Tensor) -> Distribution:
    base = Independent(d.Normal(loc, log_scale.exp()), 1)
    return d.TransformedDistribution(base, [d.TanhTransform(cache_size=1)])


MAKES = {
    "normal": lambda loc, log_scale: d.Normal(loc, log_scale.exp()),
    "gumbel": lambda loc, log_scale: Independent(d.Gumbel(loc, log_scale.exp()), 1),
    "full": full,
    "tanh": tanh,
}


def deep(first, second, family_first=None, family_second=None) -> fastvi.HierarchicalVAE:
    """x -> first -> second, and back by Gaussians."""
    torch.manual_seed(7)
    layers = [
        fastvi.StochasticLayer(family_first, 2, guide=first(FEATURES), model=Returning(
            2, 2, MAKES["normal"])),
        fastvi.StochasticLayer(family_second, 2, guide=second(2)),
    ]  # fmt: skip
    return fastvi.HierarchicalVAE(layers, linear(2, FEATURES), likelihood=likelihood())


def returning(name: str):
    return lambda inputs: Returning(inputs, 2, MAKES[name])


PAIRS = {
    **{f"{a}, {b}": (returning(a), returning(b)) for a in MAKES for b in MAKES},
    "laplace, tanh": (lambda n: linear(n, 4), returning("tanh"), "laplace"),
    "full, laplace": (returning("full"), lambda n: linear(n, 4), None, "laplace"),
    "gaussian, laplace": (lambda n: linear(n, 4), lambda n: linear(n, 4), "gaussian", "laplace"),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_log_q_held_is_that_of_a_network_with_detached_parameters(pair: str):
    """Also by the samples of the layer before, which q of this one depends on."""
    network, x = deep(*PAIRS[pair]), data()
    torch.manual_seed(2)
    latents = network.latents(x, 5)
    weights = torch.linspace(1, 2, 20, **DOUBLE).reshape(5, 4)
    along = sum((weights * latent.log_q_path()).sum() for latent in latents)
    held = copy.deepcopy(network).requires_grad_(False)
    values = {latent.name: latent.value.view_as(latent.value) for latent in latents}
    terms = held.log_q(x, values)
    for latent in latents:
        torch.testing.assert_close(latent.log_q_path(), terms[latent.name])
    expected = sum((weights * term).sum() for term in terms.values())
    own = [p for layer in network.layers for p in layer.guide.parameters()]
    found = torch.autograd.grad(along, own, retain_graph=True, allow_unused=True)
    exact = torch.autograd.grad(expected, own, allow_unused=True)
    for ours, theirs in zip(found, exact, strict=True):
        zero = torch.zeros(())
        torch.testing.assert_close(
            zero if ours is None else ours, zero if theirs is None else theirs, check_dtype=False
        )


OBJECTIVES = {
    "ELBO": lambda: ELBO(4),
    "stl": lambda: ELBO(4, estimator="stl"),
    "iwae": lambda: IWLB(4, "iwae"),
    "dreg": lambda: IWLB(4, "dreg"),
    "chunks": lambda: IWLB(4, "dreg", chunk_size=2),
    "VIMCO": lambda: VIMCO(4),
    "Reinforce": lambda: Reinforce(4),
    "IWLBLoss": lambda: fastvi.IWLBLoss(4),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("pair", ["normal, full", "tanh, gumbel", "laplace, tanh"])
def test_every_objective_trains_layers_of_distributions(pair: str, objective: str):
    network, x = deep(*PAIRS[pair]), data()
    network.loss(x, OBJECTIVES[objective]()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert network.log_evidence(x, 20, chunk_size=5).shape == (4,)
    assert network.sample(3).shape == (3, FEATURES)
    assert network.reconstruct(x, num_samples=3).shape == x.shape
    q = network.posterior(x)
    h = q.rsample((2,))
    assert q.log_prob(h).shape == (2, 4)


@pytest.mark.parametrize("objective", ["VIMCO", "Reinforce"])
@pytest.mark.parametrize("family", COUNTS)
def test_counts_are_trained_by_their_scores(family: str, objective: str):
    network, x = network_of(family), data()
    network.loss(x, OBJECTIVES[objective]()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    with pytest.raises(ValueError, match="'h1' to be reparameterised.*use VIMCO or Reinforce"):
        network.loss(x, IWLB(4, "dreg"))


@pytest.mark.slow
def test_the_score_s_gradient_of_a_poisson_layer_is_the_exact_one():
    network, x = network_of("poisson"), data(1)
    own = list(network.layers[0].guide.parameters())
    values, _ = support_of("poisson")
    h = values[:, None, :]
    log_q = network.log_q(x, {"h1": h})["h1"]
    terms = network.log_joint(x, {"h1": h})
    log_w = terms["h1"].reshape(log_q.shape) + terms["x"] - log_q
    exact = torch.autograd.grad((log_q.exp() * log_w).sum(), own)
    torch.manual_seed(0)
    objective = Reinforce(2000, baseline="leave_one_out", kl="monte_carlo")
    drawn = [torch.autograd.grad(network.bound(x, objective).sum(), own) for _ in range(40)]
    for parts, expected in zip(zip(*drawn, strict=True), exact, strict=True):
        found = torch.stack(parts)
        error = found.std(0) / 40**0.5
        assert ((found.mean(0) - expected).abs() < 5 * error + 1e-9).all()


def test_a_divergence_in_closed_form_of_rows():
    network, x = deep(returning("normal"), returning("normal")), data()
    torch.manual_seed(0)
    exact = network.bound(x, ELBO(20_000)).detach()
    torch.manual_seed(1)
    sampled = network.bound(x, ELBO(20_000, kl="monte_carlo")).detach()
    torch.testing.assert_close(exact, sampled, rtol=0, atol=0.1)


# ---- priors --------------------------------------------------------------------------------------
class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([[-1.5], [1.0]], **DOUBLE))

    def forward(self) -> Distribution:
        parts = Independent(d.Normal(self.loc, 0.6), 1)
        return d.MixtureSameFamily(d.Categorical(torch.ones(2, **DOUBLE)), parts)


PRIORS = {
    "mixture": Mixture,
    "fixed": lambda: d.Gumbel(torch.zeros(1, **DOUBLE), 1.0),
    "normal": lambda: None,
}


@pytest.mark.parametrize("family", ["gaussian", "laplace", None], ids=str)
@pytest.mark.parametrize("prior", PRIORS)
def test_a_layer_has_any_prior(prior: str, family: str | None):
    torch.manual_seed(6)
    guide = linear(FEATURES, 2) if family else Returning(FEATURES, 1, MAKES["normal"])
    layer = fastvi.StochasticLayer(family, 1, guide=guide, prior=PRIORS[prior]())
    network = fastvi.HierarchicalVAE([layer], linear(1, FEATURES), likelihood=likelihood())
    x = data()
    z, weight = nodes("real")
    near = z.abs() < 60
    z, weight = z[near], weight[near]
    terms = network.log_joint(x, {"h1": z[:, None, None].expand(-1, 4, -1)})
    exact = (terms["h1"] + terms["x"] + weight.log()[:, None]).logsumexp(0).detach()
    log_w = network.log_weights(x, 20_000).detach()
    error = (log_w - exact).exp().std(0) / 20_000**0.5
    assert ((log_w.logsumexp(0) - math.log(20_000) - exact).abs() < 5 * error + 1e-9).all()
    network.loss(x, IWLB(4, "dreg")).backward()
    assert all(p.grad is not None for p in network.parameters())
    assert network.sample(2).shape == (2, FEATURES)
    if prior == "fixed":
        network.float()
        assert network.loss(x.float(), IWLB(4, "dreg")).dtype == torch.float32


# ---- bad input -----------------------------------------------------------------------------------
def one(guide, family=None, **settings) -> fastvi.HierarchicalVAE:
    layer = fastvi.StochasticLayer(family, 2, guide=guide, **settings)
    return fastvi.HierarchicalVAE([layer], linear(2, FEATURES), likelihood="gaussian")


BAD = {
    "no family": (lambda: one(linear(FEATURES, 4)).log_weights(data(), 2), TypeError,
                  "'h1', which has no family, to return a torch.distributions.Distribution"),
    "features": (lambda: one(lambda x: d.Normal(x, 1.0)).log_weights(data(), 2), ValueError,
                 r"distribution of 2 features, got event shape \[3\]"),
    "batch": (lambda: one(lambda x: d.Normal(x[:2, :2], 1.0)).log_weights(data(), 2), ValueError,
              r"keep the batch of x, .*got a distribution of batch shape \(2,\)"),
    "prior": (lambda: one(linear(FEATURES, 4), prior=torch.zeros(2)), TypeError,
              "prior to be a distribution, or a module that returns one, got Tensor"),
    "family": (lambda: one(linear(FEATURES, 4), "gumbel"), ValueError,
               "'laplace'.*, or None where the networks return distributions, got 'gumbel'"),
    "moving": (lambda: deep(returning("normal"), lambda n: Returning(
        n, 2, lambda a, b: d.Uniform(a, a + b.exp()))).loss(data(), IWLB(4, "dreg")), ValueError,
        "layer 'h2' to have a support that does not move .*Uniform"),
    "learned fixed prior": (
        lambda: one(linear(FEATURES, 4), prior=d.Normal(nn.Parameter(torch.zeros(2)), 1.0)),
        ValueError, "learned to be a module that returns the distribution"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str):
    call, error, words = BAD[name]
    with pytest.raises(error, match=words):
        call()
