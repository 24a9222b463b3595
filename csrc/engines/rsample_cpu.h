// The CPU kernels of engines/rsample.h: each over a range of tasks.
#pragma once

#include "engines/rsample.h"
#include "noise/normal_rows.h"

namespace fastvi {
FASTVI_ISA_BEGIN

// Numbers of noise that are made at a time; they stay in the first-level cache.
constexpr int64_t kNoise = 2048;

template <class T, class Kind>
struct Rsample {
  using V = vec_t<T>;
  using S = acc_t<T>;
  using Law = typename Kind::Law;
  using Noise = NoiseRows<S, Law>;
  static constexpr int lanes = Traits<V>::lanes;
  static constexpr bool prior = Kind::prior;
  const RsampleParams& p;
  const T* loc = static_cast<const T*>(p.loc);
  const S* sigma = static_cast<const S*>(p.sigma);
  const T* prior_loc = static_cast<const T*>(p.prior_loc);
  const S* inverse_prior_scale = static_cast<const S*>(p.inverse_prior_scale);
  const NoiseKey key{static_cast<uint64_t>(p.key[0]),
                     static_cast<uint64_t>(p.key[1]) & 0xffffffffu};

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

  // ---- prepare ----------------------------------------------------------------------------------
  template <SpreadKind kind>
  void prepare(int64_t task) const {
    const int64_t b = task / p.num_segments;
    const Segment g = segment(task % p.num_segments);
    const T* spread = static_cast<const T*>(p.spread) + b * p.features;
    const T* log_var = static_cast<const T*>(p.prior_log_var) + b * p.prior_stride;
    S* out_sigma = static_cast<S*>(p.sigma) + b * p.features;
    S* out_inverse = static_cast<S*>(p.inverse_prior_scale) + b * p.prior_stride;
    // Where all rows share one prior, the first writes it.
    const bool write_prior = prior && (p.prior_stride != 0 || b == 0);
    V sum_q{}, sum_p{};
    for (int64_t d = g.begin; d < g.end; d += lanes) {
      const int n = static_cast<int>(min_i64(lanes, g.end - d));
      const V s = load_partial<V>(spread + d, n, S(1));
      store_partial(out_sigma + d, sigma_of<kind>(s), n);
      if constexpr (Kind::elementwise) {
        store_partial(static_cast<S*>(p.log_q_constant) + b * p.features + d,
                      broadcast<V>(S(-Law::kLogNormaliser)) - log_sigma_of<kind>(s), n);
        continue;
      }
      sum_q = sum_q + keep_first(log_sigma_of<kind>(s), n);
      if constexpr (prior) {
        const V v = load_partial<V>(log_var + d, n);
        sum_p = sum_p + v;
        if (write_prior) store_partial(out_inverse + d, inverse_prior_scale_of(v), n);
      }
    }
    if constexpr (Kind::elementwise) return;
    const S constant = static_cast<S>(-Law::kLogNormaliser * static_cast<double>(g.end - g.begin));
    static_cast<S*>(p.log_q_constant)[task] = constant - sum_lanes(sum_q);
    if constexpr (Kind::log_p)
      static_cast<S*>(p.log_p_constant)[task] = constant - S(0.5) * sum_lanes(sum_p);
  }

