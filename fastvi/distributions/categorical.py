"""The categorical distribution on its op."""

from __future__ import annotations

import torch
from torch import Tensor, distributions
from torch.distributions.utils import lazy_property, logits_to_probs, probs_to_logits

from fastvi import ops
from fastvi.distributions._draws import check_draws, takes_shapes
from fastvi.distributions._fused import can_run, checked, evaluate, in_dtype, initialise, log_prob
from fastvi.ops._arguments import drawn_from
from fastvi.ops._event import sum_event


def _has_largest(logits: Tensor) -> bool:
    """Return whether torch can normalise them: the largest of each row is finite."""
    return bool(logits.detach().amax(-1).isfinite().all())


class Categorical(distributions.Categorical):
    r"""A categorical distribution: ``torch.distributions.Categorical`` with a fused log-density.

    .. math::
        \log p(x) = \ell_x - \log \sum_c e^{\ell_c}

    The logits are normalised at their first use; the kernel does not need this.

    Args:
        probs: probabilities, of any positive sum, shape (\*batch, C); exactly one of the two.
        logits: :math:`\ell`, shape (\*batch, C).
        validate_args: whether parameters and values are checked; None for torch's setting. If
            not, the log-probability of a value that is no class may be NaN.

    Raises:
        ValueError: none or both parameters, or one or a value out of its constraint, as torch
            says it.

    Example:
        >>> p = fastvi.distributions.Categorical(logits=torch.zeros(4, 10))
        >>> x, log_p = p.sample_and_log_prob(50)
        >>> x.shape, log_p.shape
        (torch.Size([50, 4]), torch.Size([50, 4]))
    """

    _given: Tensor | None = None  # the given logits, not normalised

    def __init__(
        self,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if (
            not isinstance(logits, Tensor)
            or probs is not None
            or logits.ndim < 1
            or not logits.is_floating_point()
            or logits.shape[-1] == 0
        ):
            super().__init__(probs, logits, validate_args=validate_args)
            return
        self._given = self._param = logits
        self._num_events = logits.shape[-1]
        is_checked = checked(self, Categorical, logits, validate_args, lambda: _has_largest(logits))
        if not is_checked:
            # torch checks the normalised logits, and names them in its error.
            self.__dict__["logits"] = logits - logits.logsumexp(-1, keepdim=True)
        initialise(self, logits.shape[:-1], validate_args, is_checked)
        self.__dict__.pop("logits", None)

    @lazy_property
    def logits(self) -> Tensor:
        if self._given is None:
            return probs_to_logits(self.probs)
        return self._given - self._given.logsumexp(-1, keepdim=True)

    @lazy_property
    def probs(self) -> Tensor:
        return logits_to_probs(self.logits if self._given is None else self._given)

    def expand(self, batch_shape, _instance=None):  # noqa: ANN001, ANN201
        new = super().expand(batch_shape, self._get_checked_instance(Categorical, _instance))
        if self._given is not None:
            new._given = new._param = self._given.expand(*batch_shape, self._num_events)
        return new

    def __repr__(self) -> str:
        if self._given is None:
            return super().__repr__()
        return f"{type(self).__name__}(logits: {self._given.size()})"

    log_prob = log_prob

    def _event_log_prob(self, value: Tensor, event_dims: int) -> Tensor:
        given = self._given
        # If several values share a row of logits, torch normalises the row once.
        if (
            given is None
            or "logits" in self.__dict__
            or not isinstance(value, Tensor)
            or value.numel() > given.numel() // self._num_events
            or value.device != given.device
            or value.is_complex()
            or not can_run(value, given)
        ):
            return sum_event(super().log_prob(value), event_dims)
        if self._validate_args:
            self._validate_sample(value)
        log_prob = evaluate(ops.categorical_log_prob, value.long(), given)
        return sum_event(in_dtype(log_prob, given), event_dims)

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
            The classes, int64, and their log-probabilities in nats, float32 (float64 for
            float64), each of shape (K, \*batch).
        """
        check_draws("Categorical.sample_and_log_prob")
        if self._given is not None:
            return ops.categorical_sample(
                self._given,
                num_samples,
                key=key,
                **drawn_from(sample_offset, self._given.shape[:-1]),
            )
        acc = torch.float64 if self._param.dtype == torch.float64 else torch.float32
        # torch keeps the logits of probability 0 finite, so such a class could be drawn.
        logits = self.probs.detach().to(acc).log()
        x, _ = ops.categorical_sample(
            logits, num_samples, key=key, **drawn_from(sample_offset, logits.shape[:-1])
        )
        chosen = self.logits.expand(*x.shape, self._num_events)
        return x, chosen.gather(-1, x[..., None])[..., 0].to(acc)
