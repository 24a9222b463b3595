// Elementary functions over the vocabulary of simd/real.h: for one number and for a vector, on
// the host and on the device, from the same polynomials.
//
// Accuracy: 1 to 2 ulp in the ranges used. exp flushes subnormal results to zero.
// Sources of the coefficients: Cephes (float32), FDLIBM (float64 logarithm, sine and cosine),
// Taylor (float64 exponential).
#pragma once

#include "simd/real.h"
#if !defined(__CUDACC__)
#include "simd/simd.h"
#endif

namespace fastvi {

inline constexpr double kLog2 = 0.693147180559945309417;
inline constexpr double kHalfLog2Pi = 0.918938533204672741780;
inline constexpr double kInfinity = __builtin_inf();

// The largest finite number of a type.
template <class S>
constexpr S largest_number() {
  return sizeof(S) == 4 ? S(3.402823466e38f) : S(1.7976931348623157e308);
}

// The smallest positive one, which is subnormal.
template <class S>
constexpr S smallest_number() {
  return sizeof(S) == 4 ? S(1.401298464e-45f) : S(4.9406564584124654e-324);
}

FASTVI_ISA_BEGIN

template <class V>
FASTVI_HD V abs(V x) {
#if defined(__CUDA_ARCH__)
  return ::fabs(x);
#endif
  return select(x < broadcast<V>(0), -x, x);
}
// The larger of two; a NaN in either place gives NaN.
template <class V>
FASTVI_HD V max_nan(V a, V b) {
#if defined(__CUDA_ARCH__)
  if constexpr (__is_same(V, float)) {
    asm("max.NaN.f32 %0, %0, %1;" : "+f"(a) : "f"(b));
    return a;
  }
#endif
  return select(a > b, a, select(b >= a, b, a + b));
}
// The larger of two numbers of which b may be NaN: then a.
template <class V>
FASTVI_HD V max_number(V a, V b) {
#if defined(__CUDA_ARCH__)
  if constexpr (__is_same(V, float)) return fmaxf(a, b);
#endif
  return select(b > a, b, a);
}

// 1 / x for x neither tiny nor huge.
template <class V>
FASTVI_HD V reciprocal(V x) {
#if defined(__CUDA_ARCH__)
  if constexpr (__is_same(V, float)) {
    asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(x));
    return x;
  }
#endif
  return broadcast<V>(1) / x;
}

// a * b + c: rounded once where exact, else as the machine likes it best. They differ only on a
// machine without fused multiply-add, where the exact one is slow and only the noise needs it.
template <bool exact, class V>
FASTVI_HD V multiply_add(V a, V b, V c) {
#if defined(FASTVI_NO_FMA)
  if constexpr (!exact) return a * b + c;
#endif
  return fma(a, b, c);
}

// c[0] x^(n-1) + ... + c[n-1], by Horner's rule.
template <bool exact = false, class V, class C, int n>
FASTVI_HD V horner(V x, const C (&c)[n]) {
  V y = broadcast<V>(static_cast<scalar_t<V>>(c[0]));
  FASTVI_UNROLL
  for (int i = 1; i < n; ++i) {
    y = multiply_add<exact>(y, x, broadcast<V>(static_cast<scalar_t<V>>(c[i])));
  }
  return y;
}

// e^r for |r| <= log(2) / 2. float32: minimax, relative error 3e-9.
template <class V>
FASTVI_HD V exp_reduced(V r) {
  if constexpr (sizeof(scalar_t<V>) == 4) {
    constexpr float c[] = {1.38143206997e-3f,
                           8.36885106767e-3f,
                           4.16684010813e-2f,
                           1.66665195241e-1f,
                           4.99999933731e-1f,
                           1.0f,
                           1.0f};
    return horner(r, c);
  } else {
    constexpr double c[] = {1.6059043836821613e-10, 2.08767569878681e-09,   2.505210838544172e-08,
                            2.755731922398589e-07,  2.7557319223985893e-06, 2.48015873015873e-05,
                            1.984126984126984e-04,  1.3888888888888889e-03, 8.333333333333333e-03,
                            4.1666666666666664e-02, 1.6666666666666666e-01, 0.5};
    return multiply_add<false>(horner(r, c), r * r, r) + broadcast<V>(1.0);
  }
}

// log 2 in two parts, of which a multiple of the higher, by an exponent, is exact.
template <class S>
struct Log2Parts {
  static constexpr bool single = sizeof(S) == 4;
  static constexpr S high = single ? S(0.693359375) : S(6.93147180369123816490e-01);
  static constexpr S low = single ? S(-2.12194440e-4) : S(1.90821492927058770002e-10);
};