  // ---- forward: runs of rows --------------------------------------------------------------------
  FASTVI_HD void sample(const S* eps, int64_t b, int64_t at, int n, T* z, S* log_q, V* energy,
                        V* square_p) const {
    const bool full = n == lanes;
    const int64_t i = b * p.features + at;
    const V e = full ? load<V>(eps) : load_partial<V>(eps, n);
    const V l = full ? load<V>(loc + i) : load_partial<V>(loc + i, n);
    const V s = full ? load<V>(sigma + i) : load_partial<V>(sigma + i, n);
    const V x = fma(s, e, l);
    full ? store(z, x) : store_partial(z, x, n);
    if constexpr (Kind::elementwise) {
      const S* from = static_cast<const S*>(p.log_q_constant) + i;
      const V constant = full ? load<V>(from) : load_partial<V>(from, n);
      const V q = constant - broadcast<V>(S(Law::kShare)) * Law::add(e, V{});
      full ? store(log_q, q) : store_partial(log_q, q, n);
      return;
    }
    *energy = Law::add(e, *energy);
    if constexpr (!Kind::log_p) return;
    // Halves of squares: a square may overflow where its half does not.
    const V half = broadcast<V>(S(0.5));
    if constexpr (prior) {
      const int64_t j = b * p.prior_stride + at;
      const V inverse =
          full ? load<V>(inverse_prior_scale + j) : load_partial<V>(inverse_prior_scale + j, n);
      const V distance =
          (x - (full ? load<V>(prior_loc + j) : load_partial<V>(prior_loc + j, n))) * inverse;
      *square_p = multiply_add<false>(distance * half, distance, *square_p);
    } else {
      *square_p = multiply_add<false>(x * half, x, *square_p);
    }
  }

  void row(const S* eps, int64_t r, int64_t b, const Segment& g, int64_t s) const {
    T* z = static_cast<T*>(p.z) + r * p.features;
    // Of each feature; the sums of rows are written below.
    S* log_q = static_cast<S*>(p.log_q) + (Kind::elementwise ? r * p.features : 0);
    V energy{}, square_p{};
    int64_t d = g.begin;
    for (; d + lanes <= g.end; d += lanes)
      sample(eps + d - g.begin, b, d, lanes, z + d, log_q + d, &energy, &square_p);
    if (d < g.end) {
      sample(eps + d - g.begin, b, d, static_cast<int>(g.end - d), z + d, log_q + d, &energy,
             &square_p);
    }
    if constexpr (Kind::elementwise) return;
    const int64_t out = r * p.num_segments + s, constant = b * p.num_segments + s;
    static_cast<S*>(p.log_q)[out] =
        static_cast<const S*>(p.log_q_constant)[constant] - S(Law::kShare) * sum_lanes(energy);
    if constexpr (Kind::log_p) {
      static_cast<S*>(p.log_p)[out] =
          static_cast<const S*>(p.log_p_constant)[constant] - sum_lanes(square_p);
    }
  }

  void forward(int64_t begin, int64_t end) const {
    alignas(64) S eps[kRsampleSegment + Noise::kSlack];
    if (p.num_segments == 1) {
      const Segment g = segment(0);
      const int64_t at_once = min_i64(end - begin, max_i64(1, kNoise / g.width));
      const Noise noise(key, rows_of(p), at_once, g.blocks, at_once, 0);
      int64_t b = begin % p.batch;
      for (int64_t first = begin; first < end; first += at_once) {
        const int64_t count = min_i64(at_once, end - first);
        noise.make(first, b, 0, count, eps);
        for (int64_t i = 0; i < count; ++i) {
          row(eps + i * g.width, first + i, b, g, 0);
          if (++b == p.batch) b = 0;
        }
      }
      return;
    }
    const Noise noise(key, rows_of(p), 1, kRsampleSegment / 4, 1, 0);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t r = task / p.num_segments, s = task % p.num_segments;
      // A short last segment makes a little more noise than it uses.
      noise.make(r, r % p.batch, static_cast<uint64_t>(s * kRsampleSegment / 4), 1, eps);
      row(eps, r, r % p.batch, segment(s), s);
    }
  }

  // ---- backward: a split of K, a run of adjacent data -------------------------------------------
  // A tile is a few samples of a few adjacent data in one segment: its noise stays in the cache,
  // and its sums over the samples in registers.
  struct Tile {
    int64_t data, samples;  // at most
  };
  static constexpr int64_t kTileRows = 512;
  Tile tile_of(int64_t width) const {
    const int64_t data = max_i64(1, min_i64(p.batch, kNoise / 8 / width));
    return {data,
            max_i64(1, min_i64(min_i64(p.split_size, kNoise / (data * width)), kTileRows / data))};
  }

  // What reaches the rows of a tile, [samples, data].
  struct RowGrads {
    S log_q[kTileRows], log_p[kTileRows], weight[kTileRows];
  };
  FASTVI_HD static S scalar_or(const void* from, int64_t i, S otherwise) {
    return from == nullptr ? otherwise : static_cast<const S*>(from)[i];
  }

