"""Chunks through modules whose parameters are put in place, or computed, for some time only."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable

import pytest
import torch
from chunks_setting import DOUBLE, assert_same
from quick import quick_in
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, stateless

import fastvi

KEY = torch.tensor([1, 2])
CHUNKS = [{"chunk_size": 7}, {"chunk_size": 3}, {"chunk_size": 1}, {"chunk_size": "auto"}]
PARAMETRISATIONS = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}
Wrap = Callable[[nn.Module], nn.Module]


def data() -> Tensor:
    return (torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) > 0.5).double()


def vae(wrap: Wrap = lambda layer: layer) -> fastvi.VAE:
    torch.manual_seed(1)
    decoder = nn.Sequential(wrap(nn.Linear(3, 8)), nn.Tanh(), nn.Linear(8, 6))
    return fastvi.VAE(nn.Linear(6, 6), decoder).double()


def layered(wrap: Wrap = lambda layer: layer) -> fastvi.HierarchicalVAE:
    torch.manual_seed(1)
    first = fastvi.StochasticLayer(
        "gaussian", 4, guide=nn.Linear(6, 8), model=wrap(nn.Linear(3, 8))
    )
    second = fastvi.StochasticLayer("gaussian", 3, guide=nn.Linear(4, 6))
    return fastvi.HierarchicalVAE([first, second], wrap(nn.Linear(4, 6))).double()


FACES = {
    "VAE": (vae, lambda **options: fastvi.IWLBLoss(7, **options)),
    "VAE score": (vae, lambda **options: fastvi.IWLBLoss(7, "rws", **options)),
    "VAE groups": (vae, lambda **options: fastvi.PIWAELoss(2, 4, **options)),
    "HierarchicalVAE": (layered, lambda **options: fastvi.objectives.IWLB(7, **options)),
}


def ids(value: object) -> str | None:
    return str(value["chunk_size"]) if isinstance(value, dict) else None


# ---- parameters in a module's place --------------------------------------------------------------
@pytest.mark.parametrize("options", CHUNKS, ids=ids)
@pytest.mark.parametrize("face", FACES)
def test_functional_call(face: str, options: dict):
    make, criterion = FACES[face]

    def run(criterion: nn.Module) -> tuple[Tensor, ...]:
        model = make()
        # The module's own have other numbers, and no gradient.
        parameters = {
            name: (1.3 * value.detach()).requires_grad_()
            for name, value in model.named_parameters()
        }
        model.requires_grad_(False)
        loss = torch.func.functional_call(model, parameters, (data(), criterion), {"key": KEY})
        loss.backward()
        return loss.detach(), *(p.grad for p in parameters.values())

    assert_same(run(criterion(**options)), run(criterion()), 1e-10)


@pytest.mark.parametrize("chunk_size", [7, 3])
def test_functional_call_with_the_modules_own_numbers(chunk_size: int):
    """Nothing but the place of the gradient tells the two passes apart."""

    def run(chunk_size: int | None) -> tuple[Tensor, ...]:
        model = vae()
        parameters = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
        criterion = fastvi.IWLBLoss(7, chunk_size=chunk_size)
        torch.func.functional_call(model, parameters, (data(), criterion), {"key": KEY}).backward()
        assert all(p.grad is None for p in model.parameters())
        return tuple(p.grad for p in parameters.values())

    assert_same(run(chunk_size), run(None), 1e-10)


@pytest.mark.parametrize("trainable", [True, False], ids=["trained", "frozen"])
def test_parameters_that_are_gone_in_the_backward_pass_are_named(trainable: bool):
    model = vae()
    parameters = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    model.requires_grad_(trainable)
    criterion = fastvi.IWLBLoss(7, chunk_size=3)
    with stateless._reparametrize_module(model, parameters):
        loss = model.loss(data(), criterion, key=KEY)
    with pytest.raises(RuntimeError, match=r"put into a module for some time .*functional_call"):
        loss.backward()


# ---- parametrised tensors ------------------------------------------------------------------------
@pytest.mark.parametrize("cached", quick_in({"plain": False, "cached": True}, "cached"))
@pytest.mark.parametrize("options", CHUNKS, ids=ids)
@pytest.mark.parametrize("name", PARAMETRISATIONS)
@pytest.mark.parametrize("face", ["VAE", "HierarchicalVAE"])
def test_parametrised_weights(face: str, name: str, options: dict, cached: bool):
    make, criterion = FACES[face]

    def run(criterion: nn.Module) -> tuple[Tensor, ...]:
        model = make(PARAMETRISATIONS[name])
        layer = model.decoder[0] if face == "VAE" else model.decoder
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        found = []
        for step in range(3):
            optimizer.zero_grad()
            with parametrize.cached() if cached else contextlib.nullcontext():
                before = layer.weight.sum() if cached and step == 1 else 0.0
                loss = model.loss(data(), criterion, key=KEY + step) + before
                if cached:
                    loss = loss + layer.weight.square().sum()
            loss.backward()
            found += [loss.detach(), *(p.grad for p in model.parameters())]
            optimizer.step()
        # The buffers of the spectral norm have moved as often.
        return *found, *model.state_dict().values()

    assert_same(run(criterion(**options)), run(criterion()), 1e-10)


def test_copies_of_a_parametrised_module_are_apart():
    def run(chunk_size: int | None) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        first = parametrizations.spectral_norm(nn.Linear(2, 2)).double()
        second = copy.deepcopy(first)
        with torch.no_grad():
            second.parametrizations.weight.original.add_(torch.eye(2, dtype=DOUBLE))
        loc = torch.zeros(3, 2, dtype=DOUBLE)

        def log_likelihood(z: Tensor) -> Tensor:
            return -(first(z) - 2 * second(z)).square().sum(-1)

        loss = fastvi.iwlb_loss(loc, loc, log_likelihood, 9, chunk_size=chunk_size, key=KEY)
        wanted = [*first.parameters(), *second.parameters()]
        return loss.detach(), *torch.autograd.grad(loss, wanted)

    assert_same(run(4), run(None), 1e-10)


def test_the_old_spectral_norm_is_named():
    model = vae(torch.nn.utils.spectral_norm)
    criterion = fastvi.IWLBLoss(7, chunk_size=3)
    with pytest.raises(ValueError, match=r"'decoder\.0' to be that of torch\.nn\.utils\.param"):
        model.loss(data(), criterion, key=KEY)
    model.eval().loss(data(), criterion, key=KEY).backward()


# ---- hooks ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["iwae", "dreg", "rws", "rws_dreg"])
@pytest.mark.parametrize("chunk_size", [9, 4, 1])
def test_a_hook_in_the_decoder_leaves_the_gradient_alone(name: str, chunk_size: int):
    """The last chunk stays in the whole graph then; twice backward, it is there twice."""

    def run(chunk_size: int | None, hooked: bool) -> tuple[Tensor, ...]:
        model = vae()
        if hooked:
            model.decoder[1].register_full_backward_hook(lambda *_: None)
        criterion = fastvi.IWLBLoss(9, name, chunk_size=chunk_size)
        loss = model.loss(data(), criterion, key=KEY)
        loss.backward(retain_graph=True)
        loss.backward()
        return tuple(p.grad for p in model.parameters())

    assert_same(run(chunk_size, True), run(None, False), 1e-10)
    wanted = vae()
    wanted.decoder[1].register_full_backward_hook(lambda *_: None)
    loss = wanted.loss(data(), fastvi.IWLBLoss(9, name, chunk_size=chunk_size), key=KEY)
    alone = torch.autograd.grad(loss, list(wanted.encoder.parameters()))
    assert_same(tuple(2 * g for g in alone), run(None, False)[: len(alone)], 1e-10)


@pytest.mark.parametrize("chunk_size", [7, 3])
def test_tied_weights(chunk_size: int):
    def run(chunk_size: int | None) -> tuple[Tensor, ...]:
        model = vae()
        model.decoder[2].weight = nn.Parameter(torch.randn(6, 8, dtype=DOUBLE))
        model.decoder.append(nn.Linear(6, 6, dtype=DOUBLE))
        model.encoder.weight = model.decoder[3].weight
        model.loss(data(), fastvi.IWLBLoss(7, chunk_size=chunk_size), key=KEY).backward()
        return tuple(p.grad for p in model.parameters())

    torch.manual_seed(5)
    expected = run(None)
    torch.manual_seed(5)
    assert_same(run(chunk_size), expected, 1e-10)
