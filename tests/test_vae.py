"""The VAE: exact answers in a linear-Gaussian model, shapes, likelihoods, priors, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fastvi
from fastvi.likelihoods import Likelihood
from fastvi.ops import new_key

FEATURES, LATENT = 6, 3


class LinearGaussian:
    """A model with a known evidence and posterior, in float64.

    z ~ N(m, S), x = A z + b + s noise.
    """

    def __init__(self, learned_prior: bool = False) -> None:
        generator = torch.Generator().manual_seed(1)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        self.weight, self.bias = draw(FEATURES, LATENT), draw(FEATURES)
        # Orthogonal columns make the exact posterior diagonal.
        self.weight = torch.linalg.qr(self.weight).Q * torch.tensor([0.5, 1.0, 2.0]).double()
        self.scale = 0.7
        self.prior_loc = draw(LATENT) if learned_prior else torch.zeros(LATENT).double()
        self.prior_log_var = 0.3 * draw(LATENT) if learned_prior else torch.zeros(LATENT).double()
        self.x = draw(20, FEATURES)
        decoder = nn.Linear(LATENT, FEATURES, dtype=torch.float64)
        decoder.load_state_dict({"weight": self.weight, "bias": self.bias})
        prior = (nn.Parameter(self.prior_loc.clone()), nn.Parameter(self.prior_log_var.clone()))
        self.vae = fastvi.VAE(
            self.posterior,
            decoder,
            likelihood=fastvi.GaussianLikelihood(torch.tensor(self.scale, dtype=torch.float64)),
            prior=prior if learned_prior else None,
        )

    def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        precision = (-self.prior_log_var).exp() + (self.weight**2).sum(0) / self.scale**2
        pull = (x - self.bias) @ self.weight / self.scale**2
        loc = (pull + self.prior_loc * (-self.prior_log_var).exp()) / precision
        return loc, (-precision.log()).expand_as(loc)

    def evidence(self) -> torch.Tensor:
        covariance = (self.weight * self.prior_log_var.exp()) @ self.weight.T
        covariance = covariance + self.scale**2 * torch.eye(FEATURES, dtype=torch.float64)
        mean = self.bias + self.weight @ self.prior_loc
        return torch.distributions.MultivariateNormal(mean, covariance).log_prob(self.x)


@pytest.fixture(params=[False, True], ids=["standard_prior", "learned_prior"])
def model(request) -> LinearGaussian:
    return LinearGaussian(request.param)


def small_vae(**options) -> fastvi.VAE:
    torch.manual_seed(0)
    return fastvi.VAE(nn.Linear(FEATURES, 2 * LATENT), nn.Linear(LATENT, FEATURES), **options)


def binary(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2)).round()


# ---- exact answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [1, 7], ids=["K1", "K7"])
def test_exact_posterior_gives_the_evidence_for_every_k(model, num_samples):
    log_w = model.vae.log_weights(model.x, num_samples)
    assert log_w.shape == (num_samples, 20)
    torch.testing.assert_close(log_w, model.evidence().expand(num_samples, -1))
    torch.testing.assert_close(model.vae.log_evidence(model.x, num_samples), model.evidence())


@pytest.mark.parametrize(
    "objective",
    [
        fastvi.IWLBLoss(num_samples=5),
        fastvi.IWLBLoss(num_samples=5, estimator="iwae"),
        fastvi.IWLBLoss(num_samples=5, estimator="stl"),
        fastvi.ELBOLoss(num_samples=2, kl="monte_carlo"),
    ],
    ids=["dreg", "iwae", "stl", "elbo"],
)
def test_loss_at_the_exact_posterior_is_minus_the_evidence(model, objective):
    loss = model.vae.loss(model.x, objective)
    torch.testing.assert_close(loss, -model.evidence().mean())


def test_analytic_elbo_matches_in_the_mean(model):
    torch.manual_seed(0)
    loss = model.vae.loss(model.x, fastvi.ELBOLoss(num_samples=20_000))
    torch.testing.assert_close(loss, -model.evidence().mean(), rtol=0.0, atol=0.02)


def test_a_wrong_posterior_is_below_the_evidence_and_comes_near_with_k(model):
    exact = model.posterior
    # Wider than the exact one, so that the weights have a finite variance.
    model.vae.encoder = lambda x: (exact(x)[0] + 0.2, exact(x)[1] + 0.7)
    torch.manual_seed(0)
    one, many = (model.vae.log_evidence(model.x, k).mean() for k in (1, 20_000))
    evidence = model.evidence().mean()
    assert one < evidence - 0.1
    torch.testing.assert_close(many, evidence, rtol=0.0, atol=0.02)


def test_model_gradients_are_those_of_the_evidence():
    """At the exact posterior the gradient of the model's parameters has no noise."""
    model = LinearGaussian(learned_prior=True)
    model.vae.loss(model.x, fastvi.IWLBLoss(num_samples=20_000)).backward()
    weight = model.weight.clone().requires_grad_()
    model.weight = weight
    covariance = (weight * model.prior_log_var.exp()) @ weight.T
    covariance = covariance + model.scale**2 * torch.eye(FEATURES, dtype=torch.float64)
    mean = model.bias + weight @ model.prior_loc
    evidence = torch.distributions.MultivariateNormal(mean, covariance).log_prob(model.x)
    (-evidence.mean()).backward()
    torch.testing.assert_close(
        model.vae.decoder.weight.grad, weight.grad, rtol=0.0, atol=0.02 * weight.grad.norm().item()
    )


