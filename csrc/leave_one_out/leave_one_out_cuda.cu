#include "engines/last_block.cuh"
#include "engines/reduce.cuh"
#include "leave_one_out/leave_one_out.h"

namespace fastvi {
namespace {

// Rows in flight per thread: enough bytes on the way to keep the memory busy.
template <class T>
constexpr int kBatch = sizeof(T) == 8 ? 4 : 8;
constexpr int kLog2Threads = 8;
static_assert(1 << kLog2Threads == kThreads);
template <int n>
struct Rows {
  static constexpr int count = n;
};

// What the host works out once for all blocks. Of rows a split has fewer than 2^31: there is no
// memory for more.
struct Plan {
  int64_t tiles, tasks;  // of columns, and with the splits
  int side_log2;         // columns side by side
  int split_size;
  bool near;    // whether a split has fewer than 2^31 elements
  int counter;  // the first of the launch, or -1 where a launch of its own puts splits together
};
// More splits than this are too many for the block that finishes last.
constexpr int64_t kFewSplits = 64;

Plan plan_of(const LeaveOneOutParams& p) {
  Plan plan{};
  while (1 << plan.side_log2 < min_i64(kLeaveOneOutColumns, p.batch)) ++plan.side_log2;
  plan.tiles = leave_one_out_tiles(p);
  plan.tasks = plan.tiles * p.num_splits;
  plan.split_size = static_cast<int>(p.split_size);
  plan.near = p.split_size + kThreads < (int64_t{1} << 31) / max_i64(1, p.batch);
  plan.counter = -1;
  return plan;
}

// Threads side by side over the columns of a tile, then over its rows. With one column all of them
// are rows, which lie side by side.
struct Place {
  int side, rows, row;  // how many columns and rows at once, and which row is mine
  int count;            // of my rows, `step` elements apart
  int split;
  bool near;  // whether the place of each of my rows, from the first on, is a number of 32 bits
  int64_t column, first, step;

  __device__ __forceinline__ Place(const LeaveOneOutParams& p, const Plan& plan, int64_t task) {
    const int me = static_cast<int>(threadIdx.x);
    side = 1 << plan.side_log2;
    rows = kThreads >> plan.side_log2;
    row = me >> plan.side_log2;
    split = static_cast<int>(task), column = me & (side - 1);
    if (plan.tiles > 1) {
      split = static_cast<int>(task / plan.tiles);
      column += (task - split * plan.tiles) * kLeaveOneOutColumns;
    }
    const int64_t begin = static_cast<int64_t>(split) * plan.split_size + row;
    const int64_t left = p.num_samples - begin;
    count = plan.split_size - row;
    if (left < count) count = static_cast<int>(left);
    count = mine(p) ? (count + rows - 1) >> (kLog2Threads - plan.side_log2) : 0;
    first = begin * p.batch + column;
    step = p.batch << (kLog2Threads - plan.side_log2);
    near = plan.near;
  }
  __device__ __forceinline__ bool mine(const LeaveOneOutParams& p) const {
    return column < p.batch;
  }

  // use(rows, i) for all of mine in turn, from element i on: whole batches of them, and then, or
  // where their places do not fit in 32 bits, one after another.
  template <class T, class Use>
  __device__ __forceinline__ void for_rows(Use use) const {
    int left = count;
    unsigned i = 0;
    if (near) {
#pragma unroll 1
      for (; left >= kBatch<T>; left -= kBatch<T>) {
        use(Rows<kBatch<T>>{}, i);
        i += static_cast<unsigned>(step) * kBatch<T>;
      }
    }
    int64_t k = i;
#pragma unroll 1
    for (; left > 0; --left, k += step) use(Rows<1>{}, k);
  }
};

template <class S>
__device__ __forceinline__ LeaveOneOutColumn<S> column_of(const LeaveOneOutParams& p, int64_t b) {
  const S* state = static_cast<const S*>(p.state) + b;
  return LeaveOneOutColumn<S>(LargestApart<S>::from(state[0], state[p.batch], state[2 * p.batch]));
}

// One of the arrays, from the place of a thread on: rows from element i on, of which rows.count.
template <class T>
struct Walk {
  T* at;
  unsigned step;

