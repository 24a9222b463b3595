"""fastvi inside Pyro: a multi-sample bound for ``pyro.infer.SVI``, and fused distributions.

It needs the optional extra ``pyro``.
"""

from fastvi._optional import need

need("pyro", "fastvi.integrations.pyro", "pyro")

from fastvi.integrations.pyro.acceleration import Acceleration, accelerate  # noqa: E402
from fastvi.integrations.pyro.trace_iwlb import Trace_IWLB  # noqa: E402

__all__ = ["Acceleration", "Trace_IWLB", "accelerate"]
