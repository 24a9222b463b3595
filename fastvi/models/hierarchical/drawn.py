"""The samples of a layer, and the inputs of its networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from fastvi._gradients import moving_along
from fastvi.distributions.constant_parameters import check_score, log_prob_at
from fastvi.models import _layers
from fastvi.models.hierarchical.families import Family
from fastvi.models.hierarchical.laws import Given, family_of
from fastvi.models.hierarchical.layer import StochasticLayer
from fastvi.ops._call import exporting


@dataclass(frozen=True, eq=False)
class Drawn:
    """Hold a layer's samples, with the parameters of q and the inputs of its network."""

    layer: StochasticLayer
    value: Tensor  # [K, *batch, D]
    log_q: Tensor  # [K, *batch]
    given: Given  # of q, [K, *batch, D], or [*batch, D] if q depends on x alone
    inputs: Tensor | None  # the guide's, [K, *batch, inputs]; None if q depends on x alone
    along: Callable[[], Tensor] | None = None  # log q as a function of the value alone

    @property
    def family(self) -> Family:
        return family_of(self.layer.family, self.given)

    def log_q_path(self) -> Tensor:
        """Evaluate log q as a function of samples alone, the guide's parameters constants constant.

        It is a function of this layer's samples, and of the earlier ones, by the guide's network.
        """
        direct = self._direct()
        if self.inputs is None or not self.inputs.requires_grad:
            return direct
        if exporting():
            raise RuntimeError(
                "HierarchicalVAE: expected an objective without derivatives in its forward pass "
                "under torch.export, such as IWLB(..., 'iwae') or a loss under torch.no_grad(), "
                "got estimator 'dreg' or 'stl' of several layers"
            )
        outputs, sent = self._slopes()
        (slope,) = torch.autograd.grad(
            outputs, self.inputs, sent, retain_graph=True, allow_unused=True
        )
        if slope is None:
            return direct
        return direct + moving_along(torch.zeros_like(direct), self.inputs, slope)

    def _direct(self) -> Tensor:
        given = self.given
        if not isinstance(given, Distribution):
            return self.family.log_prob(self.value, tuple(part.detach() for part in given))
        if self.value.requires_grad:
            check_score("HierarchicalVAE", f"the guide of layer {self.layer.name!r}", given)
        # Discrete samples have no derivative.
        return self.log_q.detach() if self.along is None else self.along()

    def _slopes(self) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
        """Return the tensors of q's parameters, and the gradient of log q by each of them."""
        if isinstance(self.given, Distribution):
            with torch.enable_grad():
                log_q = log_prob_at(self.given, self.value.detach(), self.given, self.value)
            return (log_q.sum(),) if log_q.requires_grad else (), (None,) * log_q.requires_grad
        constants = tuple(part.detach().requires_grad_() for part in self.given)
        with torch.enable_grad():
            log_q = self.family.log_prob(self.value.detach(), constants)
        slopes = torch.autograd.grad(log_q.sum(), constants)
        moving = [pair for pair in zip(self.given, slopes, strict=True) if pair[0].requires_grad]
        return tuple(zip(*moving, strict=True)) if moving else ((), ())  # type: ignore[return-value]


def run(network: Callable[..., Any], inputs: Tensor) -> Any:
    """Return the network's outputs, of one tensor or two, for inputs of shape (*rows, inputs)."""
    rows = inputs.shape[:-1]
    output = _layers.run(network, inputs.reshape(math.prod(rows), inputs.shape[-1]))
    parts: Sequence[Any] = output if isinstance(output, (tuple, list)) else [output]
    if not all(
        isinstance(p, Tensor) and p.ndim > 1 and p.shape[0] == math.prod(rows) for p in parts
    ):
        return output
    shaped = [part.reshape(*rows, *part.shape[1:]) for part in parts]
    return shaped[0] if isinstance(output, Tensor) else tuple(shaped)


def join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), -1)


def of_samples(x: Tensor, batch: torch.Size, num_samples: int) -> Tensor:
    """Return the data beside each sample, shape (K, *batch, F)."""
    return x.reshape(*batch, -1).expand(num_samples, *batch, -1)
