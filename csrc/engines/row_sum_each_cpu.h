// The CPU kernels of engines/row_sum.h: a task is a segment of a row, or of the rows of a RowCut.
//
// A formula is most of what a compiler has to do here, so it stands in few places: one instance of
// it for float32 and one for float64, each with one loop for whole vectors and for what is left of
// them. Operands of 16 bits are turned into float32 a block at a time.
#pragma once

#include "engines/row_numbers_cpu.h"
#include "engines/row_sum.h"

namespace fastvi {
FASTVI_ISA_BEGIN

template <class Family, class S>
struct RowSumCpu {
  using V = vec_t<S>;
  static constexpr int lanes = Traits<V>::lanes;
  static constexpr int arity = Family::arity;
  static constexpr int64_t kBlock = 64 * lanes;  // elements whose sum is short
  static constexpr int64_t kGathered = 256;      // elements that short rows are gathered into

  using Quick = typename QuickOf<Family>::type;
  static constexpr bool has_quick = !__is_same(Quick, Family);
  static constexpr bool is_heavy = requires { Family::kIsHeavy; };
  static constexpr bool is_prepared = kRowsArePrepared<Family>;
  static constexpr bool last_may_be_one = arity > 1 && !is_prepared;
  static bool is_right(S found) { return !has_quick || found - found == 0; }

  const RowSumParams& p;
  const bool narrow;  // some operands have 16 bits
  const Dtype value_dtype;
  bool uniform[arity];  // one number serves a whole row

  explicit RowSumCpu(const RowSumParams& params)
      : p(params),
        narrow(p.dtype == Dtype::bf16 || p.dtype == Dtype::f16),
        value_dtype(narrow && p.value_dtype == Dtype::f32 ? Dtype::f32 : p.dtype) {
    for (int i = 0; i < arity; ++i) uniform[i] = p.operands[i].stride == 0;
  }
  Dtype dtype_of(int i) const { return i == 0 ? value_dtype : p.dtype; }
  bool is_narrow(int i) const { return narrow && !(i == 0 && value_dtype == Dtype::f32); }

  // ---- one row ----------------------------------------------------------------------------------
  struct Segment {
    int64_t row, from, to;
  };
  FASTVI_HD Segment segment_of(int64_t task) const {
    const int64_t from = task % p.num_segments * kRowSegment;
    return {task / p.num_segments, from, min_i64(from + kRowSegment, p.features)};
  }

  struct Row {
    int64_t at[arity];
    V constant[arity];
  };
  // Some of its elements, side by side; of a uniform operand one vector, which is read again and
  // again: element f is x[f & mask].
  struct Block {
    const S* x[arity];
    int64_t mask[arity];
  };
  using Buffer = S[arity][kBlock];

  FASTVI_HD void open(int64_t row, Row* out) const {
    FASTVI_UNROLL
    for (int i = 0; i < arity; ++i) {
      out->at[i] = operand_row(p.operands[i], row);
      if (uniform[i])
        out->constant[i] = broadcast<V>(number<S>(dtype_of(i), p.operands[i].data, out->at[i]));
    }
  }

  // The elements [f, f + n), at most kBlock of them where operands are narrow.
  FASTVI_HD Block block(const Row& row, int64_t f, int64_t n, Buffer& buffer) const {
    Block out;
    FASTVI_UNROLL
    for (int i = 0; i < arity; ++i) {
      const void* data = p.operands[i].data;
      out.mask[i] = uniform[i] ? 0 : -1;
      if (uniform[i]) {
        out.x[i] = reinterpret_cast<const S*>(&row.constant[i]);
      } else if (is_narrow(i)) {
        widen(p.dtype, data, row.at[i] + f, n, buffer[i]);
        out.x[i] = buffer[i];
      } else {
        out.x[i] = static_cast<const S*>(data) + row.at[i] + f;
      }
    }
    return out;
  }

