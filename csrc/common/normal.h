// Standard normals from 32-bit words by the Box-Muller transform, written once.
//
// Word a gives the radius sqrt(-2 log u) with u = (a + 1/2) / 2^32, so the tail reaches 6.7 sigma;
// word b gives the angle, as a quarter turn plus a rest in [-pi/4, pi/4). Every operation is a
// correctly rounded one and every fused multiply-add is spelled out: the float32 result is the same
// bits for every instruction set, compiler and device.
#pragma once

#include "common/math.h"
#include "common/philox.h"

namespace fastvi {
FASTVI_ISA_BEGIN

// V is the type of the normals, and a, b are words in signed integer lanes of the same width: for
// float32 the word itself; for float64 the word extended by its sign.
template <class V>
FASTVI_HD void box_muller(int_t<V> a, int_t<V> b, V* first, V* second) {
  using S = scalar_t<V>;
  using I = int_t<V>;
  using U = typename Traits<V>::Uint;
  constexpr S unit = S(2.3283064365386962890625e-10);  // 2^-32
  V u;
  if constexpr (sizeof(S) == 4) {
    // A word of 32 bits does not fit a float: the fma rounds it once.
    const V high = to_float(bit_cast<I>(bit_cast<U>(a) >> 16));
    const V low = to_float(a & 0xffff);
    const V word = fma(high, broadcast<V>(S(65536)), low);
    u = fma(word, broadcast<V>(unit), broadcast<V>(unit / 2));
  } else {
    u = fma(to_float(a & 0xffffffff), broadcast<V>(unit), broadcast<V>(unit / 2));
  }
  const V radius = sqrt(log_normal_range<true>(u) * broadcast<V>(S(-2)));

  // The nearest quarter turn, and what is left of the angle in units of 2^-32 turns.
  const U word = bit_cast<U>(b);
  I quarter, rest;
  if constexpr (sizeof(S) == 4) {
    const U q = (word + 0x20000000u) >> 30;
    quarter = bit_cast<I>(q);
    rest = bit_cast<I>(word - (q << 30));
  } else {
    const U q = ((word & 0xffffffffu) + 0x20000000u) >> 30;
    quarter = bit_cast<I>(q & 3);
    rest = bit_cast<I>((word & 0xffffffffu) - (q << 30));
  }
  V sine, cosine;
  sin_cos_reduced(to_float(rest) * broadcast<V>(S(1.4629180792671596e-09)), &sine, &cosine);

  const auto swap = (quarter & 1) != 0;
  const V x = select(swap, sine, cosine);
  const V y = select(swap, cosine, sine);
  // cos is negative in quarters 1 and 2, sin in quarters 2 and 3: a sign bit each.
  constexpr int sign = sizeof(S) * 8 - 2;
  const U x_sign = (bit_cast<U>(quarter + 1) & 2) << sign;
  const U y_sign = (bit_cast<U>(quarter) & 2) << sign;
  *first = radius * bit_cast<V>(bit_cast<U>(x) ^ x_sign);
  *second = radius * bit_cast<V>(bit_cast<U>(y) ^ y_sign);
}

// The four normals of one block of features of one row.
template <class S>
FASTVI_HD void normal_block(uint64_t seed, uint64_t stream, uint64_t row, uint64_t block, S (&eps)[4]) {
  uint32_t words[4];
  philox_words(seed, stream, row, block, words);
  FASTVI_UNROLL
  for (int i = 0; i < 4; i += 2) {
    box_muller<S>(static_cast<int32_t>(words[i]), static_cast<int32_t>(words[i + 1]), &eps[i], &eps[i + 1]);
  }
}

FASTVI_ISA_END
}  // namespace fastvi
