// The three ways to say the width of a Gaussian.
#pragma once

#include "common/math.h"

namespace fastvi {

enum class SpreadKind : int32_t { scale, log_scale, log_var };

FASTVI_ISA_BEGIN

template <SpreadKind kind, class V>
FASTVI_HD V log_sigma_of(V spread) {
  if constexpr (kind == SpreadKind::scale) return log(spread);
  if constexpr (kind == SpreadKind::log_var) return spread * broadcast<V>(0.5);
  return spread;
}
template <SpreadKind kind, class V>
FASTVI_HD V sigma_of(V spread) {
  if constexpr (kind == SpreadKind::scale) return spread;
  return exp(log_sigma_of<kind>(spread));
}
template <SpreadKind kind, class V>
FASTVI_HD V inverse_sigma_of(V spread) {
  V inverse;
  if constexpr (kind == SpreadKind::scale) {
    inverse = broadcast<V>(1) / spread;
  } else {
    inverse = exp(-log_sigma_of<kind>(spread));
  }
  // A sigma whose inverse overflows still has a density at the mean, where 0 * inf would be NaN.
  const V largest = broadcast<V>(largest_number<scalar_t<V>>());
  return select(inverse > largest, largest, inverse);
}
// From a derivative with respect to log sigma to one with respect to the spread.
template <SpreadKind kind, class V>
FASTVI_HD V spread_derivative(V by_log_sigma, V spread) {
  if constexpr (kind == SpreadKind::scale) return by_log_sigma / spread;
  if constexpr (kind == SpreadKind::log_var) return by_log_sigma * broadcast<V>(0.5);
  return by_log_sigma;
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
