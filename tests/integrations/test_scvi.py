"""accelerate(): scvi-tools' distributions on our kernels, against mpmath and its own."""

from __future__ import annotations

import doctest
import logging
import warnings

import pytest
import torch
from torch.testing import assert_close

import fastvi

scvi = pytest.importorskip("scvi")
mpmath = pytest.importorskip("mpmath")
from scvi.distributions import (  # noqa: E402
    NegativeBinomial,
    Normal,
    Poisson,
    ZeroInflatedNegativeBinomial,
)

from fastvi.integrations.scvi import accelerate, acceleration, bound  # noqa: E402

pytestmark = [
    pytest.mark.native,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
logging.getLogger("scvi").setLevel(logging.ERROR)


def exact(x: float, mu: float, theta: float, zi: float | None = None) -> float:
    """The log-probability with 60 digits."""
    with mpmath.workdps(60):
        x, mu, theta = map(mpmath.mpf, (x, mu, theta))
        log_p = (
            mpmath.loggamma(x + theta)
            - mpmath.loggamma(theta)
            - mpmath.loggamma(x + 1)
            - theta * mpmath.log1p(mu / theta)
            + x * mpmath.log(mu / (mu + theta))
        )
        if zi is not None:
            gate = 1 / (1 + mpmath.exp(-mpmath.mpf(zi)))
            log_p = mpmath.log((gate if x == 0 else 0) + (1 - gate) * mpmath.exp(log_p))
        return float(log_p)


COUNTS = {
    "few": (3.0, 2.0, 0.5),
    "none": (0.0, 1e-3, 2.0),
    "many": (50_000.0, 48_000.0, 3.0),
    "nearly Poisson": (12.0, 10.0, 1e7),
    "Poisson": (1.0, 1.0, 1e10),
    "many and nearly Poisson": (1e6, 1e6, 1e8),
    "rare": (2.0, 1e-6, 1e-2),
}


@pytest.mark.parametrize("zi", [None, -1.5, 2.0], ids=["nb", "few zeros", "many zeros"])
@pytest.mark.parametrize(("x", "mu", "theta"), list(COUNTS.values()), ids=list(COUNTS))
def test_values(x: float, mu: float, theta: float, zi: float | None):
    x, mu, theta = (torch.tensor(one).item() for one in (x, mu, theta))
    parameters = {"mu": torch.tensor([mu]), "theta": torch.tensor([theta])}
    kind = NegativeBinomial if zi is None else ZeroInflatedNegativeBinomial
    extra = {} if zi is None else {"zi_logits": torch.tensor([zi])}
    p = kind(**parameters, **extra)
    with accelerate():
        got = p.log_prob(torch.tensor([x])).item()
    expected = exact(x, mu, theta, zi)
    # One rounding of a mean or a count moves the sum by x / 2^24 at most, and so do a few more.
    budget = 8 * 2.0**-24 * (1 + abs(expected) + x * abs(1 - mu / x if x else 0) + x**0.5)
    assert abs(got - expected) <= budget


def test_what_is_mended():
    """Errors of whole nats in float32, and a probability above 1."""
    stock = NegativeBinomial(mu=torch.tensor([1e6]), theta=torch.tensor([1e8]))
    error = stock.log_prob(torch.tensor([1e6])).item() - exact(1e6, 1e6, 1e8)
    assert abs(error) > 1.0


def pair(kind: type, dtype: torch.dtype, **options):
    """The same distribution twice, of parameters of their own."""
    torch.manual_seed(0)
    mu = torch.rand(5, 7, dtype=dtype) * 4 + 0.1
    theta = torch.rand(7, dtype=dtype) + 0.3
    given = {"mu": mu, "theta": theta} if kind is not Normal else {"mu": mu, "scale": theta}
    if kind is ZeroInflatedNegativeBinomial:
        given["zi_logits"] = torch.randn(5, 7, dtype=dtype)
    if kind is Poisson:
        given = {"rate": mu}
    return [{k: v.clone().requires_grad_() for k, v in given.items()} for _ in range(2)]


KINDS = [NegativeBinomial, ZeroInflatedNegativeBinomial, Normal, Poisson]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_values_and_gradients_are_those_of_scvi(kind: type, dtype: torch.dtype):
    x = torch.poisson(torch.full((5, 7), 1.5, dtype=dtype))
    ours, stock = pair(kind, dtype)
    expected = kind(**stock).log_prob(x)
    expected.square().sum().backward()
    with accelerate():
        got = kind(**ours).log_prob(x)
        got.square().sum().backward()
        in_event = acceleration.event_log_prob(kind(**ours), x)
    assert got.dtype == dtype and got.shape == x.shape
    # scvi-tools adds 1e-8 to means and dispersions of 0.1 and more.
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 3e-7, "atol": 3e-7}
    assert_close(got, expected, **close)
    assert_close(in_event, expected.sum(-1), **close)
    for name in ours:
        assert_close(ours[name].grad, stock[name].grad, **close)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_it_swaps_and_swaps_back(kind: type):
    before = kind.log_prob
    bases = kind.__bases__
    first = accelerate()
    with accelerate(kind.__name__) as second:
        first.close()
        assert kind.log_prob is not before
        assert repr(second) == f"<Acceleration of {kind.__name__}, on>"
    assert kind.log_prob is before and kind.__bases__ == bases
    with pytest.raises(ValueError, match="expected names to be of NegativeBinomial, Normal, "):
        accelerate("Gamma")


