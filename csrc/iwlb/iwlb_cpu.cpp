#include "iwlb/iwlb.h"

namespace fastvi {
FASTVI_ISA_BEGIN

// Vectors of adjacent columns that are read together, 256 bytes of a row: less leaves memory
// waiting. Where there are fewer, half as many. And those of them whose exponentials are taken
// together: as many as the registers hold beside the constants.
constexpr int kGroup = 256 / FASTVI_VECTOR_BYTES;
constexpr int kHalf = kGroup / 2;
constexpr int kInRegisters = FASTVI_VECTOR_BYTES == 64 ? 4 : 2;
// Vectors that are summed before their sum is added to that of the others: few roundings.
constexpr int64_t kShort = 64;

// What is done to a log-weight before the exponential: nothing (the IWLB), a factor 1 - alpha, or,
// at alpha = 1, no exponential at all.
enum class Order { iwlb, renyi, mean };

template <class T, Order order>
struct Tile {
  using V = vec_t<T>;
  using S = acc_t<T>;
  static constexpr int lanes = Traits<V>::lanes;
  const IwlbParams& p;
  static constexpr bool mean = order == Order::mean;
  const V factor = broadcast<V>(static_cast<S>(1.0 - p.alpha));

  // The sum of term(k) for k in [begin, end), every `step`th, in short sums.
  template <class Term>
  FASTVI_HD static V sum_of(int64_t begin, int64_t end, int64_t step, Term term) {
    V total{};
    for (int64_t first = begin; first < end; first += kShort * step) {
      const int64_t last = min_i64(first + kShort * step, end);
      V recent{};
      for (int64_t k = first; k < last; k += step) recent = recent + term(k);
      total = total + recent;
    }
    return total;
  }

  FASTVI_HD V scaled(V x) const {
    if constexpr (order == Order::renyi) return x * factor;
    return x;
  }

  // A column of adjacent samples: lanes over k.
  void column(int64_t begin, int64_t end, int64_t b, S* out_max, S* out_sum) const {
    const int64_t base = b * p.stride_b;
    const auto weight = [&](int64_t k) { return iwlb_log_weight<V, T>(p, base + k, load<V, T>); };
    const auto weight_tail = [&](int64_t k, int n) {
      return iwlb_log_weight<V, T>(p, base + k, [n](const T* x) { return load_partial<V>(x, n); });
    };
    const int tail = static_cast<int>((end - begin) % lanes);
    const int64_t full = end - tail;
    if constexpr (mean) {
      V sum = sum_of(begin, full, lanes, weight);
      if (tail) sum = sum + keep_first(weight_tail(full, tail), tail);
      *out_max = 0;
      *out_sum = sum_lanes(sum);
      return;
    }
    V m = broadcast<V>(LogSumExp<V>::lowest());
    for (int64_t k = begin; k < full; k += lanes) m = max_number(m, scaled(weight(k)));
    if (tail) {
      m = max_number(m, keep_first(scaled(weight_tail(full, tail)), tail, LogSumExp<V>::lowest()));
    }
    S largest = m[0];
    for (int i = 1; i < lanes; ++i) largest = max_number(largest, static_cast<S>(m[i]));
    const V shift = broadcast<V>(largest);
    V sum = sum_of(begin, full, lanes,
                   [&](int64_t k) { return exp_nonpositive(scaled(weight(k)) - shift); });
    if (tail) {
      sum = sum + keep_first(exp_nonpositive(scaled(weight_tail(full, tail)) - shift), tail);
    }
    *out_max = largest;
    *out_sum = sum_lanes(sum);
  }

  // Calls work(weight) with a weight(i) for vectors of `n` lanes from element i on, in which
  // nothing is left to be asked.
  template <class Work>
  void with_weight(int n, Work work) const {
    if (n < lanes) {
      work([&](int64_t i) {
        return iwlb_log_weight<V, T>(p, i, [n](const T* x) { return load_partial<V>(x, n); });
      });
    } else if (p.log_pz == nullptr) {
      const T* log_w = static_cast<const T*>(p.log_px);
      work([log_w](int64_t i) { return load<V, T>(log_w + i); });
    } else {
      work([&](int64_t i) { return iwlb_log_weight<V, T>(p, i, load<V, T>); });
    }
  }