  // Adds `samples` samples of one datum to its sums, `n` lanes from feature d on. eps, grad_z and
  // an elementwise grad_log_q are those of the first sample.
  template <bool path_only, bool full>
  FASTVI_HD void accumulate(const S* eps, int64_t eps_step, const T* grad_z, const S* grad_log_q,
                            const RowGrads& grads, int64_t row, int64_t row_step, int64_t samples,
                            int64_t b, int64_t d, int n, S* const (&sums)[4]) const {
    const auto get = [n](const auto* from, S fill) {
      return full ? load<V>(from) : load_partial<V>(from, n, fill);
    };
    const int64_t i = b * p.features + d, j = b * p.prior_stride + d;
    const V l = get(loc + i, S(0));
    // The lanes beyond the last feature divide by one, not by zero.
    const V s = get(sigma + i, S(1));
    const V lift = lift_of(s);
    const V mean = prior ? get(prior_loc + j, S(0)) : V{};
    const V inverse = prior ? get(inverse_prior_scale + j, S(0)) : V{};
    RsampleSums<V> sum{};
    const S* each_q = Kind::elementwise ? grad_log_q : nullptr;
    for (int64_t k = 0; k < samples; ++k, row += row_step) {
      const V e = get(eps + k * eps_step, S(0));
      const int64_t from = k * p.batch * p.features;
      const V gz = grad_z != nullptr ? get(grad_z + from, S(0)) : V{};
      const V gq = each_q != nullptr ? get(each_q + from, S(0)) : broadcast<V>(grads.log_q[row]);
      rsample_accumulate<Kind>(e, l, s, lift, mean, inverse, gz, gq, broadcast<V>(grads.log_p[row]),
                               broadcast<V>(grads.weight[row]), path_only, &sum);
    }
    const auto add = [&](S* to, V v) {
      v = v + get(to, S(0));
      full ? store(to, v) : store_partial(to, v, n);
    };
    add(sums[0] + d, sum.loc);
    add(sums[1] + d, sum.log_sigma);
    if constexpr (prior) {
      add(sums[2] + d, sum.prior_loc);
      add(sums[3] + d, sum.prior_log_var);
    }
  }

  // Data [b, b + count) in one segment, samples of one split.
  template <bool path_only>
  void run(int64_t split, int64_t b, int64_t count, const Segment& g, Tile tile, const Noise& noise,
           S* eps) const {
    const int64_t outputs = rsample_outputs(p), plane = p.batch * p.features;
    S* const partial = static_cast<S*>(p.partial) + split * outputs * plane;
    for (int64_t o = 0; o < outputs; ++o) {
      for (int64_t i = b; i < b + count; ++i) {
        __builtin_memset(partial + o * plane + i * p.features + g.begin, 0,
                         (g.end - g.begin) * sizeof(S));
      }
    }
    const int64_t width = 4 * noise.blocks();
    const int64_t begin = split * p.split_size, end = min_i64(begin + p.split_size, p.num_samples);
    RowGrads grads;
    for (int64_t k = begin; k < end; k += tile.samples) {
      const int64_t samples = min_i64(tile.samples, end - k);
      noise.make(k * p.batch + b, b, static_cast<uint64_t>(g.begin / 4),
                 (samples - 1) * tile.data + count, eps);
      for (int64_t j = 0; j < samples; ++j) {
        for (int64_t i = 0; i < count; ++i) {
          const int64_t from = (k + j) * p.batch + b + i, to = j * tile.data + i;
          grads.log_q[to] = Kind::elementwise ? S(0) : scalar_or(p.grad_log_q, from, 0);
          grads.log_p[to] = scalar_or(p.grad_log_p, from, 0);
          grads.weight[to] = scalar_or(p.path_weight, from, 1);
        }
      }
      for (int64_t i = 0; i < count; ++i) {
        S* const sums[4] = {partial + (b + i) * p.features, partial + plane + (b + i) * p.features,
                            partial + 2 * plane + (b + i) * p.features,
                            partial + 3 * plane + (b + i) * p.features};
        const int64_t row_begin = (k * p.batch + b + i) * p.features;
        const auto at = [row_begin](const auto* from, int64_t d) {
          return from != nullptr ? from + row_begin + d : nullptr;
        };
        const T* grad_z = static_cast<const T*>(p.grad_z);
        const S* grad_q = static_cast<const S*>(Kind::elementwise ? p.grad_log_q : nullptr);
        const S* e = eps + i * width - g.begin;
        int64_t d = g.begin;
        for (; d + lanes <= g.end; d += lanes) {
          accumulate<path_only, true>(e + d, tile.data * width, at(grad_z, d), at(grad_q, d), grads,
                                      i, tile.data, samples, b + i, d, lanes, sums);
        }
        if (d < g.end) {
          accumulate<path_only, false>(e + d, tile.data * width, at(grad_z, d), at(grad_q, d),
                                       grads, i, tile.data, samples, b + i, d,
                                       static_cast<int>(g.end - d), sums);
        }
      }
    }
  }

