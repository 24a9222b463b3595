// The backward of engines/row_sum.cuh where the gradient of a broadcast operand is summed over
// rows on the way: it is never written at every element. A thread owns a pack of features and goes
// through the rows of a chunk, see RowCut; which rows meet in which sum depends on shapes alone.
#pragma once

#include "engines/row_plan.cuh"
#include "simd/vector_load.cuh"

namespace fastvi {

template <class Family, class T, bool vector>
struct RowSumOverRowsCuda {
  using S = acc_t<T>;
  static constexpr int arity = Family::arity;
  static constexpr int n = vector ? kPack<S> : 1;
  template <class U>
  static constexpr int access = vector ? n * static_cast<int>(sizeof(U)) : 1;
  // Rows that are on their way at once.
  static constexpr int batch =
      arity <= 3 && sizeof(S) == 4 && !requires { Family::kIsHeavy; } ? 2 : 1;
  // So many rows are summed in the accumulation type; their sums meet in float64.
  static constexpr int kShort = 64;

  const RowSumParams& p;
  int64_t pack, data_chunk, repeat_chunk;
  S x[batch][arity][n];
  S recent[arity][n] = {};
  double total[arity][n] = {};
  int short_rows = 0;

  __device__ __forceinline__ explicit RowSumOverRowsCuda(const RowSumParams& params) : p(params) {}

  __device__ __forceinline__ bool value_is_wider(int i) const {
    return sizeof(T) == 2 && i == 0 && p.value_dtype == Dtype::f32;
  }
  __device__ __forceinline__ bool has_place(int i, GradPlace place) const {
    return p.operands[i].grad != nullptr && p.grad_place[i] == place;
  }
  // Whether the operand is the same for all repeats of a datum.
  __device__ __forceinline__ bool is_fixed(int i) const {
    return p.operands[i].row_stride == 0 || p.operands[i].period == p.cut.period;
  }

  __device__ __forceinline__ void load(int i, int64_t row, S (&to)[n]) const {
    const Operand& o = p.operands[i];
    const int64_t at = operand_row(o, row) + pack * n * o.stride;
    if (value_is_wider(i)) {
      load_from(static_cast<const S*>(o.data) + at, o.stride, to);
    } else {
      load_from(static_cast<const T*>(o.data) + at, o.stride, to);
    }
  }
  template <class U>
  static __device__ __forceinline__ void load_from(const U* from, int64_t stride, S (&to)[n]) {
    if (stride == 0) {
      FASTVI_UNROLL
      for (int j = 0; j < n; ++j) to[j] = to_acc(*from);
    } else {
      load_pack<access<U>>(from, to);
    }
  }
  template <class U>
  __device__ __forceinline__ void store(int i, int64_t row, const S (&d)[n]) const {
    U* const to = static_cast<U*>(p.operands[i].grad) + row * p.features + pack * n;
    store_pack<access<U>>(to, d);
  }