def test_objects_made_before_and_subclasses():
    class Own(ZeroInflatedNegativeBinomial):
        pass

    given = {name: torch.ones(2, 3) for name in ("mu", "theta", "zi_logits")}
    before, before_class = Own(**given), Own.log_prob
    expected = before.log_prob(torch.zeros(2, 3))
    with accelerate():
        assert_close(before.log_prob(torch.zeros(2, 3)), expected)
        assert isinstance(before, NegativeBinomial)
        after = Own(**given | {"mu": torch.zeros(2, 3)})
        assert torch.equal(after.log_prob(torch.zeros(2, 3)), torch.zeros(2, 3))
        assert Own.log_prob is not before_class


def test_samples_are_the_same():
    p = NegativeBinomial(mu=torch.full((20,), 5.0), theta=torch.full((20,), 2.0))
    torch.manual_seed(3)
    expected = p.sample((4,))
    with accelerate():
        torch.manual_seed(3)
        assert torch.equal(p.sample((4,)), expected)


@pytest.mark.parametrize("value", [0.5, -1.0], ids=["a fraction", "negative"])
def test_what_is_no_count_is_warned_of_as_before(value: float):
    p = ZeroInflatedNegativeBinomial(
        mu=torch.ones(2), theta=torch.ones(2), zi_logits=torch.zeros(2)
    )
    with accelerate(), pytest.warns(UserWarning, match="within the support"):
        p.log_prob(torch.full((2,), value))
    with accelerate(), warnings.catch_warnings():
        warnings.simplefilter("error")
        p.log_prob(torch.ones(2))


def test_types_that_no_kernel_takes_are_left_to_scvi():
    p = NegativeBinomial(mu=torch.ones(2), theta=torch.ones(2))
    x = torch.ones(2, dtype=torch.float64)
    expected = p.log_prob(x)
    with accelerate():
        assert_close(p.log_prob(x), expected, rtol=0, atol=0)
        assert_close(acceleration.event_log_prob(p, x), expected.sum(-1), rtol=0, atol=0)


def test_second_derivatives():
    x = torch.poisson(torch.full((4,), 2.0, dtype=torch.float64))

    def density(mu: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        return NegativeBinomial(mu=mu, theta=theta).log_prob(x)

    given = [torch.rand(4, dtype=torch.float64) + 0.5 for _ in range(2)]
    with accelerate():
        assert torch.autograd.gradgradcheck(density, [g.requires_grad_() for g in given])


@pytest.mark.parametrize("module", [acceleration, bound], ids=["acceleration", "bound"])
def test_examples(module):
    names = {"fastvi": fastvi, "torch": torch}
    failed, tried = doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS)
    assert tried and not failed
