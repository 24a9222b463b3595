// What a CUDA thread of iwlb reads, adds up and writes, and which part of the log-weights is its
// own.
#pragma once

#include "engines/reduce.cuh"
#include "iwlb/iwlb.h"
#include "simd/vector_load.cuh"

namespace fastvi {
namespace {

// Packs in flight per thread: enough bytes on the way to keep the memory busy.
constexpr int kBatch = 2;

// Blocks of a multiprocessor that the registers must allow.
template <class T, bool backward>
constexpr int kBlocks = sizeof(T) == 8                ? 2
                        : sizeof(T) == 4 && !backward ? 4
                                                      : 3;
// Eight numbers at a time, each loaded by itself, take more registers than three blocks leave.
template <class T, int bytes>
constexpr int kWeighBlocks = sizeof(T) == 2 && bytes == 1 ? 2 : kBlocks<T, true>;

template <class T, int bytes>
struct LoadPack {
  __device__ __forceinline__ Pack<acc_t<T>, kPack<T>> operator()(const T* p) const {
    Pack<acc_t<T>, kPack<T>> pack;
    load_pack<bytes>(p, pack.x);
    return pack;
  }
};
template <class T>
struct LoadPartial {
  int count;
  __device__ __forceinline__ Pack<acc_t<T>, kPack<T>> operator()(const T* p) const {
    Pack<acc_t<T>, kPack<T>> pack;
    load_partial(p, count, acc_t<T>(0), pack.x);
    return pack;
  }
};

template <class T, int bytes>
struct Tile {
  using S = acc_t<T>;
  static constexpr int n = kPack<T>;
  using Values = Pack<S, n>;

  const IwlbParams& p;
  const bool mean;
  const S c;

  __device__ __forceinline__ explicit Tile(const IwlbParams& params)
      : p(params), mean(params.alpha == 1.0), c(mean ? S(1) : static_cast<S>(1.0 - params.alpha)) {}

  // ---- reading and writing ------------------------------------------------------------------
  // c log w of the first `count` of a pack; what adds nothing to the reduction beyond them. A batch
  // of whole packs has no branch in it, so that its loads are all on their way before one is used.
  template <bool whole>
  __device__ __forceinline__ Values scaled(int64_t i, int count) const {
    Values x;
    if constexpr (whole) {
      x = iwlb_log_weight<Values, T>(p, i, LoadPack<T, bytes>{});
    } else {
      x = iwlb_log_weight<Values, T>(p, i, LoadPartial<T>{count});
    }
    const S nothing = mean ? S(0) : S(-kInfinity);
    FASTVI_UNROLL
    for (int j = 0; j < n; ++j) {
      x[j] = x[j] * c;
      if (!whole && j >= count) x[j] = nothing;
    }
    return x;
  }

  template <bool whole>
  __device__ __forceinline__ void write(int64_t i, int count, const Values& y) const {
    T* out = static_cast<T*>(p.grad_log_w) + i;
    if constexpr (whole) {
      store_pack<bytes>(out, y.x);
    } else {
      store_partial(out, count, y.x);
    }
  }

  // ---- the running reduction ----------------------------------------------------------------
  // The mean is a sum at a maximum of 0, so that both are merged by the same formula.
  __device__ __forceinline__ LogSumExp<S> nothing() const {
    LogSumExp<S> a;
    if (mean) a.max = S(0);
    return a;
  }

  // Adds `count` numbers at the price of one exponential each and one more.
  template <int count>
  __device__ __forceinline__ void add(const S (&x)[count], LogSumExp<S>* a) const {
    S sum = a->sum;
    if (mean) {
      FASTVI_UNROLL
      for (int i = 0; i < count; ++i) sum += x[i];
    } else {
      S larger = a->max;
      FASTVI_UNROLL
      for (int i = 0; i < count; ++i) larger = max_number(larger, x[i]);
      sum *= exp_nonpositive(a->max - larger);
      FASTVI_UNROLL
      for (int i = 0; i < count; ++i) sum += exp_nonpositive(x[i] - larger);
      a->max = larger;
    }
    a->sum = sum;
  }

  __device__ __forceinline__ S factor(int64_t b) const {
    return iwlb_inverse(p, shift(b), static_cast<const S*>(p.total)[b],
                        static_cast<const S*>(p.grad_bound)[b]);
  }
  __device__ __forceinline__ S shift(int64_t b) const { return static_cast<const S*>(p.shift)[b]; }
  __device__ __forceinline__ S weight(S x, S shift, S factor) const {
    return mean ? factor : iwlb_finite_weight(x, shift, factor);
  }

