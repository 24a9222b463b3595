#include "engines/reduce.cuh"
#include "leave_one_out/leave_one_out.h"

namespace fastvi {
namespace {

// Rows in flight per thread: enough bytes on the way to keep the memory busy.
constexpr int kBatch = 4;

// Threads side by side over the columns of a tile, then over its rows. With one column all of them
// are rows, which lie side by side.
struct Place {
  int side;       // columns side by side, a power of two
  int rows, row;  // how many rows at once, and which of them is mine
  int64_t column, begin, end, split;
  bool mine;  // whether there is such a column

  __device__ __forceinline__ Place(const LeaveOneOutParams& p, int64_t task) {
    const int64_t tiles = leave_one_out_tiles(p);
    side = 1;
    while (side < min_i64(kLeaveOneOutColumns, p.batch)) side *= 2;
    rows = kThreads / side;
    row = static_cast<int>(threadIdx.x) / side;
    column = task % tiles * kLeaveOneOutColumns + static_cast<int>(threadIdx.x) % side;
    mine = column < p.batch;
    split = task / tiles;
    begin = split * p.split_size;
    end = min_i64(begin + p.split_size, p.num_samples);
  }

  // use(i, count) for my rows, kBatch at a time: element i of the first, and how many there are.
  template <class Use>
  __device__ __forceinline__ void for_batches(const LeaveOneOutParams& p, Use use) const {
    if (!mine) return;
    for (int64_t k = begin + row; k < end; k += kBatch * rows) {
      const int64_t left = ceil_div(end - k, rows);
      use(k * p.batch + column, static_cast<int>(min_i64(kBatch, left)));
    }
  }
};

template <class S>
__device__ __forceinline__ LeaveOneOutColumn<S> column_of(const LeaveOneOutParams& p, int64_t b) {
  const S* state = static_cast<const S*>(p.state);
  return LeaveOneOutColumn<S>(
      LargestApart<S>::from(state[b], state[p.batch + b], state[2 * p.batch + b]));
}

// kBatch elements, a row of the threads apart; `fill` beyond the last.
template <class T, class To = acc_t<T>>
__device__ __forceinline__ void load_rows(const void* from, int64_t i, int64_t step, int count,
                                          To fill, To (&x)[kBatch]) {
  FASTVI_UNROLL
  for (int u = 0; u < kBatch; ++u) {
    x[u] = u < count ? to_acc(static_cast<const T*>(from)[i + u * step]) : fill;
  }
}

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

// Every split of every column leaves its state; `add_to(at, &state)` is a thread's part of it.
template <class S, class State, class AddTo>
__device__ __forceinline__ void reduce_splits(const LeaveOneOutParams& p, Meeting<S>& meeting,
                                              AddTo add_to) {
  const int64_t tasks = leave_one_out_tiles(p) * p.num_splits;
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const Place at(p, task);
    State a;
    if (at.mine) add_to(at, &a);
    meeting.merge_rows(at.side, at.rows, at.row, &a);
    if (at.row == 0 && at.mine) {
      write_state<S>(p.partial, p.num_splits, at.split, p.batch, at.column, a);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    reduce_weights(const __grid_constant__ LeaveOneOutParams p) {
  using S = acc_t<T>;
  __shared__ Meeting<S> meeting;
  reduce_splits<S, LargestApart<S>>(p, meeting, [&](const Place& at, LargestApart<S>* a) {
    at.for_batches(p, [&](int64_t i, int count) {
      S x[kBatch];
      load_rows<T>(p.log_w, i, at.rows * p.batch, count, S(-kInfinity), x);
      FASTVI_UNROLL
      for (int u = 0; u < kBatch; ++u) a->add(x[u]);
    });
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    reduce_signals(const __grid_constant__ LeaveOneOutParams p) {
  using S = acc_t<T>;
  __shared__ Meeting<S> meeting;
  reduce_splits<S, Signals<S>>(p, meeting, [&](const Place& at, Signals<S>* a) {
    const LeaveOneOutColumn<S> column = column_of<S>(p, at.column);
    at.for_batches(p, [&](int64_t i, int count) {
      S x[kBatch], grad[kBatch];
      load_rows<T>(p.log_w, i, at.rows * p.batch, count, S(-kInfinity), x);
      load_rows<S>(p.grad, i, at.rows * p.batch, count, S(0), grad);
      FASTVI_UNROLL
      for (int u = 0; u < kBatch; ++u) column.add(x[u], grad[u], a);
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
  __shared__ Meeting<S> meeting;
  const int columns = leave_one_out_combine_columns(p);
  const int lanes = kThreads / columns;
  const int lane = static_cast<int>(threadIdx.x) / columns;
  const S* partial = static_cast<const S*>(p.partial);
  const int64_t step = p.num_splits * p.batch;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * columns; first < p.batch;
       first += static_cast<int64_t>(gridDim.x) * columns) {
    const int64_t b = first + static_cast<int>(threadIdx.x) % columns;
    State a;
    for (int64_t s = lane; b < p.batch && s < p.num_splits; s += lanes) {
      const S* one = partial + s * p.batch + b;
      a.merge(State::from(one[0], one[step], one[2 * step]));
    }
    meeting.merge_rows(columns, lanes, lane, &a);
    if (lane == 0 && b < p.batch) write_state<S>(out, 1, 0, p.batch, b, a);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    write_values(const __grid_constant__ LeaveOneOutParams p) {
  using S = acc_t<T>;
  const int64_t tasks = leave_one_out_tiles(p) * p.num_splits;
  const S others_count = static_cast<S>(p.num_samples - 1);
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const Place at(p, task);
    if (!at.mine) continue;
    const int64_t step = at.rows * p.batch;
    const LeaveOneOutColumn<S> column = column_of<S>(p, at.column);
    at.for_batches(p, [&](int64_t i, int count) {
      S x[kBatch];
      load_rows<T>(p.log_w, i, step, count, S(0), x);
      FASTVI_UNROLL
      for (int u = 0; u < kBatch; ++u) {
        if (u < count) static_cast<S*>(p.out)[i + u * step] = column.value(x[u], others_count);
      }
    });
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    write_gradients(const __grid_constant__ LeaveOneOutParams p) {
  using S = acc_t<T>;
  const int64_t tasks = leave_one_out_tiles(p) * p.num_splits;
  const S* signals = static_cast<const S*>(p.signals);
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const Place at(p, task);
    if (!at.mine) continue;
    const int64_t step = at.rows * p.batch;
    const LeaveOneOutColumn<S> column = column_of<S>(p, at.column);
    const Signals<S> a = Signals<S>::from(signals[at.column], signals[p.batch + at.column],
                                          signals[2 * p.batch + at.column]);
    at.for_batches(p, [&](int64_t i, int count) {
      S x[kBatch], grad[kBatch];
      load_rows<T>(p.log_w, i, step, count, S(0), x);
      load_rows<S>(p.grad, i, step, count, S(0), grad);
      FASTVI_UNROLL
      for (int u = 0; u < kBatch; ++u) {
        if (u < count) {
          static_cast<T*>(p.grad_log_w)[i + u * step] =
              from_acc<T>(column.gradient(x[u], grad[u], a));
        }
      }
    });
  }
}

template <class State32, class State64>
const char* launch_combine(const LeaveOneOutParams& p, void* out, void* stream) {
  const int64_t blocks = ceil_div(p.batch, leave_one_out_combine_columns(p));
  if (p.dtype == Dtype::f64) {
    return launch_blocks(combine_splits<double, State64>, blocks, stream, p, out);
  }
  return launch_blocks(combine_splits<float, State32>, blocks, stream, p, out);
}

int64_t blocks_of(const LeaveOneOutParams& p) { return leave_one_out_tiles(p) * p.num_splits; }

constexpr const char* kUnknownType = "leave_one_out: unknown element type";

}  // namespace

const char* leave_one_out_reduce::cuda(const Params& p, void* stream) {
  FASTVI_SWITCH_DTYPE(p.dtype, T, return launch_blocks(reduce_weights<T>, blocks_of(p), stream, p))
  return kUnknownType;
}
const char* leave_one_out_combine::cuda(const Params& p, void* stream) {
  return launch_combine<LargestApart<float>, LargestApart<double>>(p, p.state, stream);
}
const char* leave_one_out_write::cuda(const Params& p, void* stream) {
  FASTVI_SWITCH_DTYPE(p.dtype, T, return launch_blocks(write_values<T>, blocks_of(p), stream, p))
  return kUnknownType;
}
const char* leave_one_out_backward_reduce::cuda(const Params& p, void* stream) {
  FASTVI_SWITCH_DTYPE(p.dtype, T, return launch_blocks(reduce_signals<T>, blocks_of(p), stream, p))
  return kUnknownType;
}
const char* leave_one_out_backward_combine::cuda(const Params& p, void* stream) {
  return launch_combine<Signals<float>, Signals<double>>(p, p.signals, stream);
}
const char* leave_one_out_backward_write::cuda(const Params& p, void* stream) {
  FASTVI_SWITCH_DTYPE(p.dtype, T, return launch_blocks(write_gradients<T>, blocks_of(p), stream, p))
  return kUnknownType;
}

}  // namespace fastvi
