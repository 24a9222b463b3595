// The Bernoulli log-density from logits: x l - log(1 + e^l), and its derivatives
// d/dl = x - sigmoid(l), d/dx = l.
#pragma once

#include "engines/row_sum.h"

namespace fastvi {

FASTVI_DECLARE_KERNEL(bernoulli_log_prob, RowSumParams);           // tasks: rows * num_segments
FASTVI_DECLARE_KERNEL(bernoulli_log_prob_backward, RowSumParams);  // tasks: rows * num_segments

FASTVI_ISA_BEGIN

struct BernoulliFamily {
  static constexpr int arity = 2;  // value x, logits l

  // x l - max(l, 0): what is left is -log(1 + e^-|l|).
  template <class V>
  static FASTVI_HD V linear(const V (&x)[2]) {
    return multiply_add<false>(x[0], x[1], -max_nan(x[1], broadcast<V>(0)));
  }
  template <class V>
  static FASTVI_HD V value(const V (&x)[2]) {
    return linear(x) - log1p_unit(exp_nonpositive(-abs(x[1])));
  }
  template <class V>
  static FASTVI_HD void derivatives(const V (&x)[2], V (&d)[2]) {
    const V one = broadcast<V>(1);
    const V e = exp_nonpositive(-abs(x[1]));
    const V s = reciprocal(one + e);
    d[0] = x[1];
    // Above 0 by 1 - s = e s: where x is 0 or 1 nothing cancels.
    const V tail = e * s;
    d[1] = select(x[1] < broadcast<V>(0), x[0] - tail, (x[0] - one) + tail);
  }

  // The logarithm of the product instead of the sum of logarithms: one logarithm for 64 elements.
  // What is kept is the product of 1 + e minus 1, so that many tiny e keep their relative accuracy;
  // 64 factors of at most 2 do not overflow.
  template <class V>
  struct Sum {
    V recent = broadcast<V>(0);
    V product = broadcast<V>(0);
    V total = broadcast<V>(0);
    FASTVI_HD void add(const V (&x)[2]) {
      const V e = exp_nonpositive(-abs(x[1]));
      recent = recent + linear(x);
      product = multiply_add<false>(product, broadcast<V>(1) + e, e);
    }
    FASTVI_HD void flush() {
      total = total + (recent - log1p_nonnegative(product));
      recent = broadcast<V>(0);
      product = broadcast<V>(0);
    }
  };
};

FASTVI_ISA_END
}  // namespace fastvi
