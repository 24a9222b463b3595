"""Estimators that differentiate through the samples, against Gauss-Hermite quadrature."""

from __future__ import annotations

import pytest
import torch
from quadrature import grid
from torch import Tensor
from torch.distributions import Normal

from fastvi import objectives
from fastvi.objectives import Latent


class One:
    """A number under a guide that is off, K = 2; a column for each node."""

    def __init__(self) -> None:
        self.eps, self.weight = grid(80, 2)
        self.guide = [torch.tensor(v).double().requires_grad_() for v in (0.4, -0.2)]
        self.model = [torch.tensor(v).double().requires_grad_() for v in (-0.3, 0.9)]
        self.parameters = [*self.guide, *self.model]

    def latents(self) -> list[Latent]:
        loc, log_scale = self.guide
        q = Normal(loc, log_scale.exp())
        z = loc + log_scale.exp() * self.eps
        return [Latent("z", z, q.log_prob(z), distribution=q)]

    def log_joint(self, z: dict[str, Tensor]) -> Tensor:
        loc, on = self.model
        return Normal(loc, 1.0).log_prob(z["z"]) + Normal(on * z["z"], 0.9).log_prob(
            torch.tensor(0.6).double()
        )

    def gradient(self, bounds: Tensor) -> Tensor:
        return torch.stack(torch.autograd.grad((self.weight * bounds).sum(), self.parameters))


class Two(One):
    """A number, and another drawn given it."""

    def __init__(self) -> None:
        self.eps, self.weight = grid(22, 4)
        self.guide = [torch.tensor(v).double().requires_grad_() for v in (0.3, -0.2, 0.5, -0.3)]
        self.model = [torch.tensor(v).double().requires_grad_() for v in (-0.2, 0.4)]
        self.parameters = [*self.guide, *self.model]

    def latents(self) -> list[Latent]:
        loc, log_scale, on, log_scale_2 = self.guide
        z1 = loc + log_scale.exp() * self.eps[:2]
        q1 = Normal(loc, log_scale.exp())
        z2 = on * z1 + log_scale_2.exp() * self.eps[2:]
        q2 = Normal(on * z1, log_scale_2.exp())

        def held() -> Tensor:
            return Normal(on.detach() * z1, log_scale_2.detach().exp()).log_prob(z2)

        return [
            Latent("z1", z1, q1.log_prob(z1), parents=()),
            Latent("z2", z2, q2.log_prob(z2), parents=("z1",), path=held),
        ]

    def log_joint(self, z: dict[str, Tensor]) -> Tensor:
        loc, on = self.model
        return (
            Normal(loc, 1.0).log_prob(z["z1"])
            + Normal(on * z["z1"], 1.0).log_prob(z["z2"])
            + Normal(z["z1"] - z["z2"], 1.3).log_prob(torch.tensor(0.4).double())
        )


CASES = [
    pytest.param("dreg", 0.0, id="dreg"),
    pytest.param("dreg", 0.5, id="dreg of order 0.5"),
    pytest.param("dreg", 1.0, id="dreg of the ELBO"),
]


@pytest.mark.parametrize("model", [One, Two], ids=["one latent", "one given another"])
@pytest.mark.parametrize(("estimator", "alpha"), CASES)
def test_same_mean_as_the_total_derivative(model: type[One], estimator: str, alpha: float):
    setting = model()
    total = objectives.IWLB(2, "iwae", alpha=alpha).bound(setting.latents(), setting.log_joint)
    other = objectives.IWLB(2, estimator, alpha=alpha).bound(setting.latents(), setting.log_joint)
    torch.testing.assert_close(other, total, rtol=0, atol=1e-11)
    tolerance = 1e-9 if model is One else 1e-6
    torch.testing.assert_close(
        setting.gradient(other), setting.gradient(total), rtol=0, atol=tolerance
    )


