"""Likelihoods of real numbers, with a location from the decoder and a scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from fastvi import distributions
from fastvi.models.likelihoods._heads import heads_of, positive_parameter, split_heads
from fastvi.models.likelihoods.likelihood import Likelihood
from fastvi.ops import gaussian_log_prob, laplace_log_prob, linear_gaussian_log_prob


class _LocationScale(Likelihood):
    """Read the output as the location; the scale is fixed, learned, or an output as well."""

    log_scale: Tensor | None

    def __init__(
        self,
        scale: float | Tensor | None = 1.0,
        *,
        learned: bool = False,
        validate_args: bool = False,
    ) -> None:
        super().__init__()
        where = type(self).__name__
        if scale is None and learned:
            raise ValueError(
                f"{where}: expected learned to be False where scale is None, an output of the "
                f"decoder, got True"
            )
        log_scale = None if scale is None else positive_parameter(where, "scale", scale)
        if learned:
            self.log_scale = nn.Parameter(log_scale)  # type: ignore[arg-type]
        else:
            self.register_buffer("log_scale", log_scale)
        self.validate_args = validate_args

    @property
    def scale(self) -> Tensor | None:
        """Return the scale, learned or fixed; None if it is an output of the decoder."""
        return None if self.log_scale is None else self.log_scale.exp()

    def output_shape(self, event: torch.Size) -> torch.Size:
        return event if self.log_scale is not None else heads_of(event, 2)

    def _parameters_of(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Return the location and the logarithm of the scale."""
        if self.log_scale is not None:
            return output, self.log_scale.to(output.dtype)
        loc, log_scale = split_heads(output, 2)
        return loc, log_scale

    def mean(self, output: Tensor) -> Tensor:
        return self._parameters_of(output)[0]

    def settings(self) -> dict[str, Any]:
        shape = None if self.log_scale is None else list(self.log_scale.shape)
        learned = isinstance(self.log_scale, nn.Parameter)
        return {"scale": shape, "learned": learned, "validate_args": self.validate_args}

    def extra_repr(self) -> str:
        if self.log_scale is None:
            return "scale=None"
        learned = isinstance(self.log_scale, nn.Parameter)
        return f"shape={tuple(self.log_scale.shape)}, learned={learned}"


class GaussianLikelihood(_LocationScale):
    r"""Read the decoder's output as the mean of independent Gaussians.

    With a fixed scale :math:`\sigma` the log-likelihood is the squared error over
    :math:`-2 \sigma^2`, plus a constant.

    Args:
        scale: standard deviation :math:`\sigma`: a number for all features, or a tensor that
            broadcasts to the event's shape. ``None`` makes it an output: the decoder returns
            (loc, log_scale), joined along the last dimension, 2 F numbers for F features.
        learned: make :math:`\log \sigma` a parameter that starts at ``scale``.
        validate_args: check at each call that all inputs are finite.

    Raises:
        TypeError: a scale that is not a real number or tensor.
        ValueError: a scale that is not positive and finite.

    Example:
        >>> likelihood = fastvi.GaussianLikelihood(scale=0.5, learned=True)
        >>> [name for name, _ in likelihood.named_parameters()]
        ['log_scale']
    """

    def distribution(self, output: Tensor) -> Distribution:
        loc, log_scale = self._parameters_of(output)
        return distributions.Normal(loc, log_scale.exp())

    def log_prob(self, x: Tensor, output: Tensor, *, event_dims: int) -> Tensor:
        loc, log_scale = self._parameters_of(output)
        return gaussian_log_prob(
            x, loc, log_scale=log_scale, event_dims=event_dims, validate_args=self.validate_args
        )

    def log_prob_linear(
        self, x: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        assert self.log_scale is not None
        return linear_gaussian_log_prob(
            hidden,
            weight,
            bias,
            x,
            log_scale=self.log_scale.to(hidden.dtype),
            validate_args=self.validate_args,
        )

    def draw(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        loc, log_scale = self._parameters_of(output)
        noise = torch.empty_like(loc).normal_(generator=generator)
        return loc + log_scale.exp() * noise


class LaplaceLikelihood(_LocationScale):
    r"""Read the decoder's output as the location of independent Laplace variables.

    With a fixed scale b the log-likelihood is the absolute error over -b, plus a constant.

    Args:
        scale: b, a number for all features, or a tensor that broadcasts to the event's shape.
            ``None`` makes it an output: the decoder returns (loc, log_scale), joined along the
            last dimension, 2 F numbers for F features.
        learned: make :math:`\log b` a parameter that starts at ``scale``.
        validate_args: check at each call that all inputs are finite.

    Raises:
        TypeError: a scale that is not a real number or tensor.
        ValueError: a scale that is not positive and finite.

    Example:
        >>> likelihood = fastvi.LaplaceLikelihood(scale=2.0)
        >>> likelihood.log_prob(torch.zeros(1), torch.zeros(1, 1), event_dims=1)
        tensor([-1.3863])
    """

    def distribution(self, output: Tensor) -> Distribution:
        loc, log_scale = self._parameters_of(output)
        return distributions.Laplace(loc, log_scale.exp())

    def log_prob(self, x: Tensor, output: Tensor, *, event_dims: int) -> Tensor:
        loc, log_scale = self._parameters_of(output)
        return laplace_log_prob(
            x, loc, log_scale=log_scale, event_dims=event_dims, validate_args=self.validate_args
        )

    def draw(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        loc, log_scale = self._parameters_of(output)
        # The uniform numbers are in (0, 1], because the logarithm of zero is not finite.
        size = -torch.empty_like(loc).uniform_(generator=generator).neg_().log1p()
        sign = torch.empty_like(loc).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
        return loc + log_scale.exp() * sign * size
