"""Which mode of autograd is on."""

from __future__ import annotations

import torch


def records_graphs() -> bool:
    """Whether autograd records: in inference mode it does not, even where gradients are enabled."""
    return torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
