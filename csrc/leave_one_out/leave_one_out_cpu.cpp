#include "leave_one_out/leave_one_out.h"

namespace fastvi {
FASTVI_ISA_BEGIN

// Vectors of adjacent columns that are reduced together.
constexpr int kGroup = 4;
// Rows that are summed before their sum is added to that of the others: few roundings.
constexpr int64_t kRows = 64;

template <class V, class T>
V read(const T* p, int n, scalar_t<V> fill) {
  return n == Traits<V>::lanes ? load<V>(p) : load_partial<V>(p, n, fill);
}
template <class V, class T>
void write(T* p, V v, int n) {
  n == Traits<V>::lanes ? store(p, v) : store_partial(p, v, n);
}

// ---- the three numbers of a column
// ---------------------------------------------------------------- Those of row `row` of three
// arrays of `rows` rows: of `n` columns from b on, or, where the lanes are the samples of one
// column, that column's in every lane.
template <class State, class V>
State read_state(const void* base, int64_t rows, int64_t row, int64_t batch, int64_t b, int n) {
  using S = scalar_t<V>;
  const S* p = static_cast<const S*>(base) + row * batch + b;
  const int64_t step = rows * batch;
  if (batch == 1) {
    return State::from(broadcast<V>(p[0]), broadcast<V>(p[step]), broadcast<V>(p[2 * step]));
  }
  return State::from(read<V>(p, n, 0), read<V>(p + step, n, 0), read<V>(p + 2 * step, n, 0));
}

template <class State, class V>
void write_state(void* base, int64_t rows, int64_t row, int64_t batch, int64_t b, int n,
                 const State& a) {
  using S = scalar_t<V>;
  S* p = static_cast<S*>(base) + row * batch + b;
  const int64_t step = rows * batch;
  write(p, a.first(), n);
  write(p + step, a.second(), n);
  write(p + 2 * step, a.third(), n);
}

template <template <class> class State, class V>
State<V> merge_lanes(const State<V>& a) {
  using S = scalar_t<V>;
  const auto lane = [&](int i) {
    return State<S>::from(static_cast<S>(a.first()[i]), static_cast<S>(a.second()[i]),
                          static_cast<S>(a.third()[i]));
  };
  State<S> total = lane(0);
  for (int i = 1; i < Traits<V>::lanes; ++i) total.merge(lane(i));
  return State<V>::from(broadcast<V>(total.first()), broadcast<V>(total.second()),
                        broadcast<V>(total.third()));
}

// ---- what is summed over the samples
// --------------------------------------------------------------
template <class T>
struct OverWeights {
  using V = vec_t<T>;
  using State = LargestApart<V>;
  const LeaveOneOutParams& p;

  OverWeights(const LeaveOneOutParams& params, int64_t, int) : p(params) {}
  void add(int64_t i, int n, State* a) const {
    a->add(read<V>(static_cast<const T*>(p.log_w) + i, n, static_cast<acc_t<T>>(-kInfinity)));
  }
};

template <class T>
struct OverSignals {
  using V = vec_t<T>;
  using S = acc_t<T>;
  using State = Signals<V>;
  const LeaveOneOutParams& p;
  LeaveOneOutColumn<V> column;

