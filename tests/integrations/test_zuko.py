"""zuko's flows as guides: every flow, every estimator, whole and in chunks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fastvi
from fastvi.objectives import ELBO, IWLB, Latent

zuko = pytest.importorskip("zuko")

FLOWS = {
    "NICE": lambda context=0: zuko.flows.NICE(2, context, transforms=2),
    "MAF": lambda context=0: zuko.flows.MAF(2, context, transforms=2),
    "NSF": lambda context=0: zuko.flows.NSF(2, context, transforms=2),
    "RealNVP": lambda context=0: zuko.flows.RealNVP(2, context, transforms=2),
    "GF": lambda context=0: zuko.flows.GF(2, context, transforms=2),
    "SOSPF": lambda context=0: zuko.flows.SOSPF(2, context, transforms=1),
    "NAF": lambda context=0: zuko.flows.NAF(2, context, transforms=1),
    "NCSF": lambda context=0: zuko.flows.NCSF(2, context, transforms=1),
    "BPF": lambda context=0: zuko.flows.BPF(2, context, transforms=1),
}
OBJECTIVES = {
    "ELBO": lambda: ELBO(5),
    "stl": lambda: ELBO(5, estimator="stl"),
    "iwae": lambda: IWLB(5, "iwae"),
    "dreg": lambda: IWLB(5, "dreg"),
    "dreg in chunks": lambda: IWLB(5, "dreg", chunk_size=2),
    "rws": lambda: IWLB(5, "rws"),
}


def flow_of(name: str, context: int = 0) -> nn.Module:
    torch.manual_seed(2)
    return FLOWS[name](context).double()


def log_joint(z, x=None):
    value = z["z"] if isinstance(z, dict) else z
    return -0.5 * (value**2).sum(-1) - ((value - 1.0) ** 2).sum(-1)


@pytest.mark.parametrize("name", FLOWS)
def test_log_q_held_is_that_of_a_deep_copy_with_detached_parameters(name: str):
    flow = flow_of(name)
    torch.manual_seed(0)
    latent = Latent.draw("z", flow(), 4, path=True)
    along = latent.log_q_path()
    held = copy.deepcopy(flow).requires_grad_(False)
    expected = held().log_prob(latent.value.view_as(latent.value))
    # One is the inverse of the other by bisection, to 1e-6.
    torch.testing.assert_close(along, expected, rtol=1e-5, atol=1e-5)
    own = list(flow.parameters())
    found = torch.autograd.grad(along.sum(), own, retain_graph=True, allow_unused=True)
    exact = torch.autograd.grad(expected.sum(), own, allow_unused=True)
    for ours, theirs in zip(found, exact, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", ["NICE", "MAF", "NSF"])
def test_a_flow_is_a_guide_of_all_the_data(name: str, objective: str):
    guide = flow_of(name)
    optimizer = torch.optim.Adam(guide.parameters(), lr=1e-2)
    svi = fastvi.SVI(log_joint, guide, optimizer, OBJECTIVES[objective]())
    before = [p.detach().clone() for p in guide.parameters()]
    assert torch.isfinite(torch.as_tensor(svi.step()))
    assert any(not torch.equal(p, old) for p, old in zip(guide.parameters(), before, strict=True))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_flow_with_a_context_is_a_guide_of_each_datum(objective: str):
    guide = flow_of("NSF", 3)
    optimizer = torch.optim.Adam(guide.parameters(), lr=1e-2)
    svi = fastvi.SVI(log_joint, guide, optimizer, OBJECTIVES[objective]())
    x = torch.randn(6, 3, dtype=torch.float64)
    assert torch.isfinite(torch.as_tensor(svi.step(x)))


@pytest.mark.parametrize("objective", ["ELBO", "dreg"])
def test_a_flow_without_a_context_is_of_all_the_data_though_there_are_data(objective: str):
    guide = flow_of("NSF")
    optimizer = torch.optim.Adam(guide.parameters(), lr=1e-2)

    def model(z, x):
        return {"p": -0.5 * (z**2).sum(-1), "x": -((z[:, None] - x) ** 2).sum(-1)}

    svi = fastvi.SVI(model, guide, optimizer, OBJECTIVES[objective]())
    x = torch.randn(6, 2, dtype=torch.float64)
    before = torch.get_rng_state()
    assert svi.guide.latents((x,), 5)[0].value.shape == (5, 2)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    assert svi.guide.latents((x,), 5)[0].value.shape == (5, 2)
    assert torch.equal(after, torch.get_rng_state())
    assert torch.isfinite(torch.as_tensor(svi.step(x)))


def test_a_module_that_takes_nothing_is_of_all_the_data():
    class Box(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2))

        def forward(self):
            return torch.distributions.Independent(torch.distributions.Laplace(self.loc, 1.0), 1)

    guide = Box()
    svi = fastvi.SVI(log_joint, guide, torch.optim.Adam(guide.parameters()), IWLB(5, "dreg"))
    svi.step()
    assert guide.loc.grad.abs().max() > 0


def test_what_a_network_with_an_optional_argument_raises_is_seen():
    def guide(x=None):
        raise RuntimeError("a fault of the guide's own")

    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    svi = fastvi.SVI(log_joint, guide, optimizer, ELBO(3))
    with pytest.raises(RuntimeError, match="a fault of the guide's own"):
        svi.step(torch.zeros(4))


# ---- in a VAE ------------------------------------------------------------------------------------
LOSSES = {
    "ELBOLoss": lambda: fastvi.ELBOLoss(3),
    "IWLBLoss": lambda: fastvi.IWLBLoss(3),
    "dreg in chunks": lambda: IWLB(4, "dreg", chunk_size=2),
    "stl": lambda: ELBO(3, estimator="stl"),
    "MIWAE": lambda: fastvi.MIWAELoss(2, 2),
}


class VampPrior(nn.Module):
    """The mean of the posteriors of inputs that are learned."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.inputs = nn.Parameter(torch.randn(3, 5, dtype=torch.float64))

    def forward(self):
        loc, log_var = self.encoder(self.inputs).chunk(2, -1)
        parts = torch.distributions.Independent(
            torch.distributions.Normal(loc, (0.5 * log_var).exp()), 1
        )
        weights = torch.distributions.Categorical(torch.ones(3, dtype=torch.float64))
        return torch.distributions.MixtureSameFamily(weights, parts)