  static FASTVI_HD void read(const Block& block, int64_t f, V (&x)[arity]) {
    FASTVI_UNROLL
    for (int i = 0; i < arity; ++i) x[i] = load<V>(block.x[i] + (f & block.mask[i]));
  }
  // `n` lanes, all of them or fewer.
  static FASTVI_HD void read(const Block& block, int64_t f, int n, V (&x)[arity]) {
    n == lanes ? read(block, f, x) : read_partial(block, f, n, x);
  }
  static FASTVI_HD void read_partial(const Block& block, int64_t f, int n, V (&x)[arity]) {
    FASTVI_UNROLL
    for (int i = 0; i < arity; ++i) x[i] = load_partial<V>(block.x[i] + (f & block.mask[i]), n);
  }
  // What a loop reads again and again: all operands, or all but the last, a number that serves the
  // whole row. Then what follows from that alone leaves the loop.
  template <bool last_is_one>
  static FASTVI_HD void read_next(const Block& block, int64_t f, int n, V (&x)[arity]) {
    if constexpr (last_is_one) {
      FASTVI_UNROLL
      for (int i = 0; i < arity - 1; ++i) x[i] = read_one(block.x[i] + (f & block.mask[i]), n);
    } else {
      read(block, f, n, x);
    }
  }
  static FASTVI_HD V read_one(const S* from, int n) {
    return n == lanes ? load<V>(from) : load_partial<V>(from, n);
  }
  static FASTVI_HD void write_one(S* to, V v, int n) {
    n == lanes ? store(to, v) : store_partial(to, v, n);
  }
  bool last_is_one() const { return last_may_be_one && uniform[arity - 1]; }
  static FASTVI_HD int left(int64_t n) { return static_cast<int>(min_i64(lanes, n)); }

  // ---- forward ----------------------------------------------------------------------------------
  // The values of the elements [f, n) of a block, and whether all of them are finite.
  template <class Used>
  FASTVI_OUTLINE static bool values_of(const Block& block, int64_t f, int64_t n, S* out) {
    V nothing = broadcast<V>(0);
    for (; f < n; f += lanes, out += lanes) {
      const int count = left(n - f);
      V x[arity];
      read(block, f, count, x);
      const V y = Used::value(x);
      if (count == lanes) {
        nothing = nothing + y * broadcast<V>(0);
        store(out, y);
      } else {
        nothing = nothing + keep_first(y, count) * broadcast<V>(0);
        store_partial(out, y, count);
      }
    }
    return sum_lanes(nothing) == 0;
  }
  static void values(const Block& block, int64_t n, S* out) {
    if (!values_of<Quick>(block, 0, n, out) && has_quick) values_of<Family>(block, 0, n, out);
  }

  // Whether a formula stands in the loop that writes its values alone: one that is long, and one
  // that is seldom used.
  template <class Used>
  static constexpr bool stands_once = is_heavy || !__is_same(Used, Quick);

  template <class Used>
  S sum_of(const Row& row, int64_t begin, int64_t end) const {
    return last_is_one() ? sum_of<Used, last_may_be_one>(row, begin, end)
                         : sum_of<Used, false>(row, begin, end);
  }
  template <class Used, bool last_is_one>
  S sum_of(const Row& row, int64_t begin, int64_t end) const {
    Buffer buffer;
    double total = 0;  // of blocks
    for (int64_t from = begin; from < end; from += kBlock) {
      const int64_t n = min_i64(kBlock, end - from);
      const Block x_of = block(row, from, n, buffer);
      if constexpr (stands_once<Used> && !last_is_one) {
        total += sum_of_values<Used>(x_of, n);
        continue;
      }
      int64_t f = 0;
      V x[arity];
      if constexpr (last_is_one) x[arity - 1] = row.constant[arity - 1];
      if (n >= lanes) {
        typename Used::template Sum<V> sum;
        for (; f + lanes <= n; f += lanes) {
          read_next<last_is_one>(x_of, f, lanes, x);
          sum.add(x);
        }
        sum.flush();
        total += static_cast<double>(sum_lanes(sum.total));
      }
      if (f < n) {
        total += sum_of_rest<Used>(x_of, f, n, x);
      }
    }
    return static_cast<S>(total);
  }
  // What is left of a block, less than a vector.
  template <class Used>
  static double sum_of_rest(const Block& block, int64_t f, int64_t n, V (&x)[arity]) {
    const int count = static_cast<int>(n - f);
    if constexpr (stands_once<Used>) {
      S y[lanes];
      values_of<Used>(block, f, n, y);
      return static_cast<double>(sum_lanes(load_partial<V>(y, count)));
    } else {
      read_partial(block, f, count, x);
      return static_cast<double>(sum_lanes(keep_first(Used::value(x), count)));
    }
  }
  // Here the values that another loop wrote are summed.
  template <class Used>
  static double sum_of_values(const Block& block, int64_t n) {
    S y[kBlock];
    values_of<Used>(block, 0, n, y);
    return sum_of_written(y, n);
  }
  static double sum_of_written(const S* y, int64_t n) {
    V sum = broadcast<V>(0);
    int64_t f = 0;
    for (; f + lanes <= n; f += lanes) sum = sum + load<V>(y + f);
    const double total = static_cast<double>(sum_lanes(sum));
    return f == n ? total
                  : total + static_cast<double>(
                                sum_lanes(load_partial<V>(y + f, static_cast<int>(n - f))));
  }
  // Where the quick family is not right: rare.
  FASTVI_OUTLINE S careful_sum(const Row& row, int64_t begin, int64_t end) const {
    return sum_of<Family, false>(row, begin, end);
  }