def test_samples_have_the_moments_of_the_model():
    model = LinearGaussian(learned_prior=True)
    torch.manual_seed(0)
    x = model.vae.sample(200_000)
    assert x.dtype == torch.float64
    covariance = (model.weight * model.prior_log_var.exp()) @ model.weight.T
    covariance = covariance + model.scale**2 * torch.eye(FEATURES, dtype=torch.float64)
    mean = model.bias + model.weight @ model.prior_loc
    torch.testing.assert_close(x.mean(0), mean, rtol=0.0, atol=0.03)
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0.0, atol=0.08)
    means = model.vae.sample(200_000, mean=True)
    noiseless = covariance - model.scale**2 * torch.eye(FEATURES, dtype=torch.float64)
    torch.testing.assert_close(means.T.cov(), noiseless, rtol=0.0, atol=0.08)


# ---- chunks and keys ----------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 100, "auto"], ids=lambda size: f"chunk{size}")
def test_evidence_does_not_depend_on_the_chunk_size(chunk_size):
    vae, x, key = small_vae().double(), binary(11, FEATURES).double(), new_key()
    whole = fastvi.ops.iwlb(vae.log_weights(x, 100, key=key)).detach()
    torch.testing.assert_close(vae.log_evidence(x, 100, chunk_size, key=key), whole)


def test_same_key_same_bits_and_another_key_others():
    vae, x, key = small_vae(), binary(11, FEATURES), new_key()
    first = vae.log_evidence(x, 50, key=key)
    assert torch.equal(first, vae.log_evidence(x, 50, key=key))
    assert not torch.equal(first, vae.log_evidence(x, 50))
    objective = fastvi.IWLBLoss(num_samples=5)
    assert torch.equal(vae.loss(x, objective, key), vae(x, objective, key))


def test_offset_continues_the_samples():
    vae, x, key = small_vae().double(), binary(4, FEATURES).double(), new_key()
    whole = vae.log_weights(x, 10, key=key)
    tail = vae.log_weights(x, 6, key=key, sample_offset=4)
    torch.testing.assert_close(tail, whole[4:])


def test_impossible_data_have_evidence_of_minus_infinity():
    class Impossible(Likelihood):
        def log_prob(self, x, output, event_dims):
            return torch.full(output.shape[:-event_dims], -math.inf)

    vae = small_vae(likelihood=Impossible())
    evidence = vae.log_evidence(binary(3, FEATURES), 10, chunk_size=3)
    assert torch.equal(evidence, torch.full((3,), -math.inf))


def test_generator_governs_samples():
    vae = small_vae()
    first, second = (vae.sample(9, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert set(first.unique().tolist()) == {0.0, 1.0}


# ---- networks, likelihoods, priors --------------------------------------------------------------


def test_an_encoder_of_two_tensors_is_the_same_as_one_of_both_joined():
    vae, x, key = small_vae(), binary(5, FEATURES), new_key()
    joined = vae.log_weights(x, 4, key=key)
    other = fastvi.VAE(lambda x: vae.encoder(x).chunk(2, dim=-1), vae.decoder)
    torch.testing.assert_close(other.log_weights(x, 4, key=key), joined)


@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)], ids=str)
def test_any_batch_shape(batch):
    vae, x = small_vae(), binary(*batch, FEATURES)
    assert vae.log_weights(x, 4).shape == (4, *batch)
    assert vae.log_evidence(x, 4).shape == batch
    assert vae.reconstruct(x).shape == x.shape


