"""The Bernoulli distribution on its op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributions
from torch.distributions.utils import lazy_property

from fastvi import ops
from fastvi.distributions._draws import check_draws, rows_of, takes_shapes
from fastvi.distributions._fused import (
    can_evaluate,
    checked,
    evaluate,
    evaluate_plainly,
    in_dtype,
    initialise,
    is_boolean,
    is_real,
    is_unit,
    log_prob,
    validate,
)
from fastvi.distributions._probabilities import (
    clamped,
    log_odds,
    log_prob_of_probs,
)
from fastvi.ops._arguments import drawn_from
from fastvi.ops._event import sum_event


class Bernoulli(distributions.Bernoulli):
    r"""A Bernoulli distribution: ``torch.distributions.Bernoulli`` with a fused log-density.

    .. math::
        \log p(x) = x \ell - \log(1 + e^\ell)

    Args:
        probs: the probability of 1, a tensor or number; exactly one of the two.
        logits: the log-odds :math:`\ell` of 1, which the kernel takes.
        validate_args: whether parameters and values are checked; None for torch's setting.

    Raises:
        ValueError: none or both parameters, or one or a value out of its constraint, as torch
            says it.

    Example:
        >>> p = fastvi.distributions.Bernoulli(logits=torch.zeros(4, 784))
        >>> x, log_p = p.sample_and_log_prob(10)
        >>> x.shape, log_p.shape
        (torch.Size([10, 4, 784]), torch.Size([10, 4, 784]))
    """

    def __init__(
        self,
        probs: Tensor | float | None = None,
        logits: Tensor | float | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if isinstance(logits, Tensor) and probs is None:
            self.logits = self._param = logits
            is_checked = checked(self, Bernoulli, logits, validate_args, lambda: is_real(logits))
            initialise(self, logits.shape, validate_args, is_checked)
        elif isinstance(probs, Tensor) and logits is None:
            self.probs = self._param = probs
            is_checked = checked(self, Bernoulli, probs, validate_args, lambda: is_unit(probs))
            initialise(self, probs.shape, validate_args, is_checked)
        else:
            super().__init__(probs, logits, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):  # noqa: ANN001, ANN201
        new = super().expand(batch_shape, self._get_checked_instance(Bernoulli, _instance))
        # torch takes the logits for the parameter once they were computed.
        new._param = new.probs if self._param is self.__dict__.get("probs") else new.logits
        return new

    log_prob = log_prob

    @lazy_property
    def logits(self) -> Tensor:
        return evaluate(log_odds, self.probs)

    def _event_log_prob(self, value: Tensor, event_dims: int) -> Tensor:
        op: Any = ops.bernoulli_log_prob
        by_probs = self._param is self.__dict__.get("probs")
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return sum_event(super().log_prob(value), event_dims)  # which refuses it
        if not can_evaluate(value, self._param):
            if by_probs:  # the probabilities are clamped in their own type, not in the value's
                given = clamped(self._param)
                return evaluate_plainly(
                    self, log_prob_of_probs, value, given, event_dims=event_dims
                )
            return evaluate_plainly(self, op, value, self._param, event_dims=event_dims)
        if self._validate_args:
            validate(self, Bernoulli, value, is_boolean)
        if by_probs:
            logits = self.__dict__.get("logits")
            log_prob = log_prob_of_probs(value, self._param, logits, event_dims)
        else:
            log_prob = evaluate(op, value, self._param, event_dims=event_dims)
        return in_dtype(log_prob, value)

    @takes_shapes
    def sample_and_log_prob(
        self, num_samples: int, *, key: Tensor | None = None, sample_offset: int | Tensor = 0
    ) -> tuple[Tensor, Tensor]:
        r"""Draw samples from a key, and evaluate the log-probability of each.

        Args:
            num_samples: K; or a shape, a tuple as in torch's ``sample``, which is then in place of
                K in the results.
            key: from :func:`fastvi.ops.new_key`; None draws one. A key repeats its numbers.
            sample_offset: the number of the first sample among all samples of the key; or the
                numbers of all, int64 of shape (K, \*batch), if an example
                has a dimension of its own in the parameters.

        Returns:
            The samples, which have no gradient, in the type of the parameters, and
            their log-probabilities in nats, float32 (float64 for float64), each of shape
            (K, \*batch).
        """
        check_draws("Bernoulli.sample_and_log_prob")
        x, log_p = self._draw(num_samples, key, sample_offset, 0)
        shape = (num_samples, *self._param.shape)
        return x.reshape(shape), log_p.reshape(shape)

    def _draw(
        self, num_samples: int, key: Tensor | None, sample_offset: int | Tensor, event_dims: int
    ) -> tuple[Tensor, Tensor]:
        """Return rows of samples, with the log-probability of each row, or of each element."""
        if self._param is self.__dict__.get("logits"):
            (logits,) = rows_of(self.logits)
            return ops.bernoulli_sample(
                logits,
                num_samples,
                key=key,
                **drawn_from(sample_offset, logits.shape[:-1]),
                event_dims=event_dims,
            )
        # torch keeps the log-odds of probabilities 0 and 1 finite, so both outcomes could be drawn.
        (probs,) = rows_of(self.probs.detach())
        exact = torch.logit(probs if probs.dtype == torch.float64 else probs.float())
        x, _ = ops.bernoulli_sample(
            exact, num_samples, key=key, **drawn_from(sample_offset, exact.shape[:-1])
        )
        x = x.to(probs.dtype)
        (logits,) = rows_of(self.logits)
        return x, ops.bernoulli_log_prob(x, logits, event_dims=event_dims)
