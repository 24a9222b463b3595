"""Models of one sample, vectorised: torch's checks look at every sample, and priors stay priors."""

from __future__ import annotations

import functools
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Dirichlet,
    Distribution,
    Gamma,
    HalfNormal,
    Independent,
    LogNormal,
    MultivariateNormal,
    Normal,
    Poisson,
    Uniform,
    constraints,
    kl_divergence,
)

import fastvi
from fastvi.guides import LowRankGaussian, MeanFieldGaussian
from fastvi.objectives import ELBO, IWLB, Reinforce, Term

X = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64)
SGD = functools.partial(torch.optim.SGD, lr=0.05)
UNIT = {"p": constraints.unit_interval}


def svi_of(model, shapes, supports=None, objective=None, **options) -> fastvi.SVI:
    guide = MeanFieldGaussian(shapes, supports, init_scale=1.0, dtype=torch.float64)
    options = {"vectorize": True} | options
    return fastvi.SVI(model, guide, SGD, objective or ELBO(8), **options)


def alone(prior: Distribution, **options) -> Tensor:
    def model(z, x: Tensor) -> dict:
        return {"m": prior, "x": Normal(z["m"][..., None], 1.0).log_prob(x)}

    return svi_of(model, {"m": ()}, **options).step(X)


def scaled(z, x: Tensor) -> dict:
    return {"s": Normal(0.0, 1.0), "x": Normal(0.0, z["s"]).log_prob(x)}


REFUSED = [
    pytest.param(lambda: alone(Gamma(2.0, 1.0)),
                 r"prior of 'm' to allow its values, all of Real.*got Gamma.*supports=\{'m'",
                 id="Gamma on the line"),
    pytest.param(lambda: alone(HalfNormal(1.0)), "prior of 'm'.*got HalfNormal",
                 id="half normal on the line"),
    pytest.param(lambda: alone(Uniform(0.0, 1.0)), "prior of 'm'.*got Uniform",
                 id="uniform on the line"),
    pytest.param(lambda: alone(Uniform(0.0, 1.0), vectorize=False), "prior of 'm'.*got Uniform",
                 id="uniform on the line, by hand"),
    pytest.param(lambda: svi_of(scaled, {"s": ()}).step(X),
                 r"sample \d of 8 of s: Expected parameter scale", id="a negative scale"),
    pytest.param(lambda: svi_of(
        lambda z, x: {"p": Beta(1.0, 1.0), "x": Bernoulli(z["p"]).log_prob(x)}, {"p": ()}, UNIT
        ).step(torch.tensor([0.0, 1.0, 2.0, 0.5])), r"sample 0 of 8 of p: .*support \(Boolean",
        id="impossible bits"),
    pytest.param(lambda: svi_of(
        lambda z, x: {"p": Beta(1.0, 1.0), "bits": Term(Bernoulli(z["p"]), x)}, {"p": ()}, UNIT
        ).step(torch.tensor([0.0, 1.0, 2.0, 0.5])), "data of term 'bits' to be in the support",
        id="impossible bits of a term"),
    pytest.param(lambda: svi_of(
        lambda z, x: {"p": Beta(1.0, 1.0), "x": Poisson(z["p"]).log_prob(x)}, {"p": ()}, UNIT
        ).evaluate(torch.tensor([0.5])), "sample 0 of 8 of p: .*Poisson", id="half a count"),
    pytest.param(lambda: svi_of(
        lambda z, x: {"a": Normal(0.0, 1.0), "p": Uniform(0.0, z["a"].exp()),
                      "x": Normal(z["p"], 1.0).log_prob(x)}, {"a": (), "p": ()}, UNIT,
        IWLB(50)).step(X), "prior of 'p' to allow its values.*got Uniform",
        id="a support that moves"),
    pytest.param(lambda: alone(Normal(torch.zeros(5), 1.0)),
                 r"prior of 'm' to fit its shape for one sample, \[\], got batch shape \[5\]",
                 id="another shape"),
    pytest.param(lambda: svi_of(
        lambda z, x: {"n": Normal(0.0, 1.0), "x": Normal(z["m"], 1.0).log_prob(x)}, {"m": ()}
        ).step(X), r"under the name of a latent, \['m'\].*got 'n'", id="a misspelt prior"),
    pytest.param(lambda: svi_of(
        lambda z, x: {"n": Normal(0.0, 1.0), "x": Normal(z["m"][:, None], 1.0).log_prob(x)},
        {"m": ()}, vectorize=False).step(X), r"under the name of a parameter, \['m'\], got 'n'",
        id="a misspelt prior, by hand"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "says"), REFUSED)
def test_what_a_constraint_forbids(call, says: str):
    with pytest.raises(ValueError, match=says):
        call()
    assert Distribution._validate_args is True


