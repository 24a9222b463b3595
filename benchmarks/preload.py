"""What each worker process has imported before it starts: nothing here starts a thread pool."""

from contextlib import suppress

import torch
import torch._inductor.codecache
import torch._inductor.codegen.cpp
import torch._inductor.compile_fx  # noqa: F401

# Found out once in the parent, in place of a second spent by every process that compiles.
with suppress(ImportError, AttributeError):
    from torch._inductor import cpu_vec_isa

    cpu_vec_isa.pick_vec_isa()
with suppress(ImportError, AttributeError):
    torch._inductor.codecache.torch_key()
torch.compile(torch.sin, backend="aot_eager")(torch.zeros(2))
