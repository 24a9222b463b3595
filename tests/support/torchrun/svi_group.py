"""One step of SVI with its samples shared among the ranks: that of one process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from leaving import leave
from torch.distributions import Normal, constraints

import fastvi
from fastvi.objectives import IWLB


def step(objective: IWLB) -> tuple[torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(0)
    x = torch.randn(8, dtype=torch.float64)
    guide = fastvi.guides.LowRankGaussian(
        {"mean": (), "scale": ()}, {"scale": constraints.positive}, rank=1, dtype=torch.float64
    )
    level = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def model(z, x):
        mean = (z["mean"] + level)[:, None]
        return Normal(mean, z["scale"][:, None]).log_prob(x).sum(1) - z["scale"] - z["mean"] ** 2

    parameters = [level, *guide.parameters()]
    svi = fastvi.SVI(model, guide, torch.optim.SGD(parameters, lr=0.0), objective)
    value = svi.step(x)
    return value, [p.grad for p in parameters]


def main() -> None:
    dist.init_process_group("gloo")
    for estimator in ("dreg", "iwae", "rws"):
        expected, gradients = step(IWLB(7, estimator))
        for chunk_size in (None, 2):
            shared = IWLB(7, estimator, chunk_size=chunk_size, group=dist.group.WORLD)
            value, shares = step(shared)
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
            for share, gradient in zip(shares, gradients, strict=True):
                torch.testing.assert_close(share, gradient, rtol=1e-10, atol=1e-10)
    # Ranks that drew other samples do not go on.
    torch.manual_seed(dist.get_rank())
    q = Normal(torch.zeros(3), 1.0)
    latent = fastvi.objectives.Latent.draw("z", q, 4)
    try:
        IWLB(4, group=dist.group.WORLD).bound([latent], lambda z: -(z["z"] ** 2))
    except ValueError as error:
        assert "differ from rank 0" in str(error)
    else:
        raise AssertionError("different samples were not noticed")
    leave()


if __name__ == "__main__":
    main()
