"""No number of a distribution depends on whether its arguments are checked."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import mpmath
import pytest
import torch
from quick import quick_in
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from fastvi import distributions as ours
from fastvi import ops

TINY, HUGE = 1e-30, 1e30
REAL = (0.0, -0.7, 3.0, 1e4, -HUGE, TINY)
POSITIVE = (1.0, 0.3, 40.0, 1e7, TINY, HUGE)
ODDS = (0.0, -0.7, 3.0, 20.0, -30.0, 120.0, -120.0, -1e4)
UNIT = (0.5, 0.01, 1e-4, 0.99, 0.0, 1.0, TINY, 1 - 2**-24)
PROBABILITY = UNIT[:5]
COUNTS = (0.0, 1.0, 4.0, 300.0, 1e5)
# Of each pair of class and parameters: numbers of every parameter, and values.
CASES: dict[str, tuple[str, dict[str, tuple[float, ...]], tuple[float, ...]]] = {
    "Normal": ("Normal", {"loc": REAL, "scale": POSITIVE}, REAL),
    "Laplace": ("Laplace", {"loc": REAL, "scale": POSITIVE}, REAL),
    "Bernoulli logits": ("Bernoulli", {"logits": ODDS}, (0.0, 1.0)),
    "Bernoulli probs": ("Bernoulli", {"probs": UNIT}, (0.0, 1.0)),
    "Poisson": ("Poisson", {"rate": (0.0, *POSITIVE)}, COUNTS),
    "NegativeBinomial logits": (
        "NegativeBinomial",
        {"total_count": (0.0, *POSITIVE), "logits": ODDS},
        COUNTS,
    ),
    "NegativeBinomial probs": (
        "NegativeBinomial",
        {"total_count": (0.0, *POSITIVE), "probs": PROBABILITY},
        COUNTS,
    ),
    "NegativeBinomial mean": (
        "NegativeBinomial",
        {"mean": (0.0, *POSITIVE), "dispersion": POSITIVE},
        COUNTS,
    ),
    "ZeroInflatedNegativeBinomial logits": (
        "ZeroInflatedNegativeBinomial",
        {"total_count": (0.0, *POSITIVE), "logits": ODDS, "gate_logits": (0.3, -40.0, 90.0)},
        COUNTS,
    ),
    "ZeroInflatedNegativeBinomial mean": (
        "ZeroInflatedNegativeBinomial",
        {"mean": (0.0, *POSITIVE), "dispersion": POSITIVE, "gate": (0.4, 0.0, 1.0)},
        COUNTS,
    ),
}
every_case = pytest.mark.parametrize("case", [*CASES, "Categorical logits", "Categorical probs"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)


def parameters_of(case: str, dtype: torch.dtype) -> tuple[str, dict[str, Tensor], Tensor]:
    """Every combination of the numbers, and the values beside them."""
    if case.startswith("Categorical"):
        logits = torch.tensor(
            [[0.0, 1.0, -2.0], [1e4, -1e4, 0.0], [-torch.inf, 0.0, 0.0], [-300.0, -301.0, -400.0]]
        ).to(dtype)
        given = {"logits": logits} if "logits" in case else {"probs": logits.softmax(-1)}
        return "Categorical", given, torch.tensor([[0] * 4, [1] * 4, [2] * 4])
    name, numbers, values = CASES[case]
    rows = list(itertools.product(*numbers.values()))
    columns = torch.tensor(rows, dtype=torch.float64).to(dtype).T
    given = {key: column.contiguous() for key, column in zip(numbers, columns, strict=True)}
    return name, given, torch.tensor(values, dtype=dtype)[:, None].repeat(1, len(rows))


def numbers_of(make: Callable[..., Any], given: dict[str, Tensor], value: Tensor) -> Iterator:
    """Whatever can be asked of a distribution, with its name."""
    leaves = {key: x.clone().requires_grad_() for key, x in given.items()}
    p = make(**leaves)
    log_prob = p.log_prob(value)
    yield "log_prob", log_prob
    upstream = torch.linspace(0.5, 1.5, log_prob.numel()).reshape(log_prob.shape).to(log_prob.dtype)
    yield from zip(
        ("gradient " + key for key in leaves),
        torch.autograd.grad(log_prob, list(leaves.values()), upstream),
        strict=True,
    )
    yield "event", ours.Independent(make(**given), 1).log_prob(value)
    yield "expanded", make(**given).expand((2, *p.batch_shape)).log_prob(value[:, None])
    wide = torch.float64 if value.is_floating_point() else torch.int32
    yield "value of another type", make(**given).log_prob(value.to(wide))

    def total(*parameters: Tensor) -> Tensor:
        return make(**dict(zip(given, parameters, strict=True))).log_prob(value).sum()

    places = tuple(range(len(given)))
    yield from (("func", x) for x in torch.func.grad(total, places)(*given.values()))
    for name in ("mean", "variance", "stddev", "mode"):
        yield name, getattr(p, name)
    for name, argument in (("cdf", value), ("icdf", torch.full_like(log_prob, 0.3))):
        if getattr(type(p), name) is not getattr(Distribution, name):
            yield name, getattr(p, name)(argument)
    for name, ask in (("entropy", p.entropy), ("kl", lambda: kl_divergence(p, make(**given)))):
        try:
            yield name, ask()
        except NotImplementedError:
            continue
    for name in ("rsample_and_log_prob", "sample_and_log_prob"):
        if hasattr(p, name):
            yield from ((name, x) for x in getattr(p, name)(3, key=torch.tensor([5, 7])))
    # torch's samplers refuse what is beyond them, in words of their own.
    few = {key: x[:1] for key, x in given.items()}
    torch.manual_seed(4)
    try:
        yield "sample", make(**few).sample((3,))
    except NotImplementedError:  # those of torch that have no bfloat16
        return


def answers(case: str, dtype: torch.dtype, validate_args: bool | None) -> list[tuple[str, Tensor]]:
    name, given, value = parameters_of(case, dtype)
    kind = getattr(ours, name)
    found = numbers_of(lambda **given: kind(**given, validate_args=validate_args), given, value)
    return [(name, x.detach()) for name, x in found]


@pytest.fixture
def default():
    """torch's setting for the process, as it was before."""
    before = Distribution._validate_args
    yield Distribution.set_default_validate_args
    Distribution.set_default_validate_args(before)


