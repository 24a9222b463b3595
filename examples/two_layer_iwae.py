"""The two stochastic layers of the IWAE paper, narrower, on scikit-learn's digits.

Burda et al., 2016: https://arxiv.org/abs/1509.00519. The bound trained with K = 1, and with K = 10
by the doubly reparameterised gradient; log p(x) of held-out digits for both.
"""

import sys
from functools import partial

import torch
from sklearn.datasets import load_digits
from torch import nn

import fastvi

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 12
digits = torch.tensor(load_digits().data / 16.0, dtype=torch.float32)
torch.manual_seed(0)
digits = digits.bernoulli()[torch.randperm(len(digits))]
train, test = digits[:1500], digits[1500:]


def network() -> fastvi.HierarchicalVAE:
    """h1 of 20 numbers given x, h2 of 10 given h1; each by one hidden layer."""

    def layer(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, outputs))

    first = fastvi.StochasticLayer("gaussian", 20, guide=layer(64, 40), model=layer(10, 40))
    second = fastvi.StochasticLayer("gaussian", 10, guide=layer(20, 20))
    return fastvi.HierarchicalVAE([first, second], layer(20, 64))


for num_samples in (1, 10):
    torch.manual_seed(1)
    vae = network()
    model, guide = vae.as_model_and_guide()
    objective = fastvi.objectives.IWLB(num_samples, "dreg")
    svi = fastvi.SVI(model, guide, partial(torch.optim.Adam, lr=3e-3), objective)
    svi.fit(train, epochs, batch_size=50)
    evidence = vae.log_evidence(test, num_samples=200).mean()
    print(f"trained with K = {num_samples:<3} log p(x) of held-out digits  {evidence:.2f} nats")