  template <class Array>
  __device__ __forceinline__ Walk(Array* array, const Place& place)
      : at(static_cast<T*>(array) + place.first), step(static_cast<unsigned>(place.step)) {
#if defined(__CUDA_ARCH__)
    // One sum, made once: left to itself the compiler adds the place to the array at each row.
    asm volatile("mov.b64 %0, %0;" : "+l"(at));
    __builtin_assume(__isGlobal(at));
#endif
  }
  template <int n, class S, class Index>
  __device__ __forceinline__ void take(Index i, S (&x)[n]) const {
    FASTVI_UNROLL
    for (int u = 0; u < n; ++u, i += step) x[u] = to_acc(at[i]);
  }
  template <int n, class S, class Index>
  __device__ __forceinline__ void put(Index i, const S (&x)[n]) const {
    FASTVI_UNROLL
    for (int u = 0; u < n; ++u, i += step) at[i] = from_acc<T>(x[u]);
  }
};

// Three numbers of each thread, where threads meet.
template <class S>
struct Meeting {
  S of[3][kThreads];

  template <class State>
  __device__ __forceinline__ void leave(int at, const State& a) {
    of[0][at] = a.first();
    of[1][at] = a.second();
    of[2][at] = a.third();
  }
  template <class State>
  __device__ __forceinline__ State take(int at) const {
    return State::from(of[0][at], of[1][at], of[2][at]);
  }

