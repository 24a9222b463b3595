"""The fused distributions in Pyro programs: the same numbers, however imported, and back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastvi.distributions

pyro = pytest.importorskip("pyro")

import pyro.distributions as dist  # noqa: E402
from pyro.distributions import Bernoulli, NanMaskedNormal, Normal  # noqa: E402
from pyro.distributions.distribution import COERCIONS  # noqa: E402
from pyro.distributions.torch_distribution import TorchDistributionMixin  # noqa: E402
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO  # noqa: E402
from pyro.infer.autoguide import AutoLaplaceApproximation  # noqa: E402
from pyro.ops.newton import newton_step  # noqa: E402

from fastvi.integrations.pyro import accelerate  # noqa: E402
from fastvi.integrations.pyro.acceleration import NAMES, fused_copy, quick_checks  # noqa: E402

FUSED = [(name, getattr(fastvi.distributions, name)) for name in NAMES]


class Shifted(dist.Normal):
    """A user's own subclass, whose log_prob is not the kernel's."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + 1.0


@pytest.fixture(autouse=True)
def as_it_was():
    pyro.clear_param_store()
    before = {name: getattr(dist, name).__bases__ for name in NAMES}
    yield
    assert before == {name: getattr(dist, name).__bases__ for name in NAMES}


def test_it_has_the_common_ones():
    assert {"Normal", "Bernoulli", "Categorical", "Laplace", "Poisson", "Independent"} <= set(NAMES)


@pytest.mark.parametrize("name,fused", FUSED, ids=NAMES)
def test_there_and_back(name: str, fused: type):
    kind = getattr(dist, name)
    assert not issubclass(kind, fused)
    with accelerate():
        assert getattr(dist, name) is kind
        assert issubclass(kind, fused) and issubclass(kind, TorchDistributionMixin)
    assert not issubclass(kind, fused)


def test_nesting_closing_twice_and_errors():
    outer = accelerate()
    with accelerate("Normal") as inner:
        assert inner.names == ("Normal",)
    inner.close()
    assert issubclass(Normal, fastvi.distributions.Normal)
    with pytest.raises(ZeroDivisionError), accelerate():
        _ = 1 / 0
    assert issubclass(Normal, fastvi.distributions.Normal)
    outer.close()
    outer.close()
    assert not issubclass(Normal, fastvi.distributions.Normal)
    with accelerate("Normal"):
        assert not issubclass(Bernoulli, fastvi.distributions.Bernoulli)


def test_objects_and_subclasses_of_before_and_after():
    loc, x = torch.zeros(4, 3), torch.randn(4, 3)
    early, own = Normal(loc, 1.0).to_event(1), Shifted(loc, 1.0)
    expected = early.log_prob(x), own.log_prob(x), own.to_event(1).log_prob(x)
    with accelerate():
        late = Normal(loc, 1.0).to_event(1)
        assert isinstance(late.base_dist, Normal) and isinstance(early.base_dist, Normal)
        assert isinstance(late.base_dist, fastvi.distributions.Normal)
        for d in (early, late):
            torch.testing.assert_close(d.log_prob(x), expected[0])
        # The kernel that sums over the event does not go round a subclass's own log_prob.
        torch.testing.assert_close(own.log_prob(x), expected[1])
        torch.testing.assert_close(own.to_event(1).log_prob(x), expected[2])
    torch.testing.assert_close(late.log_prob(x), expected[0])
    gaps = torch.where(x > 0, x, float("nan"))
    masked = NanMaskedNormal(loc, torch.ones(4, 3)).to_event(1).log_prob(gaps)
    with accelerate():
        ours = NanMaskedNormal(loc, torch.ones(4, 3)).to_event(1).log_prob(gaps)
    torch.testing.assert_close(ours, masked)


POSITIVE = torch.tensor([0.3, 1.7, 4.0])
MAKES = [
    pytest.param(lambda: dist.Normal(POSITIVE, POSITIVE), id="Normal"),
    pytest.param(lambda: dist.Normal(0.0, 1.0).expand([3]), id="Normal of numbers"),
    pytest.param(lambda: dist.Laplace(POSITIVE, POSITIVE), id="Laplace"),
    pytest.param(lambda: dist.Bernoulli(logits=POSITIVE), id="Bernoulli of logits"),
    pytest.param(lambda: dist.Bernoulli(POSITIVE / 5), id="Bernoulli of probs"),
    pytest.param(lambda: dist.Poisson(POSITIVE), id="Poisson"),
    pytest.param(lambda: dist.Poisson(POSITIVE, is_sparse=True), id="sparse Poisson"),
    pytest.param(lambda: dist.Categorical(POSITIVE.expand(3, 3)), id="Categorical"),
    pytest.param(lambda: dist.NegativeBinomial(POSITIVE, logits=-POSITIVE), id="NegativeBinomial"),
    pytest.param(lambda: dist.NegativeBinomial(POSITIVE, POSITIVE / 5), id="its probs"),
]