def vae_of(prior: str, encoder: str) -> fastvi.VAE:
    torch.manual_seed(5)
    plain = nn.Linear(5, 4, dtype=torch.float64)
    priors = {"normal": lambda: None, "flow": lambda: flow_of("NSF"),
              "vamp": lambda: VampPrior(plain)}  # fmt: skip
    q = plain if encoder == "gaussian" else flow_of(encoder, 5)
    decoder = nn.Linear(2, 5, dtype=torch.float64)
    return fastvi.VAE(q, decoder, likelihood="gaussian", prior=priors[prior]())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("encoder", ["gaussian", "MAF", "NSF"])
@pytest.mark.parametrize("prior", ["normal", "flow", "vamp"])
def test_a_vae_learns_its_flows(prior: str, encoder: str, loss: str):
    vae, x = vae_of(prior, encoder), torch.randn(4, 5, dtype=torch.float64)
    vae.loss(x, LOSSES[loss]()).backward()
    learned = [name for name, p in vae.named_parameters() if p.grad is None]
    assert learned == []
    assert vae.sample(3).shape == (3, 5)


@pytest.mark.slow
def test_the_evidence_under_a_flow_is_that_of_quadrature():
    vae, x = vae_of("flow", "gaussian"), torch.randn(3, 5, dtype=torch.float64)
    side = torch.linspace(-12, 12, 601, dtype=torch.float64)
    z = torch.cartesian_prod(side, side)
    with torch.no_grad():
        log_p = vae.prior().log_prob(z)
        log_px = vae.log_likelihood(x, z[:, None].expand(-1, 3, -1))
        exact = (log_p[:, None] + log_px).logsumexp(0) + 2 * (side[1] - side[0]).log()
        torch.manual_seed(0)
        log_w = vae.log_weights(x, 20_000)
    error = (log_w - exact).exp().std(0) / 20_000**0.5
    assert ((vae.log_evidence(x, 20_000) - exact).abs() < 5 * error + 1e-4).all()


