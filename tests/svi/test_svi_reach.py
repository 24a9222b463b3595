"""What SVI sees: modules and parameters wherever a model keeps them."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import types
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from quick import quick_in
from torch import Tensor, nn
from torch.distributions import Independent, Normal

import fastvi
from fastvi.objectives import ELBO, IWLB, Reinforce
from fastvi.svi.finding import find_parts

SGD = functools.partial(torch.optim.SGD, lr=0.05)
# Exchanged by the tests: what functions of this file name.
NET = nn.Linear(2, 2)
NETS = types.ModuleType("nets")


class Plain:
    """No module, but it has one."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def q(self, x: Tensor) -> Independent:
        return normal(self.net(x))


class Nested:
    def __init__(self, net: nn.Module) -> None:
        self.parts = {"encoder": types.SimpleNamespace(inner=Plain(net))}

    def q(self, x: Tensor) -> Independent:
        return self.parts["encoder"].inner.q(x)


class Slots:
    __slots__ = ("__private", "unset")

    def __init__(self, net: nn.Module) -> None:
        self.__private = net

    def __call__(self, x: Tensor) -> Independent:
        return normal(self.__private(x))


@dataclasses.dataclass(frozen=True)
class Data:
    net: nn.Module

    def q(self, x: Tensor) -> Independent:
        return normal(self.net(x))


Row = collections.namedtuple("Row", ["net", "scale"])


class InItsClass:
    nets: dict = {}

    @classmethod
    def q(cls, x: Tensor) -> Independent:
        return normal(cls.nets["a"](x))


class ByOtherMethods:
    """Its own method names nothing; a property and a method that it uses do."""

    @property
    def net(self) -> nn.Module:
        return self.look_up()

    def look_up(self) -> nn.Module:
        return NET

    def q(self, x: Tensor) -> Independent:
        return normal(self.net(x))


