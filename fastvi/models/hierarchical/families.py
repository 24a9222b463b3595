"""The families of a stochastic layer: parameters, draws and densities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributions, nn
from torch.distributions import Distribution, Independent

from fastvi import distributions as own
from fastvi.models._random import seed_of, seeded
from fastvi.ops import (
    bernoulli_log_prob,
    bernoulli_sample,
    categorical_log_prob,
    categorical_sample,
    gaussian_log_prob,
    gaussian_rsample,
    laplace_log_prob,
    laplace_rsample,
    negative_binomial_log_prob,
    poisson_log_prob,
    zero_inflated_negative_binomial_log_prob,
)
from fastvi.ops._arguments import drawn_from

Parameters = tuple[Tensor, ...]


class Family:
    """Name the parameters that a layer's networks return; draw from them and evaluate."""

    reparameterised = False
    # Whether samples of any numbers can be drawn, and not ranges of them alone.
    by_number = True
    # The names of the parameters, each with one number per feature.
    parameters: tuple[str, ...] = ("logits",)

    def is_reparameterised(self, given: Any) -> bool:
        return self.reparameterised

    def draw_held(
        self, given: Any, num_samples: int | None, key: Tensor, sample_offset: int | Tensor
    ) -> tuple[Tensor, Tensor, Any]:
        """Draw; also return a function for log q at constant parameters, None for ``log_prob``."""
        return *self.draw(given, num_samples, key, sample_offset), None

    def draw(
        self, given: Any, num_samples: int | None, key: Tensor, sample_offset: int | Tensor
    ) -> tuple[Tensor, Tensor]:
        r"""Draw (K, \*batch, D) with log-densities (K, \*batch); None if the parameters have K."""
        raise NotImplementedError

    def log_prob(self, value: Tensor, given: Any) -> Tensor:
        raise NotImplementedError

    def mean(self, given: Any) -> Tensor:
        raise NotImplementedError

    def law(self, given: Any) -> Distribution:
        raise NotImplementedError

    def distribution(self, given: Any) -> Distribution:
        """Return the distribution with these parameters, with the family's density."""
        law = self.law(given)
        # One kernel evaluates it from the parameters themselves.
        law.log_prob = lambda value: self.log_prob(value, given)  # type: ignore[method-assign]
        return law


def _rows(logits: Tensor, num_samples: int | None) -> torch.Size:
    """Return the batch of the data: without that of samples, if there is one."""
    return logits.shape[:-1] if num_samples is not None else logits.shape[1:-1]


class Gaussian(Family):
    reparameterised = True
    parameters = ("loc", "log_var")

    def draw(
        self, given: Parameters, num_samples: int | None, key: Tensor, sample_offset: int | Tensor
    ) -> tuple[Tensor, Tensor]:
        loc, log_var = given
        if num_samples is not None:
            z, log_q, _ = gaussian_rsample(
                loc, log_var=log_var, num_samples=num_samples, key=key,
                **drawn_from(sample_offset, torch.broadcast_shapes(loc.shape, log_var.shape)[:-1]),
            )  # fmt: skip
            return z, log_q
        # The noise belongs to a sample and an example: it is not that of K * B examples.
        zero = torch.zeros_like(loc[0], requires_grad=False)
        noise, log_noise, _ = gaussian_rsample(
            zero, log_var=zero, num_samples=len(loc), key=key,
            **drawn_from(sample_offset, zero.shape[:-1]),
        )  # fmt: skip
        # log q(z) = log N(noise; 0, 1) - log sigma does not depend on loc.
        return torch.addcmul(loc, (0.5 * log_var).exp(), noise), log_noise - 0.5 * log_var.sum(-1)

    def log_prob(self, value: Tensor, given: Parameters) -> Tensor:
        return gaussian_log_prob(value, given[0], log_var=given[1])

    def mean(self, given: Parameters) -> Tensor:
        return given[0]

    def law(self, given: Parameters) -> Distribution:
        loc, log_var = torch.broadcast_tensors(*given)
        scale = (0.5 * log_var).exp()
        return Independent(distributions.Normal(loc, scale, validate_args=False), 1)


class Bernoulli(Family):
    def draw(
        self, given: Parameters, num_samples: int | None, key: Tensor, sample_offset: int | Tensor
    ) -> tuple[Tensor, Tensor]:
        return bernoulli_sample(
            given[0],
            num_samples,
            key=key,
            **drawn_from(sample_offset, _rows(given[0], num_samples)),
        )

    def log_prob(self, value: Tensor, given: Parameters) -> Tensor:
        return bernoulli_log_prob(value, given[0])

    def mean(self, given: Parameters) -> Tensor:
        return given[0].sigmoid()

    def law(self, given: Parameters) -> Distribution:
        return Independent(distributions.Bernoulli(logits=given[0], validate_args=False), 1)


