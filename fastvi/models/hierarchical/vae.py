"""A variational autoencoder with several stochastic layers, of one family each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastvi.chunks.totals import evidence
from fastvi.guides.guide import Guide
from fastvi.guides.of_network import NetworkGuide
from fastvi.models.decoders import decode
from fastvi.models.hierarchical.drawn import join, run
from fastvi.models.hierarchical.families import FAMILIES
from fastvi.models.hierarchical.network import LayeredNetwork
from fastvi.models.hierarchical.order import DATA
from fastvi.objectives import Objective
from fastvi.ops import new_key
from fastvi.ops._arguments import check_num_samples, check_tensor
from fastvi.ops._call import exporting

# A chunk of log_evidence holds about this many values of the decoder's output: 16 MB in float32.
_CHUNK_ELEMENTS = 2**22


class HierarchicalVAE(LayeredNetwork):
    r"""Join stochastic layers and a decoder to a deep latent-variable model and its posterior.

    .. math::
        p(x, h) = p(x \mid h_1) \prod_l p(h_l \mid h_{l+1}), \qquad
        q(h \mid x) = q(h_1 \mid x) \prod_{l > 1} q(h_l \mid h_{l-1})

    Layers are listed in the order in which the guide draws them, nearest to the data first. Without
    ``guide_inputs`` and ``model_inputs`` they are a chain, as above; with them any two orders in
    which nothing depends on itself. Each is Gaussian, Bernoulli or categorical: what can be
    trained how is the objective's business, see :meth:`loss`.

    Args:
        layers: :class:`StochasticLayer`, one or more.
        decoder: a module (or function) that maps its inputs, shape (rows, inputs), to
            (rows, \*event), as in :class:`VAE`.
        likelihood: ``"bernoulli"``, ``"gaussian"`` or a likelihood module, as in :class:`VAE`.
        decoder_inputs: names of the layers that the decoder sees; ``None`` for the first.
        fuse_linear: see :func:`fastvi.log_likelihood`.

    Raises:
        TypeError: no sequence of layers, or a decoder that cannot be called.
        ValueError: no layer, two of one name, inputs that do not exist or go in a circle.

    Example:
        >>> first = fastvi.StochasticLayer("bernoulli", 200, torch.nn.Linear(784, 200),
        ...                                torch.nn.Linear(200, 200))
        >>> second = fastvi.StochasticLayer("bernoulli", 200, torch.nn.Linear(200, 200))
        >>> network = fastvi.HierarchicalVAE([first, second], torch.nn.Linear(200, 784))
        >>> x = torch.rand(8, 784).round()
        >>> network.log_weights(x, num_samples=50).shape
        torch.Size([50, 8])

        The two Gaussian layers of the IWAE paper, narrower, and a Gaussian whose mean is a class's:

        >>> first = fastvi.StochasticLayer("gaussian", 20, torch.nn.Linear(784, 40),
        ...                                torch.nn.Linear(10, 40))
        >>> second = fastvi.StochasticLayer("gaussian", 10, torch.nn.Linear(20, 20))
        >>> network = fastvi.HierarchicalVAE([first, second], torch.nn.Linear(20, 784))
        >>> network.loss(x, fastvi.objectives.IWLB(50, "dreg")).backward()
        >>> kind = fastvi.StochasticLayer("categorical", 10, torch.nn.Linear(784, 10), name="class")
        >>> style = fastvi.StochasticLayer(
        ...     "gaussian", 8, torch.nn.Linear(784 + 10, 16), torch.nn.Linear(10, 16),
        ...     guide_inputs=("x", "class"), model_inputs=("class",))
        >>> network = fastvi.HierarchicalVAE([kind, style], torch.nn.Linear(8, 784),
        ...                                  decoder_inputs=("h2",))
        >>> network.loss(x, fastvi.objectives.VIMCO(50)).backward()

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519
        | Variational Inference for Monte Carlo Objectives (Mnih & Rezende, 2016),
        | https://arxiv.org/abs/1602.06725
        | Generalized Doubly Reparameterized Gradient Estimators (Bauer & Mnih, 2021),
        | https://arxiv.org/abs/2101.11046
    """

    def as_model_and_guide(self) -> tuple[Callable[..., Any], Guide]:
        """Return what :class:`fastvi.SVI` takes, for its loop and its checkpoints.

        Returns:
            The model, :meth:`terms`, and a guide that draws :meth:`latents`.

        Example:
            >>> layer = fastvi.StochasticLayer("bernoulli", 20, torch.nn.Linear(6, 20))
            >>> network = fastvi.HierarchicalVAE([layer], torch.nn.Linear(20, 6))
            >>> model, guide = network.as_model_and_guide()
            >>> optimizer = torch.optim.Adam(network.parameters())
            >>> svi = fastvi.SVI(model, guide, optimizer, fastvi.objectives.VIMCO(16))
            >>> len(svi.fit(torch.rand(30, 6).round(), epochs=2, batch_size=10))
            2
        """
        return self.terms, NetworkGuide(self)

    def log_weights(
        self,
        x: Tensor,
        num_samples: int,
        *,
        key: Tensor | None = None,
        sample_offset: int = 0,
    ) -> Tensor:
        r"""Draw num_samples of all layers for each datum and compute their log-weights.

        .. math::
            \log w_k = \log p(x, h_k) - \sum_l \log q(h_{l,k} \mid \cdot)

        Args:
            x: data, shape (\*batch, \*event).
            num_samples: K.
            key: from :func:`fastvi.ops.new_key`; ``None`` draws one.
            sample_offset: the number of the first sample, as in
                :func:`fastvi.ops.gaussian_rsample`.

        Returns:
            log w in nats, shape (K, \*batch). Its derivative is the pathwise one: it has no score
            of Bernoulli or categorical layers, see :meth:`loss`.
        """
        drawn = self.draw(x, num_samples, key=key, sample_offset=sample_offset)
        terms = self.log_joint(x, {name: d.value for name, d in drawn.items()})
        # Added to what is there: a sum with a start of zero is an op more.
        total = terms.pop(DATA)
        for name, term in terms.items():
            total = total + term - drawn[name].log_q
        return total

    @torch.no_grad()
    def log_evidence(
        self,
        x: Tensor,
        num_samples: int,
        chunk_size: int | None = None,
        *,
        key: Tensor | None = None,
    ) -> Tensor:
        r"""Estimate log p(x) by the bound L_K, in memory that does not grow with K.

        Samples get the same noise in whichever chunk they fall, as in :meth:`VAE.log_evidence`.

        Args:
            x: data, shape (\*batch, \*event).
            num_samples: K.
            chunk_size: samples per chunk; the default bounds the decoder's output to about 16 MB.
            key: from :func:`fastvi.ops.new_key`; ``None`` draws one.

        Returns:
            L_K in nats, shape (\*batch,), without a gradient.

        Raises:
            ValueError: ``num_samples`` or ``chunk_size`` below 1.

        Example:
            >>> layer = fastvi.StochasticLayer("categorical", 10, torch.nn.Linear(3, 10))
            >>> vae = fastvi.HierarchicalVAE([layer], torch.nn.Linear(10, 3))
            >>> vae.log_evidence(torch.ones(5, 3), 1000, chunk_size=64).shape
            torch.Size([5])
        """
        where = f"{type(self).__name__}.log_evidence"
        check_num_samples(where, num_samples)
        check_tensor(where, "x", x)
        if chunk_size is None and not exporting():
            chunk_size = max(1, _CHUNK_ELEMENTS // max(1, x.numel()))
        if chunk_size is not None:
            check_num_samples(where, chunk_size, "chunk_size")

        def log_weights(size: int, key: Tensor, start: int) -> Tensor:
            return self.log_weights(x, size, key=key, sample_offset=start)

        return evidence(
            log_weights, num_samples, chunk_size, new_key(x.device) if key is None else key
        )

    # ---- training -------------------------------------------------------------------------------
    def loss(self, x: Tensor, objective: Objective, key: Tensor | None = None) -> Tensor:
        r"""Measure the negative bound of a batch, ready for ``backward()``.

        Which objective serves which layers:

        - Gaussian layers alone: :class:`fastvi.objectives.IWLB` and
          :class:`fastvi.objectives.ELBO`, with every estimator. ``"dreg"`` and ``"stl"`` are the
          generalised ones: a layer's own score is taken out, not the derivative of the later
          layers' densities by its samples.
        - Bernoulli and categorical layers, alone or beside Gaussian ones:
          :class:`fastvi.objectives.VIMCO`, or :class:`fastvi.objectives.Reinforce`, where the
          signal of a layer holds only the terms that depend on it. Gaussian layers get the total
          derivative through their samples.

        ``ELBO`` and ``Reinforce`` take the divergence of a layer from its prior in closed form,
        given the samples of the layers that both depend on, unless ``kl="sampled"``. There is none
        where the prior depends on a layer that the guide draws given this one: that of the first
        layer of a chain, so ``kl="analytic"`` needs a guide in the model's order.

        Args:
            x: data, shape (\*batch, \*event).
            objective: one of :mod:`fastvi.objectives`.
            key: from :func:`fastvi.ops.new_key`; ``None`` draws one.

        Returns:
            The loss in nats: a scalar, the mean over the batch.

        Raises:
            TypeError: an objective of another kind.
            ValueError: a Bernoulli or categorical layer under an objective of Gaussian ones.

        Example:
            >>> layer = fastvi.StochasticLayer("bernoulli", 20, torch.nn.Linear(784, 20))
            >>> network = fastvi.HierarchicalVAE([layer], torch.nn.Linear(20, 784))
            >>> network.loss(torch.ones(8, 784), fastvi.objectives.VIMCO(16)).backward()
        """
        return -self.bound(x, objective, key).mean()

    def bound(self, x: Tensor, objective: Objective, key: Tensor | None = None) -> Tensor:
        r"""Measure the bound of each datum, whose gradient is the objective's estimator.

        Args:
            x: data, shape (\*batch, \*event).
            objective: see :meth:`loss`.
            key: from :func:`fastvi.ops.new_key`; ``None`` draws one.

        Returns:
            The bound in nats, shape (\*batch,).
        """
        if not isinstance(objective, Objective):
            raise TypeError(
                f"{type(self).__name__}: expected objective to be one of fastvi.objectives, "
                f"as VIMCO or IWLB, got {type(objective).__name__}"
            )
        latents = self.latents(x, objective.num_samples, key=key)
        return objective.bound(latents, lambda values: self.terms(values, x), data=x)

    def forward(self, x: Tensor, objective: Objective, key: Tensor | None = None) -> Tensor:
        """Measure :meth:`loss`, so that wrappers of modules, such as data-parallel ones, work."""
        return self.loss(x, objective, key)

    # ---- pictures --------------------------------------------------------------------------------
    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Compute the mean of p(x given h) at the means of the guide, in the shape of x."""
        where = type(self).__name__
        check_tensor(where, "x", x)
        means: dict[str, Tensor] = {}
        for name, layer in self._layers():
            names = self.guide_inputs[name]
            if names == (DATA,):
                output = layer.guide(x)
            else:
                batch = next(iter(means.values())).shape[:-1]
                parts = [x.reshape(*batch, -1) if n == DATA else means[n] for n in names]
                output = run(layer.guide, join(parts))
            given = layer.parameters_of(where, "guide", output)
            means[name] = FAMILIES[layer.family].mean(given)
        inputs = join([means[name] for name in self.decoder_inputs])
        return self.likelihood.mean(decode(where, self.decoder, inputs))

    @torch.no_grad()
    def sample(
        self, num_samples: int, *, mean: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        r"""Draw the layers from the model, and x from p(x given h).

        Args:
            num_samples: how many.
            mean: return the mean of p(x given h) instead of a draw, which is what pictures show.
            generator: on the model's device; the default is torch's own.

        Returns:
            x, shape (num_samples, \*event).
        """
        where = type(self).__name__
        check_num_samples(f"{where}.sample", num_samples)
        first = next((p for p in self.parameters() if p.is_floating_point()), torch.zeros(()))
        # A parameter of a lazy layer has a type and a device, and no shape yet.
        like = torch.zeros((), dtype=first.dtype, device=first.device)
        streams = dict(zip(self.names, self._streams(new_key(like.device, generator)), strict=True))
        values: dict[str, Tensor] = {}
        for name in self._downwards:
            layer = self._layer(name)
            given = self._model_parameters(name, layer, values, like)
            count = None if self.model_inputs[name] else num_samples
            values[name], _ = FAMILIES[layer.family].draw(given, count, streams[name], 0)
        inputs = join([values[name] for name in self.decoder_inputs])
        output = decode(where, self.decoder, inputs)
        return self.likelihood.mean(output) if mean else self.likelihood.draw(output, generator)
