"""The log-density of samples at held parameters, by quadrature and exact answers."""

from __future__ import annotations

import pytest
import torch
from reparameterised import DOUBLE, FAMILIES, bent, nodes, parameters
from torch import Tensor, nn
from torch import distributions as d
from torch.distributions import transforms as t

from fastvi.objectives import ELBO, IWLB, Latent

SAMPLES = 20_000


def path_of(q: d.Distribution, num_samples: int = 7) -> tuple[Tensor, Tensor]:
    """The samples, and log q at held parameters."""
    latent = Latent.draw("z", q, num_samples, path=True)
    return latent.value, latent.log_q_path()


@pytest.mark.parametrize("name", FAMILIES)
def test_each_sample_has_the_gradient_of_a_copy_with_detached_parameters(name: str):
    make, _, _ = FAMILIES[name]
    own = parameters(name)
    torch.manual_seed(3)
    z, along = path_of(make(*own))
    copy = make(*(p.detach() for p in own))
    expected = copy.log_prob(z.view_as(z))
    torch.testing.assert_close(along, expected)
    weights = torch.linspace(1, 2, 7, **DOUBLE)
    found = torch.autograd.grad((weights * along).sum(), own, retain_graph=True)
    exact = torch.autograd.grad((weights * expected).sum(), own)
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_mean_of_the_path_is_that_of_quadrature(name: str):
    r"""E[d log q_held / dz dz/dphi] = d/dphi of the integral of q_phi log q_held."""
    make, _, support = FAMILIES[name]
    own = parameters(name)
    z, weight = nodes(support)
    q = make(*own)
    inside = (z > 0) & (z < 1) if support == "unit" else torch.ones_like(z, dtype=torch.bool)
    inside = inside & (z.abs() < 1) if support == "both" else inside
    z, weight = z[inside], weight[inside]
    with torch.no_grad():
        counts = q.log_prob(z) > -600  # elsewhere the density is zero in float64
    log_q = q.log_prob(z[counts])
    terms = weight[counts] * log_q.exp() * log_q.detach()
    exact = torch.autograd.grad(terms.sum(), own)
    torch.manual_seed(1)
    many = [p.detach().expand(SAMPLES).clone().requires_grad_() for p in own]
    _, along = path_of(make(*many), 1)
    for found, expected in zip(torch.autograd.grad(along.sum(), many), exact, strict=True):
        error = found.std() / SAMPLES**0.5
        assert (found.mean() - expected).abs() < 5 * error + 1e-6, (found.mean(), expected, error)


# ---- bounds: unbiased with K samples -------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("name", ["Gamma", "tanh", "sigmoid, power", "Kumaraswamy", "StudentT"])
def test_dreg_and_the_total_derivative_have_one_mean(name: str):
    make, values, _ = FAMILIES[name]
    means = {}
    for estimator in ("iwae", "dreg"):
        torch.manual_seed(2)
        many = [torch.full((SAMPLES,), v, **DOUBLE).requires_grad_() for v in values]
        latent = Latent.draw("z", make(*many), 2, path=estimator == "dreg")
        bound = IWLB(2, estimator).bound([latent], lambda z: -((z["z"] - 0.5) ** 2))
        grads = torch.autograd.grad(bound.sum(), many)
        means[estimator] = [(g.mean(), g.var() / SAMPLES) for g in grads]
    for (total, v), (dreg, w) in zip(means["iwae"], means["dreg"], strict=True):
        assert (total - dreg).abs() < 5 * (v + w) ** 0.5


# ---- chains --------------------------------------------------------------------------------------
def test_a_chain_with_parameters_at_both_ends():
    own = [torch.tensor(v, **DOUBLE).requires_grad_() for v in (0.3, 0.8)]
    torch.manual_seed(3)
    z, along = path_of(bent(*own))
    expected = bent(*(p.detach() for p in own)).log_prob(z.view_as(z))
    found = torch.autograd.grad(along.sum(), own, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), own))


