"""The checks that all losses make, and the two steps that end each of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastvi._checks import (
    check_callable,
    check_choice,
    check_finite,
    check_floating,
    check_num_samples,
    check_number,
    check_prior,
    check_tensor,
)
from fastvi.bounds.estimators import (
    ELBO_ESTIMATORS,
    IWLB_ESTIMATORS,
    check_estimator,
    check_kl,
    check_order,
)

LogLikelihood = Callable[[Tensor], Tensor]
Prior = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class OfData:
    """Compute log p(x given z) as a function of z, and keep x.

    So the ranks can compare x, and some of the examples can be evaluated without the others.
    """

    x: Tensor
    function: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, z: Tensor) -> Tensor:
        return self.function(self.x, z)

    def of(self, rows: Tensor, batch_dims: int) -> OfData:
        """Return that of some of the data, which may be there several times."""
        return OfData(self.x.flatten(0, batch_dims - 1)[rows], self.function)


REDUCTIONS = ("mean", "sum", "none")


def check_iwlb_options(
    where: str, num_samples: int, estimator: str, alpha: float, reduction: str
) -> None:
    check_num_samples(where, num_samples)
    check_estimator(where, estimator, IWLB_ESTIMATORS)
    check_choice(where, "reduction", reduction, REDUCTIONS)
    check_order(where, alpha, estimator)


def check_elbo_options(
    where: str, num_samples: int, kl: str, beta: float, estimator: str, reduction: str
) -> None:
    check_num_samples(where, num_samples)
    check_estimator(where, estimator, ELBO_ESTIMATORS)
    check_kl(where, kl, estimator)
    check_choice(where, "reduction", reduction, REDUCTIONS)
    check_number(where, "beta", beta, at_least=0)


def check_inputs(
    where: str,
    loc: Tensor,
    log_var: Tensor,
    log_likelihood: LogLikelihood,
    prior: Prior | None,
    reduction: str,
    key: Tensor | None,
    validate_args: bool,
) -> None:
    check_floating(where, "loc", loc)
    check_floating(where, "log_var", log_var)
    for name, value in zip(("loc", "log_var"), check_prior(where, prior), strict=True):
        if value is not None:
            check_floating(where, f"prior {name}", value)
    check_callable(where, "log_likelihood", log_likelihood, "a function of z")
    if key is not None:
        check_tensor(where, "key", key)
    shape = _broadcast(where, loc, log_var)
    if reduction == "mean" and 0 in shape[:-1]:
        raise ValueError(
            f"{where}: expected at least one datum for reduction 'mean', got loc of shape "
            f"{list(loc.shape)}; 'sum' and 'none' take an empty batch"
        )
    if validate_args:
        check_finite(where, loc=loc, log_var=log_var)
        if prior is not None:
            check_finite(where, **{"prior loc": prior[0], "prior log_var": prior[1]})


def log_px_of(where: str, log_likelihood: LogLikelihood, z: Tensor, validate_args: bool) -> Tensor:
    """Return log p(x | z), shape (K, *batch), after a check of the function's result."""
    log_px = log_likelihood(z)
    name = "the value of log_likelihood(z)"
    check_floating(where, name, log_px)
    expected = z.shape[:-1]
    if log_px.shape != expected:
        hint = ""
        if log_px.ndim > len(expected) and log_px.shape[: len(expected)] == expected:
            hint = "; this looks like one value per feature: sum over the features"
        elif log_px.shape == expected[1:] or log_px.ndim == 0:
            hint = "; keep one value per sample and datum: the loss reduces them"
        raise ValueError(
            f"{where}: expected {name} to have shape (K, *batch) = {list(expected)}, got "
            f"{list(log_px.shape)}{hint}"
        )
    if log_px.device != z.device:
        raise ValueError(
            f"{where}: expected {name} to be on the device of z, {z.device}, got {log_px.device}"
        )
    # -inf is the log-likelihood of impossible data. NaN and +inf are errors in any case.
    if validate_args and not bool((log_px < math.inf).all()):
        raise ValueError(f"{where}: expected {name} to be below +inf, got NaN or +inf in it")
    return log_px


def loss_of(bound: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return -bound
    return -(bound.sum() if reduction == "sum" else bound.mean())


def _broadcast(where: str, loc: Tensor, log_var: Tensor) -> torch.Size:
    if loc.ndim == 0 or log_var.ndim == 0:
        name, value = ("loc", loc) if loc.ndim == 0 else ("log_var", log_var)
        raise ValueError(
            f"{where}: expected {name} to have shape (*batch, D), got {list(value.shape)}"
        )
    if loc.shape == log_var.shape:
        return loc.shape
    for a, b in zip(reversed(loc.shape), reversed(log_var.shape), strict=False):
        if a != b and a != 1 and b != 1:
            raise ValueError(
                f"{where}: expected log_var to broadcast with loc, {list(loc.shape)}, got "
                f"{list(log_var.shape)}"
            )
    return torch.broadcast_shapes(loc.shape, log_var.shape)
