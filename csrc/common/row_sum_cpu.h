// The CPU kernels of common/row_sum.h: a task is a segment of a row, or of the rows of a RowCut.
#pragma once

#include "common/row_sum.h"

namespace fastvi {
FASTVI_ISA_BEGIN

template <class Family, class TV, class T>
struct RowSumCpu {
  using V = vec_t<T>;
  using S = acc_t<T>;
  static constexpr int lanes = Traits<V>::lanes;
  static constexpr int arity = Family::arity;
  static constexpr int kFlush = 64;
  static constexpr int64_t kGathered = 256;  // elements that short rows are gathered into

  using Quick = typename QuickOf<Family>::type;
  static constexpr bool has_quick = !__is_same(Quick, Family);
  static bool is_right(S found) { return !has_quick || found - found == 0; }

  const RowSumParams& p;
  bool uniform[arity];  // one number serves a whole row

  explicit RowSumCpu(const RowSumParams& params) : p(params) {
    for (int i = 0; i < arity; ++i) uniform[i] = p.operands[i].stride == 0;
  }

  // ---- one row ----------------------------------------------------------------------------------
  struct Row {
    const void* data[arity];
    V constant[arity];
  };

  FASTVI_HD S scalar_at(int i, const void* data, int64_t f) const {
    return i == 0 ? to_acc(static_cast<const TV*>(data)[f])
                  : to_acc(static_cast<const T*>(data)[f]);
  }

  FASTVI_HD Row open(int64_t row) const {
    Row out;
    FASTVI_UNROLL
    for (int i = 0; i < arity; ++i) {
      const int64_t at = operand_row(p.operands[i], row);
      out.data[i] = i == 0
                        ? static_cast<const void*>(static_cast<const TV*>(p.operands[i].data) + at)
                        : static_cast<const void*>(static_cast<const T*>(p.operands[i].data) + at);
      if (uniform[i]) out.constant[i] = broadcast<V>(scalar_at(i, out.data[i], 0));
    }
    return out;
  }

  FASTVI_HD void read(const Row& row, int64_t f, V (&x)[arity]) const {
    FASTVI_UNROLL
    for (int i = 0; i < arity; ++i) {
      if (uniform[i]) {
        x[i] = row.constant[i];
      } else if (i == 0) {
        x[i] = load<V>(static_cast<const TV*>(row.data[i]) + f);
      } else {
        x[i] = load<V>(static_cast<const T*>(row.data[i]) + f);
      }
    }
  }

  FASTVI_HD void read_partial(const Row& row, int64_t f, int n, V (&x)[arity]) const {
    FASTVI_UNROLL
    for (int i = 0; i < arity; ++i) {
      if (uniform[i]) {
        x[i] = row.constant[i];
      } else if (i == 0) {
        x[i] = load_partial<V>(static_cast<const TV*>(row.data[i]) + f, n);
      } else {
        x[i] = load_partial<V>(static_cast<const T*>(row.data[i]) + f, n);
      }
    }
  }

  // ---- forward ----------------------------------------------------------------------------------
  template <class Used>
  S sum_of(const Row& row, int64_t begin, int64_t end) const {
    typename Used::template Sum<V> sum;
    V x[arity];
    // Sums of kFlush vectors meet in float64.
    double total = 0;
    int64_t f = begin;
    while (f + lanes <= end) {
      const int64_t stop = min_i64(end - lanes, f + (kFlush - 1) * lanes);
      for (; f <= stop; f += lanes) {
        read(row, f, x);
        sum.add(x);
      }
      sum.flush();
      total += static_cast<double>(sum_lanes(sum.total));
      sum.total = broadcast<V>(0);
    }
    if (f < end) {
      const int n = static_cast<int>(end - f);
      read_partial(row, f, n, x);
      total += static_cast<double>(sum_lanes(keep_first(Used::value(x), n)));
    }
    return static_cast<S>(total);
  }

  S sum(const Row& row, int64_t begin, int64_t end) const {
    const S found = sum_of<Quick>(row, begin, end);
    return is_right(found) ? found : sum_of<Family>(row, begin, end);
  }

  // Whether all of them are finite.
  template <class Used>
  bool values_of(const Row& row, int64_t begin, int64_t end, S* out) const {
    V x[arity], nothing = broadcast<V>(0);
    int64_t f = begin;
    for (; f + lanes <= end; f += lanes) {
      read(row, f, x);
      const V y = Used::value(x);
      nothing = nothing + y * broadcast<V>(0);
      store(out + f, y);
    }
    if (f < end) {
      const int n = static_cast<int>(end - f);
      read_partial(row, f, n, x);
      const V y = Used::value(x);
      nothing = nothing + keep_first(y, n) * broadcast<V>(0);
      store_partial(out + f, y, n);
    }
    return sum_lanes(nothing) == 0;
  }

