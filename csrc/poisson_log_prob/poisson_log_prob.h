// The Poisson log-density of a rate r:
//   value = x log r - r - log Gamma(x + 1)
//   d/dx = log r - digamma(x + 1),   d/dlog r = x - r
#pragma once

#include "common/gamma.h"
#include "common/log_density.h"

namespace fastvi {

FASTVI_DECLARE_KERNEL(poisson_log_prob, LogDensityParams);           // tasks: rows * num_segments
FASTVI_DECLARE_KERNEL(poisson_log_prob_backward, LogDensityParams);  // tasks: rows * num_segments

FASTVI_ISA_BEGIN

template <bool log_rate>
struct PoissonFamily {
  static constexpr int arity = 2;  // value x, rate r or log r

  template <class V>
  static FASTVI_HD V log_of(V rate) {
    if constexpr (log_rate) return rate;
    return log(rate);
  }
  template <class V>
  static FASTVI_HD V value(const V (&x)[2]) {
    const V rate = positive_of<log_rate>(x[1]);
    return (times_log(x[0], log_of(x[1])) - rate) - lgamma(x[0] + broadcast<V>(1));
  }
  template <class V>
  static FASTVI_HD void derivatives(const V (&x)[2], V (&d)[2]) {
    const V one = broadcast<V>(1), zero = broadcast<V>(0);
    d[0] = log_of(x[1]) - digamma(x[0] + one);
    if constexpr (log_rate) {
      d[1] = x[0] - exp(x[1]);
    } else {
      // A rate of zero that was right about a count of zero has a derivative too.
      d[1] = select(x[0] == zero, zero, x[0] / x[1]) - one;
    }
  }
  template <class V>
  using Sum = PlainSum<PoissonFamily, V>;
};

FASTVI_ISA_END
}  // namespace fastvi