@dtypes
@every_case
def test_checks_change_no_number(case: str, dtype: torch.dtype, default):
    default(True)
    expected = answers(case, dtype, None)
    assert len(expected) > 8
    assert all(x.numel() > 0 for _, x in expected)

    def compare(found: list[tuple[str, Tensor]]) -> None:
        for (name, x), (other, y) in zip(found, expected, strict=True):
            assert name == other
            torch.testing.assert_close(
                x, y, rtol=0, atol=0, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
            )

    for validate_args in (True, False):
        compare(answers(case, dtype, validate_args))
    default(False)
    for validate_args in (None, True, False):
        compare(answers(case, dtype, validate_args))


@every_case
def test_compiling_something_changes_no_number(case: str, default):
    """It turns torch's checks off in the whole process."""
    default(True)
    expected = answers(case, torch.float32, None)
    torch._dynamo.reset()
    assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))[0] == 2.0
    default(False)  # as importing the compiler did
    for (name, x), (_, y) in zip(answers(case, torch.float32, None), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["NegativeBinomial logits", "Bernoulli probs", "Normal"])
def test_compiled_with_and_without_checks(case: str, default):
    name, given, value = parameters_of(case, torch.float32)
    found = []
    for validate_args in (True, False):
        default(validate_args)
        torch._dynamo.reset()

        def evaluate(value: Tensor, *parameters: Tensor) -> Tensor:
            names = dict(zip(given, parameters, strict=True))
            return getattr(ours, name)(**names).log_prob(value)

        compiled = torch.compile(evaluate, backend="aot_eager")
        leaves = [x.clone().requires_grad_() for x in given.values()]
        log_prob = compiled(value, *leaves)
        found.append([log_prob.detach(), *torch.autograd.grad(log_prob.sum(), leaves)])
    torch.testing.assert_close(*found, rtol=0, atol=0, equal_nan=True)