class Categorical(Family):
    """Draw one of D classes, as a vector that is one there and zero elsewhere."""

    def draw(
        self, given: Parameters, num_samples: int | None, key: Tensor, sample_offset: int | Tensor
    ) -> tuple[Tensor, Tensor]:
        index, log_q = categorical_sample(
            given[0],
            num_samples,
            key=key,
            **drawn_from(sample_offset, _rows(given[0], num_samples)),
        )
        return nn.functional.one_hot(index, given[0].shape[-1]).to(given[0].dtype), log_q

    def log_prob(self, value: Tensor, given: Parameters) -> Tensor:
        return categorical_log_prob(value.argmax(-1), given[0])

    def mean(self, given: Parameters) -> Tensor:
        return given[0].softmax(-1)

    def law(self, given: Parameters) -> Distribution:
        return distributions.OneHotCategorical(logits=given[0], validate_args=False)


class Laplace(Family):
    reparameterised = True
    parameters = ("loc", "log_scale")

    def draw(
        self, given: Parameters, num_samples: int | None, key: Tensor, sample_offset: int | Tensor
    ) -> tuple[Tensor, Tensor]:
        loc, log_scale = given
        if num_samples is not None:
            return laplace_rsample(
                loc,
                log_scale=log_scale,
                num_samples=num_samples,
                key=key,
                **drawn_from(
                    sample_offset, torch.broadcast_shapes(loc.shape, log_scale.shape)[:-1]
                ),
            )
        # The noise belongs to a sample and an example, as for the Gaussian.
        zero = torch.zeros_like(loc[0], requires_grad=False)
        noise, log_noise = laplace_rsample(
            zero, log_scale=zero, num_samples=len(loc), key=key,
            **drawn_from(sample_offset, zero.shape[:-1]),
        )  # fmt: skip
        return torch.addcmul(loc, log_scale.exp(), noise), log_noise - log_scale.sum(-1)

    def log_prob(self, value: Tensor, given: Parameters) -> Tensor:
        return laplace_log_prob(value, given[0], log_scale=given[1])

    def mean(self, given: Parameters) -> Tensor:
        return given[0]

    def law(self, given: Parameters) -> Distribution:
        loc, log_scale = torch.broadcast_tensors(*given)
        return Independent(distributions.Laplace(loc, log_scale.exp(), validate_args=False), 1)


class Counts(Family):
    """Counts, drawn by torch's generator, which takes a seed from the key."""

    by_number = False

    def draw(
        self, given: Parameters, num_samples: int | None, key: Tensor, sample_offset: int | Tensor
    ) -> tuple[Tensor, Tensor]:
        assert not isinstance(sample_offset, Tensor)
        shape = torch.Size() if num_samples is None else torch.Size((num_samples,))
        with seeded(seed_of(key, sample_offset), key.device):
            value = self.law(given).sample(shape)
        return value, self.log_prob(value, given)

    def mean(self, given: Parameters) -> Tensor:
        return self.law(given).mean


class Poisson(Counts):
    parameters = ("log_rate",)

    def log_prob(self, value: Tensor, given: Parameters) -> Tensor:
        return poisson_log_prob(value, log_rate=given[0])

    def law(self, given: Parameters) -> Distribution:
        return Independent(own.Poisson(given[0].exp(), validate_args=False), 1)


class NegativeBinomial(Counts):
    parameters = ("log_mean", "log_dispersion")

    def log_prob(self, value: Tensor, given: Parameters) -> Tensor:
        return negative_binomial_log_prob(value, given[0].exp(), log_dispersion=given[1])

    def law(self, given: Parameters) -> Distribution:
        mean, dispersion = (x.exp() for x in torch.broadcast_tensors(*given))
        return Independent(
            own.NegativeBinomial(mean=mean, dispersion=dispersion, validate_args=False), 1
        )


class ZeroInflatedNegativeBinomial(Counts):
    parameters = ("log_mean", "log_dispersion", "gate_logits")

    def log_prob(self, value: Tensor, given: Parameters) -> Tensor:
        return zero_inflated_negative_binomial_log_prob(
            value, given[0].exp(), gate_logits=given[2], log_dispersion=given[1]
        )

    def law(self, given: Parameters) -> Distribution:
        log_mean, log_dispersion, gate_logits = torch.broadcast_tensors(*given)
        law = own.ZeroInflatedNegativeBinomial(
            mean=log_mean.exp(),
            dispersion=log_dispersion.exp(),
            gate_logits=gate_logits,
            validate_args=False,
        )
        return Independent(law, 1)


FAMILIES: dict[str, Family] = {
    "gaussian": Gaussian(),
    "laplace": Laplace(),
    "bernoulli": Bernoulli(),
    "categorical": Categorical(),
    "poisson": Poisson(),
    "negative_binomial": NegativeBinomial(),
    "zero_inflated_negative_binomial": ZeroInflatedNegativeBinomial(),
}
