"""The base of all models with latents: training, evaluation, pictures and files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from fastvi._checks import check_callable, check_num_samples, check_tensor
from fastvi._loss_arguments import loss_of
from fastvi.chunks.sample_group import SampleGroup
from fastvi.guides.guide import Guide
from fastvi.guides.of_network import NetworkGuide
from fastvi.models._evidence import LogWeights, check_evidence, evidence
from fastvi.models._objectives import (
    check_objective,
    each_datum,
    is_drop_in,
    objective_of,
    reduction_of,
)
from fastvi.models._saving import Savable
from fastvi.models.decoders import decode, evaluate
from fastvi.models.likelihoods.by_name import GivenLikelihood, likelihood_of
from fastvi.objectives import Draws, Latent, Objective
from fastvi.ops import new_key

Values = Mapping[str, Tensor]


class LatentVariableModel(Savable):
    r"""Join a decoder and its likelihood to latents: the base of :class:`VAE`, and of
    :class:`HierarchicalVAE`.

    .. math::
        p(x, z) = p(x \mid f(z))\, p(z), \qquad q(z \mid x)

    A model defines :meth:`latents`, which draws from q, and :meth:`terms`, which evaluates
    :math:`\log p(x, z)`. The methods of this class need only these two: every loss and every
    objective trains every model by :meth:`loss`, and all models estimate their evidence in one way.
    """

    def _keep_decoder(
        self, decoder: Callable[[Tensor], Tensor], likelihood: GivenLikelihood, fuse_linear: bool
    ) -> None:
        where = type(self).__name__
        check_callable(where, "decoder", decoder)
        self.decoder = decoder
        self.likelihood = likelihood_of(where, likelihood, decoder)
        self.fuse_linear = fuse_linear

    # ---- methods of a subclass ---------------------------------------------------------------
    def latents(
        self,
        x: Tensor,
        num_samples: int,
        *,
        key: Tensor | None = None,
        sample_offset: int | Tensor = 0,
        path: bool = True,
    ) -> list[Latent]:
        r"""Draw samples from q given x, as the objectives take them.

        Args:
            x: data, shape (\*batch, \*event).
            num_samples: K.
            key: from :func:`fastvi.ops.new_key`; ``None`` draws one.
            sample_offset: the number of the first sample, as in
                :func:`fastvi.ops.gaussian_rsample`; or the numbers of all samples, int64 of shape
                (K, \*batch), if q is drawn from keys.
            path: whether the derivative of log q by the samples alone may be needed, as for
                ``"dreg"`` and ``"stl"``.

        Returns:
            The latents, in the order in which q draws them.
        """
        raise NotImplementedError

    def draws(self, x: Tensor, *, key: Tensor | None = None, path: bool = True) -> Draws:
        r"""Return a function that draws any range of the samples of :meth:`latents` from one key.

        Args:
            x: data, shape (\*batch, \*event).
            key: from :func:`fastvi.ops.new_key`; ``None`` draws one.
            path: see :meth:`latents`.
        """
        key = new_key(x.device) if key is None else key
        return Draws(
            lambda num_samples, offset: self.latents(
                x, num_samples, key=key, sample_offset=offset, path=path
            ),
            key=key,
            by_number=self._draws_by_number,
        )

    @property
    def _draws_by_number(self) -> bool:
        """Whether samples of any numbers can be drawn, and not ranges of them alone."""
        return False

    def terms(self, values: Values, x: Tensor) -> dict[str, Any]:
        r"""Return the terms of log p(x, z) at samples of each latent, (K, \*batch, D), by name.

        They are the prior of each latent, and under ``"x"`` the log-likelihood, (K, \*batch).
        """
        raise NotImplementedError

    def log_likelihood(self, x: Tensor, values: Tensor | Values) -> Tensor:
        r"""Evaluate log p(x given z) in nats, shape (K, \*batch).

        Args:
            x: data, shape (\*batch, \*event).
            values: the decoder's input, shape (K, \*batch, D), or the samples of each latent by
                its name.
        """
        where = type(self).__name__
        z = self._decoder_input(values)
        check_tensor(where, "values", z)
        decoder = self.decode if self._decodes_in_its_own_way() else self.decoder
        return evaluate(where, decoder, self.likelihood, x, z, self.fuse_linear)

    def log_weights(
        self,
        x: Tensor,
        num_samples: int,
        *,
        key: Tensor | None = None,
        sample_offset: int = 0,
    ) -> Tensor:
        r"""Draw samples of all latents and compute log p(x, z) - log q(z given x), (K, \*batch)."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        r"""Run the decoder on z, shape (\*rows, D); the result has shape (\*rows, \*output)."""
        check_tensor(type(self).__name__, "z", z)
        return decode(type(self).__name__, self.decoder, z)

    def as_model_and_guide(self) -> tuple[Callable[..., Any], Guide]:
        """Return what :class:`fastvi.SVI` takes, for its loop and its checkpoints.

        Returns:
            The model, :meth:`terms`, and a guide that draws :meth:`latents`.

        Example:
            >>> vae = fastvi.VAE(torch.nn.Linear(6, 4), torch.nn.Linear(2, 6))
            >>> model, guide = vae.as_model_and_guide()
            >>> optimizer = torch.optim.Adam(vae.parameters())
            >>> svi = fastvi.SVI(model, guide, optimizer, fastvi.objectives.IWLB(16))
            >>> len(svi.fit(torch.rand(30, 6).round(), epochs=2, batch_size=10))
            2
        """
        return self.terms, NetworkGuide(self)

    # ---- training ----------------------------------------------------------------------------
    def loss(self, x: Tensor, objective: Any, *, key: Tensor | None = None) -> Tensor:
        r"""Measure the negative bound of a batch, ready for ``backward()``.

        Every loss, such as :class:`fastvi.IWLBLoss`, and every one of :mod:`fastvi.objectives`
        takes every model whose latents it can differentiate:

        - Latents that are reparameterised, such as Gaussian ones: all of them, with every
          estimator. With several layers ``"dreg"`` and ``"stl"`` are the generalised ones: they
          leave out a layer's own score, but not the derivative of the later layers' densities by
          its samples.
        - Bernoulli and categorical latents, alone or beside Gaussian ones:
          :class:`fastvi.objectives.VIMCO`, or :class:`fastvi.objectives.Reinforce`, in which the
          signal of a layer holds only the terms that depend on it. Gaussian layers get the total
          derivative through their samples.

        ``ELBO`` and ``Reinforce`` take the divergence of a latent from its prior in closed form,
        given the samples of the layers that both depend on. There is no closed form if the prior
        depends on a layer that the guide draws given this one, as the prior of the first layer of a
        chain does, or for a prior such as a mixture. Then ``kl="auto"`` takes the mean over the
        samples.

        Args:
            x: data, shape (\*batch, \*event).
            objective: a loss, such as :class:`fastvi.IWLBLoss`, or one of
                :mod:`fastvi.objectives`. The prior is the model's, not the objective's.
            key: from :func:`fastvi.ops.new_key`; ``None`` draws one.

        Returns:
            The loss in nats: the mean over the batch, or by the ``reduction`` of the loss.

        Raises:
            TypeError: an objective of another kind.
            ValueError: the objective has a prior of its own, or cannot differentiate a latent.

        Example:
            >>> vae = fastvi.VAE(torch.nn.Linear(784, 16), torch.nn.Linear(8, 784))
            >>> vae.loss(torch.ones(4, 784), fastvi.ELBOLoss()).shape
            torch.Size([])
            >>> layer = fastvi.StochasticLayer("bernoulli", 20, guide=torch.nn.Linear(784, 20))
            >>> network = fastvi.HierarchicalVAE([layer], torch.nn.Linear(20, 784))
            >>> network.loss(torch.ones(8, 784), fastvi.objectives.VIMCO(16)).backward()
        """
        where = f"{type(self).__name__}.loss"
        check_objective(where, objective)
        if not isinstance(objective, Objective):
            direct = self._gaussian_loss(x, objective, key)
            if direct is not None:
                return direct
        return loss_of(self._bound(where, x, objective, key), reduction_of(objective))

    def bound(self, x: Tensor, objective: Any, *, key: Tensor | None = None) -> Tensor:
        r"""Measure the bound of each example, whose gradient is the objective's estimator.

        Args:
            x: data, shape (\*batch, \*event).
            objective: see :meth:`loss`. The ``reduction`` of a loss does not count here.
            key: from :func:`fastvi.ops.new_key`; ``None`` draws one.

        Returns:
            The bound in nats, shape (\*batch,).
        """
        where = f"{type(self).__name__}.bound"
        check_objective(where, objective)
        if is_drop_in(objective):
            direct = self._gaussian_loss(x, each_datum(objective), key)
            if direct is not None:
                return -direct
        return self._bound(where, x, objective, key)

    def forward(self, x: Tensor, objective: Any, *, key: Tensor | None = None) -> Tensor:
        """Measure :meth:`loss`; wrappers of modules, such as data-parallel ones, call this."""
        return self.loss(x, objective, key=key)

    def _gaussian_loss(self, x: Tensor, objective: Any, key: Tensor | None) -> Tensor | None:
        """Return the loss by the fused sampler; None if q or p(z) is no diagonal Gaussian."""
        return None

    def _bound(self, where: str, x: Tensor, objective: Any, key: Tensor | None) -> Tensor:
        over_latents = objective_of(where, objective)
        group = getattr(objective, "group", None)
        if group is not None and key is None and not isinstance(group, SampleGroup):
            # Without a key a loss takes the first rank's.
            key = SampleGroup(where, group).common_key(new_key(x.device))
        path = bool(getattr(over_latents, "needs_path", True))
        samples: list[Latent] | Draws
        if over_latents.at_once:
            samples = self.latents(x, over_latents.num_samples, key=key, path=path)
        else:
            samples = self.draws(x, key=key, path=path)
        return over_latents.bound(samples, lambda values: self.terms(values, x), data=x)

    # ---- evaluation --------------------------------------------------------------------------
    @torch.no_grad()
    def log_evidence(
        self,
        x: Tensor,
        num_samples: int,
        *,
        chunk_size: int | Literal["auto"] | None = None,
        memory_budget: int | None = None,
        group: Any = None,
        key: Tensor | None = None,
    ) -> Tensor:
        r"""Estimate log p(x) by the bound L_K, in memory that does not grow with K.

        .. math::
            L_K = \log \frac{1}{K} \sum_{k=1}^{K} w_k \le \log p(x)
            \quad \text{in expectation}

        The samples are drawn ``chunk_size`` at a time and added to a running log-sum-exp. Sample k
        has the same noise in every chunk, so the result does not depend on ``chunk_size`` beyond
        rounding. If the encoder returns a distribution, the noise is torch's, and depends on the
        chunk. Call ``eval()`` first if the networks have dropout or batch normalisation.

        Args:
            x: data, shape (\*batch, \*event).
            num_samples: K.
            chunk_size: samples per chunk; the default bounds the decoder's output to about 16 MB,
                ``"auto"`` takes what ``memory_budget`` allows; see :func:`fastvi.iwlb_loss`.
            memory_budget: bytes for ``chunk_size="auto"``.
            group: a ``torch.distributed`` process group whose ranks share the K samples; every
                rank gets the bound of all.
            key: from :func:`fastvi.ops.new_key`; ``None`` draws one.

        Returns:
            L_K in nats, shape (\*batch,), without a gradient.

        Raises:
            ValueError: ``num_samples`` or ``chunk_size`` below 1, a ``chunk_size`` above
                ``num_samples``, ranks that disagree.

        Example:
            >>> vae = fastvi.VAE(torch.nn.Linear(3, 4), torch.nn.Linear(2, 3))
            >>> key = fastvi.ops.new_key()
            >>> whole = vae.log_evidence(torch.ones(5, 3), 1000, key=key)
            >>> parts = vae.log_evidence(torch.ones(5, 3), 1000, chunk_size=64, key=key)
            >>> torch.testing.assert_close(whole, parts)
        """
        where = f"{type(self).__name__}.log_evidence"
        check_evidence(where, num_samples, chunk_size, memory_budget)
        check_tensor(where, "x", x)
        log_weights, batch, facts = self._samples_of(x)
        return evidence(
            where,
            log_weights,
            x,
            num_samples,
            chunk_size=chunk_size,
            memory_budget=memory_budget,
            group=group,
            key=key,
            batch=batch,
            facts=facts,
        )

    def _samples_of(
        self, x: Tensor
    ) -> tuple[LogWeights, Callable[[], torch.Size], dict[str, object]]:
        """Return a function that draws log-weights, the shape of the batch, and facts of q.

        The facts must be equal on all ranks that share the samples, as x and the key must.
        """
        raise NotImplementedError

    # ---- pictures ----------------------------------------------------------------------------
    @torch.no_grad()
    def reconstruct(
        self, x: Tensor, *, num_samples: int | None = None, key: Tensor | None = None
    ) -> Tensor:
        r"""Compute the mean of p(x given z) for the latents of x, in the shape of x.

        Args:
            x: data, shape (\*batch, \*event).
            num_samples: the number of samples of q in the mean. ``None`` takes the mean of q
                instead, as is usual for pictures.
            key: from :func:`fastvi.ops.new_key`, for the samples; ``None`` draws one.
        """
        if num_samples is None:
            return self.likelihood.mean(self.decode(self._decoder_input(self._means(x))))
        check_num_samples(f"{type(self).__name__}.reconstruct", num_samples)
        latents = self.latents(x, num_samples, key=key, path=False)
        values = {latent.name: latent.value for latent in latents}
        return self.likelihood.mean(self.decode(self._decoder_input(values))).mean(0)

    @torch.no_grad()
    def sample(
        self, num_samples: int, *, mean: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        r"""Draw the latents from the prior, and x from p(x given z).

        Args:
            num_samples: how many.
            mean: return the mean of p(x given z) instead of a draw, which is what pictures show.
            generator: on the model's device; the default is torch's own.

        Returns:
            x, shape (num_samples, \*event).

        Raises:
            ValueError: the number of latent features is not known, or is not what the decoder
                takes.

        Example:
            >>> vae = fastvi.VAE(torch.nn.Linear(784, 16), torch.nn.Linear(8, 784))
            >>> vae.sample(4).shape
            torch.Size([4, 784])
        """
        check_num_samples(f"{type(self).__name__}.sample", num_samples)
        output = self.decode(self._from_prior(num_samples, generator))
        return self.likelihood.mean(output) if mean else self.likelihood.draw(output, generator)

    def _decoder_input(self, values: Tensor | Values) -> Tensor:
        """Return the decoder's input, made of the latents."""
        raise NotImplementedError

    def _means(self, x: Tensor) -> Values:
        """Return the mean of q for each latent, given the means of those before it."""
        raise NotImplementedError

    def _from_prior(self, num_samples: int, generator: torch.Generator | None) -> Tensor:
        """Draw the decoder's input from the prior, shape (num_samples, D)."""
        raise NotImplementedError

    def _decodes_in_its_own_way(self) -> bool:
        # A subclass may define decode.
        return getattr(self.decode, "__func__", None) is not LatentVariableModel.decode