  void values(const Row& row, int64_t begin, int64_t end, S* out) const {
    if (!values_of<Quick>(row, begin, end, out) && has_quick)
      values_of<Family>(row, begin, end, out);
  }

  // Rows shorter than a vector: their elements are gathered side by side, so that no lane is idle.
  // `use(first, count, x)` gets the operands of `count` rows from `first` on, as arrays.
  template <class Use>
  void gathered(int64_t begin, int64_t end, Use use) const {
    S x[arity][kGathered + lanes] = {};
    const int64_t features = p.features;
    const int64_t at_once = kGathered / features;
    for (int64_t first = begin; first < end; first += at_once) {
      const int64_t count = min_i64(at_once, end - first);
      for (int i = 0; i < arity; ++i) {
        const Operand& o = p.operands[i];
        int64_t in_period = first % o.period;
        S* to = x[i];
        for (int64_t r = 0; r < count; ++r) {
          const int64_t at = o.row_stride == 0 ? 0 : in_period * o.row_stride;
          for (int64_t f = 0; f < features; ++f) *to++ = scalar_at(i, o.data, at + f * o.stride);
          if (++in_period == o.period) in_period = 0;
        }
      }
      use(first, count, x);
    }
  }

  void forward_gathered(int64_t begin, int64_t end) const {
    const int64_t features = p.features;
    gathered(begin, end, [&](int64_t first, int64_t count, const auto& x) {
      S y[kGathered + lanes];
      for (int64_t f = 0; f < count * features; f += lanes) {
        V v[arity];
        FASTVI_UNROLL
        for (int i = 0; i < arity; ++i) v[i] = load<V>(x[i] + f);
        store(y + f, Quick::value(v));
      }
      S* out = static_cast<S*>(p.out);
      for (int64_t r = 0; r < count; ++r) {
        S total = 0;
        for (int64_t f = 0; f < features; ++f) total += y[r * features + f];
        out[first + r] = is_right(total) ? total : sum_of<Family>(open(first + r), 0, features);
      }
    });
  }

  void forward(int64_t begin, int64_t end) const {
    if (p.features < lanes && !p.elementwise) return forward_gathered(begin, end);
    S* out = static_cast<S*>(p.out);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t r = task / p.num_segments;
      const int64_t from = task % p.num_segments * kRowSegment;
      const int64_t to = min_i64(from + kRowSegment, p.features);
      const Row row = open(r);
      if (p.elementwise) {
        values(row, from, to, out + r * p.features);
      } else {
        out[task] = sum(row, from, to);
      }
    }
  }

  // ---- backward ---------------------------------------------------------------------------------
  FASTVI_HD void write(const V (&d)[arity], V grad, int64_t at, int n) const {
    FASTVI_UNROLL
    for (int i = 0; i < arity; ++i) {
      if (p.operands[i].grad != nullptr) write_one(i, sent_on(d[i], grad), at, n);
    }
  }

  FASTVI_HD void write_one(int i, V g, int64_t at, int n) const {
    if (p.grad_in_acc[i]) {
      put(static_cast<S*>(p.operands[i].grad) + at, g, n);
    } else if (i == 0) {
      put(static_cast<TV*>(p.operands[i].grad) + at, g, n);
    } else {
      put(static_cast<T*>(p.operands[i].grad) + at, g, n);
    }
  }

  template <class U>
  FASTVI_HD void put(U* to, V v, int n) const {
    n == lanes ? store(to, v) : store_partial(to, v, n);
  }

