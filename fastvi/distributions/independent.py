"""Batch dimensions as an event, summed by the kernel that evaluates them."""

from __future__ import annotations

from torch import Tensor, distributions
from torch.distributions import register_kl

from fastvi.distributions._draws import check_draws, draws_by_key, takes_shapes
from fastvi.distributions._fused import sums_events
from fastvi.distributions.bernoulli import Bernoulli
from fastvi.distributions.laplace import Laplace
from fastvi.distributions.normal import Normal, kl_of_normals
from fastvi.ops._event import sum_event

# The draws that sum over a row themselves; a subclass may have others.
_OF_ROWS = (
    Normal.rsample_and_log_prob,
    Laplace.rsample_and_log_prob,
    Bernoulli.sample_and_log_prob,
)


class Independent(distributions.Independent):
    r"""A distribution whose last batch dimensions are one event, summed in one pass.

    .. math::
        \log p(x) = \sum_f \log p(x_f)

    Args:
        base_distribution: any distribution. Those of this package evaluate and sum in one kernel;
            others work as in torch.
        reinterpreted_batch_ndims: the number of batch dimensions that become the event.
        validate_args: as in torch; the base distribution has its own.

    Raises:
        ValueError: more dimensions than the base distribution has.

    Example:
        >>> pixels = fastvi.distributions.Bernoulli(logits=torch.zeros(4, 784))
        >>> image = fastvi.distributions.Independent(pixels, 1)
        >>> image.log_prob(torch.ones(50, 4, 784)).shape
        torch.Size([50, 4])
    """

    def expand(self, batch_shape, _instance=None):  # noqa: ANN001, ANN201
        return super().expand(batch_shape, self._get_checked_instance(Independent, _instance))

    def log_prob(self, value: Tensor) -> Tensor:
        """Evaluate the log-density of each event, in nats."""
        if not sums_events(self.base_dist):
            return super().log_prob(value)
        return self.base_dist._event_log_prob(value, self.reinterpreted_batch_ndims)

    @takes_shapes
    def rsample_and_log_prob(
        self, num_samples: int, *, key: Tensor | None = None, sample_offset: int | Tensor = 0
    ) -> tuple[Tensor, Tensor]:
        """Draw reparameterised samples from a key, and evaluate the log-density of each.

        For a base distribution of this package one kernel draws and sums over the event.

        Args:
            num_samples: K; or a shape, a tuple as in torch's ``sample``, which is then in place of
                K in the results.
            key: from :func:`fastvi.ops.new_key`; None draws one. A key repeats its numbers.
            sample_offset: the number of the first sample among all samples of the key; or the
                numbers of all, int64 of shape (K, \\*batch).

        Returns:
            The samples, shape (K, \\*batch, \\*event), and their log-densities in nats,
            shape (K, \\*batch).
        """
        return self._draw("rsample_and_log_prob", num_samples, key, sample_offset)

    @takes_shapes
    def sample_and_log_prob(
        self, num_samples: int, *, key: Tensor | None = None, sample_offset: int | Tensor = 0
    ) -> tuple[Tensor, Tensor]:
        """Draw samples from a key, and evaluate the log-probability of each.

        Arguments and results are those of :meth:`rsample_and_log_prob`; the samples have no
        gradient.
        """
        return self._draw("sample_and_log_prob", num_samples, key, sample_offset)

    def _draw(
        self, how: str, num_samples: int, key: Tensor | None, sample_offset: int | Tensor
    ) -> tuple[Tensor, Tensor]:
        if not draws_by_key(self.base_dist, how):
            raise NotImplementedError(
                f"Independent.{how}: expected the base distribution to have it, got "
                f"{type(self.base_dist).__name__}, which has not"
            )
        event_dims = self.reinterpreted_batch_ndims
        if event_dims > 0 and getattr(type(self.base_dist), how) in _OF_ROWS:
            check_draws(f"Independent.{how}")
            x, log_prob = self.base_dist._draw(num_samples, key, sample_offset, 1)
            return x, sum_event(log_prob, event_dims - 1)
        draw = getattr(self.base_dist, how)
        x, log_prob = draw(num_samples, key=key, sample_offset=sample_offset)
        return x, sum_event(log_prob, event_dims)


class DiagNormal(Independent):
    r"""A normal distribution of independent features: the event is the last dimension.

    .. math::
        \log p(x) = \sum_d \log \mathcal{N}(x_d; \mu_d, \sigma_d^2)

    ``kl_divergence`` between two of them is one kernel too.

    Args:
        loc: mean :math:`\mu`, shape (\*batch, D).
        scale: standard deviation :math:`\sigma > 0`, of any shape that broadcasts with it.
        validate_args: whether parameters and values are checked; None for torch's setting.

    Raises:
        ValueError: no dimension for the event, or a parameter out of its constraint.

    Example:
        >>> q = fastvi.distributions.DiagNormal(torch.zeros(4, 3), torch.ones(4, 3))
        >>> z, log_q = q.rsample_and_log_prob(10)
        >>> z.shape, log_q.shape
        (torch.Size([10, 4, 3]), torch.Size([10, 4]))
    """

    arg_constraints = {
        "loc": distributions.constraints.real_vector,
        "scale": distributions.constraints.independent(distributions.constraints.positive, 1),
    }

    def __init__(
        self, loc: Tensor, scale: Tensor | float, validate_args: bool | None = None
    ) -> None:
        base = Normal(loc, scale, validate_args=validate_args)
        if not base.batch_shape:
            raise ValueError(
                "DiagNormal: expected loc or scale to have at least one dimension, got none"
            )
        # The base has checked them.
        super().__init__(base, 1, validate_args=False)
        self._validate_args = base._validate_args

    def expand(self, batch_shape, _instance=None):  # noqa: ANN001, ANN201
        return super().expand(batch_shape, self._get_checked_instance(DiagNormal, _instance))

    @property
    def loc(self) -> Tensor:
        return self.base_dist.loc

    @property
    def scale(self) -> Tensor:
        return self.base_dist.scale

    def __repr__(self) -> str:
        return f"DiagNormal(loc: {tuple(self.loc.shape)}, scale: {tuple(self.scale.shape)})"


@register_kl(DiagNormal, DiagNormal)
def _kl_diag_normal(p: DiagNormal, q: DiagNormal) -> Tensor:
    if p.event_shape != q.event_shape:
        raise ValueError(f"Event shapes differ: {p.event_shape} and {q.event_shape}.")
    return kl_of_normals(p.loc, p.scale, q.loc, q.scale)
