"""The samples of a layer, and the inputs of its networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastvi._surrogates import moving_along
from fastvi.models.hierarchical.families import FAMILIES, Parameters
from fastvi.models.hierarchical.layer import StochasticLayer
from fastvi.ops._arguments import check_tensor
from fastvi.ops._call import exporting


@dataclass(frozen=True, eq=False)
class Drawn:
    """Hold a layer's samples, and what they came from."""

    layer: StochasticLayer
    value: Tensor  # [K, *batch, D]
    log_q: Tensor  # [K, *batch]
    given: Parameters  # of q, [K, *batch, D], or [*batch, D] where q depends on x alone
    inputs: Tensor | None  # the guide's, [K, *batch, inputs]; None where q depends on x alone

    def log_q_path(self) -> Tensor:
        """Evaluate log q as a function of samples alone, the guide's parameters held constant.

        Of this layer's and of those before it: where they move, q moves, by the guide's network.
        """
        family = FAMILIES[self.layer.family]
        direct = family.log_prob(self.value, tuple(part.detach() for part in self.given))
        if self.inputs is None or not self.inputs.requires_grad:
            return direct
        if exporting():
            raise RuntimeError(
                "HierarchicalVAE: expected an objective without derivatives in its forward pass "
                "under torch.export, such as IWLB(..., 'iwae') or a loss under torch.no_grad(), "
                "got estimator 'dreg' or 'stl' of several layers"
            )
        held = tuple(part.detach().requires_grad_() for part in self.given)
        with torch.enable_grad():
            slopes = torch.autograd.grad(family.log_prob(self.value.detach(), held).sum(), held)
        moving = [pair for pair in zip(self.given, slopes, strict=True) if pair[0].requires_grad]
        outputs, sent = zip(*moving, strict=True) if moving else ((), ())
        (slope,) = torch.autograd.grad(
            outputs, self.inputs, sent, retain_graph=True, allow_unused=True
        )
        if slope is None:
            return direct
        return direct + moving_along(torch.zeros_like(direct), self.inputs, slope)


def check_key(where: str, key: object) -> None:
    check_tensor(where, "key", key)
    assert isinstance(key, Tensor)
    if key.dtype != torch.int64 or key.shape != (2,):
        raise ValueError(
            f"{where}: expected key to be an int64 tensor of shape (2,), got {key.dtype} of shape "
            f"{tuple(key.shape)}"
        )


def run(network: Callable[..., Any], inputs: Tensor) -> Any:
    """Return the network's outputs, of one tensor or two, for inputs of shape (*rows, inputs)."""
    rows = inputs.shape[:-1]
    output = network(inputs.reshape(math.prod(rows), inputs.shape[-1]))
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
