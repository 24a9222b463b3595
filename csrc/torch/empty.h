// Room for a result that may be large. The kernel of the system hands fresh memory out page by
// page, and for a result of megabytes the page faults cost several times what the arithmetic does:
// 62 MB take 16 ms to touch the first time, and 2 ms again. So the blocks of large CPU results are
// kept, a few of them, when they are freed; a training step asks for the same sizes over and over.
#pragma once

#include <ATen/ops/empty.h>

namespace fastvi {

// What at::empty gives, in kept memory where that pays.
at::Tensor empty_large(at::IntArrayRef sizes, const at::TensorOptions& options);

// Gives back what is kept.
void release_kept_memory();

}  // namespace fastvi
