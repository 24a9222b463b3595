"""The VAE: chunks and keys, shapes, likelihoods, priors."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from vae_setting import FEATURES, LATENT, binary, small_vae

import fastvi
from fastvi.models.likelihoods import Likelihood
from fastvi.ops import new_key

# ---- chunks and keys ----------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 100, "auto"], ids=lambda size: f"chunk{size}")
def test_evidence_does_not_depend_on_the_chunk_size(chunk_size):
    vae, x, key = small_vae().double(), binary(11, FEATURES).double(), new_key()
    whole = fastvi.ops.iwlb(vae.log_weights(x, 100, key=key)).detach()
    torch.testing.assert_close(vae.log_evidence(x, 100, chunk_size=chunk_size, key=key), whole)


def test_same_key_same_bits_and_another_key_others():
    vae, x, key = small_vae(), binary(11, FEATURES), new_key()
    first = vae.log_evidence(x, 50, key=key)
    assert torch.equal(first, vae.log_evidence(x, 50, key=key))
    assert not torch.equal(first, vae.log_evidence(x, 50))
    objective = fastvi.IWLBLoss(num_samples=5)
    assert torch.equal(vae.loss(x, objective, key=key), vae(x, objective, key=key))


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


def test_poisson_is_that_of_torch():
    vae, x = small_vae(likelihood="poisson"), 3.0 * binary(5, FEATURES)
    z = torch.randn(7, 5, LATENT)
    rate = vae.decoder(z).exp()
    expected = torch.distributions.Poisson(rate).log_prob(x).sum(-1)
    torch.testing.assert_close(vae.log_likelihood(x, z), expected)
    torch.testing.assert_close(vae.reconstruct(x), vae.decoder(vae.encode(x)[0]).exp().detach())
    # Independent counts of one rate: their mean is it to 4 standard errors.
    counts = fastvi.PoissonLikelihood().draw(torch.full((10_000,), math.log(2.5)))
    assert (counts == counts.round()).all()
    assert abs(counts.mean().item() - 2.5) < 4 * math.sqrt(2.5 / 10_000)


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
        loss = vae.loss(x, objective, key=key)
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


@pytest.mark.parametrize(
    "keep",
    [
        lambda prior: small_vae(prior=prior),
        lambda prior: fastvi.IWLBLoss(num_samples=2, prior=prior),
        lambda prior: fastvi.ELBOLoss(prior=prior),
    ],
    ids=["VAE", "IWLBLoss", "ELBOLoss"],
)
def test_a_constant_prior_is_a_copy(keep):
    """A checkpoint is loaded into buffers in place: neither the caller's tensor nor the twin."""
    given = torch.zeros(LATENT)
    module = keep((given, given))
    state = copy.deepcopy(module.state_dict())
    state["prior_loc"] += 1.0
    module.load_state_dict(state)
    loc, log_var = module.prior
    assert torch.equal(loc, torch.ones(LATENT))
    assert torch.equal(log_var, torch.zeros(LATENT)) and torch.equal(given, torch.zeros(LATENT))


def test_models_can_be_made_without_memory():
    with torch.device("meta"):
        vae = small_vae(likelihood=fastvi.GaussianLikelihood(0.5, learned=True))
    assert all(value.is_meta for value in vae.state_dict().values())
    other = small_vae(likelihood=fastvi.GaussianLikelihood(0.25, learned=True))
    vae.load_state_dict(other.state_dict(), assign=True)
    x, key = binary(4, FEATURES), new_key()
    assert torch.equal(vae.log_weights(x, 3, key=key), other.log_weights(x, 3, key=key))


def test_samples_follow_a_broadcast_prior():
    vae = small_vae(prior=(torch.tensor(50.0), torch.tensor(-20.0)), likelihood="gaussian")
    means = vae.sample(3, mean=True)
    expected = vae.decoder(torch.full((3, LATENT), 50.0)).detach()
    torch.testing.assert_close(means, expected, rtol=1e-3, atol=1e-2)


def test_a_decoding_of_ones_own_may_take_another_width():
    class Conditional(fastvi.VAE):
        def decode(self, z):
            return super().decode(torch.cat([z, torch.ones_like(z[..., :1])], -1))

    vae = Conditional(
        nn.Linear(FEATURES, 4), nn.Linear(3, FEATURES), prior=(torch.zeros(2), torch.zeros(2))
    )
    assert vae.sample(5).shape == (5, FEATURES)


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
