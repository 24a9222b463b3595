// The CUDA kernels of engines/rsample.h.
#pragma once

#include "engines/reduce.cuh"
#include "engines/rsample_tile.cuh"
#include "simd/vector_load.cuh"

namespace fastvi {
namespace {

// Blocks of a multiprocessor that the registers must allow.
template <class T>
constexpr int kBlocks = sizeof(T) == 8 ? 2 : 3;

template <class T, class Kind>
struct Rsample {
  using S = acc_t<T>;
  using Law = typename Kind::Law;
  const RsampleParams& p;
  const T* loc = static_cast<const T*>(p.loc);
  const S* sigma = static_cast<const S*>(p.sigma);
  const T* prior_loc = static_cast<const T*>(p.prior_loc);
  const S* inverse_prior_scale = static_cast<const S*>(p.inverse_prior_scale);
  const uint64_t seed = static_cast<uint64_t>(p.key[0]);
  const uint64_t stream = static_cast<uint64_t>(p.key[1]);

  // Whether every quad is whole and aligned, so that it moves by vector instructions.
  const bool whole;

  // `count` elements of a quad; the others read as `fill`.
  template <class U>
  __device__ __forceinline__ void load_quad(const U* from, int count, acc_t<U> fill,
                                            acc_t<U> (&x)[kQuad]) const {
    constexpr int bytes = sizeof(U) * kQuad < 16 ? static_cast<int>(sizeof(U)) * kQuad : 16;
    if (whole) {
      load_pack<bytes>(from, x);
    } else {
      load_partial(from, count, fill, x);
    }
  }
  template <class U>
  __device__ __forceinline__ void store_quad(U* to, int count, const acc_t<U> (&x)[kQuad]) const {
    constexpr int bytes = sizeof(U) * kQuad < 16 ? static_cast<int>(sizeof(U)) * kQuad : 16;
    if (whole) {
      store_pack<bytes>(to, x);
    } else {
      store_partial(to, count, x);
    }
  }

