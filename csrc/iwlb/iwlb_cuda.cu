#include "iwlb/iwlb_tiles.cuh"

namespace fastvi {
namespace {

// ---- adjacent columns ---------------------------------------------------------------------------
template <class T, int bytes>
__global__ void __launch_bounds__(kThreads, kBlocks<T, false>)
    reduce_columns(const __grid_constant__ IwlbParams p) {
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
__global__ void __launch_bounds__(kThreads, kWeighBlocks<T, bytes>)
    weigh_columns(const __grid_constant__ IwlbParams p) {
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

// ---- adjacent samples ---------------------------------------------------------------------------
template <class T, int bytes>
__global__ void __launch_bounds__(kThreads, kBlocks<T, false>)
    reduce_samples(const __grid_constant__ IwlbParams p) {
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
__global__ void __launch_bounds__(kThreads, kBlocks<T, true>)
    weigh_samples(const __grid_constant__ IwlbParams p) {
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

// ---- the splits of a column meet: columns side by side, then lanes over splits ------------------
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
    for (int64_t s = lane; s < splits; s += lanes)
      largest = max_number(largest, max[s * p.batch + b]);
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
      total += part * exp_nonpositive(static_cast<double>(max[s * p.batch + b]) -
                                      static_cast<double>(shift));
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
  return access_bytes({address_of(p.log_px), address_of(p.log_pz), address_of(p.log_qz),
                       address_of(p.grad_log_w), static_cast<uint64_t>(step) * sizeof(T),
                       static_cast<uint64_t>(split) * sizeof(T)});
}

template <class T, bool backward, int bytes>
const char* launch_tiles(const IwlbParams& p, void* stream) {
  constexpr int access = bytes == 16 ? 16 : 1;
  if (iwlb_columns(p) > 1) {
    const int64_t blocks = iwlb_column_tiles(p) * p.num_splits;
    return launch_blocks(backward ? weigh_columns<T, access> : reduce_columns<T, access>, blocks,
                         stream, p);
  }
  const int64_t groups = kThreads / SamplesPlace<kPack<T>>::lanes_of(p);
  const int64_t blocks = ceil_div(p.batch * p.num_splits, groups);
  return launch_blocks(backward ? weigh_samples<T, access> : reduce_samples<T, access>, blocks,
                       stream, p);
}

template <bool backward>
const char* launch_iwlb(const IwlbParams& p, void* stream) {
  FASTVI_SWITCH_DTYPE(p.dtype, T,
                      {FASTVI_SWITCH_ACCESS(access_of<T>(p), bytes,
                                            return (launch_tiles<T, backward, bytes>(p, stream)))})
  return "iwlb: unknown element type";
}

}  // namespace

const char* iwlb_partial::cuda(const IwlbParams& p, void* stream) {
  return launch_iwlb<false>(p, stream);
}

const char* iwlb_combine::cuda(const IwlbParams& p, void* stream) {
  const int64_t blocks = ceil_div(p.batch, combine_columns(p));
  return launch_blocks(p.dtype == Dtype::f64 ? combine<double> : combine<float>, blocks, stream, p);
}

const char* iwlb_backward::cuda(const IwlbParams& p, void* stream) {
  return launch_iwlb<true>(p, stream);
}

}  // namespace fastvi
