"""A mixture whose assignments are discrete latents: three objectives, and enumeration beside them.

The classes' places and shares are parameters of the model; a network guesses each example's class.
Summing over the classes gives the evidence and the true probabilities of the classes exactly.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal

import fastvi

torch.manual_seed(0)
places = torch.tensor([[-2.0, 0.0], [2.0, 0.5], [0.0, 2.5]])
classes = Categorical(torch.tensor([0.5, 0.3, 0.2])).sample((300,))
x = places[classes] + 0.7 * torch.randn(300, 2)


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.zeros(3))
        # Where no two classes begin alike.
        self.place = nn.Parameter(torch.tensor([[-1.0, -1.0], [1.0, -1.0], [0.0, 1.0]]))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def density(self, x: Tensor, z: Tensor) -> Tensor:
        scale = self.log_scale.exp()
        return Independent(Normal(self.place[z], scale), 1).log_prob(x)

    def forward(self, z: Tensor, x: Tensor) -> dict:
        return {"z": Categorical(logits=self.share), "x": self.density(x, z)}

    def enumerate(self, x: Tensor) -> Tensor:
        """log p(x, z) for every class, [B, 3]."""
        each = self.density(x[:, None], torch.arange(3))
        return self.share.log_softmax(0) + each


for name, objective in {
    "VIMCO": fastvi.objectives.VIMCO(10),
    "Reinforce": fastvi.objectives.Reinforce(10, "leave_one_out"),
    "wake-sleep": fastvi.objectives.IWLB(10, "rws"),
}.items():
    torch.manual_seed(1)
    model = Mixture()
    network = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 3))
    guide = fastvi.guides.CategoricalGuide(network)
    svi = fastvi.SVI(model, guide, functools.partial(torch.optim.Adam, lr=0.01), objective)
    svi.fit(x, epochs=100, batch_size=50)
    with torch.no_grad():
        joint = model.enumerate(x)
        off = (guide.probs(x) - joint.softmax(-1)).abs().sum(-1).mean() / 2
        bound = svi.evaluate(x, num_samples=1_000) / len(x)
        evidence = joint.logsumexp(-1).mean()
        truth = (model.place - places).norm(dim=-1).max()
    print(
        f"{name:12} bound {bound:7.4f}  evidence {evidence:7.4f}  "
        f"guide off by {off:.3f}  places off by {truth:.3f}"
    )
