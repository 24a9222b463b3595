#include "common/reduce.cuh"
#include "common/vector_load.cuh"
#include "iwlb/iwlb.h"

namespace fastvi {
namespace {

// Packs in flight per thread: enough bytes on the way to keep the memory busy.
constexpr int kBatch = 2;

// Blocks of a multiprocessor that the registers must allow.
template <class T, bool backward>
constexpr int kBlocks = sizeof(T) == 8 ? 2 : sizeof(T) == 4 && !backward ? 4 : 3;

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
    const S grad = static_cast<const S*>(p.grad_bound)[b];
    return mean ? grad / static_cast<S>(p.num_samples) : iwlb_inverse(static_cast<const S*>(p.total)[b], grad);
  }
  __device__ __forceinline__ S shift(int64_t b) const { return static_cast<const S*>(p.shift)[b]; }
  __device__ __forceinline__ S weight(S x, S shift, S factor) const {
    return mean ? factor : iwlb_weight(x, shift, factor);
  }

  __device__ __forceinline__ void write_partial(int64_t split, int64_t b, const LogSumExp<S>& a) const {
    static_cast<S*>(p.partial_max)[split * p.batch + b] = a.max;
    static_cast<S*>(p.partial_sum)[split * p.batch + b] = a.sum;
  }
};

template <bool whole>
struct Whole {
  constexpr operator bool() const { return whole; }
};

// ---- adjacent columns: threads side by side over packs of columns, then over rows -----------------
struct ColumnsPlace {
  int side;               // packs side by side, a power of two
  int rows, row;          // how many rows at once, and which of them is mine
  int count;              // my columns, at most a pack
  int64_t column, begin, end, split;

  __device__ __forceinline__ ColumnsPlace(const IwlbParams& p, int64_t task, int n) {
    const int64_t tiles = iwlb_column_tiles(p);
    side = 1;
    while (side * n < min_i64(kIwlbColumns, p.batch)) side *= 2;
    rows = kThreads / side;
    row = static_cast<int>(threadIdx.x) / side;
    const int64_t first = task % tiles * kIwlbColumns;
    const int64_t last = min_i64(first + kIwlbColumns, p.batch);
    column = first + static_cast<int>(threadIdx.x) % side * n;
    count = static_cast<int>(min_i64(n, max_i64(0, last - column)));
    split = task / tiles;
    begin = split * p.split_size;
    end = min_i64(begin + p.split_size, p.num_samples);
  }

  __device__ __forceinline__ int64_t element(const IwlbParams& p, int64_t k, int u) const {
    return (k + u * rows) * p.stride_k + column;
  }
  __device__ __forceinline__ int count_of(int64_t k, int u) const { return k + u * rows < end ? count : 0; }

  // use(whole, k) for each of my batches: rows k, k + rows, ...
  template <class T, class Use>
  __device__ __forceinline__ void for_batches(Use use) const {
    int64_t k = begin + row;
    if (count == kPack<T>) {
      for (; k + (kBatch - 1) * rows < end; k += kBatch * rows) use(Whole<true>{}, k);
    }
    for (; k < end && count > 0; k += kBatch * rows) use(Whole<false>{}, k);
  }
};

template <class T, int bytes>
__global__ void __launch_bounds__(kThreads, kBlocks<T, false>) reduce_columns(const __grid_constant__ IwlbParams p) {
  using S = acc_t<T>;
  constexpr int n = kPack<T>;
  __shared__ S max_of[n][kThreads];
  __shared__ S sum_of[n][kThreads];
  const Tile<T, bytes> tile(p);
  const int64_t tasks = iwlb_column_tiles(p) * p.num_splits;
  const int me = static_cast<int>(threadIdx.x);
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const ColumnsPlace at(p, task, n);
    LogSumExp<S> a[n];
    FASTVI_UNROLL
    for (int j = 0; j < n; ++j) a[j] = tile.nothing();
    at.template for_batches<T>([&](auto whole, int64_t k) {
      Pack<S, n> x[kBatch];
      FASTVI_UNROLL
      for (int u = 0; u < kBatch; ++u) {
        x[u] = tile.template scaled<whole>(at.element(p, k, u), at.count_of(k, u));
      }
      FASTVI_UNROLL
      for (int j = 0; j < n; ++j) {
        S column[kBatch];
        FASTVI_UNROLL
        for (int u = 0; u < kBatch; ++u) column[u] = x[u][j];
        tile.add(column, &a[j]);
      }
    });
    // Rows meet by halves.
    for (int half = at.rows / 2; half > 0; half /= 2) {
      if (at.row >= half && at.row < 2 * half) {
        FASTVI_UNROLL
        for (int j = 0; j < n; ++j) {
          max_of[j][me] = a[j].max;
          sum_of[j][me] = a[j].sum;
        }
      }
      __syncthreads();
      if (at.row < half) {
        FASTVI_UNROLL
        for (int j = 0; j < n; ++j) {
          LogSumExp<S> other;
          other.max = max_of[j][me + half * at.side];
          other.sum = sum_of[j][me + half * at.side];
          a[j].merge(other);
        }
      }
    }
    if (at.row == 0) {
      FASTVI_UNROLL
      for (int j = 0; j < n; ++j) {
        if (j < at.count) tile.write_partial(at.split, at.column + j, a[j]);
      }
    }
    __syncthreads();
  }
}

