"""The Laplace distribution on its op."""

from __future__ import annotations

from torch import Tensor, distributions
from torch.distributions.utils import broadcast_all

from fastvi import ops
from fastvi.distributions._draws import check_draws, rows_of, takes_shapes
from fastvi.distributions._fused import (
    can_evaluate,
    checked,
    evaluate,
    evaluate_plainly,
    in_dtype,
    initialise,
    is_positive,
    is_real,
    log_prob,
    same_shape,
    validate,
)
from fastvi.ops._arguments import drawn_from


class Laplace(distributions.Laplace):
    r"""A Laplace distribution: ``torch.distributions.Laplace`` with a fused log-density.

    .. math::
        \log p(x) = -\frac{|x - \mu|}{b} - \log 2 b

    Args:
        loc: mean :math:`\mu`, a tensor or number.
        scale: :math:`b > 0`, a tensor or number that broadcasts with it.
        validate_args: whether parameters and values are checked; None for torch's setting.

    Raises:
        ValueError: a parameter or value out of its constraint, as torch says it.

    Example:
        >>> p = fastvi.distributions.Laplace(torch.zeros(3), torch.ones(3))
        >>> p.log_prob(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self, loc: Tensor | float, scale: Tensor | float, validate_args: bool | None = None
    ) -> None:
        given = loc, scale  # the parameters are checked before they are broadcast
        if not same_shape(loc, scale):
            loc, scale = broadcast_all(loc, scale)
        assert isinstance(loc, Tensor) and isinstance(scale, Tensor)
        self.loc, self.scale = loc, scale
        is_checked = checked(
            self, Laplace, loc, validate_args, lambda: is_positive(given[1]) and is_real(given[0])
        )
        initialise(self, loc.shape, validate_args, is_checked)

    def expand(self, batch_shape, _instance=None):  # noqa: ANN001, ANN201
        return super().expand(batch_shape, self._get_checked_instance(Laplace, _instance))

    log_prob = log_prob

    def _event_log_prob(self, value: Tensor, event_dims: int) -> Tensor:
        op = ops.laplace_log_prob
        if not can_evaluate(value, self.loc, self.scale):
            return evaluate_plainly(
                self, op, value, self.loc, scale=self.scale, event_dims=event_dims
            )
        if self._validate_args:
            validate(self, Laplace, value, is_real)
        log_prob = evaluate(op, value, self.loc, scale=self.scale, event_dims=event_dims)
        return in_dtype(log_prob, value)

    @takes_shapes
    def rsample_and_log_prob(
        self, num_samples: int, *, key: Tensor | None = None, sample_offset: int | Tensor = 0
    ) -> tuple[Tensor, Tensor]:
        r"""Draw reparameterised samples from a key, and evaluate the log-density of each.

        Args:
            num_samples: K; or a shape, a tuple as in torch's ``sample``, which is then in place of
                K in the results.
            key: from :func:`fastvi.ops.new_key`; None draws one. A key repeats its numbers.
            sample_offset: the number of the first sample among all samples of the key; or the
                numbers of all, int64 of shape (K, \*batch), if an example
                has a dimension of its own in the parameters.

        Returns:
            The samples and their log-densities in nats, each of shape (K, \*batch); the latter
            float32, or float64 for float64.
        """
        check_draws("Laplace.rsample_and_log_prob")
        z, log_q = self._draw(num_samples, key, sample_offset, 0)
        shape = (num_samples, *self.loc.shape)
        return z.reshape(shape), log_q.reshape(shape)

    def _draw(
        self, num_samples: int, key: Tensor | None, sample_offset: int | Tensor, event_dims: int
    ) -> tuple[Tensor, Tensor]:
        """Return rows of samples, with the log-density of each row, or of each element."""
        loc, scale = rows_of(self.loc, self.scale)
        return ops.laplace_rsample(
            loc,
            scale=scale,
            num_samples=num_samples,
            key=key,
            **drawn_from(sample_offset, loc.shape[:-1]),
            event_dims=event_dims,
        )
