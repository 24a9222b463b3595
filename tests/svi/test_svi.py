"""SVI on models whose posterior and evidence are known exactly."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Beta,
    Independent,
    MultivariateNormal,
    Normal,
    constraints,
)

import fastvi
from fastvi.guides import Guide, LowRankGaussian, MeanFieldGaussian
from fastvi.objectives import ELBO, IWLB, Latent, Objective, Reinforce, Term

Adam = functools.partial(torch.optim.Adam, lr=0.05)


class Frozen(torch.optim.SGD):
    """Parameters as they are, with their gradients."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, lr=0.0)


# ---- Normal-Normal: one number for all data, known noise ----------------------------------------
# As tensors: numbers alone would make a distribution of float32.
PRIOR, NOISE = tuple(torch.tensor([0.5, 2.0], dtype=torch.float64)), 0.8


def normal_data(n: int = 12) -> Tensor:
    return 1.5 + NOISE * torch.randn(n, dtype=torch.float64)


def normal_model(z, x: Tensor) -> dict:
    mean = z["mean"]
    return {"mean": Normal(*PRIOR), "x": Normal(mean[..., None], NOISE).log_prob(x)}


def normal_posterior(x: Tensor) -> tuple[float, float]:
    precision = PRIOR[1] ** -2 + len(x) * NOISE**-2
    loc = (PRIOR[0] * PRIOR[1] ** -2 + x.sum() * NOISE**-2) / precision
    return loc.item(), precision.item() ** -0.5


def normal_evidence(x: Tensor) -> float:
    n = len(x)
    eye = torch.eye(n, dtype=torch.float64)
    covariance = PRIOR[1] ** 2 + NOISE**2 * eye
    loc = PRIOR[0].expand(n)
    return MultivariateNormal(loc, covariance).log_prob(x).item()


def at_posterior(x: Tensor) -> MeanFieldGaussian:
    loc, scale = normal_posterior(x)
    guide = MeanFieldGaussian({"mean": ()}, dtype=torch.float64)
    with torch.no_grad():
        guide.loc.fill_(loc), guide.log_scale.fill_(math.log(scale))
    return guide


OBJECTIVES = [
    pytest.param(lambda k: ELBO(k, estimator="stl"), id="stl ELBO"),
    pytest.param(lambda k: IWLB(k, "stl"), id="stl"),
    pytest.param(lambda k: IWLB(k, "dreg"), id="dreg"),
    pytest.param(lambda k: IWLB(k, "dreg", alpha=0.5), id="dreg of order 0.5"),
    pytest.param(lambda k: IWLB(k, "rws_dreg"), id="rws_dreg"),
]


@pytest.mark.parametrize("make", OBJECTIVES)
@pytest.mark.parametrize("num_samples", [1, 3, 50], ids=lambda k: f"K = {k}")
def test_at_the_posterior_every_bound_is_the_evidence(make, num_samples: int):
    """And gradients through the samples are zero, each of them."""
    x = normal_data()
    guide = at_posterior(x)
    svi = fastvi.SVI(normal_model, guide, Frozen, make(num_samples))
    assert svi.step(x).item() == pytest.approx(normal_evidence(x), abs=1e-10)
    for parameter in guide.parameters():
        torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter), rtol=0, atol=1e-10)


def test_the_total_derivative_is_not_zero_there():
    """The control."""
    x = normal_data()
    guide = at_posterior(x)
    fastvi.SVI(normal_model, guide, Frozen, IWLB(3, "iwae")).step(x)
    assert guide.log_scale.grad.abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [ELBO(8, estimator="stl"), IWLB(8), IWLB(8, chunk_size=3), IWLB(8, alpha=0.5)],
    ids=["stl ELBO", "dreg", "dreg in chunks", "dreg of order 0.5"],
)
def test_normal_normal(objective: Objective):
    x = normal_data()
    guide = MeanFieldGaussian({"mean": ()}, dtype=torch.float64)
    svi = fastvi.SVI(normal_model, guide, functools.partial(Adam, lr=0.1), objective)
    svi.fit(x, epochs=400)
    loc, scale = normal_posterior(x)
    # Estimators whose noise is zero at the posterior get there, not near there.
    assert guide.loc.item() == pytest.approx(loc, abs=1e-3)
    assert guide.log_scale.exp().item() == pytest.approx(scale, rel=1e-2)
    assert svi.evaluate(x, 100).item() == pytest.approx(normal_evidence(x), abs=1e-3)


