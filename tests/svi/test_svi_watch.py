"""Parameters that no optimiser moves, and optimisers that move nothing: named, once."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

import fastvi
from fastvi.objectives import IWLB

SGD = functools.partial(torch.optim.SGD, lr=0.05)


class Plain:
    """No module, but it has one."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def q(self, x: Tensor) -> Independent:
        return Independent(Normal(self.net(x), 1.0), 1)


def joint(z: Tensor, x: Tensor) -> Tensor:
    return -(z**2).sum(-1)


def two() -> tuple[Plain, Plain]:
    return Plain(nn.Linear(2, 2)), Plain(nn.Linear(2, 2))


def of(encoder: Plain, decoder: Plain, optimizer) -> fastvi.SVI:
    def model(z: Tensor, x: Tensor) -> Tensor:
        return -((decoder.net(z) - x) ** 2).sum(-1)

    return fastvi.SVI(model, encoder.q, optimizer, IWLB(3))


def test_parameters_in_no_optimizer_are_named_once():
    encoder, decoder = two()
    svi = of(encoder, decoder, torch.optim.SGD(encoder.net.parameters(), 0.1))
    says = r"in no optimizer.*svi.model.decoder.net.bias, svi.model.decoder.net.weight; add them"
    with pytest.warns(UserWarning, match=says):
        svi.step(torch.ones(4, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svi.step(torch.ones(4, 2))
        svi.evaluate(torch.ones(4, 2))
    decoder.net = nn.Linear(2, 2)
    model = svi.model
    svi.model = lambda z, x: model(z, x)
    with pytest.warns(UserWarning, match=says.replace("svi.model", "svi.model.model")):
        svi.step(torch.ones(4, 2))


def test_a_parameter_that_nothing_reaches_is_told_of_by_its_shape():
    net = nn.Linear(2, 2)
    hidden = iter([nn.Parameter(torch.zeros(7))] * 2)
    svi = fastvi.SVI(
        lambda z, x: joint(z, x) + next(hidden).sum(), Plain(net).q, SGD(net.parameters()), IWLB(3)
    )
    with pytest.warns(UserWarning, match=r"a parameter of shape \[7\]"):
        svi.step(torch.ones(4, 2))


def test_an_optimizer_of_other_parameters_is_told_of():
    encoder, decoder = two()
    others = torch.optim.Adam(nn.Linear(2, 2).parameters())
    decoder.net.requires_grad_(False)
    every = torch.optim.SGD(encoder.net.parameters(), 0.1)
    with pytest.warns(UserWarning, match="no parameter of Adam gets a gradient"):
        of(encoder, decoder, [every, others]).step(torch.ones(4, 2))


def groups(encoder: nn.Module, decoder: nn.Module):
    first, second = list(encoder.parameters()), list(decoder.parameters())
    return torch.optim.SGD([{"params": first}, {"params": second, "lr": 0.2}], lr=0.1)


def several(encoder: nn.Module, decoder: nn.Module) -> list:
    return [torch.optim.Adam(encoder.parameters()), SGD(decoder.parameters())]


def frozen(encoder: nn.Module, decoder: nn.Module):
    decoder.requires_grad_(False)
    return SGD(encoder.parameters())


def more_than_needed(encoder: nn.Module, decoder: nn.Module):
    return SGD([*encoder.parameters(), *decoder.parameters(), *nn.Linear(3, 3).parameters()])


@pytest.mark.parametrize(
    "make",
    [groups, several, frozen, more_than_needed, lambda *_: SGD],
    ids=["groups", "several", "frozen", "more than needed", "made of what is found"],
)
def test_no_false_warnings(make):
    encoder, decoder = two()
    svi = of(encoder, decoder, make(encoder.net, decoder.net))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svi.step(torch.ones(4, 2).requires_grad_())
        svi.objective = IWLB(4, chunk_size=2)
        svi.step(torch.ones(4, 2))