  // `rows` rows from `row` on, which are repeats of one datum.
  template <int rows>
  __device__ __forceinline__ void take(int64_t row) {
    S grad[rows][n];
    FASTVI_UNROLL
    for (int u = 0; u < rows; ++u) {
      const int64_t r = row + u * p.cut.period;
      FASTVI_UNROLL
      for (int i = 0; i < arity; ++i) {
        if (!is_fixed(i)) load(i, r, x[u][i]);
      }
      const S* grads = static_cast<const S*>(p.grad_out);
      if (p.elementwise) {
        load_pack<access<S>>(grads + r * p.features + pack * n, grad[u]);
      } else {
        FASTVI_UNROLL
        for (int j = 0; j < n; ++j) grad[u][j] = grads[r];
      }
    }
    FASTVI_UNROLL
    for (int u = 0; u < rows; ++u) {
      S d[arity][n];
      derivatives_of_pack<Family>(x[u], d);
      FASTVI_UNROLL
      for (int i = 0; i < arity; ++i) {
        if (p.operands[i].grad == nullptr) continue;
        FASTVI_UNROLL
        for (int j = 0; j < n; ++j) d[i][j] = sent_on(d[i][j], grad[u][j]);
        if (p.grad_place[i] != GradPlace::elements) {
          FASTVI_UNROLL
          for (int j = 0; j < n; ++j) recent[i][j] += d[i][j];
        } else if (sizeof(T) == 2 && (p.grad_in_acc[i] || value_is_wider(i))) {
          store<S>(i, row + u * p.cut.period, d[i]);
        } else {
          store<T>(i, row + u * p.cut.period, d[i]);
        }
      }
    }
    short_rows += rows;
    if (short_rows >= kShort) flush();
  }
  __device__ __forceinline__ void flush() {
    FASTVI_UNROLL
    for (int i = 0; i < arity; ++i) {
      FASTVI_UNROLL
      for (int j = 0; j < n; ++j) {
        total[i][j] += recent[i][j];
        recent[i][j] = 0;
      }
    }
    short_rows = 0;
  }
  // Row `row` of the sums of what has this place, which begin anew.
  __device__ __forceinline__ void put(GradPlace place, int64_t row) {
    FASTVI_UNROLL
    for (int i = 0; i < arity; ++i) {
      if (!has_place(i, place)) continue;
      double* to = static_cast<double*>(p.operands[i].grad) + row * p.features + pack * n;
      FASTVI_UNROLL
      for (int j = 0; j < n; ++j) {
        to[j] = total[i][j];
        total[i][j] = 0;
      }
    }
  }

  __device__ __forceinline__ void run(int64_t task, int64_t packs) {
    const RowCut& cut = p.cut;
    const int64_t chunk = task / packs;
    pack = task - chunk * packs;
    repeat_chunk = chunk / cut.data_chunks;
    data_chunk = chunk - repeat_chunk * cut.data_chunks;
    const int64_t end = cut.period * (data_chunk + 1) / cut.data_chunks;
    const int64_t first = cut.repeats * repeat_chunk / cut.repeat_chunks;
    const int64_t last = cut.repeats * (repeat_chunk + 1) / cut.repeat_chunks;
    for (int64_t datum = cut.period * data_chunk / cut.data_chunks; datum < end; ++datum) {
      FASTVI_UNROLL
      for (int i = 0; i < arity; ++i) {
        if (!is_fixed(i)) continue;
        load(i, datum, x[0][i]);
        FASTVI_UNROLL
        for (int u = 1; u < batch; ++u) {
          FASTVI_UNROLL
          for (int j = 0; j < n; ++j) x[u][i][j] = x[0][i][j];
        }
      }
      int64_t k = first;
      for (; k + batch <= last; k += batch) take<batch>(k * cut.period + datum);
      if (batch > 1 && k < last) take<1>(k * cut.period + datum);
      flush();
      put(GradPlace::data, repeat_chunk * cut.period + datum);
    }
    put(GradPlace::shared, chunk);
  }
};

template <class Family, class T, bool vector>
__global__ void __launch_bounds__(kThreads, RowSumOverRowsCuda<Family, T, vector>::batch)
    row_sum_over_rows_kernel(const __grid_constant__ RowSumParams p) {
  if constexpr (kRowsArePrepared<Family>) wait_for_launch_before();
  const int64_t packs = p.features / RowSumOverRowsCuda<Family, T, vector>::n;
  const int64_t tasks = packs * p.cut.data_chunks * p.cut.repeat_chunks;
  for (int64_t task = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; task < tasks;
       task += static_cast<int64_t>(gridDim.x) * kThreads) {
    RowSumOverRowsCuda<Family, T, vector>(p).run(task, packs);
  }
}

template <class Family, class T, bool vector>
const char* launch_row_sum_over_rows(const RowSumParams& p, void* stream) {
  const int64_t packs = p.features / RowSumOverRowsCuda<Family, T, vector>::n;
  const int64_t tasks = packs * p.cut.data_chunks * p.cut.repeat_chunks;
  return launch_resident<row_sum_over_rows_kernel<Family, T, vector>, kRowsArePrepared<Family>>(
      ceil_div(tasks, kThreads), stream, p);
}

}  // namespace fastvi
