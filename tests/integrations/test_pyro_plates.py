"""Trace_IWLB: what belongs to which datum, against exact evidence; where scales and masks go."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

pyro = pytest.importorskip("pyro")

import pyro.distributions as dist  # noqa: E402
from pyro import poutine  # noqa: E402
from pyro.infer import RenyiELBO, Trace_ELBO  # noqa: E402

from fastvi.integrations.pyro import Trace_IWLB  # noqa: E402

DOUBLE = {"dtype": torch.float64}
N = 40
X = torch.randn(N, generator=torch.Generator().manual_seed(3), **DOUBLE) * 1.7
HALF = math.sqrt(0.5)


def number(value: float) -> Tensor:
    return torch.tensor(value, **DOUBLE)


def standard() -> dist.Normal:
    return dist.Normal(number(0.0), number(1.0))


def log_evidence(x: Tensor) -> Tensor:
    """Of x = z + noise, for each datum."""
    return dist.Normal(number(0.0), number(math.sqrt(2.0))).log_prob(x)


class Local:
    """z_n ~ N(0, 1), x_n ~ N(z_n, 1), all or some of the data; a guide that is exact, or off."""

    def __init__(self, subsample: int | None = None, off: float = 0.0) -> None:
        self.subsample = subsample
        self.off = off

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=self.subsample) as index:
            z = pyro.sample("z", standard())
            pyro.sample("x", dist.Normal(z, number(1.0)), obs=x[index])

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=self.subsample) as index:
            self.index = index
            pyro.sample("z", dist.Normal(x[index] / 2 + self.off, number(HALF)))


def log_mean_exp(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(len(log_w))


def keeping(guide):
    """The guide, and a place where the samples of its last run are."""
    kept: dict[str, Tensor] = {}

    def keep(*args: Tensor) -> None:
        with poutine.trace() as recorded:
            guide(*args)
        for name, site in recorded.trace.nodes.items():
            if site["type"] == "sample":
                kept[name] = site["value"].detach()

    return keep, kept


class Global:
    """t ~ N(0, 1), z_n ~ N(t, 1), x_n ~ N(z_n, 1), and the exact posterior of all of them."""

    def __init__(self, subsample: int | None = None) -> None:
        self.subsample = subsample

    def model(self, x: Tensor) -> None:
        t = pyro.sample("t", standard())
        with pyro.plate("data", len(x), subsample_size=self.subsample) as index:
            z = pyro.sample("z", dist.Normal(t, number(1.0)))
            pyro.sample("x", dist.Normal(z, number(1.0)), obs=x[index])

    def guide(self, x: Tensor) -> None:
        precision = 1 + len(x) / 2
        loc = pyro.param("loc", x.sum() / 2 / precision)
        scale = pyro.param("scale", number(precision**-0.5))
        t = pyro.sample("t", dist.Normal(loc, scale))
        weight = pyro.param("weight", number(0.5))
        with pyro.plate("data", len(x), subsample_size=self.subsample) as index:
            pyro.sample("z", dist.Normal((x[index] + t) * weight, number(HALF)))

    @staticmethod
    def log_evidence(x: Tensor) -> Tensor:
        covariance = 2 * torch.eye(len(x), **DOUBLE) + 1
        return MultivariateNormal(torch.zeros_like(x), covariance).log_prob(x)


@pytest.mark.parametrize("estimator", ["dreg", "iwae", "stl", "rws", "rws_dreg"])
@pytest.mark.parametrize("num_samples", [1, 5])
def test_an_exact_guide_gives_the_evidence(estimator: str, num_samples: int):
    """Of local latents, and of global and local ones: every sample has the weight p(x)."""
    for program, evidence in (
        (Local(), log_evidence(X).sum()),
        (Global(), Global.log_evidence(X)),
    ):
        loss = Trace_IWLB(num_samples, estimator).loss(program.model, program.guide, X)
        assert loss == pytest.approx(-evidence.item(), rel=1e-12)


def test_the_weights_of_local_latents_are_normalised_for_each_datum():
    program = Local(off=0.4)
    guide, kept = keeping(program.guide)
    loss = Trace_IWLB(20).loss(program.model, guide, X)
    z = kept["z"]
    log_w = (
        standard().log_prob(z)
        + dist.Normal(z, number(1.0)).log_prob(X)
        - dist.Normal(X / 2 + 0.4, number(HALF)).log_prob(z)
    )
    assert -loss == pytest.approx(log_mean_exp(log_w).sum().item(), rel=1e-12)
    # As one datum they would have a looser bound.
    assert -loss > log_mean_exp(log_w.sum(1)).item() + 1.0


def test_the_weights_of_a_global_latent_are_those_of_all_data():
    def model(x: Tensor) -> None:
        t = pyro.sample("t", standard())
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(t, number(1.0)), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("t", dist.Normal(x.mean(), number(0.3)))

    guide, kept = keeping(guide)
    loss = Trace_IWLB(20).loss(model, guide, X)
    t = kept["t"].reshape(20, 1)
    log_w = (
        standard().log_prob(t).sum(1)
        + dist.Normal(t, number(1.0)).log_prob(X).sum(1)
        - dist.Normal(X.mean(), number(0.3)).log_prob(t).sum(1)
    )
    assert -loss == pytest.approx(log_mean_exp(log_w).item(), rel=1e-12)


@pytest.mark.slow
def test_the_scale_of_sub_sampling_stands_outside_and_that_of_renyi_elbo_does_not():
    evidence = log_evidence(X).sum().item()
    exact = Local(subsample=8)
    elbo = Trace_IWLB(5)
    for _ in range(3):
        loss = elbo.loss(exact.model, exact.guide, X)
        expected = len(X) / 8 * log_evidence(X[exact.index]).sum().item()
        assert -loss == pytest.approx(expected, rel=1e-12)

    off = Local(subsample=8, off=0.7)
    renyi = RenyiELBO(alpha=0, num_particles=5, vectorize_particles=True)
    ours, theirs = (
        -torch.tensor([each.loss(off.model, off.guide, X) for _ in range(300)], **DOUBLE)
        for each in (Trace_IWLB(5), renyi)
    )
    error = ours.std() / math.sqrt(len(ours))
    assert ours.mean() < evidence - 5 * error
    # The control: N/B inside the log-sum-exp, a "bound" above the log-evidence.
    assert theirs.mean() > evidence + 5 * theirs.std() / math.sqrt(len(theirs))


@pytest.mark.slow
def test_a_global_latent_with_sub_sampling_is_refused_unless_the_bound_is_linear():
    program = Global(subsample=8)
    with pytest.raises(ValueError, match=r"sub-sampled plate 'data', got 't' outside of it.*40/8"):
        Trace_IWLB(5).loss(program.model, program.guide, X)
    for elbo in (Trace_IWLB(1), Trace_IWLB(5, alpha=1.0)):
        losses = [elbo.loss(program.model, program.guide, X) for _ in range(400)]
        losses = torch.tensor(losses, **DOUBLE)
        # The guide is exact, so the ELBO is the evidence, in expectation over sub-samples.
        error = losses.std() / math.sqrt(len(losses))
        assert abs(losses.mean() + Global.log_evidence(X)) < 4 * error


@pytest.mark.parametrize("estimator", ["stl", "dreg"])
def test_a_guide_of_two_layers_that_is_exact_gets_no_gradient(estimator: str):
    program = Global()
    elbo = Trace_IWLB(6, estimator)
    gradients(elbo, program)
    assert max(abs(g) for g in gradients(elbo, program).values()) < 1e-10
    assert max(abs(g) for g in gradients(Trace_IWLB(6, "iwae"), program).values()) > 1e-2


def gradients(elbo, program, *args: Tensor) -> dict[str, float]:
    for parameter in pyro.get_param_store()._params.values():
        parameter.grad = None
    elbo.loss_and_grads(program.model, program.guide, *(args or (X,)))
    return {
        name: parameter.grad.sum().item()
        for name, parameter in pyro.get_param_store()._params.items()
    }


class Layers:
    """A hierarchy within each of R equal data, each with its own copy of the guide's parameters."""

    names = ("a", "b", "c", "log_s")

    def __init__(self, repeats: int) -> None:
        start = (0.3, 0.2, 0.5, -0.6)
        self.parameters = {
            name: torch.full((repeats,), value, **DOUBLE, requires_grad=True)
            for name, value in zip(self.names, start, strict=True)
        }
        self.repeats = repeats

    def model(self) -> None:
        with pyro.plate("data", self.repeats):
            top = pyro.sample("top", standard())
            z = pyro.sample("z", dist.Normal(top, number(1.0)))
            pyro.sample("x", dist.Normal(z, number(1.0)), obs=torch.ones(self.repeats, **DOUBLE))

    def guide(self) -> None:
        a, b, c, log_s = self.parameters.values()
        with pyro.plate("data", self.repeats):
            z = pyro.sample("z", dist.Normal(a, log_s.exp()))
            pyro.sample("top", dist.Normal(b + c * z, log_s.exp()))

    def gradients(self, estimator: str, **options: object) -> Tensor:
        elbo = Trace_IWLB(3, estimator, **options)
        loss = elbo.differentiable_loss(self.model, self.guide)
        return torch.stack(torch.autograd.grad(loss, list(self.parameters.values())))


