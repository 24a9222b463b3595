"""The negative binomial log-density from mean and dispersion, summed over the event."""

from __future__ import annotations

from torch import Tensor

from fastvi._checks import check_event_dims, check_positive, check_tensor
from fastvi.ops._call import kernel, transforms_active, with_reference
from fastvi.ops._count_twins import NegativeBinomial
from fastvi.ops._event import sum_event
from fastvi.ops._log_density import check_count, one_of, wide
from fastvi.ops._twin import evaluate

_negative_binomial_log_prob = kernel("negative_binomial_log_prob")


def elementwise(value: Tensor, mean: Tensor, theta: Tensor, is_log: bool = False) -> Tensor:
    """Return the log-density of each element, from the dispersion or its logarithm."""
    return evaluate(NegativeBinomial(is_log), value, mean, theta)


def reference(
    value: Tensor,
    mean: Tensor,
    dispersion: Tensor | None = None,
    *,
    log_dispersion: Tensor | None = None,
    event_dims: int = 1,
) -> Tensor:
    """Compute :func:`negative_binomial_log_prob` in plain PyTorch, differentiable at will."""
    op = "negative_binomial_log_prob"
    given, kind = one_of(op, "dispersion", dispersion, log_dispersion)
    value, mean, given = wide(value, mean, given)
    return sum_event(elementwise(value, mean, given, kind == "log_dispersion"), event_dims)


@with_reference(reference)
def negative_binomial_log_prob(
    value: Tensor,
    mean: Tensor,
    dispersion: Tensor | None = None,
    *,
    log_dispersion: Tensor | None = None,
    event_dims: int = 1,
    validate_args: bool = False,
) -> Tensor:
    r"""Evaluate the negative binomial log-density from its mean and dispersion.

    .. math::
        \log p(x) = \sum_f \log \frac{\Gamma(x + \theta)}{\Gamma(\theta)\, \Gamma(x + 1)}
                    + \theta \log \frac{\theta}{\theta + \mu} + x \log \frac{\mu}{\theta + \mu}

    in each feature f. The variance is :math:`\mu + \mu^2 / \theta`, so ``dispersion`` is the
    inverse dispersion of single-cell work: the larger it is, the closer to a Poisson density. The
    density never subtracts large log-gammas, so this holds in float32 too, for counts, means and
    dispersions from the smallest numbers to 1e12.

    Args:
        value: counts :math:`x`, shape (\*batch, F), as floating-point numbers. The dtype of
            ``mean``, or float32.
        mean: :math:`\mu > 0`, shape (K, \*batch, F) or any that broadcasts. A mean of zero makes
            a count of zero certain.
        dispersion: :math:`\theta > 0`, often of shape (F,); exactly one of the two.
        log_dispersion: :math:`\log \theta`, which models usually learn.
        event_dims: the number of trailing dimensions to sum; 0 gives the density of each element.
        validate_args: check that all inputs are finite, that no ``value`` is negative, and that
            ``mean`` and ``dispersion`` are positive.

    Returns:
        The log-density in nats, shape (K, \*batch); float32, or float64 for float64.

    Raises:
        TypeError: not floating-point, or different dtypes.
        ValueError: shapes that do not broadcast, different devices, not exactly one dispersion, an
            ``event_dims`` that the shapes do not have.

    Example:
        >>> counts, mean = torch.zeros(4, 2000), torch.ones(10, 4, 2000)
        >>> fastvi.ops.negative_binomial_log_prob(counts, mean, torch.ones(2000)).shape
        torch.Size([10, 4])

    References:
        | Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018)
        | https://doi.org/10.1038/s41592-018-0229-2
    """
    op = "negative_binomial_log_prob"
    check_tensor(op, "value", value)
    check_tensor(op, "mean", mean)
    given, kind = one_of(op, "dispersion", dispersion, log_dispersion)
    check_event_dims(op, event_dims)
    if validate_args:
        check_count(op, value)
        check_positive(op, "mean", mean)
        check_positive(op, kind, given)
    if transforms_active():
        _negative_binomial_log_prob.check(value, mean, given, kind, event_dims)
        return reference(value, mean, **{kind: given}, event_dims=event_dims)
    return _negative_binomial_log_prob(value, mean, given, kind, event_dims)
