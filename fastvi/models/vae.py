"""A variational autoencoder over the user's two networks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Independent

from fastvi._loss_arguments import OfData, check_chunks
from fastvi.bounds.estimators import IWLB_ESTIMATORS
from fastvi.chunks import SampleGroup, Stream
from fastvi.chunks.surroundings import uninitialised
from fastvi.chunks.totals import evidence
from fastvi.distributions import Normal
from fastvi.guides.guide import Guide
from fastvi.guides.of_network import NetworkGuide
from fastvi.losses._module import register_prior
from fastvi.models._latent_widths import first_width, input_width, prior_width
from fastvi.models.decoders import decode, evaluate
from fastvi.models.likelihoods import Likelihood, likelihood_of
from fastvi.objectives.latent import Latent
from fastvi.ops import gaussian_log_prob, gaussian_rsample, new_key
from fastvi.ops._arguments import check_num_samples, check_prior, check_tensor
from fastvi.ops._call import exporting

Prior = tuple[Tensor, Tensor]
# A chunk of log_evidence holds about this many values of the decoder's output: 16 MB in float32.
_CHUNK_ELEMENTS = 2**22


class VAE(nn.Module):
    r"""Join an encoder and a decoder to a latent-variable model and its posterior.

    .. math::
        p(x, z) = p(x \mid f(z))\, p(z), \qquad
        q(z \mid x) = \mathcal{N}(\mu(x), \operatorname{diag} \sigma^2(x))

    The encoder sees x as it is. The decoder f sees z flattened to (rows, D), so convolutions and
    batch normalisation work in it, and returns one value per feature of x: logits for the
    Bernoulli, the mean for the Gaussian, log-rates for the Poisson likelihood.

    Args:
        encoder: a module (or function) that maps x, shape (\*batch, \*event), to
            (loc, log_var), each of shape (\*batch, D), or to the two joined in one tensor of
            shape (\*batch, 2 D).
        decoder: a module (or function) that maps z, shape (rows, D), to (rows, \*event).
        likelihood: ``"bernoulli"``; ``"gaussian"``, whose scale is 1 (mean squared error);
            ``"poisson"``, from log-rates; or a likelihood module, e.g.
            ``GaussianLikelihood(scale=0.1, learned=True)``.
        prior: ``None`` for N(0, I), or (loc, log_var), each of shape (D,). Parameters are
            learned with the model, other tensors are its buffers.
        latent_features: D. Needed by :meth:`sample` alone, and only where neither the prior nor
            the first layer of the decoder tells it.
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
    """

    prior_loc: Tensor | None
    prior_log_var: Tensor | None

    def __init__(
        self,
        encoder: Callable[[Tensor], Tensor | tuple[Tensor, Tensor]],
        decoder: Callable[[Tensor], Tensor],
        *,
        likelihood: str | Likelihood = "bernoulli",
        prior: Prior | None = None,
        latent_features: int | None = None,
        fuse_linear: bool = True,
    ) -> None:
        super().__init__()
        for name, network in (("encoder", encoder), ("decoder", decoder)):
            if not callable(network):
                raise TypeError(
                    f"VAE: expected {name} to be a module or a function, "
                    f"got {type(network).__name__}"
                )
        if latent_features is not None:
            check_num_samples("VAE", latent_features, "latent_features")
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood_of("VAE", likelihood)
        for name, value in zip(("loc", "log_var"), check_prior("VAE", prior), strict=True):
            if value is not None and value.ndim > 1:
                raise ValueError(
                    f"VAE: expected prior {name} to be of shape (D,), one for all data, "
                    f"got {tuple(value.shape)}"
                )
        register_prior(self, "VAE", prior)
        width = prior_width(self.prior)
        if None not in (latent_features, width) and latent_features != width:
            raise ValueError(
                f"VAE: expected prior to be of shape ({latent_features},), as latent_features "
                f"says, got ({width},)"
            )
        self.latent_features = latent_features or width
        self.fuse_linear = fuse_linear

    @property
    def prior(self) -> Prior | None:
        """(loc, log_var) of p(z), or None for N(0, I)."""
        if self.prior_loc is None or self.prior_log_var is None:
            return None
        return self.prior_loc, self.prior_log_var

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Compute (loc, log_var) of q(z given x), each of shape (\*batch, D)."""
        check_tensor("VAE", "x", x)
        if not x.is_floating_point():
            raise TypeError(f"VAE: expected x to be floating-point, got {x.dtype}")
        encoded = self.encoder(x)
        if isinstance(encoded, Tensor):
            if encoded.ndim == 0 or encoded.shape[-1] % 2:
                raise ValueError(
                    "VAE: expected encoder(x) to be (loc, log_var), or one tensor of 2 D features "
                    f"that joins them, got a tensor of shape {tuple(encoded.shape)}"
                )
            loc, log_var = encoded.chunk(2, dim=-1)
            encoded = (loc, log_var)
        if not (
            isinstance(encoded, (tuple, list))
            and len(encoded) == 2
            and all(isinstance(part, Tensor) for part in encoded)
        ):
            raise TypeError(
                "VAE: expected encoder(x) to be two tensors, (loc, log_var), "
                f"got {type(encoded).__name__}"
            )
        loc, log_var = encoded
        batch = loc.shape[:-1]
        if loc.ndim == 0 or x.shape[: len(batch)] != batch:
            raise ValueError(
                f"VAE: expected encoder(x) to keep the batch of x, shape {tuple(x.shape)}, "
                f"got loc of shape {tuple(loc.shape)}"
            )
        if self.latent_features is None:
            self.latent_features = loc.shape[-1]
        return loc, log_var

    def decode(self, z: Tensor) -> Tensor:
        r"""Run the decoder on z, shape (\*rows, D); the result has shape (\*rows, \*event)."""
        check_tensor("VAE", "z", z)
        return decode("VAE", self.decoder, z)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        r"""Evaluate log p(x given z) in nats, shape (K, \*batch), for z of (K, \*batch, D)."""
        # A subclass that decodes in its own way is taken at its word.
        decoder = self.decode if self._decodes_in_its_own_way() else self.decoder
        return evaluate("VAE", decoder, self.likelihood, x, z, self.fuse_linear)

    def _decodes_in_its_own_way(self) -> bool:
        return getattr(self.decode, "__func__", None) is not VAE.decode

    def log_weights(
        self,
        x: Tensor,
        num_samples: int,
        *,
        key: Tensor | None = None,
        sample_offset: int = 0,
    ) -> Tensor:
        r"""Draw num_samples latents for each datum and compute their log-weights.

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
        return self._log_weights_of(x, *self.encode(x), num_samples, key, sample_offset)

    def _log_weights_of(
        self,
        x: Tensor,
        loc: Tensor,
        log_var: Tensor,
        num_samples: int,
        key: Tensor | None,
        sample_offset: int,
    ) -> Tensor:
        z, log_q, log_p = gaussian_rsample(
            loc,
            log_var=log_var,
            num_samples=num_samples,
            key=key,
            sample_offset=sample_offset,
            prior=self.prior,
        )
        return self.log_likelihood(x, z) + log_p - log_q

    def latents(self, x: Tensor, num_samples: int, *, key: Tensor | None = None) -> list[Latent]:
        r"""Draw z from q(z given x), as one of :mod:`fastvi.objectives` takes it.

        Args:
            x: data, shape (\*batch, \*event).
            num_samples: K.
            key: from :func:`fastvi.ops.new_key`; ``None`` draws one.

        Returns:
            One latent, ``"z"``.
        """
        loc, log_var = self.encode(x)
        z, log_q, _ = gaussian_rsample(loc, log_var=log_var, num_samples=num_samples, key=key)

        def held() -> Tensor:
            return gaussian_log_prob(z, loc.detach(), log_var=log_var.detach())

        return [Latent("z", z, log_q, True, (), held, _diagonal(loc, log_var))]

    def terms(self, values: Mapping[str, Tensor], x: Tensor) -> dict[str, Any]:
        r"""Return the terms of log p(x, z), as one of :mod:`fastvi.objectives` takes them.

        Args:
            values: under ``"z"`` the samples, shape (K, \*batch, D).
            x: data, shape (\*batch, \*event).

        Returns:
            The prior of ``"z"`` as a distribution, and under ``"x"`` the log-likelihood in nats,
            shape (K, \*batch).
        """
        z = values["z"]
        zero = z.new_zeros(z.shape[-1])
        loc, log_var = self.prior or (zero, zero)
        prior = _diagonal(loc.expand(z.shape[-1:]), log_var.expand(z.shape[-1:]))
        return {"z": prior, "x": self.log_likelihood(x, z)}

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

    @torch.no_grad()
    def log_evidence(
        self,
        x: Tensor,
        num_samples: int,
        chunk_size: int | Literal["auto"] | None = None,
        *,
        memory_budget: int | None = None,
        group: Any = None,
        key: Tensor | None = None,
    ) -> Tensor:
        r"""Estimate log p(x) by the bound L_K, in memory that does not grow with K.

        .. math::
            L_K = \log \frac{1}{K} \sum_{k=1}^{K} w_k \le \log p(x)
            \quad \text{in expectation}

        The samples are drawn ``chunk_size`` at a time and meet in a running log-sum-exp. Sample k
        gets the same noise in whichever chunk it falls, so the result does not depend on
        ``chunk_size`` beyond rounding. Call ``eval()`` first if the networks have dropout or batch
        normalisation.

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
        where = "VAE.log_evidence"
        check_num_samples(where, num_samples)
        check_chunks(where, num_samples, chunk_size, memory_budget)
        loc, log_var = self.encode(x)
        if exporting() and group is None:
            parts = functools.partial(self._log_weights_of, x, loc, log_var)
            return evidence(
                parts, num_samples, chunk_size, new_key(x.device) if key is None else key
            )
        if chunk_size is None:
            chunk_size = min(num_samples, max(1, _CHUNK_ELEMENTS // max(1, x.numel())))
        stream = Stream(
            where,
            OfData(x, lambda z: self.log_likelihood(x, z)),
            num_samples,
            IWLB_ESTIMATORS["iwae"],
            new_key(x.device) if key is None else key,
            chunk_size,
            memory_budget,
            group=None if group is None else SampleGroup(where, group),
            own_key=key is None,
        )
        return stream.bound(loc, log_var, self.prior)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Compute the mean of p(x given z) at the posterior mean, in the shape of x."""
        loc, _ = self.encode(x)
        return self.likelihood.mean(self.decode(loc))

    @torch.no_grad()
    def sample(
        self, n: int, *, mean: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        r"""Draw z from the prior and x from p(x given z).

        Args:
            n: how many.
            mean: return the mean of p(x given z) instead of a draw, which is what pictures show.
            generator: on the model's device; the default is torch's own.

        Returns:
            x, shape (n, \*event).

        Raises:
            ValueError: the number of latent features is not known, see ``latent_features``, or is
                not what the decoder takes.

        Example:
            >>> vae = fastvi.VAE(torch.nn.Linear(784, 16), torch.nn.Linear(8, 784))
            >>> vae.sample(4).shape
            torch.Size([4, 784])
        """
        check_num_samples("VAE.sample", n, "n")
        loc, log_var = self._prior_for_one()
        key = new_key(loc.device, generator)
        z, _, _ = gaussian_rsample(loc, log_var=log_var, num_samples=n, key=key)
        output = self.decode(z)
        return self.likelihood.mean(output) if mean else self.likelihood.draw(output, generator)

    def _prior_for_one(self) -> Prior:
        """(loc, log_var) of the prior, each of shape (D,)."""
        features = self.latent_features or first_width(self.decoder)
        taken = None if self._decodes_in_its_own_way() else input_width(self.decoder)
        if None not in (features, taken) and features != taken:
            raise ValueError(
                f"VAE.sample: expected the decoder to take the {features} latent features of the "
                f"model, got one that takes {taken}"
            )
        if features is None:
            lazy = uninitialised(self.decoder)
            known_by = f"the decoder's {lazy} has not seen any input; " if lazy else ""
            raise ValueError(
                f"VAE.sample: expected latent_features to be known, got none: {known_by}give "
                f"VAE(..., latent_features=D) or encode a batch first"
            )
        if self.prior is not None:
            return self.prior[0].expand(features), self.prior[1].expand(features)
        parameters = (p for p in self.parameters() if p.is_floating_point())
        zeros = torch.zeros(features, **_dtype_and_device(next(parameters, None)))
        return zeros, zeros

    def loss(
        self, x: Tensor, objective: Callable[..., Tensor], key: Tensor | None = None
    ) -> Tensor:
        r"""Measure the negative bound of a batch, ready for ``backward()``.

        Args:
            x: data, shape (\*batch, \*event).
            objective: a :class:`fastvi.IWLBLoss` or :class:`fastvi.ELBOLoss`. The prior is the
                model's, not the objective's.
            key: from :func:`fastvi.ops.new_key`; ``None`` draws one.

        Returns:
            The loss in nats: a scalar, or whatever the objective's reduction leaves.

        Raises:
            TypeError: an objective that cannot be called.
            ValueError: the objective has a prior of its own.

        Example:
            >>> vae = fastvi.VAE(torch.nn.Linear(784, 16), torch.nn.Linear(8, 784))
            >>> vae.loss(torch.ones(4, 784), fastvi.ELBOLoss()).shape
            torch.Size([])
        """
        if not callable(objective):
            raise TypeError(
                "VAE.loss: expected objective to be a loss, e.g. fastvi.IWLBLoss(num_samples=50), "
                f"got {objective!r}"
            )
        if getattr(objective, "prior", None) is not None:
            raise ValueError(
                "VAE.loss: expected objective to have no prior of its own, got one: "
                "give it to VAE(..., prior=...)"
            )
        loc, log_var = self.encode(x)
        prior = {} if self.prior is None else {"prior": self.prior}
        log_px = OfData(x, lambda z: self.log_likelihood(x, z))
        return objective(loc, log_var, log_px, key=key, **prior)

    def forward(
        self, x: Tensor, objective: Callable[..., Tensor], key: Tensor | None = None
    ) -> Tensor:
        """Measure :meth:`loss`, so that wrappers of modules, such as data-parallel ones, work."""
        return self.loss(x, objective, key)


def _diagonal(loc: Tensor, log_var: Tensor) -> Independent:
    base = Normal(loc, (0.5 * log_var).exp(), validate_args=False)
    return Independent(base, 1, validate_args=False)


def _dtype_and_device(parameter: Tensor | None) -> dict:
    if parameter is None:
        return {}
    return {"dtype": parameter.dtype, "device": parameter.device}