  OverSignals(const LeaveOneOutParams& params, int64_t b, int n)
      : p(params), column(read_state<LargestApart<V>, V>(params.state, 1, 0, params.batch, b, n)) {}
  void add(int64_t i, int n, State* a) const {
    const V x = read<V>(static_cast<const T*>(p.log_w) + i, n, static_cast<S>(-kInfinity));
    column.add(x, read<V>(static_cast<const S*>(p.grad) + i, n, 0), a);
  }
};

struct Range {
  int64_t begin, end, split, b, last;
  Range(const LeaveOneOutParams& p, int64_t task) {
    const int64_t tiles = leave_one_out_tiles(p);
    split = task / tiles;
    begin = split * p.split_size;
    end = min_i64(begin + p.split_size, p.num_samples);
    b = task % tiles * kLeaveOneOutColumns;
    last = min_i64(b + kLeaveOneOutColumns, p.batch);
  }
};

template <class Over, int vectors>
void reduce_columns(const LeaveOneOutParams& p, const Range& range, int64_t b, int n) {
  using V = typename Over::V;
  constexpr int lanes = Traits<V>::lanes;
  typename Over::State total[vectors];
  const auto over = [&](int v) { return Over(p, b + v * lanes, n); };
  const auto add_rows = [&](const Over* all) {
    for (int64_t first = range.begin; first < range.end; first += kRows) {
      typename Over::State a[vectors];
      const int64_t end = min_i64(first + kRows, range.end);
      for (int64_t k = first; k < end; ++k) {
        FASTVI_UNROLL
        for (int v = 0; v < vectors; ++v) all[v].add(k * p.batch + b + v * lanes, n, &a[v]);
      }
      FASTVI_UNROLL
      for (int v = 0; v < vectors; ++v) {
        if (first == range.begin) {
          total[v] = a[v];
        } else {
          total[v].merge(a[v]);
        }
      }
    }
  };
  if constexpr (vectors == 1) {
    const Over one = over(0);
    add_rows(&one);
  } else {
    const Over all[vectors] = {over(0), over(1), over(2), over(3)};
    add_rows(all);
  }
  FASTVI_UNROLL
  for (int v = 0; v < vectors; ++v) {
    write_state<typename Over::State, V>(p.partial, p.num_splits, range.split, p.batch,
                                         b + v * lanes, n, total[v]);
  }
}

// One column: lanes over k.
template <class Over>
void reduce_samples(const LeaveOneOutParams& p, const Range& range) {
  using V = typename Over::V;
  constexpr int lanes = Traits<V>::lanes;
  const Over over(p, 0, lanes);
  typename Over::State a;
  for (int64_t k = range.begin; k < range.end; k += lanes) {
    over.add(k, static_cast<int>(min_i64(lanes, range.end - k)), &a);
  }
  write_state<typename Over::State, V>(p.partial, p.num_splits, range.split, 1, 0, 1,
                                       merge_lanes(a));
}

template <class Over>
void reduce(const LeaveOneOutParams& p, int64_t task) {
  constexpr int lanes = Traits<typename Over::V>::lanes;
  static_assert(kGroup == 4);
  const Range range(p, task);
  if (p.batch == 1) return reduce_samples<Over>(p, range);
  int64_t b = range.b;
  for (; b + kGroup * lanes <= range.last; b += kGroup * lanes) {
    reduce_columns<Over, kGroup>(p, range, b, lanes);
  }
  for (; b < range.last; b += lanes) {
    reduce_columns<Over, 1>(p, range, b, static_cast<int>(min_i64(lanes, range.last - b)));
  }
}

// The splits of a column meet in pairs, then the pairs in pairs: few roundings for any number.
template <template <class> class State, class S>
void combine(const LeaveOneOutParams& p, void* out, int64_t begin, int64_t end) {
  using V = vec_t<S>;
  constexpr int lanes = Traits<V>::lanes;
  const int64_t splits = p.num_splits;
  for (int64_t b = begin; b < end; b += lanes) {
    const int n = p.batch == 1 ? 1 : static_cast<int>(min_i64(lanes, end - b));
    const auto of = [&](int64_t s) {
      return read_state<State<V>, V>(p.partial, splits, s, p.batch, b, n);
    };
    for (int64_t step = 1; step < splits; step *= 2) {
      for (int64_t s = 0; s + step < splits; s += 2 * step) {
        State<V> a = of(s);
        a.merge(of(s + step));
        write_state<State<V>, V>(p.partial, splits, s, p.batch, b, n, a);
      }
    }
    write_state<State<V>, V>(out, 1, 0, p.batch, b, n, of(0));
  }
}

// ---- what is written for each sample
// ----------------------------------------------------------------
template <class T>
struct Value {
  using V = vec_t<T>;
  using S = acc_t<T>;
  const LeaveOneOutParams& p;
  LeaveOneOutColumn<V> column;
  V others_count;

