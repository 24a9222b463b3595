"""Small deep models for tests: enumerated binary layers, Gaussian ones by quadrature."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy
import torch
from torch import Tensor, nn

import fastvi
from fastvi.models.hierarchical import families
from fastvi.objectives import Objective

K = 2


class Chosen(families.Family):
    """A family whose draws are chosen: values of discrete latents, noise of Gaussian ones."""

    def __init__(self, real: families.Family, chosen: Iterator[Tensor]) -> None:
        self.real = real
        self.chosen = chosen
        self.reparameterised = real.reparameterised
        self.parameters = real.parameters

    def draw(self, given, num_samples, key, sample_offset):
        value = next(self.chosen)
        if num_samples is not None:
            given = tuple(part.expand(num_samples, *part.shape) for part in given)
        if self.reparameterised:
            value = given[0] + torch.exp(0.5 * given[1]) * value
        return value, self.real.log_prob(value, given)

    def log_prob(self, value, given):
        return self.real.log_prob(value, given)

    def mean(self, given):
        return self.real.mean(given)

    def law(self, given):
        return self.real.law(given)


def normal_nodes(points: int) -> list[tuple[Tensor, float]]:
    nodes, weights = numpy.polynomial.hermite_e.hermegauss(points)
    weights = weights / math.sqrt(2 * math.pi)
    return [
        (torch.tensor([n], dtype=torch.float64), w)
        for n, w in zip(nodes.tolist(), weights, strict=True)
    ]


def outcomes(family: str, features: int) -> list[tuple[Tensor, float]]:
    if family == "categorical":
        return [(row, 1.0) for row in torch.eye(features, dtype=torch.float64)]
    return [
        (torch.tensor(bits, dtype=torch.float64), 1.0)
        for bits in itertools.product([0.0, 1.0], repeat=features)
    ]


class AllDraws:
    """Every combination of draws of K samples of every layer, one for each datum of a batch."""

    def __init__(
        self, network: fastvi.HierarchicalVAE, x: Tensor, points: int = 20, num_samples: int = K
    ) -> None:
        self.network = network
        self.num_samples = num_samples
        self.discrete = [layer.family != "gaussian" for layer in network.layers]
        options = [
            outcomes(layer.family, layer.features)
            if discrete
            else [(node.double(), weight) for node, weight in normal_nodes(points)]
            for layer, discrete in zip(network.layers, self.discrete, strict=True)
            for _ in range(num_samples)
        ]
        sizes = [torch.arange(len(option)) for option in options]
        index = torch.cartesian_prod(*sizes).reshape(-1, len(options))
        columns = [
            torch.stack([value for value, _ in option])[index[:, i]]
            for i, option in enumerate(options)
        ]
        weights = [
            torch.tensor([weight for _, weight in option]).double()[index[:, i]]
            for i, option in enumerate(options)
        ]
        self.weight = torch.stack(weights).prod(0)
        self.draws = [
            torch.stack(columns[i : i + num_samples]) for i in range(0, len(columns), num_samples)
        ]
        self.x = x.expand(len(index), -1)

    def run(self, patch, function: Callable[[], object]) -> object:
        draws = iter(self.draws)
        with patch.context() as inner:
            for name, family in list(families.FAMILIES.items()):
                real = family.real if isinstance(family, Chosen) else family
                inner.setitem(families.FAMILIES, name, Chosen(real, draws))
            return function()

    def probability(self, patch) -> Tensor:
        """Of each combination: q of its discrete draws, differentiable, and the nodes' weights."""
        drawn = self.run(patch, lambda: self.network.draw(self.x, self.num_samples))
        log_q = torch.zeros(len(self.x), dtype=torch.float64)
        for discrete, d in zip(self.discrete, drawn.values(), strict=True):
            if discrete:
                log_q = log_q + d.log_q.sum(0)
        return self.weight * log_q.exp()

    def exact_gradient(self, patch, bound: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """The derivative of the mean of the bound, of all that the mean depends on."""
        log_w = self.run(patch, lambda: self.network.log_weights(self.x, self.num_samples))
        return self.gradient((self.probability(patch) * bound(log_w)).sum())

    def mean_gradient(self, patch, objective: Objective) -> list[Tensor]:
        """The mean of the objective's gradient."""
        bounds = self.run(patch, lambda: self.network.bound(self.x, objective))
        return self.gradient((self.probability(patch).detach() * bounds).sum())

    def gradient(self, scalar: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(scalar, list(self.network.parameters())))


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A layer that is not nearly linear in what it feeds: weights of about one."""
    layer = nn.Linear(inputs, outputs, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
    return layer


def gaussian_pair() -> fastvi.HierarchicalVAE:
    """Two Gaussian layers of one number each; the second's spread depends on the first too."""

    def bent(inputs: int, outputs: int) -> nn.Sequential:
        first, last = linear(inputs, 3), linear(3, outputs)
        with torch.no_grad():
            first.weight.mul_(0.5)
            last.weight.mul_(0.3)
            last.bias.mul_(0.3)
        return nn.Sequential(first, nn.Tanh(), last)

    first = fastvi.StochasticLayer("gaussian", 1, guide=bent(2, 2), model=bent(1, 2))
    second = fastvi.StochasticLayer("gaussian", 1, guide=bent(1, 2))
    return fastvi.HierarchicalVAE([first, second], bent(1, 2), likelihood="gaussian")


def belief_network(widths: Sequence[int] = (2, 1), features: int = 2) -> fastvi.HierarchicalVAE:
    first, second = widths
    prior = nn.Parameter(torch.randn(second, dtype=torch.float64))
    return fastvi.HierarchicalVAE(
        [
            fastvi.StochasticLayer(
                "bernoulli", first, guide=linear(features, first), model=linear(second, first)
            ),
            fastvi.StochasticLayer("bernoulli", second, guide=linear(first, second), prior=prior),
        ],
        linear(first, features),
    )


def mixture() -> fastvi.HierarchicalVAE:
    """A class, a Gaussian number given it and the data, and data given both."""
    classes = nn.Parameter(torch.randn(3, dtype=torch.float64))
    return fastvi.HierarchicalVAE(
        [
            fastvi.StochasticLayer(
                "categorical", 3, guide=linear(2, 3), prior=classes, name="class"
            ),
            fastvi.StochasticLayer(
                "gaussian",
                1,
                guide=nn.Sequential(linear(5, 2), nn.Tanh()),
                model=nn.Sequential(linear(3, 2), nn.Tanh()),
                name="style",
                guide_inputs=("x", "class"),
                model_inputs=("class",),
            ),
        ],
        nn.Sequential(linear(4, 2), nn.Tanh()),
        decoder_inputs=("class", "style"),
    )


def gaussian_then_class() -> fastvi.HierarchicalVAE:
    """The guide's chain: a Gaussian number given the data, and a class given the number."""
    return fastvi.HierarchicalVAE(
        [
            fastvi.StochasticLayer(
                "gaussian",
                1,
                guide=nn.Sequential(linear(2, 2), nn.Tanh()),
                model=nn.Sequential(linear(2, 2), nn.Tanh()),
            ),
            fastvi.StochasticLayer("categorical", 2, guide=nn.Sequential(linear(1, 2), nn.Tanh())),
        ],
        nn.Sequential(linear(1, 2), nn.Tanh()),
    )
