// The CUDA kernels of engines/row_sum.h: a group of adjacent lanes for a segment of a row, a block
// where the segment is long. Each lane reads packs of 16 bytes where the layout allows it, and
// single elements where not.
#pragma once

#include "engines/reduce.cuh"
#include "engines/row_sum.h"
#include "simd/vector_load.cuh"

namespace fastvi {

// Rows are taken in an order that keeps the rows of one datum together: a value that is broadcast
// over K then comes from the first-level cache, not K times from the second.
struct RowOrder {
  int64_t period, repeats;

  explicit __host__ __device__ RowOrder(const RowSumParams& p) : period(p.rows), repeats(1) {
    // Rows shorter than this lie together in a sector, and stay in their order.
    constexpr int64_t kShort = 16;
    if (p.features < kShort) return;
    for (const Operand& o : p.operands) {
      if (o.data != nullptr && o.row_stride != 0 && o.period < period) period = o.period;
    }
    repeats = period > 0 ? p.rows / period : 1;
  }
};

// Blocks of a multiprocessor that the registers must allow; fewer where a family says so.
template <class Family, class T>
constexpr int kRowBlocks = [] {
  if constexpr (sizeof(T) == 8 && requires { Family::kCudaBlocksInDouble; }) {
    return Family::kCudaBlocksInDouble;
  } else if constexpr (requires { Family::kCudaBlocks; }) {
    return Family::kCudaBlocks;
  }
  return sizeof(T) == 4 ? 3 : 2;
}();

template <class Family, class T, bool vector>
struct RowSumCuda {
  using S = acc_t<T>;
  static constexpr int arity = Family::arity;
  static constexpr int n = vector ? kPack<T> : 1;
  static constexpr int access = vector ? 16 : 1;
  // Elements of each operand that a thread has on their way at once: 64 bytes over all operands,
  // as a rule. Arithmetic in float64 takes so long that fewer do.
  static constexpr int kAtOnce = sizeof(S) == 8 ? 2 : arity <= 2 ? 8 : 4;
  static constexpr int batch = kAtOnce > n ? kAtOnce / n : 1;
  static constexpr int kFlush = 64 / (batch * n);

  const RowSumParams& p;
  int lanes, lane;
  bool exists;        // a group beyond the last task has none
  int length;         // of the segment
  int64_t row, from;  // features from .. from + length
  int64_t at[arity];  // the segment in each operand

  static FASTVI_HD int lanes_of(const RowSumParams& p) {
    return group_lanes(min_i64(p.features, kRowSegment), 8, 64 * kWarp);
  }

  __device__ __forceinline__ explicit RowSumCuda(const RowSumParams& params)
      : p(params), lanes(lanes_of(params)) {
    lane = static_cast<int>(threadIdx.x) % lanes;
  }

  // Goes to a task. A group beyond the last one still takes part in the reduction of its warp.
  __device__ __forceinline__ void go_to(int64_t task, const RowOrder& order) {
    exists = task < p.rows * p.num_segments;
    int64_t i = exists ? task : 0;
    from = 0;
    if (p.num_segments > 1) {
      from = i % p.num_segments * kRowSegment;
      i /= p.num_segments;
    }
    length = exists ? static_cast<int>(min_i64(kRowSegment, p.features - from)) : 0;
    row = i;
    int64_t datum = i;
    if (order.repeats > 1) {
      datum = i / order.repeats;
      row = (i - datum * order.repeats) * order.period + datum;
    }
    FASTVI_UNROLL
    for (int o = 0; o < arity; ++o) {
      const Operand& operand = p.operands[o];
      const int64_t start =
          operand.period == order.period ? datum * operand.row_stride : operand_row(operand, row);
      at[o] = start + from * operand.stride;
    }
  }

  __device__ __forceinline__ int first() const { return lane * n; }
  __device__ __forceinline__ int step() const { return lanes * n; }
  __device__ __forceinline__ bool value_is_wider(int operand) const {
    return sizeof(T) == 2 && operand == 0 && p.value_dtype == Dtype::f32;
  }

  template <class U>
  __device__ __forceinline__ void read_as(int i, int f, S (&x)[batch][arity][n]) const {
    const U* data = static_cast<const U*>(p.operands[i].data) + at[i];
    if (p.operands[i].stride == 0) {
      const S constant = to_acc(*data);
      FASTVI_UNROLL
      for (int u = 0; u < batch; ++u) {
        FASTVI_UNROLL
        for (int j = 0; j < n; ++j) x[u][i][j] = constant;
      }
      return;
    }
    FASTVI_UNROLL
    for (int u = 0; u < batch; ++u) {
      if (f + u * step() < length) load_pack<access>(data + f + u * step(), x[u][i]);
    }
  }

  // Packs f, f + step, ... of every operand, all on their way before any of them is used.
  __device__ __forceinline__ void read(int f, S (&x)[batch][arity][n]) const {
    FASTVI_UNROLL
    for (int i = 0; i < arity; ++i) {
      if (value_is_wider(i)) {
        read_as<S>(i, f, x);
      } else {
        read_as<T>(i, f, x);
      }
    }
  }

  static __device__ __forceinline__ void pick(const S (&x)[arity][n], int j, S (&operands)[arity]) {
    FASTVI_UNROLL
    for (int i = 0; i < arity; ++i) operands[i] = x[i][j];
  }

