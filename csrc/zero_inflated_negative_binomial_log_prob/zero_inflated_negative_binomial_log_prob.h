// The negative binomial log-density n(x), where with probability sigmoid(g) the count is zero
// whatever the rest says:
//   value = x = 0: log(sigmoid(g) + sigmoid(-g) e^n(0)),   else log sigmoid(-g) + n(x)
// With w the probability that the count is a negative binomial one, sigmoid(n(0) - g) or 1,
//   d/dg = sigmoid(-g) - w,   and the others are w times those of n; a count of zero has none.
#pragma once

#include "negative_binomial_log_prob/negative_binomial_log_prob.h"

namespace fastvi {

FASTVI_DECLARE_KERNEL(zero_inflated_negative_binomial_log_prob,
                      LogDensityParams);  // tasks: rows * num_segments
FASTVI_DECLARE_KERNEL(zero_inflated_negative_binomial_log_prob_backward,
                      LogDensityParams);  // tasks: rows * num_segments

FASTVI_ISA_BEGIN

// 1 / (1 + e^-x).
template <class V>
FASTVI_HD V sigmoid(V x) {
  const V one = broadcast<V>(1);
  const V e = exp_nonpositive(-abs(x));
  const V s = reciprocal(one + e);
  return select(x < broadcast<V>(0), e * s, s);
}

template <bool log_dispersion>
struct ZeroInflatedNegativeBinomialFamily {
  static constexpr int arity = 4;  // value x, mean m, inverse dispersion t or log t, gate g
  static constexpr int kCudaBlocks = 2;

  template <class V>
  static FASTVI_HD V value(const V (&x)[4]) {
    const V zero = broadcast<V>(0);
    const V n = negative_binomial_value(x[0], x[1], positive_of<log_dispersion>(x[2]));
    const V normaliser = log1p_unit(exp_nonpositive(-abs(x[3])));
    // log sigmoid(g), and log sigmoid(-g) + n.
    const V gate = -max_nan(-x[3], zero) - normaliser;
    const V count = (n - max_nan(x[3], zero)) - normaliser;
    const V either = max_nan(gate, count) + log1p_unit(exp_nonpositive(-abs(gate - count)));
    return select(x[0] == zero, either, count);
  }
  template <class V>
  static FASTVI_HD void derivatives(const V (&x)[4], V (&d)[4]) {
    const V zero = broadcast<V>(0), one = broadcast<V>(1);
    const V theta = positive_of<log_dispersion>(x[2]);
    negative_binomial_derivatives(x[0], x[1], theta, &d[0], &d[1], &d[2]);
    if constexpr (log_dispersion) d[2] = d[2] * theta;
    const auto none = x[0] == zero;
    const V empty = -theta * log1p_nonnegative(x[1] / theta);
    const V w = select(none, sigmoid(empty - x[3]), one);
    d[0] = select(none, zero, d[0]);
    d[1] = w * d[1];
    d[2] = w * d[2];
    d[3] = select(none, sigmoid(-x[3]) - w, -sigmoid(x[3]));
  }
  template <class V>
  using Sum = PlainSum<ZeroInflatedNegativeBinomialFamily, V>;
};

FASTVI_ISA_END
}  // namespace fastvi
