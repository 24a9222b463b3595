"""The optimisers of SVI: one, several, or one that evaluates the bound itself."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastvi.svi.checkpoint import random_state, set_random_state
from fastvi.svi.finding import leaves_of

Given = Optimizer | Sequence[Optimizer] | Callable[[Iterable[Tensor]], Any]
_MOST_NAMES = 8


def make_optimizers(
    given: Given, parameters: Callable[[], list[Tensor]]
) -> Optimizer | list[Optimizer]:
    """Return the given optimizers, or those that a given function makes of the parameters."""
    says = "a torch.optim.Optimizer, several in a list, or a function of parameters that makes one"
    result: Any = given
    if callable(given) and not isinstance(given, (Optimizer, nn.Module)):
        result = given(parameters())
    several = isinstance(result, (list, tuple))
    optimizers: list[Any] = list(result) if several else [result]
    if not optimizers or not all(isinstance(one, Optimizer) for one in optimizers):
        kinds = [type(one).__name__ for one in optimizers if not isinstance(one, Optimizer)]
        got = kinds[0] if kinds else "an empty list"
        if result is not given:
            got = f"a function that returns {got}"
        raise TypeError(f"SVI: expected optimizer to be {says}, got {got}")
    for one in optimizers:
        if needs_closure(one) and len(optimizers) > 1:
            raise ValueError(
                f"SVI: expected {type(one).__name__}, which evaluates the bound several times in "
                f"a step, to be the only optimizer, got {len(optimizers)}"
            )
    seen: set[int] = set()
    for one in optimizers:
        own = {id(p) for group in one.param_groups for p in group["params"]}
        if seen & own:
            raise ValueError(
                f"SVI: expected each parameter to be in one optimizer, got {len(seen & own)} in "
                f"several"
            )
        seen |= own
    return optimizers if several else optimizers[0]


def needs_closure(optimizer: Optimizer) -> bool:
    """Return whether its step needs a function that evaluates the loss, as LBFGS does.

    Raises:
        TypeError: the step takes other arguments.
    """
    needed = _needed_by(type(optimizer).step)
    if len(needed) > 1:
        raise TypeError(
            f"SVI: expected optimizer's step to take nothing, or a closure, got "
            f"{type(optimizer).__name__}, whose step takes {', '.join(needed)}"
        )
    return bool(needed)


@functools.cache
def _needed_by(step: Callable[..., Any]) -> list[str]:
    """Return the names of the arguments that a step needs, without ``self``."""
    return [
        parameter.name
        for parameter in list(inspect.signature(step).parameters.values())[1:]
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


class Repeated:
    """Evaluate the same loss at each call, with the same noise and the same buffers.

    A line search compares values at different parameters. With different noise it would compare
    the noise.
    """

    def __init__(
        self,
        loss: Callable[[], Tensor],
        modules: Iterable[nn.Module],
        generators: Mapping[str, torch.Generator],
    ) -> None:
        self._loss = loss
        self._generators = list(generators.values())
        self._random = random_state(self._generators)
        buffers = {id(b): b for part in modules for b in part.buffers()}
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in buffers.values()]
        self.first: Tensor | None = None

    @torch.enable_grad()
    def __call__(self) -> Tensor:
        if self.first is not None:
            set_random_state(self._random, self._generators)
            with torch.no_grad():
                for buffer, value in self._buffers:
                    buffer.copy_(value)
        loss = self._loss()
        if self.first is None:
            self.first = loss.detach()
        return loss


class Watch:
    """Warn once of parameters with a gradient but no optimizer, and of idle optimizers."""

    def __init__(self) -> None:
        self._setting: tuple[int, ...] = ()
        self._said: set[int] = set()

    def check(
        self,
        loss: Tensor,
        setting: Sequence[object],
        optimizers: Sequence[Optimizer],
        names: Callable[[], dict[int, str]],
    ) -> None:
        """Check the graph of the first loss, and of the next one after a part was exchanged."""
        now = tuple(map(id, (*setting, *optimizers)))
        if now == self._setting:
            return
        self._setting = now
        leaves = {id(leaf): leaf for leaf in leaves_of(loss)}
        own = [{id(p) for group in one.param_groups for p in group["params"]} for one in optimizers]
        known = names()
        left = {
            number: leaf
            for number, leaf in leaves.items()
            if not any(number in held for held in own)
            # A leaf that the model makes in each call cannot be trained.
            and (number in known or isinstance(leaf, nn.Parameter)) and number not in self._said
        }  # fmt: skip
        self._said |= set(left)
        if left:
            shown = sorted(
                known.get(number, f"a parameter of shape {list(leaf.shape)}")
                for number, leaf in left.items()
            )
            more = f" and {len(shown) - _MOST_NAMES} more" if len(shown) > _MOST_NAMES else ""
            warnings.warn(
                f"SVI: parameters get a gradient and are in no optimizer, so they stay as they "
                f"are: {', '.join(shown[:_MOST_NAMES])}{more}; add them to optimizer, or call "
                f"requires_grad_(False)",
                stacklevel=4,
            )
        for one, held in zip(optimizers, own, strict=True):
            if not held & set(leaves):
                warnings.warn(
                    f"SVI: no parameter of {type(one).__name__} gets a gradient: the bound depends "
                    f"on none of them; was a module exchanged after the optimizer was made?",
                    stacklevel=4,
                )