  void backward_gathered(int64_t begin, int64_t end) const {
    const int64_t features = p.features;
    const S* grad_out = static_cast<const S*>(p.grad_out);
    gathered(begin, end, [&](int64_t first, int64_t count, const auto& x) {
      S grad[kGathered + lanes];
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t f = 0; f < features; ++f) grad[r * features + f] = grad_out[first + r];
      }
      const int64_t total = count * features;
      for (int64_t f = 0; f < total; f += lanes) {
        V v[arity], d[arity];
        FASTVI_UNROLL
        for (int i = 0; i < arity; ++i) v[i] = load<V>(x[i] + f);
        Family::derivatives(v, d);
        write(d, load<V>(grad + f), first * features + f,
              static_cast<int>(min_i64(lanes, total - f)));
      }
    });
  }

  void backward(int64_t begin, int64_t end) const {
    if (p.features < lanes && !p.elementwise) return backward_gathered(begin, end);
    const S* grad_out = static_cast<const S*>(p.grad_out);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t r = task / p.num_segments;
      const int64_t from = task % p.num_segments * kRowSegment;
      const int64_t to = min_i64(from + kRowSegment, p.features);
      const Row row = open(r);
      const S* grads = p.elementwise ? grad_out + r * p.features : nullptr;
      const V grad = broadcast<V>(p.elementwise ? S(0) : grad_out[r]);
      V x[arity], d[arity];
      int64_t f = from;
      for (; f + lanes <= to; f += lanes) {
        read(row, f, x);
        Family::derivatives(x, d);
        write(d, grads != nullptr ? load<V>(grads + f) : grad, r * p.features + f, lanes);
      }
      if (f < to) {
        const int n = static_cast<int>(to - f);
        read_partial(row, f, n, x);
        Family::derivatives(x, d);
        write(d, grads != nullptr ? load_partial<V>(grads + f, n) : grad, r * p.features + f, n);
      }
    }
  }
};

// The backward where the gradient of a broadcast operand is summed over rows on the way: it is
// never written at every element. Sums of kShort rows meet in float64.
template <class Family, class TV, class T>
struct RowSumsCpu : RowSumCpu<Family, TV, T> {
  using Base = RowSumCpu<Family, TV, T>;
  using Base::arity;
  using Base::kFlush;
  using Base::lanes;
  using Base::p;
  using Base::uniform;
  using typename Base::Row;
  using typename Base::S;
  using typename Base::V;
  static constexpr int kShort = 64;

  int64_t segment, from, to, repeat_chunk, data_chunk;  // of the task

  explicit RowSumsCpu(const RowSumParams& params) : Base(params) {}

  bool summed(int i, GradPlace place) const {
    return p.operands[i].grad != nullptr && p.grad_place[i] == place;
  }
  // The part of a sum that belongs to the task and a datum, and its length.
  template <class U>
  U* part(int i, void* sums, int64_t datum) const {
    const int64_t row = p.grad_place[i] == GradPlace::data
                            ? repeat_chunk * p.cut.period + datum
                            : repeat_chunk * p.cut.data_chunks + data_chunk;
    return static_cast<U*>(sums) +
           (uniform[i] ? row * p.num_segments + segment : row * p.features + from);
  }
  int64_t length(int i) const { return uniform[i] ? 1 : to - from; }

  void clear(GradPlace place, int64_t begin, int64_t end) const {
    for (int i = 0; i < arity; ++i) {
      if (!summed(i, place)) continue;
      for (int64_t datum = begin; datum < end; ++datum) {
        if (p.total_in_double[i]) {
          clear(part<double>(i, p.operands[i].grad, datum), length(i));
        } else {
          clear(part<S>(i, p.operands[i].grad, datum), length(i));
        }
        if (!uniform[i]) clear(part<S>(i, p.recent[i], datum), length(i));
      }
    }
  }
  template <class U>
  static void clear(U* sums, int64_t length) {
    for (int64_t f = 0; f < length; ++f) sums[f] = 0;
  }

  void flush(GradPlace place, int64_t begin, int64_t end) const {
    for (int i = 0; i < arity; ++i) {
      if (uniform[i] || !summed(i, place)) continue;
      for (int64_t datum = begin; datum < end; ++datum) {
        S* recent = part<S>(i, p.recent[i], datum);
        if (p.total_in_double[i]) {
          flush(part<double>(i, p.operands[i].grad, datum), recent);
        } else {
          flush(part<S>(i, p.operands[i].grad, datum), recent);
        }
      }
    }
  }
  template <class U>
  void flush(U* total, S* recent) const {
    for (int64_t f = 0; f < to - from; ++f) {
      total[f] += recent[f];
      recent[f] = 0;
    }
  }

  // Gradients of one vector; `at` counts from the row's first feature of the segment.
  FASTVI_HD void add(const V (&d)[arity], V grad, int64_t row_at, int64_t at, int n,
                     S* const (&recent)[arity], V (&sum)[arity]) const {
    FASTVI_UNROLL
    for (int i = 0; i < arity; ++i) {
      if (p.operands[i].grad == nullptr) continue;
      const V g = sent_on(d[i], grad);
      if (p.grad_place[i] == GradPlace::elements) {
        this->write_one(i, g, row_at + at, n);
      } else if (uniform[i]) {
        sum[i] = sum[i] + (n == lanes ? g : keep_first(g, n));
      } else if (n == lanes) {
        store(recent[i] + at, load<V>(recent[i] + at) + g);
      } else {
        store_partial(recent[i] + at, load_partial<V>(recent[i] + at, n) + g, n);
      }
    }
  }

