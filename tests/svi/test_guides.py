"""Guides: densities after bijections, quantiles, and what the families are."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    Independent,
    LogNormal,
    Normal,
    StickBreakingTransform,
    TransformedDistribution,
    constraints,
)

import fastvi
from fastvi.guides import BernoulliGuide, CategoricalGuide, LowRankGaussian, MeanFieldGaussian

SHAPES = {"real": (2, 2), "positive": (3,), "simplex": (4,), "below": ()}
SUPPORTS = {
    "positive": constraints.positive,
    "simplex": constraints.simplex,
    "below": constraints.less_than(2.0),
}
GUIDES = [
    pytest.param(lambda: MeanFieldGaussian(SHAPES, SUPPORTS, dtype=torch.float64), id="mean field"),
    pytest.param(
        lambda: LowRankGaussian(SHAPES, SUPPORTS, rank=2, dtype=torch.float64), id="low rank"
    ),
]


def moved(guide):
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return guide


@pytest.mark.parametrize("make", GUIDES)
def test_values_are_in_their_supports(make):
    guide = moved(make())
    values = guide.sample(50)
    for name, shape in SHAPES.items():
        assert values[name].shape == (50, *shape)
        assert SUPPORTS.get(name, constraints.real).check(values[name]).all()
    assert guide.median()["simplex"].sum().item() == pytest.approx(1.0)


def test_density_after_the_bijections():
    guide = moved(MeanFieldGaussian(SHAPES, SUPPORTS, dtype=torch.float64))
    latents = guide.latents((), 20)
    values = guide.arrange({latent.name: latent.value for latent in latents})
    assert list(values) == list(SHAPES)
    q = guide.distribution()
    sizes = [4, 3, 3, 1]
    locs, scales = q.loc.split(sizes), q.scale.split(sizes)
    simplex = TransformedDistribution(Normal(locs[2], scales[2]), [StickBreakingTransform()])
    expected = (
        Normal(locs[0], scales[0]).log_prob(values["real"].flatten(1)).sum(1),
        LogNormal(locs[1], scales[1]).log_prob(values["positive"]).sum(1),
        simplex.log_prob(values["simplex"]),
        LogNormal(locs[3], scales[3]).log_prob((2.0 - values["below"])[:, None])[:, 0],
    )
    for latent, density in zip(latents, expected, strict=True):
        torch.testing.assert_close(latent.log_q, density, rtol=1e-9, atol=1e-9)
        given = latent.distribution.log_prob(latent.value)
        torch.testing.assert_close(given, density, rtol=1e-9, atol=1e-9)


def reparameterised(guide, num_samples: int) -> Tensor:
    """The numbers before their bijections, of the noise that comes next."""
    if isinstance(guide, LowRankGaussian):
        return guide.distribution().rsample(torch.Size((num_samples,)))
    return fastvi.ops.gaussian_rsample(
        guide.loc, log_scale=guide.log_scale, num_samples=num_samples
    )[0]


@pytest.mark.parametrize("make", GUIDES)
def test_path_holds_the_parameters_of_the_density_constant(make):
    guide = moved(make())
    torch.manual_seed(3)
    latents = guide.latents((), 5, path=True)
    path = sum(latent.log_q_path() for latent in latents)
    got = torch.autograd.grad(path.sum(), list(guide.parameters()), retain_graph=True)
    frozen = copy.deepcopy(guide).requires_grad_(False)
    torch.manual_seed(3)
    numbers = reparameterised(guide, 5)
    log_q = frozen.distribution().log_prob(numbers)
    log_det = sum(guide.named.constrain(numbers)[1].values())
    held = (log_q if log_q.ndim == 1 else log_q.sum(1)) - log_det
    torch.testing.assert_close(path, held)
    expected = torch.autograd.grad(held.sum(), list(guide.parameters()))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("make", GUIDES)
def test_quantiles_are_those_of_samples(make):
    shapes = {name: shape for name, shape in SHAPES.items() if name != "simplex"}
    supports = {name: support for name, support in SUPPORTS.items() if name != "simplex"}
    guide = moved(type(make())(shapes, supports, **({"rank": 2} if "Low" in str(make()) else {})))
    samples = guide.sample(20_000)
    got = guide.quantiles([0.1, 0.5, 0.9])
    for name, values in samples.items():
        exact = values.quantile(torch.tensor([0.1, 0.5, 0.9]), dim=0)
        assert got[name].shape == exact.shape
        spread = (exact[2] - exact[0]).abs()
        assert ((got[name] - exact).abs() < 0.05 * spread).all()
    for name, median in guide.median().items():
        torch.testing.assert_close(guide.quantiles(0.5)[name], median)


def test_starts_at_its_first_values():
    init = {"positive": torch.tensor([0.1, 1.0, 20.0]), "below": torch.tensor(1.9)}
    guide = MeanFieldGaussian(SHAPES, SUPPORTS, init=init)
    median = guide.median()
    torch.testing.assert_close(median["positive"], init["positive"])
    torch.testing.assert_close(median["below"], init["below"])


@pytest.mark.slow
def test_low_rank_has_correlations():
    """A posterior along a line: the mean field sees its width across only."""
    covariance = torch.tensor([[1.0, 0.95], [0.95, 1.0]], dtype=torch.float64)
    target = torch.distributions.MultivariateNormal(torch.zeros(2).double(), covariance)
    bounds = {}
    for name, guide in {
        "low rank": LowRankGaussian({"z": (2,)}, rank=1, dtype=torch.float64),
        "mean field": MeanFieldGaussian({"z": (2,)}, dtype=torch.float64),
    }.items():
        svi = fastvi.SVI(
            lambda z: target.log_prob(z["z"]), guide,
            torch.optim.Adam(guide.parameters(), lr=0.05),
            fastvi.objectives.ELBO(8, estimator="stl"),
        )  # fmt: skip
        svi.fit(epochs=250)
        bounds[name] = svi.evaluate(num_samples=2000).item()
    # The mean field's best is half the log of one less the squared correlation.
    assert bounds["low rank"] == pytest.approx(0.0, abs=0.02)
    assert bounds["mean field"] == pytest.approx(0.5 * math.log(1 - 0.95**2), abs=0.1)


@pytest.mark.parametrize("free", [False, True], ids=["of each datum", "of all data"])
def test_discrete_guides_are_the_distributions_of_torch(free: bool):
    x = torch.randn(6, 5)
    data = () if free else (x,)
    bits = BernoulliGuide((3,) if free else nn.Linear(5, 3))
    classes = CategoricalGuide((4,) if free else nn.Linear(5, 4))
    several = CategoricalGuide(
        (2, 4) if free else nn.Sequential(nn.Linear(5, 8), nn.Unflatten(-1, (2, 4))), event_dims=1
    )
    for guide in (bits, classes, several):
        moved(guide)
        (latent,) = guide.latents(data, 10)
        assert not latent.reparameterised
        assert latent.log_q.shape == ((10,) if free else (10, 6))
        torch.testing.assert_close(latent.log_q, latent.distribution.log_prob(latent.value))
    p = bits.probs(*data)
    torch.testing.assert_close(
        bits.latents(data, 1)[0].distribution.mean, p, msg="the probability of one"
    )
    assert isinstance(several.latents(data, 1)[0].distribution, Independent)
    torch.testing.assert_close(classes.probs(*data).sum(-1), torch.ones(() if free else 6))


def test_free_bits_find_their_posterior():
    """Bits of all the data, on or off together with it."""
    on = torch.tensor([0.9, 0.2, 0.5])
    guide = BernoulliGuide((3,))
    svi = fastvi.SVI(
        lambda z: Bernoulli(on).log_prob(z).sum(-1), guide,
        torch.optim.Adam(guide.parameters(), lr=0.1),
        fastvi.objectives.Reinforce(64, "leave_one_out"),
    )  # fmt: skip
    svi.fit(epochs=150)
    torch.testing.assert_close(guide.probs().detach(), on, rtol=0, atol=0.05)


def scale_one(x: Tensor) -> Normal:
    return Normal(x, 1.0)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        pytest.param(lambda: MeanFieldGaussian({}), ValueError, "at least one name", id="nothing"),
        pytest.param(
            lambda: MeanFieldGaussian({"a": ()}, {"b": constraints.real}), ValueError,
            r"supports to be of the parameters \['a'\], got \['b'\]", id="support of another",
        ),
        pytest.param(
            lambda: MeanFieldGaussian({"a": ()}, {"a": 3}), TypeError, "'a' to be a constraint",
            id="no constraint",
        ),
        pytest.param(
            lambda: MeanFieldGaussian({"a": (2,)}, {"a": constraints.boolean}), ValueError,
            "support of 'a'.*biject_to", id="a support of no bijection",
        ),
        pytest.param(
            lambda: MeanFieldGaussian({"a": ()}, {"a": constraints.positive},
                                      init={"a": torch.tensor(-1.0)}),
            ValueError, "init of 'a' to be in its support", id="constraint violated",
        ),
        pytest.param(
            lambda: MeanFieldGaussian({"a": ()}, None, init={"a": torch.ones(2)}), ValueError,
            "init of 'a' to have shape", id="init of another shape",
        ),
        pytest.param(
            lambda: MeanFieldGaussian({"a": ()}, init_scale=0.0), ValueError, "init_scale",
            id="init_scale",
        ),
        pytest.param(lambda: LowRankGaussian({"a": ()}, rank=0), ValueError, "rank", id="rank"),
        pytest.param(
            lambda: MeanFieldGaussian({"s": (3,)}, {"s": constraints.simplex}).quantiles(0.5),
            ValueError, "'s' to be bijected one by one", id="quantiles of a simplex",
        ),
        pytest.param(
            lambda: MeanFieldGaussian({"a": ()}).quantiles(1.0), ValueError, "between 0 and 1",
            id="quantile 1",
        ),
        pytest.param(lambda: BernoulliGuide((2, 3)), ValueError, "1 dimensions", id="free logits"),
        pytest.param(lambda: BernoulliGuide((2,), -1), ValueError, "event_dims", id="event_dims"),
        pytest.param(
            lambda: fastvi.guides.AmortizedGuide(3), TypeError, "callable, got int", id="network"
        ),
        pytest.param(
            lambda: fastvi.guides.AmortizedGuide(nn.Linear(2, 2)).latents((torch.ones(3, 2),), 4),
            TypeError, "a distribution or a mapping", id="a tensor from the network",
        ),
    ],
)  # fmt: skip
def test_bad_input(call, error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        call()


def test_a_categorical_has_its_logits():
    guide = CategoricalGuide(lambda x: x)
    logits = torch.randn(6, 4)
    got = guide.latents((logits,), 3)[0]
    torch.testing.assert_close(got.log_q, Categorical(logits=logits).log_prob(got.value))


@pytest.mark.parametrize("event_dims", [0, 1, 2], ids=lambda n: f"{n} event dimensions")
def test_discrete_draws_are_those_of_a_key(event_dims: int):
    """Which does not depend on the state of torch's generator, only on the key drawn from it."""
    logits = torch.randn(4, 3, 2)
    bits = BernoulliGuide(lambda x: logits, event_dims)
    classes = CategoricalGuide(lambda x: logits, min(event_dims, 1))
    torch.manual_seed(7)
    key = fastvi.ops.new_key()
    for guide, family in ((bits, fastvi.distributions.Bernoulli),
                          (classes, fastvi.distributions.Categorical)):  # fmt: skip
        torch.manual_seed(7)
        (latent,) = guide.latents((torch.zeros(4),), 9)
        after = torch.get_rng_state()
        torch.manual_seed(7)
        fastvi.ops.new_key()
        assert torch.equal(after, torch.get_rng_state())
        torch.testing.assert_close(latent.log_q, latent.distribution.log_prob(latent.value))
        if family is fastvi.distributions.Categorical:
            expected, _ = family(logits=logits).sample_and_log_prob(9, key=key)
            assert torch.equal(latent.value, expected)
