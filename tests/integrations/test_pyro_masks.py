"""Masked data under Trace_IWLB: value and gradient are those of the program without them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import pytest
import torch
from quick import quick_in
from torch import Tensor

pyro = pytest.importorskip("pyro", reason="Pyro is not installed")
import pyro.distributions as dist  # noqa: E402
from pyro import poutine  # noqa: E402
from pyro.infer import Trace_ELBO  # noqa: E402
from torch import nn  # noqa: E402

from fastvi.integrations.pyro import Trace_IWLB, accelerate  # noqa: E402
from fastvi.integrations.pyro._masks import inside_support  # noqa: E402

N = 7
KEPT = torch.tensor([True, True, False, True, False, True, False])
ESTIMATORS = ["dreg", "iwae", "stl", "rws", "rws_dreg"]
HOW = {
    "whole": {},
    "chunks": {"chunk_size": 2},
    "one by one": {"vectorize_particles": False},
    "Pyro's densities": {"fused": False},
}
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)
every_how = pytest.mark.parametrize("how", list(HOW))


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# Of each family: the distribution at a location, a value inside its support.
FAMILIES: dict[str, tuple[Callable[[Tensor], object], float | list[float]]] = {
    "normal": (lambda z: dist.Normal(z, 0.7), 0.3),
    "laplace": (lambda z: dist.Laplace(z, 0.7), 0.3),
    "bernoulli": (lambda z: dist.Bernoulli(logits=z), 1.0),
    "bernoulli probs": (lambda z: dist.Bernoulli(z.sigmoid()), 1.0),
    "categorical": (lambda z: dist.Categorical(logits=torch.stack([z, -z, z**2], -1)), 2.0),
    "poisson": (lambda z: dist.Poisson(z.exp()), 3.0),
    "negative binomial": (lambda z: dist.NegativeBinomial(z.exp(), logits=z), 3.0),
    "gamma": (lambda z: dist.Gamma(z.exp(), 0.5), 1.5),
    "beta": (lambda z: dist.Beta(z.exp(), 0.5), 0.4),
    "log normal": (lambda z: dist.LogNormal(z, 0.5), 1.4),
    "uniform": (lambda z: dist.Uniform(z - 9, z + 9), 1.4),
    "half Cauchy": (lambda z: dist.HalfCauchy(z.exp()), 1.4),
    "student": (lambda z: dist.StudentT(z.exp(), z, 1.0), 1.4),
    "affine": (
        lambda z: dist.TransformedDistribution(
            dist.Gamma(z.exp(), 1.0), [torch.distributions.transforms.AffineTransform(1.0, 2.0)]
        ),
        1.4,
    ),
    "dirichlet": (
        lambda z: dist.Dirichlet(torch.stack([z.exp(), 1 + z**2], -1)),
        [0.3, 0.7],
    ),
    "multivariate": (
        lambda z: dist.MultivariateNormal(torch.stack([z, -z], -1), torch.eye(2)),
        [0.3, 0.7],
    ),
    "multinomial": (
        lambda z: dist.Multinomial(3, logits=torch.stack([z, -z], -1)),
        [1.0, 2.0],
    ),
    "event": (lambda z: dist.Normal(torch.stack([z, -z], -1), 0.7).to_event(1), [0.3, -0.4]),
    "expanded": (lambda z: dist.Normal(z, 0.7).expand_by([]), 0.3),
}


def data_of(family: str) -> Tensor:
    value = torch.tensor(FAMILIES[family][1])
    return value.expand(N, *value.shape).clone()


# ---- how a program may say that data are missing ------------------------------------------------
def by_poutine(fn, x, kept):
    with poutine.mask(mask=kept):
        pyro.sample("x", fn, obs=x)


def by_plate(fn, x, kept):
    with pyro.plate("again", 1, dim=-2), poutine.mask(mask=kept):
        pyro.sample("x", fn, obs=x)


def by_distribution(fn, x, kept):
    pyro.sample("x", fn.mask(kept), obs=x)


def by_two(fn, x, kept):
    with pyro.plate("again", 1, dim=-2), poutine.mask(mask=True), poutine.mask(mask=kept):
        pyro.sample("x", fn.mask(kept).expand_by([1] * (2 - len(fn.batch_shape))), obs=x)


MASKS = {
    "poutine": by_poutine,
    "plate": by_plate,
    "distribution": by_distribution,
    "two masks": by_two,
}


class Program(nn.Module):
    """A global latent, whose noise is the same whatever the data are."""

    def __init__(self, family: str, observe: Callable) -> None:
        super().__init__()
        self.family, self.observe = family, observe
        self.slope = nn.Parameter(torch.tensor(0.4))
        self.loc, self.log_scale = nn.Parameter(torch.tensor(0.2)), nn.Parameter(torch.tensor(-1.0))

    def model(self, x, kept=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        if len(x) == 0:
            return
        at = torch.linspace(-1.0, 1.0, N)[... if len(x) == N else KEPT]
        with pyro.plate("data", len(x)):
            fn = FAMILIES[self.family][0](z + self.slope * at)
            if kept is None:
                pyro.sample("x", fn, obs=x)
            else:
                self.observe(fn, x, kept)

    def guide(self, x, kept=None):
        pyro.sample("z", dist.Normal(self.loc, self.log_scale.exp()))


def loss_and_gradients(bound, program: Program, *args) -> list[Tensor]:
    torch.manual_seed(5)
    pyro.set_rng_seed(5)
    for p in program.parameters():
        p.grad = None
    loss = bound.differentiable_loss(program.model, program.guide, *args)
    loss.backward()
    grads = [torch.zeros(()) if p.grad is None else p.grad for p in program.parameters()]
    return [loss.detach(), *grads]


@pytest.mark.parametrize("ugly", [math.nan, math.inf, -7.5], ids=str)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_of_every_family(family: str, ugly: float):
    program, x = Program(family, by_poutine), data_of(family)
    exact = loss_and_gradients(Trace_IWLB(4), program, x[KEPT])
    x[~KEPT] = ugly
    torch.testing.assert_close(loss_and_gradients(Trace_IWLB(4), program, x, KEPT), exact)


@every_how
@every_estimator
@pytest.mark.parametrize("said", quick_in(MASKS.keys(), "poutine", "plate"))
def test_of_every_estimator_and_mask(said: str, estimator: str, how: str):
    program, x = Program("normal", MASKS[said]), data_of("normal")
    exact = loss_and_gradients(Trace_IWLB(5, estimator, **HOW[how]), program, x[KEPT])
    bound = Trace_IWLB(5, estimator, **HOW[how])
    x[~KEPT] = math.nan
    torch.testing.assert_close(loss_and_gradients(bound, program, x, KEPT), exact)
    with accelerate():
        torch.testing.assert_close(loss_and_gradients(bound, program, x, KEPT), exact)


@pytest.mark.parametrize("said", ["poutine", "distribution"])
@pytest.mark.parametrize("kept", [True, False], ids=str)
def test_masks_that_are_a_bool(kept: bool, said: str):
    program, x = Program("normal", MASKS[said]), data_of("normal")
    exact = loss_and_gradients(Trace_IWLB(4), program, x if kept else x[:0])
    if not kept:
        x[:] = math.nan
    torch.testing.assert_close(loss_and_gradients(Trace_IWLB(4), program, x, kept), exact)


def test_what_is_not_masked_is_checked():
    program, x = Program("normal", by_poutine), data_of("normal")
    x[0] = math.nan
    with pytest.raises(ValueError, match="within the support"):
        Trace_IWLB(4).loss(program.model, program.guide, x, KEPT)


@pytest.mark.parametrize("said", ["poutine", "distribution"])
def test_as_pyro_without_the_masked(said: str):
    """A guide of one point: Pyro's bound and ours are the same number, and so are gradients."""
    program, x = Program("poisson", MASKS[said]), data_of("poisson")

    def guide(x, kept=None):
        pyro.sample("z", dist.Delta(program.loc))

    found = []
    for bound, args in (
        (Trace_ELBO(), (x[KEPT],)),
        (Trace_IWLB(3, "iwae"), (torch.where(KEPT, x, math.nan), KEPT)),
        (Trace_IWLB(3, "iwae", chunk_size=1), (torch.where(KEPT, x, math.nan), KEPT)),
    ):
        loss = bound.differentiable_loss(program.model, guide, *args)
        leaves = program.slope, program.loc
        found.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


