"""When a large K helps, what it does to the encoder's gradient, and how few samples run backward.

Everything is known here: the target is a Gaussian in D dimensions, and so is the guide, which is a
little off in each of them.
"""

import functools

import torch

import fastvi

SAMPLES, DATA = 10_000, 20
BATCH, FEATURES = 100, 4
KEY = torch.tensor([2026, 0])


def log_likelihood(z: torch.Tensor) -> torch.Tensor:
    """Data that say nothing: log p(x) = 0, and the posterior is the prior, N(0, I)."""
    return torch.zeros(z.shape[:-1])


def weights(dimensions: int, shift: float) -> torch.Tensor:
    """log w [K, DATA] of a guide whose mean is ``shift`` standard deviations off everywhere."""
    loc = torch.full((DATA, dimensions), shift)
    _, log_q, log_p = fastvi.ops.gaussian_rsample(
        loc, scale=torch.ones_like(loc), num_samples=SAMPLES, key=KEY
    )
    return log_p - log_q


def weights_against_dimensions() -> None:
    print(f"The guide is half a standard deviation off in each dimension; K = {SAMPLES:,}")
    print("| D | KL, nats | ESS | largest weight | k-hat | log p - L_K, nats |")
    print("|---|---|---|---|---|---|")
    for dimensions in (1, 4, 16, 32, 64, 128):
        log_w = weights(dimensions, 0.5)
        ess = fastvi.effective_sample_size(log_w).median().item()
        largest = torch.softmax(log_w, 0).amax(0).median().item()
        k = fastvi.pareto_k(log_w).median().item()
        gap = -fastvi.ops.iwlb(log_w).mean().item()
        divergence = 0.5 * dimensions * 0.5**2
        print(
            f"| {dimensions} | {divergence:.2f} | {ess:,.1f} | {largest:.2%} "
            f"| {k:.2f} | {abs(gap):.2f} |"
        )


def gradients_against_samples() -> None:
    print(f"Signal-to-noise ratio of the gradient of loc, a batch of {BATCH} data, D = {FEATURES}")
    print("| K | iwae | dreg |")
    print("|---|---|---|")
    loc = torch.full((FEATURES,), 0.5, requires_grad=True)
    log_var = torch.full((FEATURES,), 0.4)
    for num_samples in (1, 10, 100, 1_000):
        row = []
        for estimator in ("iwae", "dreg"):
            criterion = fastvi.IWLBLoss(num_samples, estimator)
            loss = functools.partial(gradient_loss, criterion, loc, log_var)
            row.append(fastvi.gradient_snr(loss, [loc], num_draws=300, key=KEY)["all"])
        print(f"| {num_samples:,} | {' | '.join(f'{value:.2f}' for value in row)} |")


def gradient_loss(
    criterion: fastvi.IWLBLoss, loc: torch.Tensor, log_var: torch.Tensor, key: torch.Tensor
) -> torch.Tensor:
    q = loc.expand(BATCH, FEATURES), log_var.expand(BATCH, FEATURES)
    return criterion(*q, log_likelihood, key=key)


def variance_against_dimensions(draws: int = 50) -> None:
    num_samples, data = 1_000, 10
    print(f"Samples that run backward, K = {num_samples:,}: as many as the variance asks for")
    print("| D | ESS | m | time of a step | variance, times that of all K |")
    print("|---|---|---|---|---|")
    for dimensions in (1, 4, 16, 32, 64):
        # Of the prior, which stands for the model: the guide is half a deviation off, as above.
        prior_loc = torch.zeros(data, dimensions, requires_grad=True)
        q = torch.full((data, dimensions), 0.5), torch.zeros(data, dimensions)
        log_w = weights(dimensions, 0.5)[:num_samples]
        ess = fastvi.effective_sample_size(log_w).mean().item()
        few = round(fastvi.needed_backward_samples(log_w).mean().item())
        gradients = []
        for backward_samples in (None, few):
            criterion = fastvi.IWLBLoss(num_samples, backward_samples=backward_samples)
            losses = (
                criterion(*q, log_likelihood, key=KEY + draw, prior=(prior_loc, q[1]))
                for draw in torch.arange(draws)
            )
            gradients.append(
                torch.stack([torch.autograd.grad(loss, prior_loc)[0] for loss in losses])
            )
        whole, chosen = gradients
        growth = 1 + (chosen - whole).square().mean() / whole.var(0).mean()
        time = (1 + 3 * few / num_samples) / 3
        print(f"| {dimensions} | {ess:,.0f} | {few} | {min(time, 1):.0%} | {growth:.2f} |")


if __name__ == "__main__":
    weights_against_dimensions()
    print()
    gradients_against_samples()
    print()
    variance_against_dimensions()
