// The negative binomial log-density of a mean m and an inverse dispersion t, variance m + m^2 / t:
//   value = log Gamma(x + t) - log Gamma(t) - log Gamma(x + 1)
//           - t log1p(m / t) + x log(m / (t + m))
//   d/dx = digamma(x + t) - digamma(x + 1) + log(m / (t + m))
//   d/dm = t / (t + m) (x / m - 1)
//   d/dt = digamma(x + t) - digamma(t) - log1p(m / t) + (m - x) / (t + m)
// None of these sums is formed as it stands: see negative_binomial_shape.h.
#pragma once

#include "engines/log_density.h"
#include "negative_binomial_log_prob/negative_binomial_shape.h"
#include "negative_binomial_log_prob/negative_binomial_term.h"

namespace fastvi {

FASTVI_DECLARE_KERNEL(negative_binomial_log_prob,
                      LogDensityParams);  // tasks: rows * num_segments
FASTVI_DECLARE_KERNEL(negative_binomial_log_prob_backward,
                      LogDensityParams);  // tasks: rows * num_segments

// What of it does not depend on the mean, element by element, for many means: see
// PreparedNegativeBinomialFamily and negative_binomial_card.h.
struct NegativeBinomialTermParams : RowSumParams {
  int32_t term;  // a NegativeBinomialTerm
  bool log_dispersion;
};
FASTVI_DECLARE_KERNEL(negative_binomial_term,
                      NegativeBinomialTermParams);  // tasks: rows * num_segments

FASTVI_ISA_BEGIN

template <bool log_dispersion>
inline constexpr DispersionKind kDispersionKind =
    log_dispersion ? DispersionKind::log : DispersionKind::plain;

template <class V>
FASTVI_HD V inverse_count(V x) {
  const V one = broadcast<V>(1);
  return one / select(x >= one, x, one);
}

template <class V>
FASTVI_HD V negative_binomial_sum(V x, const NegativeBinomialShape<V>& shape, V term) {
  const V count = select(x >= broadcast<V>(1), -x * shape.count_excess,
                         times_log(x, shape.log_ratio) - shape.expected);
  return (count - shape.total_excess) + term;
}

template <bool log_dispersion, class V>
FASTVI_HD V negative_binomial_value(V x, V mean, V given) {
  const Dispersion<kDispersionKind<log_dispersion>, V> t(given);
  const V inverse_x = inverse_count(x);
  const NegativeBinomialShape<V> shape(x, mean, t, inverse_x);
  return negative_binomial_sum(x, shape, negative_binomial_term_value(x, t, inverse_x));
}

// The derivatives by the mean, and by t or log t, from `slope` of negative_binomial_term_slopes.
template <bool log_dispersion, class V>
FASTVI_HD void negative_binomial_parameters(V x, const NegativeBinomialShape<V>& shape, V slope,
                                            V* by_mean, V* by_theta) {
  const V zero = broadcast<V>(0), one = broadcast<V>(1), theta = shape.theta;
  const auto none = x == zero, large = theta >= one;
  // A mean of zero that was right about a count of zero has a derivative too.
  *by_mean = select(none, -shape.share, shape.by_mean);
  // Below 1, 1 / t - u is this over t and m / (t + m); a count of one cancels nothing.
  V direct = shape.direct;
  const V n = theta + x;
  const auto few = (n < one) & (x > zero);
  if (any(few)) {
    const V part = x / n;
    direct = select(
        few, multiply_add<false>(shape.mean_share, part, shape.share * (part * (one - n))), direct);
  }
  const V logarithms = (shape.log_total + slope) + shape.mean_share;
  if constexpr (log_dispersion) {
    *by_theta = select(none | large, slope - shape.total_excess,
                       multiply_add<false>(theta, logarithms, direct));
  } else {
    const V quotient = select(large, slope - shape.total_excess, direct) / theta;
    *by_theta = select(none, slope - shape.excess, select(large, quotient, quotient + logarithms));
  }
}

template <bool log_dispersion, class V>
FASTVI_HD NegativeBinomialShape<V> negative_binomial_derivatives(V x, V mean, V given, V* by_x,
                                                                 V* by_mean, V* by_theta) {
  const Dispersion<kDispersionKind<log_dispersion>, V> t(given);
  const V inverse_x = inverse_count(x);
  const NegativeBinomialShape<V> shape(x, mean, t, inverse_x);
  V slope;
  const V digammas = negative_binomial_term_slopes(x, t, inverse_x, &slope);
  *by_x = shape.log_ratio + digammas;
  negative_binomial_parameters<log_dispersion>(x, shape, slope, by_mean, by_theta);
  return shape;
}

template <bool log_dispersion>
struct NegativeBinomialFamily {
  static constexpr int arity = 3;  // value x, mean m, inverse dispersion t or log t
  static constexpr bool kIsHeavy = true;

  template <class V>
  static FASTVI_HD V value(const V (&x)[3]) {
    return negative_binomial_value<log_dispersion>(x[0], x[1], x[2]);
  }
  template <class V>
  static FASTVI_HD void derivatives(const V (&x)[3], V (&d)[3]) {
    negative_binomial_derivatives<log_dispersion>(x[0], x[1], x[2], &d[0], &d[1], &d[2]);
  }
  template <class V>
  using Sum = PlainSum<NegativeBinomialFamily, V>;
};

// What the means of the next family share.
enum class NegativeBinomialTerm : int32_t { value, slope, dispersion };

template <NegativeBinomialTerm term, bool log_dispersion>
struct NegativeBinomialTermFamily {
  static constexpr int arity = 2;  // value x, inverse dispersion t or log t
  static constexpr bool kIsHeavy = true, kPrepares = true;

  template <class V>
  static FASTVI_HD V value(const V (&x)[2]) {
    const Dispersion<kDispersionKind<log_dispersion>, V> t(x[1]);
    if constexpr (term == NegativeBinomialTerm::value) {
      return negative_binomial_term_value(x[0], t, inverse_count(x[0]));
    } else if constexpr (term == NegativeBinomialTerm::slope) {
      V slope;
      negative_binomial_term_slopes(x[0], t, inverse_count(x[0]), &slope);
      return slope;
    } else if constexpr (log_dispersion) {
      return prepared_dispersion(t);
    } else {
      return t.theta;
    }
  }
  template <class V>
  using Sum = PlainSum<NegativeBinomialTermFamily, V>;
};

// The same where a count and its dispersion meet many means: a mean costs two logarithms and a
// quotient. On CPU alone.
template <bool log_dispersion>
struct PreparedNegativeBinomialFamily {
  static constexpr int arity = 5;  // value x, mean m, t, 1 / max(x, 1), term
  static constexpr bool kIsHeavy = true, kIsPrepared = true;

  template <class V>
  static FASTVI_HD V value(const V (&x)[5]) {
    const Dispersion<DispersionKind::prepared, V> t(x[2]);
    return negative_binomial_sum(x[0], NegativeBinomialShape<V>(x[0], x[1], t, x[3]), x[4]);
  }
  template <class V>
  static FASTVI_HD void derivatives(const V (&x)[5], V (&d)[5]) {
    const Dispersion<DispersionKind::prepared, V> t(x[2]);
    const NegativeBinomialShape<V> shape(x[0], x[1], t, x[3]);
    negative_binomial_parameters<log_dispersion>(x[0], shape, x[4], &d[1], &d[2]);
    d[0] = d[3] = d[4] = broadcast<V>(0);
  }
  template <class V>
  using Sum = PlainSum<PreparedNegativeBinomialFamily, V>;
};

FASTVI_ISA_END
}  // namespace fastvi
