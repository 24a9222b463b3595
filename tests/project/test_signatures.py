"""A public call takes two arguments by position, the others by name; operands are the exception."""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pages import PLACES, public

import fastvi
from fastvi import objectives

# ``fastvi.distributions`` has torch's own signatures, so that its classes can stand in for torch's.
FOREIGN = {"fastvi.distributions"}
# What takes more by position, and how many: operands, which have an order that everyone knows.
OPERANDS = {
    "fastvi.elbo_loss": 4,  # q, the likelihood, and the number of samples.
    "fastvi.iwlb_loss": 4,
    "fastvi.SVI": 4,  # As Pyro's SVI has them.
    "fastvi.VAE.load": 3,  # The file and the two networks.
    "fastvi.HierarchicalVAE.load": 3,
    "fastvi.objectives.Latent": 3,  # A name, its samples and their log-density.
    "fastvi.objectives.Latent.draw": 3,
    "fastvi.ops.iwlb": 3,  # Three terms; or the weights, and their dimension as torch.sum has it.
    "fastvi.ops.gaussian_kl": 3,  # q's two tensors and the prior.
    "fastvi.ops.negative_binomial_log_prob": 3,  # A value and its parameters.
    "fastvi.ops.zero_inflated_negative_binomial_log_prob": 4,
    "fastvi.ops.linear_bernoulli_log_prob": 4,  # h, W, b and the value.
    "fastvi.ops.linear_gaussian_log_prob": 4,
    "fastvi.ops.linear_poisson_log_prob": 4,
}
# The same operands in every class: of a loss, of a last layer, and a name, its prior and a value.
OPERANDS_OF_METHODS = {"forward": 3, "log_prob_linear": 4, "prior": 3}
# Records, which users read, and do not make.
RECORDS = {"fastvi.Diagnosis", "fastvi.callbacks.Beginning", "fastvi.callbacks.Epoch"}

BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def modules() -> Iterator[tuple[str, types.ModuleType]]:
    for place in PLACES:
        if place in FOREIGN:
            continue
        try:
            yield place, importlib.import_module(place)
        except ImportError:  # An integration whose library is not installed.
            continue


def calls() -> Iterator[tuple[str, Callable[..., Any], bool]]:
    """Every public function and method of ours: its name, itself, whether it is bound to a self."""
    for place, module in modules():
        for name in public(module):
            value, path = getattr(module, name), f"{place}.{name}"
            if inspect.isfunction(value):
                yield path, value, False
            elif inspect.isclass(value) and path not in RECORDS:
                yield from methods(path, value)


def methods(path: str, kind: type) -> Iterator[tuple[str, Callable[..., Any], bool]]:
    ours = [base for base in kind.__mro__ if base.__module__.startswith("fastvi")]
    for name in {name for base in ours for name in vars(base)}:
        if name != "__init__" and name.startswith("_"):
            continue
        value = inspect.getattr_static(kind, name)
        if isinstance(value, classmethod | staticmethod):
            yield f"{path}.{name}", value.__func__, isinstance(value, classmethod)
        elif inspect.isfunction(value):
            yield path if name == "__init__" else f"{path}.{name}", value, True


def by_position(call: Callable[..., Any], bound: bool) -> list[str]:
    parameters = list(inspect.signature(call).parameters.values())[bound:]
    return [p.name for p in parameters if p.kind in BY_POSITION]


def allowed(path: str) -> int:
    return OPERANDS.get(path, OPERANDS_OF_METHODS.get(path.rpartition(".")[2], 2))


CALLS = {path: (call, bound) for path, call, bound in calls()}


def test_all_rooms_are_walked():
    assert {"fastvi.IWLBLoss", "fastvi.SVI.fit", "fastvi.ops.gaussian_rsample"} <= CALLS.keys()
    assert {
        "fastvi.objectives.Objective.bound",
        "fastvi.guides.Guide.prior",
    } <= CALLS.keys()


@pytest.mark.parametrize("path", sorted(CALLS), ids=sorted(CALLS))
def test_beyond_two_arguments_all_are_named(path: str):
    names = by_position(*CALLS[path])
    assert len(names) <= allowed(path), names[allowed(path) :]


def test_every_exception_is_one():
    """An entry for what has gone, or takes no more than the others, would hide the next one."""
    for path, count in OPERANDS.items():
        if path == "fastvi.ops.iwlb":  # It tells its two ways apart itself.
            continue
        assert len(by_position(*CALLS[path])) == count > 2, path


