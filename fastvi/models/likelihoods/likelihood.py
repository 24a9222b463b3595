"""The base of all likelihoods, and the likelihood that a function defines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from fastvi._checks import check_callable
from fastvi.distributions._parts import broadcasts
from fastvi.models._random import seed_from, seeded


class Likelihood(nn.Module):
    r"""Describe p(x given z) by the decoder's output.

    Derive from this class for a family of your own. There are two ways:

    - Define :meth:`distribution` alone. The distribution then gives the log-density, the mean and
      the draws.
    - Define :meth:`log_prob`, and :meth:`mean` and :meth:`draw` if the model is to reconstruct and
      to sample. This is for a family with a kernel of its own.

    A parameter that is no output of the decoder, such as a dispersion for each feature, belongs to
    this module, and is trained and saved with the model.

    Shapes: the decoder's output is (\*rows, \*output_shape), where the rows are (K, \*batch) in
    training and :meth:`output_shape` follows from the event's shape. Data are (\*batch, \*event).

    Example:
        >>> class Exponential(fastvi.Likelihood):
        ...     def distribution(self, output):
        ...         return torch.distributions.Exponential(torch.nn.functional.softplus(output))
        >>> vae = fastvi.VAE(torch.nn.Linear(5, 4), torch.nn.Linear(2, 5), likelihood=Exponential())
        >>> vae.log_weights(torch.rand(8, 5), num_samples=16).shape
        torch.Size([16, 8])
    """

    # Whether x may have an integer dtype, as classes have.
    takes_integers = False

    def output_shape(self, event: torch.Size) -> torch.Size | None:
        r"""Return the shape of the decoder's output for one event of this shape.

        The default is one number for each feature of x. ``None`` allows every shape, and a size
        of -1 any size of that dimension.
        """
        return event

    def distribution(self, output: Tensor) -> Distribution:
        r"""Make p(x given z) of the decoder's output.

        Args:
            output: of the decoder, shape (\*rows, \*output_shape).

        Returns:
            A distribution whose batch and event shapes together are (\*rows, \*event).
        """
        raise NotImplementedError(
            f"{type(self).__name__}: expected this likelihood to define distribution, or log_prob, "
            f"mean and draw, got neither"
        )

    def log_prob(self, x: Tensor, output: Tensor, *, event_dims: int) -> Tensor:
        r"""Sum log p(x given z) over the event.

        Args:
            x: data, shape (\*batch, \*event).
            output: of the decoder, shape (K, \*batch, \*output_shape).
            event_dims: the number of dimensions of an event.

        Returns:
            The log-density in nats, shape (K, \*batch).
        """
        where = type(self).__name__
        p = _checked(where, self.distribution(output))
        rows = output.shape[: x.ndim - event_dims + 1]
        expected = torch.Size((*rows, *x.shape[x.ndim - event_dims :]))
        got = p.batch_shape + p.event_shape
        if got != expected:
            raise ValueError(
                f"{where}: expected the distribution to be of x, with batch and event shapes that "
                f"together are {list(expected)}, got batch shape {list(p.batch_shape)} and event "
                f"shape {list(p.event_shape)}"
            )
        if len(p.event_shape) > event_dims:
            raise ValueError(
                f"{where}: expected an event of the distribution to be at most one datum, of "
                f"{event_dims} dimensions, got event shape {list(p.event_shape)}"
            )
        try:
            # Other libraries' classes may not broadcast a value to the batch, as torch's do.
            log_p = p.log_prob(x if broadcasts(p) else x.expand(got))
        except ValueError as error:
            raise ValueError(
                f"{where}: expected x to be in the support of {type(p).__name__}: {error}"
            ) from error
        left = log_p.ndim - len(rows)
        return log_p.flatten(-left).sum(-1) if left else log_p

    def log_prob_linear(
        self, x: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        r"""Compute log_prob for the output W h + b of a decoder's last layer, without storing it.

        This method is optional. If a class does not define it, or defines log_prob anew without
        it, the output is computed and given to :meth:`log_prob`. Events have one dimension.

        Args:
            x: data, shape (\*batch, F).
            hidden: the input of the last layer, shape (K, \*batch, H).
            weight: of that layer, shape (F, H).
            bias: of that layer, shape (F,), or ``None``.

        Returns:
            The log-density in nats, shape (K, \*batch).
        """
        raise NotImplementedError

    def mean(self, output: Tensor) -> Tensor:
        r"""Compute E[x given z], shape (\*rows, \*event)."""
        p = _checked(type(self).__name__, self.distribution(output))
        try:
            return p.mean
        except NotImplementedError as error:
            raise ValueError(
                f"{type(self).__name__}: expected the distribution to have a mean, got "
                f"{type(p).__name__}; sample(..., mean=False) draws from it"
            ) from error

    def draw(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        r"""Draw one x for each row, shape (\*rows, \*event).

        Args:
            output: of the decoder, shape (\*rows, \*output_shape).
            generator: on the device of the output; the default is torch's own.
        """
        p = _checked(type(self).__name__, self.distribution(output))
        # torch's distributions can draw only by torch's own generator.
        with seeded(seed_from(generator), output.device):
            return p.sample()

    def settings(self) -> dict[str, Any] | None:
        """Return the arguments that make an equal likelihood, as plain values.

        A saved model holds them. With ``None``, the default, ``load`` has to be given one.
        """
        return None


class DistributionLikelihood(Likelihood):
    r"""Read the decoder's output by a function that makes a distribution of it.

    A model makes one of a function or module that it gets as ``likelihood``. A module's
    parameters are trained with the model.

    Args:
        function: from the decoder's output, shape (\*rows, \*output), to a
            ``torch.distributions.Distribution`` of x, whose batch and event shapes together are
            (\*rows, \*event).

    Raises:
        TypeError: the function cannot be called; in use, its result is no distribution.
        ValueError: in use, the distribution does not have the shape of x, or x is outside its
            support.

    Example:
        >>> def student(output):
        ...     return torch.distributions.StudentT(4.0, *output.chunk(2, -1))
        >>> decoder = torch.nn.Sequential(torch.nn.Linear(2, 10), torch.nn.Softplus())
        >>> vae = fastvi.VAE(torch.nn.Linear(5, 4), decoder, likelihood=student)
        >>> vae.loss(torch.randn(8, 5), fastvi.IWLBLoss(16)).backward()
    """

    def __init__(self, function: Callable[[Tensor], Distribution]) -> None:
        super().__init__()
        check_callable("DistributionLikelihood", "function", function, "callable")
        self.function = function

    def output_shape(self, event: torch.Size) -> None:
        return None

    def distribution(self, output: Tensor) -> Distribution:
        return self.function(output)

    def extra_repr(self) -> str:
        named = getattr(self.function, "__qualname__", None)
        return "" if isinstance(self.function, nn.Module) else named or repr(self.function)


def _checked(where: str, distribution: object) -> Distribution:
    if not isinstance(distribution, Distribution):
        raise TypeError(
            f"{where}: expected the decoder's output to become a torch.distributions.Distribution, "
            f"got {type(distribution).__name__}"
        )
    return distribution