# ---- latents ------------------------------------------------------------------------------------
class Local(nn.Module):
    """A latent of each datum, all of whose noise is that of its place."""

    def __init__(self, by_distribution: bool, event: bool) -> None:
        super().__init__()
        self.by_distribution, self.event = by_distribution, event
        shape = (N, 2) if event else (N,)
        self.slope = nn.Parameter(torch.tensor(0.4))
        self.loc = nn.Parameter(torch.linspace(-1.0, 1.0, 2 * N)[: math.prod(shape)].reshape(shape))

    def site(self, name, fn, kept, **options):
        fn = fn.to_event(1) if self.event else fn
        if kept is None:
            return pyro.sample(name, fn, **options)
        if self.by_distribution:
            return pyro.sample(name, fn.mask(kept), **options)
        with poutine.mask(mask=kept):
            return pyro.sample(name, fn, **options)

    def model(self, x, kept=None):
        with pyro.plate("data", len(x)):
            zeros = torch.zeros(x.shape)
            z = self.site("z", dist.Normal(zeros, 1.0), kept)
            self.site("x", dist.Normal(self.slope * z, 0.5), kept, obs=x)

    def guide(self, x, kept=None):
        with pyro.plate("data", len(x)):
            self.site("z", dist.Normal(self.loc[: len(x)], 0.7), kept)


