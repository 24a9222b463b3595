// Standard normals from 32-bit words by the Box-Muller transform, written once.
//
// Word a gives the radius sqrt(-2 log u) with u = (a + 1/2) / 2^32, so the tail reaches 6.7 sigma;
// word b gives the angle, as a quarter turn plus a rest in [-pi/4, pi/4). Every operation is a
// correctly rounded one and every fused multiply-add is spelled out: the float32 result is the same
// bits for every instruction set, compiler and device.
#pragma once

#include "maths/math.h"
#include "noise/philox.h"

namespace fastvi {
FASTVI_ISA_BEGIN

// -2 log u for u in (0, 1]: minus two log of the mantissa around 1, as f P(f) with a minimax P of
// relative error 3e-8, plus the exponent's share.
template <class V>
FASTVI_HD V minus_two_log(V u) {
  using S = scalar_t<V>;
  using I = int_t<V>;
  if constexpr (sizeof(S) == 4) {
    const I bits = bit_cast<I>(u);
    const I e = (bits - 0x3f3504f3) >> 23;
    const V f = bit_cast<V>(bits - (e << 23)) - broadcast<V>(1.0f);
    constexpr float c[] = {-0.1744471787f, 0.2873377428f,  -0.2990456849f,
                           0.3312477632f,  -0.3991366298f, 0.5000414844f,
                           -0.6666837137f, 0.9999997593f,  -1.999999948f};
    return fma(to_float(e), broadcast<V>(-1.38629436111989f), horner<true>(f, c) * f);
  } else {
    return log_normal_range<true>(u) * broadcast<V>(-2.0);
  }
}

// A word, in the unsigned lanes that go with V, as the nearest V.
template <class V>
FASTVI_HD V word_to_float(typename Traits<V>::Uint word) {
  if constexpr (sizeof(scalar_t<V>) == 8) {
    return to_float(bit_cast<int_t<V>>(word));
  } else {
    return nearest_float(word);
  }
}

// V is the type of the normals; a and b are words in unsigned lanes as wide as V's.
template <class V>
FASTVI_HD void box_muller(typename Traits<V>::Uint a, typename Traits<V>::Uint b, V* first,
                          V* second) {
  using S = scalar_t<V>;
  using I = int_t<V>;
  using U = typename Traits<V>::Uint;
  constexpr S unit = S(2.3283064365386962890625e-10);  // 2^-32
  const V u = fma(word_to_float<V>(a), broadcast<V>(unit), broadcast<V>(unit / 2));
  const V radius = sqrt(minus_two_log(u));

  // The nearest quarter turn is in bits 30 and 31 of b + 2^29; what is left of the angle, in units
  // of 2^-32 turns, is in [-2^29, 2^29).
  const U shifted = b + 0x20000000u;
  const I rest = bit_cast<I>(shifted & 0x3fffffffu) - 0x20000000;
  V sine, cosine;
  sin_cos_reduced(to_float(rest) * broadcast<V>(S(1.4629180792671596e-09)), &sine, &cosine);

  const auto swap = bit_cast<I>(shifted & 0x40000000u) != 0;
  const V x = select(swap, sine, cosine);
  const V y = select(swap, cosine, sine);
  // cos is negative in quarters 1 and 2, sin in quarters 2 and 3: a sign bit each.
  constexpr int to_top = sizeof(S) * 8 - 32;
  const U x_sign = ((shifted + 0x40000000u) & 0x80000000u) << to_top;
  const U y_sign = (shifted & 0x80000000u) << to_top;
  *first = radius * bit_cast<V>(bit_cast<U>(x) ^ x_sign);
  *second = radius * bit_cast<V>(bit_cast<U>(y) ^ y_sign);
}

FASTVI_ISA_END
}  // namespace fastvi