// The constants that exponentials of one type share.
template <class S>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  static constexpr float magic = 12582912.0f;
  static constexpr float log2_high = 0.693145751953125f, log2_low = 1.42860682030941723212e-6f;
  static constexpr float lowest = -87.33654f, highest = 88.72283f;
};
template <>
struct ExpConstants<double> {
  static constexpr double magic = 6755399441055744.0;
  static constexpr double log2_high = Log2Parts<double>::high, log2_low = Log2Parts<double>::low;
  static constexpr double lowest = -708.3964185322641, highest = 709.782712893384;
};

template <class V>
FASTVI_HD V exp(V x) {
#if defined(__CUDA_ARCH__)
  // The device has a unit for it: 7 instructions, as accurate as ours.
  if constexpr (__is_same(V, float)) return ::expf(x);
#endif
  using S = scalar_t<V>;
  using C = ExpConstants<S>;
  const V shifted =
      multiply_add<false>(x, broadcast<V>(S(1.44269504088896340736)), broadcast<V>(C::magic));
  const V n = shifted - broadcast<V>(C::magic);
  V r = multiply_add<false>(n, broadcast<V>(-C::log2_high), x);
  r = multiply_add<false>(n, broadcast<V>(-C::log2_low), r);
  V y = scale_by_power(exp_reduced(r), n, bit_cast<int_t<V>>(shifted));
  y = select(x < broadcast<V>(C::lowest), broadcast<V>(S(0)), y);
  y = select(x > broadcast<V>(C::highest), broadcast<V>(S(kInfinity)), y);
  return select(x == x, y, x);
}

#if defined(__CUDA_ARCH__)
// exp_within(scale x) for a scale that is a power of two, with the device's unit for 2^r.
FASTVI_HD float exp2_within(float x, float scale) {
  using C = ExpConstants<float>;
  constexpr float log2_e = 1.44269502162933349609f, low = 1.92596299112661746888e-8f;
  const float shifted = fma(x, scale * log2_e, C::magic), n = shifted - C::magic;
  float y = fma(x, scale * low, fma(x, scale * log2_e, -n));
  asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(y));
  y = bit_cast<float>(bit_cast<int32_t>(y) + (bit_cast<int32_t>(shifted) << 23));
  return ::fabs(x) <= 87.0f / ::fabs(scale) ? y : __builtin_nanf("");
}
#endif

// exp where neither it nor its inverse is near the ends of the type; elsewhere NaN, for what looks
// at the result and comes back with more care.
template <class V>
FASTVI_HD V exp_within(V x) {
  using S = scalar_t<V>;
  using C = ExpConstants<S>;
#if defined(__CUDA_ARCH__)
  if constexpr (__is_same(V, float)) return exp2_within(x, 1.0f);
#endif
  const V shifted =
      multiply_add<false>(x, broadcast<V>(S(1.44269504088896340736)), broadcast<V>(C::magic));
  const V n = shifted - broadcast<V>(C::magic);
  V r = multiply_add<false>(n, broadcast<V>(-C::log2_high), x);
  r = multiply_add<false>(n, broadcast<V>(-C::log2_low), r);
  const V y = scale_by_power(exp_reduced(r), n, bit_cast<int_t<V>>(shifted));
  const V most = broadcast<V>(sizeof(S) == 4 ? S(87) : S(708));
  return select(abs(x) <= most, y, broadcast<V>(S(__builtin_nan(""))));
}

// A number as a product, so that it may lie beyond the range of the type: x times it is x * a * b.
template <class V>
struct Factors {
  V a, b;
};
template <class V>
FASTVI_HD V times(V x, const Factors<V>& by) {
  return (x * by.a) * by.b;
}

// e^x as a power of two and a number near its root, each with half of the exponent: as exact as
// exp, up to the squares of what exp reaches, and at its nearest end beyond.
template <class V>
FASTVI_HD Factors<V> exp_factors(V x) {
  using S = scalar_t<V>;
  using I = int_t<V>;
  using C = ExpConstants<S>;
  const V lowest = broadcast<V>(S(1.98) * C::lowest), highest = broadcast<V>(S(1.98) * C::highest);
  V within = max_number(x, lowest);
  within = select(within > highest, highest, within);
  const V shifted =
      multiply_add<false>(within, broadcast<V>(S(1.44269504088896340736)), broadcast<V>(C::magic));
  const V n = shifted - broadcast<V>(C::magic);
  V r = multiply_add<false>(n, broadcast<V>(-C::log2_high), within);
  r = multiply_add<false>(n, broadcast<V>(-C::log2_low), r);
#if defined(FASTVI_SCALEF)
  if constexpr (Traits<V>::lanes > 1) {
    const V root = multiply_add<false>(n, broadcast<V>(S(0.5)), broadcast<V>(C::magic)) -
                   broadcast<V>(C::magic);
    return {scale_by_power(broadcast<V>(S(1)), root, I{}),
            scale_by_power(exp_reduced(r), n - root, I{})};
  }
#endif
  const I power = bit_cast<I>(shifted) - bit_cast<I>(broadcast<V>(C::magic));
  const I half = power >> 1;
  const I rest = power - half;
  const V b = scale_by_power(exp_reduced(r), to_float(rest), rest);
  return {scale_by_power(broadcast<V>(S(1)), to_float(half), half), select(x == x, b, x)};
}

