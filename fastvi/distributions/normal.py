"""The normal distribution on the Gaussian ops."""

from __future__ import annotations

import torch
from torch import Tensor, distributions
from torch.distributions import register_kl
from torch.distributions.utils import broadcast_all

from fastvi import ops
from fastvi.distributions._draws import check_draws, rows_of, takes_shapes
from fastvi.distributions._fused import (
    can_evaluate,
    can_run,
    checked,
    evaluate,
    evaluate_plainly,
    in_dtype,
    initialise,
    is_positive,
    is_real,
    log_prob,
    same_shape,
    unrepeated,
    validate,
)
from fastvi.ops._arguments import drawn_from
from fastvi.ops.gaussian_kl import kl_of_scales


class Normal(distributions.Normal):
    r"""A normal distribution: ``torch.distributions.Normal`` with a fused log-density.

    .. math::
        \log p(x) = -\tfrac12 \left(\frac{x - \mu}{\sigma}\right)^2 - \log \sigma
                    - \tfrac12 \log 2\pi

    Args:
        loc: mean :math:`\mu`, a tensor or number.
        scale: standard deviation :math:`\sigma > 0`, a tensor or number that broadcasts with it.
        validate_args: whether parameters and values are checked; None for torch's setting.

    Raises:
        ValueError: a parameter or value out of its constraint, as torch says it.

    Example:
        >>> q = fastvi.distributions.Normal(torch.zeros(4, 3), torch.ones(4, 3))
        >>> z, log_q = q.rsample_and_log_prob(10)
        >>> z.shape, log_q.shape
        (torch.Size([10, 4, 3]), torch.Size([10, 4, 3]))
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
            self, Normal, loc, validate_args, lambda: is_positive(given[1]) and is_real(given[0])
        )
        initialise(self, loc.shape, validate_args, is_checked)

    def expand(self, batch_shape, _instance=None):  # noqa: ANN001, ANN201
        return super().expand(batch_shape, self._get_checked_instance(Normal, _instance))

    log_prob = log_prob

    def _event_log_prob(self, value: Tensor, event_dims: int) -> Tensor:
        op = ops.gaussian_log_prob
        if not can_evaluate(value, self.loc, self.scale):
            return evaluate_plainly(
                self, op, value, self.loc, scale=self.scale, event_dims=event_dims
            )
        if self._validate_args:
            validate(self, Normal, value, is_real)
        loc, scale = (unrepeated(x, value, event_dims) for x in (self.loc, self.scale))
        log_prob = evaluate(op, value, loc, scale=scale, event_dims=event_dims)
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
        check_draws("Normal.rsample_and_log_prob")
        z, log_q = self._draw(num_samples, key, sample_offset, 0)
        shape = (num_samples, *self.loc.shape)
        return z.reshape(shape), log_q.reshape(shape)

    def _draw(
        self, num_samples: int, key: Tensor | None, sample_offset: int | Tensor, event_dims: int
    ) -> tuple[Tensor, Tensor]:
        """Return rows of samples, with the log-density of each row, or of each element."""
        loc, scale = rows_of(self.loc, self.scale)
        return ops.gaussian_rsample(
            loc,
            scale=scale,
            num_samples=num_samples,
            key=key,
            **drawn_from(sample_offset, loc.shape[:-1]),
            event_dims=event_dims,
        )[:2]


def kl_of_normals(*parameters: Tensor) -> Tensor:
    """Return the divergence, summed over the last dimension, from loc and scale of both."""
    operands = torch.broadcast_tensors(*parameters)
    dtype = torch.promote_types(operands[0].dtype, operands[2].dtype)
    operands = [x.to(dtype) for x in operands]
    if can_run(*operands):
        return in_dtype(evaluate(kl_of_scales, *operands), operands[0])
    return in_dtype(kl_of_scales.reference(*operands), operands[0])  # type: ignore[attr-defined]


@register_kl(Normal, Normal)
def _kl_normal(p: Normal, q: Normal) -> Tensor:
    return kl_of_normals(*(x.unsqueeze(-1) for x in (p.loc, p.scale, q.loc, q.scale)))