  void row(int64_t r, int64_t datum) const {
    const Row operands = this->open(r);
    S* recent[arity] = {};
    double total[arity] = {};  // of the operands of one number
    for (int i = 0; i < arity; ++i) {
      if (!uniform[i] && (summed(i, GradPlace::data) || summed(i, GradPlace::shared)))
        recent[i] = part<S>(i, p.recent[i], datum);
    }
    const S* grad_out = static_cast<const S*>(p.grad_out);
    const S* grads = p.elementwise ? grad_out + r * p.features : nullptr;
    const V grad = broadcast<V>(p.elementwise ? S(0) : grad_out[r]);
    const int64_t row_at = r * p.features + from;
    for (int64_t f = from; f < to;) {
      const int64_t stop = min_i64(to, f + kFlush * lanes);
      V x[arity], d[arity], sum[arity];
      for (int i = 0; i < arity; ++i) sum[i] = broadcast<V>(0);
      for (; f + lanes <= stop; f += lanes) {
        this->read(operands, f, x);
        Family::derivatives(x, d);
        add(d, grads != nullptr ? load<V>(grads + f) : grad, row_at, f - from, lanes, recent, sum);
      }
      if (f < stop) {
        const int n = static_cast<int>(stop - f);
        this->read_partial(operands, f, n, x);
        Family::derivatives(x, d);
        add(d, grads != nullptr ? load_partial<V>(grads + f, n) : grad, row_at, f - from, n, recent,
            sum);
        f = stop;
      }
      for (int i = 0; i < arity; ++i) {
        if (uniform[i] && p.operands[i].grad != nullptr)
          total[i] += static_cast<double>(sum_lanes(sum[i]));
      }
    }
    for (int i = 0; i < arity; ++i) {
      if (!uniform[i] || p.operands[i].grad == nullptr) continue;
      if (p.grad_place[i] == GradPlace::rows) {
        static_cast<S*>(p.operands[i].grad)[r * p.num_segments + segment] =
            static_cast<S>(total[i]);
      } else if (p.total_in_double[i]) {
        *part<double>(i, p.operands[i].grad, datum) += total[i];
      }
    }
  }

  void task(int64_t index) {
    const RowCut& cut = p.cut;
    segment = index % p.num_segments;
    data_chunk = index / p.num_segments % cut.data_chunks;
    repeat_chunk = index / p.num_segments / cut.data_chunks;
    from = segment * kRowSegment;
    to = min_i64(from + kRowSegment, p.features);
    const int64_t first = cut.period * data_chunk / cut.data_chunks;
    const int64_t last = cut.period * (data_chunk + 1) / cut.data_chunks;
    const int64_t repeat = cut.repeats * repeat_chunk / cut.repeat_chunks;
    const int64_t repeats = cut.repeats * (repeat_chunk + 1) / cut.repeat_chunks;
    clear(GradPlace::data, first, last);
    clear(GradPlace::shared, 0, 1);
    int rows = 0;
    for (int64_t begin = first; begin < last; begin += cut.at_once) {
      const int64_t end = min_i64(begin + cut.at_once, last);
      for (int64_t k = repeat; k < repeats; ++k) {
        for (int64_t datum = begin; datum < end; ++datum) {
          row(k * cut.period + datum, datum);
          if (++rows % kShort == 0) flush(GradPlace::shared, 0, 1);
        }
        if ((k - repeat) % kShort == kShort - 1) flush(GradPlace::data, begin, end);
      }
      flush(GradPlace::data, begin, end);
    }
    flush(GradPlace::shared, 0, 1);
  }
};

template <class Family>
void row_sum_forward(const RowSumParams& p, int64_t begin, int64_t end) {
  FASTVI_SWITCH_VALUE_DTYPE(p, TV, T, (RowSumCpu<Family, TV, T>(p).forward(begin, end)))
}
template <class Family>
void row_sum_backward(const RowSumParams& p, int64_t begin, int64_t end){
    FASTVI_SWITCH_VALUE_DTYPE(p, TV, T,
                              {
                                if (p.cut.period == 0) {
                                  RowSumCpu<Family, TV, T>(p).backward(begin, end);
                                } else {
                                  RowSumsCpu<Family, TV, T> sums(p);
                                  for (int64_t task = begin; task < end; ++task) sums.task(task);
                                }
                              })}

FASTVI_ISA_END
}  // namespace fastvi
