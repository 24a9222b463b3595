"""The content of a checkpoint: all that the rest of a run depends on, by stable names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastvi.files import saved as files
from fastvi.svi.finding import NO_ORDER
from fastvi.svi.fitted import Fitted

FORMAT = 3
WHAT = "a checkpoint of SVI.fit"
_KEYS = {"settings", "parameters", "optimizers", "schedulers", "random", "own", "state"}


def parameters_of(svi: Fitted) -> dict[str, dict[str, Any]]:
    """Return the parameters and buffers: the modules' states, and tensors outside of modules."""
    modules = {name: part.state_dict() for name, part in svi.modules().items()}
    held = {
        id(value)
        for part in svi.modules().values()
        for value in part.state_dict(keep_vars=True).values()
    }
    return {
        "modules": modules,
        "tensors": {n: p.detach() for n, p in _tensors(svi).items() if id(p) not in held},
    }


def copy_of(parameters: Any) -> Any:
    """Return a copy whose tensors do not change in further steps."""
    if isinstance(parameters, Tensor):
        return parameters.detach().clone()
    if isinstance(parameters, Mapping):
        return {name: copy_of(part) for name, part in parameters.items()}
    return parameters


def check_parameters(svi: Fitted, state: Mapping[str, Any], where: str) -> None:
    """Refuse the parameters of another model, and say which one differs."""
    mine = parameters_of(svi)
    _check_names(f"{where} to hold the modules", mine["modules"], state["modules"])
    for name, own in mine["modules"].items():
        saved = state["modules"][name]
        _check_names(f"{where} to hold, of {name},", own, saved)
        for key, value in own.items():
            _check_like(f"{where} to hold {name}.{key}", value, saved[key])
    _check_names(f"{where} to hold the parameters", mine["tensors"], state["tensors"])
    for name, value in mine["tensors"].items():
        _check_like(f"{where} to hold {name}", value, state["tensors"][name])


def set_parameters(svi: Fitted, state: Mapping[str, Any]) -> None:
    tensors = _tensors(svi)
    for name, part in svi.modules().items():
        own = part.state_dict()
        # The state keeps the versions of the layers that made it.
        own.update(state["modules"][name])
        part.load_state_dict(own)
    with torch.no_grad():
        for name, value in state["tensors"].items():
            tensors[name].copy_(value)


def optimizers_of(svi: Fitted) -> list[dict[str, Any]]:
    names = svi.names()
    return [
        {
            "kind": type(one).__name__,
            "names": [[names[id(p)] for p in group["params"]] for group in one.param_groups],
            "state": one.state_dict(),
        }
        for one in svi.optimizers()
    ]


def check_optimizers(svi: Fitted, saved: Sequence[Mapping[str, Any]], where: str) -> None:
    mine = optimizers_of(svi)
    if len(mine) != len(saved):
        raise ValueError(f"{where} to hold {len(mine)} optimizers, got {len(saved)}")
    for own, other in zip(mine, saved, strict=True):
        if own["kind"] != other["kind"]:
            raise ValueError(
                f"{where} to have been made with optimizer = {own['kind']}, got {other['kind']}"
            )
        if own["names"] != other["names"]:
            raise ValueError(
                f"{where} to hold an optimizer of {own['names']}, got one of {other['names']}"
            )


def set_optimizers(svi: Fitted, saved: Sequence[Mapping[str, Any]]) -> None:
    for one, other in zip(svi.optimizers(), saved, strict=True):
        one.load_state_dict(other["state"])
        parameters = [p for group in one.param_groups for p in group["params"]]
        for number, state in other["state"]["state"].items():
            # torch converts a state to the parameter's type, which loses bits if the types differ.
            parameter = parameters[number]
            one.state[parameter] = {
                key: _as_saved(value, one.state[parameter].get(key)) for key, value in state.items()
            }


def random_state(generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """Return the states of torch's generators and of the given ones."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "cpu": torch.get_rng_state(),
        "cuda": cuda,
        "own": [generator.get_state() for generator in generators],
    }


def set_random_state(state: Mapping[str, Any], generators: Sequence[torch.Generator]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    for generator, own in zip(generators, state["own"], strict=True):
        generator.set_state(own)


def check_names_stay(svi: Fitted) -> None:
    """Refuse names that may belong to another part in another process."""
    unordered = [name for name in svi.names().values() if NO_ORDER in name]
    unordered += [name for name in svi.modules() if NO_ORDER in name]
    if unordered:
        raise ValueError(
            f"SVI.fit: expected modules and parameters to be in lists or mappings, for a "
            f"checkpoint to tell them apart, got alike ones in a set, which has no order: "
            f"{', '.join(sorted(set(unordered)))}"
        )


def save(path: Path, content: Mapping[str, Any]) -> None:
    try:
        files.save(path, {"format": FORMAT, **content})
    except TypeError as error:
        raise TypeError(f"SVI.fit: {error}") from error


def load(path: Path) -> dict[str, Any]:
    """Read a file, and refuse a file of another kind or of another version."""
    content = files.load("SVI.fit", path, WHAT)
    expected = f"SVI.fit: expected {path} to be {WHAT}"
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError(f"{expected}, it is not: it holds something else")
    if content["format"] != FORMAT:
        raise ValueError(
            f"{expected}, of format {FORMAT}, got format {content['format']!r}, that of another "
            f"version of fastvi"
        )
    if missing := sorted(_KEYS - set(content)):
        raise ValueError(f"{expected}, got one without {', '.join(missing)}")
    return content


def _tensors(svi: Fitted) -> dict[str, Tensor]:
    """Return the tensors that may be fitted by name: those found, and those in an optimizer."""
    names = svi.names()
    found = [p for part in svi.found_parts().values() for p in _of(part)]
    return {names[id(p)]: p for p in [*found, *svi.optimized()]}


def _of(part: Any) -> list[Tensor]:
    if isinstance(part, nn.Module):
        return list(part.parameters())
    return [part] if isinstance(part, Tensor) else []


def _check_names(what: str, mine: Mapping[str, Any], saved: Any) -> None:
    if not isinstance(saved, Mapping) or set(mine) != set(saved):
        got = sorted(map(str, saved)) if isinstance(saved, Mapping) else type(saved).__name__
        raise ValueError(f"{what} {sorted(mine)}, got {got}")


def _check_like(what: str, mine: Any, saved: Any) -> None:
    if not isinstance(mine, Tensor) or nn.parameter.is_lazy(mine):
        return
    if not isinstance(saved, Tensor):
        raise ValueError(f"{what} as a tensor, got {type(saved).__name__}")
    for name in ("shape", "dtype"):
        own, other = getattr(mine, name), getattr(saved, name)
        if own != other:
            own, other = (list(own), list(other)) if name == "shape" else (own, other)
            raise ValueError(f"{what} with {name} {own}, got {other}")


def _as_saved(saved: Any, now: Any) -> Any:
    """Return a part of an optimizer's state, bit for bit, on the optimizer's device."""
    if isinstance(saved, Tensor):
        device = now.device if isinstance(now, Tensor) else saved.device
        return saved.to(device, copy=True)
    if isinstance(saved, dict):
        inner = now if isinstance(now, dict) else {}
        return {key: _as_saved(value, inner.get(key)) for key, value in saved.items()}
    if isinstance(saved, (list, tuple)):
        alike = isinstance(now, (list, tuple)) and len(now) == len(saved)
        places: Sequence[Any] = now if alike else [None] * len(saved)
        return type(saved)(_as_saved(v, n) for v, n in zip(saved, places, strict=True))
    return saved
