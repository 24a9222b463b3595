#include "gaussian_rsample/gaussian_rsample.h"

#include "common/normal_rows.h"

namespace fastvi {
FASTVI_ISA_BEGIN

// Numbers of noise that are made at a time; they stay in the first-level cache.
constexpr int64_t kNoise = 2048;

template <class T, bool prior>
struct Rsample {
  using V = vec_t<T>;
  using S = acc_t<T>;
  static constexpr int lanes = Traits<V>::lanes;
  const GaussianRsampleParams& p;
  const T* loc = static_cast<const T*>(p.loc);
  const S* sigma = static_cast<const S*>(p.sigma);
  const T* prior_loc = static_cast<const T*>(p.prior_loc);
  const S* inverse_prior_var = static_cast<const S*>(p.inverse_prior_var);
  const NoiseKey key{static_cast<uint64_t>(p.key[0]), static_cast<uint64_t>(p.key[1]) & 0xffffffffu};

  // The features [begin, end) of a segment, and the blocks of four that hold them.
  struct Segment {
    int64_t begin, end, blocks, width;
  };
  Segment segment(int64_t s) const {
    const int64_t begin = s * kRsampleSegment;
    const int64_t end = min_i64(begin + kRsampleSegment, p.features);
    const int64_t blocks = max_i64(1, ceil_div(end - begin, 4));
    return {begin, end, blocks, 4 * blocks};
  }
  uint64_t counter_row(int64_t row) const {
    return static_cast<uint64_t>(p.sample_offset) * static_cast<uint64_t>(p.batch) + static_cast<uint64_t>(row);
  }

  // ---- prepare ----------------------------------------------------------------------------------
  template <SpreadKind kind>
  void prepare(int64_t task) const {
    const int64_t b = task / p.num_segments;
    const Segment g = segment(task % p.num_segments);
    const T* spread = static_cast<const T*>(p.spread) + b * p.features;
    const T* log_var = static_cast<const T*>(p.prior_log_var) + b * p.prior_stride;
    S* out_sigma = static_cast<S*>(p.sigma) + b * p.features;
    S* out_inverse = static_cast<S*>(p.inverse_prior_var) + b * p.prior_stride;
    // Where all rows share one prior, the first writes it.
    const bool write_prior = prior && (p.prior_stride != 0 || b == 0);
    V sum_q{}, sum_p{};
    for (int64_t d = g.begin; d < g.end; d += lanes) {
      const int n = static_cast<int>(min_i64(lanes, g.end - d));
      const V s = load_partial<V>(spread + d, n, S(1));
      sum_q = sum_q + keep_first(log_sigma_of<kind>(s), n);
      store_partial(out_sigma + d, sigma_of<kind>(s), n);
      if constexpr (prior) {
        const V v = load_partial<V>(log_var + d, n);
        sum_p = sum_p + v;
        if (write_prior) store_partial(out_inverse + d, exp(-v), n);
      }
    }
    const S constant = static_cast<S>(-kHalfLog2Pi * static_cast<double>(g.end - g.begin));
    static_cast<S*>(p.log_q_constant)[task] = constant - sum_lanes(sum_q);
    static_cast<S*>(p.log_p_constant)[task] = constant - S(0.5) * sum_lanes(sum_p);
  }

  // ---- forward: runs of rows --------------------------------------------------------------------
  FASTVI_HD void sample(const S* eps, int64_t b, int64_t at, int n, T* z, V* square_q, V* square_p) const {
    const bool full = n == lanes;
    const int64_t i = b * p.features + at;
    const V e = full ? load<V>(eps) : load_partial<V>(eps, n);
    const V l = full ? load<V>(loc + i) : load_partial<V>(loc + i, n);
    const V s = full ? load<V>(sigma + i) : load_partial<V>(sigma + i, n);
    const V x = fma(s, e, l);
    full ? store(z, x) : store_partial(z, x, n);
    *square_q = multiply_add<false>(e, e, *square_q);
    if constexpr (prior) {
      const int64_t j = b * p.prior_stride + at;
      const V distance = x - (full ? load<V>(prior_loc + j) : load_partial<V>(prior_loc + j, n));
      const V inverse = full ? load<V>(inverse_prior_var + j) : load_partial<V>(inverse_prior_var + j, n);
      *square_p = multiply_add<false>(distance * distance, inverse, *square_p);
    } else {
      *square_p = multiply_add<false>(x, x, *square_p);
    }
  }

