"""A variational autoencoder with several stochastic layers, of one family each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvi.files._strangers import one_line
from fastvi.models import _layers
from fastvi.models._encoders import check_data
from fastvi.models._evidence import LogWeights
from fastvi.models._saving import SavedModel
from fastvi.models.hierarchical.drawn import join, run
from fastvi.models.hierarchical.laws import batch_of, family_of
from fastvi.models.hierarchical.layer import StochasticLayer
from fastvi.models.hierarchical.network import LayeredNetwork
from fastvi.models.hierarchical.order import DATA
from fastvi.models.hierarchical.posterior import LayeredPosterior
from fastvi.models.likelihoods.by_name import GivenLikelihood
from fastvi.ops import new_key


class HierarchicalVAE(LayeredNetwork):
    r"""Join stochastic layers and a decoder to a deep latent-variable model and its posterior.

    .. math::
        p(x, h) = p(x \mid h_1) \prod_l p(h_l \mid h_{l+1}), \qquad
        q(h \mid x) = q(h_1 \mid x) \prod_{l > 1} q(h_l \mid h_{l-1})

    Layers are listed in the order in which the guide draws them, nearest to the data first. Without
    ``guide_inputs`` and ``model_inputs`` they are a chain, as above. With them guide and model may
    have any order in which no layer depends on itself. Each layer has one of the families of
    :class:`StochasticLayer`, or any distribution; see :meth:`loss` for the objectives that take it.

    Args:
        layers: :class:`StochasticLayer`, one or more.
        decoder: a module (or function) that maps its inputs, shape (rows, inputs), to
            (rows, \*event), as in :class:`VAE`.
        likelihood: a name, a :class:`fastvi.Likelihood`, or a function from the decoder's output
            to a distribution, as in :class:`VAE`.
        decoder_inputs: names of the layers that the decoder sees; ``None`` for the first.
        fuse_linear: see :func:`fastvi.log_likelihood`.

    Raises:
        TypeError: no sequence of layers, or a decoder that cannot be called.
        ValueError: no layer, two of one name, inputs that do not exist or go in a circle.

    Example:
        >>> first = fastvi.StochasticLayer(
        ...     "bernoulli", 200, guide=torch.nn.Linear(784, 200), model=torch.nn.Linear(200, 200))
        >>> second = fastvi.StochasticLayer("bernoulli", 200, guide=torch.nn.Linear(200, 200))
        >>> network = fastvi.HierarchicalVAE([first, second], torch.nn.Linear(200, 784))
        >>> x = torch.rand(8, 784).round()
        >>> network.log_weights(x, num_samples=50).shape
        torch.Size([50, 8])

        The two Gaussian layers of the IWAE paper, narrower, and a Gaussian whose mean is a class's:

        >>> first = fastvi.StochasticLayer(
        ...     "gaussian", 20, guide=torch.nn.Linear(784, 40), model=torch.nn.Linear(10, 40))
        >>> second = fastvi.StochasticLayer("gaussian", 10, guide=torch.nn.Linear(20, 20))
        >>> network = fastvi.HierarchicalVAE([first, second], torch.nn.Linear(20, 784))
        >>> network.loss(x, fastvi.objectives.IWLB(50, "dreg")).backward()
        >>> kind = fastvi.StochasticLayer(
        ...     "categorical", 10, guide=torch.nn.Linear(784, 10), name="class")
        >>> style = fastvi.StochasticLayer(
        ...     "gaussian", 8, guide=torch.nn.Linear(784 + 10, 16), model=torch.nn.Linear(10, 16),
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

    def log_weights(
        self,
        x: Tensor,
        num_samples: int,
        *,
        key: Tensor | None = None,
        sample_offset: int | Tensor = 0,
    ) -> Tensor:
        r"""Draw num_samples of all layers for each example and compute their log-weights.

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
        # The sum starts from the first term: a start of zero would be one op more.
        total = terms.pop(DATA)
        for name, term in terms.items():
            total = total + term - drawn[name].log_q
        return total

    def posterior(self, x: Tensor) -> LayeredPosterior:
        r"""Return q(h given x) as a distribution over all layers, joined along the last dimension.

        Its batch shape is \*batch, and its event shape the sum of the layers' features;
        ``by_layer`` takes a sample apart.

        Example:
            >>> first = fastvi.StochasticLayer(
            ...     "gaussian", 3, guide=torch.nn.Linear(5, 6), model=torch.nn.Linear(2, 6))
            >>> second = fastvi.StochasticLayer("gaussian", 2, guide=torch.nn.Linear(3, 4))
            >>> network = fastvi.HierarchicalVAE([first, second], torch.nn.Linear(3, 5))
            >>> q = network.posterior(torch.rand(8, 5))
            >>> h = q.rsample((16,))
            >>> h.shape, q.log_prob(h).shape, q.by_layer(h)["h2"].shape
            (torch.Size([16, 8, 5]), torch.Size([16, 8]), torch.Size([16, 8, 2]))
        """
        check_data(type(self).__name__, x, self.likelihood.takes_integers)
        return LayeredPosterior(self, x, batch_of(self._first_parameters(x)))

    def _samples_of(
        self, x: Tensor
    ) -> tuple[LogWeights, Callable[[], torch.Size], dict[str, object]]:
        def log_weights(num_samples: int, key: Tensor, start: int) -> Tensor:
            return self.log_weights(x, num_samples, key=key, sample_offset=start)

        def batch() -> torch.Size:
            return batch_of(self._first_parameters(x))

        return log_weights, batch, {}

    # ---- pictures --------------------------------------------------------------------------------
    def _means(self, x: Tensor) -> dict[str, Tensor]:
        where = type(self).__name__
        check_data(where, x, self.likelihood.takes_integers)
        means: dict[str, Tensor] = {}
        for name, layer in self._layers():
            names = self.guide_inputs[name]
            if names == (DATA,):
                output, rows = _layers.run(layer.guide, x), None
            else:
                batch = next(iter(means.values())).shape[:-1]
                parts = [x.reshape(*batch, -1) if n == DATA else means[n] for n in names]
                inputs = join(parts)
                output, rows = run(layer.guide, inputs), inputs.shape[:-1]
            given = layer.parameters_of("guide", output, where=where, rows=rows)
            means[name] = family_of(layer.family, given).mean(given)
        return means

    def _from_prior(self, num_samples: int, generator: torch.Generator | None) -> Tensor:
        first = next((p for p in self.parameters() if p.is_floating_point()), torch.zeros(()))
        # A parameter of a lazy layer has a type and a device, and no shape yet.
        like = torch.zeros((), dtype=first.dtype, device=first.device)
        streams = dict(zip(self.names, self._streams(new_key(like.device, generator)), strict=True))
        values: dict[str, Tensor] = {}
        for name in self._downwards:
            layer = self._layer(name)
            given = self._model_parameters(name, layer, values, like)
            count = None if self.model_inputs[name] else num_samples
            family = family_of(layer.family, given)
            values[name], _ = family.draw(given, count, streams[name], 0)
        return self._decoder_input(values)

    # ---- files and words -------------------------------------------------------------------------
    @classmethod
    def load(
        cls,
        path: str | Path,
        layers: Sequence[StochasticLayer],
        decoder: Callable[[Tensor], Tensor],
        *,
        likelihood: GivenLikelihood | None = None,
    ) -> HierarchicalVAE:
        """Load a model that :meth:`save` has written, into layers and a decoder of the same shapes.

        Args:
            path: of the file. It holds no code, and nothing in it is run.
            layers: as the saved model's; their parameters are overwritten.
            decoder: as the saved model's; its parameters are overwritten.
            likelihood: as the saved model's. It is needed only if it is not one of fastvi's own.

        Returns:
            The model, on the device and in the mode of the networks.

        Raises:
            FileNotFoundError: there is no such file.
            ImportError: safetensors is not installed.
            ValueError: a file of another kind, of another class, of other layers, shapes or types,
                that is cut off or lies about its sizes, each in one line; a likelihood that has to
                be given.
        """
        saved = SavedModel(cls, path)
        inputs = saved.setting("decoder_inputs", list)
        network = cls(
            layers,
            decoder,
            likelihood=saved.likelihood() if likelihood is None else likelihood,  # type: ignore
            decoder_inputs=inputs,
            fuse_linear=saved.setting("fuse_linear", bool),
        )
        kept = saved.setting("layers", list)
        if kept != network._settings()["layers"]:
            raise saved.refused(f"one of the layers {one_line(kept)}")
        saved.fill(network)
        return network

    def _settings(self) -> dict[str, Any]:
        layers = [
            [
                name,
                layer.family,
                layer.features,
                list(self.guide_inputs[name]),
                list(self.model_inputs[name]),
            ]
            for name, layer in self._layers()
        ]
        own = {"layers": layers, "decoder_inputs": list(self.decoder_inputs)}
        return {**super()._settings(), **own}

    def extra_repr(self) -> str:
        return self._describe(latents=", ".join(self.names), decoder_inputs=self.decoder_inputs)
