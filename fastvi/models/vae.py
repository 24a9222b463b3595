"""A variational autoencoder over the user's two networks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from fastvi._checks import check_callable, check_num_samples
from fastvi._loss_arguments import OfData
from fastvi.models._encoders import Encoded, check_data, read_encoded
from fastvi.models._evidence import LogWeights
from fastvi.models._layers import run
from fastvi.models._one_latent import LATENT, OneLatentModel, prior_like
from fastvi.models._random import seed_of, seeded
from fastvi.models._saving import SavedModel
from fastvi.models.base import Values
from fastvi.models.likelihoods.by_name import GivenLikelihood
from fastvi.models.priors import (
    Prior,
    diagonal,
)
from fastvi.objectives import Draws, Latent
from fastvi.ops import gaussian_log_prob, gaussian_rsample, new_key
from fastvi.ops._arguments import drawn_from


class VAE(OneLatentModel):
    r"""Join an encoder and a decoder to a latent-variable model and its posterior.

    .. math::
        p(x, z) = p(x \mid f(z))\, p(z), \qquad
        q(z \mid x) = \mathcal{N}(\mu(x), \operatorname{diag} \sigma^2(x))

    The encoder takes x itself. The decoder f takes z flattened to (rows, D), so convolutions and
    batch normalisation work in it, and returns what the likelihood takes: logits for the
    Bernoulli, the mean for the Gaussian, log-rates for the Poisson likelihood.

    With the Gaussian q above and a Gaussian prior, the losses draw and weigh samples in one op.
    Every other distribution can be q or the prior too: a full covariance, a mixture, a flow. Then
    the losses run as :mod:`fastvi.objectives`.

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
        fuse_linear: let a last ``nn.Linear`` of the decoder and the likelihood run as one op if
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
        check_callable("VAE", "encoder", encoder)
        if latent_features is not None:
            check_num_samples("VAE", latent_features, "latent_features")
        super().__init__()
        self.encoder = encoder
        self._keep_decoder(decoder, likelihood, fuse_linear)
        self._keep_prior(prior, latent_features)

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
        encoded = read_encoded("VAE", x, run(self.encoder, x))
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
        sample_offset: int | Tensor = 0,
        path: bool = True,
    ) -> list[Latent]:
        r"""Draw z from q(z given x), as one of :mod:`fastvi.objectives` takes it.

        Args:
            x: data, shape (\*batch, \*event).
            num_samples: K.
            key: from :func:`fastvi.ops.new_key`; ``None`` draws one.
            sample_offset: the number of the first sample; or the numbers of all samples, int64 of
                shape (K, \*batch), if the encoder returns loc and log_var.
            path: whether the derivative of log q by the samples alone may be needed.

        Returns:
            One latent, ``"z"``.
        """
        check_num_samples("VAE.latents", num_samples)
        q = self._encoded(x)
        # torch's distributions draw by its own generator, which takes a seed from the key.
        with seeded(_seed(q, key, sample_offset), x.device):
            return [_drawn(q, num_samples, key, sample_offset, path)]

    def draws(self, x: Tensor, *, key: Tensor | None = None, path: bool = True) -> Draws:
        """Return a function that draws any range of the samples; the encoder runs once for all."""
        key = new_key(x.device) if key is None else key
        q = self._encoded(x)

        def draw(num_samples: int, offset: int | Tensor) -> list[Latent]:
            with seeded(_seed(q, key, offset), x.device):
                return [_drawn(q, num_samples, key, offset, path)]

        return Draws(draw, key=key, by_number=not isinstance(q, Distribution))

    def terms(self, values: Values, x: Tensor) -> dict[str, Any]:
        r"""Return the terms of log p(x, z), as one of :mod:`fastvi.objectives` takes them.

        Args:
            values: under ``"z"`` the samples, shape (K, \*batch, D).
            x: data, shape (\*batch, \*event).

        Returns:
            The prior of ``"z"`` as a distribution, and under ``"x"`` the log-likelihood in nats,
            shape (K, \*batch).
        """
        z = values[LATENT]
        return {LATENT: self._prior_of(z), "x": self.log_likelihood(x, z)}

    def log_weights(
        self,
        x: Tensor,
        num_samples: int,
        *,
        key: Tensor | None = None,
        sample_offset: int = 0,
    ) -> Tensor:
        r"""Draw samples of z for each example and compute their log-weights.

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
        log_px = OfData(x, self.log_likelihood)
        return objective(*q, log_px, key=key, **prior)

    # ---- pictures ----------------------------------------------------------------------------
    def _means(self, x: Tensor) -> Values:
        q = self._encoded(x)
        if not isinstance(q, Distribution):
            return {LATENT: q[0]}
        try:
            return {LATENT: q.mean}
        except NotImplementedError as error:
            raise ValueError(
                f"VAE.reconstruct: expected num_samples for a posterior without a mean, "
                f"{type(q).__name__}, got None"
            ) from error

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
            likelihood: as the saved model's. It is needed only if it is not one of fastvi's own.
            prior: as the saved model's. It is needed only if it is no pair.

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
            prior=prior_like(saved, pair) if prior is None else prior,
            latent_features=saved.setting("latent_features", int, type(None)),
            fuse_linear=saved.setting("fuse_linear", bool),
        )
        saved.fill(vae)
        return vae

    def _settings(self) -> dict[str, Any]:
        own = {"latent_features": self.latent_features, "prior": self._prior_settings()}
        return {**super()._settings(), **own}

    def extra_repr(self) -> str:
        return self._describe(latent_features=self.latent_features, prior=self._prior_words())


def _drawn(
    q: Encoded, num_samples: int, key: Tensor | None, sample_offset: int | Tensor, path: bool
) -> Latent:
    if isinstance(q, Distribution):
        return Latent.draw(LATENT, q, num_samples, parents=(), path=path)
    loc, log_var = q
    z, log_q, _ = gaussian_rsample(
        loc, log_var=log_var, num_samples=num_samples, key=key,
        **drawn_from(sample_offset, torch.broadcast_shapes(loc.shape, log_var.shape)[:-1]),
    )  # fmt: skip

    def along_path() -> Tensor:
        return gaussian_log_prob(z, loc.detach(), log_var=log_var.detach())

    law = diagonal(loc, log_var)
    return Latent(
        LATENT, z, log_q, reparameterised=True, parents=(), path=along_path, distribution=law
    )


def _seed(q: Encoded, key: Tensor | None, sample_offset: int | Tensor) -> int | None:
    if not isinstance(q, Distribution):
        return None
    assert not isinstance(sample_offset, Tensor)
    return seed_of(key, sample_offset)