def test_a_flow_that_is_called_before_is_refused_as_a_prior():
    flow = flow_of("NSF")
    with pytest.raises(ValueError, match="learned to be a module .*NormalizingFlow"):
        fastvi.VAE(nn.Linear(5, 4), nn.Linear(2, 5), prior=flow())


def test_lightning_trains_a_vae_of_flows():
    pytest.importorskip("lightning")
    from fastvi.integrations.lightning import BoundModule

    module = BoundModule(vae_of("vamp", "NSF"), fastvi.IWLBLoss(3))
    module.training_step(torch.randn(4, 5, dtype=torch.float64), 0).backward()
    assert all(p.grad is not None for p in module.parameters())


def test_a_layer_is_drawn_by_a_flow_given_the_one_before():
    torch.manual_seed(4)
    first = fastvi.StochasticLayer(
        "laplace", 2, guide=nn.Linear(5, 4).double(), model=nn.Linear(2, 4).double()
    )
    second = fastvi.StochasticLayer(None, 2, guide=flow_of("MAF", 2), prior=flow_of("NSF"))
    decoder = nn.Linear(2, 5).double()
    network = fastvi.HierarchicalVAE([first, second], decoder, likelihood="gaussian")
    x = torch.randn(4, 5, dtype=torch.float64)
    latents = network.latents(x, 6)
    along = sum(latent.log_q_path().sum() for latent in latents)
    held = copy.deepcopy(network).requires_grad_(False)
    terms = held.log_q(x, {n.name: n.value.view_as(n.value) for n in latents})
    own = [p for layer in network.layers for p in layer.guide.parameters()]
    found = torch.autograd.grad(along, own, retain_graph=True)
    exact = torch.autograd.grad(sum(term.sum() for term in terms.values()), own)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6)
    network.loss(x, IWLB(4, "dreg")).backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["NICE", "MAF", "NSF"])
def test_the_estimators_of_a_flow_have_one_mean(name: str):
    """dreg against the total derivative, over 4000 pairs of samples."""
    flow = flow_of(name)
    own = [p for p in flow.parameters() if p.requires_grad][-1]
    means = {}
    for estimator in ("iwae", "dreg"):
        torch.manual_seed(1)
        q = flow().expand((4000,))
        latent = Latent.draw("z", q, 2, path=estimator == "dreg")
        bound = IWLB(2, estimator).bound([latent], log_joint)
        each = torch.stack(
            [
                torch.autograd.grad(part.mean(), own, retain_graph=True)[0]
                for part in bound.split(200)
            ]
        )
        means[estimator] = (each.mean(0), each.var(0) / len(each))
    (total, v), (dreg, w) = means["iwae"], means["dreg"]
    assert ((total - dreg).abs() < 5 * (v + w) ** 0.5 + 1e-9).all()


def test_a_mixture_of_zuko_is_refused_in_clear_words():
    guide = zuko.flows.GMM(2, 0, components=3)
    optimizer = torch.optim.Adam(guide.parameters())
    svi = fastvi.SVI(log_joint, guide, optimizer, IWLB(5, "dreg"))
    with pytest.raises(ValueError, match="'z' to be reparameterised.*use VIMCO or Reinforce"):
        svi.step()


def test_a_learned_box_is_refused():
    low = torch.zeros(2, requires_grad=True)
    q = zuko.distributions.BoxUniform(low, torch.ones(2))
    latent = Latent.draw("z", q, 5, path=True)
    with pytest.raises(ValueError, match="got BoxUniform.Uniform.: its support moves"):
        IWLB(5, "dreg").bound([latent], log_joint)


def test_data_are_of_a_flow_given_the_latents():
    """zuko's flows do not broadcast a value to their batch by themselves."""
    torch.manual_seed(3)
    flow, decoder = flow_of("NICE", 4), nn.Linear(2, 4, dtype=torch.float64)
    encoder = nn.Linear(2, 4, dtype=torch.float64)
    vae = fastvi.VAE(encoder, decoder, likelihood=lambda output: flow(output))
    x, z = torch.randn(3, 2, dtype=torch.float64), torch.randn(5, 3, 2, dtype=torch.float64)
    found = vae.log_likelihood(x, z)
    expected = torch.stack([flow(decoder(each)).log_prob(x) for each in z])
    torch.testing.assert_close(found, expected)
