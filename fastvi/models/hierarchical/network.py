"""Stochastic layers and a decoder as one network: what is drawn, and the terms of log p(x, h)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from fastvi.models.decoders import evaluate
from fastvi.models.hierarchical.drawn import Drawn, check_key, join, of_samples, run
from fastvi.models.hierarchical.families import FAMILIES, Parameters
from fastvi.models.hierarchical.layer import StochasticLayer
from fastvi.models.hierarchical.order import (
    DATA,
    check_known,
    guide_inputs,
    model_inputs,
    name_layers,
    order_of,
)
from fastvi.models.likelihoods import Likelihood, likelihood_of
from fastvi.objectives import Latent, Term
from fastvi.ops import new_key
from fastvi.ops._arguments import check_num_samples, check_tensor

# The streams of the layers' noise, apart by 2^32 over the golden ratio.
_STREAM_STEP = 0x9E3779B9


class LayeredNetwork(nn.Module):
    """The layers of a :class:`fastvi.HierarchicalVAE`, in the guide's order and in the model's."""

    stream_steps: Tensor  # [layers, 2]

    def __init__(
        self,
        layers: Sequence[StochasticLayer],
        decoder: Callable[[Tensor], Tensor],
        *,
        likelihood: str | Likelihood = "bernoulli",
        decoder_inputs: Sequence[str] | None = None,
        fuse_linear: bool = True,
    ) -> None:
        super().__init__()
        where = type(self).__name__
        layers = list(layers)
        for layer in layers:
            if not isinstance(layer, StochasticLayer):
                raise TypeError(
                    f"{where}: expected layers to be a sequence of StochasticLayer, "
                    f"got {type(layer).__name__} in it"
                )
        if not layers:
            raise ValueError(f"{where}: expected at least one layer, got none")
        if not callable(decoder):
            raise TypeError(
                f"{where}: expected decoder to be a module or a function, "
                f"got {type(decoder).__name__}"
            )
        self.layers = nn.ModuleList(layers)
        self.decoder = decoder
        self.likelihood = likelihood_of(where, likelihood)
        self.fuse_linear = fuse_linear
        self.names = name_layers(where, layers)
        self.guide_inputs = guide_inputs(where, self.names, layers)
        self.model_inputs = model_inputs(where, self.names, layers)
        given = self.names[:1] if decoder_inputs is None else tuple(decoder_inputs)
        check_known(where, "decoder_inputs", given, self.names)
        self.decoder_inputs = given
        self._downwards = order_of(where, self.model_inputs)
        steps = torch.tensor([[0, number * _STREAM_STEP] for number in range(len(layers))])
        self.register_buffer("stream_steps", steps, persistent=False)

    # ---- guide and model -------------------------------------------------------------------------
    def draw(
        self,
        x: Tensor,
        num_samples: int,
        *,
        key: Tensor | None = None,
        sample_offset: int = 0,
    ) -> dict[str, Drawn]:
        r"""Draw all layers from the guide.

        Args:
            x: data, shape (\*batch, \*event).
            num_samples: K.
            key: from :func:`fastvi.ops.new_key`; ``None`` draws one. The noise of each layer is a
                stream of it.
            sample_offset: the number of the first sample, as in
                :func:`fastvi.ops.gaussian_rsample`.

        Returns:
            By layer: ``value``, shape (K, \*batch, D), and ``log_q`` in nats, shape (K, \*batch).
        """
        where = type(self).__name__
        check_tensor(where, "x", x)
        if not x.is_floating_point():
            raise TypeError(f"{where}: expected x to be floating-point, got {x.dtype}")
        check_num_samples(where, num_samples)
        if key is None:
            key = new_key(x.device)
        check_key(where, key)
        drawn: dict[str, Drawn] = {}
        batch: torch.Size | None = None
        for stream, (name, layer) in zip(self._streams(key), self._layers(), strict=True):
            names = self.guide_inputs[name]
            inputs = None
            if names == (DATA,):
                given = layer.parameters_of(where, "guide", layer.guide(x))
                if batch is None:
                    batch = given[0].shape[:-1]
                if given[0].shape[:-1] != batch or x.shape[: len(batch)] != batch:
                    raise ValueError(
                        f"{where}: expected the guide of layer {name!r} to keep the batch of x, "
                        f"shape {tuple(x.shape)}, got {tuple(given[0].shape)}"
                    )
            else:
                assert batch is not None
                parts = [
                    of_samples(x, batch, num_samples) if n == DATA else drawn[n].value
                    for n in names
                ]
                inputs = join(parts)
                output = run(layer.guide, inputs)
                given = layer.parameters_of(where, "guide", output, inputs.shape[:-1])
            value, log_q = FAMILIES[layer.family].draw(
                given, num_samples if inputs is None else None, stream, sample_offset
            )
            drawn[name] = Drawn(layer, value, log_q, given, inputs)
        return drawn

    def log_joint(self, x: Tensor, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        r"""Evaluate the terms of log p(x, h): one for each layer, and ``"x"``.

        Args:
            x: data, shape (\*batch, \*event).
            values: the samples of each layer by its name, shape (K, \*batch, D).

        Returns:
            By name, log-densities in nats, shape (K, \*batch).
        """
        terms = {}
        for name, layer in self._layers():
            given = self._model_parameters(name, layer, values, like=values[name])
            terms[name] = FAMILIES[layer.family].log_prob(values[name], given)
        terms[DATA] = self._log_likelihood(values, x)
        return terms

    def latents(self, x: Tensor, num_samples: int, *, key: Tensor | None = None) -> list[Latent]:
        r"""Draw all layers from the guide, as an objective takes them.

        Args:
            x: data, shape (\*batch, \*event).
            num_samples: K.
            key: from :func:`fastvi.ops.new_key`; ``None`` draws one.

        Returns:
            One latent for each layer, under its name.
        """
        latents = []
        for name, d in self.draw(x, num_samples, key=key).items():
            parents = tuple(given for given in self.guide_inputs[name] if given != DATA)
            family = FAMILIES[d.layer.family]
            law = family.distribution(d.given)
            moves = family.reparameterised
            latents.append(Latent(name, d.value, d.log_q, moves, parents, d.log_q_path, law))
        return latents

    def terms(
        self, values: Mapping[str, Tensor], x: Tensor
    ) -> dict[str, Tensor | Distribution | Term]:
        r"""Return the terms of log p(x, h), as an objective takes them.

        Args:
            values: the samples of each layer by its name, shape (K, \*batch, D).
            x: data, shape (\*batch, \*event).

        Returns:
            The prior of each layer, given the layers that it depends on, as a distribution, and
            under ``"x"`` the log-likelihood in nats, shape (K, \*batch).
        """
        terms: dict[str, Tensor | Distribution | Term] = {}
        for name, layer in self._layers():
            given = self._model_parameters(name, layer, values, like=values[name])
            law = FAMILIES[layer.family].distribution(given)
            terms[name] = Term(law, depends_on=(name, *self.model_inputs[name]))
        terms[DATA] = Term(self._log_likelihood(values, x), depends_on=self.decoder_inputs)
        return terms

    # ---- what the parts share --------------------------------------------------------------------
    def _layers(self) -> Iterator[tuple[str, StochasticLayer]]:
        for name, layer in zip(self.names, self.layers, strict=True):
            assert isinstance(layer, StochasticLayer)
            yield name, layer

    def _layer(self, name: str) -> StochasticLayer:
        return dict(self._layers())[name]

    def _log_likelihood(self, values: Mapping[str, Tensor], x: Tensor) -> Tensor:
        inputs = join([values[name] for name in self.decoder_inputs])
        where = type(self).__name__
        return evaluate(where, self.decoder, self.likelihood, x, inputs, self.fuse_linear)

    def _streams(self, key: Tensor) -> list[Tensor]:
        """A key for each layer: the first one's is the key itself."""
        return list((key + self.stream_steps).unbind())

    def _model_parameters(
        self, name: str, layer: StochasticLayer, values: Mapping[str, Tensor], like: Tensor
    ) -> Parameters:
        if layer.model is None:
            return layer.prior(like)
        where = type(self).__name__
        inputs = join([values[given] for given in self.model_inputs[name]])
        output = run(layer.model, inputs)
        return layer.parameters_of(where, "model", output, inputs.shape[:-1])