class Untouched:
    """Whatever runs here would be a fault."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self.me = self

    @property
    def data(self):
        raise AssertionError("a property ran")

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        raise AssertionError(f"__getattr__ ran for {name}")

    def __iter__(self):
        raise AssertionError("__iter__ ran")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("__eq__ ran")

    __hash__ = None  # type: ignore[assignment]

    def q(self, x: Tensor) -> Independent:
        return normal(self._net(x))


class Names(nn.Module):
    """A module whose own code works with another one."""

    def forward(self, x: Tensor) -> Independent:
        return normal(NET(x))


def normal(loc: Tensor) -> Independent:
    return Independent(Normal(loc, 1.0), 1)


def of_file(x: Tensor) -> Independent:
    return normal(NET(x))


def of_other_file(x: Tensor) -> Independent:
    return normal(NETS.inner.net(x))


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


def closing_over(part):
    def q(x: Tensor) -> Independent:
        return normal(part["rows"][0].net(x))

    return q


def using(part, get):
    return lambda x: normal(get(part)(x))


def with_default(x: Tensor, net=None, *, scale=None) -> Independent:
    return normal(net(x))


def joint(z: Tensor, x: Tensor) -> Tensor:
    return -(z**2).sum(-1)


def in_module_of_file(net: nn.Module):
    NETS.inner = types.ModuleType("nets.inner")
    NETS.inner.net = net
    return of_other_file


def in_its_class(net: nn.Module):
    InItsClass.nets = {"a": net}
    return InItsClass.q


def in_a_cycle(net: nn.Module):
    part: dict = {"rows": [Row(net, 1.0)]}
    part["me"] = part
    part["rows"].append(part)
    return closing_over(part)


def under_a_name(make):
    def made(net: nn.Module):
        globals()["NET"] = net
        return make()

    return made


def among_many(net: nn.Module):
    many = [*range(5000), net, *([0.5],) * 5000]
    return lambda x: normal(many[5000](x))


KINDS = {
    "bound method": (lambda net: Plain(net).q, "self.net"),
    "method of nested objects": (lambda net: Nested(net).q, "self.parts.encoder.inner.net"),
    "slots": (lambda net: Slots(net), "_Slots__private"),
    "dataclass": (lambda net: Data(net).q, "self.net"),
    "namespace": (lambda net: using(types.SimpleNamespace(net=net), lambda n: n.net), "part.net"),
    "argparse": (lambda net: using(argparse.Namespace(net=net), lambda n: n.net), "part.net"),
    "cycle of containers": (in_a_cycle, "part.rows.0.net"),
    "partial of a partial": (lambda net: functools.partial(functools.partial(
        with_default, net=net), scale=1.0), "keywords.net"),
    "partial of a method": (lambda net: functools.partial(lambda q, x: q(x), Plain(net).q),
                            "args.0.self.net"),
    "decorated": (lambda net: decorated(decorated(Plain(net).q)), "function.self.net"),
    "cached": (lambda net: functools.lru_cache(Plain(net).q), "__wrapped__.self.net"),
    "without gradients": (lambda net: torch.enable_grad()(Plain(net).q), "self.net"),
    "default": (lambda net: (lambda x, n=net: normal(n(x))), "defaults.0"),
    "keyword default": (lambda net: (lambda x, *, n=net: normal(n(x))), "defaults.n"),
    "deque": (lambda net: using(collections.deque([net]), lambda d: d[0]), "part.0"),
    "set": (lambda net: using(frozenset({net}), lambda s: next(iter(s))), "part.0"),
    "user dict": (lambda net: using(collections.UserDict(a=net), lambda d: d["a"]), "part.data.a"),
    "weak reference": (lambda net: using(weakref.ref(net), lambda r: r()), "part.target"),
    "name of the file": (under_a_name(lambda: of_file), "NET"),
    "comprehension": (under_a_name(lambda: lambda x: [normal(NET(x)) for _ in "a"][0]), "NET"),
    "other methods": (under_a_name(lambda: ByOtherMethods().q), "look_up.func.NET"),
    "module's own code": (under_a_name(Names), "forward.func.NET"),
    "name in a Python module": (in_module_of_file, "NETS.inner.net"),
    "class attribute": (in_its_class, "nets.a"),
    "a long list": (among_many, "many.5000"),
    "nothing runs": (lambda net: Untouched(net).q, "self._net"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_training_evaluation_and_names(kind: str):
    """Its parameters are trained, its dropout is off in evaluate, its name says where it is."""
    make, place = KINDS[kind]
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.BatchNorm1d(2))
    q = make(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svi = fastvi.SVI(joint, q, SGD, IWLB(3))
        assert {id(p) for p in svi.optimized()} == {id(p) for p in net.parameters()}
        (name,) = (name for name, part in svi.modules().items() if part is net)
        assert place in name
        seen = []
        net.register_forward_hook(lambda *_: seen.append(net[1].training))
        running = net[2].running_mean.clone()
        x = torch.randn(5, 2) + 1.0
        svi.evaluate(x)
        assert seen == [False] and net[1].training
        assert torch.equal(net[2].running_mean, running)
        before = net[0].weight.detach().clone()
        svi.step(x.clone())
        assert seen[-1] and not torch.equal(net[0].weight, before)


class Stop(Exception):
    """In place of a kill."""


@pytest.mark.parametrize(
    "kind", quick_in(["bound method", "method of nested objects", "slots"], "slots")
)
@pytest.mark.parametrize("role", ["model", "guide"], ids=str)
def test_a_resumed_run_is_the_whole_run(tmp_path: Path, kind: str, role: str):
    """With the buffers, and with a generator that the model has for itself."""
    data = torch.randn(40, 2)

    def run(path: Path, stop: int = -1) -> tuple[dict, list[Tensor]]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        found, own = KINDS[kind][0](net), torch.Generator().manual_seed(3)
        free = torch.zeros(2, requires_grad=True)

        def model(z: Tensor, x: Tensor) -> Tensor:
            noise = torch.randn(2, generator=own)
            loc = found(x).mean if role == "model" else 0.0
            return -((z - loc - free - noise) ** 2).sum(-1)

        scale = nn.Parameter(torch.zeros(2))
        guide = found if role == "guide" else (lambda x: normal(x * scale))
        steps = 0
        svi = fastvi.SVI(model, guide, functools.partial(torch.optim.Adam, lr=0.01), IWLB(4))
        step = svi.step

        def stopping(batch):
            nonlocal steps
            steps += 1
            if steps == stop:
                raise Stop
            return step(batch)

        svi.step = stopping
        try:
            svi.fit(data, 3, batch_size=8, checkpoint=path, checkpoint_every=2, resume=True)
        except Stop:
            pass
        return net.state_dict(), svi.optimized()

    state, optimised = run(tmp_path / "whole.pt")
    run(tmp_path / "parts.pt", stop=8)
    resumed_state, resumed = run(tmp_path / "parts.pt")
    for name, value in state.items():
        assert torch.equal(value, resumed_state[name]), name
    for a, b in zip(optimised, resumed, strict=True):
        assert torch.equal(a, b)


def test_tensors_by_themselves_and_behind_distributions():
    """Parameters, leaves that are trained, and those that a stored tensor was computed from."""
    loc, scale = nn.Parameter(torch.zeros(1)), torch.zeros(2, requires_grad=True)
    data, frozen = torch.zeros(2), nn.Parameter(torch.zeros(2), requires_grad=False)
    prior = Normal(loc, torch.nn.functional.softplus(scale))

    def model(z: Tensor, x: Tensor) -> Tensor:
        return prior.log_prob(z).sum(-1) + (z * data * frozen).sum(-1)

    found = find_parts("svi", model)
    assert {id(part) for part in found.values()} == {id(loc), id(scale), id(frozen)}
    svi = fastvi.SVI(model, lambda x: normal(x + loc), SGD, ELBO(2))
    assert {id(p) for p in svi.optimized()} == {id(loc), id(scale)}


def test_a_likelihood_and_the_networks_of_baselines():
    vae = fastvi.VAE(nn.Linear(6, 4), nn.Linear(2, 6), likelihood="gaussian")
    prior = (nn.Parameter(torch.zeros(2)), torch.zeros(2, requires_grad=True))
    with_prior = fastvi.VAE(nn.Linear(6, 4), nn.Linear(2, 6), prior=prior)
    for model in (vae, with_prior):
        svi = fastvi.SVI(*model.as_model_and_guide(), SGD, IWLB(3))
        assert {id(p) for p in model.parameters()} <= {id(p) for p in svi.optimized()}
    assert {id(part) for part in prior} <= {id(p) for p in svi.optimized()}
    baseline = nn.Linear(2, 1)
    svi = fastvi.SVI(joint, lambda x: normal(NET(x)), SGD, Reinforce(2, baseline))
    assert {id(p) for p in baseline.parameters()} <= {id(p) for p in svi.optimized()}


def test_names_are_those_of_another_process():
    """They hold no address and no order of a set."""

    def setting(first: bool) -> dict:
        parts = [nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(4, 4)]
        keys = [object(), object(), object()]
        model = Plain(
            {
                "set": set(parts if first else parts[::-1]),
                "keys": dict(zip(keys, parts, strict=True)),
            }
        )
        return {name: str(part) for name, part in find_parts("svi", model.q).items()}

    assert setting(True) == setting(False)


def test_a_set_of_alike_modules_has_no_checkpoint(tmp_path: Path):
    nets = {nn.Linear(2, 2), nn.Linear(2, 2)}
    svi = fastvi.SVI(joint, lambda x: normal(sum(n(x) for n in nets)), SGD, IWLB(3))
    assert len(svi.optimized()) == 4
    with pytest.raises(ValueError, match="in lists or mappings.*no order: svi.guide.*nets"):
        svi.fit(torch.zeros(4, 2), checkpoint=tmp_path / "run.pt")


def test_code_without_a_file_and_a_file_with_a_name_of_pythons():
    """What exec has made says that it is of builtins."""
    text = """
class Model:
    __slots__ = ("net",)
    nets = None
    def __init__(self, net): self.net = net
    def q(self, x): return normal(self.net(x) + OTHER(x))
"""
    net, other = nn.Linear(2, 2), nn.Linear(2, 2)
    for names in ({}, {"__name__": "builtins"}, {"__name__": "__main__"}):
        exec(text, space := names | {"OTHER": other, "normal": normal})
        found = find_parts("svi", space["Model"](net).q)
        assert {id(part) for part in found.values()} == {id(net), id(other)}


def test_lazy_layers_are_resumed(tmp_path: Path):
    def run(epochs: int) -> list[Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.LazyLinear(3), nn.Tanh(), nn.LazyLinear(2))
        svi = fastvi.SVI(joint, Plain(net).q, functools.partial(torch.optim.Adam, lr=0.1), IWLB(3))
        svi.fit(torch.ones(6, 4)[:, :2], epochs, checkpoint=tmp_path / f"{name}.pt", resume=True)
        return svi.optimized()

    name = "parts"
    run(2)
    resumed = run(4)
    name = "whole"
    for a, b in zip(run(4), resumed, strict=True):
        assert torch.equal(a, b)
