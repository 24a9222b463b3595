"""The negative binomial distribution on its op."""

from __future__ import annotations

import torch
from torch import Tensor, distributions
from torch.distributions import constraints
from torch.distributions.utils import (
    broadcast_all,
    lazy_property,
    logits_to_probs,
    probs_to_logits,
)

from fastvi import ops
from fastvi.distributions._by_logits import elementwise, log_prob_of_logits
from fastvi.distributions._fused import (
    as_count,
    can_evaluate,
    checked,
    common_dtype,
    evaluate,
    in_dtype,
    initialise,
    is_count,
    is_nonnegative,
    is_positive,
    log_prob,
    validate,
)
from fastvi.ops._event import sum_event


def is_by_mean(name: str, **parameters: object) -> bool:
    """Return whether the parameters are a mean and a dispersion; refuse a mixture of pairs."""
    given = [key for key, value in parameters.items() if value is not None]
    by_mean = given == ["mean", "dispersion"]
    if not by_mean and ("mean" in given or "dispersion" in given or "total_count" not in given):
        raise ValueError(
            f"{name}: expected total_count with probs or logits, or mean with dispersion, got "
            f"{', '.join(given) or 'none of them'}"
        )
    return by_mean


class NegativeBinomial(distributions.NegativeBinomial):
    r"""A negative binomial distribution, of torch's parameters or of a mean and a dispersion.

    .. math::
        \log p(x) = \log \frac{\Gamma(x + \theta)}{\Gamma(\theta)\, \Gamma(x + 1)}
                    + \theta \log \frac{\theta}{\theta + \mu} + x \log \frac{\mu}{\theta + \mu}

    The first arguments are those of ``torch.distributions.NegativeBinomial``; there
    :math:`\theta` is ``total_count`` and :math:`\mu = \theta e^\ell`. ``mean`` and ``dispersion``
    are those of single-cell work, which the kernel takes: its density never subtracts two large
    log-gammas, so it holds in float32 at any dispersion.

    Args:
        total_count: number of failures :math:`\theta \ge 0` until the end; with one of the next
            two.
        probs: the probability of success, in [0, 1).
        logits: its log-odds :math:`\ell`.
        validate_args: whether parameters and values are checked; None for torch's setting.
        mean: :math:`\mu \ge 0`; with ``dispersion``, and with no other.
        dispersion: inverse dispersion :math:`\theta > 0`; the variance is
            :math:`\mu + \mu^2 / \theta`.

    Raises:
        ValueError: parameters that are not one of the three pairs, or a parameter or value out of
            its constraint, as torch says it.

    Example:
        >>> p = fastvi.distributions.NegativeBinomial(mean=torch.ones(4, 2000), dispersion=2.0)
        >>> p.log_prob(torch.zeros(4, 2000)).shape
        torch.Size([4, 2000])
        >>> p.variance[0, 0].item()
        1.5

    References:
        | Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018)
        | https://doi.org/10.1038/s41592-018-0229-2
    """

    arg_constraints = {
        **distributions.NegativeBinomial.arg_constraints,
        "mean": constraints.nonnegative,
        "dispersion": constraints.positive,
    }
    _by_mean = False

    def __init__(
        self,
        total_count: Tensor | float | None = None,
        probs: Tensor | float | None = None,
        logits: Tensor | float | None = None,
        validate_args: bool | None = None,
        *,
        mean: Tensor | float | None = None,
        dispersion: Tensor | float | None = None,
    ) -> None:
        given = {"total_count": total_count, "probs": probs, "logits": logits}
        if not is_by_mean("NegativeBinomial", **given, mean=mean, dispersion=dispersion):
            # torch takes numbers and refuses None, although its annotations differ.
            super().__init__(total_count, probs, logits, validate_args)  # type: ignore[arg-type]
            return
        assert mean is not None and dispersion is not None
        mu, theta = broadcast_all(mean, dispersion)
        dtype = torch.promote_types(mu.dtype, theta.dtype)
        mu, theta = mu.to(dtype), theta.to(dtype)
        self.mean, self.dispersion, self._param, self._by_mean = mu, theta, mu, True
        is_checked = checked(
            self,
            NegativeBinomial,
            mu,
            validate_args,
            lambda: is_nonnegative(mu) and is_positive(theta),
        )
        initialise(self, mu.shape, validate_args, is_checked)

    def expand(self, batch_shape, _instance=None):  # noqa: ANN001, ANN201
        new = self._get_checked_instance(NegativeBinomial, _instance)
        if not self._by_mean:
            return super().expand(batch_shape, new)
        new.mean = new._param = self.mean.expand(batch_shape)
        new.dispersion = self.dispersion.expand(batch_shape)
        new._by_mean = True
        initialise(new, torch.Size(batch_shape), False, True)
        new._validate_args = self._validate_args
        return new

    def _log_odds(self) -> Tensor:
        """Return the logits without making them an attribute, which torch takes for a parameter."""
        given = self.__dict__.get("logits")
        return probs_to_logits(self.probs, is_binary=True) if given is None else given

    @lazy_property
    def mean(self) -> Tensor:
        return self.total_count * self._log_odds().exp()

    @lazy_property
    def dispersion(self) -> Tensor:
        return self.total_count

    @lazy_property
    def total_count(self) -> Tensor:
        return self.dispersion

    @lazy_property
    def logits(self) -> Tensor:
        if self._by_mean:
            return self.mean.log() - self.dispersion.log()
        return probs_to_logits(self.probs, is_binary=True)

    @lazy_property
    def probs(self) -> Tensor:
        if self._by_mean:
            return self.mean / (self.mean + self.dispersion)
        return logits_to_probs(self.logits, is_binary=True)

    @property
    def variance(self) -> Tensor:
        if self._by_mean:
            return self.mean + self.mean.square() / self.dispersion
        return super().variance

    log_prob = log_prob

    def _event_log_prob(self, value: Tensor, event_dims: int) -> Tensor:
        value = as_count(value, self._param)
        if not can_evaluate(value, self._param):
            if not isinstance(value, Tensor):
                return sum_event(super().log_prob(value), event_dims)
            if self._validate_args:
                self._validate_sample(value)
            return sum_event(self._plain_log_prob(value), event_dims)
        if self._validate_args:
            validate(self, NegativeBinomial, value, is_count)
        if self._by_mean:
            op, parameters = ops.negative_binomial_log_prob, (self.mean, self.dispersion)
            log_prob = evaluate(op, value, *parameters, event_dims=event_dims)
        else:
            log_prob = log_prob_of_logits(value, self.total_count, self._log_odds(), event_dims)
        return in_dtype(log_prob, value)

    def _plain_log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of each element without a kernel."""
        dtype = common_dtype(value, self._param)
        if self._by_mean:
            reference = ops.negative_binomial_log_prob.reference  # type: ignore[attr-defined]
            parameters = self.mean.to(dtype), self.dispersion.to(dtype)
            return reference(value.to(dtype), *parameters, event_dims=0).to(dtype)
        parameters = self.total_count.to(dtype), self._log_odds().to(dtype)
        return elementwise(value.to(dtype), *parameters, plain=True).to(dtype)
