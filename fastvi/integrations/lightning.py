"""fastvi inside Lightning: a bound as a ``LightningModule``.

It needs the optional extra ``lightning``. If a program has imported ``pytorch_lightning``, or only
that is installed, its classes are used: the two packages do not accept each other's objects.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from fastvi._checks import check_num_samples
from fastvi._optional import need
from fastvi.chunks import process_group_of, sum_gradients
from fastvi.svi.finding import find_parts

_NAMES = ("lightning", "pytorch_lightning")
_imported = [name for name in _NAMES if name in sys.modules]
_installed = [name for name in _NAMES if find_spec(name) is not None]
_pl = need((_imported or _installed or _NAMES)[0], "fastvi.integrations.lightning", "lightning")

Optimizer = Callable[[Iterable[nn.Parameter]], Any]
_adam = functools.partial(torch.optim.Adam, lr=1e-3)


class BoundModule(_pl.LightningModule):  # type: ignore[name-defined]
    r"""Train a model by its bound on the evidence, with Lightning's ``Trainer``.

    The training loss is the negative bound of a batch, and is logged as ``train_bound``, in nats.
    Held-out data are judged by :math:`L_K`, the bound by many samples, as ``held_out_bound``, and
    by ``Trainer.test`` as ``test_bound``. Checkpoints, precision and devices are Lightning's.

    .. math::
        L_K = \log \frac{1}{K} \sum_{k=1}^{K} w_k \le \log p(x)
        \quad \text{in expectation}

    Args:
        model: a :class:`fastvi.VAE`, or any module with ``loss(x, objective)`` and
            ``log_evidence(x, num_samples)``, shape (\*batch,); without an objective, a module whose
            call is a loss of x, such as ``Trace_IWLB(50)(model, guide)`` in Pyro. Its own bound,
            of as many samples as in training, is then the one of held-out data too.
        objective: the objective for ``model.loss``: a :class:`fastvi.IWLBLoss` or
            :class:`fastvi.ELBOLoss` that is reduced to one number.
        optimizer: a function of the parameters with a result as of ``configure_optimizers``; by
            default Adam with a learning rate of 1e-3.
        held_out_samples: K for held-out data.

    Modules and parameters to which ``model`` or ``objective`` only refer, such as a decoder behind
    a function or a bound method, become part of this module, as in :class:`fastvi.SVI`.

    Raises:
        TypeError: a ``model`` that is no module or lacks one of these methods.
        ValueError: ``held_out_samples`` below 1; in training, a loss that is not one number.

    Example:
        >>> from fastvi.integrations.lightning import BoundModule
        >>> vae = fastvi.VAE(torch.nn.Linear(64, 16), torch.nn.Linear(8, 64))
        >>> module = BoundModule(vae, fastvi.IWLBLoss(num_samples=50))
        >>> module.training_step(torch.ones(4, 64), 0).shape
        torch.Size([])

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Callable[..., Tensor] | None = None,
        *,
        optimizer: Optimizer = _adam,
        held_out_samples: int = 500,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"BoundModule: expected model to be a module, got {type(model).__name__}"
            )
        needed = () if objective is None else ("loss", "log_evidence")
        if missing := [name for name in needed if not callable(getattr(model, name, None))]:
            raise TypeError(
                f"BoundModule: expected model to have {' and '.join(missing)}, "
                f"got {type(model).__name__}, which has not"
            )
        check_num_samples("BoundModule", held_out_samples, "held_out_samples")
        self.model: Any = model
        self.objective = objective
        self.optimizer = optimizer
        self.held_out_samples = held_out_samples
        self._register_referred()

    def _register_referred(self) -> None:
        """Register modules and parameters to which model and objective only refer.

        Then they are trained, moved to the device, put in ``eval`` mode and saved in checkpoints.
        """
        own = {id(part) for part in self.modules()}
        own |= {id(tensor) for tensor in [*self.parameters(), *self.buffers()]}
        referred, left = nn.Module(), []
        whole = {"model": self.model, "objective": self.objective}
        for name, part in find_parts("referred", whole).items():
            # The names of submodules may have no dots.
            key = name.removeprefix("referred.").replace(".", "/")
            if id(part) in own or isinstance(part, torch.Generator):
                continue
            if isinstance(part, nn.Module):
                referred.add_module(key, part)
            elif isinstance(part, nn.Parameter):
                referred.register_parameter(key, part)
            else:
                left.append(key)
        if left:
            warnings.warn(
                f"BoundModule: tensors that require a gradient and are no nn.Parameter are not "
                f"trained: {', '.join(left)}",
                stacklevel=3,
            )
        if (
            next(referred.children(), None) is not None
            or next(referred.parameters(), None) is not None
        ):
            self.referred = referred

    def data_of(self, batch: Any) -> Tensor:
        """Return the data of a batch: the batch itself, or its first part, as beside labels."""
        return batch[0] if isinstance(batch, (tuple, list)) else batch

    def forward(self, x: Tensor) -> Tensor:
        """Measure the training loss of the data, in nats."""
        return self.model(x) if self.objective is None else self.model.loss(x, self.objective)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = self.data_of(batch)
        loss = self(x)
        if loss.ndim:
            raise ValueError(
                f"BoundModule: expected the loss to be one number, got shape {tuple(loss.shape)}; "
                f"give the objective reduction='mean'"
            )
        self._log("train_bound", -loss.detach(), x, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._log_held_out("held_out_bound", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._log_held_out("test_bound", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(self.data_of(batch))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Add up the shares of the gradient, if the samples are shared among processes."""
        # A bound of a Pyro program holds the objective itself.
        objective = getattr(self.model, "elbo", None) if self.objective is None else self.objective
        group = process_group_of(objective)
        if group is not None:
            sum_gradients((p for each in optimizer.param_groups for p in each["params"]), group)

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())

    def _log_held_out(self, name: str, batch: Any) -> None:
        x = self.data_of(batch)
        if self.objective is None:
            bound = -self(x)
        else:
            bound = self.model.log_evidence(x, self.held_out_samples).mean()
        self._log(name, bound, x, on_epoch=True, sync_dist=True)

    def _log(self, name: str, bound: Tensor, x: Tensor, **when: bool) -> None:
        # Without a trainer, as in a loop of the user's own, there is no log.
        if self._trainer is not None:
            self.log(name, bound, batch_size=len(x), prog_bar=True, **when)