  // The rows of threads, `side` apart, meet by halves; the first row has the result.
  template <class State>
  __device__ __forceinline__ void merge_rows(int side, int rows, int row, State* a) {
    const int me = static_cast<int>(threadIdx.x);
    for (int half = rows / 2; half > 0; half /= 2) {
      if (row >= half && row < 2 * half) leave(me, *a);
      __syncthreads();
      if (row < half) a->merge(take<State>(me + half * side));
    }
    // What was read last is not to be overwritten before all have read it.
    __syncthreads();
  }
};

template <class S, class State>
__device__ __forceinline__ void write_state(void* base, int64_t rows, int64_t row, int64_t batch,
                                            int64_t b, const State& a) {
  S* p = static_cast<S*>(base) + row * batch + b;
  p[0] = a.first();
  p[rows * batch] = a.second();
  p[2 * rows * batch] = a.third();
}

template <class S, class State>
__device__ __forceinline__ State read_split(const LeaveOneOutParams& p, int64_t split, int64_t b) {
  const S* one = static_cast<const S*>(p.partial) + split * p.batch + b;
  const int64_t step = p.num_splits * p.batch;
  return State::from(one[0], one[step], one[2 * step]);
}

// Every split of every column leaves its state; `add_to(at, &state)` is a thread's part of it. The
// last split of a tile puts them together.
template <class S, class State, class AddTo>
__device__ __forceinline__ void reduce_splits(const LeaveOneOutParams& p, const Plan& plan,
                                              void* out, Meeting<S>& meeting, AddTo add_to) {
  for (int64_t task = blockIdx.x; task < plan.tasks; task += gridDim.x) {
    const Place at(p, plan, task);
    State a;
    if (at.mine(p)) add_to(at, &a);
    meeting.merge_rows(at.side, at.rows, at.row, &a);
    if (at.row == 0 && at.mine(p)) {
      // One split's state is the column's.
      write_state<S>(p.num_splits == 1 ? out : p.partial, p.num_splits, at.split, p.batch,
                     at.column, a);
    }
    if (plan.counter < 0) continue;
    const int tile = static_cast<int>(at.column / kLeaveOneOutColumns);
    if (!is_last_part(plan.counter + tile, static_cast<int>(p.num_splits))) continue;
    State all;
    for (int64_t s = at.row; at.mine(p) && s < p.num_splits; s += at.rows) {
      all.merge(read_split<S, State>(p, s, at.column));
    }
    meeting.merge_rows(at.side, at.rows, at.row, &all);
    if (at.row == 0 && at.mine(p)) write_state<S>(out, 1, 0, p.batch, at.column, all);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    reduce_weights(const __grid_constant__ LeaveOneOutParams p, const __grid_constant__ Plan plan) {
  may_be_followed();
  using S = acc_t<T>;
  __shared__ Meeting<S> meeting;
  reduce_splits<S, LargestApart<S>>(p, plan, p.state, meeting,
                                    [&](const Place& at, LargestApart<S>* a) {
                                      const Walk<const T> log_w(p.log_w, at);
                                      at.template for_rows<T>([&](auto rows, auto i) {
                                        S x[rows.count];
                                        log_w.take(i, x);
                                        FASTVI_UNROLL
                                        for (int u = 0; u < rows.count; ++u) a->add(x[u]);
                                      });
                                    });
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    reduce_signals(const __grid_constant__ LeaveOneOutParams p, const __grid_constant__ Plan plan) {
  may_be_followed();
  using S = acc_t<T>;
  __shared__ Meeting<S> meeting;
  reduce_splits<S, Signals<S>>(p, plan, p.signals, meeting, [&](const Place& at, Signals<S>* a) {
    const LeaveOneOutColumn<S> column = column_of<S>(p, at.column);
    const Walk<const T> log_w(p.log_w, at);
    const Walk<const S> grads(p.grad, at);
    at.template for_rows<T>([&](auto rows, auto i) {
      S x[rows.count], grad[rows.count];
      log_w.take(i, x);
      grads.take(i, grad);
      FASTVI_UNROLL
      for (int u = 0; u < rows.count; ++u) column.add(x[u], grad[u], a);
    });
  });
}

// The splits of a column meet: columns side by side, then lanes over splits.
constexpr int kCombineLanes = 64;

FASTVI_HD int leave_one_out_combine_columns(const LeaveOneOutParams& p) {
  int lanes = 1;
  while (lanes < kCombineLanes && lanes < p.num_splits) lanes *= 2;
  return kThreads / lanes;
}

template <class S, class State>
__global__ void __launch_bounds__(kThreads, 3)
    combine_splits(const __grid_constant__ LeaveOneOutParams p, void* out) {
  wait_for_launch_before();
  may_be_followed();
  __shared__ Meeting<S> meeting;
  const int columns = leave_one_out_combine_columns(p);
  const int lanes = kThreads / columns;
  const int lane = static_cast<int>(threadIdx.x) / columns;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * columns; first < p.batch;
       first += static_cast<int64_t>(gridDim.x) * columns) {
    const int64_t b = first + static_cast<int>(threadIdx.x) % columns;
    State a;
    for (int64_t s = lane; b < p.batch && s < p.num_splits; s += lanes) {
      a.merge(read_split<S, State>(p, s, b));
    }
    meeting.merge_rows(columns, lanes, lane, &a);
    if (lane == 0 && b < p.batch) write_state<S>(out, 1, 0, p.batch, b, a);
  }
}

template <class T, class S>
__global__ void __launch_bounds__(kThreads, 3)
    write_values(const __grid_constant__ LeaveOneOutParams p, const __grid_constant__ Plan plan,
                 S others, S inverse) {
  wait_for_launch_before();
  for (int64_t task = blockIdx.x; task < plan.tasks; task += gridDim.x) {
    const Place at(p, plan, task);
    if (at.count <= 0) continue;
    const LeaveOneOutColumn<S> column = column_of<S>(p, at.column);
    const auto write = [&](auto value) {
      const Walk<const T> log_w(p.log_w, at);
      const Walk<S> out(p.out, at);
      at.template for_rows<T>([&](auto rows, auto i) {
        S x[rows.count];
        log_w.take(i, x);
        FASTVI_UNROLL
        for (int u = 0; u < rows.count; ++u) x[u] = value(x[u]);
        out.put(i, x);
      });
    };
    if (column.ordinary()) {
      write([&](S x) { return column.ordinary_value(x, others, inverse); });
    } else {
      write([&](S x) { return column.value(x, others); });
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    write_gradients(const __grid_constant__ LeaveOneOutParams p,
                    const __grid_constant__ Plan plan) {
  wait_for_launch_before();
  using S = acc_t<T>;
  const S* signals = static_cast<const S*>(p.signals);
  for (int64_t task = blockIdx.x; task < plan.tasks; task += gridDim.x) {
    const Place at(p, plan, task);
    if (at.count <= 0) continue;
    const LeaveOneOutColumn<S> column = column_of<S>(p, at.column);
    const Signals<S> a = Signals<S>::from(signals[at.column], signals[p.batch + at.column],
                                          signals[2 * p.batch + at.column]);
    const S through_top = column.through_top(a);
    const Walk<const T> log_w(p.log_w, at);
    const Walk<const S> grads(p.grad, at);
    const Walk<T> out(p.grad_log_w, at);
    at.template for_rows<T>([&](auto rows, auto i) {
      S x[rows.count], grad[rows.count];
      log_w.take(i, x);
      grads.take(i, grad);
      FASTVI_UNROLL
      for (int u = 0; u < rows.count; ++u) {
        x[u] = column.gradient(x[u], grad[u], a, through_top);
      }
      out.put(i, x);
    });
  }
}

template <class State32, class State64>
const char* launch_combine(const LeaveOneOutParams& p, void* out, void* stream) {
  const int64_t blocks = ceil_div(p.batch, leave_one_out_combine_columns(p));
  if (p.dtype == Dtype::f64) {
    return launch_after<combine_splits<double, State64>>(blocks, stream, p, out);
  }
  return launch_after<combine_splits<float, State32>>(blocks, stream, p, out);
}

constexpr const char* kUnknownType = "leave_one_out: unknown element type";

template <auto kernel, class... Numbers>
const char* launch_tiles(const LeaveOneOutParams& p, void* stream, Numbers... numbers) {
  const Plan plan = plan_of(p);
  return launch_after<kernel>(plan.tasks, stream, p, plan, numbers...);
}

// The states of the splits, and of the columns: `combine` is a launch of its own, if one is needed.
template <class Kernel, class Combine>
const char* launch_reduce(Kernel kernel, const LeaveOneOutParams& p, void* stream,
                          Combine combine) {
  Plan plan = plan_of(p);
  const bool meet = p.num_splits > 1;
  if (meet && p.num_splits <= kFewSplits) plan.counter = counters_for(stream, plan.tiles);
  const char* error = launch_blocks(kernel, plan.tasks, stream, p, plan);
  return error == nullptr && meet && plan.counter < 0 ? combine() : error;
}

}  // namespace

const char* leave_one_out_reduce::cuda(const Params& p, void* stream) {
  const auto combine = [&] {
    return launch_combine<LargestApart<float>, LargestApart<double>>(p, p.state, stream);
  };
  FASTVI_SWITCH_DTYPE(p.dtype, T, return launch_reduce(reduce_weights<T>, p, stream, combine))
  return kUnknownType;
}
const char* leave_one_out_combine::cuda(const Params&, void*) { return nullptr; }
const char* leave_one_out_write::cuda(const Params& p, void* stream) {
  FASTVI_SWITCH_DTYPE(p.dtype, T, {
    using S = acc_t<T>;
    const S others = static_cast<S>(p.num_samples - 1);
    const S inverse = static_cast<S>(1.0 / static_cast<double>(others));
    return (launch_tiles<write_values<T, S>>(p, stream, others, inverse));
  })
  return kUnknownType;
}
const char* leave_one_out_backward_reduce::cuda(const Params& p, void* stream) {
  const auto combine = [&] {
    return launch_combine<Signals<float>, Signals<double>>(p, p.signals, stream);
  };
  FASTVI_SWITCH_DTYPE(p.dtype, T, return launch_reduce(reduce_signals<T>, p, stream, combine))
  return kUnknownType;
}
const char* leave_one_out_backward_combine::cuda(const Params&, void*) { return nullptr; }
const char* leave_one_out_backward_write::cuda(const Params& p, void* stream) {
  FASTVI_SWITCH_DTYPE(p.dtype, T, return launch_tiles<write_gradients<T>>(p, stream))
  return kUnknownType;
}

}  // namespace fastvi
