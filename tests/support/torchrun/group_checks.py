"""Run by torchrun: each rank computes the one-process answer too, and compares."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from leaving import leave
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
)
from torch.nn.parallel import DistributedDataParallel

import fastvi

BATCH, LATENT, FEATURES = 4, 3, 6
KEY = torch.tensor([5, 7])


def model() -> tuple[fastvi.VAE, Tensor]:
    torch.manual_seed(1)
    decoder = nn.Sequential(nn.Linear(LATENT, 8), nn.Tanh(), nn.Linear(8, FEATURES))
    prior = (nn.Parameter(torch.randn(LATENT)), nn.Parameter(torch.zeros(LATENT)))
    vae = fastvi.VAE(nn.Linear(FEATURES, 2 * LATENT), decoder, prior=prior).double()
    return vae, (torch.rand(BATCH, FEATURES) > 0.5).double()


def one_process(criterion: nn.Module) -> tuple[Tensor, list[Tensor]]:
    vae, x = model()
    loss = vae.loss(x, criterion, key=KEY)
    loss.sum().backward()
    return loss.detach(), [p.grad for p in vae.parameters()]


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def check_sums() -> None:
    """Uneven shares, chunks, every estimator: the bound of all K, and gradients that add up."""
    cases = [(k, "dreg", 0.0, None) for k in (1, 2, 7, 12)]
    cases += [(7, e, 0.0, 2) for e in ("iwae", "stl", "dreg", "rws", "rws_dreg")]
    cases += [(7, e, alpha, 2) for e in ("iwae", "dreg") for alpha in (0.5, 1.0)]
    for samples, estimator, alpha, chunk_size in cases:
        loss, grads = one_process(
            fastvi.IWLBLoss(samples, estimator, alpha=alpha, reduction="none")
        )
        vae, x = model()
        criterion = fastvi.IWLBLoss(
            samples, estimator, alpha=alpha, reduction="none",
            chunk_size=chunk_size, group=dist.group.WORLD,
        )  # fmt: skip
        shared = vae.loss(x, criterion, key=KEY)
        close(shared.detach(), loss)
        shared.sum().backward()
        fastvi.sum_gradients(vae.parameters())
        for parameter, expected in zip(vae.parameters(), grads, strict=True):
            close(parameter.grad, expected)


def check_evidence() -> None:
    vae, x = model()
    whole = vae.log_evidence(x, 11, key=KEY)
    close(vae.log_evidence(x, 11, chunk_size=2, group=dist.group.WORLD, key=KEY), whole)
    torch.manual_seed(1)
    layers = [
        fastvi.StochasticLayer(
            "gaussian",
            LATENT,
            guide=nn.Linear(FEATURES, 2 * LATENT),
            model=nn.Linear(2, 2 * LATENT),
        ),
        fastvi.StochasticLayer("bernoulli", 2, guide=nn.Linear(LATENT, 2)),
    ]
    deep = fastvi.HierarchicalVAE(layers, nn.Linear(LATENT, FEATURES)).double()
    # The mixture's own draws are counted by the key; a full covariance draws anew on each rank.
    mixed = fastvi.VAE(vae.encoder, vae.decoder, prior=Mixed()).double()
    full = fastvi.VAE(wide_posterior, vae.decoder)
    for network in (deep, mixed, full):
        for samples in (1, 11):
            whole = network.log_evidence(x, samples, key=KEY)
            for chunk_size in (None, "auto", 1):
                found = network.log_evidence(
                    x, samples, chunk_size=chunk_size, group=dist.group.WORLD, key=KEY
                )
                everyone = [torch.empty_like(found) for _ in range(dist.get_world_size())]
                dist.all_gather(everyone, found)
                assert all(torch.equal(one, found) for one in everyone)
                if network is not full:
                    close(found, whole)
        found = network.log_evidence(x, 7, group=dist.group.WORLD)
        everyone = [torch.empty_like(found) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, found)
        assert all(torch.equal(one, found) for one in everyone)


class Mixed(nn.Module):
    def forward(self) -> MixtureSameFamily:
        loc = torch.tensor([[-1.0], [1.0]]).double().expand(2, LATENT)
        parts = Independent(Normal(loc, 1.0), 1)
        return MixtureSameFamily(Categorical(torch.ones(2).double()), parts)


def wide_posterior(x: Tensor) -> MultivariateNormal:
    return MultivariateNormal(x[:, :LATENT], 2.0 * torch.eye(LATENT).double())


def check_losses_of_layers() -> None:
    """A loss of any latents: the bound of all K, gradients that add up, a key for all."""
    torch.manual_seed(1)
    layer = fastvi.StochasticLayer("gaussian", LATENT, guide=nn.Linear(FEATURES, 2 * LATENT))
    deep = fastvi.HierarchicalVAE([layer], nn.Linear(LATENT, FEATURES)).double()
    _, x = model()
    for estimator in ("dreg", "iwae", "stl"):
        loss = deep.loss(x, fastvi.IWLBLoss(7, estimator), key=KEY)
        grads = torch.autograd.grad(loss, list(deep.parameters()))
        deep.zero_grad()
        shared = deep.loss(x, fastvi.IWLBLoss(7, estimator, group=dist.group.WORLD), key=KEY)
        close(shared.detach(), loss.detach())
        shared.backward()
        fastvi.sum_gradients(deep.parameters())
        for parameter, expected in zip(deep.parameters(), grads, strict=True):
            close(parameter.grad, expected)
    torch.manual_seed(100 + dist.get_rank())
    deep.loss(x, fastvi.IWLBLoss(7, group=dist.group.WORLD)).backward()


def check_closed_forms() -> None:
    """A divergence that every rank computes alike counts once, with any weight."""
    vae, x = model()
    torch.manual_seed(1)
    layer = fastvi.StochasticLayer("gaussian", LATENT, guide=nn.Linear(FEATURES, 2 * LATENT))
    deep = fastvi.HierarchicalVAE([layer], nn.Linear(LATENT, FEATURES)).double()
    for network in (vae, deep):
        for kl in ("auto", "monte_carlo"):
            for beta in (1.0, 0.5, 0.0):
                grads = []
                for group in (None, dist.group.WORLD):
                    network.zero_grad(set_to_none=True)
                    criterion = fastvi.ELBOLoss(7, kl, beta=beta, group=group)
                    loss = network.loss(x, criterion, key=KEY)
                    loss.backward()
                    if group is not None:
                        fastvi.sum_gradients(network.parameters(), group)
                    grads.append([loss.detach(), *(p.grad for p in network.parameters())])
                for expected, found in zip(*grads, strict=True):
                    assert (expected is None) == (found is None)
                    if expected is not None:
                        close(found, expected)


def check_own_keys() -> None:
    """Without a key the ranks' own generators differ; the first rank's key serves all."""
    torch.manual_seed(100 + dist.get_rank())
    vae, x = model()
    torch.manual_seed(100 + dist.get_rank())
    loss = vae.loss(x, fastvi.IWLBLoss(9, group=dist.group.WORLD)).detach()
    everyone = [torch.empty_like(loss) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, loss)
    assert all(torch.equal(other, loss) for other in everyone)


def refused(
    what: str,
    detail: str = "",
    *,
    num_samples: int = 6,
    loc: Tensor | None = None,
    log_var: Tensor | None = None,
    likelihood: Callable[[Tensor], Tensor] = lambda z: -z.square().sum(-1),
    key: Tensor | None = KEY,
    **options: Any,
) -> None:
    loc = LOC if loc is None else loc
    try:
        fastvi.iwlb_loss(
            loc, torch.zeros_like(loc) if log_var is None else log_var, likelihood, num_samples,
            key=key, group=dist.group.WORLD, **options,
        )  # fmt: skip
    except ValueError as error:
        message = str(error)
        assert f"the same {what}, but rank(s) 1 differ" in message, message
        assert detail in message, message
    else:
        raise AssertionError(f"not refused: {what}")


LOC = torch.randn(BATCH, LATENT, generator=torch.Generator().manual_seed(0))
MANY = torch.randn(4096, LATENT, generator=torch.Generator().manual_seed(1))


def check_disagreement() -> None:
    """Every rank raises, and says who differs from the first; none waits."""
    odd = dist.get_rank() == 1
    refused("num_samples", "6 on rank 0, 7 on rank 1", num_samples=7 if odd else 6)
    refused("number of data", loc=torch.zeros(BATCH + 1, LATENT) if odd else LOC)
    refused("number of latent features", loc=torch.zeros(BATCH, LATENT + 1) if odd else LOC)
    refused("dtype", loc=LOC.double() if odd else LOC)
    refused(
        "key", "[5, 7] on rank 0, [5, 8] on rank 1", key=KEY + torch.tensor([0, 1]) if odd else KEY
    )
    refused("key", "[5, 7] on rank 0, None on rank 1", key=None if odd else KEY)
    refused("estimator", "iwae on rank 0, dreg on rank 1", estimator="dreg" if odd else "iwae")
    refused("reduction", reduction="sum" if odd else "mean")
    refused("alpha", alpha=0.5 * odd)
    refused("loc", loc=1.5 * LOC if odd else LOC)
    refused("loc", loc=LOC + 0.004 if odd else LOC)
    refused("loc", loc=MANY.where(torch.arange(4096)[:, None] != 100, -MANY) if odd else MANY)
    refused("loc", loc=MANY.flip(0) if odd else MANY)
    refused("log_var", log_var=torch.full_like(LOC, 0.1 * odd))
    prior = (torch.full((LATENT,), 0.5 * odd), torch.zeros(LATENT))
    refused("prior loc", prior=prior)
    refused("prior loc", "None on rank 0", prior=prior if odd else None)
    x = torch.ones(BATCH, FEATURES)
    decoder = nn.Linear(LATENT, FEATURES)
    refused("x", likelihood=fastvi.log_likelihood(decoder, 1 - x if odd else x))


def check_disagreement_of_models() -> None:
    """An encoder that does not look at x hides it from loc; the model knows x."""
    odd = dist.get_rank() == 1
    torch.manual_seed(0)
    network = fastvi.VAE(lambda x: 2 * (x.new_zeros(BATCH, LATENT),), nn.Linear(LATENT, FEATURES))
    x = torch.full((BATCH, FEATURES), float(odd))
    criterion = fastvi.IWLBLoss(6, group=dist.group.WORLD)
    objective = fastvi.objectives.IWLB(6, group=dist.group.WORLD)
    layer = fastvi.StochasticLayer("gaussian", LATENT, guide=nn.Linear(FEATURES, 2 * LATENT))
    nn.init.zeros_(layer.guide.weight)
    deep = fastvi.HierarchicalVAE([layer], nn.Linear(LATENT, FEATURES))
    for name, call in (
        ("x", lambda: network.loss(x, criterion, key=KEY)),
        ("x", lambda: network.log_evidence(x, 6, group=dist.group.WORLD, key=KEY)),
        ("data 0", lambda: deep.loss(x, objective, key=KEY)),
    ):
        try:
            call()
        except ValueError as error:
            message = str(error)
            assert f"the same {name}, but rank(s) 1 differ" in message, message
        else:
            raise AssertionError(f"not refused: {name}")


def check_rounding() -> None:
    """What two kinds of device may differ by is no disagreement."""
    scale = 1.0 + 2.0**-14 * dist.get_rank()
    for loc in (LOC, MANY, torch.zeros(BATCH, LATENT), torch.ones(0, LATENT)):
        fastvi.iwlb_loss(
            loc * scale, torch.zeros_like(loc), lambda z: z.sum(-1), 6, group=dist.group.WORLD,
            reduction="sum",
        )  # fmt: skip


def check_failure() -> None:
    """A likelihood that raises on one rank stops the others at once, who say whose it was."""
    odd = dist.get_rank() == 1
    group = dist.group.WORLD

    def likelihood(z: Tensor) -> Tensor:
        if odd:
            raise KeyError("of its own")
        return z.sum(-1)

    q = torch.distributions.Normal(torch.zeros(3), 1.0)
    torch.manual_seed(0)
    latent = fastvi.objectives.Latent.draw("z", q, 6)
    objective = fastvi.objectives.IWLB(6, group=group)
    calls = [
        lambda options=options: fastvi.iwlb_loss(
            LOC, torch.zeros_like(LOC), likelihood, 6, key=KEY, group=group, **options
        )
        for options in ({}, {"alpha": 1.0}, {"chunk_size": 2}, {"chunk_size": "auto"})
    ]
    calls.append(lambda: objective.bound([latent], lambda z: likelihood(z["z"][..., None])))
    for call in calls:
        try:
            call()
        except KeyError:
            assert odd
        except RuntimeError as error:
            assert not odd and "rank(s) 1 of 2 raised an error" in str(error), error
        else:
            raise AssertionError("not noticed")


def check_empty_share() -> None:
    """A rank without samples takes part in the backward pass, whatever has a gradient."""
    torch.manual_seed(0)
    decoder = nn.Linear(LATENT, FEATURES)
    x, loc = torch.ones(BATCH, FEATURES), torch.zeros(BATCH, LATENT)
    gradients = []
    for group in (None, dist.group.WORLD):
        log_px = fastvi.log_likelihood(decoder, x)
        loss = fastvi.iwlb_loss(loc, loc, log_px, 1, group=group, key=KEY)
        loss.backward()
        if group is not None:
            fastvi.sum_gradients(decoder.parameters(), group)
        gradients.append((loss.detach(), *(p.grad.clone() for p in decoder.parameters())))
        decoder.zero_grad()
    torch.testing.assert_close(*gradients)
    with torch.no_grad():
        assert not fastvi.iwlb_loss(loc, loc, log_px, 1, group=group, key=KEY).requires_grad


def check_mesh() -> None:
    """Data over one dimension of a mesh by DDP, samples over the other."""
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("data", "k"))
    data, samples = mesh["data"].get_group(), mesh["k"].get_group()
    vae, x = model()
    mine = x.chunk(2)[dist.get_rank(data)]
    # Each half of the batch has its own noise; the one process that is compared draws both.
    key = torch.tensor([5, dist.get_rank(data)])
    wrapped = DistributedDataParallel(vae, process_group=data)
    criterion = fastvi.IWLBLoss(7, chunk_size=2, group=samples)
    wrapped(mine, criterion, key=key).backward()
    fastvi.sum_gradients(vae.parameters(), samples)
    alone, x = model()
    for half, part in enumerate(x.chunk(2)):
        (0.5 * alone.loss(part, fastvi.IWLBLoss(7), key=torch.tensor([5, half]))).backward()
    for parameter, expected in zip(vae.parameters(), alone.parameters(), strict=True):
        close(parameter.grad, expected.grad)


def check_shards_of_a_mesh() -> None:
    """Parameters sharded over one dimension of a mesh, samples shared over the other."""
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("data", "k"))
    samples = mesh["k"].get_group()
    vae, x = model()
    fully_shard(vae, mesh=mesh["data"])
    loss = vae(x, fastvi.IWLBLoss(7, chunk_size=2, group=samples), key=KEY)
    loss.backward()
    parameters = list(vae.parameters())
    for group in (None, mesh["data"].get_group()):
        try:
            fastvi.sum_gradients(parameters, group)
        except ValueError as error:
            assert f"parameter 0, of shape {list(parameters[0].shape)}, is a DTensor" in str(error)
        else:
            raise AssertionError("expected an error about shards")
    fastvi.sum_gradients(parameters, samples)
    expected, grads = one_process(fastvi.IWLBLoss(7))
    close(loss.detach(), expected)
    for parameter, grad in zip(parameters, grads, strict=True):
        close(parameter.grad.full_tensor(), grad)


def check_networks_wrapped_apart() -> None:
    """Data-parallel encoder and decoder: the decoder runs in chunks, in both passes."""
    torch.manual_seed(2)
    networks = [nn.Linear(FEATURES, 2 * LATENT), nn.Linear(LATENT, FEATURES)]
    encoder, decoder = (network.double() for network in networks)
    x = (torch.rand(BATCH, FEATURES) > 0.5).double()
    criterion = fastvi.IWLBLoss(7, chunk_size=2)

    def gradients(encode, decode, part: Tensor, key: Tensor) -> list[Tensor]:
        for network in networks:
            network.zero_grad()
        loc, log_var = encode(part).chunk(2, -1)
        criterion(
            loc, log_var, lambda z: fastvi.ops.bernoulli_log_prob(part, decode(z)), key=key
        ).backward()
        return [p.grad.clone() for network in networks for p in network.parameters()]

    keys = [torch.tensor([5, rank]) for rank in range(2)]
    alone = [gradients(encoder, decoder, *each) for each in zip(x.chunk(2), keys, strict=True)]
    rank = dist.get_rank()
    wrapped = [DistributedDataParallel(network) for network in networks]
    for _ in range(2):
        found = gradients(*wrapped, x.chunk(2)[rank], keys[rank])
        for ours, first, second in zip(found, *alone, strict=True):
            close(ours, 0.5 * (first + second))


def check_nccl() -> None:
    """One process: the collectives of a device, and what of the checks they must carry."""
    torch.cuda.set_device(0)
    vae, x = (part.cuda() for part in model())
    loss = vae.loss(x, fastvi.IWLBLoss(7), key=KEY.cuda())
    expected = torch.autograd.grad(loss, list(vae.parameters()))
    for key in (KEY.cuda(), None):
        criterion = fastvi.IWLBLoss(7, chunk_size=2, group=dist.group.WORLD)
        shared = vae.loss(x, criterion, key=key)
        shared.backward()
        fastvi.sum_gradients(vae.parameters())
        grads = [p.grad for p in vae.parameters()]
        vae.zero_grad()
        if key is not None:
            close(shared.detach(), loss.detach())
            for ours, theirs in zip(grads, expected, strict=True):
                close(ours, theirs)
        assert all(grad.isfinite().all() for grad in grads)
    try:
        fastvi.iwlb_loss(
            torch.zeros(BATCH, LATENT, device="cuda"), torch.zeros(BATCH, LATENT, device="cuda"),
            lambda z: z, 7, group=dist.group.WORLD,
        )  # fmt: skip
    except ValueError as error:
        assert "log_likelihood(z) to have shape" in str(error), error
    else:
        raise AssertionError("a failure that was not passed on")


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("nccl" if "nccl" in sys.argv else "gloo")
    for name in sys.argv[1:]:
        globals()[f"check_{name}"]()
    leave()
