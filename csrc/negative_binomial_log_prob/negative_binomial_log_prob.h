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

// What of it does not depend on the mean, element by element, for many means: see
// PreparedNegativeBinomialFamily. On CPU alone.
struct NegativeBinomialTermParams : RowSumParams {
  bool derivative;
};
FASTVI_DECLARE_KERNEL(negative_binomial_term,
                      NegativeBinomialTermParams);  // tasks: rows * num_segments

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

// The log-gammas of the density, or the digammas of its derivative by t.
template <bool derivative>
struct NegativeBinomialTermFamily {
  static constexpr int arity = 2;  // value x, inverse dispersion t

  template <class V>
  static FASTVI_HD V value(const V (&x)[2]) {
    const RisingFactorial<V> rising(x[1], x[0]);
    if constexpr (derivative) return rising.derivative();
    return rising.value_but_x_log_b() - lgamma(x[0] + broadcast<V>(1));
  }
  template <class V>
  using Sum = PlainSum<NegativeBinomialTermFamily, V>;
};

// The same where a count and its dispersion meet many means: a mean costs two logarithms and a
// quotient, or one of each in the backward.
template <class V>
FASTVI_HD V prepared_negative_binomial_value(V x, V mean, V theta, V inverse_theta, V term) {
  const V one = broadcast<V>(1), ratio = mean * inverse_theta;
  const V b = (theta + broadcast<V>(4)) + x;
  const V log_odds = log(b * (ratio / (one + ratio)));
  return multiply_add<false>(-theta, log1p_nonnegative(ratio), term + times_log(x, log_odds));
}

// `log_ratio` is log1p(m / t).
template <class V>
FASTVI_HD void prepared_negative_binomial_derivatives(V x, V mean, V inverse_theta, V term,
                                                      V log_ratio, V* by_mean, V* by_theta) {
  const V one = broadcast<V>(1);
  const V ratio = mean * inverse_theta;
  const auto none = x == broadcast<V>(0);
  *by_mean = select(none, -one, x - mean) / (select(none, one, mean) * (one + ratio));
  *by_theta = multiply_add<false>(-*by_mean, ratio, term - log_ratio);
}

struct PreparedNegativeBinomialFamily {
  static constexpr int arity = 5;  // value x, mean m, t, 1 / t, term

  template <class V>
  static FASTVI_HD V value(const V (&x)[5]) {
    return prepared_negative_binomial_value(x[0], x[1], x[2], x[3], x[4]);
  }
  template <class V>
  static FASTVI_HD void derivatives(const V (&x)[5], V (&d)[5]) {
    prepared_negative_binomial_derivatives(x[0], x[1], x[3], x[4], log1p_nonnegative(x[1] * x[3]),
                                           &d[1], &d[2]);
    d[0] = d[3] = d[4] = broadcast<V>(0);
  }
  template <class V>
  using Sum = PlainSum<PreparedNegativeBinomialFamily, V>;
};

FASTVI_ISA_END
}  // namespace fastvi
