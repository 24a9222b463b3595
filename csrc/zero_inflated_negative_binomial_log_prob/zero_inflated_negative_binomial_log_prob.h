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

// The density from that of the count, n.
template <class V>
FASTVI_HD V zero_inflated_value(V x, V n, V gate_logits) {
  const V zero = broadcast<V>(0);
  const V normaliser = log1p_unit(exp_nonpositive(-abs(gate_logits)));
  // log sigmoid(g), and log sigmoid(-g) + n.
  const V gate = -max_nan(-gate_logits, zero) - normaliser;
  const V count = (n - max_nan(gate_logits, zero)) - normaliser;
  const V either = max_nan(gate, count) + log1p_unit(exp_nonpositive(-abs(gate - count)));
  return select(x == zero, either, count);
}

// n(0), where the count is zero.
template <class V>
FASTVI_HD V density_of_none(const NegativeBinomialShape<V>& shape) {
  return -(shape.expected + shape.total_excess);
}

// From the derivatives of n to those of the density; `empty` is n(0).
template <class V>
FASTVI_HD void zero_inflated_derivatives(V x, V empty, V gate_logits, V* by_x, V* by_mean,
                                         V* by_theta, V* by_gate) {
  const V zero = broadcast<V>(0), one = broadcast<V>(1);
  const auto none = x == zero;
  const V w = select(none, sigmoid(empty - gate_logits), one);
  *by_x = select(none, zero, *by_x);
  *by_mean = w * *by_mean;
  *by_theta = w * *by_theta;
  *by_gate = select(none, sigmoid(-gate_logits) - w, -sigmoid(gate_logits));
}

template <bool log_dispersion>
struct ZeroInflatedNegativeBinomialFamily {
  static constexpr int arity = 4;  // value x, mean m, inverse dispersion t or log t, gate g
  static constexpr int kCudaBlocks = 2;
  static constexpr bool kIsHeavy = true;

  template <class V>
  static FASTVI_HD V value(const V (&x)[4]) {
    return zero_inflated_value(x[0], negative_binomial_value<log_dispersion>(x[0], x[1], x[2]),
                               x[3]);
  }
  template <class V>
  static FASTVI_HD void derivatives(const V (&x)[4], V (&d)[4]) {
    const auto shape =
        negative_binomial_derivatives<log_dispersion>(x[0], x[1], x[2], &d[0], &d[1], &d[2]);
    zero_inflated_derivatives(x[0], density_of_none(shape), x[3], &d[0], &d[1], &d[2], &d[3]);
  }
  template <class V>
  using Sum = PlainSum<ZeroInflatedNegativeBinomialFamily, V>;
};

// Where a count and its dispersion meet many means, see PreparedNegativeBinomialFamily.
template <bool log_dispersion>
struct PreparedZeroInflatedNegativeBinomialFamily {
  static constexpr int arity = 6;  // value x, mean m, t, gate g, 1 / max(x, 1), term
  static constexpr bool kIsHeavy = true, kIsPrepared = true;

  template <class V>
  static FASTVI_HD V value(const V (&x)[6]) {
    const Dispersion<DispersionKind::prepared, V> t(x[2]);
    const NegativeBinomialShape<V> shape(x[0], x[1], t, x[4]);
    return zero_inflated_value(x[0], negative_binomial_sum(x[0], shape, x[5]), x[3]);
  }
  template <class V>
  static FASTVI_HD void derivatives(const V (&x)[6], V (&d)[6]) {
    const Dispersion<DispersionKind::prepared, V> t(x[2]);
    const NegativeBinomialShape<V> shape(x[0], x[1], t, x[4]);
    negative_binomial_parameters<log_dispersion>(x[0], shape, x[5], &d[1], &d[2]);
    d[0] = d[4] = d[5] = broadcast<V>(0);
    zero_inflated_derivatives(x[0], density_of_none(shape), x[3], &d[0], &d[1], &d[2], &d[3]);
  }
  template <class V>
  using Sum = PlainSum<PreparedZeroInflatedNegativeBinomialFamily, V>;
};

FASTVI_ISA_END
}  // namespace fastvi
