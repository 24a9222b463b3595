"""The base of the losses as modules."""

from __future__ import annotations

from torch import Tensor, nn

from fastvi._checks import check_floating, check_prior
from fastvi._loss_arguments import Prior
from fastvi.bounds.weighers import Weigher
from fastvi.chunks import BackwardSamples


def register_prior(module: nn.Module, where: str, prior: Prior | None) -> None:
    """Keep (loc, log_var) as ``prior_loc`` and ``prior_log_var``: parameters, or buffers."""
    for name, value in zip(("loc", "log_var"), check_prior(where, prior), strict=True):
        if value is None:
            module.register_parameter(f"prior_{name}", None)
            continue
        check_floating(where, f"prior {name}", value)
        if isinstance(value, nn.Parameter):
            module.register_parameter(f"prior_{name}", value)
        elif value.grad_fn is not None:
            raise ValueError(
                f"{where}: expected prior {name} to be a Parameter or a constant, got the result "
                f"of a computation, which would be left out of training (a call of a loss takes it)"
            )
        else:
            # load_state_dict writes to buffers in place, so the buffer is a copy. A tensor that is
            # trained elsewhere has to stay the same tensor.
            constant = value if value.requires_grad else value.clone()
            module.register_buffer(f"prior_{name}", constant)


class BoundLoss(BackwardSamples, nn.Module):
    """Hold what all these modules have: the number of samples, the prior and the reduction."""

    prior_loc: Tensor | None
    prior_log_var: Tensor | None

    def __init__(
        self, num_samples: int, prior: Prior | None, reduction: str, validate_args: bool
    ) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.reduction = reduction
        self.validate_args = validate_args
        register_prior(self, type(self).__name__, prior)

    def weigher(self) -> Weigher:
        """Return the bound, and the estimator of its gradient."""
        raise NotImplementedError

    @property
    def prior(self) -> Prior | None:
        """(loc, log_var) of p(z), or None for N(0, I)."""
        if self.prior_loc is None or self.prior_log_var is None:
            return None
        return self.prior_loc, self.prior_log_var

    def _settings(self, *names: str, **unusual: object) -> str:
        """Show settings by name; those of ``unusual`` only if they differ from the value given."""
        shown = [f"{name}={getattr(self, name)!r}" for name in names]
        shown += [
            f"{name}={getattr(self, name)!r}"
            for name, usual in unusual.items()
            if getattr(self, name) != usual
        ]
        return ", ".join([*shown, f"reduction={self.reduction!r}"])
