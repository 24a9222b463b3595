"""The file of a run: all that the rest of it depends on, replaced in one go."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from fastvi.svi.inference import SVI

FORMAT = 2


def parameters_of(svi: SVI) -> dict[str, Any]:
    """Copies of what is fitted: optimised tensors, those of no module among them, and buffers."""
    return {
        "optimised": [p.detach().clone() for p in svi.optimised()],
        "modules": {
            name: {key: value.detach().clone() for key, value in part.state_dict().items()}
            for name, part in svi.modules().items()
        },
    }


def set_parameters(svi: SVI, state: Mapping[str, Any]) -> None:
    where = "SVI.fit"
    optimised = svi.optimised()
    before = [list(p.shape) for p in state["optimised"]]
    now = [list(p.shape) for p in optimised]
    modules = svi.modules()
    if before != now:
        raise ValueError(
            f"{where}: expected the checkpoint to hold parameters of shapes {now}, got {before}"
        )
    if set(modules) != set(state["modules"]):
        raise ValueError(
            f"{where}: expected the checkpoint to hold the modules {sorted(modules)}, got "
            f"{sorted(state['modules'])}"
        )
    for name, part in modules.items():
        part.load_state_dict(state["modules"][name])
    with torch.no_grad():
        for parameter, value in zip(optimised, state["optimised"], strict=True):
            parameter.copy_(value)


def random_state(generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """torch's generators, and those given."""
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


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write beside the file, and put it in its place once it is on the disk."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    # Tensors and plain values only: a file from elsewhere runs no code.
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever half a pickle makes of itself
        raise ValueError(
            f"SVI.fit: expected {path} to be a checkpoint of SVI.fit, got a file that cannot be "
            f"read as one: {error}"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(
            f"SVI.fit: expected {path} to be a checkpoint of SVI.fit, of format {FORMAT}, it is not"
        )
    return content


def optimizer_state(svi: SVI) -> dict[str, Any]:
    return copy.deepcopy(svi.optimizer.state_dict())
