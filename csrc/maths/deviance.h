// How far a count is from what was expected, without forming what cancels: with w = r - 1 the
// relative distance, r - 1 - log r is of the order of w^2, and w - log r loses it.
#pragma once

#include "maths/math.h"

namespace fastvi {
FASTVI_ISA_BEGIN

// Numbers below `low` leave the range of their type in quotients with numbers up to 1e12; times
// `lift`, a power of two, they do not.
template <class S>
struct Range {
  static constexpr bool single = sizeof(S) == 4;
  static constexpr S low = single ? S(1e-20) : S(1e-180);
  static constexpr S middle = single ? S(1e-10) : S(1e-100);
  static constexpr S high = single ? S(1e30) : S(1e250);
  static constexpr S smallest = single ? S(1.17549435e-38) : S(2.2250738585072014e-308);
  static constexpr S lift = single ? S(1.2089258196146292e24) : S(4.149515568880993e180);
  static constexpr S root_of_lift = single ? S(1.099511627776e12) : S(2.037035976334486e90);
  static constexpr S drop = S(1) / lift;
  static constexpr S log_lift = S((single ? 80 : 600) * kLog2);
};

// c - a b, rounded about once. The machine without fused multiply-add has none in float64: there
// the products of the halves of a and b are exact.
template <class V>
FASTVI_HD V difference_from_product(V a, V b, V c) {
#if defined(FASTVI_NO_FMA)
  if constexpr (sizeof(scalar_t<V>) == 8) {
    using I = int_t<V>;
    const auto upper = [](V x) { return bit_cast<V>(bit_cast<I>(x) & ~0x7ffffffll); };
    const V a_high = upper(a), a_low = a - a_high, b_high = upper(b), b_low = b - b_high;
    return ((c - a_high * b_high) - (a_high * b_low + a_low * b_high)) - a_low * b_low;
  }
#endif
  return fma(-a, b, c);
}

// f - log(1 + f) over f^2, in float32, and the same whole, for f in [sqrt(1/2) - 1, sqrt(2) - 1],
// of full relative accuracy. Interpolated at Chebyshev's points, float32 in f, float64 in the
// square of s = f / (2 + f).
template <class V>
FASTVI_HD V log1p_excess_over_square(V f) {
  constexpr float c[] = {-0.0676903427f, 0.115573041f,  -0.118121408f, 0.124208122f,  -0.142323166f,
                         0.166675374f,   -0.200014472f, 0.250000119f,  -0.333333224f, 0.5f};
  return horner(f, c);
}
template <class V>
FASTVI_HD V log1p_excess(V f) {
  using S = scalar_t<V>;
  if constexpr (sizeof(S) == 4) {
    return log1p_excess_over_square(f) * (f * f);
  } else {
    constexpr double c[] = {1.308676700994817477e-01, 1.326875966856061184e-01,
                            1.538624020581347840e-01, 1.818179563088475337e-01,
                            2.222222239180046965e-01, 2.857142857080323117e-01,
                            4.000000000000087930e-01, 6.666666666666666297e-01};
    const V s = f / (f + broadcast<V>(S(2)));
    const V z = s * s;
    return s * (f - horner(z, c) * z);
  }
}

// w - log r and log r of a normal positive r = 1 + w. Each has a small relative error if w and r
// have: where r is of the order of 1 the two come from w alone.
template <class V>
FASTVI_HD void log_of_ratio(V w, V r, V* excess, V* logarithm) {
  using S = scalar_t<V>;
  using I = int_t<V>;
  constexpr bool single = sizeof(S) == 4;
  constexpr auto half_root = [] {
    if constexpr (single) return 0x3f3504f3;
    if constexpr (!single) return 0x3fe6a09e667f3bcdll;
  }();
  constexpr int mantissa = single ? 23 : 52;
  constexpr auto one_bits = [] {
    if constexpr (single) return 0x3f800000;
    if constexpr (!single) return 0x3ff0000000000000ll;
  }();
  const V one = broadcast<V>(S(1));
  const I bits = bit_cast<I>(r);
  const I e = (bits - half_root) >> mantissa;
  const V mantissa_less_one = bit_cast<V>(bits - (e << mantissa)) - one;
  // (1 + w) 2^-e - 1, rounded once.
  const V scale = bit_cast<V>(one_bits - (e << mantissa));
  const V exact = multiply_add<false>(w, scale, scale - one);
  const auto near = (w >= broadcast<V>(S(-0.5))) & (w <= one);
  const V f = select(near, exact, mantissa_less_one);
  const V h = log1p_excess(f), power = to_float(e);
  const V high = broadcast<V>(Log2Parts<S>::high), low = broadcast<V>(Log2Parts<S>::low);
  *excess = multiply_add<false>(-power, low, multiply_add<false>(-power, high, w - f) + h);
  const V sum = multiply_add<false>(power, high, multiply_add<false>(power, low, f - h));
  *logarithm = select(r == r, sum, r);
}

FASTVI_ISA_END
}  // namespace fastvi
