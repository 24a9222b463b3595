"""A class and a style of scikit-learn's digits: a Gaussian latent over a categorical one.

Nobody tells the network the classes. Divergences in closed form and a signal for the class that
holds what depends on it alone, less the mean signal of the other samples.
"""

import sys
from functools import partial

import torch
from sklearn.datasets import load_digits
from torch import nn

import fastvi

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 25
digits = load_digits()
torch.manual_seed(0)
order = torch.randperm(len(digits.target))
x = torch.tensor(digits.data / 16.0, dtype=torch.float32)[order]
labels = torch.tensor(digits.target)[order]
CLASSES, STYLE = 20, 2


def network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, outputs))


kind = fastvi.StochasticLayer("categorical", CLASSES, guide=network(64, CLASSES), name="class")
style = fastvi.StochasticLayer(
    "gaussian", STYLE, guide=network(64 + CLASSES, 2 * STYLE), model=nn.Linear(CLASSES, 2 * STYLE),
    name="style", guide_inputs=("x", "class"), model_inputs=("class",),
)  # fmt: skip
vae = fastvi.HierarchicalVAE(
    [kind, style],
    network(CLASSES + STYLE, 64),
    likelihood=fastvi.GaussianLikelihood(scale=0.25),
    decoder_inputs=("class", "style"),
)
model, guide = vae.as_model_and_guide()
objective = fastvi.objectives.Reinforce(8, baseline="leave_one_out", kl="analytic")
svi = fastvi.SVI(model, guide, partial(torch.optim.Adam, lr=3e-3), objective)
history = svi.fit(x, epochs, batch_size=50)

found = kind.guide(x).argmax(-1)
# A class is right where its commonest digit is.
counts = torch.zeros(CLASSES, 10).index_put((found, labels), torch.ones(len(x)), accumulate=True)
right = counts.amax(1).sum() / len(x)
print(f"bound per digit  {history[0].bound / len(x):.2f} -> {history[-1].bound / len(x):.2f} nats")
print(f"classes in use  {(counts.sum(1) > 0).sum()}   digits in a class of their kind  {right:.0%}")