  void row(const S* eps, int64_t r, int64_t b, const Segment& g, int64_t s) const {
    T* z = static_cast<T*>(p.z) + r * p.features;
    V square_q{}, square_p{};
    int64_t d = g.begin;
    for (; d + lanes <= g.end; d += lanes) sample(eps + d - g.begin, b, d, lanes, z + d, &square_q, &square_p);
    if (d < g.end) {
      sample(eps + d - g.begin, b, d, static_cast<int>(g.end - d), z + d, &square_q, &square_p);
    }
    const int64_t out = r * p.num_segments + s, constant = b * p.num_segments + s;
    static_cast<S*>(p.log_q)[out] =
        static_cast<const S*>(p.log_q_constant)[constant] - S(0.5) * sum_lanes(square_q);
    static_cast<S*>(p.log_p)[out] =
        static_cast<const S*>(p.log_p_constant)[constant] - S(0.5) * sum_lanes(square_p);
  }

  void forward(int64_t begin, int64_t end) const {
    alignas(64) S eps[kRsampleSegment + NormalRows<S>::kSlack];
    if (p.num_segments == 1) {
      const Segment g = segment(0);
      const int64_t at_once = min_i64(end - begin, max_i64(1, kNoise / g.width));
      const NormalRows<S> noise(key, at_once, g.blocks, 1);
      int64_t b = begin % p.batch;
      for (int64_t first = begin; first < end; first += at_once) {
        const int64_t count = min_i64(at_once, end - first);
        noise.make(counter_row(first), 0, count, eps);
        for (int64_t i = 0; i < count; ++i) {
          row(eps + i * g.width, first + i, b, g, 0);
          if (++b == p.batch) b = 0;
        }
      }
      return;
    }
    const NormalRows<S> noise(key, 1, kRsampleSegment / 4, 1);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t r = task / p.num_segments, s = task % p.num_segments;
      // A short last segment makes a little more noise than it uses.
      noise.make(counter_row(r), static_cast<uint64_t>(s * kRsampleSegment / 4), 1, eps);
      row(eps, r, r % p.batch, segment(s), s);
    }
  }

  // ---- backward: a split of K, a run of adjacent data -------------------------------------------
  FASTVI_HD static V scalar_or(const void* from, int64_t i, S otherwise) {
    return broadcast<V>(from == nullptr ? otherwise : static_cast<const S*>(from)[i]);
  }

  template <bool path_only>
  void accumulate(const S* eps, int64_t r, int64_t b, const Segment& g, S* const (&sums)[4]) const {
    const V grad_q = scalar_or(p.grad_log_q, r, 0);
    const V grad_p = scalar_or(p.grad_log_p, r, 0);
    const V weight = scalar_or(p.path_weight, r, 1);
    const T* grad_z = static_cast<const T*>(p.grad_z) + r * p.features;
    for (int64_t d = g.begin; d < g.end; d += lanes) {
      const int n = static_cast<int>(min_i64(lanes, g.end - d));
      const bool full = n == lanes;
      const int64_t i = b * p.features + d;
      const auto get = [n, full](const auto* from) { return full ? load<V>(from) : load_partial<V>(from, n); };
      const V e = get(eps + d - g.begin);
      // The lanes beyond the last feature divide by one, not by zero.
      const V s = full ? load<V>(sigma + i) : load_partial<V>(sigma + i, n, S(1));
      const V gz = p.grad_z != nullptr ? get(grad_z + d) : V{};
      V mean{}, inverse{};
      RsampleSums<V> sum{get(sums[0] + d), get(sums[1] + d), V{}, V{}};
      if constexpr (prior) {
        mean = get(prior_loc + b * p.prior_stride + d);
        inverse = get(inverse_prior_var + b * p.prior_stride + d);
        sum.prior_loc = get(sums[2] + d);
        sum.prior_log_var = get(sums[3] + d);
      }
      rsample_accumulate<prior>(e, get(loc + i), s, mean, inverse, gz, grad_q, grad_p, weight, path_only, &sum);
      const auto put = [n, full](S* to, V v) { full ? store(to, v) : store_partial(to, v, n); };
      put(sums[0] + d, sum.loc);
      put(sums[1] + d, sum.log_sigma);
      if constexpr (prior) {
        put(sums[2] + d, sum.prior_loc);
        put(sums[3] + d, sum.prior_log_var);
      }
    }
  }

