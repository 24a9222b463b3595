"""Networks whose layers are large enough for a choice of the library, and a watch on the calls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastvi._ext import C

ROWS, IN, OUT = 700, 64, 48


def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The activations of the layers that run outside of their modules."""
    seen: list[str] = []
    original = C.linear_layer

    def linear_layer(*args) -> Tensor:
        seen.append(args[-1])
        return original(*args)

    monkeypatch.setattr(C, "linear_layer", linear_layer)
    return seen


class OtherLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def layer(activation: nn.Module | None, **options) -> nn.Sequential:
    linear = nn.Linear(IN, OUT, **options)
    return nn.Sequential(linear) if activation is None else nn.Sequential(linear, activation)


def decoder() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(IN, OUT),
        nn.Tanh(),
        nn.Sequential(nn.Linear(OUT, IN), nn.ReLU()),
        nn.Linear(IN, 50),
    )


def inputs(**options) -> Tensor:
    return torch.randn(ROWS, IN, requires_grad=True, **options)
