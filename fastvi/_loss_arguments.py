"""The losses' side of the checks, and the two steps that every loss ends with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from fastvi.bounds.estimators import ELBO_ESTIMATORS, IWLB_ESTIMATORS, OBJECTIVES_BY_NAME
from fastvi.ops._arguments import check_finite, check_num_samples, check_prior, check_tensor

LogLikelihood = Callable[[Tensor], Tensor]
Prior = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class OfData:
    """log p(x given z) as a function of z that says what x is.

    So ranks can compare x, and some of the data can be evaluated without the others.
    """

    x: Tensor
    function: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, z: Tensor) -> Tensor:
        return self.function(self.x, z)

    def of(self, rows: Tensor, batch_dims: int) -> OfData:
        """Return that of some of the data, which may be there several times."""
        return OfData(self.x.flatten(0, batch_dims - 1)[rows], self.function)


# "auto" takes the closed forms that there are, "analytic" insists on them, the last takes none.
KL_FORMS = ("auto", "analytic", "monte_carlo")
REDUCTIONS = ("mean", "sum", "none")


def check_iwlb_options(
    where: str, num_samples: int, estimator: str, alpha: float, reduction: str
) -> None:
    check_num_samples(where, num_samples)
    check_estimator(where, estimator, IWLB_ESTIMATORS)
    check_choice(where, "reduction", reduction, REDUCTIONS)
    check_number(where, "alpha", alpha)
    if alpha != 0.0 and not IWLB_ESTIMATORS[estimator].any_order:
        raise ValueError(
            f"{where}: expected alpha to be 0 for estimator {estimator!r}, got {alpha}"
        )


def plain(value: Any) -> Any:
    """A number of Python's in place of one of numpy's; anything else as it is."""
    if type(value) in (int, float, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def check_chunks(where: str, num_samples: int, chunk_size: object, memory_budget: object) -> None:
    if isinstance(chunk_size, str):
        check_choice(where, "chunk_size", chunk_size, ("auto",))
    elif chunk_size is not None:
        check_num_samples(where, chunk_size, "chunk_size")
        if chunk_size > num_samples:  # type: ignore[operator]
            raise ValueError(
                f"{where}: expected chunk_size to be at most num_samples, {num_samples}, "
                f"got {chunk_size}"
            )
    if memory_budget is None:
        return
    if isinstance(memory_budget, bool) or not isinstance(memory_budget, Integral):
        raise TypeError(
            f"{where}: expected memory_budget to be a number of bytes, "
            f"got {type(memory_budget).__name__}"
        )
    if chunk_size != "auto" or memory_budget < 1:
        raise ValueError(
            f"{where}: expected memory_budget to be positive and given with chunk_size='auto', got "
            f"{memory_budget} with chunk_size={chunk_size!r}"
        )


def check_elbo_options(
    where: str, num_samples: int, kl: str, beta: float, estimator: str, reduction: str
) -> None:
    check_num_samples(where, num_samples)
    check_choice(where, "kl", kl, KL_FORMS)
    check_estimator(where, estimator, ELBO_ESTIMATORS)
    check_choice(where, "reduction", reduction, REDUCTIONS)
    check_number(where, "beta", beta)
    if beta < 0:
        raise ValueError(f"{where}: expected beta to be finite and at least 0, got {beta}")
    check_score_of_kl(where, kl, estimator)


def check_score_of_kl(where: str, kl: str, estimator: str) -> None:
    if kl == "analytic" and estimator == "stl":
        raise ValueError(
            f"{where}: expected kl to be 'monte_carlo' for estimator 'stl' (a closed form "
            f"has no score to leave out), got 'analytic'"
        )


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
    _check_floating(where, "loc", loc)
    _check_floating(where, "log_var", log_var)
    for name, value in zip(("loc", "log_var"), check_prior(where, prior), strict=True):
        if value is not None:
            _check_floating(where, f"prior {name}", value)
    if not callable(log_likelihood):
        raise TypeError(
            f"{where}: expected log_likelihood to be a function of z, "
            f"got {type(log_likelihood).__name__}"
        )
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
    """log p(x | z), shape (K, *batch), after a look at what the user's function returned."""
    log_px = log_likelihood(z)
    name = "the value of log_likelihood(z)"
    _check_floating(where, name, log_px)
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
    # -inf is the log-likelihood of an impossible datum; nothing makes the others right.
    if validate_args and not bool((log_px < math.inf).all()):
        raise ValueError(f"{where}: expected {name} to be below +inf, got NaN or +inf in it")
    return log_px


def loss_of(bound: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return -bound
    return -(bound.sum() if reduction == "sum" else bound.mean())


def check_choice(where: str, name: str, value: object, choices: Iterable[str]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{where}: expected {name} to be a str, got {type(value).__name__}")
    if value not in choices:
        names = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{where}: expected {name} to be one of {names}, got {value!r}")


def check_estimator(where: str, estimator: object, known: Iterable[str]) -> None:
    """Refuse an unknown estimator; of one that is an objective of its own, say which."""
    instead = OBJECTIVES_BY_NAME.get(estimator) if isinstance(estimator, str) else None
    if instead is None:
        check_choice(where, "estimator", estimator, known)
        return
    names = ", ".join(repr(name) for name in known)
    raise ValueError(
        f"{where}: expected estimator to be one of {names}, got {estimator!r}; it is a bound of "
        f"its own, fastvi.objectives.{instead}, for samples without a path: use it with SVI, "
        f"HierarchicalVAE.loss, VAE.loss or Trace_IWLB"
    )


def check_number(where: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymFloat)):
        raise TypeError(f"{where}: expected {name} to be a float, got {type(value).__name__}")
    if not -math.inf < value < math.inf:
        at_least = " and at least 0" if name == "beta" else ""
        raise ValueError(f"{where}: expected {name} to be finite{at_least}, got {value}")


def check_share(where: str, name: str, value: Any) -> None:
    """Refuse what is no number from 0 to 1."""
    check_number(where, name, value)
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{where}: expected {name} to be from 0 to 1, got {value}")


def _check_floating(where: str, name: str, value: object) -> None:
    check_tensor(where, name, value)
    assert isinstance(value, Tensor)
    if not value.is_floating_point():
        raise TypeError(f"{where}: expected {name} to be floating-point, got {value.dtype}")


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