def test_later_batches_and_later_samples_are_looked_at():
    svi = svi_of(lambda z, x: {"p": Beta(1.0, 1.0), "x": Bernoulli(z["p"]).log_prob(x)},
                 {"p": ()}, UNIT, num_data=4)  # fmt: skip
    svi.step(torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="Boolean"):
        svi.step(torch.tensor([0.0, 0.5]))


def test_without_torch_s_checks_nothing_is_looked_at():
    Distribution.set_default_validate_args(False)
    assert not svi_of(scaled, {"s": ()}).step(X).isfinite()


def test_other_threads_keep_their_checks():
    seen = []

    def elsewhere() -> None:
        try:
            Normal(0.0, -1.0)
        except ValueError:
            seen.append(Distribution._validate_args)

    def model(z, x: Tensor) -> dict:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return {"m": Normal(0.0, 1.0), "x": Normal(z["m"], 1.0).log_prob(x)}

    svi_of(model, {"m": ()}).step(X)
    assert seen == [True]


# ---- priors come out as what they are ------------------------------------------------------------
ROW = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
PRIORS = [
    pytest.param(lambda: Normal(0.5, 2.0), (3,), None, id="Normal of numbers"),
    pytest.param(lambda: Normal(ROW, 2.0), (3,), None, id="Normal"),
    pytest.param(lambda: Independent(Normal(ROW, 2.0), 1), (3,), None, id="an event of Normals"),
    pytest.param(lambda: MultivariateNormal(ROW, 2.0 * torch.eye(3).double()), (3,), None,
                 id="multivariate"),
    pytest.param(lambda: LogNormal(ROW, 0.5), (3,), constraints.positive, id="LogNormal"),
    pytest.param(lambda: Gamma(2.0, ROW.exp()), (3,), constraints.positive, id="Gamma"),
    pytest.param(lambda: Dirichlet(ROW.exp()), (3,), constraints.simplex, id="Dirichlet"),
    pytest.param(lambda: fastvi.distributions.Normal(ROW, 2.0), (2, 3), None, id="ours"),
    pytest.param(lambda: torch.distributions.LKJCholesky(3), (3, 3), constraints.corr_cholesky,
                 id="more than its parameters"),
]  # fmt: skip


@pytest.mark.parametrize("objective", [ELBO(5, kl="auto"), IWLB(5)], ids=["ELBO", "IWLB"])
@pytest.mark.parametrize(("prior", "shape", "support"), PRIORS)
def test_priors_are_those_of_a_model_by_hand(prior, shape, support, objective):
    def model(z) -> dict:
        return {"z": prior(), "x": -z["z"].square().sum(tuple(range(-len(shape), 0)))}

    found = []
    for vectorize in (False, True):
        torch.manual_seed(2)
        supports = {} if support is None else {"z": support}
        guide = MeanFieldGaussian({"z": shape}, supports, dtype=torch.float64)
        svi = fastvi.SVI(model, guide, SGD, objective, vectorize=vectorize)
        found.append([svi.step(), *(p.grad for p in guide.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_prior_given_another_latent():
    def model(z) -> dict:
        return {"a": Normal(0.0, 1.0), "w": Normal(z["a"], z["a"].exp())}

    def by_hand(z) -> dict:
        a = z["a"][:, None]
        return {"a": Normal(0.0, 1.0), "w": Normal(a, a.exp())}

    for objective in (ELBO(5, kl="analytic"), IWLB(5)):
        found = []
        for vectorize, joint in ((True, model), (False, by_hand)):
            torch.manual_seed(2)
            guide = MeanFieldGaussian({"a": (), "w": (3,)}, dtype=torch.float64)
            svi = fastvi.SVI(joint, guide, SGD, objective, vectorize=vectorize)
            found.append([svi.step(), *(p.grad for p in guide.parameters())])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("vectorize", [False, True], ids=["by hand", "vmap"])
def test_closed_forms_of_local_latents(vectorize: bool):
    loc = nn.Parameter(X.clone())
    p = Normal(torch.tensor(0.5).double(), 2.0)

    def model(z: Tensor, x: Tensor) -> dict:
        return {"z": p, "x": 0.0 * z}

    svi = fastvi.SVI(model, lambda x: Normal(loc, 0.7), torch.optim.SGD([loc], 0.1),
                     ELBO(3, kl="analytic"), vectorize=vectorize)  # fmt: skip
    torch.testing.assert_close(svi.step(X), -kl_divergence(Normal(X, 0.7), p).sum())


@pytest.mark.parametrize("objective", [ELBO, Reinforce], ids=["ELBO", "Reinforce"])
def test_closed_forms_of_parameters(objective):
    """Of those that have one: on the line, and after a bijection that both share."""

    def model(z) -> dict:
        return {"w": Normal(ROW, 2.0), "s": LogNormal(0.3, 0.5)}

    guide = MeanFieldGaussian({"w": (3,), "s": ()}, {"s": constraints.positive},
                              dtype=torch.float64)  # fmt: skip
    svi = fastvi.SVI(model, guide, SGD, objective(2, kl="analytic"))
    q = guide.distribution()
    p = Normal(torch.cat([ROW, torch.tensor([0.3]).double()]), torch.tensor([2.0, 2.0, 2.0, 0.5]))
    torch.testing.assert_close(svi.evaluate(), -kl_divergence(q, p).sum().detach())


def test_where_there_is_no_closed_form_the_latent_is_named():
    def model(z) -> dict:
        return {"w": Normal(0.0, 1.0), "s": Gamma(2.0, 1.0)}

    shapes, supports = {"w": (3,), "s": ()}, {"s": constraints.positive}
    svi = fastvi.SVI(model, MeanFieldGaussian(shapes, supports), SGD, ELBO(2, kl="analytic"))
    with pytest.raises(ValueError, match=r"none for \['s'\].*prior Gamma.*kl='auto'"):
        svi.step()
    guide = LowRankGaussian(shapes, supports, rank=1)
    with pytest.raises(ValueError, match=r"none for \['w, s'\]"):
        fastvi.SVI(model, guide, SGD, ELBO(2, kl="analytic")).step()


# ---- how z is used -------------------------------------------------------------------------------
@pytest.mark.parametrize("vectorize", [False, True], ids=["by hand", "vmap"])
@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda z: z[:, None], id="slice"),
        pytest.param(lambda z: 2 * z, id="product"),
        pytest.param(lambda z: z.sum(), id="method"),
        pytest.param(lambda z: torch.exp(z), id="function"),
    ],
)
def test_a_mapping_used_as_a_tensor(use, vectorize: bool):
    svi = svi_of(lambda z, x: use(z), {"mu": ()}, vectorize=vectorize)
    with pytest.raises(TypeError, match=r"z\['mu'\], among \['mu'\], got z used as a tensor"):
        svi.step(X)