  // Rows shorter than a vector: their elements are gathered side by side, so that no lane is idle.
  // `use(first, count, block)` gets the operands of `count` rows from `first` on.
  template <class Use>
  void gathered(int64_t begin, int64_t end, Use use) const {
    S x[arity][kGathered + lanes] = {};
    Block block;
    for (int i = 0; i < arity; ++i) {
      block.x[i] = x[i];
      block.mask[i] = -1;
    }
    const int64_t at_once = kGathered / p.features;
    for (int64_t first = begin; first < end; first += at_once) {
      const int64_t count = min_i64(at_once, end - first);
      for (int i = 0; i < arity; ++i)
        gather(dtype_of(i), p.operands[i], p.features, first, count, x[i]);
      use(first, count, block);
    }
  }

  void forward_gathered(int64_t begin, int64_t end) const {
    const int64_t features = p.features;
    gathered(begin, end, [&](int64_t first, int64_t count, const Block& block) {
      S y[kGathered + lanes];
      values_of<Quick>(block, 0, ceil_div(count * features, lanes) * lanes, y);
      S* out = static_cast<S*>(p.out);
      for (int64_t r = 0; r < count; ++r) {
        S total = 0;
        for (int64_t f = 0; f < features; ++f) total += y[r * features + f];
        if (!is_right(total)) {
          Row row;
          open(first + r, &row);
          total = careful_sum(row, 0, features);
        }
        out[first + r] = total;
      }
    });
  }

  // The function at each element: no sums.
  void forward_elements(int64_t begin, int64_t end) const {
    S* out = static_cast<S*>(p.out);
    Buffer buffer;
    for (int64_t task = begin; task < end; ++task) {
      const auto [r, from, to] = segment_of(task);
      Row row;
      open(r, &row);
      for (int64_t f = from; f < to; f += kBlock) {
        const int64_t n = min_i64(kBlock, to - f);
        values(block(row, f, n, buffer), n, out + r * p.features + f);
      }
    }
  }

  void forward(int64_t begin, int64_t end) const {
    if (p.elementwise) return forward_elements(begin, end);
    if (p.features < lanes) return forward_gathered(begin, end);
    S* out = static_cast<S*>(p.out);
    for (int64_t task = begin; task < end; ++task) {
      const auto [r, from, to] = segment_of(task);
      Row row;
      open(r, &row);
      const S found = sum_of<Quick>(row, from, to);
      out[task] = is_right(found) ? found : careful_sum(row, from, to);
    }
  }

  // ---- backward ---------------------------------------------------------------------------------
  template <bool last, int from>
  struct Known {
    static constexpr bool last_is_one = last;
    static constexpr int first = from;
  };

  // Where the gradients of the elements of a block go: to their places, or to a buffer that is
  // made narrow afterwards. Null where nobody asks for them.
  using Gradients = S* [arity];
  FASTVI_HD bool in_place(int i) const { return p.grad_in_acc[i] || !is_narrow(i); }

