#include "engines/last_block.cuh"
#include "iwlb/iwlb_tiles.cuh"

namespace fastvi {
namespace {

// ---- the splits of a column meet: columns side by side, then lanes over the splits --------------
template <class S>
struct Meeting {
  S max[kThreads];
  double sum[kThreads];

  // The rows [first, first + count) of the partial results of `columns` columns from b on, a power
  // of two of them; use(column, shift, total) for each that there is.
  template <class Use>
  __device__ __forceinline__ void of_rows(const IwlbParams& p, int64_t first, int64_t count,
                                          int64_t b, int columns, Use use) {
    const int me = static_cast<int>(threadIdx.x);
    const int lanes = kThreads / columns, lane = me / columns;
    b += me - lane * columns;
    const S* of_max = static_cast<const S*>(p.partial_max) + first * p.batch + b;
    const S* of_sum = static_cast<const S*>(p.partial_sum) + first * p.batch + b;
    if (b >= p.batch) count = 0;
    S largest = LogSumExp<S>::lowest();
#pragma unroll 4
    for (int64_t s = lane; s < count; s += lanes)
      largest = max_number(largest, of_max[s * p.batch]);
    max[me] = largest;
    for (int half = lanes / 2; half > 0; half /= 2) {
      __syncthreads();
      if (lane < half) max[me] = max_number(max[me], max[me + half * columns]);
    }
    __syncthreads();
    const S shift = max[me - lane * columns];
    double total = 0;
#pragma unroll 4
    for (int64_t s = lane; s < count; s += lanes) {
      total +=
          static_cast<double>(of_sum[s * p.batch] * exp_nonpositive(of_max[s * p.batch] - shift));
    }
    sum[me] = total;
    for (int half = lanes / 2; half > 0; half /= 2) {
      __syncthreads();
      if (lane < half) sum[me] += sum[me + half * columns];
    }
    if (lane == 0 && b < p.batch) use(b, shift, static_cast<S>(sum[me]));
    // What was read here is not to be overwritten before all have read it.
    __syncthreads();
  }
};

// A launch of its own, where no counters are to be had.
constexpr int kCombineLanes = 64;

FASTVI_HD int combine_columns(const IwlbParams& p) {
  int lanes = 1;
  while (lanes < kCombineLanes && lanes < p.num_splits) lanes *= 2;
  return kThreads / lanes;
}

template <class S>
__global__ void __launch_bounds__(kThreads, 2) combine(const __grid_constant__ IwlbParams p) {
  wait_for_launch_before();
  __shared__ Meeting<S> meeting;
  const int columns = combine_columns(p);
  const Tile<S, 1> tile(p);
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * columns; first < p.batch;
       first += static_cast<int64_t>(gridDim.x) * columns) {
    meeting.of_rows(p, 0, p.num_splits, first, columns,
                    [&](int64_t b, S shift, S total) { tile.write_bound(b, shift, total); });
  }
}

// The splits of `columns` columns from b on, the tile of number `tile_number`: after each split
// comes the last of its group, and after each group the last of them. A block calls it for each of
// its splits.
template <class TileOf, class S>
__device__ __forceinline__ void finish(const IwlbParams& p, const Plan& plan, const TileOf& tile,
                                       Meeting<S>& meeting, int64_t tile_number, int split,
                                       int64_t b, int columns) {
  if (plan.counter < 0) return;
  const int counter = plan.counter + static_cast<int>(tile_number) * (plan.groups + 1);
  int first = 0, count = plan.num_splits;
  if (plan.groups > 0) {
    const int group = split / static_cast<int>(kIwlbGroup);
    const int begin = group * static_cast<int>(kIwlbGroup);
    const int size = plan.num_splits - begin < kIwlbGroup ? plan.num_splits - begin
                                                          : static_cast<int>(kIwlbGroup);
    if (!is_last_part(counter + 1 + group, size)) return;
    first = plan.num_splits, count = plan.groups;
    meeting.of_rows(p, begin, size, b, columns, [&](int64_t column, S max, S sum) {
      tile.write_partial(first + group, column, max, sum);
    });
  }
  if (!is_last_part(counter, count)) return;
  meeting.of_rows(p, first, count, b, columns, [&](int64_t column, S shift, S total) {
    tile.write_bound(column, shift, total);
  });
}

// ---- adjacent columns ---------------------------------------------------------------------------
template <class T, int bytes>
__global__ void __launch_bounds__(kThreads, kBlocks<T, false>)
    reduce_columns(const __grid_constant__ IwlbParams p, const __grid_constant__ Plan plan) {
  if (plan.is_combined_behind()) may_be_followed();
  using S = acc_t<T>;
  constexpr int n = kPack<T>;
  __shared__ S max_of[n][kThreads];
  __shared__ S sum_of[n][kThreads];
  __shared__ Meeting<S> meeting;
  const Tile<T, bytes> tile(p);
  const int me = static_cast<int>(threadIdx.x);
  for (int64_t task = blockIdx.x; task < plan.tasks; task += gridDim.x) {
    const ColumnsPlace at(p, plan, task, n);
    LogSumExp<S> a[n];
    FASTVI_UNROLL
    for (int j = 0; j < n; ++j) a[j] = tile.nothing();
    at.template for_batches<T>([&](auto whole, int64_t i, int rest) {
      Pack<S, n> x[kBatch];
      FASTVI_UNROLL
      for (int u = 0; u < kBatch; ++u) {
        x[u] = tile.template scaled<whole>(i + u * at.step, at.count_of(u, rest));
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
        if (j >= at.count) continue;
        if (plan.num_splits == 1) {
          tile.write_bound(at.column + j, a[j].max, a[j].sum);
        } else {
          tile.write_partial(at.split, at.column + j, a[j].max, a[j].sum);
        }
      }
    }
    if (plan.num_splits > 1) {
      // Threads beyond the columns of a narrow tile are lanes of no column.
      const int columns = at.side * n < kIwlbColumns ? at.side * n : static_cast<int>(kIwlbColumns);
      finish(p, plan, tile, meeting, at.tile, at.split, at.tile * kIwlbColumns, columns);
    }
    __syncthreads();
  }
}

template <class T, int bytes>
__global__ void __launch_bounds__(kThreads, kWeighBlocks<T, bytes>)
    weigh_columns(const __grid_constant__ IwlbParams p, const __grid_constant__ Plan plan) {
  using S = acc_t<T>;
  constexpr int n = kPack<T>;
  const Tile<T, bytes> tile(p);
  for (int64_t task = blockIdx.x; task < plan.tasks; task += gridDim.x) {
    const ColumnsPlace at(p, plan, task, n);
    S shift[n], factor[n];
    FASTVI_UNROLL
    for (int j = 0; j < n; ++j) {
      shift[j] = j < at.count ? tile.shift(at.column + j) : S(0);
      factor[j] = j < at.count ? tile.factor(at.column + j) : S(0);
    }
    at.template for_batches<T>([&](auto whole, int64_t i, int rest) {
      Pack<S, n> x[kBatch];
      FASTVI_UNROLL
      for (int u = 0; u < kBatch; ++u) {
        x[u] = tile.template scaled<whole>(i + u * at.step, at.count_of(u, rest));
      }
      FASTVI_UNROLL
      for (int u = 0; u < kBatch; ++u) {
        FASTVI_UNROLL
        for (int j = 0; j < n; ++j) x[u][j] = tile.weight(x[u][j], shift[j], factor[j]);
        tile.template write<whole>(i + u * at.step, at.count_of(u, rest), x[u]);
      }
    });
  }
}

// ---- adjacent samples ---------------------------------------------------------------------------
template <class T, int bytes>
__global__ void __launch_bounds__(kThreads, kBlocks<T, false>)
    reduce_samples(const __grid_constant__ IwlbParams p, const __grid_constant__ Plan plan) {
  if (plan.is_combined_behind()) may_be_followed();
  using S = acc_t<T>;
  constexpr int n = kPack<T>;
  __shared__ Meeting<S> meeting;
  const Tile<T, bytes> tile(p);
  const int groups = kThreads >> plan.lanes_log2;
  for (int64_t task = static_cast<int64_t>(blockIdx.x) * groups; task < plan.tasks;
       task += static_cast<int64_t>(gridDim.x) * groups) {
    const SamplesPlace<n> at(p, plan, task);
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
    if (at.lane == 0 && at.begin < at.end) {
      if (plan.num_splits == 1) {
        tile.write_bound(at.column, a.max, a.sum);
      } else {
        tile.write_partial(at.split, at.column, a.max, a.sum);
      }
    }
    // Where a split is a block's, its column is too.
    if (plan.num_splits > 1) {
      finish(p, plan, tile, meeting, at.column, static_cast<int>(at.split), at.column, 1);
    }
  }
}

template <class T, int bytes>
__global__ void __launch_bounds__(kThreads, kBlocks<T, true>)
    weigh_samples(const __grid_constant__ IwlbParams p, const __grid_constant__ Plan plan) {
  using S = acc_t<T>;
  constexpr int n = kPack<T>;
  const Tile<T, bytes> tile(p);
  const int groups = kThreads >> plan.lanes_log2;
  for (int64_t task = static_cast<int64_t>(blockIdx.x) * groups; task < plan.tasks;
       task += static_cast<int64_t>(gridDim.x) * groups) {
    const SamplesPlace<n> at(p, plan, task);
    if (at.begin >= at.end) continue;
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

template <class T>
int access_of(const IwlbParams& p) {
  const int64_t step = p.stride_k == 1 ? p.stride_b : p.stride_k;
  const int64_t split = p.stride_k == 1 ? p.split_size : 0;
  return access_bytes({address_of(p.log_px), address_of(p.log_pz), address_of(p.log_qz),
                       address_of(p.grad_log_w), static_cast<uint64_t>(step) * sizeof(T),
                       static_cast<uint64_t>(split) * sizeof(T)});
}

int log2_of(int64_t power) {
  int log2 = 0;
  while (int64_t{1} << log2 < power) ++log2;
  return log2;
}

template <int n>
Plan plan_of(const IwlbParams& p) {
  Plan plan{};
  plan.tiles = iwlb_column_tiles(p);
  plan.tasks = plan.tiles * p.num_splits;
  plan.side_log2 = log2_of(ceil_div(min_i64(kIwlbColumns, p.batch), n));
  plan.lanes_log2 = log2_of(SamplesPlace<n>::lanes_of(p));
  plan.split_size = static_cast<int>(p.split_size);
  plan.num_splits = static_cast<int>(p.num_splits);
  plan.groups = static_cast<int>(iwlb_groups(p));
  plan.counter = -1;
  return plan;
}

// The counters that the forward pass is to have, if splits meet and each is a whole block's.
template <int n>
int counters_of(const IwlbParams& p, const Plan& plan, void* stream) {
  const bool whole_blocks = iwlb_columns(p) > 1 || 1 << plan.lanes_log2 == kThreads;
  if (p.num_splits == 1 || !whole_blocks) return -1;
  return counters_for(stream, plan.tiles * (plan.groups + 1));
}

template <class T, bool backward, int bytes>
const char* launch_tiles(const IwlbParams& p, void* stream) {
  constexpr int access = bytes == 16 ? 16 : 1, n = kPack<T>;
  using S = acc_t<T>;
  Plan plan = plan_of<n>(p);
  if (!backward) plan.counter = counters_of<n>(p, plan, stream);
  const char* error = nullptr;
  if (iwlb_columns(p) > 1) {
    error = launch_blocks(backward ? weigh_columns<T, access> : reduce_columns<T, access>,
                          plan.tasks, stream, p, plan);
  } else {
    error = launch_blocks(backward ? weigh_samples<T, access> : reduce_samples<T, access>,
                          ceil_div(plan.tasks, kThreads >> plan.lanes_log2), stream, p, plan);
  }
  if (backward || error != nullptr || !plan.is_combined_behind()) return error;
  return launch_after<combine<S>>(ceil_div(p.batch, combine_columns(p)), stream, p);
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

const char* iwlb_combine::cuda(const IwlbParams&, void*) { return nullptr; }

const char* iwlb_backward::cuda(const IwlbParams& p, void* stream) {
  return launch_iwlb<true>(p, stream);
}

}  // namespace fastvi
