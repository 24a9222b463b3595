"""Train two layers of binary latents on scikit-learn's digits by VIMCO, and watch log p(x) rise.

python examples/sigmoid_belief_network.py [epochs]
"""

import sys

import torch
from torch import nn

import fastvi
from fastvi.app.images import binarise, binarise_held_out, load_images

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 40
torch.manual_seed(0)
images = load_images("digits")
train, held_out = images.train, binarise_held_out(images.held_out)
pixels, latents = train.shape[1], 50

# The decoder starts from the mean image, as the sigmoid of its bias.
decoder = nn.Linear(latents, pixels)
with torch.no_grad():
    decoder.bias.copy_(train.mean(0).clamp(0.01, 0.99).logit())
network = fastvi.HierarchicalVAE(
    [
        fastvi.StochasticLayer(
            "bernoulli",
            latents,
            guide=nn.Linear(pixels, latents),
            model=nn.Linear(latents, latents),
        ),
        fastvi.StochasticLayer(
            "bernoulli",
            latents,
            guide=nn.Linear(latents, latents),
            prior=nn.Parameter(torch.zeros(latents)),
        ),
    ],
    decoder,
)
objective = fastvi.objectives.VIMCO(num_samples=20)
optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)


def log_evidence() -> float:
    return network.log_evidence(held_out, num_samples=200).mean().item()


print(f"epoch   0  held-out L_200 {log_evidence():8.2f} nats")
for epoch in range(1, epochs + 1):
    for batch in train[torch.randperm(len(train))].split(50):
        optimizer.zero_grad()
        network.loss(binarise(batch), objective).backward()
        optimizer.step()
    if epoch % max(1, epochs // 5) == 0:
        print(f"epoch {epoch:3}  held-out L_200 {log_evidence():8.2f} nats")
