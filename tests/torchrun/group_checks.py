"""Run by torchrun: each rank computes the one-process answer too, and compares."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
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
    loss = vae.loss(x, criterion, KEY)
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
        shared = vae.loss(x, criterion, KEY)
        close(shared.detach(), loss)
        shared.sum().backward()
        fastvi.sum_gradients(vae.parameters())
        for parameter, expected in zip(vae.parameters(), grads, strict=True):
            close(parameter.grad, expected)


def check_evidence() -> None:
    vae, x = model()
    whole = vae.log_evidence(x, 11, key=KEY)
    close(vae.log_evidence(x, 11, 2, group=dist.group.WORLD, key=KEY), whole)


def check_own_keys() -> None:
    """Without a key the ranks' own generators differ; the first rank's key serves all."""
    torch.manual_seed(100 + dist.get_rank())
    vae, x = model()
    torch.manual_seed(100 + dist.get_rank())
    loss = vae.loss(x, fastvi.IWLBLoss(9, group=dist.group.WORLD)).detach()
    everyone = [torch.empty_like(loss) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, loss)
    assert all(torch.equal(other, loss) for other in everyone)


def refused(says: str, num_samples: int = 6, scale: float = 1.0, shape: int = BATCH) -> None:
    torch.manual_seed(0)
    loc = scale * torch.randn(shape, LATENT, requires_grad=True)
    try:
        fastvi.iwlb_loss(
            loc, torch.zeros(shape, LATENT), lambda z: -z.square().sum(-1), num_samples, key=KEY,
            group=dist.group.WORLD,
        )  # fmt: skip
    except ValueError as error:
        message = str(error)
        assert says in message and "rank(s) 1" in message, message
    else:
        raise AssertionError(f"not refused: {says}")


def check_disagreement() -> None:
    """Every rank raises, and says who differs from the first; none waits."""
    odd = dist.get_rank() == 1
    refused("num_samples", num_samples=7 if odd else 6)
    refused("loc", scale=1.5 if odd else 1.0)
    refused("number of data", shape=BATCH + 1 if odd else BATCH)


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
    wrapped(mine, criterion, key).backward()
    fastvi.sum_gradients(vae.parameters(), samples)
    alone, x = model()
    for half, part in enumerate(x.chunk(2)):
        (0.5 * alone.loss(part, fastvi.IWLBLoss(7), torch.tensor([5, half]))).backward()
    for parameter, expected in zip(vae.parameters(), alone.parameters(), strict=True):
        close(parameter.grad, expected.grad)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for name in sys.argv[1:]:
        globals()[f"check_{name}"]()
    dist.destroy_process_group()
