// Room for a large result. The kernel of the system hands fresh memory out page by page, and for a
// result of tens of megabytes the page faults cost several times what the arithmetic does. Asking
// for huge pages makes them 512 times fewer.
#pragma once

#include <ATen/ops/empty.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastvi {

inline at::Tensor empty_large(at::IntArrayRef sizes, const at::TensorOptions& options) {
  at::Tensor t = at::empty(sizes, options);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // From here on glibc takes every block fresh from the system, and gives it back when freed.
  // Below, the heap often has the pages already; there huge pages made the bound's backward slower.
  constexpr uintptr_t kLarge = uintptr_t{32} << 20, kHugePage = uintptr_t{2} << 20;
  if (t.is_cpu() && t.nbytes() >= kLarge) {
    // Whole huge pages only, so that no neighbour's memory is touched. It is advice: where the
    // system does not take it, nothing is lost.
    const auto begin = reinterpret_cast<uintptr_t>(t.mutable_data_ptr());
    const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
    const uintptr_t last = (begin + t.nbytes()) / kHugePage * kHugePage;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
  return t;
}

}  // namespace fastvi
