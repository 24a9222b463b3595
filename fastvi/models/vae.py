"""A variational autoencoder over the user's two networks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from fastvi._loss_arguments import OfData
from fastvi.chunks.surroundings import uninitialised
from fastvi.losses._module import register_prior
from fastvi.models._encoders import Encoded, check_data, read_encoded
from fastvi.models._evidence import LogWeights
from fastvi.models._latent_widths import first_width, input_width, prior_width
from fastvi.models._random import seed_from, seed_of, seeded
from fastvi.models._saving import SavedModel
from fastvi.models.base import LatentVariableModel, Values
from fastvi.models.likelihoods.by_name import GivenLikelihood
from fastvi.models.priors import (
    GaussianPrior,
    Prior,
    diagonal,
    prior_module,
    prior_of,
)
from fastvi.objectives import Latent
from fastvi.ops import gaussian_log_prob, gaussian_rsample, new_key
from fastvi.ops._arguments import check_num_samples, check_prior

_LATENT = "z"


class VAE(LatentVariableModel):
    r"""Join an encoder and a decoder to a latent-variable model and its posterior.

    .. math::
        p(x, z) = p(x \mid f(z))\, p(z), \qquad
        q(z \mid x) = \mathcal{N}(\mu(x), \operatorname{diag} \sigma^2(x))

    The encoder sees x as it is. The decoder f sees z flattened to (rows, D), so convolutions and
    batch normalisation work in it, and returns what the likelihood takes: logits for the
    Bernoulli, the mean for the Gaussian, log-rates for the Poisson likelihood.

    With the Gaussian q above and a Gaussian prior, the losses draw and weigh samples in one op.
    Any other distribution in either place works as well, by the general way of
    :mod:`fastvi.objectives`: a full covariance, a mixture, a flow.

    Args:
        encoder: a module (or function) that maps x, shape (\*batch, \*event), to
            (loc, log_var), each of shape (\*batch, D); to the two joined in one tensor of shape
            (\*batch, 2 D); or to a ``torch.distributions.Distribution`` of batch shape \*batch and
            event shape (D,).
        decoder: a module (or function) that maps z, shape (rows, D), to (rows, \*event), or to
            what the likelihood takes for an event.
        likelihood: what the decoder's output means: ``"bernoulli"``; ``"gaussian"`` and
            ``"laplace"``, whose scales are 1 (mean squared and mean absolute error); ``"poisson"``,
            from log-rates; ``"negative_binomial"`` and ``"zero_inflated_negative_binomial"``, with
            a learned dispersion for each feature; ``"categorical"``; a :class:`fastvi.Likelihood`,
            such as ``GaussianLikelihood(0.1, learned=True)``; or a function from the decoder's
            output to a ``torch.distributions.Distribution``.
        prior: ``None`` for N(0, I), or (loc, log_var), each of shape (D,), of which parameters are
            learned with the model and other tensors are its buffers. Or a distribution of event
            shape (D,), which is not learned; or a module that returns one when it is called, such
            as a mixture or a flow, which is.
        latent_features: D. Only :meth:`sample` needs it, if neither the prior nor the first layer
            of the decoder tells it.
        fuse_linear: let a last ``nn.Linear`` of the decoder and the likelihood run as one op where
            the layer's outputs would be large, see :func:`fastvi.log_likelihood`.

    Example:
        >>> encoder, decoder = torch.nn.Linear(784, 2 * 8), torch.nn.Linear(8, 784)
        >>> vae = fastvi.VAE(encoder, decoder)
        >>> x = torch.rand(32, 784).round()
        >>> vae.loss(x, fastvi.IWLBLoss(num_samples=50)).backward()
        >>> vae.log_evidence(x, num_samples=1000).shape
        torch.Size([32])

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014), https://arxiv.org/abs/1312.6114
        | Importance Weighted Autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519
        | VAE with a VampPrior (Tomczak & Welling, 2018), https://arxiv.org/abs/1705.07120
    """

    prior_loc: Tensor | None
    prior_log_var: Tensor | None
    prior_module: nn.Module | None

    def __init__(
        self,
        encoder: Callable[[Tensor], Tensor | tuple[Tensor, Tensor] | Distribution],
        decoder: Callable[[Tensor], Tensor],
        *,
        likelihood: GivenLikelihood = "bernoulli",
        prior: Prior | None = None,
        latent_features: int | None = None,
        fuse_linear: bool = True,
    ) -> None:
        if not callable(encoder):
            raise TypeError(
                f"VAE: expected encoder to be a module or a function, got {type(encoder).__name__}"
            )
        if latent_features is not None:
            check_num_samples("VAE", latent_features, "latent_features")
        super().__init__()
        self.encoder = encoder
        self._keep_decoder(decoder, likelihood, fuse_linear)
        self._keep_prior(prior)
        width = prior_width(self._gaussian_prior)
        if None not in (latent_features, width) and latent_features != width:
            raise ValueError(
                f"VAE: expected prior to be of shape ({latent_features},), as latent_features "
                f"says, got ({width},)"
            )
        self.latent_features = latent_features or width

    def _keep_prior(self, prior: Any) -> None:
        self.prior_module = prior_module("VAE", prior)
        if self.prior_module is not None:
            prior = None
        for name, value in zip(("loc", "log_var"), check_prior("VAE", prior), strict=True):
            if value is not None and value.ndim > 1:
                raise ValueError(
                    f"VAE: expected prior {name} to be of shape (D,), one for all data, "
                    f"got {tuple(value.shape)}"
                )
        register_prior(self, "VAE", prior)

    @property
    def prior(self) -> GaussianPrior | nn.Module | None:
        """(loc, log_var) of p(z), None for N(0, I), or the module that makes p(z)."""
        return self._gaussian_prior if self.prior_module is None else self.prior_module

    @property
    def _gaussian_prior(self) -> GaussianPrior | None:
        if self.prior_loc is None or self.prior_log_var is None:
            return None
        return self.prior_loc, self.prior_log_var

    # ---- q and p -----------------------------------------------------------------------------
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Compute (loc, log_var) of q(z given x), each of shape (\*batch, D).

        Raises:
            TypeError: an encoder that returns a distribution, see :meth:`posterior`.
        """
        encoded = self._encoded(x)
        if isinstance(encoded, Distribution):
            raise TypeError(
                f"VAE: expected encoder(x) to be (loc, log_var), got {type(encoded).__name__}; "
                f"posterior(x) returns it"
            )
        return encoded

    def posterior(self, x: Tensor) -> Distribution:
        r"""Return q(z given x) as a distribution, batch shape \*batch, event shape (D,).

        Example:
            >>> vae = fastvi.VAE(torch.nn.Linear(5, 4), torch.nn.Linear(2, 5))
            >>> q = vae.posterior(torch.rand(8, 5))
            >>> q.rsample((16,)).shape, q.batch_shape
            (torch.Size([16, 8, 2]), torch.Size([8]))
        """
        encoded = self._encoded(x)
        return encoded if isinstance(encoded, Distribution) else diagonal(*encoded)

    def _encoded(self, x: Tensor) -> Encoded:
        check_data("VAE", x, self.likelihood.takes_integers)
        encoded = read_encoded("VAE", x, self.encoder(x))
        if self.latent_features is None:
            of = encoded.event_shape if isinstance(encoded, Distribution) else encoded[0].shape
            self.latent_features = of[-1]
        return encoded

    def latents(
        self,
        x: Tensor,
        num_samples: int,
        *,
        key: Tensor | None = None,
        sample_offset: int = 0,
        path: bool = True,
    ) -> list[Latent]:
        r"""Draw z from q(z given x), as one of :mod:`fastvi.objectives` takes it.

        Args:
            x: data, shape (\*batch, \*event).
            num_samples: K.
            key: from :func:`fastvi.ops.new_key`; ``None`` draws one.
            sample_offset: the number of the first sample.
            path: whether the derivative of log q by the samples alone may be wanted.

        Returns:
            One latent, ``"z"``.
        """
        check_num_samples("VAE.latents", num_samples)
        q = self._encoded(x)
        # torch's distributions draw by its own generator, which takes a seed from the key.
        with seeded(_seed(q, key, sample_offset), x.device):
            return [_drawn(q, num_samples, key, sample_offset, path)]

    def terms(self, values: Values, x: Tensor) -> dict[str, Any]:
        r"""Return the terms of log p(x, z), as one of :mod:`fastvi.objectives` takes them.

        Args:
            values: under ``"z"`` the samples, shape (K, \*batch, D).
            x: data, shape (\*batch, \*event).

        Returns:
            The prior of ``"z"`` as a distribution, and under ``"x"`` the log-likelihood in nats,
            shape (K, \*batch).
        """
        z = values[_LATENT]
        return {_LATENT: self._prior_of(z), "x": self.log_likelihood(x, z)}

    def _prior_of(self, z: Tensor) -> Distribution:
        if self.prior_module is not None:
            return prior_of("VAE", self.prior_module, z.shape[-1])
        zero = z.new_zeros(z.shape[-1])
        loc, log_var = self._gaussian_prior or (zero, zero)
        return diagonal(loc.expand(z.shape[-1:]), log_var.expand(z.shape[-1:]))

    def log_weights(
        self,
        x: Tensor,
        num_samples: int,
        *,
        key: Tensor | None = None,
        sample_offset: int = 0,
    ) -> Tensor:
        r"""Draw samples of z for each datum and compute their log-weights.

        .. math::
            \log w_k = \log p(x \mid z_k) + \log p(z_k) - \log q(z_k \mid x),
            \qquad z_k \sim q(z \mid x)

        Args:
            x: data, shape (\*batch, \*event).
            num_samples: K.
            key: from :func:`fastvi.ops.new_key`; ``None`` draws one.
            sample_offset: the number of the first sample, as in
                :func:`fastvi.ops.gaussian_rsample`.

        Returns:
            log w in nats, shape (K, \*batch), differentiable.
        """
        check_num_samples("VAE.log_weights", num_samples)
        return self._log_weights_of(x, self._encoded(x), num_samples, key, sample_offset)

    def _log_weights_of(
        self, x: Tensor, q: Encoded, num_samples: int, key: Tensor | None, sample_offset: int
    ) -> Tensor:
        if isinstance(q, Distribution) or self.prior_module is not None:
            with seeded(_seed(q, key, sample_offset), x.device):
                latent = _drawn(q, num_samples, key, sample_offset, True)
            z = latent.value
            log_p = self._prior_of(z).log_prob(z)
            return self.log_likelihood(x, z) + log_p - latent.log_q
        z, log_q, log_p = gaussian_rsample(
            q[0],
            log_var=q[1],
            num_samples=num_samples,
            key=key,
            sample_offset=sample_offset,
            prior=self._gaussian_prior,
        )
        return self.log_likelihood(x, z) + log_p - log_q

    def _samples_of(
        self, x: Tensor
    ) -> tuple[LogWeights, Callable[[], torch.Size], dict[str, object]]:
        q = self._encoded(x)
        log_weights = functools.partial(self._log_weights_of, x, q)
        if isinstance(q, Distribution):
            return log_weights, lambda: q.batch_shape, {}
        prior_loc, prior_log_var = self._gaussian_prior or (None, None)
        facts = {"prior loc": prior_loc, "prior log_var": prior_log_var}
        return log_weights, lambda: q[0].shape[:-1], {"loc": q[0], "log_var": q[1], **facts}

    def _gaussian_loss(self, x: Tensor, objective: Any, key: Tensor | None) -> Tensor | None:
        if self.prior_module is not None:
            return None
        q = self._encoded(x)
        if isinstance(q, Distribution):
            return None
        prior = {} if self._gaussian_prior is None else {"prior": self._gaussian_prior}
        log_px = OfData(x, lambda z: self.log_likelihood(x, z))
        return objective(*q, log_px, key=key, **prior)

    # ---- pictures ----------------------------------------------------------------------------
    def _decoder_input(self, values: Tensor | Values) -> Tensor:
        return values if isinstance(values, Tensor) else values[_LATENT]

    def _means(self, x: Tensor) -> Values:
        q = self._encoded(x)
        if not isinstance(q, Distribution):
            return {_LATENT: q[0]}
        try:
            return {_LATENT: q.mean}
        except NotImplementedError as error:
            raise ValueError(
                f"VAE.reconstruct: expected num_samples for a posterior without a mean, "
                f"{type(q).__name__}, got None"
            ) from error

    def _from_prior(self, num_samples: int, generator: torch.Generator | None) -> Tensor:
        if self.prior_module is not None:
            prior = prior_of("VAE.sample", self.prior_module, None)
            self._check_width(prior.event_shape[0])
            device = prior.sample().device if generator is None else generator.device
            with seeded(seed_from(generator), device):
                return prior.sample(torch.Size((num_samples,)))
        loc, log_var = self._prior_for_one()
        key = new_key(loc.device, generator)
        z, _, _ = gaussian_rsample(loc, log_var=log_var, num_samples=num_samples, key=key)
        return z

    def _check_width(self, features: int | None) -> None:
        own = self._decodes_in_its_own_way()
        expected = None if own else input_width(self.decoder)
        if None not in (features, expected) and features != expected:
            raise ValueError(
                f"VAE.sample: expected the decoder to take the {features} latent features of the "
                f"model, got one that takes {expected}"
            )

    def _prior_for_one(self) -> GaussianPrior:
        """(loc, log_var) of the prior, each of shape (D,)."""
        features = self.latent_features or first_width(self.decoder)
        self._check_width(features)
        if features is None:
            lazy = uninitialised(self.decoder)
            known_by = f"the decoder's {lazy} has not seen any input; " if lazy else ""
            raise ValueError(
                f"VAE.sample: expected latent_features to be known, got none: {known_by}give "
                f"VAE(..., latent_features=D) or encode a batch first"
            )
        if self._gaussian_prior is not None:
            loc, log_var = self._gaussian_prior
            return loc.expand(features), log_var.expand(features)
        first = next((p for p in self.parameters() if p.is_floating_point()), None)
        # A parameter of a lazy layer has a type and a device, and no shape yet.
        like = torch.zeros(()) if first is None else first
        zeros = torch.zeros(features, dtype=like.dtype, device=like.device)
        return zeros, zeros

    # ---- files and words ---------------------------------------------------------------------
    @classmethod
    def load(
        cls,
        path: str | Path,
        encoder: Callable[[Tensor], Any],
        decoder: Callable[[Tensor], Tensor],
        *,
        likelihood: GivenLikelihood | None = None,
        prior: Distribution | nn.Module | None = None,
    ) -> VAE:
        """Load a model that :meth:`save` has written, into networks of the same shapes.

        Args:
            path: of the file. It holds no code, and nothing in it is run.
            encoder: as the saved model's; its parameters are overwritten.
            decoder: as the saved model's; its parameters are overwritten.
            likelihood: as the saved model's. Only one that is not of fastvi's own has to be given.
            prior: as the saved model's. Only one that is no pair has to be given.

        Returns:
            The model, on the device and in the mode of the networks.

        Raises:
            FileNotFoundError: there is no such file.
            ImportError: safetensors is not installed.
            ValueError: a file of another kind, of another class, of other shapes or types, that is
                cut off or lies about its sizes, each in one line; a likelihood or a prior that has
                to be given.
        """
        saved = SavedModel(cls, path)
        pair = saved.setting("prior", dict, type(None), str)
        if isinstance(pair, str) and prior is None:
            raise ValueError(f"{saved.where}: expected prior=... for {path}, got none")
        if prior is not None and not isinstance(pair, str):
            raise ValueError(f"{saved.where}: expected no prior beside that of {path}, got one")
        vae = cls(
            encoder,
            decoder,
            likelihood=saved.likelihood() if likelihood is None else likelihood,  # type: ignore
            prior=_prior_like(saved, pair) if prior is None else prior,
            latent_features=saved.setting("latent_features", int, type(None)),
            fuse_linear=saved.setting("fuse_linear", bool),
        )
        saved.fill(vae)
        return vae

    def _settings(self) -> dict[str, Any]:
        prior: Any = None
        if self.prior_module is not None:
            prior = type(self.prior_module).__name__
        elif self._gaussian_prior is not None:
            prior = {
                name: [list(value.shape), isinstance(value, nn.Parameter)]
                for name, value in zip(("loc", "log_var"), self._gaussian_prior, strict=True)
            }
        own = {"latent_features": self.latent_features, "prior": prior}
        return {**super()._settings(), **own}

    def extra_repr(self) -> str:
        prior = "N(0, I)"
        if self._gaussian_prior is not None:
            learned = any(isinstance(v, nn.Parameter) for v in self._gaussian_prior)
            prior = f"N(loc, exp(log_var)), {'learned' if learned else 'fixed'}"
        if self.prior_module is not None:
            prior = type(self.prior_module).__name__
        return self._describe(latent_features=self.latent_features, prior=prior)


