"""From latents to log p(x given z): a decoder and a likelihood, in one op if they allow it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastvi._checks import check_callable, check_tensor
from fastvi._loss_arguments import OfData
from fastvi._modes import rounds_freely
from fastvi.models._layers import is_plain, ops_outrun_linear, run, run_all, sequence
from fastvi.models.likelihoods import Likelihood
from fastvi.models.likelihoods.by_name import GivenLikelihood, likelihood_of
from fastvi.ops._call import exporting

# A decoder's last Linear is fused with the likelihood if its outputs would take more bytes than
# this. Below, computing them again in the backward pass takes a quarter more time than storing
# them; above, a CPU's allocator gets new pages from the system at every call, and fusing is faster.
FUSE_BYTES = 32 * 2**20
# If no backward pass will compute them again, or if the op multiplies much faster than a compiled
# Linear, fusing is faster on a CPU as soon as the outputs do not fit in the caches.
FUSE_BYTES_ABOVE_CACHES = 2 * 2**20


def log_likelihood(
    decoder: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    likelihood: GivenLikelihood = "bernoulli",
    fuse_linear: bool = True,
) -> Callable[[Tensor], Tensor]:
    r"""Join a decoder and a likelihood to the function z -> log p(x given z) that losses call.

    .. math::
        z \mapsto \log p(x \mid f(z))

    A decoder that is an ``nn.Sequential`` (or an ``nn.Linear``) whose last module is an
    ``nn.Linear``, or again such a sequence, is not run to its end if its outputs would be large:
    above 32 MiB, or 2 MiB on a CPU where there is no graph, or where the op multiplies faster than
    a compiled layer. Then the last layer goes into
    :func:`fastvi.ops.linear_bernoulli_log_prob`, :func:`fastvi.ops.linear_gaussian_log_prob` or
    :func:`fastvi.ops.linear_poisson_log_prob`, and its outputs are never stored. Values and
    gradients are the same up to rounding. The decoder runs as it is with hooks on that layer or on
    the sequence, with a subclass of either, with events of several dimensions, and with
    likelihoods that have no ``log_prob_linear``.

    Args:
        decoder: a module (or function) f that maps z, shape (rows, D), to (rows, \*event), or to
            what the likelihood takes for an event.
        x: data, shape (\*batch, \*event).
        likelihood: a name, a :class:`fastvi.Likelihood`, or a function from the decoder's output
            to a distribution, as in :class:`fastvi.VAE`.
        fuse_linear: ``False`` always runs the decoder to its end.

    Returns:
        A function of z, shape (K, \*batch, D), that returns log p(x given z) in nats, shape
        (K, \*batch).

    Raises:
        TypeError: a decoder that cannot be called, an x that is no tensor.
        ValueError: an unknown likelihood; when called, a decoder's output that does not fit x.

    Example:
        >>> decoder = torch.nn.Sequential(torch.nn.Linear(2, 50), torch.nn.Tanh(),
        ...                               torch.nn.Linear(50, 784))
        >>> x, loc = torch.rand(4, 784).round(), torch.zeros(4, 2)
        >>> log_px = fastvi.log_likelihood(decoder, x)
        >>> fastvi.iwlb_loss(loc, torch.zeros(4, 2), log_px, num_samples=8).shape
        torch.Size([])
    """
    where = "log_likelihood"
    check_callable(where, "decoder", decoder)
    check_tensor(where, "x", x)
    family = likelihood_of(where, likelihood, decoder)

    def log_px(x: Tensor, z: Tensor) -> Tensor:
        check_tensor(where, "z", z)
        return evaluate(where, decoder, family, x, z, fuse_linear)

    return OfData(x, log_px)


def decode(where: str, decoder: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    r"""Run the decoder on z, shape (\*rows, D); the result has shape (\*rows, \*event)."""
    return _unflatten(where, run(decoder, _flatten(z)), z)


def evaluate(
    where: str,
    decoder: Callable[[Tensor], Tensor],
    likelihood: Likelihood,
    x: Tensor,
    z: Tensor,
    fuse_linear: bool,
) -> Tensor:
    r"""Evaluate log p(x given z), shape (K, \*batch), for z of shape (K, \*batch, D)."""
    modules = _up_to_a_linear(decoder) if fuse_linear and _fuses(likelihood) else None
    if modules is None:
        output = decode(where, decoder, z)
    else:
        *first, last = modules
        hidden = run_all(first, _flatten(z))
        if _is_large(last, hidden, x, z) and likelihood.output_shape(x.shape[-1:]) == x.shape[-1:]:
            hidden = hidden.reshape(*z.shape[:-1], last.in_features)
            return likelihood.log_prob_linear(x, hidden, last.weight, last.bias)
        output = _unflatten(where, run_all([last], hidden), z)
    batch = z.ndim - 2
    event = x.shape[batch:]
    _check_output(where, likelihood, x, z, output.shape[1 + batch :])
    return likelihood.log_prob(x, output, event_dims=len(event))


def _check_output(
    where: str, likelihood: Likelihood, x: Tensor, z: Tensor, got: torch.Size
) -> None:
    batch = z.ndim - 2
    if x.shape[:batch] != z.shape[1:-1]:
        raise ValueError(
            f"{where}: expected z to have shape (K, *batch, D) with the batch of x, of shape "
            f"{list(x.shape)}, got {list(z.shape)}"
        )
    event = x.shape[batch:]
    try:
        expected = likelihood.output_shape(event)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if expected is None:
        return
    if len(got) == len(expected) and all(e in (-1, g) for e, g in zip(expected, got, strict=True)):
        return
    what = "one value per feature of x"
    if expected != event:
        what = f"what {type(likelihood).__name__} takes for x of shape {list(x.shape)}"
    sizes = ", ".join("C" if size == -1 else str(size) for size in expected)
    raise ValueError(
        f"{where}: expected decoder(z) to return {what}, shape (rows, {sizes}), got "
        f"(rows, {', '.join(map(str, got))})"
    )


def _flatten(z: Tensor) -> Tensor:
    return z.reshape(math.prod(z.shape[:-1]), z.shape[-1])


def _unflatten(where: str, output: object, z: Tensor) -> Tensor:
    rows = z.shape[:-1]
    if not isinstance(output, Tensor) or output.ndim < 2 or output.shape[0] != math.prod(rows):
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"{where}: expected decoder(z) to be a tensor of {math.prod(rows)} rows, one for each "
            f"row of z, got {got}"
        )
    return output.reshape(*rows, *output.shape[1:])


def _up_to_a_linear(decoder: Any) -> list[Any] | None:
    """Return the modules of a decoder that is a sequence ending in an nn.Linear, or None."""
    modules = sequence(decoder)
    if not modules:
        return None
    last = modules[-1]
    # The exact type: a subclass, such as a parametrised Linear, may compute something else.
    return modules if type(last) is nn.Linear and is_plain(last) else None


def _fuses(likelihood: Likelihood) -> bool:
    """Return whether log_prob_linear belongs to this log_prob, not to an overridden one."""
    order = type(likelihood).__mro__
    owners = [
        next(index for index, parent in enumerate(order) if name in vars(parent))
        for name in ("log_prob_linear", "log_prob")
    ]
    return order[owners[0]] is not Likelihood and owners[0] <= owners[1]


def _is_large(last: nn.Linear, hidden: object, x: Tensor, z: Tensor) -> bool:
    """Return whether the Linear's outputs fit x, of 1-D events, and are too large to store."""
    if exporting():
        return False
    rows = math.prod(z.shape[:-1])
    if not isinstance(hidden, Tensor) or hidden.shape != (rows, last.in_features):
        return False
    if x.shape != (*z.shape[1:-1], last.out_features):
        return False
    dtype = _dtype_of_products(hidden)
    return rows * last.out_features * dtype.itemsize > fuse_bytes(hidden.device.type, dtype)


def fuse_bytes(device: str, dtype: torch.dtype) -> int:
    """Return the size of a Linear's outputs, in bytes, above which fusing it is faster."""
    if device != "cpu":
        return FUSE_BYTES
    early = rounds_freely() or (
        torch.compiler.is_compiling() and dtype == torch.float32 and ops_outrun_linear()
    )
    return FUSE_BYTES_ABOVE_CACHES if early else FUSE_BYTES


def _dtype_of_products(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden.dtype
