"""One contract for all models: the same calls, losses, words, copies and shapes."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import Tensor, nn

import fastvi
from fastvi import objectives

FEATURES, LATENT = 6, 3
KEY = torch.tensor([5, 6])


def x(batch: int = 4) -> Tensor:
    return torch.rand(batch, FEATURES, generator=torch.Generator().manual_seed(2)).round()


def flat(**options) -> fastvi.VAE:
    torch.manual_seed(0)
    return fastvi.VAE(nn.Linear(FEATURES, 2 * LATENT), nn.Linear(LATENT, FEATURES), **options)


def deep(**options) -> fastvi.HierarchicalVAE:
    torch.manual_seed(0)
    first = fastvi.StochasticLayer(
        "gaussian", LATENT, guide=nn.Linear(FEATURES, 2 * LATENT), model=nn.Linear(2, 2 * LATENT)
    )
    second = fastvi.StochasticLayer("gaussian", 2, guide=nn.Linear(LATENT, 4))
    return fastvi.HierarchicalVAE([first, second], nn.Linear(LATENT, FEATURES), **options)


def one_layer() -> fastvi.HierarchicalVAE:
    """The model of ``flat``, with the same numbers."""
    vae = flat()
    layer = fastvi.StochasticLayer("gaussian", LATENT, guide=vae.encoder, name="z")
    return fastvi.HierarchicalVAE([layer], vae.decoder)


MODELS = {"VAE": flat, "HierarchicalVAE": deep}
LOSSES = {
    "dreg": lambda: fastvi.IWLBLoss(4),
    "stl": lambda: fastvi.IWLBLoss(4, "stl"),
    "iwae": lambda: fastvi.IWLBLoss(4, "iwae"),
    "rws": lambda: fastvi.IWLBLoss(4, "rws"),
    "rws_dreg": lambda: fastvi.IWLBLoss(4, "rws_dreg"),
    "renyi": lambda: fastvi.IWLBLoss(4, alpha=0.5),
    "chunks": lambda: fastvi.IWLBLoss(4, chunk_size=2),
    "auto": lambda: fastvi.IWLBLoss(4, chunk_size="auto"),
    "elbo": lambda: fastvi.ELBOLoss(4),
    "elbo monte carlo": lambda: fastvi.ELBOLoss(4, kl="monte_carlo"),
    "elbo stl": lambda: fastvi.ELBOLoss(4, kl="monte_carlo", estimator="stl"),
    "beta": lambda: fastvi.ELBOLoss(4, beta=3.0),
    "beta zero": lambda: fastvi.ELBOLoss(4, beta=0.0),
    "miwae": lambda: fastvi.MIWAELoss(2, 3),
    "miwae iwae": lambda: fastvi.MIWAELoss(2, 3, estimator="iwae"),
    "piwae": lambda: fastvi.PIWAELoss(2, 3),
    "piwae iwae": lambda: fastvi.PIWAELoss(2, 3, estimator="iwae"),
    "ciwae": lambda: fastvi.CIWAELoss(4, 0.3),
    "jackknife": lambda: fastvi.JackknifeLoss(4),
    "jackknife iwae": lambda: fastvi.JackknifeLoss(4, "iwae"),
    "IWLB": lambda: objectives.IWLB(4),
    "ELBO": lambda: objectives.ELBO(4),
    "VIMCO": lambda: objectives.VIMCO(4),
    "Reinforce": lambda: objectives.Reinforce(4),
    "wake-sleep": lambda: objectives.IWLB(4, "rws"),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("model", MODELS)
def test_every_loss_trains_every_model(model: str, name: str):
    network, objective = MODELS[model](), LOSSES[name]()
    loss = network.loss(x(), objective, key=KEY)
    loss.backward()
    assert loss.shape == () and loss.isfinite()
    grads = {key: p.grad for key, p in network.named_parameters()}
    # Without the divergence nothing of the upper layer is in the bound.
    expected = [k for k in grads if not (name == "beta zero" and ("1.guide" in k or "model" in k))]
    assert all(grads[key] is not None and grads[key].isfinite().all() for key in expected)
    bound = network.bound(x(), objective, key=KEY)
    assert bound.shape == (4,)
    torch.testing.assert_close(-bound.mean(), loss)
    assert torch.equal(network(x(), objective, key=KEY), loss)


@pytest.mark.parametrize("name", [n for n in LOSSES if n[0].islower() and n != "auto"])
def test_a_loss_means_the_same_for_one_layer_as_for_a_vae(name: str):
    """Same noise, same numbers: value and every gradient, by the fused way and by the general."""
    vae, network = flat().double(), one_layer().double()
    found = []
    for model in (vae, network):
        loss = model.loss(x().double(), LOSSES[name](), key=KEY)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        # The encoder's weight and bias, and the decoder's, in both.
        assert [tuple(g.shape) for g in grads] == [(6, 6), (6,), (6, 3), (6,)]
        found.append((loss, *grads))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("model", MODELS)
def test_reductions(model: str, reduction: str):
    network = MODELS[model]()
    loss = fastvi.IWLBLoss(4, reduction=reduction)
    bound = network.bound(x(), loss, key=KEY)
    expected = {"mean": -bound.mean(), "sum": -bound.sum(), "none": -bound}[reduction]
    torch.testing.assert_close(network.loss(x(), loss, key=KEY), expected)
    assert loss.reduction == reduction


def test_all_models_have_the_same_calls():
    names = ("loss", "bound", "forward", "log_weights", "log_evidence", "log_likelihood",
             "latents", "terms", "sample", "reconstruct", "decode", "posterior", "save",
             "as_model_and_guide")  # fmt: skip
    for name in names:
        calls = [
            {key: (p.kind, p.default) for key, p in
             inspect.signature(getattr(kind, name)).parameters.items()}
            for kind in (fastvi.VAE, fastvi.HierarchicalVAE)
        ]  # fmt: skip
        assert calls[0] == calls[1], name
        # Beyond two nothing is positional.
        positional = [k for k, (kind, _) in calls[0].items() if kind.name != "KEYWORD_ONLY"]
        assert len(positional) <= 3, name  # self, and two


@pytest.mark.parametrize("model", MODELS)
def test_positional_options_are_refused(model: str):
    network = MODELS[model]()
    for call in (
        lambda: network.loss(x(), fastvi.IWLBLoss(2), KEY),
        lambda: network.log_evidence(x(), 4, 2),
        lambda: network.sample(4, True),
        lambda: network.sample(n=4),
        lambda: network.reconstruct(x(), 3),
    ):
        with pytest.raises(TypeError, match="argument"):
            call()


@pytest.mark.parametrize("chunk_size", [None, 1, 4, "auto"], ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_evidence_does_not_depend_on_chunks(model: str, chunk_size):
    network = MODELS[model]().double()
    whole = fastvi.ops.iwlb(network.log_weights(x().double(), 9, key=KEY))
    found = network.log_evidence(x().double(), 9, chunk_size=chunk_size, key=KEY)
    torch.testing.assert_close(found, whole.detach())
    assert not found.requires_grad


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (ValueError, "num_samples", lambda m: m.log_evidence(x(), 0)),
        (ValueError, "chunk_size", lambda m: m.log_evidence(x(), 4, chunk_size=5)),
        (ValueError, "memory_budget", lambda m: m.log_evidence(x(), 4, memory_budget=5)),
        (TypeError, "expected x to be a tensor", lambda m: m.log_evidence([1.0], 4)),
        (TypeError, "floating-point, got torch.int64", lambda m: m.posterior(x().long())),
        (ValueError, "num_samples to be from 1", lambda m: m.sample(0)),
        (ValueError, "num_samples to be from 1", lambda m: m.reconstruct(x(), num_samples=0)),
        (TypeError, "objective to be a loss", lambda m: m.loss(x(), "dreg")),
        (TypeError, "objective to be a loss", lambda m: m.bound(x(), None)),
        (
            ValueError,
            "no prior of its own",
            lambda m: m.loss(x(), fastvi.ELBOLoss(prior=(torch.zeros(3), torch.zeros(3)))),
        ),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)
def test_bad_input_is_refused_alike(model: str, error, words, call):
    with pytest.raises(error, match=words):
        call(MODELS[model]())


# ---- reconstructions, posteriors -----------------------------------------------------------------
def test_reconstructions_over_samples_are_the_mean_over_the_posterior():
    for network in (flat(), deep()):
        torch.manual_seed(0)
        found = network.reconstruct(x(), num_samples=20_000, key=KEY)
        latents = network.latents(x(), 20_000, key=KEY)
        values = {latent.name: latent.value for latent in latents}
        z = next(iter(values.values()))
        torch.testing.assert_close(found, network.decode(z).sigmoid().mean(0).detach())
        assert not torch.allclose(found, network.reconstruct(x()), atol=1e-4)


def test_the_posterior_of_layers_has_the_density_of_the_samples():
    network = deep().double()
    q = network.posterior(x().double())
    assert q.batch_shape == (4,) and q.event_shape == (LATENT + 2,) and q.has_rsample
    drawn = network.draw(x().double(), 7, key=KEY)
    joined = torch.cat([d.value for d in drawn.values()], -1)
    torch.testing.assert_close(q.log_prob(joined), sum(d.log_q for d in drawn.values()))
    torch.testing.assert_close(q.log_prob(joined[0]), sum(d.log_q[0] for d in drawn.values()))
    assert torch.equal(q.by_layer(joined)["h2"], drawn["h2"].value)
    assert q.sample((2, 3)).shape == (2, 3, 4, LATENT + 2) and q.sample().shape == (4, LATENT + 2)
    assert q.rsample((3,)).requires_grad and not q.sample((3,)).requires_grad
    with pytest.raises(ValueError, match="value to have 5 features"):
        q.log_prob(torch.zeros(4, 3).double())
    layer = fastvi.StochasticLayer("bernoulli", 2, guide=nn.Linear(FEATURES, 2))
    discrete = fastvi.HierarchicalVAE([layer], nn.Linear(2, FEATURES)).posterior(x())
    with pytest.raises(NotImplementedError, match="to be reparameterised for rsample"):
        discrete.rsample()


def test_the_posterior_of_a_vae_is_its_encoders():
    vae = flat()
    q, (loc, log_var) = vae.posterior(x()), vae.encode(x())
    torch.testing.assert_close(q.mean, loc)
    torch.testing.assert_close(q.variance, log_var.exp())


# ---- what users ask of a module ------------------------------------------------------------------
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["deepcopy", "pickle"],
)
@pytest.mark.parametrize("likelihood", ["bernoulli", "negative_binomial"])
def test_copies(model: str, copied, likelihood: str):
    network = MODELS[model](likelihood=likelihood)
    other = copied(network)
    assert torch.equal(network.log_weights(x(), 3, key=KEY), other.log_weights(x(), 3, key=KEY))
    with torch.no_grad():
        for value in other.parameters():
            value.add_(1.0)
    assert not torch.equal(network.log_weights(x(), 3, key=KEY), other.log_weights(x(), 3, key=KEY))


@pytest.mark.parametrize("model", MODELS)
def test_to_another_type(model: str):
    network = MODELS[model](likelihood="negative_binomial").to(torch.float64)
    loss = network.loss(x().double(), fastvi.IWLBLoss(4), key=KEY)
    assert loss.dtype == torch.float64 and network.sample(2).dtype == torch.float64
    meta = MODELS[model]().to("meta")
    assert all(value.is_meta for value in meta.state_dict().values())


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_compiled(model: str):
    network = MODELS[model]()
    compiled = torch.compile(network)
    for objective in (fastvi.IWLBLoss(4, "iwae"), fastvi.ELBOLoss(2)):
        expected = network.loss(x(), objective, key=KEY)
        gradients = torch.autograd.grad(expected, list(network.parameters()))
        loss = compiled(x(), objective, key=KEY)
        torch.testing.assert_close(loss, expected)
        for ours, theirs in zip(
            torch.autograd.grad(loss, list(network.parameters())), gradients, strict=True
        ):
            torch.testing.assert_close(ours, theirs)


def test_repr_says_what_it_is():
    shown = repr(flat(likelihood="negative_binomial", latent_features=3))
    assert shown.splitlines()[1].strip() == "latent_features=3, prior=N(0, I)"
    assert "(encoder): Linear(" in shown and "(decoder): Linear(" in shown
    assert "(likelihood): NegativeBinomialLikelihood(shape=(6,), learned=True)" in shown
    prior = (nn.Parameter(torch.zeros(3)), torch.zeros(3))
    assert "N(loc, exp(log_var)), learned" in repr(flat(prior=prior))
    functions = fastvi.VAE(lambda x: x, torch.sigmoid, likelihood=torch.distributions.Normal)
    assert "encoder=test_repr_says_what_it_is.<locals>.<lambda>" in repr(functions)
    assert "decoder=" in repr(functions)
    shown = repr(deep())
    assert shown.splitlines()[1].strip() == "latents=h1, h2, decoder_inputs=('h1',)"
    assert "(likelihood): BernoulliLikelihood()" in shown
