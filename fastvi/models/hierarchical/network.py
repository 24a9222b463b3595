"""Stochastic layers and a decoder as one network, which draws h and evaluates log p(x, h)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from fastvi._checks import check_key, check_num_samples
from fastvi.models import _layers
from fastvi.models._encoders import check_data
from fastvi.models.base import LatentVariableModel
from fastvi.models.hierarchical.drawn import Drawn, join, of_samples, run
from fastvi.models.hierarchical.families import FAMILIES
from fastvi.models.hierarchical.laws import Given, batch_of, family_of
from fastvi.models.hierarchical.layer import StochasticLayer
from fastvi.models.hierarchical.order import (
    DATA,
    check_known,
    guide_inputs,
    model_inputs,
    name_layers,
    order_of,
)
from fastvi.models.likelihoods.by_name import GivenLikelihood
from fastvi.objectives import Latent, Term
from fastvi.ops import new_key

# The streams of the layers' noise differ by 2^32 over the golden ratio.
_STREAM_STEP = 0x9E3779B9


class LayeredNetwork(LatentVariableModel):
    """The layers of a :class:`fastvi.HierarchicalVAE`, in the guide's order and in the model's."""

    stream_steps: Tensor  # [layers, 2]

    def __init__(
        self,
        layers: Sequence[StochasticLayer],
        decoder: Callable[[Tensor], Tensor],
        *,
        likelihood: GivenLikelihood = "bernoulli",
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
        self.layers = nn.ModuleList(layers)
        self._keep_decoder(decoder, likelihood, fuse_linear)
        self.names = name_layers(where, layers)
        self.guide_inputs = guide_inputs(where, self.names, layers)
        self.model_inputs = model_inputs(where, self.names, layers)
        given = self.names[:1] if decoder_inputs is None else tuple(decoder_inputs)
        check_known(where, "decoder_inputs", given, self.names)
        self.decoder_inputs = given
        self._downwards = order_of(where, self.model_inputs)
        steps = torch.tensor([[0, number * _STREAM_STEP] for number in range(len(layers))])
        self.register_buffer("stream_steps", steps, persistent=False)

    @property
    def _draws_by_number(self) -> bool:
        families = [layer.family for _, layer in self._layers()]
        return all(name is not None and FAMILIES[name].by_number for name in families)

    # ---- guide and model -------------------------------------------------------------------------
    def draw(
        self,
        x: Tensor,
        num_samples: int,
        *,
        key: Tensor | None = None,
        sample_offset: int | Tensor = 0,
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
            For each layer ``value``, shape (K, \*batch, D), and ``log_q`` in nats, (K, \*batch).
        """
        where = type(self).__name__
        check_data(where, x, self.likelihood.takes_integers)
        check_num_samples(where, num_samples)
        if key is None:
            key = new_key(x.device)
        check_key(where, key)
        drawn: dict[str, Drawn] = {}
        values: dict[str, Tensor] = {}
        batch: torch.Size | None = None
        for stream, (name, layer) in zip(self._streams(key), self._layers(), strict=True):
            given, inputs = self._guide_parameters(name, layer, x, values, batch, num_samples)
            batch = batch_of(given) if batch is None else batch
            value, log_q, along = family_of(layer.family, given).draw_held(
                given, num_samples if inputs is None else None, stream, sample_offset
            )
            drawn[name] = Drawn(layer, value, log_q, given, inputs, along)
            values[name] = value
        return drawn

    def log_q(self, x: Tensor, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        r"""Evaluate the terms of log q(h given x): one for each layer.

        Args:
            x: data, shape (\*batch, \*event).
            values: the samples of each layer by its name, shape (K, \*batch, D).

        Returns:
            By name, log-densities in nats, shape (K, \*batch).
        """
        terms: dict[str, Tensor] = {}
        batch: torch.Size | None = None
        for name, layer in self._layers():
            value = values[name]
            given, _ = self._guide_parameters(name, layer, x, values, batch, len(value))
            batch = batch_of(given) if batch is None else batch
            terms[name] = family_of(layer.family, given).log_prob(value, given)
        return terms

    def _guide_parameters(
        self,
        name: str,
        layer: StochasticLayer,
        x: Tensor,
        values: Mapping[str, Tensor],
        batch: torch.Size | None,
        num_samples: int,
    ) -> tuple[Given, Tensor | None]:
        """Return the parameters of q, and the inputs of its network if they are samples."""
        where = type(self).__name__
        names = self.guide_inputs[name]
        if names == (DATA,):
            given = layer.parameters_of("guide", _layers.run(layer.guide, x), where=where)
            leading = batch_of(given)
            if (
                leading != (leading if batch is None else batch)
                or x.shape[: len(leading)] != leading
            ):
                raise ValueError(
                    f"{where}: expected the guide of layer {name!r} to keep the batch of x, "
                    f"shape {tuple(x.shape)}, got {_shown(given)}"
                )
            return given, None
        assert batch is not None
        parts = [of_samples(x, batch, num_samples) if n == DATA else values[n] for n in names]
        inputs = join(parts)
        output = run(layer.guide, inputs)
        return layer.parameters_of("guide", output, where=where, rows=inputs.shape[:-1]), inputs

    def _first_parameters(self, x: Tensor) -> Given:
        """Return the parameters of the first layer, whose guide takes the data alone."""
        name, layer = next(self._layers())
        return self._guide_parameters(name, layer, x, {}, None, 1)[0]

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
            terms[name] = family_of(layer.family, given).log_prob(values[name], given)
        terms[DATA] = self.log_likelihood(x, values)
        return terms

    def latents(
        self,
        x: Tensor,
        num_samples: int,
        *,
        key: Tensor | None = None,
        sample_offset: int | Tensor = 0,
        path: bool = True,
    ) -> list[Latent]:
        r"""Draw all layers from the guide, as an objective takes them.

        Args:
            x: data, shape (\*batch, \*event).
            num_samples: K.
            key: from :func:`fastvi.ops.new_key`; ``None`` draws one.
            sample_offset: the number of the first sample.
            path: has no effect here: the derivative of log q by the samples alone is always
                available.

        Returns:
            One latent for each layer, under its name.
        """
        latents = []
        drawn = self.draw(x, num_samples, key=key, sample_offset=sample_offset)
        for name, d in drawn.items():
            parents = tuple(given for given in self.guide_inputs[name] if given != DATA)
            latent = Latent(
                name,
                d.value,
                d.log_q,
                reparameterised=d.family.is_reparameterised(d.given),
                parents=parents,
                path=d.log_q_path,
                distribution=d.family.distribution(d.given),
            )
            latents.append(latent)
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
            law = family_of(layer.family, given).distribution(given)
            terms[name] = Term(law, depends_on=(name, *self.model_inputs[name]))
        terms[DATA] = Term(self.log_likelihood(x, values), depends_on=self.decoder_inputs)
        return terms

    # ---- what the parts share --------------------------------------------------------------------
    def _layers(self) -> Iterator[tuple[str, StochasticLayer]]:
        for name, layer in zip(self.names, self.layers, strict=True):
            assert isinstance(layer, StochasticLayer)
            yield name, layer

    def _layer(self, name: str) -> StochasticLayer:
        return dict(self._layers())[name]

    def _decoder_input(self, values: Tensor | Mapping[str, Tensor]) -> Tensor:
        if isinstance(values, Tensor):
            return values
        return join([values[name] for name in self.decoder_inputs])

    def _streams(self, key: Tensor) -> list[Tensor]:
        """Return a key for each layer: the first one's is the key itself."""
        return list((key + self.stream_steps).unbind())

    def _model_parameters(
        self, name: str, layer: StochasticLayer, values: Mapping[str, Tensor], like: Tensor
    ) -> Given:
        if layer.model is None:
            return layer.prior(like)
        where = type(self).__name__
        inputs = join([values[given] for given in self.model_inputs[name]])
        output = run(layer.model, inputs)
        return layer.parameters_of("model", output, where=where, rows=inputs.shape[:-1])


def _shown(given: Given) -> object:
    if isinstance(given, Distribution):
        return f"a distribution of batch shape {tuple(given.batch_shape)}"
    return tuple(given[0].shape)
