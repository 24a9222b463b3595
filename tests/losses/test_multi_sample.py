"""The relatives of the bound: their definitions, their gradients, and the laws over K."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from chunks_setting import Setting, assert_same
from linear_gaussian import make_model
from torch import Tensor, nn

import fastvi
from fastvi import objectives

SAMPLES = 6


def from_log_w(bound: Callable[[Tensor], Tensor], samples: int) -> Callable[..., Tensor]:
    """A loss whose gradient is plain autograd's, through the reference of the sampler."""

    def loss(loc, log_var, log_likelihood, key, prior):
        z, log_q, log_p = fastvi.ops.gaussian_rsample.reference(
            loc, log_var=log_var, num_samples=samples, key=key, prior=prior
        )
        return -bound(log_likelihood(z) + log_p - log_q).mean()

    return loss


PAIRS = {
    "jackknife": (fastvi.JackknifeLoss(SAMPLES, "iwae"), objectives.jackknife, SAMPLES),
    "miwae": (
        fastvi.MIWAELoss(SAMPLES, 3, estimator="iwae"),
        lambda log_w: objectives.miwae(log_w.unflatten(0, (3, SAMPLES))),
        3 * SAMPLES,
    ),
    "ciwae": (
        fastvi.CIWAELoss(SAMPLES, 0.3, estimator="iwae"),
        lambda log_w: objectives.ciwae(log_w, 0.3),
        SAMPLES,
    ),
    "renyi": (
        fastvi.IWLBLoss(SAMPLES, "iwae", alpha=0.4),
        lambda log_w: objectives.renyi(log_w, 0.4),
        SAMPLES,
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_total_gradient_is_autograds(name: str):
    criterion, bound, samples = PAIRS[name]
    assert_same(Setting().run(criterion), Setting().run(from_log_w(bound, samples)), 1e-10)


def test_piwae_gives_each_its_own_bound():
    """The model's gradient is that of all samples; the guide's that of the groups."""
    setting = Setting()
    whole = from_log_w(objectives.iwlb, 3 * SAMPLES)
    groups = from_log_w(
        lambda log_w: objectives.miwae(log_w.unflatten(0, (3, SAMPLES))), 3 * SAMPLES
    )
    actual = setting.run(fastvi.PIWAELoss(SAMPLES, 3, estimator="iwae"))
    for_model, for_guide = Setting().run(whole), Setting().run(groups)
    assert_same(actual[:1] + actual[3:], for_model[:1] + for_model[3:], 1e-10)
    assert_same(actual[1:3], for_guide[1:3], 1e-10)


# ---- doubly reparameterised gradients -----------------------------------------------------------
DREG = {
    "iwlb": lambda e: fastvi.IWLBLoss(4, e),
    "renyi": lambda e: fastvi.IWLBLoss(4, e, alpha=0.5),
    "renyi above one": lambda e: fastvi.IWLBLoss(4, e, alpha=1.5),
    "rws": lambda e: fastvi.IWLBLoss(4, {"iwae": "rws", "dreg": "rws_dreg"}[e]),
    "jackknife": lambda e: fastvi.JackknifeLoss(4, e),
    "miwae": lambda e: fastvi.MIWAELoss(4, 2, estimator=e),
    "piwae": lambda e: fastvi.PIWAELoss(4, 2, estimator=e),
    "ciwae": lambda e: fastvi.CIWAELoss(4, 0.3, estimator=e),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DREG, ids=lambda name: name.replace(" ", "_"))
def test_dreg_has_the_mean_of_the_plain_gradient(name: str):
    """Both are unbiased for the guide: their means over 100 000 data agree, STL's would not."""
    model = make_model()
    generator = torch.Generator().manual_seed(0)
    x = model.draw(1, generator).expand(100_000, -1)
    exact_loc, exact_log_var = model.posterior(x)
    loc = (exact_loc + 0.4).requires_grad_()
    log_var = (exact_log_var + 0.5).requires_grad_()
    grads = []
    for estimator, seed in (("iwae", 1), ("dreg", 2)):
        loss = DREG[name](estimator)
        loss.reduction = "sum"
        total = loss(
            loc, log_var, lambda z: model.log_likelihood(x, z), prior=model.prior,
            key=torch.tensor([seed, 0]),
        )  # fmt: skip
        grads.append(torch.cat(torch.autograd.grad(total, (loc, log_var)), -1))
    difference = (grads[0] - grads[1]).mean(0)
    noise = sum(g.var(0) / len(g) for g in grads).sqrt()
    assert (difference.abs() < 4.5 * noise).all()
    # The measure is sharp enough to see a difference of a few per cent.
    assert (noise < 0.05 * grads[0].mean(0).abs().max()).all()


@pytest.mark.slow
def test_dreg_is_less_noisy():
    setting = Setting()
    x, encoder = setting.x, setting.encoder

    def variance(criterion: nn.Module) -> float:
        loc, log_var = (t.detach().requires_grad_() for t in encoder(x).chunk(2, -1))
        grads = []
        for seed in range(300):
            loss = criterion(loc, log_var, setting.log_likelihood, key=torch.tensor([seed, 1]))
            grads.append(torch.cat(torch.autograd.grad(loss, (loc, log_var)), -1))
        return torch.stack(grads).var(0).sum().item()

    for make in (
        lambda e: fastvi.IWLBLoss(64, e, alpha=0.3),
        lambda e: fastvi.MIWAELoss(32, 2, estimator=e),
        lambda e: fastvi.CIWAELoss(64, 0.1, estimator=e),
    ):
        assert variance(make("dreg")) < 0.6 * variance(make("iwae"))


# ---- definitions and limits ---------------------------------------------------------------------
def log_mean_exp(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(len(log_w))


def without(log_w: Tensor, k: int) -> Tensor:
    return torch.cat([log_w[:k], log_w[k + 1 :]])


@pytest.fixture
def log_w() -> Tensor:
    return 3.0 * torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).double() - 80.0


def jackknife(log_w: Tensor) -> Tensor:
    count = len(log_w)
    mean = torch.stack([log_mean_exp(without(log_w, k)) for k in range(count)]).mean(0)
    return count * log_mean_exp(log_w) - (count - 1) * mean


def test_jackknife_by_definition(log_w: Tensor):
    expected = jackknife(log_w)
    torch.testing.assert_close(objectives.jackknife(log_w), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        fastvi.JackknifeLoss(7).weigh(log_w)[0], expected, rtol=1e-12, atol=1e-12
    )


# Breaks when the rest of a dominating weight comes from a subtraction.
@pytest.mark.parametrize("gap", [5.0, 40.0, 500.0], ids=lambda gap: f"{gap:g} nats")
def test_jackknife_weights_where_one_dominates(log_w: Tensor, gap: float):
    log_w[3] += gap
    leaf = log_w.clone().requires_grad_()
    bound = objectives.jackknife(leaf)
    (expected,) = torch.autograd.grad(bound.sum(), leaf)
    for estimator in ("iwae", "dreg"):
        value, model, path = fastvi.JackknifeLoss(7, estimator).weigh(log_w)
        assert path.isfinite().all()
        torch.testing.assert_close(value, bound.detach(), rtol=1e-12, atol=1e-11)
        torch.testing.assert_close(model, expected, rtol=1e-9, atol=1e-12)


def test_the_second_derivatives_behind_dreg(log_w: Tensor):
    """The path's weight is the gradient less the diagonal of the Hessian."""
    column = log_w[:, 0].contiguous()
    bounds: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]] = {
        "jackknife": (fastvi.JackknifeLoss(7), jackknife),
        "ciwae": (fastvi.CIWAELoss(7, 0.3), lambda w: 0.3 * w.mean(0) + 0.7 * log_mean_exp(w)),
        "one group": (fastvi.MIWAELoss(7, 1), log_mean_exp),
    }
    for criterion, bound in bounds.values():
        hessian = torch.autograd.functional.hessian(lambda w, f=bound: f(w[:, None])[0], column)
        leaf = column.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(bound(leaf[:, None])[0], leaf)
        _, model, path = criterion.weigh(column[:, None])
        torch.testing.assert_close(model[:, 0], gradient, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(path[:, 0], gradient - hessian.diagonal(), rtol=1e-9, atol=1e-12)


def test_limits():
    setting = Setting()
    iwlb, elbo = setting.run(fastvi.IWLBLoss(6)), setting.run(fastvi.IWLBLoss(6, alpha=1.0))
    assert_same(setting.run(fastvi.MIWAELoss(6, 1)), iwlb, 1e-10)
    assert_same(setting.run(fastvi.PIWAELoss(6, 1)), iwlb, 1e-10)
    assert_same(setting.run(fastvi.CIWAELoss(6, 0.0)), iwlb, 1e-10)
    assert_same(setting.run(fastvi.CIWAELoss(6, 1.0)), elbo, 1e-10)
    assert_same(setting.run(fastvi.MIWAELoss(1, 6)), elbo, 1e-10)
    near = setting.run(fastvi.IWLBLoss(6, "iwae", alpha=1.0 + 1e-6))
    assert_same(near, setting.run(fastvi.IWLBLoss(6, "iwae", alpha=1.0)), 1e-4)


def test_the_guards_of_the_bounds_themselves():
    impossible = torch.full((6, 2), -torch.inf, dtype=torch.double)
    impossible[1:, 0] = 0.0
    leaf = impossible.clone().requires_grad_()
    bound = objectives.jackknife(leaf)
    assert bound[1].item() == -math.inf
    (grad,) = torch.autograd.grad(bound[1], leaf)
    assert (grad == 0).all()
    # At the ends the part without a share does not count, infinite or not.
    assert fastvi.CIWAELoss(6, 0.0).weigh(impossible)[0][0].item() == pytest.approx(math.log(5 / 6))


def test_a_datum_without_a_possible_sample():
    log_w = torch.zeros(6, 2, dtype=torch.double)
    log_w[:, 1] = -torch.inf
    for criterion in (
        fastvi.JackknifeLoss(6), fastvi.MIWAELoss(3, 2), fastvi.PIWAELoss(3, 2),
        fastvi.CIWAELoss(6, 0.2),
    ):  # fmt: skip
        bound, model, path = criterion.weigh(log_w)
        assert bound.tolist() == [0.0, -math.inf]
        if not isinstance(criterion, fastvi.CIWAELoss):
            assert (model[:, 1] == 0).all() and (path[:, 1] == 0).all()


def test_one_possible_sample():
    """The bound without it is -inf, so the jackknife is +inf; its gradient is the limit's."""
    log_w = torch.tensor([[0.0], [-torch.inf], [-torch.inf], [-torch.inf]])
    for estimator in ("iwae", "dreg"):
        bound, model, path = fastvi.JackknifeLoss(4, estimator).weigh(log_w)
        assert bound.tolist() == [math.inf]
        assert model[:, 0].tolist() == [1.75, 0.0, 0.0, 0.0]
        assert path[:, 0].tolist() == [1.75, 0.0, 0.0, 0.0]
    loc = torch.zeros(2, 2, requires_grad=True)
    first = torch.tensor([True, *[False] * 3])[:, None]
    loss = fastvi.JackknifeLoss(4)(
        loc, torch.zeros(2, 2), lambda z: torch.where(first, -z.square().sum(-1), -torch.inf)
    )
    assert torch.autograd.grad(loss, loc)[0].isfinite().all()


# Breaks when a chunk that begins or ends within a group is counted in another one.
@pytest.mark.parametrize("name", ["miwae", "piwae", "ciwae", "jackknife"])
def test_weights_of_chunks_are_those_of_the_whole(name: str, log_w: Tensor):
    criterion = {
        "miwae": fastvi.MIWAELoss(3, 4),
        "piwae": fastvi.PIWAELoss(3, 4),
        "ciwae": fastvi.CIWAELoss(12, 0.3),
        "jackknife": fastvi.JackknifeLoss(12),
    }[name]
    log_w = torch.cat([log_w, log_w[:5] - 7.0])
    log_w[3:6, 1] = -torch.inf
    log_w[4, 2] = 400.0
    expected = criterion.weigh(log_w)
    for size in (1, 2, 5, 8):
        sums = criterion.weigher().sums()
        chunks = list(zip(range(0, 12, size), log_w.split(size), strict=True))
        for offset, chunk in chunks:
            sums.add(offset, chunk)
        bound = sums.bound()
        found = [sums.weights(*chunk) for chunk in chunks]
        weights = [(each.model, each.guide) for each in found]
        assert_same((bound, *map(torch.cat, zip(*weights, strict=True))), expected, 1e-12)


# Breaks when the guide's gradient is made from that of a model whose weight is zero.
@pytest.mark.parametrize("estimator", ["iwae", "dreg"])
def test_groups_that_the_model_does_not_see(estimator: str):
    """Groups hundreds of nats apart: PIWAE gives the guide the gradient of all, as MIWAE does."""
    grads = []
    for kind in (fastvi.MIWAELoss, fastvi.PIWAELoss):
        setting = Setting(torch.float32)
        # The likelihood may have to run once more, with the same masks.
        setting.decoder = nn.Sequential(nn.Dropout(0.5), setting.decoder)

        def log_likelihood(z: Tensor, setting=setting) -> Tensor:
            return 300.0 * z.sum(-1) + setting.log_likelihood(z)

        torch.manual_seed(3)
        loss = setting.loss(kind(2, 4, estimator=estimator), log_likelihood)
        grads.append(
            (*torch.autograd.grad(loss, list(setting.encoder.parameters())), torch.rand(3))
        )
    assert_same(grads[1], grads[0], 1e-5)


# ---- the law of the bias ------------------------------------------------------------------------
@pytest.mark.slow
def test_jackknife_bias_falls_as_the_square():
    """log p - E[bound] over K = 4, 8, 16: slope -1 for the IWLB, near -2 for the jackknife."""
    model = make_model(latent=1)
    x = model.draw(1, torch.Generator().manual_seed(0)).expand(400_000, -1)
    loc, log_var = model.posterior(x)
    loc, log_var = loc + 0.15, log_var + 0.3
    truth = model.log_evidence(x[:1])
    bias: dict[str, list[float]] = {"iwlb": [], "jackknife": []}
    counts = (4, 8, 16)
    for count in counts:
        z, log_q, log_p = fastvi.ops.gaussian_rsample(
            loc, log_var=log_var, num_samples=count, key=torch.tensor([count, 3]), prior=model.prior
        )
        log_w = model.log_likelihood(x, z) + log_p - log_q - truth
        # The mean of w / p(x) - 1 is zero: taken out, it takes most of the noise along.
        control = log_w.exp().mean(0) - 1.0
        bias["iwlb"].append(-(objectives.iwlb(log_w) - control).mean().item())
        bias["jackknife"].append(-(objectives.jackknife(log_w) - control).mean().item())

    def slope(values: list[float]) -> float:
        return math.log(abs(values[-1] / values[0])) / math.log(counts[-1] / counts[0])

    assert -1.15 < slope(bias["iwlb"]) < -0.85
    assert slope(bias["jackknife"]) < -1.6


# ---- bad input ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(lambda: fastvi.JackknifeLoss(1), "at least 2", id="jackknife K = 1"),
        pytest.param(lambda: fastvi.MIWAELoss(4, 0), "num_groups", id="no groups"),
        pytest.param(lambda: fastvi.MIWAELoss(0, 4), "num_samples", id="no samples"),
        pytest.param(lambda: fastvi.CIWAELoss(4, 1.5), "beta", id="beta above 1"),
        pytest.param(
            lambda: fastvi.PIWAELoss(4, 2, estimator="stl"), "'dreg', 'iwae'", id="estimator"
        ),
        pytest.param(lambda: fastvi.MIWAELoss(4, 2, chunk_size=9), "chunk_size", id="chunk"),
    ],
)
def test_bad_options(make: Callable[[], nn.Module], says: str):
    with pytest.raises(ValueError, match=says):
        make()


def test_every_pair_of_limits_is_ordered(log_w: Tensor):
    """A Renyi bound falls as alpha grows."""
    values = [objectives.renyi(log_w, alpha) for alpha in (-1.0, 0.0, 0.5, 1.0, 2.0)]
    for lower_order, higher_order in itertools.pairwise(values):
        assert (lower_order >= higher_order).all()
