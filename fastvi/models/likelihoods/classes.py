"""Likelihoods of finitely many outcomes: a pixel that is set or not, and one of C classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from fastvi import distributions
from fastvi._checks import holds
from fastvi.models.likelihoods.likelihood import Likelihood
from fastvi.ops import bernoulli_log_prob, categorical_log_prob, linear_bernoulli_log_prob


class BernoulliLikelihood(Likelihood):
    """Read the decoder's output as the logits of independent pixels.

    Args:
        validate_args: check at each call that x lies in [0, 1] and that all inputs are finite.

    Example:
        >>> fastvi.BernoulliLikelihood().mean(torch.zeros(2))
        tensor([0.5000, 0.5000])
    """

    def __init__(self, *, validate_args: bool = False) -> None:
        super().__init__()
        self.validate_args = validate_args

    def distribution(self, output: Tensor) -> Distribution:
        return distributions.Bernoulli(logits=output)

    def log_prob(self, x: Tensor, output: Tensor, *, event_dims: int) -> Tensor:
        return bernoulli_log_prob(
            x, output, event_dims=event_dims, validate_args=self.validate_args
        )

    def log_prob_linear(
        self, x: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        return linear_bernoulli_log_prob(hidden, weight, bias, x, validate_args=self.validate_args)

    def mean(self, output: Tensor) -> Tensor:
        return output.sigmoid()

    def draw(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(output.sigmoid(), generator=generator)

    def settings(self) -> dict[str, Any]:
        return {"validate_args": self.validate_args}


class CategoricalLikelihood(Likelihood):
    r"""Read the decoder's output as the logits of one class for each feature.

    x holds the numbers of the classes, from 0 to C - 1, in any dtype, shape (\*batch, \*event).
    The decoder returns (\*rows, \*event, C). Classes have no mean: :meth:`mean`, and so
    ``reconstruct`` and ``sample(mean=True)``, return the most probable class.

    Args:
        validate_args: check at each call that x holds numbers of classes, and that no logit is NaN
            or :math:`+\infty`. Without it, x out of range gives NaN.

    Example:
        >>> decoder = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 5 * 10), torch.nn.Unflatten(1, (5, 10)))
        >>> vae = fastvi.VAE(torch.nn.Linear(5, 4), decoder, likelihood="categorical")
        >>> vae.log_weights(torch.tensor([[0.0, 3.0, 9.0, 1.0, 1.0]]), num_samples=16).shape
        torch.Size([16, 1])
    """

    takes_integers = True

    def __init__(self, *, validate_args: bool = False) -> None:
        super().__init__()
        self.validate_args = validate_args

    def output_shape(self, event: torch.Size) -> torch.Size:
        # Any number of classes.
        return torch.Size((*event, -1))

    def distribution(self, output: Tensor) -> Distribution:
        return distributions.Categorical(logits=output)

    def log_prob(self, x: Tensor, output: Tensor, *, event_dims: int) -> Tensor:
        if x.is_floating_point():
            if self.validate_args and not holds("categorical_log_prob", x == x.floor()):
                raise ValueError(
                    "categorical_log_prob: expected x to be the numbers of classes, got fractions"
                )
            x = x.nan_to_num(nan=-1.0).floor().long()
        log_p = categorical_log_prob(x, output, validate_args=self.validate_args)
        return log_p.flatten(-event_dims).sum(-1) if event_dims else log_p

    def mean(self, output: Tensor) -> Tensor:
        return output.argmax(-1).to(output.dtype)

    def draw(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        # The largest of the logits with Gumbel noise, of which no sum is formed.
        noise = torch.empty_like(output).exponential_(generator=generator).log_()
        return (output - noise).argmax(-1).to(output.dtype)

    def settings(self) -> dict[str, Any]:
        return {"validate_args": self.validate_args}
