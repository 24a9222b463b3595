"""A run of SVI.fit to be killed and gone on with: a checkpoint, whether to resume, where to end.

With a step to die at, the process kills itself there, as the system would.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal

import fastvi


def run(checkpoint: Path, result: Path, die_at: int | None, loader: bool) -> None:
    torch.manual_seed(0)
    x = torch.rand(30, 6).round()
    torch.manual_seed(1)
    encoder, decoder = nn.Linear(6, 4), nn.Sequential(nn.Dropout(0.2), nn.Linear(2, 6))

    def guide(x):
        loc, log_scale = encoder(x).chunk(2, -1)
        return Independent(Normal(loc, log_scale.exp()), 1)

    steps = 0

    def model(z, x):
        nonlocal steps
        steps += 1
        if steps == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        prior = Independent(Normal(torch.zeros(2), torch.ones(2)), 1).log_prob(z)
        return prior + Independent(Bernoulli(logits=decoder(z)), 1).log_prob(x)

    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    svi = fastvi.SVI(model, guide, optimizer, fastvi.objectives.IWLB(4))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)
    data, batch_size = x, 7
    if loader:
        own = torch.Generator().manual_seed(5)
        data = torch.utils.data.DataLoader(x, batch_size=7, shuffle=True, generator=own)
        batch_size = None
    history = svi.fit(
        data, epochs=4, batch_size=batch_size, held_out=None if loader else x[:9], patience=50,
        checkpoint=checkpoint, checkpoint_every=2, resume=True, scheduler=scheduler,
    )  # fmt: skip
    bounds = [(epoch.bound, epoch.held_out) for epoch in history]
    torch.save({"parameters": [p.detach() for p in parameters], "bounds": bounds}, result)


if __name__ == "__main__":
    checkpoint, result, die_at, loader = sys.argv[1:]
    run(Path(checkpoint), Path(result), int(die_at) or None, loader == "loader")