def test_where_a_transform_saturates_nothing_is_lost():
    # tanh(12) is 1 in float32, whose inverse is infinite.
    loc = torch.full((1,), 12.0, requires_grad=True)
    q = d.TransformedDistribution(d.Normal(loc, 0.1), [t.TanhTransform()], validate_args=False)
    torch.manual_seed(0)
    latent = Latent.draw("z", q, 5, path=True)
    torch.manual_seed(0)
    x = d.Normal(loc, 0.1).rsample((5,))
    ladj = t.TanhTransform().log_abs_det_jacobian(x, x.tanh())
    exact = d.Normal(12.0, 0.1).log_prob(x) - ladj
    torch.testing.assert_close(latent.log_q, exact)
    (found,) = torch.autograd.grad(latent.log_q_path().sum(), loc, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(exact.sum(), loc)[0])


class Radial(t.Transform):
    """z = x + u tanh(w.x + b): of vectors, and without an inverse."""

    domain = codomain = d.constraints.real_vector
    bijective = True

    def __init__(self, u: Tensor, w: Tensor) -> None:
        super().__init__(cache_size=1)
        self.u, self.w = u, w

    def _call(self, x: Tensor) -> Tensor:
        return x + self.u * (x @ self.w).tanh()[..., None]

    def _inverse(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        slope = 1.0 - (x @ self.w).tanh() ** 2
        return (1.0 + slope * (self.u @ self.w)).abs().log()


@pytest.mark.parametrize("bounded", [False, True], ids=["last", "before tanh"])
def test_a_transform_without_an_inverse(bounded: bool):
    own = [
        torch.tensor(v, **DOUBLE).requires_grad_()
        for v in ([0.3, -0.2], [0.8, 1.1], [0.5, 0.4], [0.7, -0.3])
    ]

    def make(loc, scale, u, w):
        base = d.Independent(d.Normal(loc, scale), 1)
        transforms = [Radial(u, w)] + [t.TanhTransform()] * bounded
        return d.TransformedDistribution(base, transforms)

    torch.manual_seed(4)
    z, along = path_of(make(*own), 5)
    # By Newton's method: the x of each z, as a function of it at held parameters.
    loc, scale, u, w = (p.detach() for p in own)
    y = torch.atanh(z) if bounded else z
    x = torch.zeros_like(y)
    for _ in range(60):
        value = x + u * (x @ w).tanh()[..., None] - y
        jacobian = torch.eye(2, **DOUBLE) + u[:, None] * (
            (1.0 - (x @ w).tanh() ** 2)[..., None, None] * w
        )
        x = x - torch.linalg.solve(jacobian, value)
    exact = d.Independent(d.Normal(loc, scale), 1).log_prob(x)
    exact = exact - Radial(u, w).log_abs_det_jacobian(x, y)
    if bounded:
        exact = exact + (1 - z**2).log().neg().sum(-1)
    torch.testing.assert_close(along, exact)
    found = torch.autograd.grad(along.sum(), own, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(exact.sum(), own), rtol=1e-6, atol=1e-8)


def test_many_dimensions_and_a_batch():
    loc = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double().requires_grad_()

    def make(loc):
        inner = d.TransformedDistribution(d.Normal(loc, 0.7), [t.TanhTransform(cache_size=1)])
        moved = d.TransformedDistribution(inner, [t.AffineTransform(0.0, loc.exp())])
        return d.Independent(moved, 1)

    z, along = path_of(make(loc), 6)
    assert along.shape == (6, 4)
    expected = make(loc.detach()).log_prob(z.view_as(z))
    torch.testing.assert_close(along, expected)
    weights = torch.arange(24.0).double().reshape(6, 4)
    found = torch.autograd.grad((weights * along).sum(), loc, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad((weights * expected).sum(), loc))


SIMPLEX = {
    "Dirichlet": lambda p: d.Dirichlet(p.exp()),
    "RelaxedOneHotCategorical": lambda p: d.RelaxedOneHotCategorical(
        torch.tensor(0.7, **DOUBLE), logits=p
    ),
    "LogisticNormal": lambda p: d.LogisticNormal(p, p.exp()),
    "MultivariateNormal": lambda p: d.MultivariateNormal(
        p, scale_tril=torch.diag_embed(p.exp()) + 0.1 * torch.ones(3, 3, **DOUBLE).tril(-1)
    ),
    "LowRankMultivariateNormal": lambda p: d.LowRankMultivariateNormal(p, p[..., None], p.exp()),
    "stick breaking": lambda p: d.TransformedDistribution(
        d.Independent(d.Normal(p, p.exp()), 1), [t.StickBreakingTransform(cache_size=1)]
    ),
}


@pytest.mark.parametrize("name", SIMPLEX)
def test_vectors_have_the_gradient_of_a_copy_with_detached_parameters(name: str):
    make = SIMPLEX[name]
    p = torch.tensor([[0.2, -0.4, 0.9], [0.1, 0.3, -0.5]], **DOUBLE).requires_grad_()
    torch.manual_seed(5)
    z, along = path_of(make(p))
    expected = make(p.detach()).log_prob(z.view_as(z))
    torch.testing.assert_close(along, expected)
    found = torch.autograd.grad(along.sum(), p, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), p))