ONE = torch.zeros(3, 2)
TOO_MANY = {
    "IWLB": lambda: objectives.IWLB(64, "dreg", 1000),
    "IWLBLoss": lambda: fastvi.IWLBLoss(64, "dreg", 1000),
    "ELBO": lambda: objectives.ELBO(4, "auto", "stl"),
    "ELBOLoss": lambda: fastvi.ELBOLoss(4, "auto", 1.0),
    "MIWAE": lambda: objectives.MIWAE(8, 4, "iwae"),
    "MIWAELoss": lambda: fastvi.MIWAELoss(8, 4, "iwae"),
    "PIWAELoss": lambda: fastvi.PIWAELoss(8, 4, "iwae"),
    "CIWAELoss": lambda: fastvi.CIWAELoss(8, 0.5, "iwae"),
    "JackknifeLoss": lambda: fastvi.JackknifeLoss(8, "iwae", 2),
    "NamedBoundLoss": lambda: fastvi.NamedBoundLoss("thermodynamic", 8, "iwae"),
    "iwlb_loss": lambda: fastvi.iwlb_loss(ONE, ONE, lambda z: z.sum(-1), 4, "iwae"),
    "elbo_loss": lambda: fastvi.elbo_loss(ONE, ONE, lambda z: z.sum(-1), 4, "analytic"),
    "a loss's key": lambda: fastvi.IWLBLoss(4)(ONE, ONE, lambda z: z.sum(-1), torch.tensor([1, 2])),
    "Objective": lambda: objectives.Objective(4, 2),
    "VIMCO": lambda: objectives.VIMCO(4, 2),
    "Latent": lambda: objectives.Latent("z", ONE, ONE.sum(-1), False),
    "Term": lambda: objectives.Term(ONE, None, ("z",)),
    "path_weights": lambda: objectives.path_weights(ONE, "dreg", 0.5),
    "gradient_snr": lambda: fastvi.gradient_snr(lambda key: ONE.sum(), [ONE], 10),
    "MeanFieldGaussian": lambda: fastvi.guides.MeanFieldGaussian({"a": ()}, None, {}),
}


@pytest.mark.parametrize("call", TOO_MANY.values(), ids=TOO_MANY)
def test_a_third_argument_by_position_is_a_type_error(call: Callable[[], object]):
    with pytest.raises(TypeError, match="positional argument|by position"):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: fastvi.ELBOLoss(estimator="total"),
        lambda: objectives.ELBO(2, estimator="total"),
        lambda: fastvi.IWLBLoss(2, "total"),
        lambda: fastvi.MIWAELoss(2, 2, estimator="total"),
    ],
    ids=["ELBOLoss", "ELBO", "IWLBLoss", "MIWAELoss"],
)
def test_the_total_derivative_has_one_name(call: Callable[[], object]):
    with pytest.raises(ValueError, match="estimator to be one of .*'iwae'.*, got 'total'"):
        call()


@pytest.mark.parametrize(
    "make",
    [fastvi.ELBOLoss, objectives.ELBO, objectives.Reinforce],
    ids=["ELBOLoss", "ELBO", "Reinforce"],
)
def test_kl_has_the_same_words_everywhere(make: Callable[..., Any]):
    assert [make(2, kl=kl).kl for kl in ("auto", "analytic", "monte_carlo")]
    with pytest.raises(ValueError, match="kl to be one of 'auto', 'analytic', 'monte_carlo', got"):
        make(2, kl="sampled")


GROUP = (
    "group: a ``torch.distributed`` process group whose ranks share the samples, each with its "
    "share of the gradient until :func:`fastvi.sum_gradients` adds them."
)
# Without a gradient, and what adds the shares up.
WITHOUT_SHARES = ("log_evidence", "sum_gradients")


def test_group_means_one_thing_everywhere():
    told, untold = [], []
    for place, module in modules():
        for name in public(module):
            kind = getattr(module, name)
            members = [(name, kind)]
            if inspect.isclass(kind):
                members += inspect.getmembers(kind, inspect.isfunction)
            for label, call in members:
                if label in WITHOUT_SHARES or label.startswith("__"):
                    continue
                ours = str(getattr(call, "__module__", "")).startswith("fastvi")
                if not ours or not callable(call) or "group" not in _parameters(call):
                    continue
                doc = " ".join((call.__doc__ or "").split())
                (told if GROUP in doc else untold).append(f"{place}.{name} {label}")
    assert len(told) >= 14
    # Its docstring says that its arguments are those of MIWAE.
    assert untold == ["fastvi.objectives.PIWAE PIWAE"]


def _parameters(call: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(call).parameters)
    except ValueError:  # torch's own, written in C.
        return []