  FASTVI_HD void place(int64_t at, Buffer& buffer, Gradients& out) const {
    FASTVI_UNROLL
    for (int i = 0; i < arity; ++i) {
      S* grad = static_cast<S*>(p.operands[i].grad);
      out[i] = grad == nullptr ? nullptr : in_place(i) ? grad + at : buffer[i];
    }
  }
  FASTVI_HD void finish(int64_t at, int64_t n, const Buffer& buffer, const Gradients& out) const {
    if (!narrow) return;
    for (int i = 0; i < arity; ++i) {
      if (out[i] == buffer[i]) make_narrow(p.dtype, out[i], n, p.operands[i].grad, at);
    }
  }

  // For all calls; without the derivative by the value where no call asks for it.
  using NothingKnown = Known<false, is_prepared ? 1 : 0>;

  // Calls `body` with what is known of the operands before its loop, as constants: whether the last
  // is one number of a row, and the first that somebody wants the gradient of. That by a value is
  // dear for some families, and seldom asked for.
  template <class Body>
  FASTVI_HD void specialised(bool of_value, Body body) const {
    if constexpr (last_may_be_one) {
      if (!of_value) {
        return uniform[arity - 1] ? body(Known<true, 1>()) : body(Known<false, 1>());
      }
    }
    body(NothingKnown());
  }

  // `grad` is read as an operand is.
  template <class K>
  FASTVI_OUTLINE static void derivatives_of(K, const Block& block, const S* grad, int64_t grad_mask,
                                            int64_t n, const Gradients& to) {
    Gradients out;
    for (int i = 0; i < arity; ++i) out[i] = to[i];
    V x[arity], d[arity];
    if constexpr (K::last_is_one) x[arity - 1] = load<V>(block.x[arity - 1]);
    for (int64_t f = 0; f < n; f += lanes) {
      const int count = left(n - f);
      read_next<K::last_is_one>(block, f, count, x);
      Family::derivatives(x, d);
      const V g = read_one(grad + (f & grad_mask), count);
      FASTVI_UNROLL
      for (int i = K::first; i < arity; ++i) {
        if (out[i] != nullptr) write_one(out[i] + f, sent_on(d[i], g), count);
      }
    }
  }

  void backward_gathered(int64_t begin, int64_t end) const {
    const int64_t features = p.features;
    const S* grad_out = static_cast<const S*>(p.grad_out);
    Buffer buffer;
    gathered(begin, end, [&](int64_t first, int64_t count, const Block& block) {
      S grad[kGathered + lanes];
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t f = 0; f < features; ++f) grad[r * features + f] = grad_out[first + r];
      }
      Gradients out;
      place(first * features, buffer, out);
      derivatives_of(NothingKnown(), block, grad, -1, count * features, out);
      finish(first * features, count * features, buffer, out);
    });
  }

  void backward(int64_t begin, int64_t end) const {
    if (p.features < lanes && !p.elementwise) return backward_gathered(begin, end);
    const S* grad_out = static_cast<const S*>(p.grad_out);
    Buffer buffer, grads;
    for (int64_t task = begin; task < end; ++task) {
      const auto [r, from, to] = segment_of(task);
      Row row;
      open(r, &row);
      const V grad = broadcast<V>(p.elementwise ? S(0) : grad_out[r]);
      const int64_t at_once = narrow ? kBlock : kRowSegment;
      for (int64_t f = from; f < to; f += at_once) {
        const int64_t n = min_i64(at_once, to - f), at = r * p.features + f;
        Gradients out;
        place(at, grads, out);
        const Block x = block(row, f, n, buffer);
        const S* sent = p.elementwise ? grad_out + at : reinterpret_cast<const S*>(&grad);
        const int64_t mask = p.elementwise ? -1 : 0;
        specialised(out[0] != nullptr,
                    [&](auto known) { derivatives_of(known, x, sent, mask, n, out); });
        finish(at, n, grads, out);
      }
    }
  }
};

FASTVI_ISA_END
}  // namespace fastvi