def test_sub_sampled_gradient_is_that_of_all_data():
    """Averaged over every batch: N/B in front of the data, once in front of the prior."""
    x = normal_data(6)
    guide = MeanFieldGaussian({"mean": ()}, dtype=torch.float64)
    whole = fastvi.SVI(normal_model, guide, Frozen, ELBO(1))

    def gradient(svi: fastvi.SVI, batch: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        value = svi.step(batch)
        return value, torch.stack([p.grad.squeeze() for p in guide.parameters()])

    value, expected = gradient(whole, x)
    part = fastvi.SVI(normal_model, guide, Frozen, ELBO(1), num_data=6)
    rows = [gradient(part, x[list(rows)]) for rows in itertools.combinations(range(6), 2)]
    torch.testing.assert_close(torch.stack([r[0] for r in rows]).mean(), value)
    torch.testing.assert_close(torch.stack([r[1] for r in rows]).mean(0), expected)


# ---- latents of each datum: N/B outside of the log-mean-exp ------------------------------------
def local_model(z: Tensor, x: Tensor) -> Tensor:
    return Normal(0.0, 1.0).log_prob(z) + Normal(z, 0.5).log_prob(x)


@pytest.mark.slow
@pytest.mark.parametrize("num_samples", [1, 5], ids=lambda k: f"K = {k}")
def test_sub_sampled_bound_stays_below_the_evidence(num_samples: int):
    """With the scale inside, the same numbers give a mean above it."""
    torch.manual_seed(2)
    x = 1.2 * torch.randn(20, dtype=torch.float64)
    evidence = Normal(0.0, 1.25**0.5).log_prob(x).sum().item()

    def guide(x: Tensor) -> Normal:
        return Normal(0.8 * x, 0.5)

    svi = fastvi.SVI(local_model, guide, torch.optim.SGD([torch.zeros(1)]), IWLB(num_samples),
                     num_data=20)  # fmt: skip
    draws = torch.stack([svi.evaluate(x[torch.randperm(20)[:2]]) for _ in range(2000)])
    error = draws.std().item() / 2000**0.5
    assert draws.mean().item() < evidence
    everything = fastvi.SVI(local_model, guide, torch.optim.SGD([torch.zeros(1)]),
                            IWLB(num_samples))  # fmt: skip
    whole = torch.stack([everything.evaluate(x) for _ in range(500)])
    slack = 4 * (error + whole.std().item() / 500**0.5)
    assert draws.mean().item() == pytest.approx(whole.mean().item(), abs=slack)


def test_latents_of_all_data_refuse_a_scale_inside():
    x = normal_data()
    guide = MeanFieldGaussian({"mean": ()}, dtype=torch.float64)
    svi = fastvi.SVI(normal_model, guide, Adam, IWLB(4), num_data=len(x))
    with pytest.raises(ValueError, match="all 12 data at once.*inside the log-mean-exp"):
        svi.step(x[:4])
    svi.objective = IWLB(1)
    assert svi.step(x[:4]).isfinite()


def test_of_all_data_beside_of_each():
    """A mean for all, a number for each: one number of noise apart from the ELBO by hand."""
    x = normal_data(6)
    mean = nn.Parameter(torch.tensor([0.3, -0.5], dtype=torch.float64))
    each = nn.Parameter(torch.tensor([0.9, 0.1], dtype=torch.float64))

    def guide(x: Tensor) -> dict:
        q = {"mean": Normal(mean[0], mean[1].exp())}
        return q | {"z": Normal(each[0] * x + each[1], torch.ones_like(x))}

    def model(z, x: Tensor) -> dict:
        local = Normal(z["mean"][:, None], 1.0).log_prob(z["z"]) + Normal(z["z"], 0.5).log_prob(x)
        return {"mean": Normal(*PRIOR), "local": local}

    torch.manual_seed(0)
    svi = fastvi.SVI(model, guide, torch.optim.SGD([mean, each], 0.0), ELBO(3, kl="monte_carlo"),
                     num_data=18)  # fmt: skip
    value = svi.step(x)
    grads = mean.grad.clone(), each.grad.clone()
    torch.manual_seed(0)
    q = guide(x)
    draw = {name: p.rsample(torch.Size((3,))) for name, p in q.items()}
    joint = model(draw, x)
    of_all = Normal(*PRIOR).log_prob(draw["mean"]) - q["mean"].log_prob(draw["mean"])
    of_each = joint["local"] - q["z"].log_prob(draw["z"])
    expected = (of_all + 3.0 * of_each.sum(1)).mean()
    torch.testing.assert_close(value, expected.detach())
    for got, grad in zip(grads, torch.autograd.grad(-expected / 18, (mean, each)), strict=True):
        torch.testing.assert_close(got, grad)


# ---- Beta-Bernoulli -----------------------------------------------------------------------------
@pytest.mark.slow
def test_beta_bernoulli_with_the_right_family():
    x = (torch.rand(30) < 0.3).double()
    ones, zeros = x.sum(), 30 - x.sum()
    log_ab = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def model(z: Tensor, x: Tensor) -> dict:
        return {"z": Beta(2.0, 2.0), "x": Bernoulli(z[:, None]).log_prob(x)}

    svi = fastvi.SVI(
        model, lambda: Beta(*log_ab.exp()), Adam([log_ab], lr=0.2), ELBO(16, estimator="stl")
    )
    svi.fit(x, epochs=300)
    torch.testing.assert_close(
        log_ab.exp().detach(), torch.stack([2 + ones, 2 + zeros]).double(), rtol=1e-3, atol=0
    )
    exact = (
        torch.lgamma(2 + ones) + torch.lgamma(2 + zeros) - torch.lgamma(torch.tensor(34.0).double())
        + math.lgamma(4.0) - 2 * math.lgamma(2.0)
    )  # fmt: skip
    assert svi.evaluate(x, 10).item() == pytest.approx(exact.item(), abs=1e-4)


@pytest.mark.slow
def test_beta_bernoulli_by_bijection():
    """A Gaussian before a sigmoid is not quite a Beta: the bound is a little below the evidence."""
    x = (torch.rand(30) < 0.3).double()
    guide = MeanFieldGaussian(
        {"p": ()}, supports={"p": constraints.unit_interval}, dtype=torch.float64
    )

    def model(z, x: Tensor) -> dict:
        return {"p": Beta(2.0, 2.0), "x": Bernoulli(z["p"][:, None]).log_prob(x)}

    svi = fastvi.SVI(model, guide, Adam, ELBO(16, estimator="stl"))
    svi.fit(x, epochs=300)
    posterior = Beta(2 + x.sum(), 2 + 30 - x.sum())
    exact = (
        torch.lgamma(2 + x.sum()) + torch.lgamma(32 - x.sum())
        - torch.lgamma(torch.tensor(34.0).double()) + math.lgamma(4.0)
    ).item()  # fmt: skip
    bound = svi.evaluate(x, 20_000).item()
    assert exact - 0.02 < bound < exact + 0.002
    assert svi.guide.sample(20_000)["p"].mean().item() == pytest.approx(
        posterior.mean.item(), abs=0.01
    )
    # Importance weighting makes up for the rest.
    svi.objective = IWLB(10_000)
    assert svi.evaluate(x).item() == pytest.approx(exact, abs=0.003)


# ---- linear regression --------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("vectorize", [False, True], ids=["by hand", "vmap"])
def test_linear_regression(vectorize: bool):
    inputs = torch.randn(40, 3, dtype=torch.float64)
    inputs[:, 1] += 0.8 * inputs[:, 0]
    y = inputs @ torch.tensor([1.0, -0.5, 0.3]).double() + 0.5 * torch.randn(40).double()
    precision = torch.eye(3).double() + inputs.mT @ inputs / 0.25
    covariance = torch.linalg.inv(precision)
    loc = covariance @ (inputs.mT @ y) / 0.25
    evidence = MultivariateNormal(
        torch.zeros(40).double(), inputs @ inputs.mT + 0.25 * torch.eye(40).double()
    ).log_prob(y)

    def model(z, inputs: Tensor, y: Tensor) -> dict:
        fit = z["weight"] @ inputs.mT
        return {"weight": Normal(0.0, 1.0), "y": Normal(fit, 0.5).log_prob(y)}

    guide = LowRankGaussian({"weight": (3,)}, rank=2, dtype=torch.float64)
    optimizer = functools.partial(Adam, lr=0.1)
    svi = fastvi.SVI(model, guide, optimizer, ELBO(16, estimator="stl"), vectorize=vectorize)
    svi.fit((inputs, y), epochs=250)
    q = guide.distribution()
    torch.testing.assert_close(q.loc.detach(), loc, rtol=0, atol=5e-3)
    torch.testing.assert_close(q.covariance_matrix.detach(), covariance, rtol=0.1, atol=3e-4)
    assert svi.evaluate((inputs, y), 100).item() == pytest.approx(evidence.item(), abs=5e-3)


def test_vmap_is_the_model_by_hand():
    x = normal_data()

    def step(model, vectorize: bool) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        guide = MeanFieldGaussian({"mean": (), "scale": ()},
                                  {"scale": constraints.positive}, dtype=torch.float64)  # fmt: skip
        svi = fastvi.SVI(model, guide, Frozen, IWLB(7), vectorize=vectorize)
        value = svi.step(x)
        return value, torch.stack([p.grad for p in guide.parameters()])

    def by_hand(z, x: Tensor) -> Tensor:
        log_p = Normal(*PRIOR).log_prob(z["mean"]) - z["scale"]
        return log_p + fastvi.ops.gaussian_log_prob(
            x, z["mean"][:, None], scale=z["scale"][:, None].expand(-1, 12)
        )

    def for_one(z, x: Tensor) -> Tensor:
        log_p = Normal(*PRIOR).log_prob(z["mean"]) - z["scale"]
        return log_p + fastvi.ops.gaussian_log_prob(
            x, z["mean"].expand(12), scale=z["scale"].expand(12)
        )

    for got, expected in zip(step(for_one, True), step(by_hand, False), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_discrete_latents_find_their_posterior():
    """Two classes for each datum: responsibilities are exact."""
    torch.manual_seed(0)
    x = torch.cat([torch.randn(40) - 1.5, torch.randn(20) + 1.5]).double()
    locs, mix = torch.tensor([-1.5, 1.5]).double(), torch.tensor([2 / 3, 1 / 3]).double()
    logits = nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 2)).double()
    guide = fastvi.guides.CategoricalGuide(logits)

    def model(z: Tensor, x: Tensor) -> Tensor:
        return mix.log()[z] + Normal(locs[z], 1.0).log_prob(x)

    joint = mix.log() + Normal(locs, 1.0).log_prob(x[:, None])
    for objective in (
        fastvi.objectives.VIMCO(8), Reinforce(8, "leave_one_out"), IWLB(32, "rws")
    ):  # fmt: skip
        svi = fastvi.SVI(model, guide, functools.partial(torch.optim.Adam, lr=0.1), objective)
        svi.fit(x, epochs=100)
        error = (guide.probs(x) - joint.softmax(-1)).abs().mean()
        assert error < 0.05, type(objective).__name__
        exact = joint.logsumexp(-1).sum().item()
        assert svi.evaluate(x, 2000).item() == pytest.approx(exact, abs=0.5)
        with torch.no_grad():
            logits[1].weight.mul_(0.2)