  __device__ __forceinline__ void noise(int64_t row, int64_t b, int64_t block,
                                        S (&eps)[kQuad]) const {
    uint32_t words[kQuad];
    philox_words(seed, stream, rows_of(p).of(row, b), static_cast<uint64_t>(block), words);
    FASTVI_UNROLL
    for (int i = 0; i < kQuad; i += 2)
      Law::template make<S>(words[i], words[i + 1], &eps[i], &eps[i + 1]);
  }
};

inline bool quads_are_whole(const RsampleParams& p) {
  uint64_t low_bits = address_of(p.loc) | address_of(p.sigma) | address_of(p.prior_loc) |
                      address_of(p.inverse_prior_scale) | address_of(p.z) | address_of(p.grad_z) |
                      address_of(p.partial);
  if (p.elementwise) {
    low_bits |= address_of(p.log_q_constant) | address_of(p.log_q) | address_of(p.grad_log_q);
  }
  return p.features > 0 && p.features % kQuad == 0 && low_bits % 16 == 0;
}

// ---- prepare: a group of lanes per segment of a row of the parameters
// -----------------------------
FASTVI_HD int prepare_lanes(const RsampleParams& p) {
  return group_lanes(min_i64(p.features, kRsampleSegment), 4, 16 * kWarp);
}

template <class T, class Kind>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    prepare(const __grid_constant__ RsampleParams p) {
  using S = acc_t<T>;
  using Law = typename Kind::Law;
  const int lanes = prepare_lanes(p);
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int groups = kThreads / lanes;
  const int64_t tasks = p.batch * p.num_segments;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * groups; first < tasks;
       first += static_cast<int64_t>(gridDim.x) * groups) {
    const int64_t task = first + static_cast<int>(threadIdx.x) / lanes;
    const int64_t b = task / p.num_segments;
    const int64_t begin = task % p.num_segments * kRsampleSegment;
    const int64_t end = task < tasks ? min_i64(begin + kRsampleSegment, p.features) : begin;
    const T* spread = static_cast<const T*>(p.spread) + b * p.features;
    S* sigma = static_cast<S*>(p.sigma) + b * p.features;
    S sum_q = 0, sum_p = 0;
    for (int64_t d = begin + lane; d < end; d += lanes) {
      const S s = to_acc(spread[d]);
      S log_sigma = 0;
      FASTVI_SWITCH_SPREAD(p.spread_kind, kind, {
        log_sigma = log_sigma_of<kind>(s);
        sigma[d] = sigma_of<kind>(s);
      })
      sum_q += log_sigma;
      if constexpr (Kind::elementwise) {
        static_cast<S*>(p.log_q_constant)[b * p.features + d] = S(-Law::kLogNormaliser) - log_sigma;
      }
      if constexpr (Kind::prior) {
        const int64_t i = b * p.prior_stride + d;
        const S log_var = to_acc(static_cast<const T*>(p.prior_log_var)[i]);
        sum_p += log_var;
        // Where all rows share one prior, the first writes it.
        if (p.prior_stride != 0 || b == 0) {
          static_cast<S*>(p.inverse_prior_scale)[i] = inverse_prior_scale_of(log_var);
        }
      }
    }
    if constexpr (!Kind::elementwise) {
      sum_q = sum_group(sum_q, lanes);
      if constexpr (Kind::prior) sum_p = sum_group(sum_p, lanes);
      if (lane == 0 && task < tasks) {
        const S constant = static_cast<S>(-Law::kLogNormaliser * static_cast<double>(end - begin));
        static_cast<S*>(p.log_q_constant)[task] = constant - sum_q;
        if constexpr (Kind::log_p)
          static_cast<S*>(p.log_p_constant)[task] = constant - S(0.5) * sum_p;
      }
    }
  }
}

// ---- forward: a block makes a tile of adjacent rows
// -----------------------------------------------
template <class T, class Kind>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    sample(const __grid_constant__ RsampleParams p, bool whole) {
  using S = acc_t<T>;
  using Law = typename Kind::Law;
  alignas(16) __shared__ T staged[kThreads * kQuad + kPack<T>];
  __shared__ S energies[Kind::elementwise ? 1 : kMaxPasses * kThreads];
  __shared__ S squares_p[Kind::log_p ? kMaxPasses * kThreads : 1];
  const Rsample<T, Kind> rsample{.p = p, .whole = whole};
  const TileShape shape(p);
  const int me = static_cast<int>(threadIdx.x);
  const int lanes_log2 = shape.lanes_log2();
  const int lanes = 1 << lanes_log2, groups = kThreads >> lanes_log2;
  const int lane = me & (lanes - 1), group = me >> lanes_log2;
  const int64_t tiles = shape.tiles(p);
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const TilePlace<T> at(p, shape, tile);
    T* z = static_cast<T*>(p.z) + at.row * p.features + at.begin;
    const int units = at.rows * at.quads;
    for (int first = 0; first < units; first += kThreads) {
      // What the pass before has staged must have gone out.
      if (!whole && first > 0) __syncthreads();
      const int u = first + me;
      const int start = at.offset(shape, first);
      const int shift = static_cast<int>(address_of(z + start) % 16 / sizeof(T));
      if (u < units) {
        const int local = shape.row_of(u), quad = u - local * at.quads;
        const int64_t b = at.datum(local);
        const int count = at.width - quad * kQuad < kQuad ? at.width - quad * kQuad : kQuad;
        const int64_t d = at.begin + quad * kQuad;
        S loc[kQuad], sigma[kQuad], prior_loc[kQuad], inverse[kQuad], eps[kQuad], x[kQuad];
        rsample.load_quad(rsample.loc + b * p.features + d, count, S(0), loc);
        rsample.load_quad(rsample.sigma + b * p.features + d, count, S(0), sigma);
        if constexpr (Kind::prior) {
          rsample.load_quad(rsample.prior_loc + b * p.prior_stride + d, count, S(0), prior_loc);
          rsample.load_quad(rsample.inverse_prior_scale + b * p.prior_stride + d, count, S(0),
                            inverse);
        }
        rsample.noise(at.row + local, b, d / kQuad, eps);
        S energy = 0, square_p = 0;
        FASTVI_UNROLL
        for (int j = 0; j < kQuad; ++j) {
          // Beyond the last feature loc and sigma read as 0, so only the noise is to be left out.
          const S e = j < count ? eps[j] : S(0);
          x[j] = fma(sigma[j], e, loc[j]);
          if constexpr (!Kind::elementwise) energy = Law::add(e, energy);
          if constexpr (Kind::prior) {
            const S distance = (x[j] - prior_loc[j]) * inverse[j];
            square_p = fma(S(0.5) * distance, distance, square_p);
          } else if constexpr (Kind::log_p) {
            square_p = fma(S(0.5) * x[j], x[j], square_p);
          }
        }
        if constexpr (Kind::elementwise) {
          S log_q[kQuad];
          rsample.load_quad(static_cast<const S*>(p.log_q_constant) + b * p.features + d, count,
                            S(0), log_q);
          FASTVI_UNROLL
          for (int j = 0; j < kQuad; ++j) log_q[j] -= S(Law::kShare) * Law::add(eps[j], S(0));
          rsample.store_quad(static_cast<S*>(p.log_q) + (at.row + local) * p.features + d, count,
                             log_q);
        } else {
          energies[u] = energy;
          if constexpr (Kind::log_p) squares_p[u] = square_p;
        }
        if (whole) {
          rsample.store_quad(z + local * at.width + quad * kQuad, count, x);
        } else {
          store_partial(staged + shift + (local * at.width + quad * kQuad - start), count, x);
        }
      }
      if (!whole) {
        // Odd rows would be written in crumbs: they are put together first.
        __syncthreads();
        const int end =
            first + kThreads < units ? at.offset(shape, first + kThreads) : at.rows * at.width;
        copy_out(staged, shift, end - start, z + start);
      }
    }
    if constexpr (!Kind::elementwise) {
      if (whole) __syncthreads();
      for (int first = 0; first < at.rows; first += groups) {
        const int local = first + group;
        S energy = 0, square_p = 0;
        if (local < at.rows) {
          for (int i = lane; i < at.quads; i += lanes) {
            energy += energies[local * at.quads + i];
            if constexpr (Kind::log_p) square_p += squares_p[local * at.quads + i];
          }
        }
        energy = sum_group(energy, lanes);
        if constexpr (Kind::log_p) square_p = sum_group(square_p, lanes);
        if (local < at.rows && lane == 0) {
          const int64_t constant = at.datum(local) * p.num_segments + at.segment;
          const int64_t out = (at.row + local) * p.num_segments + at.segment;
          static_cast<S*>(p.log_q)[out] =
              static_cast<const S*>(p.log_q_constant)[constant] - S(Law::kShare) * energy;
          if constexpr (Kind::log_p) {
            static_cast<S*>(p.log_p)[out] =
                static_cast<const S*>(p.log_p_constant)[constant] - square_p;
          }
        }
      }
    }
    // What this tile has left in shared memory must have been read.
    if (tile + gridDim.x < tiles) __syncthreads();
  }
}

