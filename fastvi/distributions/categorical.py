"""The categorical distribution on its op."""

from __future__ import annotations

import torch
from torch import Tensor, distributions

from fastvi import ops
from fastvi.distributions._draws import uniforms
from fastvi.distributions._fused import can_run, in_dtype
from fastvi.ops._event import sum_event


class Categorical(distributions.Categorical):
    r"""A categorical distribution: ``torch.distributions.Categorical`` with a fused log-density.

    .. math::
        \log p(x) = \ell_x - \log \sum_c e^{\ell_c}

    Args:
        probs: probabilities, of any positive sum, shape (\*batch, C); exactly one of the two.
        logits: :math:`\ell`, shape (\*batch, C).
        validate_args: whether parameters and values are checked; None for torch's setting.

    Raises:
        ValueError: none or both parameters, or one or a value out of its constraint, as torch
            says it.

    Example:
        >>> p = fastvi.distributions.Categorical(logits=torch.zeros(4, 10))
        >>> x, log_p = p.sample_and_log_prob(50)
        >>> x.shape, log_p.shape
        (torch.Size([50, 4]), torch.Size([50, 4]))
    """

    def expand(self, batch_shape, _instance=None):  # noqa: ANN001, ANN201
        return super().expand(batch_shape, self._get_checked_instance(Categorical, _instance))

    def log_prob(self, value: Tensor) -> Tensor:
        """Evaluate the log-probability of each class, in nats."""
        return self._event_log_prob(value, 0)

    def _event_log_prob(self, value: Tensor, event_dims: int) -> Tensor:
        # What is checked is in range, so the kernel needs no check of its own.
        checked = self._validate_args and isinstance(value, Tensor)
        if not checked or value.device != self.logits.device or not can_run(value):
            return sum_event(super().log_prob(value), event_dims)
        self._validate_sample(value)
        log_prob = ops.categorical_log_prob(value.long(), self.logits)
        return sum_event(in_dtype(log_prob, self.logits), event_dims)

    def sample_and_log_prob(
        self, num_samples: int, *, key: Tensor | None = None, sample_offset: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Draw samples from a key, and evaluate the log-probability of each.

        Args:
            num_samples: K.
            key: from :func:`fastvi.ops.new_key`; None draws one. Same key, same numbers.
            sample_offset: the place of the first of these among all samples of the key.

        Returns:
            The classes, int64, and their log-probabilities in nats, each of shape (K, *batch).
        """
        probs = self.probs.detach()
        u = uniforms(probs[..., 0], num_samples, key, sample_offset)
        up_to = probs.to(u.dtype).cumsum(-1)
        # Times the whole, which rounding leaves near one: a class of probability zero at the end
        # is never drawn.
        place = (u * up_to[..., -1]).movedim(0, -1).contiguous()
        x = torch.searchsorted(up_to, place, right=True)
        x = x.clamp_max_(self._num_events - 1).movedim(-1, 0).contiguous()
        return x, in_dtype(ops.categorical_log_prob(x, self.logits), self.logits)
