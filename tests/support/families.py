"""Families in every role, by every estimator: what docs/families.md says, and its test runs."""

from __future__ import annotations

import contextlib
import functools
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyro.distributions.transforms as pyro_transforms
import torch
import zuko
from torch import Tensor, nn
from torch import distributions as d
from torch.distributions import Distribution, Independent

import fastvi
from fastvi.models.hierarchical.families import FAMILIES as NAMES
from fastvi.objectives import ELBO, IWLB, VIMCO, Latent, Reinforce

FEATURES, K, B = 2, 4, 3
Make = Callable[[Tensor, Tensor], Distribution]


@dataclass(frozen=True)
class Row:
    """A family of vectors, from two parameters of any real numbers, shape (*batch, 2) each."""

    make: Make
    # The family's name in StochasticLayer, where it has one.
    layer: str | None = None
    # What it learns beside the two.
    modules: tuple[nn.Module, ...] = ()
    # Whether its density is known at any value, not only at those that it drew itself.
    is_density: bool = True


def _each(kind: Callable[..., Distribution], *maps: Callable[[Tensor], Tensor]) -> Make:
    """Of each number by itself: the parameters through these functions."""

    def make(a: Tensor, b: Tensor) -> Distribution:
        given = [f(x) for f, x in zip(maps, (a, b), strict=False)]
        return Independent(kind(*given), 1)

    return make


def _same(x: Tensor) -> Tensor:
    return x


_positive = torch.nn.functional.softplus


def _above_two(x: Tensor) -> Tensor:
    return 2.0 + _positive(x)


def _chain(*transforms: d.Transform) -> Make:
    return lambda a, b: d.TransformedDistribution(
        Independent(d.Normal(a, _positive(b)), 1), list(transforms)
    )


def _mixture(a: Tensor, b: Tensor) -> Distribution:
    parts = Independent(
        d.Normal(torch.stack([a, a + 1.0], -2), 1.0 + _positive(b)[..., None, :]), 1
    )
    return d.MixtureSameFamily(d.Categorical(logits=b), parts)


def _of_flow(flow: nn.Module) -> Row:
    return Row(lambda a, b: flow(torch.cat([a, b], -1)), modules=(flow,))


def _of_pyro(transform: nn.Module, is_density: bool = True) -> Row:
    return Row(_chain(transform), modules=(transform,), is_density=is_density)


def _shifted(a: Tensor, b: Tensor) -> Distribution:
    move = d.AffineTransform(a, _positive(b))
    return Independent(d.TransformedDistribution(d.Exponential(torch.ones_like(a)), [move]), 1)