// exp for an argument that is known to be at most zero, or NaN: what log-sum-exp and softplus need,
// in as few instructions as it takes. Subnormal results may be zero.
template <class V>
FASTVI_HD V exp_nonpositive(V x) {
#if defined(__CUDA_ARCH__)
  if constexpr (__is_same(V, float)) {
    // Subnormal results are zero here too, which saves the three instructions that __expf scales
    // by.
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(x) : "f"(x * 1.44269504088896340736f));
    return x;
  }
#endif
#if defined(FASTVI_SCALEF)
  if constexpr (__is_same(V, f32v)) {
    using C = ExpConstants<float>;
    // Below this the result is zero; a NaN passes the clamp, and the scaling after it.
    x = max_number(x, broadcast<V>(-104.0f));
    const V shifted = fma(x, broadcast<V>(1.44269504088896340736f), broadcast<V>(C::magic));
    const V n = shifted - broadcast<V>(C::magic);
    // float(log 2) is off by 2e-9, so one step of reduction does: |n| is at most 150.
    const V r = fma(n, broadcast<V>(-0.693147180559945309417f), x);
    return scale_by_power(exp_reduced(r), n, (i32v)shifted);
  }
#elif defined(FASTVI_VECTOR_BYTES) && !defined(FASTVI_NO_FMA)
  if constexpr (__is_same(V, f32v)) {
    // The low bits hold n + 127, which as an exponent is 2^n, and zero where n is -127. A NaN is
    // one in the polynomial, whatever it is multiplied by.
    constexpr float magic = ExpConstants<float>::magic + 127.0f;
    x = max_number(x, broadcast<V>(-88.0f));
    const V shifted = fma(x, broadcast<V>(1.44269504088896340736f), broadcast<V>(magic));
    const V r = fma(shifted - broadcast<V>(magic), broadcast<V>(-0.693147180559945309417f), x);
    return exp_reduced(r) * bit_cast<V>(bit_cast<i32v>(shifted) << 23);
  }
#endif
  return exp(x);
}

