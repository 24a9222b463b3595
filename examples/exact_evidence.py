"""Fit a model whose log p(x) is known exactly, and watch the bound L_K reach it as K grows.

A linear decoder with Gaussian noise is probabilistic PCA: p(x) is N(b, W W' + s^2 I).
"""

import torch
from torch import nn

import fastvi

torch.manual_seed(0)
latents, features = 2, 8
mixing = torch.randn(latents, features)
x = torch.randn(2000, latents) @ mixing + 0.3 * torch.randn(2000, features)

likelihood = fastvi.GaussianLikelihood(scale=1.0, learned=True)
vae = fastvi.VAE(
    nn.Linear(features, 2 * latents), nn.Linear(latents, features), likelihood=likelihood
)
criterion = fastvi.IWLBLoss(num_samples=16)
optimizer = torch.optim.Adam(vae.parameters(), lr=0.02)
for _ in range(40):
    for batch in x[torch.randperm(len(x))].split(200):
        optimizer.zero_grad()
        vae.loss(batch, criterion).backward()
        optimizer.step()

with torch.no_grad():
    weight, bias, scale = vae.decoder.weight, vae.decoder.bias, likelihood.scale
    covariance = weight @ weight.T + scale**2 * torch.eye(features)
    exact = torch.distributions.MultivariateNormal(bias, covariance).log_prob(x).mean()

print(f"noise scale {scale.item():.3f}, of the data 0.3")
for num_samples in (1, 10, 100, 1000, 10_000):
    bound = vae.log_evidence(x, num_samples).mean()
    print(f"L_{num_samples:<6} {bound:8.4f}   exact - L {exact - bound:7.4f}")
print(f"log p(x) {exact:8.4f}")