@functools.cache
def rows() -> dict[str, Row]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {
            "Normal": Row(_each(d.Normal, _same, _positive), "gaussian"),
            "Laplace": Row(_each(d.Laplace, _same, _positive), "laplace"),
            "Cauchy": Row(_each(d.Cauchy, _same, _positive)),
            "StudentT": Row(_each(d.StudentT, _above_two, _same)),
            "Gumbel": Row(_each(d.Gumbel, _same, _positive)),
            "LogNormal": Row(_each(d.LogNormal, _same, _positive)),
            "Gamma": Row(_each(d.Gamma, _above_two, _positive)),
            "InverseGamma": Row(_each(d.InverseGamma, _above_two, _positive)),
            "Weibull": Row(_each(d.Weibull, _positive, _above_two)),
            "Exponential": Row(_each(d.Exponential, _positive)),
            "HalfNormal": Row(_each(d.HalfNormal, _positive)),
            "HalfCauchy": Row(_each(d.HalfCauchy, _positive)),
            "Beta": Row(_each(d.Beta, _above_two, _above_two)),
            "Kumaraswamy": Row(_each(d.Kumaraswamy, _above_two, _above_two)),
            "ContinuousBernoulli": Row(lambda a, b: Independent(
                d.ContinuousBernoulli(logits=a), 1)),
            "Uniform, learned": Row(lambda a, b: Independent(d.Uniform(a, a + _positive(b)), 1)),
            "Pareto": Row(_each(d.Pareto, _positive, _above_two)),
            "Exponential, shifted": Row(_shifted),
            "VonMises": Row(_each(d.VonMises, _same, _positive)),
            "Dirichlet": Row(lambda a, b: d.Dirichlet(_above_two(a))),
            "LogisticNormal": Row(lambda a, b: d.LogisticNormal(a[..., :1], _positive(b[..., :1]))),
            "MultivariateNormal": Row(lambda a, b: d.MultivariateNormal(
                a, scale_tril=torch.diag_embed(_positive(b)))),
            "LowRankMultivariateNormal": Row(lambda a, b: d.LowRankMultivariateNormal(
                a, a[..., None], _positive(b))),
            "RelaxedBernoulli": Row(lambda a, b: Independent(
                d.RelaxedBernoulli(torch.tensor(0.7), logits=a), 1)),
            "RelaxedOneHotCategorical": Row(lambda a, b: d.RelaxedOneHotCategorical(
                torch.tensor(0.7), logits=a)),
            "TransformedDistribution: tanh": Row(_chain(d.TanhTransform(cache_size=1))),
            "TransformedDistribution: sigmoid, power": Row(_chain(
                d.SigmoidTransform(), d.PowerTransform(torch.tensor(2.0)))),
            "MixtureSameFamily": Row(_mixture),
            "Bernoulli": Row(lambda a, b: Independent(d.Bernoulli(logits=a), 1), "bernoulli"),
            "OneHotCategorical": Row(lambda a, b: d.OneHotCategorical(logits=a), "categorical"),
            "OneHotCategoricalStraightThrough": Row(
                lambda a, b: d.OneHotCategoricalStraightThrough(logits=a)),
            "Poisson": Row(_each(d.Poisson, _positive), "poisson"),
            "Geometric": Row(lambda a, b: Independent(d.Geometric(logits=a), 1)),
            "NegativeBinomial": Row(lambda a, b: Independent(
                d.NegativeBinomial(_above_two(a), logits=b), 1), "negative_binomial"),
            "ZeroInflatedNegativeBinomial (fastvi)": Row(lambda a, b: Independent(
                fastvi.distributions.ZeroInflatedNegativeBinomial(
                    mean=_positive(a), dispersion=_positive(b), gate_logits=torch.zeros_like(a)),
                1), "zero_inflated_negative_binomial"),
            "zuko NICE": _of_flow(zuko.flows.NICE(2, 4, transforms=1)),
            "zuko MAF": _of_flow(zuko.flows.MAF(2, 4, transforms=1)),
            "zuko NSF": _of_flow(zuko.flows.NSF(2, 4, transforms=1)),
            "zuko GMM": _of_flow(zuko.flows.GMM(2, 4, components=2)),
            "Pyro spline": _of_pyro(pyro_transforms.spline(2)),
            "Pyro affine_autoregressive": _of_pyro(pyro_transforms.affine_autoregressive(2)),
            "Pyro planar": _of_pyro(pyro_transforms.planar(2), is_density=False),
        }  # fmt: skip