  // The sums of `vectors` vectors of adjacent columns, from element i of a row on.
  template <int vectors, class Weight>
  void sums(int64_t begin, int64_t end, int64_t i, const Weight& weight, const V* m, V* sum) const {
    FASTVI_UNROLL
    for (int v = 0; v < vectors; ++v) sum[v] = V{};
    for (int64_t first = begin; first < end; first += kShort) {
      const int64_t last = min_i64(first + kShort, end);
      V recent[vectors] = {};
      for (int64_t k = first; k < last; ++k) {
        FASTVI_UNROLL
        for (int v = 0; v < vectors; ++v) {
          const V x = weight(k * p.stride_k + i + v * lanes);
          recent[v] = recent[v] + (mean ? x : exp_nonpositive(scaled(x) - m[v]));
        }
      }
      FASTVI_UNROLL
      for (int v = 0; v < vectors; ++v) sum[v] = sum[v] + recent[v];
    }
  }

  // Adjacent columns: lanes over b, `vectors` of them at a time; the last may hold fewer: `n`.
  template <int vectors>
  void columns(int64_t begin, int64_t end, int64_t b, int n, S* out_max, S* out_sum) const {
    constexpr int together = vectors < kInRegisters ? vectors : kInRegisters;
    with_weight(n, [&](const auto& weight) {
      V m[vectors], sum[vectors];
      FASTVI_UNROLL
      for (int v = 0; v < vectors; ++v) m[v] = broadcast<V>(mean ? S(0) : LogSumExp<V>::lowest());
      if constexpr (!mean) {
        for (int64_t k = begin; k < end; ++k) {
          FASTVI_UNROLL
          for (int v = 0; v < vectors; ++v)
            m[v] = max_number(m[v], scaled(weight(k * p.stride_k + b + v * lanes)));
        }
      }
      for (int v = 0; v < vectors; v += together)
        sums<together>(begin, end, b + v * lanes, weight, m + v, sum + v);
      FASTVI_UNROLL
      for (int v = 0; v < vectors; ++v) {
        store_partial(out_max + v * lanes, m[v], n);
        store_partial(out_sum + v * lanes, sum[v], n);
      }
    });
  }

  template <int count>
  struct Group {
    static constexpr int vectors = count;
  };
  // Calls work(group, b, n) for adjacent columns, the last vector of which may hold fewer: `n`.
  template <class Work>
  static void for_columns(int64_t b, int64_t last, Work work) {
    for (; b + kGroup * lanes <= last; b += kGroup * lanes) work(Group<kGroup>(), b, lanes);
    if (b + kHalf * lanes <= last) {
      work(Group<kHalf>(), b, lanes);
      b += kHalf * lanes;
    }
    for (; b < last; b += lanes) work(Group<1>(), b, static_cast<int>(min_i64(lanes, last - b)));
  }

  void reduce(int64_t split, int64_t tile) const {
    const int64_t begin = split * p.split_size;
    const int64_t end = min_i64(begin + p.split_size, p.num_samples);
    const int64_t width = iwlb_columns(p);
    S* max = static_cast<S*>(p.partial_max) + split * p.batch;
    S* sum = static_cast<S*>(p.partial_sum) + split * p.batch;
    if (width == 1) return column(begin, end, tile, max + tile, sum + tile);
    for_columns(tile * width, min_i64((tile + 1) * width, p.batch), [&](auto of, int64_t b, int n) {
      columns<of.vectors>(begin, end, b, n, max + b, sum + b);
    });
  }

  // ---- backward -------------------------------------------------------------------------------
  static V weight_of(V scaled, V shift, V inverse) {
    if constexpr (order == Order::renyi) return iwlb_finite_weight(scaled, shift, inverse);
    return iwlb_weight(scaled, shift, inverse);
  }

  // The gradient of element i and those beside it, `n` lanes, with the column's shift and gradient
  // over total.
  template <class Weight>
  void weigh(int64_t i, int n, const Weight& weight, V shift, V inverse) const {
    T* out = static_cast<T*>(p.grad_log_w) + i;
    V grad = inverse;
    if constexpr (!mean) grad = weight_of(scaled(weight(i)), shift, inverse);
    n == lanes ? store(out, grad) : store_partial(out, grad, n);
  }

  // `vectors` vectors of adjacent columns from b on, row after row as they lie in memory.
  template <int vectors>
  void distribute_columns(int64_t begin, int64_t end, int64_t b, int n) const {
    V shift[vectors], inverse[vectors];
    FASTVI_UNROLL
    for (int v = 0; v < vectors; ++v) {
      const int64_t i = b + v * lanes;
      shift[v] = load_partial<V>(static_cast<const S*>(p.shift) + i, n);
      inverse[v] = iwlb_inverse(p, shift[v], load_partial<V>(static_cast<const S*>(p.total) + i, n),
                                load_partial<V>(static_cast<const S*>(p.grad_bound) + i, n));
    }
    with_weight(n, [&](const auto& weight) {
      for (int64_t k = begin; k < end; ++k) {
        FASTVI_UNROLL
        for (int v = 0; v < vectors; ++v) {
          const int lanes_of_it = vectors > 1 ? lanes : n;
          weigh(k * p.stride_k + b + v * lanes, lanes_of_it, weight, shift[v], inverse[v]);
        }
      }
    });
  }