def test_convolutions_with_an_event_of_three_dimensions():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv2d(1, 4, 3, stride=2), nn.Linear(36, 2 * LATENT)

        def forward(self, x):
            return self.out(self.conv(x).flatten(1))

    decoder = nn.Sequential(
        nn.Unflatten(1, (LATENT, 1, 1)),
        nn.ConvTranspose2d(LATENT, 4, 4),
        nn.BatchNorm2d(4),
        nn.ConvTranspose2d(4, 1, 5),
    )
    vae = fastvi.VAE(Encoder(), decoder)
    x = binary(5, 1, 8, 8)
    # Known from the first layer that has a width, before any batch was seen.
    assert vae.sample(2).shape == (2, 1, 8, 8)
    vae.loss(x, fastvi.IWLBLoss(num_samples=4)).backward()
    assert all(p.grad is not None for p in vae.parameters())
    assert vae.log_weights(x, 4).shape == (4, 5)
    assert vae.reconstruct(x).shape == x.shape


def test_fixed_gaussian_is_the_squared_error():
    vae, x = small_vae(likelihood="gaussian"), binary(5, FEATURES)
    z = torch.randn(7, 5, LATENT)
    expected = -0.5 * ((vae.decoder(z) - x) ** 2).sum(-1) - 0.5 * FEATURES * math.log(2 * math.pi)
    torch.testing.assert_close(vae.log_likelihood(x, z), expected)
    assert not [name for name, _ in vae.named_parameters() if "scale" in name]


def test_bernoulli_is_that_of_torch():
    vae, x = small_vae(), binary(5, FEATURES)
    z = torch.randn(7, 5, LATENT)
    expected = torch.distributions.Bernoulli(logits=vae.decoder(z)).log_prob(x).sum(-1)
    torch.testing.assert_close(vae.log_likelihood(x, z), expected)
    loc = vae.encode(x)[0]
    torch.testing.assert_close(vae.reconstruct(x), vae.decoder(loc).sigmoid().detach())


@pytest.mark.parametrize("shape", [(), (FEATURES,)], ids=["one", "per_feature"])
def test_learned_scale_reaches_that_of_the_data(shape):
    torch.manual_seed(0)
    x = 0.3 * torch.randn(4000, FEATURES)
    likelihood = fastvi.GaussianLikelihood(torch.ones(shape), learned=True)
    vae = small_vae(likelihood=likelihood)
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.05)
    for batch in x.split(50):
        optimizer.zero_grad()
        vae.loss(batch, fastvi.IWLBLoss(num_samples=4)).backward()
        optimizer.step()
    torch.testing.assert_close(
        likelihood.scale.detach(), torch.full(shape, 0.3), rtol=0.15, atol=0.0
    )


@pytest.mark.parametrize(
    "optimizer",
    [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop, torch.optim.AdamW, torch.optim.LBFGS],
    ids=lambda kind: kind.__name__,
)
def test_any_optimizer_raises_the_bound(optimizer):
    prior = (nn.Parameter(torch.zeros(LATENT)), nn.Parameter(torch.zeros(LATENT)))
    vae, key = small_vae(prior=prior), new_key()
    x = binary(1, FEATURES).expand(8, -1)
    # The estimator whose gradient is that of the value at a fixed key, as LBFGS takes for granted.
    objective = fastvi.IWLBLoss(num_samples=4, estimator="iwae")
    steps = optimizer(vae.parameters(), lr=0.01)

    def closure():
        steps.zero_grad()
        loss = vae.loss(x, objective, key)
        loss.backward()
        return loss

    before = {name: value.clone() for name, value in vae.state_dict().items()}
    first = closure().item()
    for _ in range(10):
        steps.step(closure)
    assert closure().item() < first - 0.01
    assert not [
        name for name, value in vae.state_dict().items() if torch.equal(value, before[name])
    ]


def test_state_round_trip():
    make = lambda: small_vae(  # noqa: E731
        likelihood=fastvi.GaussianLikelihood(0.5, learned=True),
        prior=(nn.Parameter(torch.zeros(LATENT)), torch.zeros(LATENT)),
    )
    first, second, x, key = make(), make(), binary(5, FEATURES), new_key()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert not torch.equal(first.log_weights(x, 3, key=key), second.log_weights(x, 3, key=key))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.log_weights(x, 3, key=key), second.log_weights(x, 3, key=key))
    assert {"prior_loc", "prior_log_var", "likelihood.log_scale"} <= set(first.state_dict())
    learned = {name for name, _ in first.named_parameters()}
    assert "prior_loc" in learned and "prior_log_var" not in learned