class GivenTheFirst(Guide):
    """Two layers, whose second one says how it depends on the first."""

    def __init__(self) -> None:
        super().__init__()
        self.on = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))

    def latents(self, data, num_samples, *, path=False):
        q1 = Normal(data[0], 0.5)
        z1 = Latent.draw("a", q1, num_samples, parents=(), path=path)
        q2 = Normal(self.on * z1.value, 0.7)
        z2 = q2.rsample()
        return [z1, Latent("b", z2, q2.log_prob(z2), parents=("a",), path=lambda: Normal(
            self.on.detach() * z1.value, 0.7).log_prob(z2))]  # fmt: skip


def test_a_guide_of_layers():
    def model(z, x: Tensor) -> dict:
        return {"a": Normal(0.0, 1.0), "b": Term(Normal(z["a"], 1.0), depends_on=("a", "b")),
                "x": Normal(z["b"], 1.0).log_prob(x)}  # fmt: skip

    x = normal_data(5)
    for objective in (ELBO(4), IWLB(4), IWLB(4, "rws")):
        guide = GivenTheFirst()
        value = fastvi.SVI(model, guide, Adam, objective).step(x)
        assert value.isfinite() and guide.on.grad.isfinite()


def test_independent_latents_by_name():
    def guide(x: Tensor) -> dict:
        return {"a": Independent(Normal(x[:, :2], 1.0), 1), "b": Bernoulli(logits=x[:, 0])}

    def model(z, x: Tensor) -> Tensor:
        return -z["a"].square().sum(-1) - z["b"]

    svi = fastvi.SVI(model, guide, torch.optim.SGD([torch.zeros(1)]), Reinforce(3))
    assert svi.evaluate(torch.randn(5, 4)).isfinite()


def test_labels_that_nobody_asked_for():
    x, labels = torch.randn(2, 8).unbind()
    svi = fastvi.SVI(
        local_model, lambda x: Normal(0.8 * x, 0.5), torch.optim.SGD([torch.zeros(1)]), IWLB(4)
    )
    torch.manual_seed(0)
    with_labels = svi.evaluate((x, labels))
    torch.manual_seed(0)
    assert with_labels == svi.evaluate(x)


@pytest.mark.cuda
def test_on_a_gpu():
    x = normal_data()
    guide = MeanFieldGaussian({"mean": ()}, dtype=torch.float64).to("cuda")
    svi = fastvi.SVI(normal_model, guide, functools.partial(Adam, lr=0.1), IWLB(8))
    svi.fit(x.to("cuda"), epochs=300)
    loc, scale = normal_posterior(x)
    assert guide.loc.item() == pytest.approx(loc, abs=1e-3)
    assert guide.log_scale.exp().item() == pytest.approx(scale, rel=1e-2)
