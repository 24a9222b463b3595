"""torch.export with a batch of any size, and torch.compile(dynamic=True)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from quick import quick_in
from torch import Tensor, nn
from torch.export import Dim, export
from torch.utils._pytree import tree_leaves

import fastvi

KEY = torch.tensor([5, 7])
FEATURES, LATENT = 6, 3
# The example's batch, one, and others; the last would be fused, were it not for the export.
BATCHES = (5, 1, 2, 64)


class Program(nn.Module):
    def __init__(self, function: Callable[..., Any], owner: nn.Module) -> None:
        super().__init__()
        self.function, self.owner = function, owner

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self.owner, *inputs)


def vae(likelihood: str = "bernoulli") -> fastvi.VAE:
    torch.manual_seed(1)
    decoder = nn.Sequential(nn.Linear(LATENT, 8), nn.Tanh(), nn.Linear(8, FEATURES))
    return fastvi.VAE(nn.Linear(FEATURES, 2 * LATENT), decoder, likelihood=likelihood)


def layered() -> fastvi.HierarchicalVAE:
    torch.manual_seed(1)
    first = fastvi.StochasticLayer(
        "gaussian", 4, guide=nn.Linear(FEATURES, 8), model=nn.Linear(3, 8)
    )
    second = fastvi.StochasticLayer("gaussian", 3, guide=nn.Linear(4, 6))
    return fastvi.HierarchicalVAE([first, second], nn.Linear(4, FEATURES))


def discrete() -> fastvi.HierarchicalVAE:
    torch.manual_seed(1)
    first = fastvi.StochasticLayer(
        "bernoulli", 4, guide=nn.Linear(FEATURES, 4), model=nn.Linear(3, 4)
    )
    second = fastvi.StochasticLayer("categorical", 3, guide=nn.Linear(4, 3))
    return fastvi.HierarchicalVAE([first, second], nn.Linear(4, FEATURES))


def x(batch: int) -> tuple[Tensor, ...]:
    noise = torch.rand(batch, FEATURES, generator=torch.Generator().manual_seed(batch))
    return ((noise > 0.5).float(),)


def z(batch: int) -> tuple[Tensor, ...]:
    return (torch.randn(batch, LATENT, generator=torch.Generator().manual_seed(batch)),)


def x_and_z(batch: int) -> tuple[Tensor, ...]:
    return *x(batch), *z(batch)


def thrice(z: Tensor) -> Tensor:
    return torch.stack([z, -z, 2 * z])


def in_chunks(model: Any, x: Tensor) -> Tensor:
    return model.log_evidence(x, 7, chunk_size=3, key=KEY)


Case = tuple[Callable[[], nn.Module], Callable[..., Any], Callable[[int], tuple[Tensor, ...]]]


def loss(criterion: nn.Module, make: Callable[[], nn.Module] = vae) -> Case:
    return make, lambda model, x: model.loss(x, criterion, key=KEY), x


CASES: dict[str, Case] = {
    "encode": (vae, lambda model, x: model.encode(x), x),
    "decode": (vae, lambda model, z: model.decode(thrice(z)), z),
    "VAE.log_likelihood": (vae, lambda m, x, z: m.log_likelihood(x, thrice(z)), x_and_z),
    "log_likelihood": (
        vae, lambda m, x, z: fastvi.log_likelihood(m.decoder, x)(thrice(z)), x_and_z,
    ),
    "log_weights": (vae, lambda model, x: model.log_weights(x, 7, key=KEY), x),
    "log_evidence": (vae, lambda model, x: model.log_evidence(x, 7, key=KEY), x),
    "log_evidence in chunks": (vae, in_chunks, x),
    "reconstruct": (vae, lambda model, x: model.reconstruct(x), x),
    "forward": (vae, lambda model, x: model(x, fastvi.IWLBLoss(7), key=KEY), x),
    **{f"iwlb {e}": loss(fastvi.IWLBLoss(7, e)) for e in ("dreg", "iwae", "stl")},
    "renyi": loss(fastvi.IWLBLoss(7, "iwae", alpha=0.5)),
    "iwlb sum": loss(fastvi.IWLBLoss(7, reduction="sum")),
    "elbo analytic": loss(fastvi.ELBOLoss(3)),
    "elbo monte carlo": loss(fastvi.ELBOLoss(3, "monte_carlo")),
    "elbo none": loss(fastvi.ELBOLoss(1, reduction="none")),
    "gaussian": loss(fastvi.IWLBLoss(7), lambda: vae("gaussian")),
    "poisson": loss(fastvi.IWLBLoss(7), lambda: vae("poisson")),
    "layers log_weights": (layered, lambda model, x: model.log_weights(x, 7, key=KEY), x),
    "layers log_evidence": (layered, in_chunks, x),
    "layers elbo": loss(fastvi.objectives.ELBO(7, "monte_carlo"), layered),
    "layers iwlb": loss(fastvi.objectives.IWLB(7, "iwae"), layered),
    "discrete reconstruct": (discrete, lambda model, x: model.reconstruct(x), x),
    "discrete log_weights": (discrete, lambda model, x: model.log_weights(x, 7, key=KEY), x),
}  # fmt: skip
# What strict tracing cannot follow: a second pass.
NOT_STRICT: dict[str, Case] = {
    "rws": loss(fastvi.IWLBLoss(7, "rws")),
    "iwlb in chunks": loss(fastvi.IWLBLoss(7, chunk_size=3)),
    "miwae": loss(fastvi.MIWAELoss(2, 3)),
    "piwae": loss(fastvi.PIWAELoss(2, 3)),
    "ciwae": loss(fastvi.CIWAELoss(4, 0.5)),
    "jackknife": loss(fastvi.JackknifeLoss(4)),
}


def check(case: Case, strict: bool) -> None:
    make, function, inputs = case
    program = Program(function, make())
    example = inputs(BATCHES[0])
    batch = (tuple({0: Dim("batch")} for _ in example),)
    exported = export(program, example, dynamic_shapes=batch, strict=strict).module()
    for size in BATCHES:
        found, expected = exported(*inputs(size)), program(*inputs(size))
        torch.testing.assert_close(tree_leaves(found), tree_leaves(expected))


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True], ids=["not strict", "strict"])
@pytest.mark.parametrize("name", CASES)
def test_a_batch_of_any_size(name: str, strict: bool):
    check(CASES[name], strict)


@pytest.mark.parametrize("name", quick_in(list(NOT_STRICT), "iwlb in chunks"))
def test_a_batch_of_any_size_without_strict_tracing(name: str):
    check(NOT_STRICT[name], strict=False)


def test_strict_tracing_of_a_second_pass_is_named():
    with pytest.raises(Exception, match=r"strict=False"):
        check(NOT_STRICT["rws"], strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True], ids=["not strict", "strict"])
def test_derivatives_inside_the_loss_are_named(strict: bool):
    with pytest.raises(Exception, match=r"'dreg' or 'stl' of several layers"):
        check(loss(fastvi.objectives.IWLB(7), layered), strict)


@pytest.mark.slow
def test_an_exported_loss_has_its_gradient():
    for make in (vae, layered):
        criterion = fastvi.IWLBLoss(7) if make is vae else fastvi.objectives.IWLB(7, "iwae")
        program = Program(lambda model, x, c=criterion: model.loss(x, c, key=KEY), make())
        batch = (({0: Dim("batch")},),)
        exported = export(program, x(5), dynamic_shapes=batch, strict=False).module()
        exported(*x(9)).backward()
        found = {name: p.grad for name, p in exported.named_parameters()}
        program(*x(9)).backward()
        for name, parameter in program.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad)


@pytest.mark.parametrize("dynamic", [True, False], ids=["any K", "one K"])
def test_number_of_samples_as_given(dynamic: bool):
    """K is the first dimension of z: any number, or the example's."""
    program = Program(lambda m, x, z: m.log_likelihood(x, z), vae())
    of_z = {0: Dim("samples"), 1: Dim("batch")} if dynamic else {1: Dim("batch")}
    batch = (({0: Dim("batch")}, of_z),)
    example = (*x(5), torch.randn(7, 5, LATENT))
    exported = export(program, example, dynamic_shapes=batch, strict=False).module()
    for samples, size in ((7, 1), (7, 9), *([(1, 4), (12, 3)] if dynamic else [])):
        inputs = (*x(size), torch.randn(samples, size, LATENT))
        torch.testing.assert_close(exported(*inputs), program(*inputs))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["log_likelihood", "iwlb dreg", "elbo analytic", "log_weights"])
def test_compiled_for_any_size(name: str):
    make, function, inputs = CASES[name]
    program = Program(function, make())
    compiled = torch.compile(program, dynamic=True, backend="aot_eager")
    for size in BATCHES:
        torch.testing.assert_close(compiled(*inputs(size)), program(*inputs(size)))