// ---- backward: a thread owns a quad of one datum and runs over a split of K
// -----------------------
template <class S>
__device__ __forceinline__ S number_or(const void* from, int64_t i, S otherwise) {
  return from == nullptr ? otherwise : static_cast<const S*>(from)[i];
}

template <class T, class Kind>
__global__ void __launch_bounds__(kThreads, Kind::prior ? kBlocks<T> - 1 : kBlocks<T>)
    accumulate(const __grid_constant__ RsampleParams p, bool whole) {
  using S = acc_t<T>;
  const Rsample<T, Kind> rsample{.p = p, .whole = whole};
  const int64_t quads = ceil_div(p.features, kQuad);
  const int64_t units = p.batch * quads;
  const int64_t plane = p.batch * p.features;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       i < units * p.num_splits; i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t split = i / units, b = i % units / quads, quad = i % units % quads;
    const int64_t d = quad * kQuad;
    const int count = static_cast<int>(min_i64(kQuad, p.features - d));
    S loc[kQuad], sigma[kQuad], prior_loc[kQuad] = {}, inverse[kQuad] = {};
    rsample.load_quad(rsample.loc + b * p.features + d, count, S(0), loc);
    // Beyond the last feature sigma is 1, for something is divided by it.
    rsample.load_quad(rsample.sigma + b * p.features + d, count, S(1), sigma);
    if constexpr (Kind::prior) {
      rsample.load_quad(rsample.prior_loc + b * p.prior_stride + d, count, S(0), prior_loc);
      rsample.load_quad(rsample.inverse_prior_scale + b * p.prior_stride + d, count, S(0), inverse);
    }
    RsampleSums<S> sums[kQuad] = {};
    const int64_t end = min_i64((split + 1) * p.split_size, p.num_samples);
    for (int64_t k = split * p.split_size; k < end; ++k) {
      const int64_t row = k * p.batch + b;
      S grad_z[kQuad] = {};
      if (p.grad_z != nullptr) {
        rsample.load_quad(static_cast<const T*>(p.grad_z) + row * p.features + d, count, S(0),
                          grad_z);
      }
      S grad_q[kQuad] = {};
      if constexpr (Kind::elementwise) {
        if (p.grad_log_q != nullptr) {
          rsample.load_quad(static_cast<const S*>(p.grad_log_q) + row * p.features + d, count, S(0),
                            grad_q);
        }
      } else {
        grad_q[0] = number_or<S>(p.grad_log_q, row, 0);
      }
      const S grad_p = Kind::log_p ? number_or<S>(p.grad_log_p, row, 0) : S(0);
      const S weight = Kind::log_p ? number_or<S>(p.path_weight, row, 1) : S(1);
      S eps[kQuad];
      rsample.noise(row, b, quad, eps);
      FASTVI_UNROLL
      for (int j = 0; j < kQuad; ++j) {
        rsample_accumulate<Kind>(eps[j], loc[j], sigma[j], lift_of(sigma[j]), prior_loc[j],
                                 inverse[j], grad_z[j], grad_q[Kind::elementwise ? j : 0], grad_p,
                                 weight, p.path_only, &sums[j]);
      }
    }
    S out[4][kQuad];
    FASTVI_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      out[0][j] = sums[j].loc;
      out[1][j] = sums[j].log_sigma;
      out[2][j] = sums[j].prior_loc;
      out[3][j] = sums[j].prior_log_var;
    }
    constexpr int outputs = Kind::prior ? 4 : 2;
    FASTVI_UNROLL
    for (int o = 0; o < outputs; ++o) {
      S* to = static_cast<S*>(p.partial) + (split * outputs + o) * plane + b * p.features + d;
      rsample.store_quad(to, count, out[o]);
    }
  }
}