@pytest.mark.parametrize("event", [False, True], ids=["number", "event"])
@pytest.mark.parametrize("by_distribution", [False, True], ids=["poutine", "distribution"])
@every_estimator
def test_masked_latents(estimator: str, by_distribution: bool, event: bool):
    """One sample, and the last data are masked: the first ones have the same noise without them."""
    kept = torch.arange(N) < 4
    program = Local(by_distribution, event)
    x = torch.linspace(-1.0, 1.0, 2 * N)[: program.loc.numel()].reshape(program.loc.shape)
    bound = Trace_IWLB(1, estimator)
    missing = torch.where(kept[:, None] if event else kept, x, math.nan)
    found = loss_and_gradients(bound, program, missing, kept)
    if by_distribution:  # which Pyro draws itself, by torch's generator
        exact = loss_and_gradients(bound, program, x, kept)
    else:
        exact = loss_and_gradients(bound, program, x[kept])
    torch.testing.assert_close(found, exact)
    assert bool((found[2][~kept] == 0).all())


@every_how
@every_estimator
def test_masked_latents_of_several_samples(estimator: str, how: str):
    """Nothing of what is masked shows: neither its data, nor in its guide's gradient."""
    program, bound = Local(False, True), Trace_IWLB(4, estimator, **HOW[how])
    x = torch.ones(N, 2)
    exact = loss_and_gradients(bound, program, x, KEPT)
    x[~KEPT] = math.nan
    found = loss_and_gradients(bound, program, x, KEPT)
    torch.testing.assert_close(found, exact, rtol=0, atol=0)
    assert bool((found[2][~KEPT] == 0).all()) and bool((found[2][KEPT] != 0).all())


@every_how
def test_obs_mask(how: str):
    """The sites of one statement, an observed and an unobserved one."""
    slope, loc = (torch.tensor(x, requires_grad=True) for x in (0.4, 0.1))
    x = torch.linspace(-1.0, 1.0, N)

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N):
            pyro.sample("x", dist.Normal(slope * z, 0.5), obs=x, obs_mask=KEPT)

    def guide(x):
        pyro.sample("z", dist.Normal(loc, 0.7))
        with pyro.plate("data", N), poutine.mask(mask=~KEPT):
            pyro.sample("x_unobserved", dist.Normal(0.0, 0.5))

    answers = []
    for ugly in (0.0, math.nan):
        torch.manual_seed(3)
        given = torch.where(KEPT, x, ugly)
        loss = Trace_IWLB(3, **HOW[how]).differentiable_loss(model, guide, given)
        answers.append([loss.detach(), *torch.autograd.grad(loss, [slope, loc])])
    torch.testing.assert_close(*answers, rtol=0, atol=0)
    assert all(bool(x.isfinite()) for x in answers[0])


# ---- the value that is put in place -------------------------------------------------------------
@pytest.mark.parametrize("family", list(FAMILIES))
def test_values_inside_the_support(family: str):
    z = torch.linspace(-3.0, 3.0, 5 * N).reshape(5, N)
    fn: dist.TorchDistribution = FAMILIES[family][0](z)
    inside = inside_support(fn, data_of(family))
    value = inside.expand(fn.batch_shape + fn.event_shape)
    with contextlib.suppress(NotImplementedError):
        assert bool(fn.support.check(value).all())
    assert bool(fn.log_prob(value).isfinite().all())
    if family != "uniform":  # whose support is another one for each sample
        assert inside.ndim <= data_of(family).ndim
