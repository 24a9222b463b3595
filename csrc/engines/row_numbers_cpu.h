// Numbers of a row, whatever their type in memory, as those that engines/row_sum_cpu.h computes
// with: for operands that are not of that type, for single numbers and for short rows.
#pragma once

#include "engines/row_sum.h"

namespace fastvi {
FASTVI_ISA_BEGIN

// A 16-bit type in memory is widened to float32; the others are what is computed with.
template <class S>
FASTVI_OUTLINE S number(Dtype dtype, const void* from, int64_t at) {
  if (dtype == Dtype::bf16) return static_cast<S>(to_acc(static_cast<const bf16*>(from)[at]));
  if (dtype == Dtype::f16) return static_cast<S>(to_acc(static_cast<const f16*>(from)[at]));
  return static_cast<const S*>(from)[at];
}

template <class T>
void widen_from(const T* from, int64_t n, float* to) {
  constexpr int lanes = Traits<f32v>::lanes;
  int64_t f = 0;
  for (; f + lanes <= n; f += lanes) store(to + f, load<f32v>(from + f));
  for (; f < n; ++f) to[f] = to_acc(from[f]);
}
template <class S>
FASTVI_OUTLINE void widen(Dtype dtype, const void* from, int64_t at, int64_t n, S* to) {
  if constexpr (__is_same(S, float)) {
    dtype == Dtype::bf16 ? widen_from(static_cast<const bf16*>(from) + at, n, to)
                         : widen_from(static_cast<const f16*>(from) + at, n, to);
  }
}

template <class T>
void narrow_to(const float* from, int64_t n, T* to) {
  constexpr int lanes = Traits<f32v>::lanes;
  int64_t f = 0;
  for (; f + lanes <= n; f += lanes) store(to + f, load<f32v>(from + f));
  for (; f < n; ++f) to[f] = from_acc<T>(from[f]);
}
template <class S>
FASTVI_OUTLINE void make_narrow(Dtype dtype, const S* from, int64_t n, void* to, int64_t at) {
  if constexpr (__is_same(S, float)) {
    dtype == Dtype::bf16 ? narrow_to(from, n, static_cast<bf16*>(to) + at)
                         : narrow_to(from, n, static_cast<f16*>(to) + at);
  }
}

// `count` rows of an operand from `first` on, side by side.
template <class T, class S>
void gather_from(const Operand& o, int64_t features, int64_t first, int64_t count, S* to) {
  const T* data = static_cast<const T*>(o.data);
  const bool adjacent = o.stride == 1 && (o.row_stride == features || o.period == 1);
  int64_t in_period = first % o.period;
  while (count > 0) {
    // Rows that lie one after the other are one run.
    const int64_t rows = adjacent ? min_i64(count, o.period - in_period) : 1;
    const T* run = data + (o.row_stride == 0 ? 0 : in_period * o.row_stride);
    const int64_t n = rows * features;
    if (o.stride == 1) {
      for (int64_t f = 0; f < n; ++f) to[f] = to_acc(run[f]);
    } else {
      for (int64_t f = 0; f < n; ++f) to[f] = to_acc(run[f * o.stride]);
    }
    to += n;
    count -= rows;
    in_period += rows;
    if (in_period == o.period) in_period = 0;
  }
}
template <class S>
FASTVI_OUTLINE void gather(Dtype dtype, const Operand& o, int64_t features, int64_t first,
                           int64_t count, S* to) {
  if (dtype == Dtype::bf16) return gather_from<bf16>(o, features, first, count, to);
  if (dtype == Dtype::f16) return gather_from<f16>(o, features, first, count, to);
  gather_from<S>(o, features, first, count, to);
}

FASTVI_ISA_END
}  // namespace fastvi
