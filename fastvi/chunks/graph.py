"""The part of an autograd graph that a function of the user made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import parametrize

from fastvi._ext import C
from fastvi.ops._call import OWN_HOOK

# The nodes of an output's graph that this thread made since a mark, :func:`new_mark`, and its
# sources, where older nodes and leaves begin: csrc/torch/graph_part.h.
GraphPart: Any = C.GraphPart


def new_mark() -> int:
    """Return a number below those of all graph nodes that this thread makes later."""
    # A weight in autocast's cache has an older node, and would not be seen as a parameter.
    torch.clear_autocast_cache()
    return GraphPart.mark()


def place(source: Tensor) -> tuple[object, int]:
    """Return the place of a graph's source, which is equal for tensors of one place."""
    if source.grad_fn is None:
        return id(source), 0
    return source.grad_fn, source.output_nr


@contextlib.contextmanager
def cut(part: Any) -> Iterator[list[Tensor]]:
    """Make a part of a graph end in leaves of its own, one for each of its sources."""
    try:
        yield part.cut()
    finally:
        part.restore()


def runs_whole(where: str, part: Any, num_chunks: int) -> bool:
    """Return whether a part has hooks or the like, and so may not run by itself."""
    # A parametrised tensor that the only chunk computed may be used elsewhere.
    hooked = num_chunks == 1 and bool(parametrize._cache_enabled)
    hooked = hooked or any(OWN_HOOK not in node.metadata for node in part.hooked_nodes)
    for node in part.python_nodes:
        _check_node(where, node, num_chunks)
        made_by = getattr(type(node), "_forward_cls", type(node))
        compiled = type(node).__name__ == "CompiledFunctionBackward"
        hooked = hooked or not (compiled or made_by.__module__.partition(".")[0] == "fastvi")
    return hooked


def _check_node(where: str, node: Any, num_chunks: int) -> None:
    """Refuse a network whose wrapper needs exactly one run in each step."""
    if num_chunks > 1 and type(node).__name__ == "_DDPSinkBackward":
        wrapper = node.ddp_weakref()
        if wrapper is not None and wrapper.static_graph:
            raise ValueError(
                f"{where}: expected DistributedDataParallel in log_likelihood to have "
                f"static_graph=False, since chunk_size runs it {num_chunks} times in a step, got "
                f"static_graph=True; or use chunk_size=None"
            )


def shared_by_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
