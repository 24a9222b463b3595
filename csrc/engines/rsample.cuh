// The CUDA kernels of engines/rsample.h.
#pragma once

#include "engines/rsample_tile.cuh"

namespace fastvi {
namespace {

// Blocks of a multiprocessor that the registers must allow.
template <class T>
constexpr int kBlocks = sizeof(T) == 8 ? 2 : 3;

// ---- prepare: a group of lanes per segment of a row of the parameters
// -----------------------------
FASTVI_HD int prepare_lanes(const RsampleParams& p) {
  return group_lanes(min_i64(p.features, kRsampleSegment), 4, 16 * kWarp);
}

template <class T, class Kind>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    prepare(const __grid_constant__ RsampleParams p) {
  may_be_followed();
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
    sample(const __grid_constant__ RsampleParams p, const __grid_constant__ TileShape shape,
           Quads how) {
  wait_for_launch_before();
  using S = acc_t<T>;
  using Law = typename Kind::Law;
  alignas(16) __shared__ T staged[kThreads * kQuad + kPack<T>];
  __shared__ Sums<S, Kind::log_p> sums[Kind::elementwise ? 1 : kMaxPasses * kThreads];
  const Rsample<T, Kind> rsample(p, how);
  const int me = static_cast<int>(threadIdx.x);
  for (int64_t tile = blockIdx.x; tile < shape.tiles; tile += gridDim.x) {
    TilePlace<T> at(p, shape, tile);
    int64_t first_of_z = at.row * p.features + at.begin;
    // Of a row of the parameters and of the prior, and of a row of noise, the first that is used.
    int64_t first_of_b = at.first_b * p.features + at.begin;
    const int64_t first_of_prior = at.first_b * p.prior_stride + at.begin;
    uint64_t first_of_noise =
        static_cast<uint64_t>(p.sample_offset) * static_cast<uint64_t>(p.batch) +
        static_cast<uint64_t>(at.row);
    keep(&at.wrap), keep(&first_of_b), keep(&first_of_noise), keep(&first_of_z);
    T* const z = static_cast<T*>(p.z) + first_of_z;
    const int units = at.rows * at.quads;
    int start = 0;
    for (int first = 0; first < units; first += kThreads) {
      // What the pass before has staged must have gone out.
      if (how == Quads::single && first > 0) __syncthreads();
      const int u = first + me;
      const auto shift = [&] { return static_cast<int>(address_of(z + start) % 16 / sizeof(T)); };
      if (u < units) {
        const int local = shape.row_of(u), quad = u - local * at.quads, d = quad * kQuad;
        const int back = at.back(shape, local);
        const int count = at.width - d < kQuad ? at.width - d : kQuad;
        // Several rows of a tile are short ones, so that their places fit in 32 bits.
        const int inside = back * static_cast<int>(p.features) + d;
        const int64_t i = (local < at.wrap ? first_of_b : at.begin) + inside;
        S loc[kQuad], sigma[kQuad], prior_loc[kQuad], inverse[kQuad], eps[kQuad], x[kQuad];
        rsample.load_quads(rsample.loc + i, rsample.sigma + i, count, loc, sigma);
        if constexpr (Kind::prior) {
          const int64_t j = (local < at.wrap ? first_of_prior : at.begin) +
                            back * static_cast<int>(p.prior_stride) + d;
          rsample.load_quads(rsample.prior_loc + j, rsample.inverse_prior_scale + j, count,
                             prior_loc, inverse);
        }
        uint64_t noise_row = first_of_noise + static_cast<unsigned>(local);
        if (p.sample_index != nullptr) {
          noise_row = rows_of(p).of(at.row + local, at.datum(shape, local));
        }
        rsample.noise_of(noise_row, at.first_quad + static_cast<unsigned>(quad), eps);
        Sums<S, Kind::log_p> sum = {};
        FASTVI_UNROLL
        for (int j = 0; j < kQuad; ++j) {
          // Beyond the last feature loc and sigma read as 0, so only the noise is to be left out.
          const S e = j < count ? eps[j] : S(0);
          x[j] = fma(sigma[j], e, loc[j]);
          if constexpr (!Kind::elementwise) sum.energy = Law::add(e, sum.energy);
          if constexpr (Kind::prior) {
            const S distance = (x[j] - prior_loc[j]) * inverse[j];
            sum.square_p = fma(distance, distance, sum.square_p);
          } else if constexpr (Kind::log_p) {
            sum.square_p = fma(x[j], x[j], sum.square_p);
          }
        }
        if constexpr (Kind::elementwise) {
          S log_q[kQuad];
          rsample.load_quad(static_cast<const S*>(p.log_q_constant) + i, count, S(0), log_q);
          FASTVI_UNROLL
          for (int j = 0; j < kQuad; ++j) log_q[j] -= S(Law::kShare) * Law::add(eps[j], S(0));
          rsample.store_quad(
              static_cast<S*>(p.log_q) + (at.row + local) * p.features + at.begin + d, count,
              log_q);
        } else {
          sums[u] = sum;
        }
        const int place = local * at.width + d;
        if (how != Quads::single) {
          rsample.store_quad(z + place, count, x);
        } else {
          store_partial(staged + (shift() + place - start), count, x);
        }
      }
      if (how == Quads::single) {
        // Odd rows would be written in crumbs: they are put together first.
        __syncthreads();
        const int next = first + kThreads;
        const int end = next < units ? at.offset(shape, next) : at.rows * at.width;
        copy_out(staged, shift(), end - start, z + start);
        start = end;
      }
    }
    if constexpr (!Kind::elementwise) {
      if (how != Quads::single) __syncthreads();
      const int lanes = 1 << shape.lanes_log2, groups = kThreads >> shape.lanes_log2;
      const int lane = me & (lanes - 1);
      for (int first = 0; first < at.rows; first += groups) {
        const int local = first + (me >> shape.lanes_log2);
        S energy = 0, square_p = 0;
        if (local < at.rows) {
          const int end = (local + 1) * at.quads;
          for (int i = local * at.quads + lane; i < end; i += lanes) {
            const Sums<S, Kind::log_p> one = sums[i];
            energy += one.energy;
            if constexpr (Kind::log_p) square_p += one.square_p;
          }
        }
        energy = sum_group(energy, lanes);
        if constexpr (Kind::log_p) square_p = sum_group(square_p, lanes);
        if (local < at.rows && lane == 0) {
          int64_t constant = at.datum(shape, local), out = at.row + local;
          if (p.num_segments > 1) {
            constant = constant * p.num_segments + at.segment;
            out = out * p.num_segments + at.segment;
          }
          static_cast<S*>(p.log_q)[out] =
              static_cast<const S*>(p.log_q_constant)[constant] - S(Law::kShare) * energy;
          if constexpr (Kind::log_p) {
            static_cast<S*>(p.log_p)[out] =
                static_cast<const S*>(p.log_p_constant)[constant] - S(0.5) * square_p;
          }
        }
      }
    }
    // What this tile has left in shared memory must have been read.
    if (tile + gridDim.x < shape.tiles) __syncthreads();
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
    accumulate(const __grid_constant__ RsampleParams p, Quads how) {
  wait_for_launch_before();
  may_be_followed();
  using S = acc_t<T>;
  const Rsample<T, Kind> rsample(p, how);
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
  wait_for_launch_before();
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
    const TileShape shape(p);
    FASTVI_SWITCH_DTYPE(p.dtype, T, {
      return launch_after<sample<T, Kind>>(shape.tiles, stream, p, shape, quads_of(p));
    })
    return unknown;
  }
  static const char* launch_backward(const RsampleParams& p, void* stream) {
    const int64_t units = p.num_splits * p.batch * ceil_div(p.features, kQuad);
    FASTVI_SWITCH_DTYPE(p.dtype, T, {
      return launch_after<accumulate<T, Kind>>(ceil_div(units, kThreads), stream, p, quads_of(p));
    })
    return unknown;
  }
  static const char* launch_combine(const RsampleParams& p, void* stream) {
    const int64_t blocks = ceil_div(p.batch * p.features, kThreads / combine_lanes(p));
    FASTVI_SWITCH_DTYPE(p.dtype, T, { return launch_after<combine<T, Kind>>(blocks, stream, p); })
    return unknown;
  }
};

}  // namespace
}  // namespace fastvi