# ---- supports that move --------------------------------------------------------------------------
def learned(value: float) -> Tensor:
    return torch.tensor(value, **DOUBLE).requires_grad_()


def chain(base, *transforms) -> d.Distribution:
    return d.TransformedDistribution(base, list(transforms))


MOVING = {
    "Uniform": lambda: d.Uniform(learned(0.0), 1.0),
    "Uniform's other end": lambda: d.Uniform(0.0, learned(1.0)),
    "Uniform of vectors": lambda: d.Independent(d.Uniform(learned(0.0) + torch.zeros(3), 2.0), 1),
    "exp of a Uniform": lambda: chain(d.Uniform(learned(0.0), 1.0), t.ExpTransform()),
    "Pareto": lambda: d.Pareto(learned(1.0), 2.0),
    "shifted Exponential": lambda: chain(d.Exponential(1.0), t.AffineTransform(learned(0.5), 1.0)),
    "scaled Uniform": lambda: chain(d.Uniform(0.0, 1.0), t.AffineTransform(0.0, learned(2.0))),
    "shifted flat Gamma": lambda: chain(
        d.Gamma(torch.ones((), **DOUBLE), 1.0), t.AffineTransform(learned(0.5), 1.0)
    ),
    "stretched tails": lambda: chain(
        d.Cauchy(0.0, 1.0), t.SigmoidTransform(), t.AffineTransform(0.0, learned(2.0))
    ),
}
if hasattr(d, "GeneralizedPareto"):  # of newer versions of torch
    MOVING["GeneralizedPareto"] = lambda: d.GeneralizedPareto(
        torch.tensor(0.1, requires_grad=True), 1.0, 0.5
    )
FIXED = {
    "Uniform": lambda: chain(
        d.Uniform(0.0, 1.0), t.SigmoidTransform().inv, t.AffineTransform(learned(0.5), 1.0)
    ),
    "scaled Exponential": lambda: chain(d.Exponential(1.0), t.AffineTransform(0.0, learned(2.0))),
    "shifted Gamma": lambda: chain(
        d.Gamma(torch.tensor(2.5, **DOUBLE), 1.0), t.AffineTransform(learned(0.5), 1.0)
    ),
    "shifted LogNormal": lambda: chain(d.LogNormal(0.0, 1.0), t.AffineTransform(learned(0.5), 1.0)),
    "stretched tanh": lambda: chain(
        d.Normal(learned(0.2), 1.0), t.TanhTransform(), t.AffineTransform(0.0, learned(2.0))
    ),
    "power": lambda: chain(d.Uniform(0.0, 1.0), t.PowerTransform(learned(2.0))),
}