@pytest.mark.parametrize(
    "estimator,unbiased", [("dreg", True), ("stl", False)], ids=["dreg", "stl"]
)
def test_the_path_is_weighed_once_in_a_guide_of_two_layers(estimator: str, unbiased: bool):
    repeats = 40_000
    ours = Layers(repeats).gradients(estimator)
    plain = Layers(repeats).gradients("iwae")
    error = ((ours.var(1) + plain.var(1)) / repeats).sqrt()
    distance = ((ours.mean(1) - plain.mean(1)) / error).abs()
    assert (distance.max() < 4) if unbiased else (distance.max() > 8)


# ---- plates, events, masks, scales --------------------------------------------------------------
@pytest.mark.parametrize("estimator", ["dreg", "iwae", "rws"])
def test_events_and_nested_plates_are_the_same_bound(estimator: str):
    x = X.reshape(10, 4)

    def features_as_event(x: Tensor) -> None:
        with pyro.plate("data", 10):
            z = pyro.sample("z", standard().expand([10, 4]).to_event(1))
            pyro.sample("x", dist.Normal(z, number(1.0)).to_event(1), obs=x)

    def features_in_plate(x: Tensor) -> None:
        with pyro.plate("data", 10, dim=-2):
            # In the outer plate alone: each datum is one cell, its features are not.
            pyro.factor("nothing", torch.zeros(10, 1, **DOUBLE))
            with pyro.plate("features", 4, dim=-1):
                z = pyro.sample("z", standard())
                pyro.sample("x", dist.Normal(z, number(1.0)), obs=x)

    def guide_as_event(x: Tensor) -> None:
        with pyro.plate("data", 10):
            pyro.sample("z", dist.Normal(0.6 * x, number(HALF)).to_event(1))

    def guide_in_plate(x: Tensor) -> None:
        with pyro.plate("data", 10, dim=-2), pyro.plate("features", 4, dim=-1):
            pyro.sample("z", dist.Normal(0.6 * x, number(HALF)))

    for model, guide in ((features_as_event, guide_as_event), (features_in_plate, guide_in_plate)):
        guide, kept = keeping(guide)
        loss = Trace_IWLB(7, estimator).loss(model, guide, x)
        z = kept["z"]
        log_w = (
            standard().log_prob(z)
            + dist.Normal(z, number(1.0)).log_prob(x)
            - dist.Normal(0.6 * x, number(HALF)).log_prob(z)
        )
        assert -loss == pytest.approx(log_mean_exp(log_w.sum(-1)).sum().item(), rel=1e-12)


