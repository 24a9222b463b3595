"""Which mode of autograd is on."""

from __future__ import annotations

import torch


def records_graphs() -> bool:
    """Whether autograd records: in inference mode it does not, even where gradients are enabled.

    The compiler cannot ask for the mode, and compiles for none but the ordinary one.
    """
    if not torch.is_grad_enabled():
        return False
    return torch.compiler.is_compiling() or not torch.is_inference_mode_enabled()
