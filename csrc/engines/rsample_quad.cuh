// A quad of the sampler: the four features of one Philox block of one row, read, drawn and written.
#pragma once

#include "engines/reduce.cuh"
#include "engines/rsample.h"
#include "simd/vector_load.cuh"

namespace fastvi {
namespace {

// A thread works on a quad: the four features of one Philox block of one row.
constexpr int kQuad = 4;

// How quads lie in memory: all of them four elements that one instruction moves, or two pairs, of
// which a row's last quad may lack one, or neither.
enum class Quads { single, pairs, whole };

template <class U>
constexpr int kWord = sizeof(U) * kQuad < 16 ? static_cast<int>(sizeof(U)) * kQuad : 16;

template <class U>
__device__ __forceinline__ void load_pairs(const U* from, int count, acc_t<U> fill,
                                           acc_t<U> (&x)[kQuad]) {
  acc_t<U> pair[2];
  load_pack<2 * sizeof(U)>(from, pair);
  x[0] = pair[0], x[1] = pair[1];
  x[2] = x[3] = fill;
  if (count > 2) {
    load_pack<2 * sizeof(U)>(from + 2, pair);
    x[2] = pair[0], x[3] = pair[1];
  }
}
template <class U>
__device__ __forceinline__ void store_pairs(U* to, int count, const acc_t<U> (&x)[kQuad]) {
  const acc_t<U> first[2] = {x[0], x[1]}, second[2] = {x[2], x[3]};
  store_pack<2 * sizeof(U)>(to, first);
  if (count > 2) store_pack<2 * sizeof(U)>(to + 2, second);
}

// Computed here, once: left to itself the compiler does it anew wherever it is used.
template <class N>
__device__ __forceinline__ void keep([[maybe_unused]] N* x) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(N) == 8) {
    asm volatile("mov.b64 %0, %0;" : "+l"(*x));
  } else {
    asm volatile("mov.b32 %0, %0;" : "+r"(*x));
  }
#endif
}

// What a quad adds to the densities: the energy of its noise, and the squares of log p.
template <class S, bool log_p>
struct alignas(2 * sizeof(S)) Sums {
  S energy, square_p;
};
template <class S>
struct Sums<S, false> {
  S energy;
};

// The words of a key in each round of Philox: few, and the same for all rows.
struct PhiloxKeys {
  uint32_t of[2][10];
  __device__ __forceinline__ explicit PhiloxKeys(uint64_t seed) {
    FASTVI_UNROLL
    for (int round = 0; round < 10; ++round) {
      of[0][round] = philox_key_word(static_cast<uint32_t>(seed), 0, round);
      of[1][round] = philox_key_word(static_cast<uint32_t>(seed >> 32), 1, round);
      keep(&of[0][round]), keep(&of[1][round]);
    }
  }
};

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

  PhiloxKeys keys;
  __device__ __forceinline__ Rsample(const RsampleParams& params, Quads how)
      : p(params), keys(seed), quads(how) {}

  const Quads quads;

  // `count` elements of a quad; the others read as `fill`.
  template <class U>
  __device__ __forceinline__ void load_quad(const U* from, int count, acc_t<U> fill,
                                            acc_t<U> (&x)[kQuad]) const {
    if (quads == Quads::whole) {
      load_pack<kWord<U>>(from, x);
    } else if (quads == Quads::pairs) {
      load_pairs(from, count, fill, x);
    } else {
      load_partial(from, count, fill, x);
    }
  }
  // A quad of each of two arrays.
  template <class U>
  __device__ __forceinline__ void load_quads(const U* from, const S* other, int count,
                                             acc_t<U> (&x)[kQuad], S (&y)[kQuad]) const {
    if (quads == Quads::whole) {
      load_pack<kWord<U>>(from, x);
      load_pack<kWord<S>>(other, y);
    } else if (quads == Quads::pairs) {
      load_pairs(from, count, acc_t<U>(0), x);
      load_pairs(other, count, S(0), y);
    } else {
      load_partial(from, count, acc_t<U>(0), x);
      load_partial(other, count, S(0), y);
    }
  }
  template <class U>
  __device__ __forceinline__ void store_quad(U* to, int count, const acc_t<U> (&x)[kQuad]) const {
    if (quads == Quads::whole) {
      store_pack<kWord<U>>(to, x);
    } else if (quads == Quads::pairs) {
      store_pairs(to, count, x);
    } else {
      store_partial(to, count, x);
    }
  }

  __device__ __forceinline__ void noise(int64_t row, int64_t b, int64_t block,
                                        S (&eps)[kQuad]) const {
    noise_of(rows_of(p).of(row, b), static_cast<uint32_t>(block), eps);
  }
  __device__ __forceinline__ void noise_of(uint64_t row, uint32_t block, S (&eps)[kQuad]) const {
    uint32_t words[kQuad] = {block, static_cast<uint32_t>(stream), static_cast<uint32_t>(row),
                             static_cast<uint32_t>(row >> 32)};
    FASTVI_UNROLL
    for (int round = 0; round < 10; ++round) {
      philox_round(words, keys.of[0][round], keys.of[1][round]);
    }
    FASTVI_UNROLL
    for (int i = 0; i < kQuad; i += 2)
      Law::template make<S>(words[i], words[i + 1], &eps[i], &eps[i + 1]);
  }
};

inline Quads quads_of(const RsampleParams& p) {
  uint64_t low_bits = address_of(p.loc) | address_of(p.sigma) | address_of(p.prior_loc) |
                      address_of(p.inverse_prior_scale) | address_of(p.z) | address_of(p.grad_z) |
                      address_of(p.partial);
  if (p.elementwise) {
    low_bits |= address_of(p.log_q_constant) | address_of(p.log_q) | address_of(p.grad_log_q);
  }
  if (p.features == 0 || p.features % 2 != 0 || low_bits % 16 != 0) return Quads::single;
  return p.features % kQuad == 0 ? Quads::whole : Quads::pairs;
}

}  // namespace
}  // namespace fastvi