// log(1 + f) + e log 2, for f in [sqrt(1/2) - 1, sqrt(2) - 1].
template <bool exact = false, class V>
FASTVI_HD V log1p_reduced(V f, V e) {
  using S = scalar_t<V>;
  const V square = f * f;
  const V log2_high = broadcast<V>(Log2Parts<S>::high), log2_low = broadcast<V>(Log2Parts<S>::low);
  if constexpr (sizeof(S) == 4) {
    constexpr float c[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                           -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                           2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
    V y = horner<exact>(f, c) * (f * square);
    y = multiply_add<exact>(e, log2_low, y);
    y = multiply_add<exact>(broadcast<V>(S(-0.5)), square, y);
    return multiply_add<exact>(e, log2_high, f + y);
  } else {
    constexpr double c[] = {1.479819860511658591e-01, 1.531383769920937332e-01,
                            1.818357216161805012e-01, 2.222219843214978396e-01,
                            2.857142874366239149e-01, 3.999999999940941908e-01,
                            6.666666666666735130e-01};
    const V s = f / (f + broadcast<V>(S(2)));
    const V z = s * s;
    const V half_square = broadcast<V>(S(0.5)) * square;
    const V rest = multiply_add<exact>(s, half_square + horner<exact>(z, c) * z, e * log2_low);
    return multiply_add<exact>(e, log2_high, f - (half_square - rest));
  }
}

// log(x) for a normal, positive, finite x.
template <bool exact = false, class V>
FASTVI_HD V log_normal_range(V x) {
  using S = scalar_t<V>;
  using I = int_t<V>;
  // Subtracting the bits of sqrt(1/2) leaves the exponent that puts the mantissa around 1.
  if constexpr (sizeof(S) == 4) {
    const I bits = bit_cast<I>(x);
    const I e = (bits - 0x3f3504f3) >> 23;
    const V m = bit_cast<V>(bits - (e << 23));
    return log1p_reduced<exact>(m - broadcast<V>(S(1)), to_float(e));
  } else {
    const I bits = bit_cast<I>(x);
    const I e = (bits - 0x3fe6a09e667f3bcdll) >> 52;
    const V m = bit_cast<V>(bits - (e << 52));
    return log1p_reduced<exact>(m - broadcast<V>(S(1)), to_float(e));
  }
}

// log(x) for any x: -inf at zero, NaN below it.
template <class V>
FASTVI_HD V log(V x) {
  using S = scalar_t<V>;
  constexpr bool single = sizeof(S) == 4;
  constexpr S smallest = single ? S(1.17549435e-38) : S(2.2250738585072014e-308);
  constexpr S lift = single ? S(8388608.0) : S(4503599627370496.0);
  constexpr S log_lift = single ? S(23 * kLog2) : S(52 * kLog2);
  const V zero = broadcast<V>(S(0));
  const auto subnormal = x < broadcast<V>(smallest);
  V y = log_normal_range(select(subnormal, x * broadcast<V>(lift), x));
  y = y - select(subnormal, broadcast<V>(log_lift), zero);
  y = select(x == zero, broadcast<V>(S(-kInfinity)), y);
  // Negative and NaN give NaN; infinity gives itself.
  y = select(x >= zero, y, broadcast<V>(S(__builtin_nan(""))));
  return select(x == broadcast<V>(S(kInfinity)), x, y);
}

// log(1 + y) for y in [0, 1], or NaN; relative accuracy also for tiny y.
template <class V>
FASTVI_HD V log1p_unit(V y) {
  using S = scalar_t<V>;
  const auto large = y > broadcast<V>(S(0.41421356));
  const V halved = multiply_add<false>(y, broadcast<V>(S(0.5)), broadcast<V>(S(-0.5)));
  return log1p_reduced(select(large, halved, y),
                       select(large, broadcast<V>(S(1)), broadcast<V>(S(0))));
}

// log(1 + y) for y >= 0 of any size; relative accuracy also for tiny y. NaN below zero.
template <class V>
FASTVI_HD V log1p_nonnegative(V y) {
  using S = scalar_t<V>;
  using I = int_t<V>;
  constexpr bool single = sizeof(S) == 4;
  constexpr auto half_root = [] {
    if constexpr (single) return 0x3f3504f3;
    if constexpr (!single) return 0x3fe6a09e667f3bcdll;
  }();
  constexpr int mantissa = single ? 23 : 52;
  const V zero = broadcast<V>(S(0)), one = broadcast<V>(S(1));
  const V u = y + one;
  const I bits = bit_cast<I>(u);
  const I e = (bits - half_root) >> mantissa;
  // Where 1 + y keeps its exponent, y itself is the reduced argument: what the sum has rounded off
  // is not lost.
  const V f = select(e == 0, y, bit_cast<V>(bits - (e << mantissa)) - one);
  const V result = log1p_reduced(f, to_float(e));
  const V finite = select(y >= zero, result, broadcast<V>(S(__builtin_nan(""))));
  return select(y == broadcast<V>(S(kInfinity)), y, finite);
}

// sin and cos of r in [-pi/4, pi/4].
template <class V>
FASTVI_HD void sin_cos_reduced(V r, V* sine, V* cosine) {
  using S = scalar_t<V>;
  const V z = r * r;
  if constexpr (sizeof(S) == 4) {
    constexpr float s[] = {-1.9515295891e-4f, 8.3321608736e-3f, -1.6666654611e-1f};
    constexpr float c[] = {2.443315711809948e-5f, -1.388731625493765e-3f, 4.166664568298827e-2f};
    *sine = fma(horner<true>(z, s), z * r, r);
    *cosine = fma(horner<true>(z, c), z * z, fma(z, broadcast<V>(S(-0.5)), broadcast<V>(S(1))));
  } else {
    constexpr double s[] = {1.58969099521155010221e-10, -2.50507602534068634195e-08,
                            2.75573137070700676789e-06, -1.98412698298579493134e-04,
                            8.33333333332248946124e-03, -1.66666666666666324348e-01};
    constexpr double c[] = {-1.13596475577881948265e-11, 2.08757232129817482790e-09,
                            -2.75573143513906633035e-07, 2.48015872894767294178e-05,
                            -1.38888888888741095749e-03, 4.16666666666666019037e-02};
    *sine = fma(horner<true>(z, s), z * r, r);
    *cosine = fma(horner<true>(z, c), z * z, fma(z, broadcast<V>(S(-0.5)), broadcast<V>(S(1))));
  }
}

FASTVI_ISA_END
}  // namespace fastvi
