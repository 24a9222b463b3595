// The three ways to say the width of a Gaussian.
#pragma once

#include "maths/math.h"

namespace fastvi {

enum class SpreadKind : int32_t { scale, log_scale, log_var };

FASTVI_ISA_BEGIN

template <SpreadKind kind, class V>
FASTVI_HD V log_sigma_of(V spread) {
  if constexpr (kind == SpreadKind::scale) return log(spread);
  if constexpr (kind == SpreadKind::log_var) return spread * broadcast<V>(0.5);
  return spread;
}
// Subnormal numbers among them, which exp takes for zero.
template <SpreadKind kind, class V>
FASTVI_HD V sigma_of(V spread) {
  if constexpr (kind == SpreadKind::scale) return spread;
  return times(broadcast<V>(1), exp_factors(log_sigma_of<kind>(spread)));
}

// A power of two that brings a positive number to where its inverse is neither infinite nor
// subnormal. It does not overflow, in a product, what divided by the number does not.
template <class V>
FASTVI_HD V lift_of(V x) {
  using S = scalar_t<V>;
  constexpr bool single = sizeof(S) == 4;
  const V small = broadcast<V>(single ? S(0x1p-100f) : S(0x1p-500));
  const V large = broadcast<V>(single ? S(0x1p60f) : S(0x1p500));
  const V up = broadcast<V>(single ? S(0x1p64f) : S(0x1p500));
  const V down = broadcast<V>(single ? S(0x1p-60f) : S(0x1p-500));
  return select(x < small, up, select(x > large, down, broadcast<V>(1)));
}

// No number here is 0 or infinite, whatever sigma is: it has a density at the mean, where 0 * inf
// would be NaN, and far from it, where 1 / sigma alone would be rounded to zero.
template <SpreadKind kind, class V>
FASTVI_HD Factors<V> inverse_sigma_of(V spread) {
  if constexpr (kind == SpreadKind::scale) {
    const V lift = lift_of(spread);
    const V inverse = broadcast<V>(1) / (spread * lift);
    const V largest = broadcast<V>(largest_number<scalar_t<V>>());
    return {lift, select(inverse > largest, largest, inverse)};
  } else {
    return exp_factors(-log_sigma_of<kind>(spread));
  }
}

// One number for it, or infinity or NaN: see Quick in engines/row_sum.h.
template <SpreadKind kind, class V>
FASTVI_HD V quick_inverse_sigma_of(V spread) {
  if constexpr (kind == SpreadKind::scale) return broadcast<V>(1) / spread;
#if defined(__CUDA_ARCH__)
  if constexpr (kind == SpreadKind::log_var && __is_same(V, float))
    return exp2_within(spread, -0.5f);
#endif
  return exp_within(-log_sigma_of<kind>(spread));
}

// (x - loc) / sigma, also where the distance alone overflows.
template <class V>
FASTVI_HD V standardised(V x, V loc, const Factors<V>& inverse_sigma) {
  const V half = broadcast<V>(0.5);
  const V distance = x - loc;
  const auto far = abs(distance) > broadcast<V>(largest_number<scalar_t<V>>());
  const V within = select(far, x * half - loc * half, distance);
  return (within * inverse_sigma.a) *
         select(far, inverse_sigma.b + inverse_sigma.b, inverse_sigma.b);
}

FASTVI_ISA_END
}  // namespace fastvi

// Calls `...` with Kind, a constant.
#define FASTVI_SWITCH_SPREAD(kind, Kind, ...)                \
  switch (kind) {                                            \
    case ::fastvi::SpreadKind::scale: {                      \
      constexpr auto Kind = ::fastvi::SpreadKind::scale;     \
      __VA_ARGS__;                                           \
      break;                                                 \
    }                                                        \
    case ::fastvi::SpreadKind::log_scale: {                  \
      constexpr auto Kind = ::fastvi::SpreadKind::log_scale; \
      __VA_ARGS__;                                           \
      break;                                                 \
    }                                                        \
    case ::fastvi::SpreadKind::log_var: {                    \
      constexpr auto Kind = ::fastvi::SpreadKind::log_var;   \
      __VA_ARGS__;                                           \
      break;                                                 \
    }                                                        \
  }