# ---- roles ---------------------------------------------------------------------------------------
class Returning(nn.Module):
    """Two learned parameters as a distribution: of everything, or of each datum alike."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.row = row
        self.modules_of = nn.ModuleList(row.modules)
        self.given = nn.Parameter(torch.tensor([0.3, -0.2, 0.1, 0.4]))

    def forward(self, x: Tensor | None = None) -> Distribution:
        given = self.given if x is None else self.given.expand(len(x), -1)
        return self.row.make(*given.chunk(2, -1))


OBJECTIVES = {
    "iwae": lambda: IWLB(K, "iwae"),
    "dreg": lambda: IWLB(K, "dreg"),
    "stl": lambda: ELBO(K, estimator="stl"),
    "rws": lambda: IWLB(K, "rws"),
    "VIMCO": lambda: VIMCO(K),
    "Reinforce": lambda: Reinforce(K),
}
ROLES = [
    *(f"guide, `{name}`" for name in OBJECTIVES),
    "prior",
    "likelihood",
    *(f"layer, `{name}`" for name in ("iwae", "dreg", "VIMCO")),
]


def run(family: str, role: str) -> None:
    """Take one step in a role; what is refused raises."""
    row = rows()[family]
    part, _, objective = role.replace("`", "").partition(", ")
    torch.manual_seed(1)
    {"guide": _as_guide, "prior": _as_prior, "likelihood": _as_likelihood, "layer": _as_layer}[
        part
    ](row, objective)


def _as_guide(row: Row, objective: str) -> None:
    guide = Returning(row)
    q = guide(torch.randn(B, 3))
    latent = Latent.draw("z", q, K, path=objective in ("dreg", "stl"))

    def log_joint(z):
        return -0.1 * (z["z"] ** 2).sum(-1)

    OBJECTIVES[objective]().bound([latent], log_joint).sum().backward()
    _check_gradients(guide)


def _as_prior(row: Row, _: str) -> None:
    # A guide with the same parameters has the same support; its score needs no derivative by z.
    vae = fastvi.VAE(Returning(row), nn.Linear(2, 3), likelihood="gaussian",
                     prior=Returning(row))  # fmt: skip
    vae.loss(torch.randn(B, 3), VIMCO(K)).backward()
    _check_gradients(vae.prior_module)
    vae.sample(2)


def _as_likelihood(row: Row, _: str) -> None:
    decoder = nn.Linear(2, 2 * FEATURES)
    with torch.no_grad():
        decoder.weight.mul_(1e-3)  # of a support that moves, x is to stay in it

    def likelihood(output: Tensor) -> Distribution:
        return row.make(*output.chunk(2, -1))

    with torch.no_grad():
        x = likelihood(decoder.bias.expand(B, -1)).sample()
    vae = fastvi.VAE(nn.Linear(2, 4), decoder, likelihood=likelihood)
    vae.loss(x, fastvi.IWLBLoss(K)).backward()
    _check_gradients(decoder)


def _as_layer(row: Row, objective: str) -> None:
    if row.layer is None:
        guide, prior = Returning(row), Returning(row) if row.is_density else None
    else:
        guide, prior = nn.Linear(3, FEATURES * len(NAMES[row.layer].parameters)), None
    layer = fastvi.StochasticLayer(row.layer, FEATURES, guide=guide, prior=prior)
    network = fastvi.HierarchicalVAE([layer], nn.Linear(2, 3), likelihood="gaussian")
    network.loss(torch.randn(B, 3), OBJECTIVES[objective]()).backward()
    _check_gradients(guide)


def _check_gradients(module: nn.Module) -> None:
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    assert grads and all(bool(g.isfinite().all()) for g in grads)
    assert any(bool(g.abs().max() > 0) for g in grads)


@contextlib.contextmanager
def checks() -> Iterator[None]:
    """Check arguments, as torch does; Pyro and zuko set it for the process when imported."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(True)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def refusal(family: str, role: str) -> str | None:
    """What a family is refused with in a role; None where it works."""
    with warnings.catch_warnings(), checks():
        warnings.simplefilter("ignore")
        try:
            run(family, role)
        except (ValueError, NotImplementedError) as error:
            return _general(str(error))
        except KeyError:
            return "the density of a value that it did not draw needs an inverse, and it has none"
    return None


def _general(words: str) -> str:
    """The words without the place and the name, so that one note serves all families."""
    words = words.split("\n")[0]
    words = re.sub(r"^\w+( '\w+')?: ", "", words)
    words = re.sub(r"log q constant, got [^:;]*", "log q constant", words)
    return re.sub(r"latent '\w+'|the guide( of layer '\w+')?|layer '\w+'", "the latent", words)


def page() -> str:
    """Each family in each role."""
    notes: list[str] = []
    lines = [
        "# Families, roles, estimators",
        "",
        "Every family below takes a step in every role where a cell says `yes`; its gradient is",
        "held against quadrature, or against a copy with detached parameters, by the tests. A",
        "number stands for the words with which it is refused. The families are those of",
        "`torch.distributions`, Pyro's and fastvi's among them; zuko's are flows with a context.",
        "",
        "- *guide*: q in `SVI`, what `VAE`'s encoder returns, a site of a guide in `Trace_IWLB`.",
        "- *prior*: `VAE(prior=...)`, a module that returns it, learned with the model.",
        "- *likelihood*: a function from the decoder's output to it.",
        "- *layer*: of a `HierarchicalVAE`, by its name where it has one, else by networks that",
        "  return it.",
        "",
        f"| family | {' | '.join(ROLES)} |",
        "|---|" + "---|" * len(ROLES),
    ]
    for family in rows():
        entries = []
        for role in ROLES:
            words = refusal(family, role)
            if words is not None and words not in notes:
                notes.append(words)
            entries.append("yes" if words is None else str(notes.index(words) + 1))
        lines.append(f"| {family} | {' | '.join(entries)} |")
    lines += ["", *(f"{number}. {words}" for number, words in enumerate(notes, 1))]
    return "\n".join(lines) + "\n"
