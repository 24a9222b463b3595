"""What SVI and the objectives refuse, and that they say which latent and what to do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Gamma, Independent, Normal, StudentT

import fastvi
from fastvi import objectives
from fastvi.objectives import ELBO, IWLB, VIMCO, Latent, Reinforce, Term

X = torch.linspace(-1, 1, 6)
LEVEL = nn.Parameter(torch.zeros(()))
SGD = torch.optim.SGD([LEVEL], lr=0.0)
GUIDE = fastvi.guides.MeanFieldGaussian({"rate": ()}, init_scale=1.0)


def normal(x: Tensor) -> Normal:
    return Normal(x + LEVEL, 1.0)


def bits(x: Tensor) -> dict:
    return {"on": Bernoulli(logits=x + LEVEL), "z": Normal(x + LEVEL, 1.0)}


def joint(z: Tensor, x: Tensor) -> Tensor:
    return -(z**2) - (z - x) ** 2


def both(z, x: Tensor) -> Tensor:
    return -(z["z"] ** 2) - z["on"] * x


def step(model=joint, guide=normal, objective=None, batch=X, **options) -> Tensor:
    return fastvi.SVI(model, guide, SGD, objective or ELBO(4), **options).step(batch)


def named(model) -> Tensor:
    return fastvi.SVI(model, GUIDE, torch.optim.SGD(GUIDE.parameters()), ELBO(4)).step(X)


CASES = [
    pytest.param(lambda: step(lambda z, x: both(z, x) + z["scale"], bits, VIMCO(4)), ValueError,
                 r"guide, which samples \['on', 'z'\], got 'scale'", id="model has more latents"),
    pytest.param(lambda: step(lambda z, x: -(z["z"] ** 2), bits, VIMCO(4)), ValueError,
                 r"got none of \['on'\]", id="guide has more latents"),
    pytest.param(lambda: step(lambda z, x: joint(z, x).mean(0)), ValueError,
                 r"shape \(K, \*batch\) = \(4, 6\), got \[6\]", id="no K"),
    pytest.param(lambda: step(lambda z, x: joint(z, x)[..., None]), ValueError,
                 r"\(4, 6\), got \[4, 6, 1\]", id="a dimension too many"),
    pytest.param(lambda: step(lambda z, x: {"x": joint(z, x)[:, :3]}), ValueError,
                 r"term 'x' to have shape .*\(4, 6\), got \[4, 3\]", id="another batch"),
    pytest.param(lambda: step(lambda z, x: {"x": joint(z, x), "p": z.sum(1)}, objective=IWLB(4)),
                 ValueError, "term 'p' to be of each datum", id="a term of all data"),
    pytest.param(lambda: step(lambda z, x: (z > 0)), TypeError, "floating-point numbers",
                 id="no numbers"),
    pytest.param(lambda: step(lambda z, x: 3.0), TypeError, "got float", id="a number"),
    pytest.param(lambda: step(lambda z, x: {}), ValueError, "at least one term", id="no terms"),
    pytest.param(lambda: step(lambda z, x: {"x": 3.0}), TypeError, "term 'x' to be a tensor",
                 id="a term of another type"),
    pytest.param(lambda: step(both, bits, IWLB(4)), ValueError,
                 "latent 'on' to be reparameterised.*use VIMCO or Reinforce", id="IWLB of bits"),
    pytest.param(lambda: step(both, bits, ELBO(4)), ValueError,
                 "latent 'on' to be reparameterised.*use VIMCO or Reinforce", id="ELBO of bits"),
    pytest.param(lambda: step(lambda z, x: {"z": Gamma(2.0, 1.0), "x": joint(z, x)}), ValueError,
                 "prior of latent 'z' to allow all values.*Gamma", id="prior's constraint"),
    pytest.param(lambda: step(lambda z, x: {"z": Gamma(2.0, 1.0), "x": joint(z, x)},
                              objective=IWLB(4)), ValueError,
                 "latent 'z' of the guide to be in the support of Gamma", id="prior's support"),
    pytest.param(lambda: step(lambda z, x: {"w": Normal(0.0, 1.0), "x": joint(z, x)}), ValueError,
                 r"stand under the name of a latent, \['z'\].*got 'w'", id="prior of nothing"),
    pytest.param(lambda: step(
        lambda z, x: {"z": Normal(0.0, 1.0), "seen": Term(Bernoulli(logits=z), 0.5 + 0 * x)}),
        ValueError, "data of term 'seen' to be in the support of Bernoulli", id="observation"),
    pytest.param(lambda: step(
        lambda z, x: {"z": Normal(0.0, 1.0), "seen": Term(Bernoulli(logits=z), 0.5 + 0 * x)},
        vectorize=True),
        ValueError, "data of term 'seen' to be in the support of Bernoulli", id="vectorised"),
    pytest.param(lambda: step(lambda z, x: Bernoulli(logits=z).log_prob(0.5 + 0 * x)), ValueError,
                 "support", id="observation in a plain tensor"),
    pytest.param(lambda: step(
        lambda z, x: {"z": Normal(torch.zeros(6, 2), 1.0)},
        lambda x: Independent(Normal(torch.zeros(6, 2) + LEVEL, 1.0), 1),
        ELBO(4, kl="monte_carlo")),
        ValueError, "prior of latent 'z' to have.*Independent", id="a prior that is no event"),
    pytest.param(lambda: step(lambda z, x: {"x": Term(joint(z, x), depends_on=("a",))}), ValueError,
                 r"term 'x' to depend on latents of the guide, \['z'\], got \['a'\]",
                 id="depends on another"),
    pytest.param(lambda: step(objective=ELBO(4, kl="analytic")), ValueError,
                 r"closed form for every latent, got none for \['z'\]", id="no prior to compare"),
    pytest.param(lambda: step(
        lambda z, x: {"z": StudentT(3.0)}, objective=ELBO(4, kl="analytic")), ValueError,
        r"got none for \['z'\]", id="no closed form"),
    pytest.param(lambda: step(
        lambda z, x: joint(z["z"][:, None], x).sum(1), lambda: {"z": Normal(LEVEL, 1.0)},
        num_data=60), ValueError, "terms by name.*scale 6 data up to 60", id="nothing to scale"),
    pytest.param(lambda: step(both, lambda x: bits(x) | {"all": Normal(LEVEL, 1.0)}, VIMCO(4)),
                 ValueError, "'all'|one batch shape", id="two batch shapes"),
    pytest.param(lambda: step(both, bits, Reinforce(4, nn.Linear(6, 2))), ValueError,
                 "optimizer to hold the parameters of the objective's baseline",
                 id="a baseline that is not trained"),
    pytest.param(lambda: step(lambda z, x: -z.detach() ** 2, lambda x: Normal(x, 1.0)), ValueError,
                 "expected the bound to depend on a parameter", id="nothing to train"),
    pytest.param(lambda: step(objective=objectives.elbo), TypeError, "fastvi.objectives",
                 id="a function for objective"),
    pytest.param(lambda: fastvi.SVI(joint, 3, SGD, ELBO()), TypeError, "guide", id="guide"),
    pytest.param(lambda: fastvi.SVI(3, normal, SGD, ELBO()), TypeError, "model", id="model"),
    pytest.param(lambda: fastvi.SVI(joint, normal, 3, ELBO()), TypeError, "optimizer",
                 id="optimizer"),
    pytest.param(lambda: fastvi.SVI(
        lambda z: {"rate": Gamma(2.0, 1.0)}, GUIDE, torch.optim.SGD(GUIDE.parameters()),
        ELBO(50)).step(), ValueError, "prior of 'rate' to allow its values", id="named prior"),
    pytest.param(lambda: fastvi.SVI(
        lambda z: {"rate": Normal(torch.zeros(3), 1.0)}, GUIDE,
        torch.optim.SGD(GUIDE.parameters()), ELBO(4)).step(), ValueError,
        "prior of 'rate' to fit its shape|to allow its values", id="named prior's shape"),
    pytest.param(lambda: named(lambda z, x: {"x": -(z["rate"][:, None, None] - x[:, None]) ** 2}),
                 ValueError, r"\(K, \*batch\) = \(4, B\), got \[4, 6, 1\]", id="an event left"),
    pytest.param(lambda: named(
        lambda z, x: {"p": -z["rate"][:, None], "x": -(z["rate"][:, None] - x)}),
                 ValueError, r"one shape, \(K, B\), got \{'p': \[4, 1\], 'x': \[4, 6\]\}",
                 id="a prior that broadcasts"),
    pytest.param(lambda: named(lambda z, x: -z["rate"][:, None] ** 2 * torch.ones(3)),
                 ValueError, "each of the 6 data, got 3", id="another number of data"),
    pytest.param(lambda: step(num_data=5), ValueError, "at most num_data, 5, got 6", id="more"),
    pytest.param(lambda: step(num_data=0), ValueError, "num_data", id="num_data"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "says"), CASES)
def test_a_step(call, error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        call()


def latent(name: str = "z", k: int = 4, reparameterised: bool = True, **options) -> Latent:
    log_q = torch.zeros(k, 6, requires_grad=True)
    return Latent(
        name, torch.zeros(k, 6) + log_q, log_q, reparameterised=reparameterised, **options
    )


def nothing(z) -> Tensor:
    return next(iter(z.values())) * 0.0


def bound(objective, *latents: Latent, **options) -> Tensor:
    return objective.bound(latents, nothing, **options)


class Wrong(nn.Module):
    def forward(self, data: Tensor) -> Tensor:
        return data[:3]


AVERAGE = objectives.DecayingAverage()
OBJECTIVES = [
    pytest.param(lambda: ELBO(0), ValueError, "num_samples", id="K = 0"),
    pytest.param(lambda: ELBO(1, kl="exact"), ValueError, "kl", id="kl"),
    pytest.param(lambda: ELBO(1, "analytic", estimator="stl"), ValueError, "'monte_carlo'",
                 id="stl"),
    pytest.param(lambda: IWLB(4, "best"), ValueError, "estimator", id="estimator"),
    pytest.param(lambda: IWLB(4, "rws", alpha=0.5), ValueError, "alpha to be 0", id="alpha"),
    pytest.param(lambda: IWLB(4, chunk_size=0), ValueError, "chunk_size", id="chunk_size"),
    pytest.param(lambda: VIMCO(1), ValueError, "at least 2, got 1", id="VIMCO of one"),
    pytest.param(lambda: Reinforce(1, "leave_one_out"), ValueError, "at least 2", id="of one"),
    pytest.param(lambda: Reinforce(4, "mean"), ValueError, "baseline", id="baseline"),
    pytest.param(lambda: Reinforce(4, 3.0), TypeError, "got float", id="a number for baseline"),
    pytest.param(lambda: bound(ELBO(4)), ValueError, "at least one latent", id="no latents"),
    pytest.param(lambda: ELBO(4).bound([torch.zeros(4)], nothing), TypeError, "got Tensor",
                 id="tensors for latents"),
    pytest.param(lambda: bound(ELBO(4), latent(), latent()), ValueError, "different names",
                 id="one name twice"),
    pytest.param(lambda: bound(ELBO(4), latent(), latent("b", 3)), ValueError,
                 "as many samples.*'z': 4, 'b': 3", id="numbers of samples"),
    pytest.param(lambda: bound(ELBO(4), latent(parents=("a",))), ValueError,
                 r"parents of latent 'z' to be among \['z'\], got \['a'\]", id="parents"),
    pytest.param(lambda: latent(k=0), ValueError, "Latent 'z': expected log_q", id="no samples"),
    pytest.param(lambda: Latent("z", torch.zeros(4, 6), torch.zeros(6)), ValueError,
                 r"leading dimensions of value, \[4, 6\].*got \[6\]", id="log_q without K"),
    pytest.param(lambda: Latent("z", torch.zeros(4), torch.zeros(4).long()), TypeError, "log_q",
                 id="whole numbers"),
    pytest.param(lambda: Latent.draw("z", torch.zeros(4), 3), TypeError,
                 "Latent 'z'.*got Tensor", id="no distribution"),
    pytest.param(lambda: Term(torch.zeros(4), torch.zeros(4)), TypeError, "where observed",
                 id="data without a distribution"),
    pytest.param(lambda: Term(torch.zeros(4), depends_on="z"), TypeError, "tuple of names",
                 id="a name for names"),
    pytest.param(lambda: bound(Reinforce(4, AVERAGE), latent("a", reparameterised=False),
                               latent("b", reparameterised=False)),
                 ValueError, "one DecayingAverage for each", id="one average for two"),
    pytest.param(lambda: objectives.reinforce(
        torch.zeros(4, 6), [torch.zeros(4, 6)] * 2, baseline=AVERAGE),
        ValueError, "DecayingAverage of its own", id="one average for two, function"),
    pytest.param(lambda: bound(Reinforce(4, {"b": None}), latent("a", reparameterised=False)),
                 ValueError, r"entry for latent 'a', got \['b'\]", id="no baseline for it"),
    pytest.param(lambda: bound(Reinforce(4, Wrong()), latent(reparameterised=False)), ValueError,
                 "expected data for the baseline of latent 'z'", id="no data"),
    pytest.param(lambda: bound(Reinforce(4, Wrong()), latent(reparameterised=False), data=X),
                 ValueError, r"baseline of latent 'z' to return.*\[6\], got \[3\]",
                 id="baseline's shape"),
    pytest.param(lambda: bound(IWLB(4), Latent(
        "z", torch.zeros(4, 6, requires_grad=True), torch.zeros(4, 6))), ValueError,
        "log_q to be computed from value, or path", id="no path"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "says"), OBJECTIVES)
def test_an_objective(call, error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        call()