@pytest.mark.parametrize("model", [One, Two], ids=["one latent", "one given another"])
def test_wake_phase_doubly_reparameterised(model: type[One]):
    setting = model()
    wake = objectives.IWLB(2, "rws").bound(setting.latents(), setting.log_joint)
    path = objectives.IWLB(2, "rws_dreg").bound(setting.latents(), setting.log_joint)
    tolerance = 1e-9 if model is One else 1e-6
    torch.testing.assert_close(
        setting.gradient(wake), setting.gradient(path), rtol=0, atol=tolerance
    )


def test_elbo_holding_log_q():
    setting = One()
    total = objectives.ELBO(2).bound(setting.latents(), setting.log_joint)
    path = objectives.ELBO(2, estimator="stl").bound(setting.latents(), setting.log_joint)
    torch.testing.assert_close(setting.gradient(path), setting.gradient(total), rtol=0, atol=1e-9)


def test_stl_is_biased_beyond_one_sample():
    """The control: the quadrature sees the bias that DReG removes."""
    setting = One()
    total = objectives.IWLB(2, "iwae").bound(setting.latents(), setting.log_joint)
    stl = objectives.IWLB(2, "stl").bound(setting.latents(), setting.log_joint)
    bias = setting.gradient(stl) - setting.gradient(total)
    assert bias[:2].abs().max() > 1e-3
    torch.testing.assert_close(bias[2:], torch.zeros(2).double(), rtol=0, atol=1e-9)


def test_a_latent_given_another_needs_its_own_path():
    setting = Two()
    first, second = setting.latents()
    bare = Latent("z2", second.value, second.log_q)
    with pytest.raises(ValueError, match="path to be given for latent 'z2'.*z1"):
        objectives.IWLB(2, "dreg").bound([first, bare], setting.log_joint)


@pytest.mark.parametrize("estimator", ["dreg", "stl", "iwae", "rws", "rws_dreg"])
def test_chunks_change_nothing(estimator: str):
    setting = One()
    whole = objectives.IWLB(2, estimator).bound(setting.latents(), setting.log_joint)
    parts = objectives.IWLB(2, estimator, chunk_size=1).bound(setting.latents(), setting.log_joint)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-13)
    torch.testing.assert_close(setting.gradient(parts), setting.gradient(whole), rtol=0, atol=1e-13)


@pytest.mark.parametrize("estimator", ["dreg", "stl", "iwae", "rws", "rws_dreg"])
def test_gradient_of_the_gaussian_loss(estimator: str):
    """The same noise through the drop-in loss: the same estimator, of any distribution."""
    from fastvi import iwlb_loss, ops

    torch.manual_seed(4)
    loc, log_var = torch.randn(2, 6, 3, dtype=torch.float64).unbind()
    loc.requires_grad_(), log_var.requires_grad_()
    weight = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    x, key = torch.rand(6, 5).round().double(), ops.new_key()

    def log_likelihood(z: Tensor) -> Tensor:
        return ops.bernoulli_log_prob(x, z @ weight)

    inputs = (loc, log_var, weight)
    loss = iwlb_loss(
        loc, log_var, log_likelihood, num_samples=4, estimator=estimator, key=key, reduction="sum"
    )
    expected = torch.autograd.grad(loss, inputs)
    z, log_q, _ = ops.gaussian_rsample(loc, log_var=log_var, num_samples=4, key=key)
    q = torch.distributions.Independent(Normal(loc, (0.5 * log_var).exp()), 1)
    latent = Latent("z", z, q.log_prob(z))
    prior = torch.distributions.Independent(Normal(torch.zeros(3).double(), 1.0), 1)
    value = objectives.IWLB(4, estimator).bound(
        [latent], lambda z: {"z": prior, "x": log_likelihood(z["z"])}
    )
    torch.testing.assert_close(-value.sum(), loss, rtol=0, atol=1e-10)
    for got, grad in zip(torch.autograd.grad(-value.sum(), inputs), expected, strict=True):
        torch.testing.assert_close(got, grad, rtol=0, atol=1e-10)
