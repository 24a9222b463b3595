"""fastvi inside scvi-tools: exact and fused counts, and a multi-sample bound for ``SCVI``.

It needs the optional extra ``scvi``.
"""

from fastvi._optional import need

need("scvi", "fastvi.integrations.scvi", "scvi")

from fastvi.integrations._acceleration import Acceleration  # noqa: E402
from fastvi.integrations.scvi.acceleration import accelerate  # noqa: E402
from fastvi.integrations.scvi.bound import BoundMixin, bounded  # noqa: E402

__all__ = ["Acceleration", "BoundMixin", "accelerate", "bounded"]
