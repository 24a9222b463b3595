// Sums in an order that does not depend on the number of threads. Torch cuts a sum to a single
// number by threads; all its other sums it cuts by results.
#pragma once

#include <ATen/ExpandUtils.h>
#include <ATen/ops/cat.h>

namespace fastvi {

inline at::Tensor fixed_sum(const at::Tensor& t) {
  constexpr int64_t kPart = 4096;
  // Below this many numbers torch takes one thread (at::internal::GRAIN_SIZE).
  constexpr int64_t kOneThread = 32768;
  at::Tensor x = t.reshape({-1});
  while (x.numel() >= kOneThread) {
    const int64_t whole = x.numel() / kPart * kPart;
    const at::Tensor parts = x.slice(0, 0, whole).view({-1, kPart}).sum(-1);
    x = at::cat({parts, x.slice(0, whole).sum(-1, /*keepdim=*/true)});
  }
  return x.sum();
}

// at::sum_to in a fixed order.
inline at::Tensor fixed_sum_to(const at::Tensor& t, at::IntArrayRef sizes) {
  if (c10::multiply_integers(sizes) == 1 && t.numel() != 1) return fixed_sum(t).reshape(sizes);
  return at::sum_to(t, sizes);
}

}  // namespace fastvi