  void distribute(int64_t split, int64_t tile) const {
    const int64_t begin = split * p.split_size;
    const int64_t end = min_i64(begin + p.split_size, p.num_samples);
    const int64_t width = iwlb_columns(p);
    const S* shift = static_cast<const S*>(p.shift);
    const S* total = static_cast<const S*>(p.total);
    const S* grad = static_cast<const S*>(p.grad_bound);
    if (width == 1) {
      const V shift_v = broadcast<V>(shift[tile]);
      const V inverse =
          iwlb_inverse(p, shift_v, broadcast<V>(total[tile]), broadcast<V>(grad[tile]));
      const int tail = static_cast<int>((end - begin) % lanes);
      const int64_t base = tile * p.stride_b, full = end - tail;
      with_weight(lanes, [&](const auto& weight) {
        for (int64_t k = begin; k < full; k += lanes)
          weigh(base + k, lanes, weight, shift_v, inverse);
      });
      if (tail == 0) return;
      with_weight(tail,
                  [&](const auto& weight) { weigh(base + full, tail, weight, shift_v, inverse); });
      return;
    }
    for_columns(tile * width, min_i64((tile + 1) * width, p.batch), [&](auto of, int64_t b, int n) {
      distribute_columns<of.vectors>(begin, end, b, n);
    });
  }
};

// Calls work(Tile) for the call's dtype and order.
template <class Work>
void with_tile(const IwlbParams& p, Work work) {
  FASTVI_SWITCH_DTYPE(p.dtype, T, {
    if (p.alpha == 0.0) {
      work(Tile<T, Order::iwlb>{p});
    } else if (p.alpha == 1.0) {
      work(Tile<T, Order::mean>{p});
    } else {
      work(Tile<T, Order::renyi>{p});
    }
  })
}

// Columns from b on: the splits' pairs become one, in the order of the splits.
template <class S>
void combine(const IwlbParams& p, int64_t b, int n) {
  using V = vec_t<S>;
  const S* max = static_cast<const S*>(p.partial_max) + b;
  const S* sum = static_cast<const S*>(p.partial_sum) + b;
  V shift = load_partial<V>(max, n);
  for (int64_t s = 1; s < p.num_splits; ++s)
    shift = max_number(shift, load_partial<V>(max + s * p.batch, n));
  // The rounding that each addition loses is carried along.
  V total{}, lost{};
  for (int64_t s = 0; s < p.num_splits; ++s) {
    const V part = load_partial<V>(sum + s * p.batch, n);
    const V x = part * exp_nonpositive(load_partial<V>(max + s * p.batch, n) - shift) - lost;
    const V next = total + x;
    const V rounding = (next - total) - x;
    // Of an infinite sum (a mean over impossible samples) nothing is lost, where inf - inf says
    // NaN.
    lost = select(rounding == rounding, rounding, V{});
    total = next;
  }
  store_partial(static_cast<S*>(p.shift) + b, shift, n);
  store_partial(static_cast<S*>(p.total) + b, total, n);
  store_partial(static_cast<S*>(p.bound) + b, iwlb_bound(p, shift, total), n);
}

template <class S>
void combine_range(const IwlbParams& p, int64_t begin, int64_t end) {
  constexpr int lanes = Traits<vec_t<S>>::lanes;
  for (int64_t b = begin; b < end; b += lanes)
    combine<S>(p, b, static_cast<int>(min_i64(lanes, end - b)));
}

FASTVI_ISA_END

void iwlb_partial::FASTVI_ISA(const IwlbParams& p, int64_t begin, int64_t end) {
  const int64_t tiles = iwlb_column_tiles(p);
  with_tile(p, [&](const auto& tile) {
    for (int64_t i = begin; i < end; ++i) tile.reduce(i / tiles, i % tiles);
  });
}

void iwlb_combine::FASTVI_ISA(const IwlbParams& p, int64_t begin, int64_t end) {
  p.dtype == Dtype::f64 ? combine_range<double>(p, begin, end)
                        : combine_range<float>(p, begin, end);
}

void iwlb_backward::FASTVI_ISA(const IwlbParams& p, int64_t begin, int64_t end) {
  const int64_t tiles = iwlb_column_tiles(p);
  with_tile(p, [&](const auto& tile) {
    for (int64_t i = begin; i < end; ++i) tile.distribute(i / tiles, i % tiles);
  });
}

}  // namespace fastvi