def test_masks_leave_out_what_they_mask():
    mask = torch.arange(N) % 3 > 0
    program = Local(off=0.3)

    def masked(fn):
        return poutine.mask(fn, mask=mask)

    guide, kept = keeping(masked(program.guide))
    loss = Trace_IWLB(4).loss(masked(program.model), guide, X)
    z = kept["z"]
    log_w = (
        standard().log_prob(z)
        + dist.Normal(z, number(1.0)).log_prob(X)
        - dist.Normal(X / 2 + 0.3, number(HALF)).log_prob(z)
    )
    assert -loss == pytest.approx(log_mean_exp(log_w)[mask].sum().item(), rel=1e-12)
    exact = Local()
    loss = Trace_IWLB(3).loss(masked(exact.model), masked(exact.guide), X)
    assert loss == pytest.approx(-log_evidence(X[mask]).sum().item(), rel=1e-12)


def test_data_that_are_missing_are_latents_of_the_guide():
    """obs_mask: x_unobserved has the model's own law given z, and the guide samples it so."""
    seen = torch.arange(N) % 3 > 0

    def model(x: Tensor) -> None:
        with pyro.plate("data", N):
            z = pyro.sample("z", standard())
            pyro.sample("x", dist.Normal(z, number(1.0)), obs=x, obs_mask=seen)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", N):
            loc = torch.where(seen, x / 2, 0.0)
            z = pyro.sample("z", dist.Normal(loc, torch.where(seen, HALF, number(1.0))))
            with poutine.mask(mask=~seen):
                pyro.sample("x_unobserved", dist.Normal(z, number(1.0)))

    expected = -log_evidence(X[seen]).sum().item()
    for estimator in ("dreg", "iwae", "rws"):
        assert Trace_IWLB(4, estimator).loss(model, guide, X) == pytest.approx(expected, rel=1e-12)


