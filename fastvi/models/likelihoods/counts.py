"""Likelihoods of counts: Poisson, negative binomial, and zero-inflated negative binomial."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from fastvi import distributions
from fastvi._checks import holds
from fastvi.models.likelihoods._heads import heads_of, positive_parameter, split_heads
from fastvi.models.likelihoods.likelihood import Likelihood
from fastvi.ops import (
    linear_poisson_log_prob,
    negative_binomial_log_prob,
    poisson_log_prob,
    zero_inflated_negative_binomial_log_prob,
)


class PoissonLikelihood(Likelihood):
    r"""Read the decoder's output as the log-rates of independent counts.

    Args:
        validate_args: check at each call that x holds whole numbers from 0 on, and that all inputs
            are finite.

    Example:
        >>> fastvi.PoissonLikelihood().mean(torch.zeros(2))
        tensor([1., 1.])
    """

    def __init__(self, *, validate_args: bool = False) -> None:
        super().__init__()
        self.validate_args = validate_args

    def distribution(self, output: Tensor) -> Distribution:
        return distributions.Poisson(output.exp())

    def log_prob(self, x: Tensor, output: Tensor, *, event_dims: int) -> Tensor:
        _check_counts("poisson_log_prob", x, self.validate_args)
        return poisson_log_prob(
            x, log_rate=output, event_dims=event_dims, validate_args=self.validate_args
        )

    def log_prob_linear(
        self, x: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        _check_counts("linear_poisson_log_prob", x, self.validate_args)
        return linear_poisson_log_prob(hidden, weight, bias, x, validate_args=self.validate_args)

    def mean(self, output: Tensor) -> Tensor:
        return output.exp()

    def draw(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.poisson(output.exp(), generator=generator)

    def settings(self) -> dict[str, Any]:
        return {"validate_args": self.validate_args}


class _Dispersed(Likelihood):
    """Hold the inverse dispersion of counts: one for each feature, or an output of the decoder."""

    log_dispersion: Tensor | None
    # The outputs for each feature beside the dispersion.
    _heads = 1

    def __init__(
        self, dispersion: float | Tensor | None, learned: bool, validate_args: bool
    ) -> None:
        super().__init__()
        value = None
        if dispersion is not None:
            value = positive_parameter(type(self).__name__, "dispersion", dispersion)
        if learned and value is not None:
            self.log_dispersion = nn.Parameter(value)
        else:
            self.register_buffer("log_dispersion", value)
        self.validate_args = validate_args

    @property
    def dispersion(self) -> Tensor | None:
        """Return the inverse dispersion; None if it is an output of the decoder."""
        return None if self.log_dispersion is None else self.log_dispersion.exp()

    def output_shape(self, event: torch.Size) -> torch.Size:
        heads = self._heads + (self.log_dispersion is None)
        return event if heads == 1 else heads_of(event, heads)

    def _parameters_of(self, output: Tensor) -> list[Tensor]:
        """Return the mean, the logarithm of the dispersion, and further outputs."""
        if self.log_dispersion is None:
            log_mean, log_dispersion, *more = split_heads(output, self._heads + 1)
        else:
            log_mean, *more = split_heads(output, self._heads)
            log_dispersion = self.log_dispersion.to(output.dtype)
        return [log_mean.exp(), log_dispersion, *more]

    def settings(self) -> dict[str, Any]:
        shape = None if self.log_dispersion is None else list(self.log_dispersion.shape)
        learned = self.log_dispersion is None or isinstance(self.log_dispersion, nn.Parameter)
        return {"dispersion": shape, "learned": learned, "validate_args": self.validate_args}

    def extra_repr(self) -> str:
        if self.log_dispersion is None:
            return "dispersion=None"
        learned = isinstance(self.log_dispersion, nn.Parameter)
        return f"shape={tuple(self.log_dispersion.shape)}, learned={learned}"


class NegativeBinomialLikelihood(_Dispersed):
    r"""Read the decoder's output as the log-means of independent overdispersed counts.

    The variance of a count is :math:`\mu + \mu^2 / \theta`, with the inverse dispersion
    :math:`\theta`. As in single-cell work, :math:`\theta` belongs to the feature (the gene), not
    to the example: it is a learned parameter of this module.

    Args:
        dispersion: the first :math:`\theta`: a number for all features, or a tensor that
            broadcasts to the event's shape, such as ``torch.ones(F)`` for one of each feature, the
            choice of ``likelihood="negative_binomial"``. ``None`` makes it an output: the decoder
            returns (log_mean, log_dispersion), joined along the last dimension, 2 F numbers.
        learned: whether :math:`\log \theta` is trained.
        validate_args: check at each call that x holds whole numbers from 0 on, and that all inputs
            are finite.

    Raises:
        TypeError: a dispersion that is not a real number or tensor.
        ValueError: a dispersion that is not positive and finite.

    Example:
        >>> likelihood = fastvi.NegativeBinomialLikelihood(torch.ones(2000))
        >>> vae = fastvi.VAE(torch.nn.Linear(2000, 20), torch.nn.Linear(10, 2000),
        ...                  likelihood=likelihood)
        >>> vae.loss(torch.ones(8, 2000), fastvi.IWLBLoss(16)).backward()
        >>> likelihood.log_dispersion.grad.shape
        torch.Size([2000])

    References:
        | Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018)
        | https://doi.org/10.1038/s41592-018-0229-2
    """

    def __init__(
        self,
        dispersion: float | Tensor | None = 1.0,
        *,
        learned: bool = True,
        validate_args: bool = False,
    ) -> None:
        super().__init__(dispersion, learned, validate_args)

    def distribution(self, output: Tensor) -> Distribution:
        mean, log_dispersion = self._parameters_of(output)
        return distributions.NegativeBinomial(mean=mean, dispersion=log_dispersion.exp())

    def log_prob(self, x: Tensor, output: Tensor, *, event_dims: int) -> Tensor:
        _check_counts("negative_binomial_log_prob", x, self.validate_args)
        mean, log_dispersion = self._parameters_of(output)
        return negative_binomial_log_prob(
            x,
            mean,
            log_dispersion=log_dispersion,
            event_dims=event_dims,
            validate_args=self.validate_args,
        )

    def mean(self, output: Tensor) -> Tensor:
        return self._parameters_of(output)[0]

    def draw(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean, log_dispersion = self._parameters_of(output)
        return _draw_negative_binomial(mean, log_dispersion, generator)


class ZeroInflatedNegativeBinomialLikelihood(_Dispersed):
    r"""Read the decoder's output as the log-means of counts, and the logits of further zeros.

    With probability :math:`\pi` a count is zero whatever its mean. As in single-cell work, the
    decoder gives :math:`\pi` for each example and feature, and each feature has its inverse
    dispersion :math:`\theta`. The decoder returns (log_mean, gate_logits), joined along the last
    dimension, 2 F numbers for F features.

    Args:
        dispersion: as in :class:`NegativeBinomialLikelihood`. ``None`` makes it an output as well:
            the decoder returns (log_mean, log_dispersion, gate_logits), 3 F numbers.
        learned: whether :math:`\log \theta` is trained.
        validate_args: check at each call that x holds whole numbers from 0 on, and that all inputs
            are finite.

    Raises:
        TypeError: a dispersion that is not a real number or tensor.
        ValueError: a dispersion that is not positive and finite.

    Example:
        >>> vae = fastvi.VAE(torch.nn.Linear(50, 20), torch.nn.Linear(10, 2 * 50),
        ...                  likelihood="zero_inflated_negative_binomial")
        >>> vae.sample(4).shape
        torch.Size([4, 50])

    References:
        | Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018)
        | https://doi.org/10.1038/s41592-018-0229-2
    """

    _heads = 2

    def __init__(
        self,
        dispersion: float | Tensor | None = 1.0,
        *,
        learned: bool = True,
        validate_args: bool = False,
    ) -> None:
        super().__init__(dispersion, learned, validate_args)

    def distribution(self, output: Tensor) -> Distribution:
        mean, log_dispersion, gate_logits = self._parameters_of(output)
        return distributions.ZeroInflatedNegativeBinomial(
            mean=mean, dispersion=log_dispersion.exp(), gate_logits=gate_logits
        )

    def log_prob(self, x: Tensor, output: Tensor, *, event_dims: int) -> Tensor:
        _check_counts("zero_inflated_negative_binomial_log_prob", x, self.validate_args)
        mean, log_dispersion, gate_logits = self._parameters_of(output)
        return zero_inflated_negative_binomial_log_prob(
            x,
            mean,
            gate_logits=gate_logits,
            log_dispersion=log_dispersion,
            event_dims=event_dims,
            validate_args=self.validate_args,
        )

    def mean(self, output: Tensor) -> Tensor:
        mean, _, gate_logits = self._parameters_of(output)
        return (-gate_logits).sigmoid() * mean

    def draw(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean, log_dispersion, gate_logits = self._parameters_of(output)
        counts = _draw_negative_binomial(mean, log_dispersion, generator)
        counted = torch.bernoulli((-gate_logits).sigmoid(), generator=generator)
        return torch.where(counted == 0, 0.0, counts)


def _draw_negative_binomial(
    mean: Tensor, log_dispersion: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Draw a count whose rate has a Gamma distribution of mean mu and shape theta."""
    mean, log_dispersion = torch.broadcast_tensors(mean, log_dispersion)
    shape = log_dispersion.exp()
    gamma = torch._standard_gamma(shape, generator=generator)
    return torch.poisson(gamma * (mean / shape), generator=generator)


def _check_counts(op: str, x: Tensor, validate_args: bool) -> None:
    if validate_args and not holds(op, (x == x.floor()) | ~x.isfinite()):
        raise ValueError(f"{op}: expected x to be counts, whole numbers from 0 on, got fractions")
