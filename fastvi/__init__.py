"""Fast variational inference for PyTorch."""

from fastvi import ops
from fastvi._version import __version__

__all__ = ["__version__", "ops"]