@pytest.mark.parametrize("vectorize", [False, True], ids=["by hand", "vmap"])
@pytest.mark.parametrize("name", ["mu", "a"], ids=str)
def test_a_tensor_used_as_a_mapping(name: str, vectorize: bool):
    level = nn.Parameter(torch.zeros(()))
    svi = fastvi.SVI(lambda z, x: z[name], lambda: Normal(level, 1.0),
                     torch.optim.SGD([level]), ELBO(4), vectorize=vectorize)  # fmt: skip
    with pytest.raises(ValueError, match=f"the one tensor that a guide.*got the name '{name}'"):
        svi.step(X)


def test_a_prior_s_batch_that_is_not_the_guide_s():
    level = nn.Parameter(torch.zeros(6))
    svi = fastvi.SVI(lambda z, x: {"z": Normal(torch.zeros(5), 1.0), "x": -z}, lambda x: Normal(
        level, 1.0), torch.optim.SGD([level]), ELBO(4))  # fmt: skip
    with pytest.raises(ValueError, match=r"prior of latent 'z'.*\[6\], got \[5\]"):
        svi.step(X)


@pytest.mark.parametrize("shape", [(), (3,)], ids=str)
@pytest.mark.parametrize("num_samples", [4, 5], ids=lambda k: f"K = {k}")
def test_a_prior_of_as_many_as_samples_is_no_prior_of_each(shape: tuple, num_samples: int):
    svi = svi_of(lambda z: {"m": Normal(torch.zeros(5, *shape), 1.0)}, {"m": shape},
                 objective=ELBO(num_samples), vectorize=False)  # fmt: skip
    with pytest.raises(ValueError, match=r"prior of 'm' to fit its shape.*got batch shape \[5"):
        svi.step()


@pytest.mark.parametrize(
    "support",
    [constraints.cat([constraints.positive, constraints.real], 0, [1, 2]),
     constraints.stack([constraints.positive, constraints.real], 0)],
    ids=["cat", "stack"],
)  # fmt: skip
def test_joined_supports(support):
    with pytest.raises(ValueError, match="support of 'a'.*cat or stack"):
        MeanFieldGaussian({"a": (3,)}, {"a": support})


def test_classes():
    logits = nn.Parameter(torch.zeros(3))

    def model(z: Tensor, x: Tensor) -> dict:
        return {"z": Categorical(logits=torch.zeros(3)), "x": Normal(z.double(), 1.0).log_prob(x)}

    guide = fastvi.guides.AmortizedGuide(lambda x: Categorical(logits=logits.expand(len(x), 3)))
    objective = Reinforce(4, kl="analytic")
    svi = fastvi.SVI(model, guide, torch.optim.SGD([logits]), objective, vectorize=True)
    assert svi.step(X).isfinite()
