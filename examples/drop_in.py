"""The drop-in loss: the networks, the optimiser and the loop stay as they are."""

import torch

import fastvi

encoder = torch.nn.Linear(784, 2 * 20)  # your networks
decoder = torch.nn.Linear(20, 784)
criterion = fastvi.IWLBLoss(num_samples=64)

x = torch.rand(32, 784).round()  # your batch
loc, log_var = encoder(x).chunk(2, dim=-1)
loss = criterion(loc, log_var, lambda z: fastvi.ops.bernoulli_log_prob(x, decoder(z)))
loss.backward()
print(f"L_64 = {-loss.item():.2f} nats")  # the bound itself, mean over the batch