# ---- and the numbers are right ------------------------------------------------------------------
def exact_nb(x: float, theta: float, logits: float) -> tuple[float, float, float]:
    """The log-density and its derivatives by the total count and the log-odds."""
    with mpmath.workdps(60):
        x, theta, logits = map(mpmath.mpf, (x, theta, logits))
        none, some = mpmath.log1p(mpmath.exp(logits)), mpmath.log1p(mpmath.exp(-logits))
        sigmoid = 1 / (1 + mpmath.exp(-logits))
        value = (
            mpmath.loggamma(x + theta)
            - mpmath.loggamma(theta)
            - mpmath.loggamma(x + 1)
            - theta * none
            - x * some
        )
        of_theta = mpmath.digamma(x + theta) - mpmath.digamma(theta) - none
        return float(value), float(of_theta), float(x * (1 - sigmoid) - theta * sigmoid)


GRID = torch.tensor(
    [
        (x, theta, offset)
        for x in (0.0, 1.0, 3.0, 100.0)
        for theta in (1e-3, 1.0, 50.0, 1e5, 1e7)
        for offset in (-120.0, -30.0, -3.0, -0.5, -1e-3, 0.0, 0.5, 5.0, 90.0, 200.0)
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize("validate_args", [True, False], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_negative_binomial_of_torchs_parameters(dtype: torch.dtype, validate_args: bool):
    """Value and gradient by the parameters that were given, against 60 digits."""
    x, theta, offset = GRID.T
    near = (x.clamp(min=1.0) / theta).log() * (offset.abs() < 4)
    x, theta, logits = (t.to(dtype) for t in (x, theta, offset + near))
    leaves = [theta.clone().requires_grad_(), logits.clone().requires_grad_()]
    p = ours.NegativeBinomial(leaves[0], logits=leaves[1], validate_args=validate_args)
    log_prob = p.log_prob(x)
    found = [log_prob.detach(), *torch.autograd.grad(log_prob.sum(), leaves)]
    rows = zip(x.tolist(), theta.tolist(), logits.tolist(), strict=True)
    value, of_theta, of_logits = torch.tensor(
        [exact_nb(*row) for row in rows], dtype=torch.float64
    ).T
    x, theta, logits = x.double(), theta.double(), logits.double()
    eps = torch.finfo(dtype).eps
    # One rounding of each input moves the exact numbers by this, and log x! is a term of the value;
    # eight of them are made.
    odds = logits.sigmoid()
    budgets = (
        value.abs() + (x + 1).lgamma() + logits.abs() * of_logits.abs() + theta * of_theta.abs(),
        of_theta.abs() + (x / theta).log1p() + logits.abs() * odds,
        of_logits.abs() + (1 + logits.abs()) * (x + theta) * odds * (1 - odds),
    )
    for ours_, exact, budget in zip(found, (value, of_theta, of_logits), budgets, strict=True):
        assert bool(((ours_.double() - exact).abs() <= 8 * eps * budget + 1e-37).all())


@pytest.mark.parametrize("validate_args", [True, False], ids=str)
def test_float32_is_exact_at_large_dispersions_whoever_checks(validate_args: bool):
    theta, logits, x = torch.tensor([1e7]), torch.tensor([-14.9]), torch.tensor([5.0])
    exact = torch.tensor(exact_nb(5.0, 1e7, logits.item())[0]).float()
    p = ours.NegativeBinomial(theta, logits=logits, validate_args=validate_args)
    torch.testing.assert_close(p.log_prob(x)[0], exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(p.log_prob(x.double())[0].float(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("by_bits", [False, True], ids=["zeros", "ones"])
@pytest.mark.parametrize(
    "how",
    quick_in(
        ["eager", "blocks", "func", "create graph", "compiled"],
        *("eager", "blocks", "func", "create graph"),
    ),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bernoulli_derivative_by_its_probability(dtype: torch.dtype, how: str, by_bits: bool):
    """1/p and -1/(1 - p), rounded once, and zero where torch clamps the probability."""
    info = torch.finfo(dtype)
    eps = info.eps
    ends = [0.0, info.tiny / 4, info.tiny, eps / 2, eps, 2 * eps, 1e-5, 1e-4, 0.01, 0.3]
    p = torch.tensor([*ends, 0.5, *(1 - x for x in ends)], dtype=torch.float64).to(dtype)
    if how == "blocks":
        p = p.repeat(20000, 1)
    x = torch.full_like(p, float(by_bits))

    def total(p: Tensor) -> Tensor:
        return ours.Bernoulli(p).log_prob(x).sum()

    leaf = p.clone().requires_grad_()
    if how == "func":
        found = torch.func.grad(total)(p)
    else:
        value = (
            torch.compile(total, backend="aot_eager")(leaf) if how == "compiled" else total(leaf)
        )
        (found,) = torch.autograd.grad(value, leaf, create_graph=how == "create graph")
    q = p.double()
    exact = torch.where(torch.tensor(by_bits), 1 / q, -1 / (1 - q))
    exact = torch.where((q < eps) | (q > 1 - eps), 0.0, exact)
    slack = 0.5 * eps * exact.abs() if dtype == torch.float32 else eps * exact.abs()
    assert bool(((found.detach().double() - exact).abs() <= slack).all())


def test_bernoulli_as_pytorch_asks_for_it():
    """Its own test wants 10000 of a probability of 1e-4, without a relative tolerance."""
    for dtype in (torch.float32, torch.float64):
        for p, x, exact, atol in ((1e-4, 1.0, 1e4, 1e-5), (1 - 1e-4, 0.0, -1e4, 2.0), (0, 0, 0, 0)):
            leaf = torch.tensor([float(p)], dtype=dtype, requires_grad=True)
            ours.Bernoulli(leaf).log_prob(torch.tensor([x], dtype=dtype)).sum().backward()
            torch.testing.assert_close(
                leaf.grad, torch.tensor([float(exact)], dtype=dtype), rtol=0, atol=atol
            )


def test_second_derivatives_by_probabilities_and_logits():
    p = torch.tensor([0.2, 0.7], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda p: ours.Bernoulli(p).log_prob(x), p)
    theta = torch.tensor([0.8, 9.0], dtype=torch.float64, requires_grad=True)
    logits = torch.tensor([0.3, -2.0], dtype=torch.float64, requires_grad=True)
    counts = torch.tensor([3.0, 1.0], dtype=torch.float64)

    def log_prob(theta: Tensor, logits: Tensor) -> Tensor:
        return ours.NegativeBinomial(theta, logits=logits, validate_args=False).log_prob(counts)

    assert torch.autograd.gradcheck(log_prob, (theta, logits))
    assert torch.autograd.gradgradcheck(log_prob, (theta, logits))


def test_references_serve_where_no_kernel_can():
    """A value of float64 beside a scale whose square is no float32."""
    scale = torch.tensor([1e-30])
    value = torch.tensor([2e-30], dtype=torch.float64)
    for kind, op in ((ours.Normal, ops.gaussian_log_prob), (ours.Laplace, ops.laplace_log_prob)):
        found = kind(torch.zeros(1), scale).log_prob(value)
        exact = op(value, torch.zeros(1).double(), scale=scale.double(), event_dims=0)
        torch.testing.assert_close(found, exact)
