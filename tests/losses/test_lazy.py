"""Networks whose layers get their sizes from the first input."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import fastvi

KEY = torch.tensor([1, 2])
CHUNKS = [None, 7, 3, "auto"]


def data() -> Tensor:
    return (torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) > 0.5).float()


def linear(inputs: int, outputs: int, lazy: bool) -> nn.Linear:
    return nn.LazyLinear(outputs) if lazy else nn.Linear(inputs, outputs)


def vae(lazy: bool = True, dropout: float = 0.0) -> fastvi.VAE:
    torch.manual_seed(0)
    decoder = nn.Sequential(linear(2, 7, lazy), nn.Dropout(dropout), linear(7, 5, lazy))
    return fastvi.VAE(linear(5, 4, lazy), decoder)


def layered() -> fastvi.HierarchicalVAE:
    torch.manual_seed(0)
    first = fastvi.StochasticLayer("gaussian", 4, guide=nn.LazyLinear(8), model=nn.LazyLinear(8))
    second = fastvi.StochasticLayer("gaussian", 3, guide=nn.LazyLinear(6))
    decoder = nn.Sequential(nn.LazyLinear(9), nn.Dropout(0.5), nn.LazyLinear(5))
    return fastvi.HierarchicalVAE([first, second], decoder)


# ---- sampling, whose size nothing tells ----------------------------------------------------------
@pytest.mark.parametrize(
    "decoder, name",
    [
        (nn.LazyLinear(5), "LazyLinear has not seen"),
        (nn.Sequential(nn.Tanh(), nn.LazyLinear(5)), r"layer '1', LazyLinear, has not"),
        (nn.Sequential(nn.Unflatten(-1, (2, 1)), nn.LazyConv1d(5, 1)), r"'1', LazyConv1d, has not"),
    ],
    ids=["alone", "inside", "convolution"],
)
def test_sample_names_the_layer(decoder: nn.Module, name: str):
    model = fastvi.VAE(nn.Linear(5, 4), decoder)
    with pytest.raises(ValueError, match=name):
        model.sample(3)
    assert nn.parameter.is_lazy(next(decoder.parameters()))


def test_sample_where_the_size_is_known():
    known = fastvi.VAE(nn.Linear(5, 4), nn.LazyLinear(5), latent_features=2)
    assert known.sample(3).shape == (3, 5) and known.decoder.in_features == 2
    prior = (torch.zeros(2), torch.zeros(2))
    assert fastvi.VAE(nn.LazyLinear(4), nn.LazyLinear(5), prior=prior).sample(3).shape == (3, 5)
    encoded = fastvi.VAE(nn.LazyLinear(4), nn.LazyLinear(5))
    encoded.encode(data())
    assert encoded.sample(3).shape == (3, 5)


def test_sample_of_loaded_weights():
    """Which give the layer a size that it does not know of until it is run."""
    trained, loaded = vae(), vae()
    trained.loss(data(), fastvi.ELBOLoss())
    loaded.load_state_dict(trained.state_dict())
    assert loaded.sample(2).shape == (2, 5)


# ---- all faces -----------------------------------------------------------------------------------
@pytest.mark.parametrize("chunk_size", CHUNKS, ids=str)
def test_loss_is_that_of_layers_of_a_size(chunk_size: int | str | None):
    results = []
    for lazy in (True, False):
        model = vae(lazy)
        torch.manual_seed(1)
        if lazy:
            model.encode(data())
            model.decode(torch.zeros(1, 2))
        state = model.state_dict() if lazy else results[0][2]
        model.load_state_dict(state)
        loss = model.loss(data(), fastvi.IWLBLoss(7, chunk_size=chunk_size), key=KEY)
        loss.backward()
        results.append((loss.detach(), [p.grad for p in model.parameters()], state))
    torch.testing.assert_close(results[0][:2], results[1][:2])


@pytest.mark.parametrize("dropout", [0.0, 0.5], ids=["plain", "dropout"])
@pytest.mark.parametrize("chunk_size", CHUNKS, ids=str)
def test_first_step_in_chunks(chunk_size: int | str | None, dropout: float):
    """The weights are drawn once, and not among the noise that the second pass repeats."""
    model = vae(dropout=dropout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        model.loss(data(), fastvi.IWLBLoss(7, chunk_size=chunk_size), key=KEY + step).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()


@pytest.mark.parametrize("chunk_size", CHUNKS, ids=str)
@pytest.mark.parametrize("make", [lambda: vae(dropout=0.5), layered], ids=["VAE", "layers"])
def test_objectives(make, chunk_size: int | str | None):
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    objective = fastvi.objectives.IWLB(7, chunk_size=chunk_size)
    svi = fastvi.SVI(*model.as_model_and_guide(), optimizer, objective)
    assert all(svi.step(data()).isfinite() for _ in range(2))


@pytest.mark.parametrize("chunk_size", [None, 3], ids=str)
def test_trace_iwlb(chunk_size: int | None):
    pyro = pytest.importorskip("pyro")
    from fastvi.integrations.pyro import Trace_IWLB

    pyro.clear_param_store()
    model = vae(dropout=0.5)

    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            unit = pyro.distributions.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1)
            logits = model.decode(pyro.sample("z", unit))
            law = pyro.distributions.Bernoulli(logits=logits).to_event(1)
            pyro.sample("x", law, obs=x)

    def guide(x: Tensor) -> None:
        loc, log_var = model.encode(x)
        with pyro.plate("data", len(x)):
            law = pyro.distributions.Normal(loc, (0.5 * log_var).exp()).to_event(1)
            pyro.sample("z", law)

    Trace_IWLB(7, "dreg", chunk_size=chunk_size).differentiable_loss(
        program, guide, data()
    ).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "face",
    [
        lambda model: model.log_weights(data(), 3),
        lambda model: model.log_evidence(data(), 7),
        lambda model: model.log_evidence(data(), 7, chunk_size=2),
        lambda model: model.reconstruct(data()),
    ],
    ids=["log_weights", "log_evidence", "log_evidence in chunks", "reconstruct"],
)
@pytest.mark.parametrize("make", [vae, layered], ids=["VAE", "layers"])
def test_evaluation_first(make, face):
    assert face(make()).isfinite().all()


def test_layers_are_sampled_first():
    assert layered().sample(3).shape == (3, 5)


@pytest.mark.parametrize("make", [vae, layered], ids=["VAE", "layers"])
def test_copies_and_casts_before_the_first_input(make):
    model = make()
    twin = copy.deepcopy(model).double().to("cpu")
    twin.load_state_dict(model.state_dict())
    assert twin.log_weights(data().double(), 3).dtype == torch.float64
    model.load_state_dict(twin.state_dict())
    assert model.log_weights(data(), 3).isfinite().all()
