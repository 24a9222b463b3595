"""References to other projects: links with a network, checked names without one.

With a network, intersphinx resolves them. Without one, a name of another package has to exist in
this environment, and is shown without a link; one that does not exist is a warning.
"""

from __future__ import annotations

import builtins
import importlib
import re
import sys
import urllib.request

import torch
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

INVENTORIES = {
    "python": "https://docs.python.org/3/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "numpy": "https://numpy.org/doc/stable/",
    "pyro": "https://docs.pyro.ai/en/stable/",
    "lightning": "https://lightning.ai/docs/pytorch/stable/",
    "scvi": "https://docs.scvi-tools.org/en/stable/",
}
# What a signature calls a class, and where its project documents it.
DOCUMENTED = {
    "Tensor": "torch.Tensor",
    "Module": "torch.nn.Module",
    "Optimizer": "torch.optim.Optimizer",
    "Distribution": "torch.distributions.distribution.Distribution",
    "Path": "pathlib.Path",
    "torch.nn.modules.module.Module": "torch.nn.Module",
    "torch.optim.optimizer.Optimizer": "torch.optim.Optimizer",
    "np.ndarray": "numpy.ndarray",
    "torch._C.Generator": "torch.Generator",
    "torch._C.device": "torch.device",
    "torch._C.dtype": "torch.dtype",
}
# Rooms whose classes appear in signatures, but are no part of the public API.
INTERNAL = (
    "fastvi._",
    "fastvi.bounds.",
    "fastvi.chunks.",
    "fastvi.files.",
    "fastvi.integrations._",
    "fastvi.models.",
    "fastvi.objectives.",
    "fastvi.svi.",
)


def within_reach() -> dict[str, tuple[str, None]]:
    """The inventories that can be read now."""
    found = {}
    for name, url in INVENTORIES.items():
        try:
            with urllib.request.urlopen(url + "objects.inv", timeout=3):
                found[name] = (url, None)
        except (OSError, ValueError):
            continue
    return found


def exists(name: str) -> bool:
    """Whether a dotted name leads to something in this environment."""
    parts = name.split(".")
    if hasattr(builtins, parts[0]):
        return True
    for end in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


def rename(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Element | None:
    node["reftarget"] = DOCUMENTED.get(node.get("reftarget", ""), node.get("reftarget", ""))
    return None


def is_ours(name: str) -> bool:
    """Whether a name is one of fastvi's own that the reference need not show.

    That is a name of a room behind the public ones, or the bare name of a type in a signature.
    """
    if name.startswith("fastvi."):
        return name.startswith(INTERNAL) and exists(name)
    modules = [module for key, module in sys.modules.items() if key.startswith("fastvi.")]
    return any(name in vars(module) for module in modules)


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Element | None:
    if node.get("refdomain") != "py":
        return None
    target = node.get("reftarget", "")
    if is_ours(target) or (not target.startswith("fastvi") and exists(target)):
        return content
    return None


def skip(
    app: Sphinx, what: str, name: str, member: object, skipped: bool, options: object
) -> bool | None:
    """Leave out what a class inherits from torch, or what only torch describes."""
    by = getattr(member, "fget", member)  # of a property, the function behind it
    if (getattr(by, "__module__", None) or "").startswith("torch."):
        return True
    described = bool(getattr(member, "__doc__", None))
    torch_s = (torch.nn.Module, torch.distributions.Distribution)
    overriding = name == "extra_repr" or (getattr(by, "__module__", None) or "").startswith(
        "fastvi.distributions."
    )
    known = overriding and any(hasattr(kind, name) for kind in torch_s)
    return True if known and not described else None


def escape(
    app: Sphinx, what: str, name: str, member: object, options: object, lines: list[str]
) -> None:
    """Keep "num_samples: K." from being read as the eleventh item of a list."""
    lines[:] = [re.sub(r"^(\s+\w+: )([A-Z]\.)", r"\1\\\2", line) for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("missing-reference", rename, priority=400)
    app.connect("missing-reference", resolve, priority=900)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", escape, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