template <class T, int bytes>
__global__ void __launch_bounds__(kThreads, kBlocks<T, true>) weigh_columns(const __grid_constant__ IwlbParams p) {
  using S = acc_t<T>;
  constexpr int n = kPack<T>;
  const Tile<T, bytes> tile(p);
  const int64_t tasks = iwlb_column_tiles(p) * p.num_splits;
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const ColumnsPlace at(p, task, n);
    S shift[n], factor[n];
    FASTVI_UNROLL
    for (int j = 0; j < n; ++j) {
      shift[j] = j < at.count ? tile.shift(at.column + j) : S(0);
      factor[j] = j < at.count ? tile.factor(at.column + j) : S(0);
    }
    at.template for_batches<T>([&](auto whole, int64_t k) {
      Pack<S, n> x[kBatch];
      FASTVI_UNROLL
      for (int u = 0; u < kBatch; ++u) {
        x[u] = tile.template scaled<whole>(at.element(p, k, u), at.count_of(k, u));
      }
      FASTVI_UNROLL
      for (int u = 0; u < kBatch; ++u) {
        FASTVI_UNROLL
        for (int j = 0; j < n; ++j) x[u][j] = tile.weight(x[u][j], shift[j], factor[j]);
        tile.template write<whole>(at.element(p, k, u), at.count_of(k, u), x[u]);
      }
    });
  }
}

// ---- adjacent samples: a group of threads per column and split ------------------------------------
template <int n>
struct SamplesPlace {
  int lanes, lane;
  int64_t column, split, begin, end;

  __device__ __forceinline__ SamplesPlace(const IwlbParams& p, int64_t first_task) {
    lanes = lanes_of(p);
    lane = static_cast<int>(threadIdx.x) % lanes;
    const int64_t task = first_task + static_cast<int>(threadIdx.x) / lanes;
    column = task % p.batch;
    split = task / p.batch;
    begin = split * p.split_size;
    // A group beyond the last task has nothing to read, but takes part in the shuffles.
    end = split < p.num_splits ? min_i64(begin + p.split_size, p.num_samples) : begin;
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

  static FASTVI_HD int lanes_of(const IwlbParams& p) {
    return group_lanes(min_i64(p.split_size, p.num_samples), 2 * n, 16 * kWarp * n);
  }
};

template <class T, int bytes>
__global__ void __launch_bounds__(kThreads, kBlocks<T, false>) reduce_samples(const __grid_constant__ IwlbParams p) {
  using S = acc_t<T>;
  constexpr int n = kPack<T>;
  const Tile<T, bytes> tile(p);
  const int groups = kThreads / SamplesPlace<n>::lanes_of(p);
  const int64_t tasks = p.batch * p.num_splits;
  for (int64_t task = static_cast<int64_t>(blockIdx.x) * groups; task < tasks;
       task += static_cast<int64_t>(gridDim.x) * groups) {
    const SamplesPlace<n> at(p, task);
    LogSumExp<S> a = tile.nothing();
    at.template for_batches<T>([&](auto whole, int64_t k) {
      S x[kBatch * n];
      FASTVI_UNROLL
      for (int u = 0; u < kBatch; ++u) {
        const Pack<S, n> pack = tile.template scaled<whole>(at.element(p, k, u), at.count_of(k, u));
        FASTVI_UNROLL
        for (int j = 0; j < n; ++j) x[u * n + j] = pack[j];
      }
      tile.add(x, &a);
    });
    a = merge_group(a, at.lanes);
    if (at.lane == 0 && at.split < p.num_splits) tile.write_partial(at.split, at.column, a);
  }
}

template <class T, int bytes>
__global__ void __launch_bounds__(kThreads, kBlocks<T, true>) weigh_samples(const __grid_constant__ IwlbParams p) {
  using S = acc_t<T>;
  constexpr int n = kPack<T>;
  const Tile<T, bytes> tile(p);
  const int groups = kThreads / SamplesPlace<n>::lanes_of(p);
  const int64_t tasks = p.batch * p.num_splits;
  for (int64_t task = static_cast<int64_t>(blockIdx.x) * groups; task < tasks;
       task += static_cast<int64_t>(gridDim.x) * groups) {
    const SamplesPlace<n> at(p, task);
    const S shift = tile.shift(at.column), factor = tile.factor(at.column);
    at.template for_batches<T>([&](auto whole, int64_t k) {
      Pack<S, n> x[kBatch];
      FASTVI_UNROLL
      for (int u = 0; u < kBatch; ++u) {
        x[u] = tile.template scaled<whole>(at.element(p, k, u), at.count_of(k, u));
      }
      FASTVI_UNROLL
      for (int u = 0; u < kBatch; ++u) {
        FASTVI_UNROLL
        for (int j = 0; j < n; ++j) x[u][j] = tile.weight(x[u][j], shift, factor);
        tile.template write<whole>(at.element(p, k, u), at.count_of(k, u), x[u]);
      }
    });
  }
}

// ---- the splits of a column meet: columns side by side, then lanes over splits ---------------------
constexpr int kCombineLanes = 64;

FASTVI_HD int combine_columns(const IwlbParams& p) {
  int lanes = 1;
  while (lanes < kCombineLanes && lanes < p.num_splits) lanes *= 2;
  return kThreads / lanes;
}

template <class S>
__global__ void __launch_bounds__(kThreads, 3) combine(const __grid_constant__ IwlbParams p) {
  __shared__ S max_of[kThreads];
  __shared__ double sum_of[kThreads];
  const int columns = combine_columns(p);
  const int lanes = kThreads / columns;
  const int me = static_cast<int>(threadIdx.x);
  const int lane = me / columns;
  const S* max = static_cast<const S*>(p.partial_max);
  const S* sum = static_cast<const S*>(p.partial_sum);
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * columns; first < p.batch;
       first += static_cast<int64_t>(gridDim.x) * columns) {
    const int64_t b = first + me % columns;
    const int64_t splits = b < p.batch ? p.num_splits : 0;
    S largest = LogSumExp<S>::lowest();
#pragma unroll 4
    for (int64_t s = lane; s < splits; s += lanes) largest = max_number(largest, max[s * p.batch + b]);
    max_of[me] = largest;
    for (int half = lanes / 2; half > 0; half /= 2) {
      __syncthreads();
      if (lane < half) max_of[me] = max_number(max_of[me], max_of[me + half * columns]);
    }
    __syncthreads();
    const S shift = max_of[me % columns];
    double total = 0;
#pragma unroll 4
    for (int64_t s = lane; s < splits; s += lanes) {
      const double part = static_cast<double>(sum[s * p.batch + b]);
      total += part * exp_nonpositive(static_cast<double>(max[s * p.batch + b]) - static_cast<double>(shift));
    }
    sum_of[me] = total;
    for (int half = lanes / 2; half > 0; half /= 2) {
      __syncthreads();
      if (lane < half) sum_of[me] += sum_of[me + half * columns];
    }
    if (lane == 0 && b < p.batch) {
      const S rounded = static_cast<S>(sum_of[me]);
      static_cast<S*>(p.shift)[b] = shift;
      static_cast<S*>(p.total)[b] = rounded;
      static_cast<S*>(p.bound)[b] = iwlb_bound(shift, rounded, p.num_samples, p.alpha);
    }
    __syncthreads();
  }
}