def _drawn(
    q: Encoded, num_samples: int, key: Tensor | None, sample_offset: int, path: bool
) -> Latent:
    if isinstance(q, Distribution):
        return Latent.draw(_LATENT, q, num_samples, parents=(), path=path)
    loc, log_var = q
    z, log_q, _ = gaussian_rsample(
        loc, log_var=log_var, num_samples=num_samples, key=key, sample_offset=sample_offset
    )

    def held() -> Tensor:
        return gaussian_log_prob(z, loc.detach(), log_var=log_var.detach())

    law = diagonal(loc, log_var)
    return Latent(_LATENT, z, log_q, reparameterised=True, parents=(), path=held, distribution=law)


def _seed(q: Encoded, key: Tensor | None, sample_offset: int) -> int | None:
    return seed_of(key, sample_offset) if isinstance(q, Distribution) else None


def _prior_like(saved: SavedModel, pair: dict[str, Any] | None) -> GaussianPrior | None:
    """A prior of the shapes that were saved, for their values to come."""
    if pair is None:
        return None
    try:
        parts = []
        for name in ("loc", "log_var"):
            (shape, learned) = pair[name]
            value = torch.zeros([int(size) for size in shape])
            parts.append(nn.Parameter(value) if learned else value)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise saved.refused("the setting prior of another kind") from error
    return parts[0], parts[1]