  // Data [b, b + count) in one segment, samples of one split.
  void run(int64_t split, int64_t b, int64_t count, int64_t s, const NormalRows<S>& noise, S* eps) const {
    const Segment g = segment(s);
    const int64_t outputs = rsample_outputs(p), plane = p.batch * p.features;
    const auto sums_of = [&](int64_t datum, S* (&sums)[4]) {
      for (int64_t o = 0; o < outputs; ++o) {
        sums[o] = static_cast<S*>(p.partial) + (split * outputs + o) * plane + datum * p.features;
      }
    };
    S* sums[4] = {};
    for (int64_t i = 0; i < count; ++i) {
      sums_of(b + i, sums);
      for (int64_t o = 0; o < outputs; ++o) __builtin_memset(sums[o] + g.begin, 0, (g.end - g.begin) * sizeof(S));
    }
    const int64_t begin = split * p.split_size;
    const int64_t end = min_i64(begin + p.split_size, p.num_samples);
    for (int64_t k = begin; k < end; ++k) {
      const int64_t first = k * p.batch + b;
      noise.make(counter_row(first), static_cast<uint64_t>(g.begin / 4), count, eps);
      for (int64_t i = 0; i < count; ++i) {
        sums_of(b + i, sums);
        const int64_t width = p.num_segments == 1 ? g.width : kRsampleSegment;
        p.path_only ? accumulate<true>(eps + i * width, first + i, b + i, g, sums)
                    : accumulate<false>(eps + i * width, first + i, b + i, g, sums);
      }
    }
  }

  void backward(int64_t begin, int64_t end) const {
    alignas(64) S eps[kRsampleSegment + NormalRows<S>::kSlack];
    if (p.num_segments > 1) {
      const NormalRows<S> noise(key, 1, kRsampleSegment / 4, 1);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t split = task / (p.batch * p.num_segments), rest = task % (p.batch * p.num_segments);
        run(split, rest / p.num_segments, 1, rest % p.num_segments, noise, eps);
      }
      return;
    }
    const Segment g = segment(0);
    const int64_t at_once = max_i64(1, min_i64(p.batch, kNoise / g.width));
    const NormalRows<S> noise(key, at_once, g.blocks, 1);
    for (int64_t task = begin; task < end;) {
      const int64_t split = task / p.batch, b = task % p.batch;
      const int64_t count = min_i64(min_i64(at_once, p.batch - b), end - task);
      run(split, b, count, 0, noise, eps);
      task += count;
    }
  }

  // ---- combine ----------------------------------------------------------------------------------
  template <SpreadKind kind>
  void combine(int64_t begin, int64_t end) const {
    const int64_t outputs = rsample_outputs(p), plane = p.batch * p.features;
    for (int64_t i = begin; i < end; i += lanes) {
      const int n = static_cast<int>(min_i64(lanes, end - i));
      V total[4];
      for (int64_t o = 0; o < outputs; ++o) {
        // The rounding that each addition loses is carried along: K may be a million.
        V sum{}, lost{};
        for (int64_t split = 0; split < p.num_splits; ++split) {
          const S* from = static_cast<const S*>(p.partial) + (split * outputs + o) * plane + i;
          const V x = load_partial<V>(from, n) - lost;
          const V next = sum + x;
          lost = (next - sum) - x;
          sum = next;
        }
        total[o] = sum;
      }
      const V spread = load_partial<V>(static_cast<const T*>(p.spread) + i, n, S(1));
      store_partial(static_cast<T*>(p.grad_loc) + i, total[0], n);
      store_partial(static_cast<T*>(p.grad_spread) + i, spread_derivative<kind>(total[1], spread), n);
      if constexpr (prior) {
        store_partial(static_cast<S*>(p.grad_prior_loc) + i, total[2], n);
        store_partial(static_cast<S*>(p.grad_prior_log_var) + i, total[3], n);
      }
    }
  }
};

// Calls work(Rsample<T, prior>) for the call's dtype and prior.
template <class Work>
void with_rsample(const GaussianRsampleParams& p, Work work) {
  FASTVI_SWITCH_DTYPE(p.dtype, T, {
    if (p.prior_loc != nullptr) {
      work(Rsample<T, true>{p});
    } else {
      work(Rsample<T, false>{p});
    }
  })
}

FASTVI_ISA_END

void gaussian_rsample_prepare::FASTVI_ISA(const GaussianRsampleParams& p, int64_t begin, int64_t end) {
  with_rsample(p, [&](const auto& rsample) {
    FASTVI_SWITCH_SPREAD(p.spread_kind, kind, {
      for (int64_t task = begin; task < end; ++task) rsample.template prepare<kind>(task);
    })
  });
}
void gaussian_rsample::FASTVI_ISA(const GaussianRsampleParams& p, int64_t begin, int64_t end) {
  with_rsample(p, [&](const auto& rsample) { rsample.forward(begin, end); });
}
void gaussian_rsample_backward::FASTVI_ISA(const GaussianRsampleParams& p, int64_t begin, int64_t end) {
  with_rsample(p, [&](const auto& rsample) { rsample.backward(begin, end); });
}
void gaussian_rsample_combine::FASTVI_ISA(const GaussianRsampleParams& p, int64_t begin, int64_t end) {
  with_rsample(p, [&](const auto& rsample) {
    FASTVI_SWITCH_SPREAD(p.spread_kind, kind, (rsample.template combine<kind>(begin, end)))
  });
}

}  // namespace fastvi