template <class T>
int access_of(const IwlbParams& p) {
  const int64_t step = p.stride_k == 1 ? p.stride_b : p.stride_k;
  const int64_t split = p.stride_k == 1 ? p.split_size : 0;
  return access_bytes({address_of(p.log_px), address_of(p.log_pz), address_of(p.log_qz), address_of(p.grad_log_w),
                       static_cast<uint64_t>(step) * sizeof(T), static_cast<uint64_t>(split) * sizeof(T)});
}

template <class T, bool backward, int bytes>
const char* launch_tiles(const IwlbParams& p, void* stream) {
  constexpr int access = bytes == 16 ? 16 : 1;
  if (iwlb_columns(p) > 1) {
    const int64_t blocks = iwlb_column_tiles(p) * p.num_splits;
    return launch_blocks(backward ? weigh_columns<T, access> : reduce_columns<T, access>, blocks, stream, p);
  }
  const int64_t groups = kThreads / SamplesPlace<kPack<T>>::lanes_of(p);
  const int64_t blocks = ceil_div(p.batch * p.num_splits, groups);
  return launch_blocks(backward ? weigh_samples<T, access> : reduce_samples<T, access>, blocks, stream, p);
}

template <bool backward>
const char* launch_iwlb(const IwlbParams& p, void* stream) {
  FASTVI_SWITCH_DTYPE(p.dtype, T, {
    FASTVI_SWITCH_ACCESS(access_of<T>(p), bytes, return (launch_tiles<T, backward, bytes>(p, stream)))
  })
  return "iwlb: unknown element type";
}

}  // namespace

const char* iwlb_partial::cuda(const IwlbParams& p, void* stream) { return launch_iwlb<false>(p, stream); }

const char* iwlb_combine::cuda(const IwlbParams& p, void* stream) {
  const int64_t blocks = ceil_div(p.batch, combine_columns(p));
  return launch_blocks(p.dtype == Dtype::f64 ? combine<double> : combine<float>, blocks, stream, p);
}

const char* iwlb_backward::cuda(const IwlbParams& p, void* stream) { return launch_iwlb<true>(p, stream); }

}  // namespace fastvi
