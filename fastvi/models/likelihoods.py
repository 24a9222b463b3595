"""What the decoder's output means: p(x given z), for the VAE."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastvi.ops import (
    bernoulli_log_prob,
    gaussian_log_prob,
    linear_bernoulli_log_prob,
    linear_gaussian_log_prob,
    linear_poisson_log_prob,
    poisson_log_prob,
)


class Likelihood(nn.Module):
    """Describe p(x given z) by the decoder's output: derive from this for a family of your own."""

    def log_prob(self, x: Tensor, output: Tensor, event_dims: int) -> Tensor:
        r"""Sum log p(x given z) over the event, in nats: (K, \*batch, \*event) to (K, \*batch)."""
        raise NotImplementedError

    def log_prob_linear(
        self, x: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        r"""Compute log_prob for the output W h + b of a decoder's last layer, without storing it.

        Optional: where a class does not define it, or defines log_prob anew without it, the output
        is computed and given to :meth:`log_prob`. Events have one dimension.
        (K, \*batch, H), (F, H), (F,) to (K, \*batch).
        """
        raise NotImplementedError

    def mean(self, output: Tensor) -> Tensor:
        """Compute E[x given z]."""
        raise NotImplementedError

    def draw(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw x given z."""
        raise NotImplementedError


class BernoulliLikelihood(Likelihood):
    """Read the decoder's output as the logits of independent pixels.

    Args:
        validate_args: check at each call that x lies in [0, 1] and that all inputs are finite.

    Example:
        >>> fastvi.BernoulliLikelihood().mean(torch.zeros(2))
        tensor([0.5000, 0.5000])
    """

    def __init__(self, validate_args: bool = False) -> None:
        super().__init__()
        self.validate_args = validate_args

    def log_prob(self, x: Tensor, output: Tensor, event_dims: int) -> Tensor:
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


class GaussianLikelihood(Likelihood):
    r"""Read the decoder's output as the mean of independent Gaussians.

    With a fixed scale :math:`\sigma` the log-likelihood is the squared error over
    :math:`-2 \sigma^2`, plus a constant.

    Args:
        scale: standard deviation :math:`\sigma`: a number for all features, or a tensor that
            broadcasts to the event's shape.
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

    log_scale: Tensor

    def __init__(
        self,
        scale: float | Tensor = 1.0,
        learned: bool = False,
        validate_args: bool = False,
    ) -> None:
        super().__init__()
        try:
            value = torch.as_tensor(scale)
            # A number has a value, also where new tensors are to be on the meta device.
            known = scale if isinstance(scale, Tensor) else torch.as_tensor(scale, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                "GaussianLikelihood: expected scale to be a number or a tensor, "
                f"got {type(scale).__name__}"
            ) from error
        if value.is_complex():
            raise TypeError(f"GaussianLikelihood: expected scale to be real, got {value.dtype}")
        if not value.is_floating_point():
            value = value.to(torch.get_default_dtype())
        if not known.is_meta and not bool(((known > 0) & (known < math.inf)).all()):
            raise ValueError(
                f"GaussianLikelihood: expected scale to be positive and finite, got {scale}"
            )
        self.validate_args = validate_args
        log_scale = value.detach().log()
        if learned:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    @property
    def scale(self) -> Tensor:
        r""":math:`\sigma`, learned or fixed."""
        return self.log_scale.exp()

    def log_prob(self, x: Tensor, output: Tensor, event_dims: int) -> Tensor:
        return gaussian_log_prob(
            x,
            output,
            log_scale=self.log_scale.to(output.dtype),
            event_dims=event_dims,
            validate_args=self.validate_args,
        )

    def log_prob_linear(
        self, x: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        return linear_gaussian_log_prob(
            hidden,
            weight,
            bias,
            x,
            log_scale=self.log_scale.to(hidden.dtype),
            validate_args=self.validate_args,
        )

    def mean(self, output: Tensor) -> Tensor:
        return output

    def draw(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.empty_like(output).normal_(generator=generator)
        return output + self.scale.to(output.dtype) * noise

    def extra_repr(self) -> str:
        learned = isinstance(self.log_scale, nn.Parameter)
        return f"shape={tuple(self.log_scale.shape)}, learned={learned}"


class PoissonLikelihood(Likelihood):
    r"""Read the decoder's output as the log-rates of independent counts.

    Args:
        validate_args: check at each call that x is not negative and that all inputs are finite.

    Example:
        >>> fastvi.PoissonLikelihood().mean(torch.zeros(2))
        tensor([1., 1.])
    """

    def __init__(self, validate_args: bool = False) -> None:
        super().__init__()
        self.validate_args = validate_args

    def log_prob(self, x: Tensor, output: Tensor, event_dims: int) -> Tensor:
        return poisson_log_prob(
            x, log_rate=output, event_dims=event_dims, validate_args=self.validate_args
        )

    def log_prob_linear(
        self, x: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        return linear_poisson_log_prob(hidden, weight, bias, x, validate_args=self.validate_args)

    def mean(self, output: Tensor) -> Tensor:
        return output.exp()

    def draw(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.poisson(output.exp(), generator=generator)


_BY_NAME = {
    "bernoulli": BernoulliLikelihood,
    "gaussian": GaussianLikelihood,
    "poisson": PoissonLikelihood,
}


def likelihood_of(where: str, likelihood: str | Likelihood) -> Likelihood:
    """The likelihood of that name, or the one given."""
    if isinstance(likelihood, Likelihood):
        return likelihood
    if not isinstance(likelihood, str):
        raise TypeError(
            f"{where}: expected likelihood to be a name or a fastvi.models.likelihoods.Likelihood, "
            f"got {type(likelihood).__name__}"
        )
    if likelihood not in _BY_NAME:
        *names, last = (repr(name) for name in _BY_NAME)
        raise ValueError(
            f"{where}: expected likelihood to be {', '.join(names)} or {last}, got {likelihood!r}"
        )
    return _BY_NAME[likelihood]()
