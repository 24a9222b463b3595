"""SVI joins a model, a guide, an optimiser and an objective."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fastvi._checks import check_callable, check_num_samples
from fastvi._modes import records_graphs
from fastvi.chunks import process_group_of, sum_gradients
from fastvi.guides.amortized import as_guide
from fastvi.guides.guide import arguments_for, draws_of
from fastvi.objectives.latent import Draws, Joint, Latent
from fastvi.objectives.objective import Objective
from fastvi.svi import optimizing
from fastvi.svi.batches import length, parts
from fastvi.svi.checkpoint import random_state, set_random_state
from fastvi.svi.fitting import Epoch, fit
from fastvi.svi.model import Model, call
from fastvi.svi.parts import Parts
from fastvi.svi.priors import check_follow_samples


class SVI(Parts):
    r"""Fit a guide, and the model's own parameters, by stochastic gradients of a bound.

    .. math::
        \log p(x_{1..N}) \ge \frac{N}{B} \sum_{b=1}^{B} L(x_b)

    The scale N/B of a sub-sample stands outside the bound L of each example: inside the
    log-mean-exp it would give a number above the evidence. If latents belong to all the data,
    sub-sampling needs an objective that is linear in the terms, :class:`fastvi.objectives.ELBO` or
    :class:`fastvi.objectives.Reinforce`, and a model that returns its terms by name.

    Args:
        model: the log-joint, ``model(z, x)``, a function or module. z is a tensor, shape
            (K, \*batch, \*event), or a mapping of latents' names to them. Returns
            :math:`\log p(x, z)` in nats, shape (K, B); (K,) if the latents belong to all the data;
            or a mapping of names to terms: such tensors, the priors of latents as distributions
            under the latents' names ("z" for one without a name), or
            :class:`fastvi.objectives.Term`.
        guide: a :class:`fastvi.guides.Guide`, or a module or function of x, or of nothing, that
            returns a ``torch.distributions.Distribution`` or a mapping of names to them.
        optimizer: an optimizer of the parameters to fit; a list of several, each with other
            parameters; or a function that makes one of the parameters of guide, model and
            objective, such as ``functools.partial(torch.optim.Adam, lr=1e-2)``. An optimizer that
            evaluates the bound several times in a step, such as ``torch.optim.LBFGS``, gets the
            same noise each time. Its line search needs an estimator whose gradient is the
            derivative of the value, as in ``ELBO()`` and ``IWLB(K, "iwae")``.
        objective: from :mod:`fastvi.objectives`. With its ``group`` a step calls
            :func:`fastvi.sum_gradients` before the optimizer's.
        num_data: N. With ``None`` each batch is all the data, and :meth:`fit` counts its data.
        vectorize: whether the model is written for one sample, without the dimension K, and
            ``torch.func.vmap`` is to add it. torch's checks of distributions, if they are on,
            check every sample.

    The modules and parameters of model, guide and objective are found wherever a function or an
    object keeps them: in closures, the attributes of a bound method's object, partials, wrapped
    functions, containers, and the globals that it uses. :meth:`modules` returns them.
    :meth:`evaluate` puts all of them in ``eval`` mode, and a checkpoint holds them.

    Raises:
        TypeError: an argument of another kind.
        ValueError: an optimizer without the objective's parameters, a parameter in two of them,
            or ``LBFGS`` beside another. In a step: latents of guide
            and model that differ, a log-joint of the wrong shape, a latent that the objective
            cannot differentiate, values outside a support.

    Warns:
        UserWarning: in the first step, once: parameters that get a gradient and are in no
            optimizer, by name; an optimizer none of whose parameters gets one.

    Example:
        >>> from torch.distributions import Normal
        >>> x = torch.randn(100) + 3.0
        >>> guide = fastvi.guides.MeanFieldGaussian({"mean": ()})
        >>> def model(z, x):
        ...     mean = z["mean"][:, None]
        ...     return {"mean": Normal(0.0, 10.0), "x": Normal(mean, 1.0).log_prob(x)}
        >>> optimizer = torch.optim.Adam(guide.parameters(), lr=0.1)
        >>> svi = fastvi.SVI(model, guide, optimizer, fastvi.objectives.ELBO(8))
        >>> history = svi.fit(x, epochs=50, batch_size=20)
        >>> bool((guide.median()["mean"] - x.mean()).abs() < 0.2)
        True

    References:
        | Stochastic Variational Inference (Hoffman et al., 2013), https://arxiv.org/abs/1206.7051
        | Black Box Variational Inference (Ranganath et al., 2014), https://arxiv.org/abs/1401.0118
    """

    def __init__(
        self,
        model: Model,
        guide: Any,
        optimizer: Optimizer | Sequence[Optimizer] | Callable[[Iterable[Tensor]], Optimizer],
        objective: Objective,
        *,
        num_data: int | None = None,
        vectorize: bool = False,
    ) -> None:
        check_callable("SVI", "model", model, "callable")
        if not isinstance(objective, Objective):
            raise TypeError(
                f"SVI: expected objective to be one of fastvi.objectives, such as ELBO() or "
                f"IWLB(16), got {type(objective).__name__}"
            )
        if num_data is not None:
            check_num_samples("SVI", num_data, "num_data")
        self.model = model
        self.guide = as_guide(guide)
        self.objective = objective
        self.num_data = num_data
        self.vectorize = vectorize
        self._was_checked = False
        self._watch = optimizing.Watch()
        self.optimizer = optimizing.make_optimizers(optimizer, self._parameters)
        known = {id(p) for p in self.optimized()}
        if any(id(p) not in known for p in objective.parameters() if p.requires_grad):
            raise ValueError(
                "SVI: expected optimizer to hold the parameters of the objective's baseline, got "
                "an optimizer without them; add objective.parameters()"
            )

    def step(self, batch: Any = None) -> Tensor:
        """Take one step of the optimizer.

        Args:
            batch: a tensor; a tuple of tensors, of which model and guide get the first ones, as
                many as they take; or None.

        Returns:
            The bound before the step, in nats, of all N data; detached.
        """
        optimizers = self.optimizers()
        bounds: list[Tensor] = []

        def loss() -> Tensor:
            value, bound = self._backward(batch)
            bounds.append(bound)
            return value

        if any(optimizing.needs_closure(one) for one in optimizers):
            repeated = optimizing.Repeated(loss, self.modules().values(), self.generators())
            for one in optimizers:
                one.step(repeated)  # type: ignore[arg-type]
            if not bounds:
                raise RuntimeError(
                    f"SVI.step: expected {type(optimizers[0]).__name__} to call the closure that "
                    f"its step takes, it did not"
                )
        else:
            loss()
            for one in optimizers:
                one.step()
        return bounds[0]

    def _backward(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Compute the loss and the bound, detached, and the gradients of the loss."""
        optimizers = self.optimizers()
        for one in optimizers:
            one.zero_grad(set_to_none=True)
        bound, num_data = self._bound(batch, self.objective.num_samples, self.num_data)
        # It is a mean over the data, so that a learning rate does not depend on their number.
        loss = -bound / num_data
        if not loss.requires_grad:
            raise ValueError(
                "SVI.step: expected the bound to depend on a parameter that requires a gradient, "
                "got none; evaluate() computes it without a step"
            )
        setting = (self.model, self.guide, self.objective)
        self._watch.check(loss, setting, optimizers, self.names)
        loss.backward()
        group = process_group_of(self.objective)
        if group is not None:
            sum_gradients(self.optimized(), group)
        return loss.detach(), bound.detach()

    @torch.no_grad()
    def evaluate(self, batch: Any = None, num_samples: int | None = None) -> Tensor:
        """Compute the bound without a step, with modules in ``eval`` mode.

        Args:
            batch: as for :meth:`step`.
            num_samples: K; ``None`` takes the objective's.

        Returns:
            The bound in nats, of all N data.
        """
        if num_samples is not None:
            check_num_samples("SVI.evaluate", num_samples)
        with self._evaluating():
            return self._bound(batch, num_samples or self.objective.num_samples, self.num_data)[0]

    def fit(
        self,
        data: Any = None,
        epochs: int = 1,
        *,
        batch_size: int | None = None,
        shuffle: bool = True,
        held_out: Any = None,
        patience: int | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_every: int | None = None,
        resume: bool = False,
        scheduler: LRScheduler | Sequence[LRScheduler] | None = None,
        num_data: int | None = None,
        progress: bool = False,
        on_epoch: Any = None,
    ) -> list[Epoch]:
        """Take a step for each batch of the data, ``epochs`` times over.

        With ``checkpoint`` the whole state is kept in one file: parameters, buffers, optimizer,
        torch's generators and those of the model, and the place in the data. The file is replaced
        as a whole, so a run that is killed at any moment, or whose disk is full, leaves a complete
        file. The same call with ``resume=True`` continues from it, and ends with the same bits as a
        run that was not interrupted. The file holds tensors and plain values, and runs no code.

        Args:
            data: a tensor or a tuple of tensors of N data; an iterable of batches that starts anew
                each time, such as a ``DataLoader``; or None, for one step in each epoch.
            epochs: the number of epochs in all, with those before an interruption.
            batch_size: for tensors; ``None`` takes all at once.
            shuffle: whether tensors are put in a new order, from torch's generator, in each epoch.
            held_out: a tensor, a tuple of tensors, or batches, evaluated after each epoch.
            patience: stop after this many epochs without a better bound (of held-out data, if there
                are any), and restore the parameters of the best epoch.
            checkpoint: path of the file.
            checkpoint_every: steps between two files; each epoch ends with one anyway.
            resume: continue from the file, if it exists. Without ``resume`` a file is an error.
            scheduler: of the learning rate, stepped after each epoch, and part of the checkpoint;
                several in a list. ``ReduceLROnPlateau`` gets the negative bound, of held-out data
                if there are any.
            num_data: N. ``None`` takes the ``num_data`` of :class:`SVI`, or the number of data in
                the tensors or in the loader's sampler. If nothing gives this number, the data are
                counted in a pass before the first step.
            progress: show a bar (needs rich: the extra ``progress``).
            on_epoch: a function of an :class:`Epoch`, one of :mod:`fastvi.callbacks`, a writer such
                as TensorBoard's, or a list of several.

        Returns:
            The epochs, with the mean bound over their steps, in nats of all N data.

        Raises:
            FileExistsError: a checkpoint without ``resume``.
            FileNotFoundError: no folder for the checkpoint.
            FloatingPointError: the bound of an epoch is not finite.
            OSError: the checkpoint cannot be written; the last saved file is unchanged. A folder
                that cannot be written to is an error before the first step.
            TypeError: data of another kind; batches that cannot be gone through twice; a state that
                a checkpoint cannot hold.
            ValueError: no data, tensors of different lengths, numbers below 1, batches without a
                tensor to count them by, a scheduler of another optimizer; a file that is empty, cut
                off, damaged or no checkpoint, or the checkpoint of another model, optimizer,
                version, settings or data.
        """
        return fit(
            self,
            data,
            epochs,
            batch_size=batch_size,
            shuffle=shuffle,
            held_out=held_out,
            patience=patience,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            resume=resume,
            scheduler=scheduler,
            num_data=num_data,
            progress=progress,
            on_epoch=on_epoch,
        )

    def latents(self, batch: Any = None, num_samples: int = 1) -> Sequence[Latent]:
        """Draw samples of the guide, in the form that an objective takes."""
        path = self.objective.needs_path and records_graphs()
        return self.guide.latents(parts(batch), num_samples, path=path)

    def _samples(self, batch: Any, num_samples: int) -> Sequence[Latent] | Draws:
        """Return all samples, or a function that draws the samples of a chunk."""
        if not self.objective.at_once:
            path = self.objective.needs_path and records_graphs()
            return draws_of(self.guide, parts(batch), num_samples, path=path)
        return self.latents(batch, num_samples)

    def _bound(self, batch: Any, num_samples: int, num_data: int | None) -> tuple[Tensor, int]:
        """Return the bound of all N data, and N."""
        data = parts(batch)
        latents = self._samples(batch, num_samples)
        size = length(data)
        if size == 0:
            raise ValueError("SVI: expected a batch of at least one datum, got an empty tensor")
        baseline_input = data if len(data) > 1 else next(iter(data), None)
        whole = num_data is None or num_data == size
        if num_data is not None and size is not None and size > num_data:
            raise ValueError(
                f"SVI: expected a batch of at most num_data, {num_data}, got {size} data"
            )

        def local() -> bool:
            some = latents(1) if isinstance(latents, Draws) else latents
            return any(latent.batch for latent in some)

        def log_joint(values: Mapping[str, Tensor]) -> Joint:
            z = self.guide.arrange(values)
            seen = arguments_for(self.model, data, z)
            prior = self.guide.prior if self.vectorize else None
            joint = call(self.model, z, seen, prior)
            if not (self.vectorize or self._was_checked):
                check_follow_samples(z, joint, lambda: self._joint_of_first(z, seen))
                self._was_checked = True
            joint = self.guide.read(joint, z)
            if not whole and not local():
                self._check_scalable(joint, size)
            return joint

        bound = self.objective.bound(latents, log_joint, data=baseline_input, num_data=num_data)
        if bound.ndim > 0 and size and bound.shape[0] != size:
            raise ValueError(
                f"SVI: expected the log-joint to have one number for each of the {size} data, got "
                f"{bound.shape[0]}; terms of all the data have shape (K,)"
            )
        if bound.ndim == 0:
            return bound, num_data or size or 1
        total = bound.shape[0] if num_data is None else num_data
        # The scale N/B is outside the bound L.
        return bound.sum() * (1.0 if whole else total / bound.shape[0]), total

    @torch.no_grad()
    def _joint_of_first(self, z: Tensor | Mapping[str, Tensor], seen: tuple[Any, ...]) -> Joint:
        """Return the log-joint of the first sample, without a change of generators and modes."""
        first = z[:1] if isinstance(z, Tensor) else {name: v[:1] for name, v in z.items()}
        own = list(self.generators().values())
        state = random_state(own)
        try:
            with self._evaluating():
                return call(self.model, first, seen, None)
        finally:
            set_random_state(state, own)

    def _check_scalable(self, joint: Joint, size: int | None) -> None:
        terms = joint.values() if isinstance(joint, Mapping) else [joint]
        for term in terms:
            value = getattr(term, "value", term)
            if isinstance(value, Tensor) and value.ndim > 1:
                return
            if getattr(term, "observed", None) is not None:
                return
        raise ValueError(
            f"SVI: expected the model to return terms by name, those of the data with shape (K, B),"
            f" to scale {size} data up to {self.num_data} without the priors; got shape (K,) only"
        )
