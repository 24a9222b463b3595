// The Laplace log-density, with u = (x - loc) / b:
//   value = -|u| - log(2 b)
//   d/dx = -sign(u) / b,   d/dloc = sign(u) / b,   d/dlog b = |u| - 1
#pragma once

#include "engines/log_density.h"
#include "maths/spread.h"

namespace fastvi {

FASTVI_DECLARE_KERNEL(laplace_log_prob, LogDensityParams);           // tasks: rows * num_segments
FASTVI_DECLARE_KERNEL(laplace_log_prob_backward, LogDensityParams);  // tasks: rows * num_segments

FASTVI_ISA_BEGIN

template <bool log_scale>
struct LaplaceFamily {
  static constexpr int arity = 3;  // value x, loc, scale b or log b

  static constexpr SpreadKind kind = log_scale ? SpreadKind::log_scale : SpreadKind::scale;

  // A positive number with the sign of the gap. At the peak, where there is no derivative, zero; a
  // NaN stays one.
  template <class V>
  static FASTVI_HD V signed_by(V positive, V gap) {
    const V zero = broadcast<V>(0);
    return select(gap > zero, positive, select(gap < zero, -positive, gap));
  }
  template <class V>
  static FASTVI_HD V at(V u, V scale) {
    return -abs(u) - (log_sigma_of<kind>(scale) + broadcast<V>(scalar_t<V>(kLog2)));
  }
  template <class V>
  static FASTVI_HD V value(const V (&x)[3]) {
    return at(standardised(x[0], x[1], inverse_sigma_of<kind>(x[2])), x[2]);
  }
  template <class V>
  static FASTVI_HD void derivatives(const V (&x)[3], V (&d)[3]) {
    const Factors<V> inverse = inverse_sigma_of<kind>(x[2]);
    d[1] = times(signed_by(broadcast<V>(1), x[0] - x[1]), inverse);
    d[0] = -d[1];
    d[2] = abs(standardised(x[0], x[1], inverse)) - broadcast<V>(1);
    if constexpr (!log_scale) d[2] = times(d[2], inverse);
  }
  template <class V>
  using Sum = PlainSum<LaplaceFamily, V>;
  struct Quick {
    static constexpr int arity = 3;
    template <class V>
    static FASTVI_HD V value(const V (&x)[3]) {
      return at((x[0] - x[1]) * quick_inverse_sigma_of<kind>(x[2]), x[2]);
    }
    template <class V>
    static FASTVI_HD void derivatives(const V (&x)[3], V (&d)[3]) {
      const V inverse = quick_inverse_sigma_of<kind>(x[2]);
      const V gap = x[0] - x[1];
      d[1] = signed_by(inverse, gap);
      d[0] = -d[1];
      d[2] = abs(gap * inverse) - broadcast<V>(1);
      if constexpr (!log_scale) d[2] = d[2] * inverse;
    }
    template <class V>
    using Sum = PlainSum<Quick, V>;
  };
};

FASTVI_ISA_END
}  // namespace fastvi