def test_samples_follow_a_broadcast_prior():
    vae = small_vae(prior=(torch.tensor(50.0), torch.tensor(-20.0)), likelihood="gaussian")
    means = vae.sample(3, mean=True)
    expected = vae.decoder(torch.full((3, LATENT), 50.0)).detach()
    torch.testing.assert_close(means, expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dtypes(dtype):
    vae, x = small_vae().to(dtype), binary(5, FEATURES).to(dtype)
    assert vae.log_evidence(x, 3).dtype == dtype
    assert vae.sample(2).dtype == dtype
    assert vae.loss(x, fastvi.IWLBLoss(num_samples=3)).dtype == dtype


@pytest.mark.cuda
def test_cuda_agrees_with_the_cpu():
    vae, x, key = small_vae(), binary(5, FEATURES), torch.tensor([7, 8])
    expected = vae.log_weights(x, 20, key=key)
    vae, x, key = vae.cuda(), x.cuda(), key.cuda()
    torch.testing.assert_close(
        vae.log_weights(x, 20, key=key).cpu(), expected, rtol=1e-4, atol=1e-4
    )
    vae.loss(x, fastvi.IWLBLoss(num_samples=4)).backward()
    assert vae.sample(3).device.type == "cuda"


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (TypeError, "expected encoder", lambda: fastvi.VAE(None, nn.Linear(3, 6))),
        (
            ValueError,
            "'bernoulli' or 'gaussian', got 'poisson'",
            lambda: small_vae(likelihood="poisson"),
        ),
        (TypeError, "expected likelihood", lambda: small_vae(likelihood=3)),
        (TypeError, "expected prior", lambda: small_vae(prior=torch.zeros(3))),
        (ValueError, r"prior loc .* \(D,\)", lambda: small_vae(prior=(torch.zeros(5, 3),) * 2)),
        (
            ValueError,
            "result of a computation",
            lambda: small_vae(prior=(nn.Parameter(torch.zeros(3)) * 2, torch.zeros(3))),
        ),
        (ValueError, "latent_features", lambda: small_vae(latent_features=0)),
        (TypeError, "expected x", lambda: small_vae().log_evidence([1.0], 3)),
        (
            TypeError,
            "floating-point, got torch.int64",
            lambda: small_vae().encode(torch.ones(2, 6).long()),
        ),
        (ValueError, "num_samples", lambda: small_vae().log_weights(binary(2, 6), 0)),
        (ValueError, "num_samples", lambda: small_vae().log_evidence(binary(2, 6), -1)),
        (ValueError, "num_samples", lambda: small_vae().log_evidence(binary(2, 6), 2**40)),
        (ValueError, "chunk_size", lambda: small_vae().log_evidence(binary(2, 6), 3, 4)),
        (TypeError, "num_samples", lambda: small_vae().log_evidence(binary(2, 6), 1.5)),
        (ValueError, "chunk_size", lambda: small_vae().log_evidence(binary(2, 6), 3, 0)),
        (ValueError, "num_samples", lambda: small_vae().sample(0)),
        (
            ValueError,
            "2 D features",
            lambda: fastvi.VAE(nn.Linear(6, 3), nn.Linear(3, 6)).encode(binary(2, 6)),
        ),
        (
            TypeError,
            "two tensors",
            lambda: fastvi.VAE(lambda x: (x, x, x), nn.Linear(3, 6)).encode(binary(2, 6)),
        ),
        (
            ValueError,
            "keep the batch",
            lambda: fastvi.VAE(lambda x: (x.T, x.T), nn.Linear(2, 6)).encode(binary(2, 6)),
        ),
        (
            ValueError,
            r"\(rows, 6\), got \(rows, 5\)",
            lambda: fastvi.VAE(nn.Linear(6, 6), nn.Linear(3, 5)).log_weights(binary(2, 6), 3),
        ),
        (
            ValueError,
            "tensor of 6 rows",
            lambda: fastvi.VAE(nn.Linear(6, 6), lambda z: z.sum()).log_weights(binary(2, 6), 3),
        ),
        (
            ValueError,
            "latent_features to be known",
            lambda: fastvi.VAE(nn.Linear(6, 6), lambda z: z).sample(3),
        ),
        (
            ValueError,
            "no prior of its own",
            lambda: small_vae().loss(
                binary(2, 6), fastvi.IWLBLoss(num_samples=2, prior=(torch.zeros(3), torch.zeros(3)))
            ),
        ),
        (ValueError, "scale .* positive", lambda: fastvi.GaussianLikelihood(0.0)),
        (ValueError, "scale .* positive", lambda: fastvi.GaussianLikelihood(math.nan)),
        (TypeError, "scale .* number", lambda: fastvi.GaussianLikelihood("wide")),
        (
            ValueError,
            r"\[0, 1\]",
            lambda: small_vae(
                likelihood=fastvi.BernoulliLikelihood(validate_args=True)
            ).log_weights(255 * torch.ones(2, 6), 3),
        ),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)
def test_bad_input_is_named(error, words, call):
    with pytest.raises(error, match=words):
        call()
