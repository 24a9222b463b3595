"""The mode of autograd."""

from __future__ import annotations

import torch


def records_graphs() -> bool:
    """Return whether autograd records; in inference mode it does not, even with grad enabled.

    The compiler cannot read the mode, and compiles only for the ordinary one.
    """
    if not torch.is_grad_enabled():
        return False
    return torch.compiler.is_compiling() or not torch.is_inference_mode_enabled()