@pytest.mark.parametrize("make", MAKES)
def test_each_of_them_before_and_after_expanded_and_copied(make):
    early = make()
    x = early.sample()
    expected = early.log_prob(x)
    torch.testing.assert_close(fused_copy(early).log_prob(x), expected)
    event = make().to_event(1)
    torch.testing.assert_close(fused_copy(event).log_prob(x), expected.sum())
    with accelerate():
        for d in (early, make(), early.expand([2, 3]), make().expand([2, 3])):
            torch.testing.assert_close(d.log_prob(x), expected.expand(d.batch_shape))
            torch.testing.assert_close(
                d.to_event(1).log_prob(x), expected.expand(d.batch_shape).sum(-1)
            )
            assert d.sample().shape == d.batch_shape


def test_programs_that_differentiate_twice():
    """AutoLaplaceApproximation takes a Hessian, Newton's step too: of the posterior, both exact."""
    x = torch.tensor([0.5, 1.5, -0.2, 2.0], dtype=torch.float64)

    def model() -> None:
        loc = pyro.sample("loc", dist.Normal(torch.zeros(()).double(), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    with accelerate():
        guide = AutoLaplaceApproximation(model)
        guide()
        posterior = guide.laplace_approximation().get_posterior()
        torch.testing.assert_close(posterior.variance, torch.full((1,), 1 / 5.0).double())
        start = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        (mode,), variance = newton_step(-dist.Normal(start, 1.0).to_event(1).log_prob(x[:1]), start)
        torch.testing.assert_close(mode, x[0])
        torch.testing.assert_close(variance, torch.ones(1, 1).double())


COUNTS = torch.tensor([0.0, 2.0, 1.0], dtype=torch.float64)
# Parameters, and the value where it may be, are functions of each other.
DENSITIES = {
    "Normal": lambda w: dist.Normal(w.sin(), w.exp()).to_event(1).log_prob(w * w),
    "Laplace": lambda w: dist.Laplace(w.sin(), w.exp()).log_prob(w * w),
    "Bernoulli of logits": lambda w: dist.Bernoulli(logits=w.sin()).log_prob(COUNTS.clamp(0, 1)),
    "Bernoulli of probs": lambda w: dist.Bernoulli(w.sigmoid()).log_prob(COUNTS.clamp(0, 1)),
    "Poisson": lambda w: dist.Poisson(w.exp()).to_event(1).log_prob(COUNTS),
    "NegativeBinomial": lambda w: dist.NegativeBinomial(w.exp(), logits=w.sin()).log_prob(COUNTS),
    "Categorical": lambda w: dist.Categorical(logits=torch.stack([w, w * w])).log_prob(
        COUNTS[1:].long()
    ),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_second_and_third_derivatives_are_those_of_torch(name: str):
    w = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64, requires_grad=True)

    def derivatives() -> list[Tensor]:
        found = [DENSITIES[name](w)]
        for _ in range(3):
            (grad,) = torch.autograd.grad(found[-1].sum(), w, create_graph=True)
            found.append(grad.square())
        return found

    theirs = derivatives()
    with accelerate():
        ours = derivatives()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


def test_second_derivatives_of_many_probabilities():
    probs = torch.linspace(0.01, 0.99, 3 * 2**17, dtype=torch.float64).reshape(3, -1)
    probs.requires_grad_()
    x = (torch.rand(2**17) < 0.5).double()

    def second() -> Tensor:
        loss = dist.Bernoulli(probs).to_event(1).log_prob(x).sum()
        (grad,) = torch.autograd.grad(loss, probs, create_graph=True)
        return torch.autograd.grad(grad.sum(), probs)[0]

    theirs = second()
    with accelerate():
        assert "_LogProb" in str(dist.Bernoulli(probs).to_event(1).log_prob(x).grad_fn)
        ours = second()
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_kl_divergence_and_enumeration_go_on():
    p, q = dist.Normal(0.0, 1.0), dist.Normal(1.0, 2.0)
    expected = torch.distributions.kl_divergence(p, q)
    logits = torch.randn(5, 3)
    support = dist.Categorical(logits=logits).enumerate_support(expand=False)
    rows = dist.Categorical(logits=logits).log_prob(support)
    with accelerate():
        kl = torch.distributions.kl_divergence(dist.Normal(0.0, 1.0), dist.Normal(1.0, 2.0))
        torch.testing.assert_close(kl, expected)
        c = dist.Categorical(logits=logits)
        torch.testing.assert_close(c.log_prob(c.enumerate_support(expand=False)), rows)


def program(x: Tensor, counts: Tensor, with_bit: bool):
    weight = torch.full((2, 6), 0.3)

    def model() -> None:
        w = pyro.param("w", weight)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            s = pyro.sample("s", dist.Laplace(0.0, torch.ones(len(x))))
            b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.4))) if with_bit else 0.0
            pyro.sample("x", Bernoulli(logits=z @ w).to_event(1), obs=x)
            pyro.sample("probs", Bernoulli(probs=(z @ w).sigmoid()).to_event(1), obs=x)
            pyro.sample("n", dist.Poisson((0.3 * s + 0.1 * z[..., 0]).exp()), obs=counts)
            pyro.sample("c", dist.Categorical(logits=z), obs=(counts > 1).long())
            pyro.sample("y", dist.Normal(b + s, 1.0), obs=counts)

    def guide() -> None:
        loc = pyro.param("loc", torch.full((len(x), 2), 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", Normal(loc, 0.7).to_event(1))
            pyro.sample("s", Normal(loc.sum(-1), 0.5))
            # What costs depend on a sample that has no derivative, TraceGraph_ELBO must see.
            if with_bit:
                pyro.sample("b", Bernoulli(logits=pyro.param("logit", torch.tensor(0.2))))

    return model, guide


@pytest.mark.parametrize(
    "elbo",
    [
        Trace_ELBO(7, 1, vectorize_particles=True),
        TraceGraph_ELBO(3, 1, vectorize_particles=True),
        TraceMeanField_ELBO(),
        RenyiELBO(0, 7, 1, vectorize_particles=True),
    ],
    ids=lambda elbo: type(elbo).__name__,
)
@pytest.mark.filterwarnings("ignore:.*KL divergence.*")
def test_unmodified_programs_have_the_same_losses_and_gradients_at_the_same_seed(elbo):
    x, counts = (torch.rand(5, 6) < 0.4).float(), torch.tensor([0.0, 1.0, 2.0, 3.0, 1.0])
    model, guide = program(x, counts, with_bit=not isinstance(elbo, TraceMeanField_ELBO))
    answers = []
    for fused in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(1)
        with accelerate() if fused else torch.enable_grad():
            loss = elbo.loss_and_grads(model, guide)
        grads = [p.grad for p in pyro.get_param_store()._params.values()]
        answers.append((torch.tensor(loss), *grads))
    for ours, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_validation_says_the_same():
    for fused in (False, True):
        with accelerate() if fused else torch.enable_grad():
            with pytest.raises(ValueError, match="parameter scale .* to satisfy the constraint"):
                dist.Normal(torch.zeros(3), -torch.ones(3))
            with pytest.raises(ValueError, match="Expected value argument .* within the support"):
                dist.Bernoulli(logits=torch.zeros(3)).to_event(1).log_prob(torch.full((3,), 0.5))
            with pyro.distributions.validation_enabled(False):
                dist.Normal(torch.zeros(3), -torch.ones(3))


def test_quick_checks_leave_a_programs_distributions_as_they_are():
    before = list(COERCIONS)
    x = torch.tensor([1.0, 0.0])
    with quick_checks():
        found = [dist.Normal(x, 1.0), dist.Bernoulli(0.5 * x), dist.Poisson(x, validate_args=False)]
        with pytest.raises(ValueError, match=r"scale .* of distribution Normal\(.*constraint"):
            dist.Normal(x, x)
        with pytest.raises(ValueError, match="Either `probs` or `logits`"):
            dist.Bernoulli(x, x)
    assert before == COERCIONS
    plain = [dist.Normal(x, 1.0), dist.Bernoulli(0.5 * x), dist.Poisson(x, validate_args=False)]
    for ours, theirs in zip(found, plain, strict=True):
        assert type(ours) is type(theirs) and vars(ours).keys() == vars(theirs).keys()
        for fn in (ours.expand((3, 2)), ours.to_event(1), ours):
            assert fn.log_prob(fn.sample()).shape == fn.batch_shape
        assert torch.equal(ours.log_prob(x), theirs.log_prob(x))