  Value(const LeaveOneOutParams& params, int64_t b, int n)
      : p(params),
        column(read_state<LargestApart<V>, V>(params.state, 1, 0, params.batch, b, n)),
        others_count(broadcast<V>(static_cast<S>(params.num_samples - 1))) {}
  void at(int64_t i, int n) const {
    const V x = read<V>(static_cast<const T*>(p.log_w) + i, n, 0);
    write(static_cast<S*>(p.out) + i, column.value(x, others_count), n);
  }
};

template <class T>
struct Gradient {
  using V = vec_t<T>;
  using S = acc_t<T>;
  const LeaveOneOutParams& p;
  LeaveOneOutColumn<V> column;
  Signals<V> signals;
  V through_top;

  Gradient(const LeaveOneOutParams& params, int64_t b, int n)
      : p(params),
        column(read_state<LargestApart<V>, V>(params.state, 1, 0, params.batch, b, n)),
        signals(read_state<Signals<V>, V>(params.signals, 1, 0, params.batch, b, n)),
        through_top(column.through_top(signals)) {}
  void at(int64_t i, int n) const {
    const V x = read<V>(static_cast<const T*>(p.log_w) + i, n, 0);
    const V grad = read<V>(static_cast<const S*>(p.grad) + i, n, 0);
    write(static_cast<T*>(p.grad_log_w) + i, column.gradient(x, grad, signals, through_top), n);
  }
};

template <class Write>
void write_samples(const LeaveOneOutParams& p, int64_t task) {
  constexpr int lanes = Traits<typename Write::V>::lanes;
  const Range range(p, task);
  if (p.batch == 1) {
    const Write write(p, 0, lanes);
    for (int64_t k = range.begin; k < range.end; k += lanes) {
      write.at(k, static_cast<int>(min_i64(lanes, range.end - k)));
    }
    return;
  }
  for (int64_t b = range.b; b < range.last; b += lanes) {
    const int n = static_cast<int>(min_i64(lanes, range.last - b));
    const Write write(p, b, n);
    for (int64_t k = range.begin; k < range.end; ++k) write.at(k * p.batch + b, n);
  }
}

template <template <class> class Work>
void reduce_range(const LeaveOneOutParams& p, int64_t begin, int64_t end) {
  FASTVI_SWITCH_DTYPE(p.dtype, T, {
    for (int64_t task = begin; task < end; ++task) reduce<Work<T>>(p, task);
  })
}
template <template <class> class Work>
void write_range(const LeaveOneOutParams& p, int64_t begin, int64_t end) {
  FASTVI_SWITCH_DTYPE(p.dtype, T, {
    for (int64_t task = begin; task < end; ++task) write_samples<Work<T>>(p, task);
  })
}
template <template <class> class State>
void combine_range(const LeaveOneOutParams& p, void* out, int64_t begin, int64_t end) {
  p.dtype == Dtype::f64 ? combine<State, double>(p, out, begin, end)
                        : combine<State, float>(p, out, begin, end);
}

FASTVI_ISA_END

void leave_one_out_reduce::FASTVI_ISA(const Params& p, int64_t begin, int64_t end) {
  reduce_range<OverWeights>(p, begin, end);
}
void leave_one_out_combine::FASTVI_ISA(const Params& p, int64_t begin, int64_t end) {
  combine_range<LargestApart>(p, p.state, begin, end);
}
void leave_one_out_write::FASTVI_ISA(const Params& p, int64_t begin, int64_t end) {
  write_range<Value>(p, begin, end);
}
void leave_one_out_backward_reduce::FASTVI_ISA(const Params& p, int64_t begin, int64_t end) {
  reduce_range<OverSignals>(p, begin, end);
}
void leave_one_out_backward_combine::FASTVI_ISA(const Params& p, int64_t begin, int64_t end) {
  combine_range<Signals>(p, p.signals, begin, end);
}
void leave_one_out_backward_write::FASTVI_ISA(const Params& p, int64_t begin, int64_t end) {
  write_range<Gradient>(p, begin, end);
}

}  // namespace fastvi