  template <bool path_only>
  void backward(int64_t begin, int64_t end) const {
    alignas(64) S eps[kRsampleSegment + Noise::kSlack];
    const int64_t blocks = p.num_segments > 1 ? kRsampleSegment / 4 : segment(0).blocks;
    const Tile tile = p.num_segments > 1 ? Tile{1, 1} : tile_of(4 * blocks);
    const Noise noise(key, rows_of(p), tile.data * tile.samples, blocks, tile.data, p.batch);
    for (int64_t task = begin; task < end;) {
      const int64_t rest = task % (p.batch * p.num_segments),
                    split = task / (p.batch * p.num_segments);
      const int64_t b = rest / p.num_segments;
      const int64_t count =
          p.num_segments > 1 ? 1 : min_i64(min_i64(tile.data, p.batch - b), end - task);
      run<path_only>(split, b, count, segment(rest % p.num_segments), tile, noise, eps);
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
      const V s = load_partial<V>(sigma + i, n, S(1));
      store_partial(static_cast<S*>(p.grad_loc) + i, total[0], n);
      store_partial(static_cast<S*>(p.grad_spread) + i,
                    rsample_spread_derivative<kind>(total[1], s), n);
      if constexpr (prior) {
        store_partial(static_cast<S*>(p.grad_prior_loc) + i, total[2], n);
        store_partial(static_cast<S*>(p.grad_prior_log_var) + i, total[3], n);
      }
    }
  }
};

// The four kernels of an op for one kind of call.
template <class Kind>
struct RsampleCpu {
  static void prepare(const RsampleParams& p, int64_t begin, int64_t end) {
    FASTVI_SWITCH_DTYPE(p.dtype, T, {FASTVI_SWITCH_SPREAD(p.spread_kind, kind, {
                          for (int64_t task = begin; task < end; ++task)
                            Rsample<T, Kind>{p}.template prepare<kind>(task);
                        })})
  }
  static void forward(const RsampleParams& p, int64_t begin, int64_t end) {
    FASTVI_SWITCH_DTYPE(p.dtype, T, (Rsample<T, Kind>{p}.forward(begin, end)))
  }
  static void backward(const RsampleParams& p, int64_t begin, int64_t end) {
    FASTVI_SWITCH_DTYPE(p.dtype, T, {
      const Rsample<T, Kind> rsample{p};
      if constexpr (Kind::log_p) {
        if (p.path_only) {
          rsample.template backward<true>(begin, end);
          return;
        }
      }
      rsample.template backward<false>(begin, end);
    })
  }
  static void combine(const RsampleParams& p, int64_t begin, int64_t end) {
    // Of sums alone, which are of the accumulation type.
    FASTVI_SWITCH_SPREAD(p.spread_kind, kind, {
      p.dtype == Dtype::f64 ? Rsample<double, Kind>{p}.template combine<kind>(begin, end)
                            : Rsample<float, Kind>{p}.template combine<kind>(begin, end);
    })
  }
};

FASTVI_ISA_END
}  // namespace fastvi
