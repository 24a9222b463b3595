"""A multi-sample bound in place of scvi-tools' ELBO, for ``SCVI`` and its relatives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from scvi import REGISTRY_KEYS
from scvi.module import VAE
from scvi.module._constants import MODULE_KEYS
from scvi.module.base import LossOutput, auto_move_data
from torch import Tensor, nn

import fastvi
from fastvi._checks import check_num_samples
from fastvi.integrations.scvi.acceleration import event_log_prob

MOST_AT_ONCE = 25


class BoundMixin:
    r"""Train a ``scvi.module.VAE`` by a fastvi loss, and judge it by :math:`L_K`.

    .. math::
        L_K = \log \frac{1}{K} \sum_{k=1}^{K} \frac{p(x \mid z_k)\, p(z_k)}{q(z_k \mid x)}

    Derive a class from it and the module, in this order, with an ``objective``; :func:`bounded`
    does so for a model. The latents are :math:`z`, and the library size if the model infers it. The
    training loss, ``elbo_train`` and ``elbo_validation`` become :math:`-L_K`, the mean over cells,
    in nats. For held-out data it is split into the reconstruction error and the rest.

    While scvi-tools warms the divergence up, ``kl_weight`` :math:`\beta < 1`, the loss is
    :math:`-\beta L_K - (1 - \beta) \log p(x \mid z)`, which for K = 1 is its own.

    ``objective`` is a loss of ``loc``, ``log_var`` and a log-likelihood: :class:`fastvi.IWLBLoss`
    with any estimator and ``chunk_size``, :class:`fastvi.ELBOLoss` or another. Each module has a
    copy, ``criterion``. Its parameters have scvi-tools' names, so that it loads a saved ``SCVI``.

    Example:
        >>> import scvi
        >>> from fastvi.integrations.scvi import BoundMixin
        >>> class Module(BoundMixin, scvi.module.VAE):
        ...     objective = fastvi.IWLBLoss(num_samples=25)
        >>> class Model(scvi.model.SCVI):
        ...     _module_cls = Module
    """

    objective: Any = fastvi.IWLBLoss(num_samples=25)
    training: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The name differs, because an attribute of the class would hide the module's own.
        self.criterion = copy.deepcopy(type(self).objective)
        self.criterion.reduction = "none"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not isinstance(vars(cls).get("objective", cls.objective), nn.Module):
            raise TypeError(
                f"{cls.__name__}: expected objective to be a loss of fastvi such as "
                f"fastvi.IWLBLoss(num_samples=25), got {cls.objective!r}"
            )
        if issubclass(cls, VAE) and not _has_its_loss(cls):
            raise TypeError(
                f"{cls.__name__}: expected a module with the loss of scvi.module.VAE, got one of "
                f"its own, which a bound would leave out"
            )

    @auto_move_data
    def forward(
        self,
        tensors: dict[str, Tensor],
        get_inference_input_kwargs: dict | None = None,
        get_generative_input_kwargs: dict | None = None,
        inference_kwargs: dict | None = None,
        generative_kwargs: dict | None = None,
        loss_kwargs: dict | None = None,
        compute_loss: bool = True,
    ) -> tuple[Any, ...]:
        """Run the module; in training only the bound runs the decoder."""
        if not (compute_loss and self.training):
            return super().forward(  # type: ignore[misc]
                tensors,
                get_inference_input_kwargs=get_inference_input_kwargs,
                get_generative_input_kwargs=get_generative_input_kwargs,
                inference_kwargs=inference_kwargs,
                generative_kwargs=generative_kwargs,
                loss_kwargs=loss_kwargs,
                compute_loss=compute_loss,
            )
        module: Any = self
        given = dict(get_inference_input_kwargs or {})
        given.pop("full_forward_pass", None)
        inputs = module._get_inference_input(tensors, **given)
        inferred = module.inference(**inputs, **(inference_kwargs or {}))
        options = {
            "get_generative_input_kwargs": get_generative_input_kwargs or {},
            "generative_kwargs": generative_kwargs or {},
        }
        return inferred, {}, self.loss(tensors, inferred, options, **(loss_kwargs or {}))

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        kl_weight: Tensor | float = 1.0,
    ) -> LossOutput:
        """Compute the objective, in nats, with its terms as scvi-tools logs them."""
        qz = inference_outputs[MODULE_KEYS.QZ_KEY]
        if inference_outputs[MODULE_KEYS.Z_KEY].ndim > qz.loc.ndim:
            # scvi-tools' own evaluations take several samples at once.
            return super().loss(tensors, inference_outputs, generative_outputs)  # type: ignore[misc]
        options = {} if MODULE_KEYS.PX_KEY in generative_outputs else generative_outputs
        posterior = self._posterior(tensors, inference_outputs)
        log_px = self._log_likelihood(tensors, inference_outputs, **options)
        negative_bound = self._negative_bound(self.criterion, posterior, log_px)
        loss = negative_bound.mean()
        if kl_weight != 1.0:
            z = inference_outputs[MODULE_KEYS.Z_KEY]
            if self._infers_library():
                z = torch.cat([z, inference_outputs[MODULE_KEYS.LIBRARY_KEY]], dim=-1)
            # z is transformed already, but log_px transforms the samples of the objective.
            reconstruction = log_px(z.unsqueeze(0), is_transformed=True).mean()
            loss = kl_weight * loss - (1 - kl_weight) * reconstruction
        p = generative_outputs.get(MODULE_KEYS.PX_KEY)
        # In training only the bound runs the decoder.
        error = negative_bound if p is None else -event_log_prob(p, tensors[REGISTRY_KEYS.X_KEY])
        return LossOutput(
            loss=loss,
            reconstruction_loss=error,
            kl_local={MODULE_KEYS.KL_Z_KEY: negative_bound - error},
        )

    @torch.inference_mode()
    @auto_move_data
    def marginal_ll(
        self,
        tensors: dict[str, Tensor],
        n_mc_samples: int,
        return_mean: bool = False,
        n_mc_samples_per_pass: int | None = None,
    ) -> Tensor | float:
        """Estimate the log-evidence of each cell by L_K with K = ``n_mc_samples``, in nats.

        ``n_mc_samples_per_pass`` limits the memory, and does not change the result.
        """
        check_num_samples("marginal_ll", n_mc_samples, "n_mc_samples")
        module: Any = self
        inferred = module.inference(**module._get_inference_input(tensors))
        at_once = min(n_mc_samples_per_pass or MOST_AT_ONCE, n_mc_samples)

        def objective(
            loc: Tensor, log_var: Tensor, log_likelihood: Callable[[Tensor], Tensor], *, prior: Any
        ) -> Tensor:
            return fastvi.iwlb_loss(
                loc,
                log_var,
                log_likelihood,
                num_samples=n_mc_samples,
                chunk_size=None if at_once == n_mc_samples else at_once,
                prior=prior,
                reduction="none",
            )

        log_px = self._log_likelihood(tensors, inferred)
        evidence = -self._negative_bound(objective, self._posterior(tensors, inferred), log_px)
        return evidence.mean().item() if return_mean else evidence.cpu()

    # ---- the terms ------------------------------------------------------------------------------
    def _infers_library(self) -> bool:
        return not self.use_observed_lib_size  # type: ignore[attr-defined]

    def _posterior(
        self, tensors: dict[str, Tensor], inferred: dict[str, Any]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """Return loc and log-variance of the latents, and of their prior or None for N(0, I)."""
        qz = inferred[MODULE_KEYS.QZ_KEY]
        loc, log_var = qz.loc, 2 * qz.scale.log()
        if not self._infers_library():
            return loc, log_var, None
        ql = inferred[MODULE_KEYS.QL_KEY]
        module: Any = self
        mean, var = module._compute_local_library_params(tensors[REGISTRY_KEYS.BATCH_KEY])
        zeros = torch.zeros_like(loc)
        return (
            torch.cat([loc, ql.loc], dim=-1),
            torch.cat([log_var, 2 * ql.scale.log()], dim=-1),
            (torch.cat([zeros, mean], dim=-1), torch.cat([zeros, var.log()], dim=-1)),
        )

    @staticmethod
    def _negative_bound(
        objective: Callable[..., Tensor],
        posterior: tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None],
        log_px: Callable[[Tensor], Tensor],
    ) -> Tensor:
        loc, log_var, prior = posterior
        return objective(loc, log_var, log_px, prior=prior)

    def _log_likelihood(
        self,
        tensors: dict[str, Tensor],
        inferred: dict[str, Any],
        get_generative_input_kwargs: dict | None = None,
        generative_kwargs: dict | None = None,
    ) -> Callable[..., Tensor]:
        """Return a function of the latents, (K, cells, D), for log p(x | z), (K, cells)."""
        module: Any = self
        x = tensors[REGISTRY_KEYS.X_KEY]
        given = get_generative_input_kwargs or {}

        def decode(z: Tensor, library: Tensor) -> Tensor:
            outputs = {**inferred, MODULE_KEYS.Z_KEY: z, MODULE_KEYS.LIBRARY_KEY: library}
            inputs = module._get_generative_input(tensors, outputs, **given)
            p = module.generative(**inputs, **(generative_kwargs or {}))
            return event_log_prob(p[MODULE_KEYS.PX_KEY], x)

        def log_px(drawn: Tensor, is_transformed: bool = False) -> Tensor:
            if self._infers_library():
                z, library = drawn[..., :-1], drawn[..., -1:]
            else:
                z, library = drawn, inferred[MODULE_KEYS.LIBRARY_KEY].expand(*drawn.shape[:-1], 1)
            if not is_transformed:
                z = module.z_encoder.z_transformation(z)
            if module.batch_representation == "embedding":
                # Its embedding has one sample.
                return torch.stack([decode(*one) for one in zip(z, library, strict=True)])
            return decode(z, library)

        return log_px


def bounded(model: Any, objective: nn.Module | None = None) -> Any:
    """Make a model class of scvi-tools that trains by a bound in place of its ELBO.

    Args:
        model: ``scvi.model.SCVI``, ``LinearSCVI``, or any whose module is a ``scvi.module.VAE``
            with its loss.
        objective: see :class:`BoundMixin`; by default ``fastvi.IWLBLoss(num_samples=25)``.

    Returns:
        A subclass of ``model``, to be used as it.

    Raises:
        TypeError: a model of another module, or whose module has a loss of its own; an
            ``objective`` that is no loss of fastvi.

    Example:
        >>> import scvi
        >>> from fastvi.integrations.scvi import bounded
        >>> objective = fastvi.IWLBLoss(num_samples=25, estimator="dreg", chunk_size=5)
        >>> Model = bounded(scvi.model.SCVI, objective)  # then Model(adata), train(), as before

    References:
        | Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018)
        | https://doi.org/10.1038/s41592-018-0229-2
        | Importance Weighted Autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519
    """
    module = getattr(model, "_module_cls", None)
    if not (isinstance(module, type) and issubclass(module, VAE) and _has_its_loss(module)):
        raise TypeError(
            f"bounded: expected model to be a class of scvi-tools whose module is a "
            f"scvi.module.VAE with its loss, such as scvi.model.SCVI, got "
            f"{getattr(model, '__name__', repr(model))}"
        )
    chosen = BoundMixin.objective if objective is None else objective
    own = {"objective": chosen, "__module__": module.__module__}
    bound = type(f"Bound{module.__name__}", (BoundMixin, module), own)
    name = f"Bound{model.__name__}"
    return type(name, (model,), {"_module_cls": bound, "__module__": model.__module__})


def _has_its_loss(module: type) -> bool:
    """Return whether only :class:`BoundMixin` overrides the loss of ``scvi.module.VAE``."""
    owner = next(kind for kind in module.__mro__ if "loss" in vars(kind) and kind is not BoundMixin)
    return owner is VAE
