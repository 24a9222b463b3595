// The negative binomial log-density of a mean m and an inverse dispersion t, variance m + m^2 / t:
//   value = log Gamma(x + t) - log Gamma(t) - log Gamma(x + 1)
//           - t log1p(m / t) + x log(m / (t + m))
//   d/dx = digamma(x + t) - digamma(x + 1) + log(m / (t + m))
//   d/dm = t / (t + m) (x / m - 1)
//   d/dt = digamma(x + t) - digamma(t) - log1p(m / t) + (m - x) / (t + m)
#pragma once

#include "common/gamma.h"
#include "common/log_density.h"

namespace fastvi {

FASTVI_DECLARE_KERNEL(negative_binomial_log_prob,
                      LogDensityParams);  // tasks: rows * num_segments
FASTVI_DECLARE_KERNEL(negative_binomial_log_prob_backward,
                      LogDensityParams);  // tasks: rows * num_segments

FASTVI_ISA_BEGIN

template <class V>
FASTVI_HD V negative_binomial_value(V x, V mean, V theta) {
  const V one = broadcast<V>(1);
  const RisingFactorial<V> rising(theta, x);
  // Both multiples of x in one logarithm. The quotient first: it is at most 1.
  const V log_odds = log(rising.b * (mean / (theta + mean)));
  return multiply_add<false>(
      -theta, log1p_nonnegative(mean / theta),
      (rising.value_but_x_log_b() + times_log(x, log_odds)) - lgamma(x + one));
}

template <class V>
FASTVI_HD void negative_binomial_derivatives(V x, V mean, V theta, V* by_x, V* by_mean,
                                             V* by_theta) {
  const V one = broadcast<V>(1), zero = broadcast<V>(0);
  const V by_total = one / (theta + mean);
  *by_x = (digamma(x + theta) - digamma(x + one)) + log(mean * by_total);
  // A mean of zero that was right about a count of zero has a derivative too.
  *by_mean = theta * by_total * (select(x == zero, zero, x / mean) - one);
  *by_theta = multiply_add<false>(
      mean - x, by_total,
      RisingFactorial<V>(theta, x).derivative() - log1p_nonnegative(mean / theta));
}

template <bool log_dispersion>
struct NegativeBinomialFamily {
  static constexpr int arity = 3;  // value x, mean m, inverse dispersion t or log t

  template <class V>
  static FASTVI_HD V value(const V (&x)[3]) {
    return negative_binomial_value(x[0], x[1], positive_of<log_dispersion>(x[2]));
  }
  template <class V>
  static FASTVI_HD void derivatives(const V (&x)[3], V (&d)[3]) {
    const V theta = positive_of<log_dispersion>(x[2]);
    negative_binomial_derivatives(x[0], x[1], theta, &d[0], &d[1], &d[2]);
    if constexpr (log_dispersion) d[2] = d[2] * theta;
  }
  template <class V>
  using Sum = PlainSum<NegativeBinomialFamily, V>;
};

FASTVI_ISA_END
}  // namespace fastvi
