"""What the VAE and its likelihoods refuse, and in which words."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from vae_setting import binary, small_vae

import fastvi


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (TypeError, "expected encoder", lambda: fastvi.VAE(None, nn.Linear(3, 6))),
        (
            ValueError,
            "'bernoulli', .* or 'zero_inflated_negative_binomial', got 'student'",
            lambda: small_vae(likelihood="student"),
        ),
        (TypeError, "expected likelihood", lambda: small_vae(likelihood=3)),
        (TypeError, "expected prior", lambda: small_vae(prior=torch.zeros(3))),
        (ValueError, r"prior loc .* \(D,\)", lambda: small_vae(prior=(torch.zeros(5, 3),) * 2)),
        (
            ValueError,
            "result of a computation",
            lambda: small_vae(prior=(nn.Parameter(torch.zeros(3)) * 2, torch.zeros(3))),
        ),
        (
            TypeError,
            "prior loc to be floating-point, got torch.int64",
            lambda: small_vae(prior=(torch.zeros(3).long(),) * 2),
        ),
        (
            TypeError,
            "prior log_var to be floating-point, got torch.complex64",
            lambda: small_vae(prior=(torch.zeros(3), torch.zeros(3) * 1j)),
        ),
        (ValueError, "latent_features", lambda: small_vae(latent_features=0)),
        (
            ValueError,
            r"prior to be of shape \(4,\), as latent_features says, got \(3,\)",
            lambda: small_vae(latent_features=4, prior=(torch.zeros(3),) * 2),
        ),
        (TypeError, "expected x", lambda: small_vae().log_evidence([1.0], 3)),
        (
            TypeError,
            "floating-point, got torch.int64",
            lambda: small_vae().encode(torch.ones(2, 6).long()),
        ),
        (ValueError, "num_samples", lambda: small_vae().log_weights(binary(2, 6), 0)),
        (ValueError, "num_samples", lambda: small_vae().log_evidence(binary(2, 6), -1)),
        (ValueError, "num_samples", lambda: small_vae().log_evidence(binary(2, 6), 2**40)),
        (ValueError, "chunk_size", lambda: small_vae().log_evidence(binary(2, 6), 3, chunk_size=4)),
        (TypeError, "num_samples", lambda: small_vae().log_evidence(binary(2, 6), 1.5)),
        (ValueError, "chunk_size", lambda: small_vae().log_evidence(binary(2, 6), 3, chunk_size=0)),
        (ValueError, "expected num_samples to be from 1", lambda: small_vae().sample(0)),
        (
            ValueError,
            "take the 2 latent features of the model, got one that takes 3",
            lambda: small_vae(prior=(torch.zeros(2), torch.zeros(2))).sample(4),
        ),
        (
            ValueError,
            "take the 4 latent features of the model, got one that takes 3",
            lambda: fastvi.VAE(
                nn.Linear(6, 8), nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 6)), latent_features=4
            ).sample(4),
        ),
        (
            TypeError,
            "expected objective to be a loss, .* got 'iwlb'",
            lambda: small_vae().loss(binary(2, 6), "iwlb"),
        ),
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
            TypeError,
            "scale to be real, got torch.complex64",
            lambda: fastvi.GaussianLikelihood(torch.ones(3) * 1j),
        ),
        (
            TypeError,
            "IWLBLoss: expected prior loc to be floating-point, got torch.int64",
            lambda: fastvi.IWLBLoss(num_samples=2, prior=(torch.zeros(3).long(),) * 2),
        ),
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


@pytest.mark.parametrize(
    ("likelihood", "value"),
    [
        (fastvi.BernoulliLikelihood(validate_args=True), torch.rand(6)),
        (fastvi.GaussianLikelihood(validate_args=True), torch.rand(6)),
        (fastvi.PoissonLikelihood(validate_args=True), torch.ones(6)),
    ],
    ids=["bernoulli", "gaussian", "poisson"],
)
@pytest.mark.parametrize("inner", [lambda f: f, torch.func.grad], ids=["vmap", "vmap_of_grad"])
def test_checks_of_values_say_that_vmap_hides_them(likelihood, value, inner):
    def log_px(output):
        return likelihood.log_prob(value, output, event_dims=1).sum()

    with pytest.raises(ValueError, match=r"_log_prob: expected validate_args to be False under"):
        torch.func.vmap(inner(log_px))(torch.randn(3, 1, 6))
    likelihood.validate_args = False
    try:
        assert torch.func.vmap(inner(log_px))(torch.randn(3, 1, 6)).shape[0] == 3
    finally:
        likelihood.validate_args = True


def test_checks_of_classes_say_that_vmap_hides_them():
    def log_p(logits):
        return fastvi.ops.categorical_log_prob(torch.tensor(1), logits, validate_args=True)

    with pytest.raises(ValueError, match="categorical_log_prob: expected validate_args to be"):
        torch.func.vmap(log_p)(torch.randn(3, 4))