// ---- combine: columns side by side, lanes over the splits
// -----------------------------------------
constexpr int kCombineLanes = 32;

FASTVI_HD int combine_lanes(const RsampleParams& p) {
  int lanes = 1;
  while (lanes < kCombineLanes && lanes * 8 < p.num_splits) lanes *= 2;
  return lanes;
}

template <class T, class Kind>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    combine(const __grid_constant__ RsampleParams p) {
  using S = acc_t<T>;
  constexpr int outputs = Kind::prior ? 4 : 2;
  __shared__ S sums[kThreads];
  const int lanes = combine_lanes(p);
  const int columns = kThreads / lanes;
  const int me = static_cast<int>(threadIdx.x);
  const int lane = me / columns;
  const int64_t plane = p.batch * p.features;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * columns; first < plane;
       first += static_cast<int64_t>(gridDim.x) * columns) {
    const int64_t i = first + me % columns;
    const int64_t splits = i < plane ? p.num_splits : 0;
    FASTVI_UNROLL
    for (int o = 0; o < outputs; ++o) {
      // The rounding that each addition loses is carried along: K may be a million.
      S sum = 0, lost = 0;
#pragma unroll 4
      for (int64_t split = lane; split < splits; split += lanes) {
        const S x = static_cast<const S*>(p.partial)[(split * outputs + o) * plane + i] - lost;
        const S next = sum + x;
        lost = (next - sum) - x;
        sum = next;
      }
      sums[me] = sum;
      for (int half = lanes / 2; half > 0; half /= 2) {
        __syncthreads();
        if (lane < half) sums[me] += sums[me + half * columns];
      }
      if (lane == 0 && i < plane) {
        const S total = sums[me];
        if (o == 0) static_cast<S*>(p.grad_loc)[i] = total;
        if (o == 1) {
          const S sigma = static_cast<const S*>(p.sigma)[i];
          FASTVI_SWITCH_SPREAD(p.spread_kind, kind, {
            static_cast<S*>(p.grad_spread)[i] = rsample_spread_derivative<kind>(total, sigma);
          })
        }
        if (o == 2) static_cast<S*>(p.grad_prior_loc)[i] = total;
        if (o == 3) static_cast<S*>(p.grad_prior_log_var)[i] = total;
      }
      __syncthreads();
    }
  }
}

// The four kernels of an op for one kind of call.
template <class Kind>
struct RsampleCuda {
  static constexpr const char* unknown = "rsample: unknown element type";

  static const char* launch_prepare(const RsampleParams& p, void* stream) {
    const int64_t blocks = ceil_div(p.batch * p.num_segments, kThreads / prepare_lanes(p));
    FASTVI_SWITCH_DTYPE(p.dtype, T, { return launch_blocks(prepare<T, Kind>, blocks, stream, p); })
    return unknown;
  }
  static const char* launch_forward(const RsampleParams& p, void* stream) {
    const int64_t blocks = TileShape(p).tiles(p);
    FASTVI_SWITCH_DTYPE(p.dtype, T, {
      return launch_blocks(sample<T, Kind>, blocks, stream, p, quads_are_whole(p));
    })
    return unknown;
  }
  static const char* launch_backward(const RsampleParams& p, void* stream) {
    const int64_t units = p.num_splits * p.batch * ceil_div(p.features, kQuad);
    FASTVI_SWITCH_DTYPE(p.dtype, T, {
      return launch_blocks(accumulate<T, Kind>, ceil_div(units, kThreads), stream, p,
                           quads_are_whole(p));
    })
    return unknown;
  }
  static const char* launch_combine(const RsampleParams& p, void* stream) {
    const int64_t blocks = ceil_div(p.batch * p.features, kThreads / combine_lanes(p));
    FASTVI_SWITCH_DTYPE(p.dtype, T, { return launch_blocks(combine<T, Kind>, blocks, stream, p); })
    return unknown;
  }
};

}  // namespace
}  // namespace fastvi