def step(q: d.Distribution, estimator: str) -> None:
    objective = ELBO(3, estimator="stl") if estimator == "elbo" else IWLB(3, estimator)
    latent = Latent.draw("z", q, 3, path=True)
    total = -((latent.value - 0.5) ** 2)
    total = total.flatten(latent.log_q.ndim).sum(-1) if total.ndim > latent.log_q.ndim else total
    objective.bound([latent], lambda _: total.detach() + 0 * total).sum().backward()


@pytest.mark.parametrize("estimator", ["dreg", "stl", "rws_dreg", "elbo"])
@pytest.mark.parametrize("name", MOVING)
def test_a_support_that_moves_is_refused(name: str, estimator: str):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="support moves, so the mean of its score is not zero"):
        step(MOVING[name](), estimator)


def test_the_score_of_a_moving_support_has_another_mean_than_zero():
    """Why it is refused: a shifted Exponential's log q has slope -1 wherever the shift is."""
    shift = learned(0.5)
    q = chain(d.Exponential(1.0), t.AffineTransform(shift, 1.0))
    z = q.sample((50,))
    (score,) = torch.autograd.grad(q.log_prob(z).mean(), shift)
    torch.testing.assert_close(score, torch.ones_like(score))


@pytest.mark.parametrize("name", FIXED)
def test_a_support_that_stays_is_taken(name: str):
    torch.manual_seed(0)
    step(FIXED[name](), "dreg")


def test_a_sample_without_a_density_s_derivative_is_refused():
    q = d.OneHotCategoricalStraightThrough(logits=torch.zeros(3, requires_grad=True))
    with pytest.raises(
        ValueError, match="Latent 'z': .*has a derivative by its samples.*StraightT"
    ):
        step(q, "dreg")


def test_a_latent_given_another_says_what_is_missing():
    first = Latent.draw("a", d.Normal(torch.zeros(4, requires_grad=True), 1.0), 3, path=True)
    second = Latent.draw("b", d.Normal(first.value[0], 1.0), 3, parents=("a",), path=True)
    with pytest.raises(ValueError, match="path to be given for latent 'b', .*drawn given .'a'."):
        IWLB(3, "dreg").bound([first, second], lambda z: -((z["a"] + z["b"]) ** 2))


def test_what_is_left_is_the_same_without_a_graph():
    q = FAMILIES["tanh"][0](*parameters("tanh"))
    with torch.no_grad():
        latent = Latent.draw("z", q, 4, path=True)
        assert not latent.log_q_path().requires_grad
        torch.testing.assert_close(latent.log_q_path(), latent.log_q)


# ---- a transform that is a module ----------------------------------------------------------------
class Learned(t.Transform, nn.Module):
    domain = codomain = d.constraints.real
    bijective = True
    sign = 1

    def __init__(self) -> None:
        t.Transform.__init__(self)
        nn.Module.__init__(self)
        self.log_scale = nn.Parameter(torch.tensor(0.4, **DOUBLE))

    __hash__ = nn.Module.__hash__

    def _call(self, x: Tensor) -> Tensor:
        return x * self.log_scale.exp()

    def _inverse(self, y: Tensor) -> Tensor:
        return y * (-self.log_scale).exp()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.log_scale.expand(x.shape)


@pytest.mark.parametrize("wrapped", [False, True], ids=["itself", "independent"])
def test_a_transform_that_is_a_module_has_parameters(wrapped: bool):
    transform = Learned()
    q = d.TransformedDistribution(
        d.Independent(d.Normal(torch.zeros(2, **DOUBLE), 1.0), 1),
        [t.IndependentTransform(transform, 1) if wrapped else transform],
    )
    z, along = path_of(q, 3)
    (found,) = torch.autograd.grad(along.sum(), transform.log_scale, retain_graph=True)
    scale = transform.log_scale.detach().exp()
    exact = d.Normal(0.0, scale).log_prob(z).sum(-1)
    expected = torch.autograd.grad(exact.sum(), transform.log_scale)[0]
    torch.testing.assert_close(found, expected)
