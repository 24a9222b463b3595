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