  // ---- the kernels' bodies ----------------------------------------------------------------------
  __device__ __forceinline__ S sum() const {
    typename Family::template Sum<S> sum;
    int f = first();
    while (f < length) {
      for (int i = 0; i < kFlush && f < length; ++i, f += batch * step()) {
        S x[batch][arity][n];
        read(f, x);
        FASTVI_UNROLL
        for (int u = 0; u < batch; ++u) {
          if (f + u * step() >= length) break;
          FASTVI_UNROLL
          for (int j = 0; j < n; ++j) {
            S operands[arity];
            pick(x[u], j, operands);
            sum.add(operands);
          }
        }
      }
      sum.flush();
    }
    return sum_group(sum.total, lanes);
  }

  __device__ __forceinline__ void values() const {
    S* out = static_cast<S*>(p.out) + row * p.features + from;
    for (int f = first(); f < length; f += batch * step()) {
      S x[batch][arity][n];
      read(f, x);
      FASTVI_UNROLL
      for (int u = 0; u < batch; ++u) {
        if (f + u * step() >= length) break;
        S y[n];
        FASTVI_UNROLL
        for (int j = 0; j < n; ++j) {
          S operands[arity];
          pick(x[u], j, operands);
          y[j] = Family::value(operands);
        }
        store_pack<access>(out + f + u * step(), y);
      }
    }
  }

  __device__ __forceinline__ void derivatives() const {
    const int64_t base = row * p.features + from;
    const S* grads = static_cast<const S*>(p.grad_out) + (p.elementwise ? base : row);
    for (int f = first(); f < length; f += batch * step()) {
      S x[batch][arity][n];
      read(f, x);
      FASTVI_UNROLL
      for (int u = 0; u < batch; ++u) {
        const int pack = f + u * step();
        if (pack >= length) break;
        S grad[n], d[arity][n];
        if (p.elementwise) {
          load_pack<access>(grads + pack, grad);
        } else {
          FASTVI_UNROLL
          for (int j = 0; j < n; ++j) grad[j] = *grads;
        }
        FASTVI_UNROLL
        for (int j = 0; j < n; ++j) {
          S operands[arity], by[arity];
          pick(x[u], j, operands);
          Family::derivatives(operands, by);
          FASTVI_UNROLL
          for (int i = 0; i < arity; ++i) d[i][j] = sent_on(by[i], grad[j]);
        }
        FASTVI_UNROLL
        for (int i = 0; i < arity; ++i) {
          if (p.operands[i].grad == nullptr) continue;
          if (sizeof(T) == 2 && (p.grad_in_acc[i] || value_is_wider(i))) {
            store_pack<access>(static_cast<S*>(p.operands[i].grad) + base + pack, d[i]);
          } else {
            store_pack<access>(static_cast<T*>(p.operands[i].grad) + base + pack, d[i]);
          }
        }
      }
    }
  }
};

template <class Family, class T, bool vector>
__global__ void __launch_bounds__(kThreads, kRowBlocks<Family, T>)
    row_sum_kernel(const __grid_constant__ RowSumParams p) {
  RowSumCuda<Family, T, vector> rows(p);
  const RowOrder order(p);
  const int groups = kThreads / rows.lanes;
  const int64_t tasks = p.rows * p.num_segments;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * groups; first < tasks;
       first += static_cast<int64_t>(gridDim.x) * groups) {
    rows.go_to(first + static_cast<int>(threadIdx.x) / rows.lanes, order);
    if (p.elementwise) {
      rows.values();
      continue;
    }
    const auto sum = rows.sum();
    if (rows.lane == 0 && rows.exists) {
      static_cast<acc_t<T>*>(p.out)[rows.row * p.num_segments + rows.from / kRowSegment] = sum;
    }
  }
}

template <class Family, class T, bool vector>
__global__ void __launch_bounds__(kThreads, 2)
    row_sum_backward_kernel(const __grid_constant__ RowSumParams p) {
  RowSumCuda<Family, T, vector> rows(p);
  const RowOrder order(p);
  const int groups = kThreads / rows.lanes;
  const int64_t tasks = p.rows * p.num_segments;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * groups; first < tasks;
       first += static_cast<int64_t>(gridDim.x) * groups) {
    rows.go_to(first + static_cast<int>(threadIdx.x) / rows.lanes, order);
    rows.derivatives();
  }
}

// Whether every operand, gradient and output lies in whole aligned packs.
template <class Family, class T>
bool row_sum_in_packs(const RowSumParams& p) {
  if (p.features % kPack<T> != 0) return false;
  uint64_t low_bits = 0;
  for (int i = 0; i < Family::arity; ++i) {
    const Operand& o = p.operands[i];
    const uint64_t size = i == 0 && p.value_dtype == Dtype::f32 ? 4 : sizeof(T);
    if (o.stride != 0) low_bits |= address_of(o.data) | static_cast<uint64_t>(o.row_stride) * size;
    low_bits |= address_of(o.grad);
  }
  if (p.elementwise) low_bits |= address_of(p.out) | address_of(p.grad_out);
  return low_bits % 16 == 0;
}

template <class Family, bool backward>
const char* launch_row_sum(const RowSumParams& p, void* stream) {
  FASTVI_SWITCH_DTYPE(p.dtype, T, {
    const int groups = kThreads / RowSumCuda<Family, T, true>::lanes_of(p);
    const int64_t blocks = ceil_div(p.rows * p.num_segments, groups);
    const bool packs = row_sum_in_packs<Family, T>(p);
    if constexpr (backward) {
      return launch_blocks(packs ? row_sum_backward_kernel<Family, T, true>
                                 : row_sum_backward_kernel<Family, T, false>,
                           blocks, stream, p);
    } else {
      return launch_blocks(
          packs ? row_sum_kernel<Family, T, true> : row_sum_kernel<Family, T, false>, blocks,
          stream, p);
    }
  })
  return "unknown element type";
}

}  // namespace fastvi
