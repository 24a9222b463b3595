"""The negative binomial distribution with extra zeros, on its op."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.utils import (
    broadcast_all,
    lazy_property,
    logits_to_probs,
    probs_to_logits,
)
from torch.nn.functional import logsigmoid

from fastvi import ops
from fastvi.distributions._by_logits import elementwise, has_mean
from fastvi.distributions._fused import (
    as_count,
    can_evaluate,
    checked,
    common_dtype,
    evaluate,
    evaluate_plainly,
    in_dtype,
    initialise,
    is_count,
    is_real,
    is_unit,
    log_prob,
    validate,
)
from fastvi.distributions.negative_binomial import NegativeBinomial, is_by_mean
from fastvi.ops._event import sum_event


class ZeroInflatedNegativeBinomial(Distribution):
    r"""A negative binomial distribution with extra zeros.

    .. math::
        p(x) = \pi\, 1[x = 0] + (1 - \pi)\, \mathrm{NB}(x; \mu, \theta)

    The negative binomial takes the parameters of :class:`NegativeBinomial`: ``mean`` and
    ``dispersion``, or ``total_count`` and one of ``probs`` and ``logits``. It is ``base_dist``;
    the ``mean`` of this distribution is :math:`(1 - \pi) \mu`.

    Args:
        total_count: number of failures :math:`\theta \ge 0` until the end.
        probs: the probability of success, in [0, 1).
        logits: its log-odds.
        mean: :math:`\mu \ge 0`, of the counts without the extra zeros.
        dispersion: inverse dispersion :math:`\theta > 0`.
        gate: :math:`\pi`, the probability of an extra zero; exactly one of the two.
        gate_logits: its log-odds, which the kernel takes.
        validate_args: whether parameters and values are checked; None for torch's setting.

    Raises:
        ValueError: parameters that are not one of the pairs, not exactly one gate, or a parameter
            or value out of its constraint.

    Example:
        >>> p = fastvi.distributions.ZeroInflatedNegativeBinomial(
        ...     mean=torch.ones(4, 2000), dispersion=2.0, gate_logits=torch.zeros(2000)
        ... )
        >>> p.log_prob(torch.zeros(4, 2000)).shape, p.mean[0, 0].item()
        (torch.Size([4, 2000]), 0.5)

    References:
        | Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018)
        | https://doi.org/10.1038/s41592-018-0229-2
    """

    arg_constraints = {"gate": constraints.unit_interval, "gate_logits": constraints.real}
    support = constraints.nonnegative_integer

    def __init__(
        self,
        total_count: Tensor | float | None = None,
        *,
        probs: Tensor | float | None = None,
        logits: Tensor | float | None = None,
        mean: Tensor | float | None = None,
        dispersion: Tensor | float | None = None,
        gate: Tensor | float | None = None,
        gate_logits: Tensor | float | None = None,
        validate_args: bool | None = None,
    ) -> None:
        name = "ZeroInflatedNegativeBinomial"
        if (gate is None) == (gate_logits is None):
            got = "neither" if gate is None else "both"
            raise ValueError(f"{name}: expected exactly one of gate and gate_logits, got {got}")
        given = {
            "total_count": total_count,
            "probs": probs,
            "logits": logits,
            "mean": mean,
            "dispersion": dispersion,
        }
        is_by_mean(name, **given)
        base = NegativeBinomial(**given, validate_args=validate_args)
        other = gate_logits if gate is None else gate
        assert other is not None
        other, _ = broadcast_all(other, base._param)
        other = other.to(base._param.dtype)
        self.base_dist = base.expand(other.shape)
        if gate_logits is None:
            self.gate = self._param = other
        else:
            self.gate_logits = self._param = other
        valid = is_unit if gate_logits is None else is_real
        is_checked = checked(
            self, ZeroInflatedNegativeBinomial, other, validate_args, lambda: valid(other)
        )
        initialise(self, other.shape, validate_args, is_checked)

    def expand(self, batch_shape, _instance=None):  # noqa: ANN001, ANN201
        new = self._get_checked_instance(ZeroInflatedNegativeBinomial, _instance)
        batch_shape = torch.Size(batch_shape)
        new.base_dist = self.base_dist.expand(batch_shape)
        for name in ("gate", "gate_logits"):
            if name in self.__dict__:
                setattr(new, name, self.__dict__[name].expand(batch_shape))
        new._param = self._param.expand(batch_shape)
        initialise(new, batch_shape, False, True)
        new._validate_args = self._validate_args
        return new

    @lazy_property
    def gate(self) -> Tensor:
        return logits_to_probs(self.gate_logits, is_binary=True)

    @lazy_property
    def gate_logits(self) -> Tensor:
        return probs_to_logits(self.gate, is_binary=True)

    @property
    def dispersion(self) -> Tensor:
        return self.base_dist.dispersion

    @property
    def total_count(self) -> Tensor:
        """Return the total count of ``base_dist``; ``probs`` and ``logits`` are also its own."""
        return self.base_dist.total_count

    @property
    def probs(self) -> Tensor:
        return self.base_dist.probs

    @property
    def logits(self) -> Tensor:
        return self.base_dist.logits

    @property
    def mode(self) -> Tensor:
        """Return the likeliest count, which is the mode of ``base_dist`` or zero."""
        base = self.base_dist.mode
        zero = torch.zeros_like(base)
        # If a mean is beyond the range of its type, its mode is no count, and is not checked.
        above = self._unchecked_log_prob(zero, 0) >= self._unchecked_log_prob(base, 0)
        return torch.where(above, zero, base)

    @property
    def mean(self) -> Tensor:
        return (1 - self.gate) * self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        base = self.base_dist
        return (1 - self.gate) * (base.variance + self.gate * base.mean.square())

    def sample(self, sample_shape=torch.Size()):  # noqa: ANN001, ANN201, B008
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            extra = torch.bernoulli(self.gate.expand(shape)).bool()
            return torch.where(extra, 0.0, self.base_dist.sample(sample_shape))

    log_prob = log_prob

    def _event_log_prob(self, value: Tensor, event_dims: int) -> Tensor:
        value = as_count(value, self._param)
        if self._validate_args:
            validate(self, ZeroInflatedNegativeBinomial, value, is_count)
        return self._unchecked_log_prob(value, event_dims)

    def _unchecked_log_prob(self, value: Tensor, event_dims: int) -> Tensor:
        base, g = self.base_dist, self.gate_logits
        op = ops.zero_inflated_negative_binomial_log_prob
        if not can_evaluate(value, self._param, base._param):
            if base._by_mean:
                parameters = base.mean, base.dispersion, g
                return evaluate_plainly(self, op, value, *parameters, event_dims=event_dims)
            dtype = common_dtype(value, g)
            log_prob = mixed(value, base._plain_log_prob(value).to(dtype), g.to(dtype))
            return sum_event(log_prob, event_dims)
        if base._by_mean or has_mean(base.total_count, base._log_odds()):
            parameters = base.mean, base.dispersion, g
            log_prob = evaluate(op, value, *parameters, event_dims=event_dims)
        else:
            count = elementwise(value, base.total_count, base._log_odds())
            log_prob = sum_event(mixed(value, count, g.to(count.dtype)), event_dims)
        return in_dtype(log_prob, value)


def mixed(value: Tensor, count: Tensor, gate_logits: Tensor) -> Tensor:
    """Return the log-density with extra zeros, from the log-density of the counts without."""
    count = count + logsigmoid(-gate_logits)
    return torch.where(value == 0, torch.logaddexp(logsigmoid(gate_logits), count), count)
