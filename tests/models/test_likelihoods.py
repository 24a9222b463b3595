"""Likelihoods by name, by class and by function: torch's and scipy's numbers, draws, bad input."""

from __future__ import annotations

import math

import numpy
import pytest
import scipy.stats
import torch
from torch import nn
from torch.distributions import Exponential, Independent, Normal, StudentT

import fastvi
from fastvi import objectives

FEATURES, LATENT, BATCH, K = 5, 2, 6, 7
CLASSES = 4


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def counts() -> torch.Tensor:
    return torch.poisson(torch.full((BATCH, FEATURES), 2.0), generator=seeded()).double()


def reals() -> torch.Tensor:
    return torch.randn(BATCH, FEATURES, generator=seeded()).double()


def output(width: int = FEATURES) -> torch.Tensor:
    return 0.7 * torch.randn(K, BATCH, width, generator=seeded(1)).double()


THETA = torch.linspace(0.3, 4.0, FEATURES).double()


def of_scipy(name: str, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    value, given = x.numpy(), out.numpy()
    theta = THETA.numpy()
    if name == "laplace":
        density = scipy.stats.laplace.logpdf(value, given, theta)
    elif name == "gaussian":
        density = scipy.stats.norm.logpdf(value, given, theta)
    elif name == "gaussian heads":
        loc, log_scale = numpy.split(given, 2, -1)
        density = scipy.stats.norm.logpdf(value, loc, numpy.exp(log_scale))
    elif name == "negative binomial":
        density = scipy.stats.nbinom.logpmf(value, theta, theta / (theta + numpy.exp(given)))
    elif name == "negative binomial heads":
        mean, dispersion = numpy.split(numpy.exp(given), 2, -1)
        density = scipy.stats.nbinom.logpmf(value, dispersion, dispersion / (dispersion + mean))
    else:
        log_mean, *middle, gate = numpy.split(given, out.shape[-1] // FEATURES, -1)
        dispersion = numpy.exp(middle[0]) if middle else theta
        mean, zero = numpy.exp(log_mean), 1 / (1 + numpy.exp(-gate))
        pmf = scipy.stats.nbinom.pmf(value, dispersion, dispersion / (dispersion + mean))
        density = numpy.log(zero * (value == 0) + (1 - zero) * pmf)
    return torch.from_numpy(density).sum(-1)


FAMILIES = {
    "gaussian": (lambda: fastvi.GaussianLikelihood(THETA), reals, 1),
    "gaussian heads": (lambda: fastvi.GaussianLikelihood(None), reals, 2),
    "laplace": (lambda: fastvi.LaplaceLikelihood(THETA, learned=True), reals, 1),
    "negative binomial": (lambda: fastvi.NegativeBinomialLikelihood(THETA), counts, 1),
    "negative binomial heads": (lambda: fastvi.NegativeBinomialLikelihood(None), counts, 2),
    "zinb": (lambda: fastvi.ZeroInflatedNegativeBinomialLikelihood(THETA), counts, 2),
    "zinb heads": (lambda: fastvi.ZeroInflatedNegativeBinomialLikelihood(None), counts, 3),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_densities_are_those_of_scipy(name: str):
    make, data, heads = FAMILIES[name]
    likelihood, x, out = make(), data(), output(heads * FEATURES)
    # A sum of F terms, each of a few roundings of float64.
    found = likelihood.log_prob(x, out, event_dims=1)
    torch.testing.assert_close(found, of_scipy(name, x, out), rtol=1e-11, atol=1e-11)
    assert likelihood.output_shape(x.shape[1:]) == out.shape[2:]
    by_distribution = likelihood.distribution(out).log_prob(x).sum(-1)
    torch.testing.assert_close(found, by_distribution)


@pytest.mark.parametrize("name", FAMILIES)
def test_draws_have_the_mean_and_the_variance_of_the_distribution(name: str):
    make, _, heads = FAMILIES[name]
    likelihood, out = make(), output(heads * FEATURES)[0, 0]
    p = likelihood.distribution(out)
    torch.testing.assert_close(likelihood.mean(out), p.mean)
    draws = likelihood.draw(out.expand(100_000, -1), seeded(3))
    variance = p.variance
    assert draws.dtype == out.dtype
    error = (draws.mean(0) - p.mean).abs() / (variance / 100_000).sqrt()
    # Of 5 features, at a chance of 1e-6 each.
    assert error.max() < 5
    fourth = (draws - p.mean).pow(4).mean(0)
    spread = ((fourth - variance**2).clamp(min=0.0) / 100_000).sqrt()
    assert ((draws.var(0) - variance).abs() < 5 * spread + 1e-3 * variance).all()
    again = likelihood.draw(out.expand(100_000, -1), seeded(3))
    assert torch.equal(draws, again)


def categorical_vae() -> fastvi.VAE:
    torch.manual_seed(0)
    decoder = nn.Sequential(
        nn.Linear(LATENT, FEATURES * CLASSES), nn.Unflatten(1, (FEATURES, CLASSES))
    )
    return fastvi.VAE(nn.Linear(FEATURES, 2 * LATENT), decoder, likelihood="categorical").double()


def test_categorical_is_that_of_torch():
    vae = categorical_vae()
    x = torch.randint(CLASSES, (BATCH, FEATURES), generator=seeded())
    z = torch.randn(K, BATCH, LATENT, generator=seeded(1)).double()
    logits = vae.decode(z)
    expected = torch.distributions.Categorical(logits=logits).log_prob(x).sum(-1)
    torch.testing.assert_close(vae.log_likelihood(x.double(), z), expected)
    torch.testing.assert_close(vae.log_likelihood(x, z), expected)
    assert torch.equal(vae.likelihood.mean(logits), logits.argmax(-1).double())
    vae.loss(x.double(), fastvi.IWLBLoss(K)).backward()
    draws = vae.likelihood.draw(logits[0, 0].expand(50_000, -1, -1), seeded(2))
    shares = torch.stack([(draws == c).double().mean(0) for c in range(CLASSES)], -1)
    probs = logits[0, 0].softmax(-1)
    assert ((shares - probs).abs() < 5 * (probs * (1 - probs) / 50_000).sqrt()).all()


def test_classes_may_be_integers_for_an_encoder_that_takes_them():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows, self.out = nn.Embedding(CLASSES, 3), nn.Linear(3 * FEATURES, 2 * LATENT)

        def forward(self, x):
            return self.out(self.rows(x).flatten(1))

    vae = fastvi.VAE(Encoder(), categorical_vae().float().decoder, likelihood="categorical")
    x = torch.randint(CLASSES, (BATCH, FEATURES), generator=seeded())
    vae.loss(x, fastvi.IWLBLoss(K)).backward()
    assert vae.log_evidence(x, 9, chunk_size=4).shape == (BATCH,)
    assert vae.reconstruct(x).shape == x.shape


@pytest.mark.parametrize(
    ("name", "width", "shape"),
    [
        ("negative_binomial", FEATURES, (FEATURES,)),
        ("zero_inflated_negative_binomial", 2 * FEATURES, (FEATURES,)),
        ("laplace", FEATURES, None),
    ],
    ids=lambda value: str(value),
)
def test_by_name_a_dispersion_of_each_feature_is_learned(name, width, shape):
    vae = fastvi.VAE(nn.Linear(FEATURES, 2 * LATENT), nn.Linear(LATENT, width), likelihood=name)
    learned = {key: value.shape for key, value in vae.likelihood.named_parameters()}
    assert learned == ({} if shape is None else {"log_dispersion": torch.Size(shape)})
    x = counts().float()
    vae.loss(x, fastvi.IWLBLoss(K)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())
    assert vae.sample(3).shape == (3, FEATURES) == vae.sample(3, mean=True).shape
    assert vae.reconstruct(x).shape == x.shape


def test_a_learned_dispersion_reaches_that_of_the_data():
    theta, mean = 0.6, 4.0
    law = torch.distributions.Gamma(theta, theta / mean)
    torch.manual_seed(0)
    x = torch.poisson(law.sample((4000, 3)))
    likelihood = fastvi.NegativeBinomialLikelihood(torch.full((3,), 5.0))
    # q is the prior: the latent explains nothing of counts that are independent.
    encoder = lambda x: 2 * (torch.zeros(len(x), 1),)  # noqa: E731
    vae = fastvi.VAE(encoder, nn.Linear(1, 3), likelihood=likelihood)
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.05)
    for batch in x.split(50) * 2:
        optimizer.zero_grad()
        vae.loss(batch, fastvi.IWLBLoss(4)).backward()
        optimizer.step()
    torch.testing.assert_close(
        likelihood.dispersion.detach(), torch.full((3,), theta), rtol=0.35, atol=0.0
    )


# ---- functions and classes of one's own ----------------------------------------------------------
def student(out: torch.Tensor) -> StudentT:
    return StudentT(4.0, *out.chunk(2, -1))


class Positive(fastvi.Likelihood):
    def distribution(self, output):
        return Exponential(output.exp())


class PerFeature(nn.Module):
    """A function with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(FEATURES))

    def forward(self, out):
        return Independent(Normal(out, self.log_scale.exp()), 1)


def positive_heads() -> nn.Module:
    return nn.Sequential(nn.Linear(LATENT, 2 * FEATURES), nn.Softplus())


@pytest.mark.parametrize(
    ("likelihood", "decoder", "density"),
    [
        (student, positive_heads, lambda x, out: student(out).log_prob(x).sum(-1)),
        (
            Positive(),
            lambda: nn.Linear(LATENT, FEATURES),
            lambda x, out: (out - out.exp() * x).sum(-1),
        ),
        (
            PerFeature(),
            lambda: nn.Linear(LATENT, FEATURES),
            lambda x, out: Normal(out, 1.0).log_prob(x).sum(-1),
        ),
    ],
    ids=["function", "class", "module"],
)
def test_a_distribution_of_ones_own(likelihood, decoder, density):
    torch.manual_seed(0)
    vae = fastvi.VAE(nn.Linear(FEATURES, 2 * LATENT), decoder(), likelihood=likelihood)
    x, z = torch.rand(BATCH, FEATURES), torch.randn(K, BATCH, LATENT)
    torch.testing.assert_close(vae.log_likelihood(x, z), density(x, vae.decode(z)))
    vae.loss(x, fastvi.IWLBLoss(K)).backward()
    assert all(p.grad is not None for p in vae.parameters())
    first = vae.sample(4, generator=seeded(5))
    assert first.shape == (4, FEATURES) and torch.equal(first, vae.sample(4, generator=seeded(5)))
    assert vae.reconstruct(x).shape == x.shape
    layer = fastvi.StochasticLayer("gaussian", LATENT, guide=nn.Linear(FEATURES, 2 * LATENT))
    deep = fastvi.HierarchicalVAE([layer], vae.decoder, likelihood=likelihood)
    deep.loss(x, objectives.IWLB(K)).backward()


def test_a_function_draws_from_torchs_generator_without_one():
    vae = fastvi.VAE(nn.Linear(FEATURES, 2 * LATENT), positive_heads(), likelihood=student)
    torch.manual_seed(3)
    first, second = vae.sample(2), vae.sample(2)
    torch.manual_seed(3)
    assert torch.equal(first, vae.sample(2)) and not torch.equal(first, second)


def test_an_event_of_several_dimensions_of_a_function():
    decoder = nn.Sequential(nn.Linear(LATENT, 6), nn.Unflatten(1, (2, 3)))
    encoder = nn.Sequential(nn.Flatten(1), nn.Linear(6, 2 * LATENT))
    vae = fastvi.VAE(encoder, decoder, likelihood=lambda out: Independent(Normal(out, 1.0), 1))
    same = fastvi.VAE(encoder, decoder, likelihood="gaussian")
    x, z = torch.randn(BATCH, 2, 3), torch.randn(K, BATCH, LATENT)
    torch.testing.assert_close(vae.log_likelihood(x, z), same.log_likelihood(x, z))


# ---- bad input -----------------------------------------------------------------------------------
def vae_of(likelihood, width: int = FEATURES) -> fastvi.VAE:
    return fastvi.VAE(
        nn.Linear(FEATURES, 2 * LATENT), nn.Linear(LATENT, width), likelihood=likelihood
    )


def with_checks(kind, **options):
    return lambda x: vae_of(kind(validate_args=True, **options)).log_weights(x, 2)


ONES = torch.ones(BATCH, FEATURES)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        pytest.param(
            lambda: with_checks(fastvi.NegativeBinomialLikelihood)(0.5 * ONES), ValueError,
            "expected x to be counts, whole numbers from 0 on, got fractions", id="fractions",
        ),
        pytest.param(
            lambda: with_checks(fastvi.NegativeBinomialLikelihood)(-ONES), ValueError,
            "value to be at least 0, got a smallest value of -1", id="negative counts",
        ),
        pytest.param(
            lambda: with_checks(fastvi.PoissonLikelihood)(math.nan * ONES), ValueError,
            "finite", id="NaN counts",
        ),
        pytest.param(
            lambda: vae_of("zero_inflated_negative_binomial", 2 * FEATURES).log_weights(
                torch.ones(BATCH, FEATURES)[:, :4], 2
            ), RuntimeError, "mat1 and mat2|shapes", id="encoder shape",
        ),
        pytest.param(
            lambda: vae_of(fastvi.ZeroInflatedNegativeBinomialLikelihood()).log_weights(ONES, 2),
            ValueError,
            r"what ZeroInflatedNegativeBinomialLikelihood takes for x of shape \[6, 5\], shape "
            r"\(rows, 10\), got \(rows, 5\)", id="heads",
        ),
        pytest.param(
            lambda: vae_of("categorical").log_weights(ONES, 2), ValueError,
            r"shape \(rows, 5, C\), got \(rows, 5\)", id="no classes",
        ),
        pytest.param(
            lambda: categorical_vae_checked().log_weights(9 * ONES, 2), ValueError,
            r"value to lie in \[0, 3\], got values from 9 to 9", id="class out of range",
        ),
        pytest.param(
            lambda: categorical_vae_checked().log_weights(0.5 * ONES, 2), ValueError,
            "expected x to be the numbers of classes, got fractions", id="fraction of a class",
        ),
        pytest.param(
            lambda: vae_of("negative_binomial").log_weights(ONES.long(), 2), TypeError,
            "expected x to be floating-point, got torch.int64", id="integer counts",
        ),
        pytest.param(
            lambda: fastvi.VAE(nn.Linear(5, 4), lambda z: z, likelihood="negative_binomial"),
            ValueError, r"does not end in a Linear; give likelihood=NegativeBinomialLikelihood\(",
            id="unknown features",
        ),
        pytest.param(
            lambda: vae_of("zero_inflated_negative_binomial"), ValueError,
            "of 2 numbers for each feature .* got one of 5 features", id="odd features",
        ),
        pytest.param(
            lambda: fastvi.NegativeBinomialLikelihood(0.0), ValueError,
            "dispersion to be positive and finite, got 0.0", id="dispersion of zero",
        ),
        pytest.param(
            lambda: fastvi.LaplaceLikelihood("wide"), TypeError,
            "LaplaceLikelihood: expected scale to be a number or a tensor, got str", id="scale",
        ),
        pytest.param(
            lambda: fastvi.GaussianLikelihood(None, learned=True), ValueError,
            "learned to be False where scale is None", id="learned output",
        ),
        pytest.param(
            lambda: vae_of(3), TypeError, "a name, a fastvi.Likelihood, or a function .* got int",
            id="a number",
        ),
        pytest.param(
            lambda: vae_of(fastvi.PoissonLikelihood), TypeError,
            "got the class PoissonLikelihood", id="a class",
        ),
        pytest.param(
            lambda: vae_of(lambda out: out).log_weights(ONES, 2), TypeError,
            "DistributionLikelihood: expected the decoder's output to become a .*got Tensor",
            id="no distribution",
        ),
        pytest.param(
            lambda: vae_of(lambda out: Normal(out[..., :3], 1.0)).log_weights(ONES, 2), ValueError,
            r"together are \[2, 6, 5\], got batch shape \[2, 6, 3\]", id="shape of the function",
        ),
        pytest.param(
            lambda: vae_of(lambda out: Independent(Normal(out, 1.0), 2)).log_weights(ONES, 2),
            ValueError, "at most one datum", id="an event over the batch",
        ),
        pytest.param(
            lambda: vae_of(lambda out: Exponential(out.exp())).log_weights(-ONES, 2), ValueError,
            "expected x to be in the support of Exponential", id="support",
        ),
        pytest.param(
            lambda: vae_of(fastvi.Likelihood()).log_weights(ONES, 2), NotImplementedError,
            "expected this likelihood to define distribution, or log_prob", id="no density",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


def categorical_vae_checked() -> fastvi.VAE:
    vae = categorical_vae().float()
    vae.likelihood.validate_args = True
    return vae
