// Which row a task of a row sum is, and where it begins in each operand. What all tasks have in
// common is worked out on the host: a row may be short, and then its task is little more than this.
#pragma once

#include "engines/reduce.cuh"
#include "engines/row_sum.h"

// The tests lower it, so that the arithmetic of large shapes is run too.
#ifndef FASTVI_NEAR_TASKS
#define FASTVI_NEAR_TASKS 2147483648
#endif

namespace fastvi {

// Quotients of numbers below 2^31 by one number: a product and a shift (Granlund and Montgomery,
// 1994).
struct Quotient {
  uint32_t divisor = 1, multiplier = 1, shift = 0;

  Quotient() = default;
  explicit Quotient(uint32_t by) : divisor(by) {
    while ((uint64_t{1} << shift) < by) ++shift;
    multiplier = static_cast<uint32_t>(((((uint64_t{1} << shift) - by) << 32) / by) + 1);
  }
  FASTVI_HD uint32_t of(uint32_t x) const {
    const auto high = static_cast<uint32_t>((static_cast<uint64_t>(x) * multiplier) >> 32);
    return (high + x) >> shift;
  }
};

struct RowPlan {
  int64_t tasks;
  int log_lanes;  // of a group of lanes, which takes a task
  int uniform;    // bit i: operand i has stride 0
  // Rows are taken in an order that keeps the rows of one datum together: a value that is
  // broadcast over K then comes from the first-level cache, not K times from the second. Rows that
  // are short lie together in a sector, and stay in their order.
  bool in_order;
  int64_t period;  // of the data
  bool near;       // tasks and distances are so few that 32 bits hold them
  bool cut;        // rows have several segments
  bool odd;        // an operand has a period of its own
  Quotient inner;  // by `period` where rows are in order, else by the number of repeats
  Quotient segments;
  uint32_t row_bytes[kMaxOperands], datum_bytes[kMaxOperands];

  FASTVI_HD int lanes() const { return 1 << log_lanes; }
  FASTVI_HD int groups() const { return kThreads >> log_lanes; }
};

inline RowPlan row_plan(const RowSumParams& p, int arity, int64_t value_size, int64_t size) {
  RowPlan plan{};
  plan.tasks = p.rows * p.num_segments;
  const int lanes = group_lanes(min_i64(p.features, kRowSegment), 8, 64 * kWarp);
  while (plan.lanes() < lanes) ++plan.log_lanes;
  plan.period = p.rows;
  for (int i = 0; i < arity; ++i) {
    const Operand& o = p.operands[i];
    if (o.row_stride != 0 && o.period < plan.period) plan.period = o.period;
    if (o.stride == 0) plan.uniform |= 1 << i;
  }
  plan.cut = p.num_segments > 1;
  constexpr int64_t kShort = 16;
  plan.in_order = p.features < kShort;
  plan.near = plan.tasks < FASTVI_NEAR_TASKS && p.features < (int64_t{1} << 28);
  if (!plan.near || plan.tasks == 0) return plan;
  plan.segments = Quotient(static_cast<uint32_t>(p.num_segments));
  plan.inner = Quotient(static_cast<uint32_t>(plan.in_order ? plan.period : p.rows / plan.period));
  for (int i = 0; i < arity; ++i) {
    const Operand& o = p.operands[i];
    const auto bytes = static_cast<uint32_t>(o.row_stride * (i == 0 ? value_size : size));
    if (o.period == plan.period) {
      plan.datum_bytes[i] = bytes;
    } else if (o.period == p.rows) {
      plan.row_bytes[i] = bytes;
    } else {
      plan.odd |= o.row_stride != 0;
    }
  }
  return plan;
}

// Where a task is.
template <int arity>
struct RowPlace {
  int64_t row;
  int segment, length;  // of the row, and of the segment
  const char* operands[arity];

  template <class Sizes>
  __device__ __forceinline__ void go_to(int64_t task, const RowSumParams& p, const RowPlan& plan,
                                        Sizes size_of) {
    if (plan.near) {
      near(static_cast<uint32_t>(task), p, plan);
    } else {
      far(task, p, plan);
    }
    if (!plan.near || plan.odd) {
      FASTVI_UNROLL
      for (int i = 0; i < arity; ++i) {
        const Operand& o = p.operands[i];
        operands[i] = static_cast<const char*>(o.data) + operand_row(o, row) * size_of(i);
      }
    }
    length = static_cast<int>(p.features);
    if (plan.cut) {
      const int64_t from = static_cast<int64_t>(segment) * kRowSegment;
      length = static_cast<int>(min_i64(kRowSegment, p.features - from));
      FASTVI_UNROLL
      for (int i = 0; i < arity; ++i) operands[i] += from * p.operands[i].stride * size_of(i);
    }
  }

 private:
  __device__ __forceinline__ void near(uint32_t task, const RowSumParams& p, const RowPlan& plan) {
    segment = 0;
    if (plan.cut) {
      const uint32_t i = plan.segments.of(task);
      segment = static_cast<int>(task - i * plan.segments.divisor);
      task = i;
    }
    const uint32_t outer = plan.inner.of(task), rest = task - outer * plan.inner.divisor;
    const uint32_t datum = plan.in_order ? rest : outer;
    const uint32_t at = plan.in_order ? task : rest * static_cast<uint32_t>(plan.period) + outer;
    FASTVI_UNROLL
    for (int i = 0; i < arity; ++i) {
      operands[i] = static_cast<const char*>(p.operands[i].data) +
                    static_cast<uint64_t>(at) * plan.row_bytes[i] +
                    static_cast<uint64_t>(datum) * plan.datum_bytes[i];
    }
    row = at;
  }
  __device__ __forceinline__ void far(int64_t task, const RowSumParams& p, const RowPlan& plan) {
    row = task / p.num_segments;
    segment = static_cast<int>(task - row * p.num_segments);
    if (plan.in_order) return;
    const int64_t repeats = p.rows / plan.period, datum = row / repeats;
    row = (row - datum * repeats) * plan.period + datum;
  }
};

// The derivatives of a pack: those of the quick family, if all of them are finite.
template <class Of, class S, int arity, int n>
__device__ __forceinline__ void derivatives_by(const S (&x)[arity][n], S (&d)[arity][n]) {
  FASTVI_UNROLL
  for (int j = 0; j < n; ++j) {
    S operands[arity], by[arity];
    FASTVI_UNROLL
    for (int i = 0; i < arity; ++i) operands[i] = x[i][j];
    Of::derivatives(operands, by);
    FASTVI_UNROLL
    for (int i = 0; i < arity; ++i) d[i][j] = by[i];
  }
}
template <class Family, class S, int arity, int n>
__device__ __forceinline__ void derivatives_of_pack(const S (&x)[arity][n], S (&d)[arity][n]) {
  using Quick = typename QuickOf<Family>::type;
  derivatives_by<Quick>(x, d);
  if constexpr (!__is_same(Quick, Family)) {
    bool right = true;
    FASTVI_UNROLL
    for (int j = 0; j < n; ++j) {
      FASTVI_UNROLL
      for (int i = 0; i < arity; ++i) right &= abs(d[i][j]) <= largest_number<S>();
    }
    if (!right) derivatives_by<Family>(x, d);
  }
}

}  // namespace fastvi
