"""The result of an encoder: the mean and log-variance of a Gaussian, or any distribution."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from fastvi._checks import check_floating, check_tensor
from fastvi.models.priors import event_of

Encoded = tuple[Tensor, Tensor] | Distribution


def check_data(where: str, x: object, takes_integers: bool) -> None:
    check_tensor(where, "x", x)
    assert isinstance(x, Tensor)
    if x.is_complex() or not takes_integers:
        check_floating(where, "x", x)


def read_encoded(where: str, x: Tensor, encoded: object) -> Encoded:
    """Return (loc, log_var) of q(z given x), or the distribution, after a check of its batch."""
    if isinstance(encoded, Distribution):
        q = event_of(where, "encoder(x)", encoded)
        _check_batch(where, x, q.batch_shape, "a distribution of batch shape")
        return q
    if isinstance(encoded, Tensor):
        if encoded.ndim == 0 or encoded.shape[-1] % 2:
            raise ValueError(
                f"{where}: expected encoder(x) to be (loc, log_var), or one tensor of 2 D features "
                f"that joins them, got a tensor of shape {tuple(encoded.shape)}"
            )
        encoded = encoded.chunk(2, dim=-1)
    if not (
        isinstance(encoded, (tuple, list))
        and len(encoded) == 2
        and all(isinstance(part, Tensor) for part in encoded)
    ):
        raise TypeError(
            f"{where}: expected encoder(x) to be two tensors, (loc, log_var), or a distribution, "
            f"got {type(encoded).__name__}"
        )
    loc, log_var = encoded
    if loc.ndim == 0:
        raise ValueError(
            f"{where}: expected encoder(x) to keep the batch of x, shape {tuple(x.shape)}, got loc "
            f"of shape ()"
        )
    _check_batch(where, x, loc.shape[:-1], "loc of shape", loc.shape)
    return loc, log_var


def _check_batch(
    where: str, x: Tensor, batch: tuple[int, ...], what: str, shown: tuple[int, ...] | None = None
) -> None:
    if x.shape[: len(batch)] != batch:
        raise ValueError(
            f"{where}: expected encoder(x) to keep the batch of x, shape {tuple(x.shape)}, "
            f"got {what} {tuple(batch if shown is None else shown)}"
        )