  __device__ __forceinline__ void write_partial(int64_t row, int64_t b, S max, S sum) const {
    static_cast<S*>(p.partial_max)[row * p.batch + b] = max;
    static_cast<S*>(p.partial_sum)[row * p.batch + b] = sum;
  }
  __device__ __forceinline__ void write_bound(int64_t b, S shift, S total) const {
    static_cast<S*>(p.shift)[b] = shift;
    static_cast<S*>(p.total)[b] = total;
    static_cast<S*>(p.bound)[b] = iwlb_bound(p, shift, total);
  }
};

template <bool whole>
struct Whole {
  constexpr operator bool() const { return whole; }
};

// What the host works out once for all blocks. A split has fewer than 2^31 rows: there is no memory
// for more.
struct Plan {
  int64_t tiles, tasks;  // of columns, and with the splits
  int side_log2;         // packs of columns side by side
  int lanes_log2;        // threads of a column and split, where samples are adjacent
  int split_size, num_splits;
  int groups;   // of splits that are put together first, or 0
  int counter;  // the first of the launch, or -1 where a launch of its own puts splits together
  FASTVI_HD bool is_combined_behind() const { return counter < 0 && num_splits > 1; }
};

constexpr int kLog2Threads = 8;
static_assert(1 << kLog2Threads == kThreads);

// ---- adjacent columns: threads side by side over packs of columns, then over rows
// -----------------
struct ColumnsPlace {
  int side;       // packs side by side, a power of two
  int rows, row;  // how many rows at once, and which of them is mine
  int count;      // my columns, at most a pack
  int left;       // my rows
  int split;
  int64_t tile, column, first, step;  // my first element, and from one row of mine to the next

  __device__ __forceinline__ ColumnsPlace(const IwlbParams& p, const Plan& plan, int64_t task,
                                          int n) {
    const int me = static_cast<int>(threadIdx.x);
    side = 1 << plan.side_log2;
    rows = kThreads >> plan.side_log2;
    row = me >> plan.side_log2;
    tile = 0, split = static_cast<int>(task);
    if (plan.tiles > 1) {
      split = static_cast<int>(task / plan.tiles);
      tile = task - split * plan.tiles;
    }
    const int inside = (me & (side - 1)) * n;
    column = tile * kIwlbColumns + inside;
    const int width = static_cast<int>(min_i64(kIwlbColumns, p.batch - tile * kIwlbColumns));
    count = width - inside < n ? width - inside : n;
    const int64_t begin = static_cast<int64_t>(split) * plan.split_size;
    const int64_t all = p.num_samples - begin;
    left = all < plan.split_size ? static_cast<int>(all) : plan.split_size;
    left = count > 0 ? (left - row + rows - 1) >> (kLog2Threads - plan.side_log2) : 0;
    first = (begin + row) * p.stride_k + column;
    step = p.stride_k << (kLog2Threads - plan.side_log2);
  }

  // use(whole, i, left) for each of my batches: the first element of its first row, and how many of
  // my rows there are from it on.
  template <class T, class Use>
  __device__ __forceinline__ void for_batches(Use use) const {
    int64_t i = first;
    int rest = left;
    if (count == kPack<T>) {
#pragma unroll 1
      for (; rest >= kBatch; rest -= kBatch, i += kBatch * step) use(Whole<true>{}, i, rest);
    }
#pragma unroll 1
    for (; rest > 0; rest -= kBatch, i += kBatch * step) use(Whole<false>{}, i, rest);
  }
  __device__ __forceinline__ int count_of(int u, int rest) const { return u < rest ? count : 0; }
};

// ---- adjacent samples: a group of threads per column and split
// ------------------------------------
template <int n>
struct SamplesPlace {
  int lanes, lane;
  int64_t column, split, begin, end;

  __device__ __forceinline__ SamplesPlace(const IwlbParams& p, const Plan& plan,
                                          int64_t first_task) {
    lanes = 1 << plan.lanes_log2;
    lane = static_cast<int>(threadIdx.x) & (lanes - 1);
    const int64_t task = first_task + (static_cast<int>(threadIdx.x) >> plan.lanes_log2);
    column = task, split = 0;
    // A group beyond the last task has nothing to read, but takes part in the shuffles.
    bool mine = task < p.batch;
    if (plan.num_splits > 1) {
      split = task / p.batch;
      column = task - split * p.batch;
      mine = split < plan.num_splits;
    }
    begin = split * plan.split_size;
    end = mine ? min_i64(begin + plan.split_size, p.num_samples) : begin;
  }

  __device__ __forceinline__ int64_t element(const IwlbParams& p, int64_t k, int u) const {
    return column * p.stride_b + k + u * lanes * n;
  }
  __device__ __forceinline__ int count_of(int64_t k, int u) const {
    return static_cast<int>(min_i64(n, max_i64(0, end - (k + u * lanes * n))));
  }

  // use(whole, k) for each of my batches: packs from samples k, k + lanes * n, ...
  template <class T, class Use>
  __device__ __forceinline__ void for_batches(Use use) const {
    int64_t k = begin + lane * n;
    for (; k + (kBatch - 1) * lanes * n + n <= end; k += kBatch * lanes * n) use(Whole<true>{}, k);
    for (; k < end; k += kBatch * lanes * n) use(Whole<false>{}, k);
  }

  static int lanes_of(const IwlbParams& p) {
    return group_lanes(min_i64(p.split_size, p.num_samples), 2 * n, 16 * kWarp * n);
  }
};

}  // namespace
}  // namespace fastvi