def test_a_scale_of_all_sites_stands_outside():
    exact = Local()
    scales = torch.linspace(0.1, 2.0, N, **DOUBLE)
    for scale in (0.25, scales):
        model, guide = (poutine.scale(fn, scale=scale) for fn in (exact.model, exact.guide))
        expected = -(log_evidence(X) * scale).sum().item()
        assert Trace_IWLB(3).loss(model, guide, X) == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_scales_that_differ_weigh_the_terms_of_the_log_weight():
    """Annealing: log w = log p(x | z) + beta (log p(z) - log q(z)); the scale of a plate apart."""

    def annealed(subsample: int | None, beta: float, with_obs: bool):
        def program(x: Tensor) -> None:
            with pyro.plate("data", N, subsample_size=subsample) as index:
                index = torch.arange(N) if index is None else index
                with poutine.scale(scale=beta):
                    if with_obs:
                        z = pyro.sample("z", standard())
                    else:
                        z = pyro.sample("z", dist.Normal(x[index], number(1.0)))
                if with_obs:
                    pyro.sample("x", dist.Normal(z, number(1.0)), obs=x[index])

        return program

    k, beta = 4, 0.3
    guide, kept = keeping(annealed(None, beta, False))
    whole = Trace_IWLB(k).loss(annealed(None, beta, True), guide, X)
    z = kept["z"]
    log_w = dist.Normal(z, number(1.0)).log_prob(X) + beta * (
        standard().log_prob(z) - dist.Normal(X, number(1.0)).log_prob(z)
    )
    assert -whole == pytest.approx(log_mean_exp(log_w).sum().item(), rel=1e-12)
    sub = torch.tensor(
        [
            Trace_IWLB(k).loss(annealed(10, beta, True), annealed(10, beta, False), X)
            for _ in range(300)
        ],
        **DOUBLE,
    )
    full = torch.tensor(
        [
            Trace_IWLB(k).loss(annealed(None, beta, True), annealed(None, beta, False), X)
            for _ in range(300)
        ],
        **DOUBLE,
    )
    error = ((sub.var() + full.var()) / 300).sqrt()
    assert abs(sub.mean() - full.mean()) < 4 * error


@pytest.mark.slow
def test_one_sample_is_trace_elbo_of_pyro():
    program = Local(off=0.2)
    losses = [
        torch.tensor([elbo.loss(program.model, program.guide, X) for _ in range(300)], **DOUBLE)
        for elbo in (Trace_IWLB(1), Trace_ELBO(), Trace_IWLB(4, alpha=1.0))
    ]
    for other in losses[1:]:
        error = ((losses[0].var() + other.var()) / 300).sqrt()
        assert abs(losses[0].mean() - other.mean()) < 4 * error
