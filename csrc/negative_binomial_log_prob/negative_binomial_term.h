// What of the negative binomial log-density and of its derivatives the mean does not enter. With
// n = x + t and rest the rest of Stirling's formula, the log-density at its largest mean is
//   -log(2 pi x n / t) / 2 + rest(n) - rest(t) - rest(x)      for x, t >= 1,
// and where x or t is below 1, its own log Gamma(1 + y) stands for what Stirling's formula says.
#pragma once

#include "maths/gamma.h"
#include "negative_binomial_log_prob/negative_binomial_shape.h"

namespace fastvi {
FASTVI_ISA_BEGIN

// log(1 + x / t). The quotient may overflow, and then the two are far apart.
template <class V>
FASTVI_HD V log_of_quotient(V x, V theta, V log_n, V log_theta) {
  const V quotient = x / theta;
  return select(quotient < broadcast<V>(Range<scalar_t<V>>::high), log1p_nonnegative(quotient),
                log_n - log_theta);
}

template <DispersionKind kind, class V>
FASTVI_HD V negative_binomial_term_value(V x, const Dispersion<kind, V>& given, V inverse_x) {
  using S = scalar_t<V>;
  const V theta = given.theta;
  using R = Range<S>;
  const V one = broadcast<V>(S(1)), zero = broadcast<V>(S(0)), half = broadcast<V>(S(0.5));
  const auto large_x = x >= one, large_t = theta >= one;
  const V n = x + theta, count = select(large_x, x, one);
  const V t = select(large_t, theta, one), inverse_t = one / t;
  const V inverse_n = one / select(n >= one, n, one);
  // Of a count or a dispersion below 1. Both are rare, unless the count is zero.
  const V part = select(large_t, select(large_x, zero, x), theta);
  const V rests = stirling_rest(inverse_n) - select(large_t, stirling_rest(inverse_t), zero) -
                  select(large_x, stirling_rest(inverse_x), zero);
  const V constant = select(large_t & large_x, broadcast<V>(S(kHalfLog2Pi)), lgamma_one_plus(part));
  const V root = half * log_normal_range((n * inverse_t) * count);
  const V log_t = log_normal_range(select(large_t, one, theta));
  V term = ((rests - constant) - root) +
           multiply_add<false>(select(large_t, zero, theta), log_t, log_t) -
           select(large_t, zero, theta);
  const auto rare = ((x > zero) & (x < one) & (theta < one)) | (theta < broadcast<V>(R::low));
  if (any(rare)) {
    const auto less = n < one;
    const V log_theta = given.log_theta(), y = select(theta < one, theta, zero);
    const V own = lgamma_one_plus(y) + (y - times_log(y, log_theta));
    const V log_n = log(n);
    // n >= 1 > t.
    const V above = (stirling_rest(inverse_n) - half * log_n) + (log_theta - own);
    const V many = above - half * log(count) - select(large_x, stirling_rest(inverse_x), zero);
    const V few =
        (above + broadcast<V>(S(kHalfLog2Pi))) - lgamma_one_plus(select(large_x, zero, x));
    // x, t < n < 1.
    const V log_quotient = log_of_quotient(x, theta, log_n, log_theta);
    const V y_n = select(less, n, zero), y_x = select(less, x, zero);
    const V neither = ((lgamma_one_plus(y_n) - lgamma_one_plus(y_x)) - (lgamma_one_plus(y) - x)) -
                      (times_log(n, log_n) - times_log(y, log_theta)) - log_quotient;
    term = select(rare, select(less, neither, select(large_x, many, few)), term);
  }
  term = select(x == zero, zero, term);
  return select((x >= zero) & (theta >= zero), term, broadcast<V>(S(__builtin_nan(""))));
}

// digamma(n) - digamma(x + 1) - log(n / max(x, 1)), and in `slope`, with g(z) = log z - digamma(z),
//   t (g(t) - g(n)) where t >= 1;   g(t) - g(n) less 1 / t, or less x / (t n) if n < 1, elsewhere.
// A count of zero has a slope of zero.
template <DispersionKind kind, class V>
FASTVI_HD V negative_binomial_term_slopes(V x, const Dispersion<kind, V>& given, V inverse_x,
                                          V* slope) {
  using S = scalar_t<V>;
  const V one = broadcast<V>(S(1)), zero = broadcast<V>(S(0)), half = broadcast<V>(S(0.5));
  const V theta = given.theta;
  const auto large_x = x >= one, large_t = theta >= one, none = x == zero;
  const V n = x + theta;
  const V inverse_t = one / select(large_t, theta, one);
  const V inverse_n = one / select(n >= one, n, one);
  const V part = select(large_t, select(large_x, zero, x), theta);
  const V digamma_part = digamma_one_plus(part);
  const V rest_n = digamma_rest(inverse_n), rest_t = digamma_rest(inverse_t);
  const V square_n = inverse_n * inverse_n;
  const V of_n = multiply_add<false>(square_n, rest_n, half * inverse_n);
  // From 1 on, 1 / t - 1 / n is x / (t n), and the rests are the lesser part.
  const V rests = multiply_add<false>(inverse_t, rest_t, -theta * (square_n * rest_n));
  const V above = multiply_add<false>(half * x, inverse_n, rests);
  const V log_t = log_normal_range(select(large_t, one, theta));
  V by_t = select(large_t, above, (log_t - digamma_part) - of_n);
  V by_n = of_n;
  V digamma_x = select(large_x, inverse_x - log_less_digamma(inverse_x), digamma_part);
  const auto rare = ((x < one) & (theta < one)) | (theta < broadcast<V>(Range<S>::low));
  if (any(rare)) {
    const auto less = n < one;
    const V y_n = select(less, n, zero), y_x = select(large_x, zero, x);
    const V own = digamma_one_plus(y_n), log_n = log(n), log_theta = given.log_theta();
    by_n = select(rare & less, (log_n - own) + one / n, by_n);
    digamma_x = select(rare & (x < one), digamma_one_plus(y_x), digamma_x);
    const V neither = (own - digamma_part) - log_of_quotient(x, theta, log_n, log_theta);
    by_t = select(rare, select(less, neither, (log_theta - digamma_part) - of_n), by_t);
  }
  by_t = select(none, zero, by_t);
  *slope = select((x >= zero) & (theta >= zero), by_t, broadcast<V>(S(__builtin_nan(""))));
  return -by_n - digamma_x;
}

FASTVI_ISA_END
}  // namespace fastvi
