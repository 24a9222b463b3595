// The Laplace log-density, with u = (x - loc) / b:
//   value = -|u| - log(2 b)
//   d/dx = -sign(u) / b,   d/dloc = sign(u) / b,   d/dlog b = |u| - 1
#pragma once

#include "common/log_density.h"

namespace fastvi {

FASTVI_DECLARE_KERNEL(laplace_log_prob, LogDensityParams);           // tasks: rows * num_segments
FASTVI_DECLARE_KERNEL(laplace_log_prob_backward, LogDensityParams);  // tasks: rows * num_segments

FASTVI_ISA_BEGIN

template <bool log_scale>
struct LaplaceFamily {
  static constexpr int arity = 3;  // value x, loc, scale b or log b

  template <class V>
  static FASTVI_HD V inverse(V scale) {
    if constexpr (log_scale) return exp(-scale);
    return broadcast<V>(1) / scale;
  }
  template <class V>
  static FASTVI_HD V value(const V (&x)[3]) {
    V log_b = x[2];
    if constexpr (!log_scale) log_b = log(x[2]);
    const V rest = -log_b - broadcast<V>(static_cast<scalar_t<V>>(kLog2));
    return multiply_add<false>(-abs(x[0] - x[1]), inverse(x[2]), rest);
  }
  template <class V>
  static FASTVI_HD void derivatives(const V (&x)[3], V (&d)[3]) {
    const V zero = broadcast<V>(0), one = broadcast<V>(1);
    const V by_b = inverse(x[2]);
    const V gap = x[0] - x[1];
    // At the peak, where there is no derivative, zero; a NaN stays one.
    const V sign = select(gap > zero, one, select(gap < zero, -one, gap));
    d[1] = sign * by_b;
    d[0] = -d[1];
    d[2] = multiply_add<false>(abs(gap), by_b, -one);
    if constexpr (!log_scale) d[2] = d[2] * by_b;
  }
  template <class V>
  using Sum = PlainSum<LaplaceFamily, V>;
};

FASTVI_ISA_END
}  // namespace fastvi
